//! `ferrite events` and `ferrite logs`: what happened, and what an agent says while it works.

use std::process::ExitCode;

use clap::Args;
use reqwest::Method;
use serde_json::Value;

use super::args::Output;
use super::client::Client;
use super::get::text;
use super::kind::{self, Kind, escaped};
use super::{print, print_value, sse};

/// Show what happened, on one host or on all.
#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Only of this host.
    #[arg(long, add = super::complete::hosts())]
    pub(crate) host: Option<String>,
    /// Only of this kind: state, step, error, request, …
    #[arg(long)]
    pub(crate) kind: Option<String>,
    /// How many, at most.
    #[arg(long, default_value_t = 50)]
    pub(crate) limit: u32,
    /// Go on, and show what happens.
    #[arg(long, short)]
    pub(crate) watch: bool,
}

/// Show what the agent of a host says.
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// `host/NAME`.
    #[arg(
        required = true,
        num_args = 1..=2,
        value_name = "host/NAME",
        add = super::complete::things(),
    )]
    pub(crate) what: Vec<String>,
    /// Go on, and show what comes.
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// How many lines of before.
    #[arg(long, default_value_t = 200)]
    pub(crate) tail: u32,
}

/// Shows events.
pub(crate) async fn events(
    client: &Client,
    asked: Events,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let path = events_path(&asked);
    let (_, found) = client.exchange(Method::GET, &path, None).await?;
    if !asked.watch && matches!(output, Output::Json | Output::Yaml) {
        return print_value(&found, output).map(|()| ExitCode::SUCCESS);
    }
    let items = found.get("items").or_else(|| found.get("events"));
    let items = items.and_then(Value::as_array).into_iter().flatten();
    print(&items.map(|event| line(event, output)).collect::<String>())?;
    if asked.watch {
        let from = text(&found, "/metadata/resourceVersion");
        let path = format!("{path}&watch=true&resource_version={from}");
        sse::follow(client, &path, |event| {
            let data = event.json()?;
            if text(&data, "/type") == "BOOKMARK" || event.kind == "BOOKMARK" {
                return Ok(false);
            }
            print(&line(data.get("object").unwrap_or(&data), output))?;
            Ok(false)
        })
        .await?;
    }
    Ok(ExitCode::SUCCESS)
}

fn events_path(asked: &Events) -> String {
    let given = [("host", &asked.host), ("kind", &asked.kind)];
    let given = given
        .into_iter()
        .filter_map(|(name, value)| Some(format!("&{name}={}", escaped(value.as_deref()?))));
    let limit = asked.limit;
    format!("/v1/events?limit={limit}{}", given.collect::<String>())
}

/// One event. Its words may come from a host: what moves a terminal's cursor is not printed.
fn line(event: &Value, output: Output) -> String {
    if matches!(output, Output::Json | Output::Yaml) {
        return format!("{event}\n");
    }
    let field = |names: [&str; 3]| {
        names
            .into_iter()
            .map(|name| text(event, name))
            .find(|t| !t.is_empty())
    };
    let at = field(["/at", "/time", "/metadata/creationTimestamp"]).unwrap_or_default();
    let host = field(["/host", "/name", "/spec/host"]).unwrap_or_default();
    let kind = field(["/kind", "/level", "/spec/kind"]).unwrap_or_default();
    let words = field(["/text", "/message", "/spec/text"]).unwrap_or_default();
    let at = at
        .parse::<jiff::Timestamp>()
        .map_or(at, |at| at.strftime("%Y-%m-%d %H:%M:%S").to_string());
    let words: String = words.chars().filter(|c| !c.is_control()).collect();
    let host = if host.is_empty() {
        host
    } else {
        format!("{host} ")
    };
    format!("{at} {host}{kind:<8}{words}\n")
}

/// Shows a host's log.
pub(crate) async fn logs(client: &Client, asked: Logs, output: Output) -> anyhow::Result<ExitCode> {
    let targets = kind::named(&asked.what)?;
    let [(Kind::Host, name)] = &targets[..] else {
        anyhow::bail!("only a host has a log: write host/NAME");
    };
    let (follow, tail) = (asked.follow, asked.tail);
    let path = format!("{}/logs?follow={follow}&tail={tail}", Kind::Host.item(name));
    if follow {
        sse::follow(client, &path, |event| {
            print(&said(&event.data, output))?;
            Ok(false)
        })
        .await?;
        return Ok(ExitCode::SUCCESS);
    }
    let body = client.stream(&path, None).await?.text().await?;
    // Without `follow` the answer is a list, or the same events and then its end.
    if let Ok(whole) = serde_json::from_str::<Value>(&body) {
        let items = whole
            .get("items")
            .or_else(|| whole.get("lines"))
            .unwrap_or(&whole);
        for item in items.as_array().into_iter().flatten() {
            print(&line(item, output))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    for data in body.lines().filter_map(|line| line.strip_prefix("data:")) {
        print(&said(data.trim_start(), output))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn said(data: &str, output: Output) -> String {
    match serde_json::from_str::<Value>(data) {
        Ok(Value::String(words)) => format!("{}\n", words.trim_end()),
        Ok(event) => line(&event, output),
        Err(_) => format!("{data}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_event_is_a_line_that_cannot_move_the_cursor() {
        let event = json!({"at": "2026-01-02T03:04:05Z", "host": "a", "kind": "state",
                           "text": "avail\u{1b}[2Jable\n"});
        assert_eq!(
            line(&event, Output::Table),
            "2026-01-02 03:04:05 a state   avail[2Jable\n"
        );
        assert_eq!(line(&event, Output::Json).lines().count(), 1);
        assert_eq!(said("\"plain\\n\"", Output::Table), "plain\n");
    }

    #[test]
    fn selectors_are_data_of_the_query() {
        let asked = Events {
            host: Some("a&b".into()),
            kind: None,
            limit: 5,
            watch: false,
        };
        assert_eq!(events_path(&asked), "/v1/events?limit=5&host=a%26b");
    }
}
