//! Reading server-sent events: an answer that goes on, and goes on after it broke off.

use std::time::Duration;

use anyhow::Context;
use serde_json::Value;

use super::client::{Client, Silent};

/// Between calls while nobody answers.
const PAUSE: Duration = Duration::from_secs(1);
/// Calls in a row without an answer before it is given up.
const SILENT_CALLS: u32 = 30;
/// Bytes of one event: a host fits many times.
const LONGEST: usize = 8 << 20;

/// One event.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    /// Where to go on after it.
    pub(crate) id: Option<String>,
    /// Its kind.
    pub(crate) kind: String,
    /// What it says.
    pub(crate) data: String,
}

impl Event {
    /// What it says, as JSON.
    pub(crate) fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_str(&self.data).context("an event that is no JSON")
    }
}

/// From bytes to events. Pure.
#[derive(Debug, Default)]
struct Lines {
    buffer: Vec<u8>,
    next: Event,
}

impl Lines {
    fn take(&mut self, bytes: &[u8]) -> anyhow::Result<Vec<Event>> {
        let mut found = Vec::new();
        self.buffer.extend_from_slice(bytes);
        while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.buffer.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            found.extend(self.line(line.trim_end_matches(['\r', '\n'])));
        }
        anyhow::ensure!(
            self.buffer.len() + self.next.data.len() <= LONGEST,
            "an event is longer than {LONGEST} bytes"
        );
        Ok(found)
    }

    fn line(&mut self, line: &str) -> Option<Event> {
        if line.is_empty() {
            let event = std::mem::take(&mut self.next);
            return (!event.data.is_empty()).then_some(event);
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => self.next.id = Some(value.to_owned()),
            "event" => value.clone_into(&mut self.next.kind),
            "data" => {
                if !self.next.data.is_empty() {
                    self.next.data.push('\n');
                }
                self.next.data.push_str(value);
            }
            // Comments keep the connection open; other fields are not for us.
            _ => {}
        }
        None
    }
}

/// Hands on every event until `heard` says that it is enough. A connection that breaks is made
/// again, from the last event on.
pub(crate) async fn follow(
    client: &Client,
    path: &str,
    mut heard: impl FnMut(&Event) -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let mut last = None;
    let mut silent = 0;
    loop {
        match client.stream(path, last.as_deref()).await {
            Ok(answer) => {
                silent = 0;
                if once(answer, &mut last, &mut heard).await? {
                    return Ok(());
                }
            }
            Err(error) if error.is::<Silent>() && silent < SILENT_CALLS => silent += 1,
            Err(error) => return Err(error),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// True when it was enough, false when the connection ended.
async fn once(
    mut answer: reqwest::Response,
    last: &mut Option<String>,
    heard: &mut impl FnMut(&Event) -> anyhow::Result<bool>,
) -> anyhow::Result<bool> {
    let mut lines = Lines::default();
    while let Ok(Some(bytes)) = answer.chunk().await {
        for event in lines.take(&bytes)? {
            if event.id.is_some() {
                last.clone_from(&event.id);
            }
            if heard(&event)? {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_found_however_their_bytes_come() {
        let text = ": hello\n\nid: 7\nevent: ADDED\ndata: {\"a\":\ndata: 1}\n\ndata:x\r\n\r\n";
        for size in [1, 3, 100] {
            let mut lines = Lines::default();
            let mut found = Vec::new();
            for bytes in text.as_bytes().chunks(size) {
                found.extend(lines.take(bytes).unwrap());
            }
            assert_eq!(found.len(), 2, "{size}");
            assert_eq!(found[0].id.as_deref(), Some("7"));
            assert_eq!(found[0].kind, "ADDED");
            assert_eq!(found[0].json().unwrap()["a"], 1);
            assert_eq!(found[1].data, "x");
        }
        let mut endless = Lines::default();
        assert!(endless.take(&vec![b'x'; LONGEST + 1]).is_err());
    }
}
