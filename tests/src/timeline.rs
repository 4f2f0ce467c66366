//! Where the seconds of a deployment went: read from the host's own status, shown as a waterfall,
//! written as JSON. Pure; the figures are the conductor's and the lab's, none is made here.

use std::fmt::Write as _;

use ferrite_proto::api::Timeline as Runs;
use ferrite_proto::host::{Host, HostState, Stage};
use ferrite_proto::size::ByteSize;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// One deployment, as `timeline.json` has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Timeline {
    /// `provisioned`, or the state in which it ended with the problem's code.
    pub outcome: String,
    /// How often the firmware started, counted by the lab at the virtual machine.
    pub firmware_boots: u64,
    /// From the first stage's start to the last one's end.
    pub seconds: f64,
    /// Kernel start of the ramdisk to the agent's first contact.
    pub kernel_to_hello_seconds: Option<f64>,
    /// In order of their start.
    pub stages: Vec<TimelineStage>,
}

/// A stage of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TimelineStage {
    /// Its name.
    pub name: String,
    /// When it began.
    pub started: Timestamp,
    /// Wall seconds.
    pub seconds: f64,
    /// Bytes moved, where that is its point.
    pub bytes: Option<u64>,
    /// CPU seconds of the host's QEMU process, where it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qemu_cpu_seconds: Option<f64>,
}

impl Timeline {
    /// The timeline of a host that has come to rest at `now`.
    pub fn of(host: &Host, runs: &Runs, firmware_boots: u64, now: Timestamp) -> Self {
        let mut stages: Vec<TimelineStage> = runs
            .stages()
            .map(|stage| TimelineStage::of(stage, now))
            .collect();
        stages.sort_by_key(|stage| stage.started);
        let first = stages.first().map_or(now, |stage| stage.started);
        let last = stages.iter().map(TimelineStage::ended).max().unwrap_or(now);
        Self {
            outcome: outcome(host),
            firmware_boots,
            seconds: seconds_between(first, last),
            kernel_to_hello_seconds: host
                .status
                .agent
                .as_ref()
                .map(|agent| agent.kernel_to_hello_seconds)
                .or_else(|| stage_seconds(&stages, "ramdisk")),
            stages,
        }
    }

    /// A waterfall of at most 100 columns.
    pub fn waterfall(&self) -> String {
        const BAR: f64 = 40.0;
        let mut text = String::new();
        let whole = self.seconds.max(0.001);
        let first = self.stages.first().map(|stage| stage.started);
        for stage in &self.stages {
            let offset = first.map_or(0.0, |first| seconds_between(first, stage.started));
            let column = |seconds: f64| (seconds / whole * BAR).round().clamp(0.0, BAR);
            let bar = "█".repeat(whole_columns(column(stage.seconds)).max(1));
            let indent = " ".repeat(whole_columns(column(offset)).min(39));
            let bytes = stage
                .bytes
                .map(|bytes| ByteSize(bytes).to_string())
                .unwrap_or_default();
            let _ = writeln!(
                text,
                "  {:<18} {:>7.1} s  {:>10}  {indent}{bar}",
                stage.name, stage.seconds, bytes
            );
        }
        let boots = if self.firmware_boots == 1 {
            "boot"
        } else {
            "boots"
        };
        let _ = writeln!(
            text,
            "  {:<18} {:>7.1} s  {} firmware {boots}, {}",
            "in all", self.seconds, self.firmware_boots, self.outcome
        );
        text
    }
}

impl TimelineStage {
    fn of(stage: &Stage, now: Timestamp) -> Self {
        Self {
            name: stage.name.clone(),
            started: stage.started,
            seconds: stage
                .seconds
                .unwrap_or_else(|| seconds_between(stage.started, now)),
            bytes: stage.bytes,
            qemu_cpu_seconds: None,
        }
    }

    /// When it was over.
    pub fn ended(&self) -> Timestamp {
        self.started
            .checked_add(jiff::SignedDuration::from_secs_f64(self.seconds))
            .unwrap_or(self.started)
    }
}

/// `provisioned` when that is so and cloud-init is content, else where it ended and why.
fn outcome(host: &Host) -> String {
    match (&host.status.error, host.status.state) {
        (None, HostState::Provisioned) => "provisioned".into(),
        (None, state) => state.to_string(),
        (Some(error), state) => format!("{state}: {}", error.problem.code),
    }
}

fn stage_seconds(stages: &[TimelineStage], name: &str) -> Option<f64> {
    stages
        .iter()
        .rev()
        .find(|stage| stage.name == name)
        .map(|stage| stage.seconds)
}

fn seconds_between(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64()
}

/// Columns of a clamped, rounded, non-negative number.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to 0..=40"
)]
fn whole_columns(columns: f64) -> usize {
    columns as usize
}

/// CPU seconds of a process over time, to be laid over the stages afterwards.
#[derive(Debug, Clone, Default)]
pub struct CpuSamples(Vec<(Timestamp, f64)>);

impl CpuSamples {
    /// Adds a reading; readings are added in order of time.
    pub fn add(&mut self, at: Timestamp, cpu_seconds: f64) {
        self.0.push((at, cpu_seconds));
    }

    /// CPU seconds spent between two moments, by straight lines between the readings.
    pub fn between(&self, from: Timestamp, to: Timestamp) -> f64 {
        (self.at(to) - self.at(from)).max(0.0)
    }

    fn at(&self, moment: Timestamp) -> f64 {
        let after = self.0.partition_point(|(at, _)| *at <= moment);
        match (
            after.checked_sub(1).and_then(|i| self.0.get(i)),
            self.0.get(after),
        ) {
            (Some((from, low)), Some((to, high))) => {
                let part = seconds_between(*from, moment) / seconds_between(*from, *to).max(1e-9);
                low + (high - low) * part
            }
            (Some((_, last)), None) => *last,
            (None, _) => 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(second: i64) -> Timestamp {
        Timestamp::from_second(1_000 + second).unwrap()
    }

    #[test]
    fn cpu_is_read_between_the_samples() {
        let mut samples = CpuSamples::default();
        samples.add(second(0), 0.0);
        samples.add(second(10), 20.0);
        assert!((samples.between(second(2), second(4)) - 4.0).abs() < 1e-6);
        assert!((samples.between(second(5), second(50)) - 10.0).abs() < 1e-6);
    }

    #[test]
    fn the_waterfall_stays_within_a_hundred_columns_and_says_what_came_of_it() {
        let stage = |name: &str, start: i64, seconds: f64| TimelineStage {
            name: name.into(),
            started: second(start),
            seconds,
            bytes: Some(1 << 30),
            qemu_cpu_seconds: None,
        };
        let timeline = Timeline {
            outcome: "provisioned".into(),
            firmware_boots: 1,
            seconds: 60.0,
            kernel_to_hello_seconds: None,
            stages: vec![
                stage("firmware", 0, 20.0),
                stage("write-config-drive", 59, 1.0),
            ],
        };
        let text = timeline.waterfall();
        assert!(
            text.lines().all(|line| line.chars().count() <= 100),
            "{text}"
        );
        assert!(text.contains("1 firmware boot, provisioned"), "{text}");
    }
}
