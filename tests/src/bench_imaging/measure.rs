//! What a run cost: wall and processor seconds, memory, bytes from the server and to the disk.
//!
//! Processor time is that of all children and theirs, as the kernel counts it when they are waited
//! for. The loop device's and the page cache's own kernel threads are nobody's. Memory is looked at
//! 20 times a second.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use serde::{Deserialize, Serialize};

use super::disk::Device;

const GLANCE: Duration = Duration::from_millis(50);
/// Length of one of the kernel's ticks in `/proc/PID/stat`.
const TICK_SECONDS: f64 = 0.01;

/// One run in figures.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Figures {
    pub(super) wall: f64,
    pub(super) cpu: f64,
    /// Peak of the largest process, and the most of all together, bytes.
    pub(super) rss: u64,
    pub(super) rss_sum: u64,
    pub(super) fetched: u64,
    pub(super) written: u64,
    /// Processor seconds of the threads that took most, by name.
    pub(super) threads: BTreeMap<String, f64>,
}

/// Runs `work`, and says what it cost until the disk holds all. What was fetched, the server knows.
pub(super) fn measured(disk: &Device, work: impl FnOnce() -> Result<()>) -> Result<Figures> {
    let over = AtomicBool::new(false);
    let (cpu, written) = (children_seconds()?, disk.written()?);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(&over));
        let started = Instant::now();
        let result = work().and_then(|()| disk.settle());
        let wall = started.elapsed().as_secs_f64();
        over.store(true, Ordering::Relaxed);
        let watched = watcher.join().ok().context("the watcher failed")?;
        result?;
        Ok(Figures {
            wall,
            cpu: children_seconds()? - cpu,
            rss: watched.peak,
            rss_sum: watched.peak_sum,
            fetched: 0,
            written: disk.written()? - written,
            threads: watched.by_name(),
        })
    })
}

/// Processor seconds of all children that ended so far.
pub(super) fn children_seconds() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    #[expect(clippy::cast_precision_loss, reason = "seconds for a table")]
    Ok(micros as f64 / 1e6)
}

#[derive(Debug, Default)]
struct Watched {
    peak: u64,
    peak_sum: u64,
    /// By thread id: its name and ticks so far.
    threads: BTreeMap<u32, (String, u32)>,
}

impl Watched {
    fn by_name(&self) -> BTreeMap<String, f64> {
        let mut seconds = BTreeMap::new();
        for (name, ticks) in self.threads.values() {
            *seconds.entry(name.clone()).or_default() += f64::from(*ticks) * TICK_SECONDS;
        }
        seconds
    }

    fn look(&mut self) {
        let mut sum = 0;
        for process in descendants() {
            let status = fs::read_to_string(format!("/proc/{process}/status"));
            let status = status.unwrap_or_default();
            self.peak = self.peak.max(kib(&status, "VmHWM:") * 1024);
            sum += kib(&status, "VmRSS:") * 1024;
            self.look_at_threads(process);
        }
        self.peak_sum = self.peak_sum.max(sum);
    }

    fn look_at_threads(&mut self, process: u32) {
        let Ok(tasks) = fs::read_dir(format!("/proc/{process}/task")) else {
            return;
        };
        for task in tasks.flatten() {
            let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            let id = task.file_name().to_str().and_then(|id| id.parse().ok());
            if let (Some(id), Some(stat)) = (id, Stat::parse(&stat)) {
                self.threads.insert(id, (stat.name, stat.ticks));
            }
        }
    }
}

fn watch(over: &AtomicBool) -> Watched {
    let mut watched = Watched::default();
    while !over.load(Ordering::Relaxed) {
        watched.look();
        std::thread::sleep(GLANCE);
    }
    watched
}

/// What is of use in `/proc/PID/stat`.
struct Stat {
    name: String,
    parent: u32,
    ticks: u32,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        let (before, rest) = text.rsplit_once(") ")?;
        let name = before.split_once('(')?.1.to_owned();
        let fields: Vec<_> = rest.split(' ').collect();
        let number = |index: usize| fields.get(index)?.parse::<u32>().ok();
        Some(Self {
            name,
            parent: number(1)?,
            ticks: number(11)? + number(12)?,
        })
    }
}

/// Children of this process, and theirs.
fn descendants() -> Vec<u32> {
    let parents: BTreeMap<u32, u32> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let id: u32 = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            Some((id, Stat::parse(&stat)?.parent))
        })
        .collect();
    let own = std::process::id();
    let up = |id: &u32| parents.get(id).copied();
    let ours = |id: &u32| std::iter::successors(up(id), up).any(|parent| parent == own);
    parents.keys().copied().filter(ours).collect()
}

fn kib(status: &str, key: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_read_whatever_its_name() {
        let text = "7 (a) (b) S 3 7 7 0 -1 0 0 0 0 0 5 6 0 0 20 0 1 0 9 0 0";
        let stat = Stat::parse(text).unwrap();
        assert_eq!(
            (stat.name.as_str(), stat.parent, stat.ticks),
            ("a) (b", 3, 11)
        );
        assert!(Stat::parse("").is_none());
    }

    #[test]
    fn children_are_found_and_their_memory_read() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let mut watched = Watched::default();
        let found = descendants().contains(&child.id());
        watched.look();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found);
        assert!(watched.peak > 0 && watched.peak_sum >= watched.peak);
    }
}
