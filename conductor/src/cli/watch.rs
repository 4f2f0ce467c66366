//! `ferrite host watch`: what happens, as it happens. On a terminal with a bar, else line by line.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use ferrite_proto::api::HostList;
use ferrite_proto::host::{Host, HostState, RunningStep};
use ferrite_proto::problem::Problem;
use ferrite_proto::size::ByteSize;
use indicatif::{ProgressBar, ProgressStyle};
use serde::de::DeserializeOwned;

use super::args::Output;
use super::client::{Client, Silent, is_gone};
use super::{print, print_json, show};

/// Seconds that one call waits for a change.
const WAIT: u32 = 30;
/// Between lines of progress.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);
/// Between looks at all hosts.
const LOOK: Duration = Duration::from_secs(1);
/// Calls without an answer, a second apart, before watching ends.
const SILENT_CALLS: u32 = 30;

/// Follows a host, or all of them, until nothing more happens by itself.
pub(crate) async fn watch(
    client: &Client,
    name: Option<String>,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let Some(name) = name else {
        return watch_all(client, output).await;
    };
    let mut teller = Teller::new(output);
    let mut path = format!("/v1/hosts/{name}");
    loop {
        let host: Host = patiently(client, &path).await?;
        teller.tell(&host)?;
        if let Some(end) = end(&host) {
            return teller.finish(end, &host);
        }
        path = format!("/v1/hosts/{name}?after={}&wait={WAIT}", host.version);
    }
}

/// A conductor may be started again while one watches: hosts go on all the same.
async fn patiently<T: DeserializeOwned>(client: &Client, path: &str) -> anyhow::Result<T> {
    for _ in 0..SILENT_CALLS {
        match client.get(path).await {
            Err(error) if error.is::<Silent>() => tokio::time::sleep(LOOK).await,
            other => return other,
        }
    }
    client.get(path).await
}

async fn watch_all(client: &Client, output: Output) -> anyhow::Result<ExitCode> {
    let mut tellers = std::collections::HashMap::new();
    loop {
        let all: HostList = patiently(client, "/v1/hosts").await?;
        for host in &all.hosts {
            // Several bars would overwrite each other: lines for all.
            let teller = tellers
                .entry(host.uid.clone())
                .or_insert_with(|| Teller::lines(output));
            teller.tell(host)?;
        }
        let ends: Vec<_> = all.hosts.iter().map(end).collect();
        if ends.iter().all(Option::is_some) {
            let trouble = ends.iter().flatten().any(|end| *end == End::NeedsPerson);
            return Ok(if trouble {
                ExitCode::FAILURE
            } else {
                ExitCode::SUCCESS
            });
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Waits until the host is gone.
pub(crate) async fn until_gone(
    client: &Client,
    name: &str,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let mut teller = Teller::new(output);
    let mut path = format!("/v1/hosts/{name}");
    loop {
        match patiently::<Host>(client, &path).await {
            Ok(host) => {
                teller.tell(&host)?;
                path = format!("/v1/hosts/{name}?after={}&wait={WAIT}", host.version);
            }
            Err(error) if is_gone(&error) => return Ok(ExitCode::SUCCESS),
            Err(error) => return Err(error),
        }
    }
}

/// Why nothing more happens by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    AsWanted,
    NeedsPerson,
}

fn end(host: &Host) -> Option<End> {
    let status = &host.status;
    let error = status.error.as_ref();
    if error.is_some_and(|error| error.retry_at.is_none()) {
        return Some(End::NeedsPerson);
    }
    let settled = match (status.state, &host.spec.image) {
        (HostState::Available, None) | (HostState::ExternallyProvisioned, _) => true,
        (HostState::Provisioned, Some(wanted)) => status.image.as_ref() == Some(wanted),
        _ => false,
    };
    let seen = status.observed_generation == host.generation;
    (settled && seen && error.is_none()).then_some(End::AsWanted)
}

/// Tells what is new.
struct Teller {
    output: Output,
    bar: Option<ProgressBar>,
    last: Option<(HostState, String)>,
    last_progress: Instant,
}

impl Teller {
    fn new(output: Output) -> Self {
        let mut teller = Self::lines(output);
        if output == Output::Table && std::io::stderr().is_terminal() {
            teller.bar = Some(ProgressBar::new_spinner());
        }
        teller
    }

    fn lines(output: Output) -> Self {
        Self {
            output,
            bar: None,
            last: None,
            last_progress: Instant::now(),
        }
    }

    fn tell(&mut self, host: &Host) -> anyhow::Result<()> {
        let status = &host.status;
        let words = match (&status.error, &status.step) {
            (None, Some(step)) => step.name.clone(),
            (Some(_), _) | (None, None) => show::doing(status),
        };
        let now = Some((status.state, words.clone()));
        let same_state = self
            .last
            .as_ref()
            .is_some_and(|last| last.0 == status.state);
        // Between two steps there is a moment without words.
        let silent = same_state && words.is_empty();
        if now != self.last && !silent {
            self.last = now;
            self.last_progress = Instant::now();
            self.line(host, &words)?;
        }
        if let Some(step) = &status.step {
            self.progress(host, step)?;
        }
        Ok(())
    }

    fn line(&self, host: &Host, words: &str) -> anyhow::Result<()> {
        if self.output == Output::Json {
            // One object a line: a stream that programs can follow.
            return print(&format!("{}\n", serde_json::to_string(&event(host))?));
        }
        let at = jiff::Timestamp::now().strftime("%H:%M:%S");
        let line = format!("{at} {} {}: {words}", host.name, host.status.state);
        match &self.bar {
            Some(bar) => {
                bar.println(line.trim_end_matches([':', ' ']));
                Ok(())
            }
            None => print(&format!("{}\n", line.trim_end_matches([':', ' ']))),
        }
    }

    fn progress(&mut self, host: &Host, step: &RunningStep) -> anyhow::Result<()> {
        let Some(bar) = &self.bar else {
            if self.last_progress.elapsed() >= PROGRESS_EVERY && step.progress.bytes_done > 0 {
                self.last_progress = Instant::now();
                return self.line(host, &progress_words(step));
            }
            return Ok(());
        };
        let progress = &step.progress;
        if let Some(total) = progress.bytes_total {
            bar.set_style(style("{prefix} {wide_bar} {percent:>3}% {msg}"));
            bar.set_length(total);
        } else {
            bar.set_style(style("{spinner} {prefix} {msg}"));
        }
        bar.set_prefix(step.name.clone());
        bar.set_position(progress.bytes_done);
        bar.set_message(progress_words(step));
        Ok(())
    }

    fn finish(&self, end: End, host: &Host) -> anyhow::Result<ExitCode> {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        if end == End::AsWanted {
            if self.output == Output::Json {
                print_json(host)?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        match &host.status.error {
            Some(error) => Err(Problem::clone(&error.problem).into()),
            None => Ok(ExitCode::FAILURE),
        }
    }
}

fn event(host: &Host) -> serde_json::Value {
    let status = &host.status;
    serde_json::json!({
        "host": host.name,
        "version": host.version,
        "state": status.state,
        "step": status.step,
        "waiting_for": status.waiting_for,
        "error": status.error,
    })
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Step, bytes, rate and remaining time.
fn progress_words(step: &RunningStep) -> String {
    let progress = &step.progress;
    let mut words = vec![step.name.clone()];
    if !progress.phase.is_empty() {
        words.push(progress.phase.clone());
    }
    if progress.bytes_done > 0 {
        words.push(ByteSize(progress.bytes_done).to_string());
    }
    if let Some(total) = progress.bytes_total {
        words.push(format!("of {}", ByteSize(total)));
    }
    if progress.bytes_per_second > 0 {
        words.push(format!("at {}/s", ByteSize(progress.bytes_per_second)));
        let left = progress
            .bytes_total
            .map(|total| total.saturating_sub(progress.bytes_done) / progress.bytes_per_second);
        words.extend(left.map(|seconds| format!("{seconds} s left")));
    }
    words.join(" ")
}
