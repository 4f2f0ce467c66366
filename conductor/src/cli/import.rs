//! `ferrite host import`: many hosts at once, from CSV, from YAML, or from Metal3's
//! `BareMetalHost`s with their `Secret`s.
//!
//! Everything is checked before anything is sent: each bad line is told with its number, and then
//! nothing is stored. What is good is applied as `ferrite apply` does, so a second import of the
//! same file changes nothing.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use ferrite_proto::host::HostManifest;
use serde_json::{Map, Value, json};

use super::apply::{self, Outcome};
use super::args::Output;
use super::client::Client;
use super::kind::Kind;
use super::manifest::{self, Manifest, Unusable};
use super::{files, metal3, nearest, print, print_value};
use crate::lifecycle::intent;

/// Bytes of a file with hosts.
const FILE_LIMIT: u64 = 64 << 20;
/// Bytes of a file with a password.
const PASSWORD_LIMIT: u64 = 64 << 10;

/// What a row of CSV, or an entry of a YAML list, may hold; and `label.KEY` for each label.
const COLUMNS: [&str; 12] = [
    "name",
    "bmc_address",
    "username",
    "password",
    "password_file",
    "insecure_tls",
    "boot_mac",
    "boot_via",
    "boot_mode",
    "automated_cleaning",
    "project",
    "labels",
];

/// Take in many hosts at once.
///
/// CSV has a header with some of name, `bmc_address`, username, password or `password_file`,
/// `insecure_tls`, `boot_mac`, `boot_via`, `boot_mode`, `automated_cleaning`, project, labels
/// (`rack=r1;tier=a`) or label.KEY. A YAML list has the same fields. YAML documents are hosts as
/// `apply` takes them, or Metal3's `BareMetalHost` and `Secret`.
#[derive(Debug, Args)]
pub(crate) struct Import {
    /// `.csv`, `.yaml`, `.yml` or `.json`.
    #[arg(required = true)]
    pub(crate) file: Vec<PathBuf>,
    /// Let the conductor check everything, and store nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// Does what the arguments say.
pub(crate) async fn run(
    client: &Client,
    asked: Import,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let manifests = read(&asked.file)?;
    let all = manifests.len();
    let mut counts = BTreeMap::new();
    // The conductor may refuse what looks good here; then, too, nothing shall be stored.
    let mut code = ExitCode::SUCCESS;
    if asked.dry_run || apply::can_dry_run(client).await {
        code = apply::each(client, manifests.clone(), true, |_| Ok(())).await?;
    }
    if code != ExitCode::SUCCESS {
        anyhow::bail!("nothing was stored: the conductor refuses some of the {all} hosts");
    }
    if !asked.dry_run {
        code = apply::each(client, manifests, false, |applied| {
            *counts.entry(applied.outcome.as_str()).or_insert(0_usize) += 1;
            let changed = applied.outcome != Outcome::Unchanged;
            if output == Output::Name || (output == Output::Wide && changed) {
                print(&format!("{}\n", applied.title))?;
            }
            Ok(())
        })
        .await?;
    }
    let count = |outcome: Outcome| counts.get(outcome.as_str()).copied().unwrap_or(0);
    let (new, changed) = (count(Outcome::Created), count(Outcome::Configured));
    let same = count(Outcome::Unchanged);
    match output {
        Output::Json | Output::Yaml => {
            let told = json!({"hosts": all, "created": new, "configured": changed,
                              "unchanged": same, "dry_run": asked.dry_run});
            print_value(&told, output)?;
        }
        Output::Name => {}
        Output::Table | Output::Wide if asked.dry_run => {
            print(&format!("{all} hosts can be imported (dry run)\n"))?;
        }
        Output::Table | Output::Wide => print(&format!(
            "{all} hosts: {new} created, {changed} configured, {same} unchanged\n"
        ))?,
    }
    Ok(code)
}

fn read(paths: &[PathBuf]) -> anyhow::Result<Vec<Manifest>> {
    let mut found = Vec::new();
    let mut wrong = Vec::new();
    for path in paths {
        let text = files::read(path, "hosts", FILE_LIMIT)?;
        let csv = path
            .extension()
            .is_some_and(|ending| ending.eq_ignore_ascii_case("csv"));
        let rows = if csv {
            csv_rows(&text, path)
        } else {
            yaml_rows(&text, path)
        };
        for row in rows {
            match row {
                Ok(manifest) => found.push(manifest),
                Err(problem) => wrong.push(problem),
            }
        }
    }
    let problems = found.iter().filter_map(|one| unusable(one).err());
    wrong.extend(problems);
    wrong.extend(twins(&found));
    if !wrong.is_empty() {
        return Err(Unusable(wrong).into());
    }
    anyhow::ensure!(!found.is_empty(), "there is no host in what was given");
    Ok(found)
}

/// What the conductor would refuse, as far as it can be known here.
fn unusable(one: &Manifest) -> Result<(), String> {
    let told = |problem: String| format!("{}: {}: {problem}", one.origin, one.title());
    let read: Result<HostManifest, _> = serde_path_to_error::deserialize(&one.body);
    let host = read.map_err(|error| told(manifest::clearer(&error.to_string())))?;
    if host.secrets.bmc_password.is_none() {
        return Err(told("there is no password for its BMC".to_owned()));
    }
    intent::check_metadata(&host.metadata).map_err(|problem| told(problem.message))?;
    intent::check_spec(&host.spec).map_err(|problem| told(problem.message))?;
    crate::bmc::check(&host.spec.bmc.address).map_err(|error| told(error.to_string()))
}

/// Two hosts with one name, one BMC or one NIC are a mistake of copying.
fn twins(found: &[Manifest]) -> Vec<String> {
    let mut wrong = Vec::new();
    for field in ["/metadata/name", "/spec/bmc/address", "/spec/boot_mac"] {
        let mut seen = BTreeMap::new();
        for one in found {
            let value = super::get::text(&one.body, field).to_lowercase();
            if value.is_empty() {
                continue;
            }
            if let Some(first) = seen.insert(value.clone(), &one.origin) {
                let what = field.rsplit('/').next().unwrap_or_default();
                wrong.push(format!(
                    "{}: {what} {value} is that of {first}, too",
                    one.origin
                ));
            }
        }
    }
    wrong
}

type Row = Result<Manifest, String>;

fn csv_rows(text: &str, file: &Path) -> Vec<Row> {
    let mut reader = csv::ReaderBuilder::new()
        .trim(csv::Trim::All)
        .comment(Some(b'#'))
        .from_reader(text.trim_start_matches('\u{feff}').as_bytes());
    let header = match reader.headers().map_err(|error| error.to_string()) {
        Ok(header) => header.clone(),
        Err(problem) => return vec![Err(format!("{}:1: {problem}", file.display()))],
    };
    let header: Vec<String> = header.iter().map(str::to_lowercase).collect();
    let wrong = header.iter().filter_map(|column| known(column).err());
    let wrong: Vec<_> = wrong
        .map(|problem| Err(format!("{}:1: {problem}", file.display())))
        .collect();
    if !wrong.is_empty() {
        return wrong;
    }
    let rows = reader.records().map(|record| {
        let record = record.map_err(|error| format!("{}: {error}", file.display()))?;
        let line = record.position().map_or(0, csv::Position::line);
        let origin = format!("{}:{line}", file.display());
        let cells = header
            .iter()
            .zip(&record)
            .filter(|(_, cell)| !cell.is_empty());
        let row = cells.map(|(column, cell)| (column.clone(), json!(cell)));
        host(&row.collect(), origin, file)
    });
    rows.collect()
}

fn known(column: &str) -> Result<(), String> {
    if COLUMNS.contains(&column) || column.starts_with("label.") {
        return Ok(());
    }
    let near = nearest::hint(column, COLUMNS);
    Err(format!("unknown column `{column}`{near}"))
}

fn yaml_rows(text: &str, file: &Path) -> Vec<Row> {
    // A document with a list of rows, or documents with resources.
    match manifest::located::<Vec<serde_saphyr::Spanned<Map<String, Value>>>>(text, file) {
        Ok(rows) => rows
            .into_iter()
            .map(|row| {
                let line = row.referenced.line();
                let origin = format!("{}:{line}", file.display());
                let wrong = row.value.keys().find_map(|column| known(column).err());
                match wrong {
                    Some(problem) => Err(format!("{origin}: {problem}")),
                    None => host(&row.value, origin, file),
                }
            })
            .collect(),
        Err(problem) if text.trim_start().starts_with("- ") => vec![Err(problem)],
        Err(_) => resources(text, file),
    }
}

fn resources(text: &str, file: &Path) -> Vec<Row> {
    let taken = metal3::hosts(text, file);
    if let Some((rows, notes)) = taken {
        for note in notes {
            let _ = writeln!(std::io::stderr().lock(), "note: {note}");
        }
        return rows;
    }
    let found = manifest::read_text(text, file);
    found
        .into_iter()
        .map(|one| match one {
            Ok(one) if one.kind == Kind::Host => Ok(one),
            Ok(one) => Err(format!("{}: {} is no host", one.origin, one.title())),
            Err(problem) => Err(problem),
        })
        .collect()
}

/// From a row to what `apply` takes.
fn host(row: &Map<String, Value>, origin: String, file: &Path) -> Row {
    let told = |problem: String| format!("{origin}: {problem}");
    let text = |column: &str| row.get(column).map(plain);
    let needed =
        |column: &str| text(column).ok_or_else(|| told(format!("`{column}` is missing or empty")));
    let name = needed("name")?;
    let mut spec = json!({"bmc": {
        "address": needed("bmc_address")?,
        "username": needed("username")?,
    }});
    if let Some(value) = text("insecure_tls") {
        let set: bool = value
            .parse()
            .map_err(|_| told("insecure_tls: true or false".to_owned()))?;
        spec["bmc"]["insecure_tls"] = json!(set);
    }
    for column in ["boot_mac", "boot_via", "boot_mode", "automated_cleaning"] {
        if let Some(value) = text(column) {
            spec[column] = json!(value);
        }
    }
    let password = password(text("password"), text("password_file"), file).map_err(told)?;
    let mut metadata = json!({"name": name, "labels": labels(row).map_err(told)?});
    if let Some(project) = text("project") {
        metadata["project"] = json!(project);
    }
    Ok(Manifest::host(
        origin,
        name,
        json!({
            "apiVersion": "ferrite/v1", "kind": "Host",
            "metadata": metadata, "spec": spec, "secrets": {"bmc_password": password},
        }),
    ))
}

/// A scalar as text: `12` is a fine name of a host, and a fine password.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn password(given: Option<String>, from: Option<String>, file: &Path) -> Result<String, String> {
    match (given, from) {
        (Some(password), None) => Ok(password),
        (None, Some(path)) => {
            let folder = file.parent().unwrap_or_else(|| Path::new(""));
            let path = folder.join(path);
            let text = files::read(&path, "the password", PASSWORD_LIMIT);
            let text = text.map_err(|error| format!("{error:#}"))?;
            let line = text.lines().next().unwrap_or_default().to_owned();
            if line.is_empty() {
                return Err(format!("the first line of {} is empty", path.display()));
            }
            Ok(line)
        }
        (None, None) => Err("`password` or `password_file` is missing or empty".to_owned()),
        (Some(_), Some(_)) => Err("give `password` or `password_file`, not both".to_owned()),
    }
}

fn labels(row: &Map<String, Value>) -> Result<BTreeMap<String, String>, String> {
    let mut labels = BTreeMap::new();
    match row.get("labels") {
        None => {}
        Some(Value::Object(given)) => {
            labels.extend(given.iter().map(|(key, value)| (key.clone(), plain(value))));
        }
        Some(given) => {
            let given = plain(given);
            for pair in given
                .split([';', ','])
                .map(str::trim)
                .filter(|pair| !pair.is_empty())
            {
                let (key, value) = pair
                    .split_once('=')
                    .ok_or_else(|| format!("labels: {pair:?} is not KEY=VALUE"))?;
                labels.insert(key.to_owned(), value.to_owned());
            }
        }
    }
    for (column, value) in row {
        if let Some(key) = column.strip_prefix("label.") {
            labels.insert(key.to_owned(), plain(value));
        }
    }
    Ok(labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, text: &str) -> Result<Vec<Manifest>, String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(name);
        std::fs::write(&file, text).unwrap();
        std::fs::write(dir.path().join("pw"), "hunter2\n").unwrap();
        let folder = format!("{}/", dir.path().display());
        read(&[file]).map_err(|error| error.to_string().replace(&folder, ""))
    }

    #[test]
    fn rows_of_csv_are_hosts() {
        let found = of(
            "h.csv",
            "Name,bmc_address,username,password,password_file,boot_mac,labels,label.tier\n\
             # a comment\n\
             a,redfish://10.0.0.1,root,secret,,52:54:00:00:00:01,rack=r1;row=2,x\n\
             b,redfish://10.0.0.2,root,,pw,52:54:00:00:00:02,,\n",
        )
        .unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(
            found[0].body["metadata"],
            json!({"name": "a", "labels": {"rack": "r1", "row": "2", "tier": "x"}})
        );
        assert_eq!(found[0].body["spec"]["boot_mac"], "52:54:00:00:00:01");
        assert_eq!(found[1].body["secrets"]["bmc_password"], "hunter2");
    }

    #[test]
    fn every_bad_line_is_told_with_its_number() {
        let error = of(
            "h.csv",
            "name,bmc_address,username,password,boot_mac\n\
             a,redfish://10.0.0.1,root,p,52:54:00:00:00:01\n\
             b,redfish://10.0.0.2,root,,\n\
             C,redfish://10.0.0.3,root,p,\n\
             d,gopher://10.0.0.4,root,p,\n\
             e,redfish://10.0.0.5,root,p,52:54\n\
             a,redfish://10.0.0.6,root,p,52:54:00:00:00:01\n",
        )
        .unwrap_err();
        for told in [
            "h.csv:3: `password` or `password_file` is missing",
            "h.csv:4: host/C: \"C\" cannot be a name",
            "h.csv:5: host/d: ",
            "h.csv:6: host/e: spec.boot_mac: ",
            "h.csv:7: name a is that of h.csv:2, too",
            "h.csv:7: boot_mac 52:54:00:00:00:01 is that of h.csv:2, too",
        ] {
            assert!(error.contains(told), "{told}\n{error}");
        }
        let error = of("h.csv", "name,bmc_adress\n").unwrap_err();
        assert!(
            error.contains("`bmc_adress`, did you mean `bmc_address`?"),
            "{error}"
        );
        let error = of("h.csv", "name,username\na,b,c\n").unwrap_err();
        assert!(error.contains("line: 2"), "{error}");
    }

    #[test]
    fn a_yaml_list_has_the_same_fields() {
        let row = "- name: a\n  bmc_address: redfish://10.0.0.1\n  username: root\n  \
                   boot_mac: 52:54:00:00:00:01\n";
        let found = of(
            "h.yaml",
            &format!("{row}  password: 1234\n  labels: {{r: 1}}\n"),
        )
        .unwrap();
        assert_eq!(found[0].body["secrets"]["bmc_password"], "1234");
        assert_eq!(found[0].body["metadata"]["labels"]["r"], "1");
        let error = of("h.yaml", &format!("{row}  password: p\n- nam: b\n")).unwrap_err();
        assert!(error.contains("h.yaml:6: unknown column `nam`"), "{error}");
    }

    #[test]
    fn hosts_as_apply_takes_them_are_taken_too() {
        let host = "apiVersion: ferrite/v1\nkind: Host\nmetadata: {name: a}\nspec:\n  bmc: \
                    {address: redfish://b, username: u}\n  boot_via: virtual-media\n\
                    secrets: {bmc_password: p}\n";
        assert_eq!(of("h.yaml", host).unwrap().len(), 1);
        let image = "apiVersion: ferrite/v1\nkind: Image\nmetadata: {name: i}\nspec: {url: u}\n";
        let error = of("h.yaml", &format!("{host}---\n{image}")).unwrap_err();
        assert!(error.contains("image/i is no host"), "{error}");
    }
}
