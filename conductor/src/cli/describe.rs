//! `ferrite describe`: all that is known of a thing on one screen, for a person.

use std::fmt::Write;
use std::process::ExitCode;

use clap::Args;
use ferrite_proto::api::{EventList, Explanation, Timeline};
use ferrite_proto::host::Host;
use ferrite_proto::inventory::Inventory;
use reqwest::Method;
use serde_json::Value;

use super::apply::{is_absent, shown};
use super::client::Client;
use super::get::text;
use super::kind::{self, Kind};
use super::{print, show, timeline, yaml};

/// Events that are shown.
const EVENTS: u32 = 20;

/// Show all that is known of something.
#[derive(Debug, Args)]
pub(crate) struct Describe {
    /// `host/NAME` or `host NAME…`.
    #[arg(required = true, value_name = "KIND/NAME", add = super::complete::things())]
    pub(crate) what: Vec<String>,
}

/// Does what the arguments say.
pub(crate) async fn run(client: &Client, describe: Describe) -> anyhow::Result<ExitCode> {
    for (at, (kind, name)) in kind::named(&describe.what)?.into_iter().enumerate() {
        let (_, item) = client
            .exchange(Method::GET, &kind.item(&name), None)
            .await?;
        let words = match kind {
            Kind::Host => Some(said_of(client, &name).await?),
            _ => None,
        };
        let gap = if at == 0 { "" } else { "\n" };
        print(&format!("{gap}{}", described(kind, &item, words.as_ref())?))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What is said of a host beside itself.
#[derive(Debug)]
struct Words {
    explanation: Explanation,
    inventory: Option<Inventory>,
    timeline: Timeline,
    events: EventList,
}

async fn said_of(client: &Client, name: &str) -> anyhow::Result<Words> {
    let path = Kind::Host.item(name);
    let inventory = match client.get(&format!("{path}/inventory")).await {
        Ok(inventory) => Some(inventory),
        // It was never inspected.
        Err(error) if is_absent(&error) => None,
        Err(error) => return Err(error),
    };
    Ok(Words {
        inventory,
        timeline: client.get(&format!("{path}/timeline?limit=1")).await?,
        explanation: client.get(&format!("{path}/explain")).await?,
        events: client.get(&format!("{path}/events?limit={EVENTS}")).await?,
    })
}

fn described(kind: Kind, item: &Value, words: Option<&Words>) -> anyhow::Result<String> {
    let mut page = String::new();
    let metadata = item.get("metadata").cloned().unwrap_or_default();
    for (name, path) in [
        ("Name", "/name"),
        ("Project", "/project"),
        ("UID", "/uid"),
        ("Created", "/creationTimestamp"),
        ("Version", "/resourceVersion"),
    ] {
        line(&mut page, name, &text(&metadata, path));
    }
    for (key, value) in metadata
        .get("labels")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        line(
            &mut page,
            "Label",
            &format!("{key}={}", value.as_str().unwrap_or_default()),
        );
    }
    if let Some(Words { explanation, .. }) = words {
        section(&mut page, "Now", &show::explanation(explanation));
    }
    section(&mut page, "Problem", &problem(item));
    section(&mut page, "Conditions", &conditions(item));
    section(
        &mut page,
        "Spec",
        &yaml(shown(item).get("spec").unwrap_or(&Value::Null))?,
    );
    let inventory = words.and_then(|words| words.inventory.as_ref());
    if let (Kind::Host, Ok(host)) = (kind, serde_json::from_value::<Host>(item.clone())) {
        section(&mut page, "Status", &show::host(&host, inventory));
    } else {
        let status = item.get("status").filter(|status| !status.is_null());
        let status = status.map(yaml).transpose()?.unwrap_or_default();
        section(&mut page, "Status", &status);
    }
    if let Some(Words {
        events, timeline, ..
    }) = words
    {
        section(
            &mut page,
            "Last run",
            &timeline::newest(timeline, jiff::Timestamp::now()),
        );
        section(&mut page, "Events", &show::events(events));
    }
    Ok(page)
}

fn line(page: &mut String, name: &str, value: &str) {
    if !value.is_empty() {
        let name = format!("{name}:");
        // Writing to a string cannot fail.
        let _ = writeln!(page, "{name:<14}{value}");
    }
}

fn section(page: &mut String, name: &str, text: &str) {
    if text.trim().is_empty() {
        return;
    }
    let _ = writeln!(page, "{name}:");
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let _ = writeln!(page, "  {line}");
    }
}

fn problem(item: &Value) -> String {
    // A host has an error with a problem; an image the problem itself.
    let status = item.get("status").filter(|status| {
        let problem = status.get("problem");
        let image = status.get("phase").is_some();
        image && problem.is_some_and(|problem| !problem.is_null())
    });
    let error = item.pointer("/status/error");
    let Some(error) = error.filter(|error| !error.is_null()).or(status) else {
        return String::new();
    };
    let since = [text(error, "/at"), text(error, "/since")].concat();
    let mut said = format!(
        "{} [{}]\n{}\nsince {}, {} attempts",
        text(error, "/problem/message"),
        text(error, "/problem/code"),
        text(error, "/problem/advice"),
        since,
        text(error, "/attempts"),
    );
    let again = text(error, "/retry_at");
    if again.is_empty() {
        said.push_str("; it is not tried again before a person did something");
    } else {
        let _ = write!(said, "; tried again at {again}");
    }
    said
}

fn conditions(item: &Value) -> String {
    let listed = item.pointer("/status/conditions").and_then(Value::as_array);
    let lines = listed.into_iter().flatten().map(|one| {
        let (name, is) = (text(one, "/type"), text(one, "/status"));
        let why = [text(one, "/reason"), text(one, "/message")].join(" ");
        format!("{name:<20} {is:<6} {}\n", why.trim())
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_host_is_told_with_its_problem_and_what_can_be_done() {
        let item = json!({
            "apiVersion": "ferrite/v1", "kind": "Host",
            "metadata": {"name": "a", "project": "default", "labels": {"rack": "r1"},
                         "resourceVersion": "7"},
            "spec": {"bmc": {"address": "redfish://b", "username": "u"}},
            "status": {"state": "registering", "since": "1970-01-01T00:00:00Z",
                "error": {"problem": {"code": "bmc-unreachable", "message": "no answer from b",
                    "advice": "look at its cable"}, "at": "1970-01-01T00:00:01Z", "attempts": 3}}
        });
        let words = Words {
            explanation: Explanation {
                doing: "It waits for a person.".into(),
                next: "Nothing.".into(),
                advice: Some("ferrite host retry a".into()),
            },
            inventory: None,
            timeline: serde_json::from_value(json!({"runs": []})).unwrap(),
            events: EventList { events: Vec::new() },
        };
        let page = described(Kind::Host, &item, Some(&words)).unwrap();
        let start = "\
Name:         a
Project:      default
Version:      7
Label:        rack=r1
Now:
  It waits for a person.
  Nothing.
  ferrite host retry a
Problem:
  no answer from b [bmc-unreachable]
  look at its cable
  since 1970-01-01T00:00:01Z, 3 attempts; it is not tried again before a person did something
Spec:
  bmc:
    address: redfish://b
    username: u
Status:
";
        assert!(page.starts_with(start), "{page}");
    }
}
