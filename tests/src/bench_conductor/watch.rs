//! How long a change takes to reach somebody who watches: from the request that asks for it until
//! its event is read from the stream of `GET /v1/hosts?watch=true`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::StreamExt;
use reqwest::Method;
use serde_json::json;
use tokio::sync::oneshot;

use super::measure::Latency;
use crate::swarm::{Machine, Operator};

/// Between two changes.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a watch may take to tell what is there already.
const OPENING: Duration = Duration::from_mins(1);
/// How long the last events may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The annotation that is changed; its value says which change it is.
const MARK: &str = "bench.ferrite/change";

/// Makes `changes` changes, one host after the other, and watches for each.
pub(super) async fn latency(
    operator: &Operator,
    machines: &[Arc<Machine>],
    changes: usize,
) -> Result<Latency> {
    let seen = Arc::<Mutex<HashMap<String, Instant>>>::default();
    let (opened, open) = oneshot::channel();
    let watcher = tokio::spawn(watch(operator.clone(), Arc::clone(&seen), opened));
    // The stream begins with everything that is there, and then says how far it is.
    let open = tokio::time::timeout(OPENING, open).await;
    ensure!(
        matches!(open, Ok(Ok(()))),
        "the watch is not open after {OPENING:?}"
    );
    // Of this time: marks of an earlier one are still there, and told with everything else.
    let run = uuid::Uuid::new_v4();
    let mut asked = Vec::with_capacity(changes);
    for (number, machine) in machines.iter().cycle().take(changes).enumerate() {
        let mark = format!("change-{number}-of-{run}");
        let body = json!({"metadata": {"annotations": {MARK: mark}}});
        asked.push((mark, Instant::now()));
        let path = format!("/v1/hosts/{}", machine.name);
        operator.call(Method::PATCH, &path, Some(&body)).await?;
        tokio::time::sleep(PAUSE).await;
    }
    let since = Instant::now();
    let count = || seen.lock().unwrap_or_else(PoisonError::into_inner).len();
    while count() < changes && since.elapsed() < PATIENCE && !watcher.is_finished() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    if watcher.is_finished() {
        watcher.await??;
    } else {
        watcher.abort();
    }
    let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    let took = asked
        .iter()
        .filter_map(|(mark, at)| seen.get(mark).map(|seen| *seen - *at));
    let took: Vec<_> = took.collect();
    ensure!(
        took.len() == changes,
        "of {changes} changes only {} were seen by the watcher",
        took.len()
    );
    Ok(Latency::of(took))
}

/// Notes when each mark was first read.
async fn watch(
    operator: Operator,
    seen: Arc<Mutex<HashMap<String, Instant>>>,
    opened: oneshot::Sender<()>,
) -> Result<()> {
    let request = operator.request(Method::GET, "/v1/hosts?watch=true");
    let response = request.timeout(Duration::from_mins(10)).send().await?;
    let status = response.status();
    ensure!(status.is_success(), "watching hosts: {status}");
    let mut stream = response.bytes_stream();
    let mut rest = Vec::new();
    let mut opened = Some(opened);
    while let Some(chunk) = stream.next().await {
        rest.extend_from_slice(&chunk.context("reading the stream of events")?);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            if line.trim_end() == "event: BOOKMARK"
                && let Some(opened) = opened.take()
            {
                // Whoever waited may have lost patience.
                let _ = opened.send(());
            }
            if let Some(mark) = mark_in(&line) {
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                seen.entry(mark).or_insert_with(Instant::now);
            }
        }
    }
    anyhow::bail!("the stream of events ended")
}

fn mark_in(line: &str) -> Option<String> {
    let data = line.strip_prefix("data:")?;
    let (_, after) = data.split_once(MARK)?;
    let (_, value) = after.split_once("\":")?;
    let value = value.trim_start().strip_prefix('"')?;
    value.split_once('"').map(|(mark, _)| mark.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_found_in_an_event() {
        let line =
            r#"data: {"object":{"metadata":{"annotations":{"bench.ferrite/change":"x-1"}}}}"#;
        assert_eq!(mark_in(line).as_deref(), Some("x-1"));
        assert_eq!(mark_in("data: {}"), None);
        assert_eq!(mark_in(": still here"), None);
    }
}
