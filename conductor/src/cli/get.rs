//! `ferrite get`: resources as tables, JSON, YAML or names, once or as they change.

use std::process::ExitCode;

use clap::Args;
use ferrite_proto::host::Host;
use ferrite_proto::named_image::ImageStatus;
use ferrite_proto::size::ByteSize;
use jiff::Timestamp;
use reqwest::Method;
use serde_json::Value;

use super::args::Output;
use super::client::Client;
use super::kind::{self, Kind, escaped};
use super::{apply, print, print_value, show, sse, table, yaml};

/// Things in one answer.
const PAGE: u32 = 500;

/// Show resources.
#[derive(Debug, Args)]
pub(crate) struct Get {
    /// `hosts`, `host/NAME` or `host NAME…`; also images, clusters, profiles, tasks, certificates.
    #[arg(required = true, value_name = "KIND[/NAME]", add = super::complete::things())]
    pub(crate) what: Vec<String>,
    /// Which of them.
    #[command(flatten)]
    pub(crate) selection: Selection,
    /// Go on, and show what changes.
    #[arg(long, short)]
    pub(crate) watch: bool,
    /// Of every project, whatever the context says.
    #[arg(long, short = 'A')]
    pub(crate) all_projects: bool,
}

/// Which resources.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Selection {
    /// By labels: `rack=r1,tier!=test`, `rack in (r1,r2)`, `!spare`.
    #[arg(long, short = 'l', value_name = "LABELS")]
    pub(crate) selector: Option<String>,
    /// By fields: `status.state=available`.
    #[arg(long, value_name = "FIELDS")]
    pub(crate) field_selector: Option<String>,
}

impl Selection {
    /// Whether it leaves anything out.
    pub(crate) const fn is_all(&self) -> bool {
        self.selector.is_none() && self.field_selector.is_none()
    }

    /// `label_selector=…&field_selector=…&project=…`, each where given.
    fn query(&self, project: Option<&str>) -> String {
        let parts = [
            ("label_selector", self.selector.as_deref()),
            ("field_selector", self.field_selector.as_deref()),
            ("project", project),
        ];
        let given = parts
            .into_iter()
            .filter_map(|(name, value)| Some(format!("&{name}={}", escaped(value?))));
        given.collect()
    }
}

/// Does what the arguments say.
pub(crate) async fn run(client: &Client, get: Get, output: Output) -> anyhow::Result<ExitCode> {
    let targets = kind::targets(&get.what)?;
    let project = client.project().filter(|_| !get.all_projects);
    let mut found: Vec<(Kind, Vec<Value>)> = Vec::new();
    let mut version = String::new();
    for (kind, name) in &targets {
        let items = if let Some(name) = name {
            let (_, item) = client.exchange(Method::GET, &kind.item(name), None).await?;
            version = text(&item, "/metadata/resourceVersion");
            vec![item]
        } else {
            let listed = list(client, *kind, &get.selection, project).await?;
            version = listed.version;
            listed.items
        };
        match found.last_mut() {
            Some((last, all)) if last == kind => all.extend(items),
            _ => found.push((*kind, items)),
        }
    }
    told(&found, matches!(&targets[..], [(_, Some(_))]), output)?;
    if !get.watch {
        return Ok(ExitCode::SUCCESS);
    }
    let [(kind, name)] = &targets[..] else {
        anyhow::bail!("only one kind, or one thing, can be watched at a time");
    };
    let query = get.selection.query(project);
    let path = format!(
        "{}?watch=true&resource_version={version}{query}",
        kind.collection()
    );
    follow(client, *kind, name.as_deref(), &path, output).await
}

/// A list, and its version.
pub(crate) struct Listed {
    pub(crate) items: Vec<Value>,
    pub(crate) version: String,
}

/// All pages of a list.
pub(crate) async fn list(
    client: &Client,
    kind: Kind,
    selection: &Selection,
    project: Option<&str>,
) -> anyhow::Result<Listed> {
    let query = selection.query(project);
    let mut items = Vec::new();
    let mut version = None;
    let mut from = String::new();
    loop {
        let path = format!("{}?limit={PAGE}{query}{from}", kind.collection());
        let (_, mut page) = client.exchange(Method::GET, &path, None).await?;
        let metadata = page.get("metadata").cloned().unwrap_or_default();
        // A watch goes on from the first page: later ones may be newer, which is told twice then.
        version.get_or_insert_with(|| text(&metadata, "/resourceVersion"));
        match page.get_mut("items").map(Value::take) {
            Some(Value::Array(more)) => items.extend(more),
            _ => anyhow::bail!("the conductor answered {path} without items"),
        }
        match metadata.get("continue").and_then(Value::as_str) {
            Some(next) if !next.is_empty() => from = format!("&continue={}", escaped(next)),
            _ => break,
        }
    }
    Ok(Listed {
        items,
        version: version.unwrap_or_default(),
    })
}

fn told(found: &[(Kind, Vec<Value>)], one: bool, output: Output) -> anyhow::Result<()> {
    if let (Output::Json | Output::Yaml, true) = (output, one) {
        return print_value(&found[0].1[0], output);
    }
    if let Output::Json | Output::Yaml = output {
        let items = found.iter().flat_map(|(_, items)| items.clone());
        return print_value(&apply::list(&items.collect::<Vec<_>>()), output);
    }
    for (kind, items) in found {
        print(&rows(*kind, items, output, Timestamp::now()))?;
    }
    Ok(())
}

/// Shows what changes, until the person ends it.
async fn follow(
    client: &Client,
    kind: Kind,
    name: Option<&str>,
    path: &str,
    output: Output,
) -> anyhow::Result<ExitCode> {
    sse::follow(client, path, |event| {
        let data = event.json()?;
        let word = data.get("type").and_then(Value::as_str);
        let word = word.unwrap_or(&event.kind).to_owned();
        let object = data.get("object").unwrap_or(&data);
        let other = name.is_some_and(|name| text(object, "/metadata/name") != name);
        if !other && word != "BOOKMARK" {
            print(&change(kind, &word, object, output)?)?;
        }
        Ok(false)
    })
    .await?;
    Ok(ExitCode::SUCCESS)
}

fn change(kind: Kind, word: &str, object: &Value, output: Output) -> anyhow::Result<String> {
    Ok(match output {
        Output::Json => format!("{}\n", serde_json::json!({"type": word, "object": object})),
        Output::Yaml => format!("---\n{}", yaml(object)?),
        Output::Table | Output::Wide | Output::Name => {
            let mark = if word == "DELETED" { " (deleted)" } else { "" };
            let rows = rows(kind, std::slice::from_ref(object), output, Timestamp::now());
            let row = rows.lines().last().unwrap_or_default();
            format!("{row}{mark}\n")
        }
    })
}

/// The value at a path, as text.
pub(crate) fn text(value: &Value, path: &str) -> String {
    match value.pointer(path) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

/// A table, or names.
fn rows(kind: Kind, items: &[Value], output: Output, now: Timestamp) -> String {
    let title = |item: &Value| format!("{}/{}", kind.singular(), text(item, "/metadata/name"));
    if output == Output::Name {
        return items.iter().map(|item| title(item) + "\n").collect();
    }
    if items.is_empty() {
        return format!("no {}\n", kind.plural());
    }
    let wide = output == Output::Wide;
    let columns = columns(kind, wide);
    let header: Vec<_> = columns.iter().map(|(name, _)| *name).collect();
    let mut table = table::new(&header);
    for item in items {
        table.add_row(columns.iter().map(|(_, cell)| cell.of(item, now)));
    }
    table::text(&table)
}

/// Where a cell comes from.
enum Cell {
    /// A field.
    Field(&'static str),
    /// How long ago it was made.
    Age,
    /// `key=value,…`
    Labels,
    /// What a host does, in a few words.
    Doing,
    /// How many bytes, for people.
    Bytes(&'static str),
    /// How far an image is.
    Phase,
}

impl Cell {
    fn of(&self, item: &Value, now: Timestamp) -> String {
        match self {
            Self::Field(path) => match text(item, path) {
                empty if empty.is_empty() => "-".to_owned(),
                text => text,
            },
            Self::Age => {
                let made = text(item, "/metadata/creationTimestamp").parse();
                made.map_or_else(|_| "-".to_owned(), |made| table::age(made, now))
            }
            Self::Labels => labels(item.pointer("/metadata/labels")),
            Self::Doing => doing(item),
            Self::Bytes(path) => {
                let bytes = item.pointer(path).and_then(Value::as_u64);
                bytes.map_or_else(|| "-".to_owned(), |bytes| ByteSize(bytes).to_string())
            }
            Self::Phase => phase(item),
        }
    }
}

fn labels(labels: Option<&Value>) -> String {
    let pairs = labels.and_then(Value::as_object).into_iter().flatten();
    let words = pairs.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()));
    words.collect::<Vec<_>>().join(",")
}

fn doing(item: &Value) -> String {
    // A newer conductor's host may hold what this version cannot read: the rest is shown anyway.
    match serde_json::from_value::<Host>(item.clone()) {
        Ok(host) => show::doing(&host.status),
        Err(_) => text(item, "/status/waiting_for"),
    }
}

/// One that hosts fetch themselves has no phase.
fn phase(item: &Value) -> String {
    let status = item.get("status").cloned().unwrap_or_default();
    match serde_json::from_value::<ImageStatus>(status) {
        Ok(status) => status.words(),
        Err(_) => "-".to_owned(),
    }
}

fn columns(kind: Kind, wide: bool) -> Vec<(&'static str, Cell)> {
    let mut columns = vec![("NAME", Cell::Field("/metadata/name"))];
    match kind {
        Kind::Host => columns.extend([
            ("STATE", Cell::Field("/status/state")),
            ("POWER", Cell::Field("/status/power")),
            ("IMAGE", Cell::Field("/status/image/url")),
        ]),
        Kind::Image => columns.extend([
            ("PHASE", Cell::Phase),
            ("SIZE", Cell::Bytes("/status/image_bytes")),
            ("PACKED", Cell::Bytes("/status/packed_bytes")),
            ("URL", Cell::Field("/spec/url")),
        ]),
        Kind::Cluster => columns.extend([
            ("ENDPOINT", Cell::Field("/status/endpoint")),
            ("VERSION", Cell::Field("/status/kubernetes_version")),
            ("PROBLEM", Cell::Field("/status/problem/code")),
        ]),
        Kind::Task => columns.extend([
            ("STATE", Cell::Field("/status/state")),
            ("STEP", Cell::Field("/status/step")),
            ("SINCE", Cell::Field("/status/since")),
            ("WAITS FOR", Cell::Field("/status/waiting_for")),
        ]),
        Kind::Profile => columns.push(("DESCRIPTION", Cell::Field("/spec/description"))),
        Kind::Event | Kind::Certificate => {}
    }
    columns.push(("AGE", Cell::Age));
    if wide {
        columns.push(("PROJECT", Cell::Field("/metadata/project")));
        match kind {
            Kind::Host => columns.extend([
                ("BMC", Cell::Field("/spec/bmc/address")),
                ("MAC", Cell::Field("/spec/boot_mac")),
            ]),
            Kind::Image => columns.extend([
                ("DIGEST", Cell::Field("/spec/digest")),
                ("INDEX", Cell::Field("/status/digest")),
                ("SERVED", Cell::Field("/status/url")),
            ]),
            _ => {}
        }
        columns.push(("LABELS", Cell::Labels));
    }
    if kind == Kind::Host {
        columns.push(("DOING", Cell::Doing));
    }
    columns
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn host(name: &str) -> Value {
        json!({
            "apiVersion": "ferrite/v1", "kind": "Host",
            "metadata": {"name": name, "uid": "u", "project": "default",
                         "labels": {"rack": "r1", "tier": "test"},
                         "creationTimestamp": "1970-01-01T00:00:00Z"},
            "spec": {"bmc": {"address": "redfish://b", "username": "u"}},
            "status": {"state": "inspecting", "since": "1970-01-01T00:00:00Z", "power": "on",
                       "waiting_for": "the ramdisk"}
        })
    }

    #[test]
    fn a_table_is_like_kubectls() {
        let now = Timestamp::from_second(300).unwrap();
        assert_eq!(
            rows(Kind::Host, &[host("r1-n4")], Output::Table, now),
            " NAME   STATE       POWER  IMAGE  AGE  DOING\n \
             r1-n4  inspecting  on     -      5m   waits for the ramdisk\n"
        );
        let wide = rows(Kind::Host, &[host("a")], Output::Wide, now);
        assert!(wide.contains("rack=r1,tier=test"), "{wide}");
        assert!(wide.contains("redfish://b  -    rack"), "{wide}");
        assert_eq!(
            rows(Kind::Host, &[host("a"), host("b")], Output::Name, now),
            "host/a\nhost/b\n"
        );
        assert_eq!(rows(Kind::Image, &[], Output::Table, now), "no images\n");
    }

    #[test]
    fn a_selection_is_data_of_the_query() {
        let selection = Selection {
            selector: Some("rack in (r1,r2)".into()),
            field_selector: Some("status.state=available&limit=9".into()),
        };
        assert_eq!(
            selection.query(Some("blue")),
            "&label_selector=rack%20in%20%28r1%2Cr2%29\
             &field_selector=status.state%3Davailable%26limit%3D9&project=blue"
        );
        assert_eq!(Selection::default().query(None), "");
    }

    #[test]
    fn a_change_is_one_line() {
        let line = change(Kind::Host, "DELETED", &host("a"), Output::Table).unwrap();
        assert_eq!(line.lines().count(), 1);
        assert!(
            line.ends_with("waits for the ramdisk (deleted)\n"),
            "{line}"
        );
        let json = change(Kind::Host, "ADDED", &host("a"), Output::Json).unwrap();
        assert_eq!(json.lines().count(), 1);
    }
}
