//! `ferrite host watch`: what happens, as it happens. On a terminal with a bar, else line by line.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use ferrite_proto::api::HostList;
use ferrite_proto::host::{Host, HostState, HostStatus, RunningStep};
use ferrite_proto::problem::Problem;
use ferrite_proto::size::ByteSize;
use indicatif::{ProgressBar, ProgressStyle};
use serde::de::DeserializeOwned;

use super::args::Output;
use super::client::{Client, Silent, is_gone};
use super::{print, show};

/// Seconds that one call waits for a change.
const WAIT: u32 = 30;
/// Between lines of progress.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);
/// Between frames of a spinner.
const TICK: Duration = Duration::from_millis(250);
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
        let host: Host = patiently(client, &path, teller.bar.as_ref()).await?;
        teller.tell(&host)?;
        if let Some(end) = end(&host) {
            return teller.finish(end, &host);
        }
        path = format!("/v1/hosts/{name}?after={}&wait={WAIT}", host.version);
    }
}

/// A conductor may be started again while one watches: hosts go on all the same. That it does not
/// answer is said at once.
async fn patiently<T: DeserializeOwned>(
    client: &Client,
    path: &str,
    bar: Option<&ProgressBar>,
) -> anyhow::Result<T> {
    let mut told = false;
    for _ in 0..SILENT_CALLS {
        match client.get(path).await {
            Err(error) if error.is::<Silent>() => {
                if !told {
                    notice(bar, &format!("{error}; trying again"));
                }
                told = true;
                tokio::time::sleep(LOOK).await;
            }
            other => {
                if told && other.is_ok() {
                    notice(bar, "the conductor answers again");
                }
                return other;
            }
        }
    }
    client.get(path).await
}

/// A word about watching itself: not part of what is watched, so not on standard output.
fn notice(bar: Option<&ProgressBar>, text: &str) {
    let say = || {
        let _ = writeln!(std::io::stderr().lock(), "{text}");
    };
    match bar {
        Some(bar) => bar.suspend(say),
        None => say(),
    }
}

async fn watch_all(client: &Client, output: Output) -> anyhow::Result<ExitCode> {
    let mut tellers = std::collections::HashMap::new();
    loop {
        let all: HostList = patiently(client, "/v1/hosts", None).await?;
        for host in &all.items {
            // Several bars would overwrite each other: lines for all.
            let teller = tellers
                .entry(host.uid.clone())
                .or_insert_with(|| Teller::lines(output));
            teller.tell(host)?;
        }
        let ends: Vec<_> = all.items.iter().map(end).collect();
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
        match patiently::<Host>(client, &path, teller.bar.as_ref()).await {
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
        let terminal = std::io::stderr().is_terminal() && std::io::stdout().is_terminal();
        if output == Output::Table && terminal {
            let bar = ProgressBar::new_spinner();
            bar.enable_steady_tick(TICK);
            teller.bar = Some(bar);
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
        let words = headline(&host.status);
        if self.is_news(host.status.state, &words) {
            self.last_progress = Instant::now();
            self.line(host, &words)?;
        }
        match (&self.bar, &host.status.step) {
            (Some(bar), step) => draw(bar, host, step.as_ref()),
            (None, Some(step)) => self.progress_line(host, step)?,
            (None, None) => {}
        }
        Ok(())
    }

    /// Whether a line is due. Between two steps there is a moment without words, which says
    /// nothing; the state comes with the next words.
    fn is_news(&mut self, state: HostState, words: &str) -> bool {
        let now = Some((state, words.to_owned()));
        if words.is_empty() || now == self.last {
            return false;
        }
        self.last = now;
        true
    }

    fn line(&self, host: &Host, words: &str) -> anyhow::Result<()> {
        let line = if self.output == Output::Json {
            // One object a line: a stream that programs can follow.
            serde_json::to_string(&event(host))?
        } else {
            let at = jiff::Timestamp::now().strftime("%H:%M:%S");
            format!("{at} {} {}: {words}", host.name, host.status.state)
        };
        let say = || print(&format!("{line}\n"));
        match &self.bar {
            Some(bar) => bar.suspend(say),
            None => say(),
        }
    }

    fn progress_line(&mut self, host: &Host, step: &RunningStep) -> anyhow::Result<()> {
        if self.last_progress.elapsed() < PROGRESS_EVERY || step.progress.bytes_done == 0 {
            return Ok(());
        }
        self.last_progress = Instant::now();
        self.line(host, &format!("{} {}", step.name, progress_words(step)))
    }

    fn finish(&self, end: End, host: &Host) -> anyhow::Result<ExitCode> {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        if end == End::AsWanted {
            if self.output == Output::Json {
                print(&format!("{}\n", serde_json::to_string(host)?))?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        match &host.status.error {
            Some(error) => Err(Problem::clone(&error.problem).into()),
            None => Ok(ExitCode::FAILURE),
        }
    }
}

/// What a line says of a host: its problem, its step, or what it waits for.
fn headline(status: &HostStatus) -> String {
    match (&status.error, &status.step) {
        (None, Some(step)) => step.name.clone(),
        (Some(_), _) | (None, None) => show::doing(status),
    }
}

/// Stage, bytes, rate and remaining time, or what is waited for.
fn draw(bar: &ProgressBar, host: &Host, step: Option<&RunningStep>) {
    let total = step.and_then(|step| step.progress.bytes_total);
    bar.set_style(style(match total {
        Some(_) => "{prefix} {wide_bar} {percent:>3}% {msg}",
        None => "{spinner} {prefix} {wide_msg}",
    }));
    let Some(step) = step else {
        bar.set_prefix(host.status.state.to_string());
        return bar.set_message(headline(&host.status));
    };
    if let Some(total) = total {
        bar.set_length(total);
    }
    bar.set_position(step.progress.bytes_done);
    bar.set_prefix(step.name.clone());
    bar.set_message(progress_words(step));
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

/// Phase, bytes, rate and remaining time.
fn progress_words(step: &RunningStep) -> String {
    let progress = &step.progress;
    let mut words = Vec::new();
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
        words.extend(left.map(|seconds| format!("{} left", duration(seconds))));
    }
    words.join(" ")
}

fn duration(seconds: u64) -> String {
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, m, _) => format!("{h} h {m} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferrite_proto::step::Progress;

    #[test]
    fn the_same_twice_and_moments_without_words_are_no_news() {
        let mut teller = Teller::lines(Output::Table);
        let state = HostState::Provisioning;
        let said = ["", "write-image", "write-image", "", "boot"].map(|w| teller.is_news(state, w));
        assert_eq!(said, [false, true, false, false, true]);
        assert!(teller.is_news(HostState::Provisioned, "boot"));
    }

    #[test]
    fn progress_is_bytes_rate_and_remaining_time() {
        let step = RunningStep {
            order: 1,
            name: "write-image".into(),
            started: jiff::Timestamp::UNIX_EPOCH,
            progress: Progress {
                phase: "writing".into(),
                bytes_done: 1 << 30,
                bytes_total: Some(3 << 30),
                bytes_per_second: 32 << 20,
                ..Progress::default()
            },
        };
        assert_eq!(
            progress_words(&step),
            "writing 1.00 GiB of 3.00 GiB at 32.0 MiB/s 1 min 4 s left"
        );
        assert_eq!(duration(7300), "2 h 1 min");
    }
}
