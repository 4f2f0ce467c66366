//! `ferrite wait`: until hosts are as asked for, or the time is over. Scripts stand on its exit
//! code: 0 all of them are, 1 some were not in time, and each is named with what it waits for.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::{Duration, Instant};

use clap::Args;
use futures_util::StreamExt;
use futures_util::stream;
use reqwest::Method;
use serde_json::Value;

use super::apply::is_absent;
use super::client::{Client, Silent};
use super::get::{self, Selection, text};
use super::kind::{self, Kind};
use super::print;

/// Between looks.
const LOOK: Duration = Duration::from_secs(1);
/// Things that are looked at one by one; more are looked for in the list.
const ONE_BY_ONE: usize = 20;

/// Wait until things are as asked for.
///
/// Exits with 1 when they are not in time, naming what each waits for.
#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// `host/NAME…`, or a kind with --selector.
    #[arg(required = true, value_name = "KIND/NAME", add = super::complete::things())]
    pub(crate) what: Vec<String>,
    /// For what: `state=available`, `condition=rescued`, `delete`, or `FIELD=VALUE`, a field of the
    /// resource like `status.power=on`.
    #[arg(long = "for", value_name = "WHAT")]
    pub(crate) until: Until,
    /// How long: `90s`, `10m`, `2h`.
    #[arg(long, default_value = "10m", value_parser = duration)]
    pub(crate) timeout: Duration,
    /// Which of them.
    #[command(flatten)]
    pub(crate) selection: Selection,
}

/// What is waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Until {
    /// It is gone.
    Deleted,
    /// A field has a value.
    Field { pointer: String, value: String },
    /// A condition has a value.
    Condition { name: String, value: String },
}

impl FromStr for Until {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (what, value) = text.split_once('=').unwrap_or((text, ""));
        match (what, value) {
            ("delete", "") => Ok(Self::Deleted),
            ("state", state) if !state.is_empty() => Ok(Self::Field {
                pointer: "/status/state".to_owned(),
                value: state.to_owned(),
            }),
            ("condition", condition) if !condition.is_empty() => {
                let (name, value) = condition.split_once('=').unwrap_or((condition, "true"));
                Ok(Self::Condition {
                    name: name.to_owned(),
                    value: value.to_owned(),
                })
            }
            (field, value) if field.contains('.') && !value.is_empty() => Ok(Self::Field {
                pointer: format!("/{}", field.trim_start_matches('.').replace('.', "/")),
                value: value.to_owned(),
            }),
            _ => Err("write state=STATE, condition=NAME, delete, or FIELD=VALUE".to_owned()),
        }
    }
}

impl Until {
    /// None when it holds, else what is the case instead.
    fn missing(&self, now: Option<&Value>) -> Option<String> {
        match (self, now) {
            (Self::Deleted, None) => None,
            (Self::Deleted, Some(item)) => Some(waits(item)),
            (_, None) => Some("there is no such thing".to_owned()),
            (Self::Field { pointer, value }, Some(item)) => {
                let is = text(item, pointer);
                // States have blanks: `externally provisioned` is written with a hyphen, too.
                let same = is.eq_ignore_ascii_case(value) || is.replace(' ', "-") == *value;
                (!same).then(|| waits(item))
            }
            (Self::Condition { name, value }, Some(item)) => {
                let is = condition(item, name);
                (!is.eq_ignore_ascii_case(value)).then(|| waits(item))
            }
        }
    }
}

/// A condition: one of `status.conditions`, else a field of `status` or `spec` with that name that
/// is set.
fn condition(item: &Value, name: &str) -> String {
    let listed = item.pointer("/status/conditions").and_then(Value::as_array);
    let named = |one: &&Value| text(one, "/type").eq_ignore_ascii_case(name);
    if let Some(found) = listed.into_iter().flatten().find(named) {
        return text(found, "/status");
    }
    let field = name.replace('-', "_");
    for part in ["status", "spec"] {
        match item.pointer(&format!("/{part}/{field}")) {
            None | Some(Value::Null) => {}
            Some(Value::Bool(set)) => return set.to_string(),
            Some(_) => return "true".to_owned(),
        }
    }
    "false".to_owned()
}

/// Where it is, and what it waits for there.
fn waits(item: &Value) -> String {
    let state = match text(item, "/status/state") {
        none if none.is_empty() => text(item, "/status/phase"),
        state => state,
    };
    let problem = item.pointer("/status/error/problem");
    let problem = problem.or_else(|| item.pointer("/status/problem"));
    let why = match problem {
        Some(problem) => format!("{} [{}]", text(problem, "/message"), text(problem, "/code")),
        None => match text(item, "/status/waiting_for") {
            empty if empty.is_empty() => match text(item, "/status/step/name") {
                empty if empty.is_empty() => String::new(),
                step => format!("step {step}"),
            },
            waits => format!("waits for {waits}"),
        },
    };
    match (state.is_empty(), why.is_empty()) {
        (true, _) => why,
        (false, true) => state,
        (false, false) => format!("{state}, {why}"),
    }
}

/// Does what the arguments say.
pub(crate) async fn run(client: &Client, wait: Wait) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    let mut open = chosen(client, &wait).await?;
    loop {
        let now = look(client, &open).await;
        let now = match now {
            // A conductor may be started again while one waits.
            Err(error) if error.is::<Silent>() && begun.elapsed() < wait.timeout => {
                tokio::time::sleep(LOOK).await;
                continue;
            }
            other => other?,
        };
        let mut missing = BTreeMap::new();
        for thing in open {
            match wait.until.missing(now.get(&thing)) {
                None => print(&format!("{} condition met\n", title(&thing)))?,
                Some(why) => {
                    missing.insert(thing, why);
                }
            }
        }
        if missing.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }
        if begun.elapsed() >= wait.timeout {
            let _ = std::io::stderr()
                .lock()
                .write_all(in_vain(&missing).as_bytes());
            return Ok(ExitCode::FAILURE);
        }
        open = missing.into_keys().collect();
        tokio::time::sleep(LOOK.min(wait.timeout.saturating_sub(begun.elapsed()))).await;
    }
}

type Thing = (Kind, String);

fn title((kind, name): &Thing) -> String {
    format!("{}/{name}", kind.singular())
}

fn in_vain(missing: &BTreeMap<Thing, String>) -> String {
    let lines = missing.iter().map(|(thing, why)| {
        let title = title(thing);
        format!("error: {title} was not in time: {why} [timeout]\n")
    });
    lines.collect()
}

async fn chosen(client: &Client, wait: &Wait) -> anyhow::Result<Vec<Thing>> {
    let mut chosen = Vec::new();
    for (kind, name) in kind::targets(&wait.what)? {
        let Some(name) = name else {
            let listed = get::list(client, kind, &wait.selection, client.project()).await?;
            let names = listed.items.iter().map(|item| text(item, "/metadata/name"));
            chosen.extend(names.map(|name| (kind, name)));
            continue;
        };
        anyhow::ensure!(
            wait.selection.is_all(),
            "give names or a selector, not both"
        );
        chosen.push((kind, name));
    }
    // kubectl: what is not there cannot come true, but is deleted already.
    anyhow::ensure!(
        !chosen.is_empty() || wait.until == Until::Deleted,
        "nothing is selected: there would be nothing to wait for"
    );
    chosen.sort();
    chosen.dedup();
    Ok(chosen)
}

async fn look(client: &Client, things: &[Thing]) -> anyhow::Result<BTreeMap<Thing, Value>> {
    let mut found = BTreeMap::new();
    if things.len() > ONE_BY_ONE {
        for kind in Kind::ALL {
            if things.iter().any(|(of, _)| *of == kind) {
                let all = get::list(client, kind, &Selection::default(), None).await?;
                let named = |item: Value| ((kind, text(&item, "/metadata/name")), item);
                found.extend(all.items.into_iter().map(named));
            }
        }
        return Ok(found);
    }
    let calls = stream::iter(things).map(|thing| async move {
        let path = thing.0.item(&thing.1);
        (thing, client.exchange(Method::GET, &path, None).await)
    });
    let mut calls = calls.buffered(ONE_BY_ONE);
    while let Some((thing, answer)) = calls.next().await {
        match answer {
            Ok((_, item)) => {
                found.insert(thing.clone(), item);
            }
            Err(error) if is_absent(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// `90s`, `10m`, `1h30m`, or seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse() {
        return Ok(Duration::from_secs(seconds));
    }
    let span: jiff::SignedDuration = text
        .parse()
        .map_err(|error: jiff::Error| error.to_string())?;
    Duration::try_from(span).map_err(|_| "a time to wait is not negative".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_waited_for_is_read_as_kubectl_reads_it() {
        let until = |text: &str| text.parse::<Until>();
        assert_eq!(until("delete").unwrap(), Until::Deleted);
        let field = Until::Field {
            pointer: "/status/power".into(),
            value: "on".into(),
        };
        assert_eq!(until("status.power=on").unwrap(), field);
        for bad in ["", "state", "state=", "condition", "power=on", "delete=1"] {
            assert!(until(bad).is_err(), "{bad}");
        }
        assert_eq!(duration("10m").unwrap().as_secs(), 600);
        assert_eq!(duration("90").unwrap().as_secs(), 90);
        assert!(duration("soon").is_err() && duration("-5s").is_err());
    }

    #[test]
    fn what_is_missing_is_what_the_host_waits_for() {
        let host = json!({
            "spec": {"paused": true},
            "status": {"state": "inspecting", "waiting_for": "the ramdisk", "rescue": null,
                       "conditions": [{"type": "Ready", "status": "True"}]}
        });
        let missing = |until: &str| until.parse::<Until>().unwrap().missing(Some(&host));
        let waits = "inspecting, waits for the ramdisk";
        assert_eq!(missing("state=available").as_deref(), Some(waits));
        assert_eq!(missing("state=inspecting"), None);
        assert_eq!(missing("condition=ready"), None);
        assert_eq!(missing("condition=paused"), None);
        assert_eq!(missing("condition=rescue").as_deref(), Some(waits));
        assert_eq!(missing("condition=rescue=false"), None);
        assert_eq!(missing("delete").as_deref(), Some(waits));
        assert_eq!(Until::Deleted.missing(None), None);
        let thing = (Kind::Host, "a".to_owned());
        assert_eq!(
            in_vain(&BTreeMap::from([(thing, waits.to_owned())])),
            "error: host/a was not in time: inspecting, waits for the ramdisk [timeout]\n"
        );
    }

    #[test]
    fn a_host_that_needs_a_person_says_why() {
        let host = json!({"status": {"state": "registering", "error": {"problem":
            {"code": "bmc-unreachable", "message": "no answer from b"}}}});
        assert_eq!(
            waits(&host),
            "registering, no answer from b [bmc-unreachable]"
        );
    }
}
