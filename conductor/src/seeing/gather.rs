//! What goes into a support bundle: gathered here, packed in [`super::bundle`].

use std::io;
use std::path::PathBuf;

use ferrite_proto::problem::Problem;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::bundle::Bundle;
use crate::access::caller::Visible;
use crate::api::App;
use crate::clock;

/// Lines of the hosts' logs.
const EVENTS: u32 = 5000;
/// Runs.
const RUNS: u32 = 1000;
/// How far back runs are told.
const RUNS_OF: SignedDuration = SignedDuration::from_hours(7 * 24);
/// Lines of the agent of a host that has an error.
const AGENT_LINES: usize = 200;
/// Hosts with an error whose agents' lines are told.
const AGENTS: usize = 100;

/// What only the start of the conductor knows.
#[derive(Debug, Clone, Default)]
pub(crate) struct Place {
    /// The configuration as it is used, written down.
    pub(crate) config: Value,
    /// The state folder.
    pub(crate) state_dir: PathBuf,
}

/// Everything that is told.
#[derive(Debug)]
pub(crate) struct Facts {
    at: Timestamp,
    files: Vec<(String, Told)>,
}

#[derive(Debug)]
enum Told {
    Text(Vec<u8>),
    Json(Value),
    Lines(Vec<Value>),
}

/// Asks everybody.
pub(crate) async fn facts(app: &App) -> Result<Facts, Problem> {
    let now = clock::now();
    let seeing = app.hosts.seeing();
    let place = &seeing.place().cloned().unwrap_or_default();
    let hosts = app.hosts.list(&Visible::all());
    let figures = super::figures(&app.hosts, &app.world.limits, now);
    let end = app.hosts.log_end().await?;
    let events = app
        .hosts
        .log(end.saturating_sub(EVENTS.into()), EVENTS)
        .await?;
    let events = events
        .into_iter()
        .map(|line| json!({"id": line.id, "host": line.host, "event": line.event}));
    let since = now.checked_sub(RUNS_OF).unwrap_or(Timestamp::MIN);
    let runs = app.hosts.runs_since(since, RUNS).await?;
    let mut files = vec![
        ("version.json".to_owned(), Told::Json(version(now))),
        ("config.json".to_owned(), Told::Json(place.config.clone())),
        ("metrics.txt".to_owned(), Told::Text(figures.into_bytes())),
        ("conductor.log".to_owned(), Told::Text(seeing.own_lines())),
        ("events.jsonl".to_owned(), Told::Lines(events.collect())),
        ("runs.jsonl".to_owned(), Told::Lines(values(&runs))),
        ("hosts.jsonl".to_owned(), Told::Lines(values(&hosts))),
        (
            "store.json".to_owned(),
            Told::Json(store(app, place, hosts.len())),
        ),
        (
            "certificates.json".to_owned(),
            Told::Json(certificates(place)),
        ),
    ];
    if let Some(replica) = app.hosts.ownership().facts() {
        files.push(("replica.json".to_owned(), Told::Json(json!(replica))));
    }
    let in_error = hosts.iter().filter(|host| host.status.error.is_some());
    for host in in_error.take(AGENTS) {
        let lines = seeing.agent_lines.tail(&host.name, AGENT_LINES);
        // tar has room for a hundred characters in all.
        let name = format!("agents/{:.50}.jsonl", host.name);
        files.push((name, Told::Lines(values(&lines))));
    }
    Ok(Facts { at: now, files })
}

/// Packs it; takes a while.
pub(crate) fn pack(facts: Facts) -> io::Result<(String, Vec<u8>)> {
    let mut bundle = Bundle::new(facts.at);
    for (name, told) in facts.files {
        match told {
            Told::Text(text) => bundle.text(&name, &text)?,
            Told::Json(value) => bundle.json(&name, value)?,
            Told::Lines(values) => bundle.lines(&name, values)?,
        }
    }
    Ok((bundle.file_name(), bundle.finish()?))
}

fn values<T: serde::Serialize>(of: &[T]) -> Vec<Value> {
    of.iter().map(|one| json!(one)).collect()
}

fn version(now: Timestamp) -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "at": now,
        "kernel": read("/proc/version").trim(),
        "arch": std::env::consts::ARCH,
    })
}

/// Names and sizes, never what is inside.
fn store(app: &App, place: &Place, hosts: usize) -> Value {
    let files = std::fs::read_dir(&place.state_dir).into_iter().flatten();
    let files = files.flatten().filter_map(|file| {
        let facts = file.metadata().ok()?;
        let name = file.file_name().to_string_lossy().into_owned();
        Some(json!({"name": name, "bytes": facts.len()}))
    });
    json!({
        "hosts": hosts,
        "revision": app.hosts.revision(),
        "files": files.collect::<Vec<_>>(),
    })
}

/// From when until when each certificate holds.
fn certificates(place: &Place) -> Value {
    let files = std::fs::read_dir(place.state_dir.join("tls"))
        .into_iter()
        .flatten();
    let all = files.flatten().filter_map(|file| {
        let name = file.file_name().to_string_lossy().into_owned();
        let text = std::fs::read(file.path()).ok()?;
        let pems = x509_parser::pem::Pem::iter_from_buffer(&text).flatten();
        let dates = pems.filter_map(|pem| {
            let certificate = pem.parse_x509().ok()?;
            let valid = certificate.validity();
            Some(json!({
                "subject": certificate.subject().to_string(),
                "from": valid.not_before.to_string(),
                "until": valid.not_after.to_string(),
            }))
        });
        let dates: Vec<_> = dates.collect();
        (!dates.is_empty()).then(|| json!({"file": name, "certificates": dates}))
    });
    all.collect()
}
