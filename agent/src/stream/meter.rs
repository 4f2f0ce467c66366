//! How far a step is and how fast it goes, and how little memory was left meanwhile.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use ferrite_proto::step::Progress;
use sysinfo::System;

/// How often progress is told.
const INTERVAL: Duration = Duration::from_millis(500);
/// The rate is that of so many intervals.
const WINDOW: usize = 8;

/// What became of an image's bytes so far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Parts {
    pub(crate) fetched: u64,
    pub(crate) decoded: u64,
    pub(crate) written: u64,
    pub(crate) skipped: u64,
}

/// Tells progress at even intervals.
pub(crate) struct Meter<'a> {
    tell: &'a (dyn Fn(Progress) + Sync),
    phase: &'static str,
    samples: VecDeque<(Instant, u64)>,
    system: Option<System>,
    memory_low: u64,
    /// Told with the rest.
    pub(crate) parts: Parts,
}

impl<'a> Meter<'a> {
    pub(crate) fn new(tell: &'a (dyn Fn(Progress) + Sync), phase: &'static str) -> Self {
        Self {
            tell,
            phase,
            samples: VecDeque::new(),
            system: System::new().ok(),
            memory_low: u64::MAX,
            parts: Parts::default(),
        }
    }

    /// Called often; tells only when an interval has passed.
    pub(crate) fn tick(&mut self, bytes: u64, total: Option<u64>) {
        let now = Instant::now();
        let due = self
            .samples
            .back()
            .is_none_or(|(last, _)| now - *last >= INTERVAL);
        if due {
            self.sample(now, bytes, total);
        }
    }

    /// Both: tells at once when something else begins.
    pub(crate) fn during(&mut self, phase: &'static str, bytes: u64, total: Option<u64>) {
        if phase == self.phase {
            self.tick(bytes, total);
        } else {
            self.enter(phase, bytes, total);
        }
    }

    /// Tells at once that something else begins.
    pub(crate) fn enter(&mut self, phase: &'static str, bytes: u64, total: Option<u64>) {
        self.phase = phase;
        self.sample(Instant::now(), bytes, total);
    }

    fn sample(&mut self, now: Instant, bytes: u64, total: Option<u64>) {
        self.samples.push_back((now, bytes));
        if self.samples.len() > WINDOW {
            self.samples.pop_front();
        }
        if let Some(system) = &mut self.system {
            system.refresh_memory();
            self.memory_low = self.memory_low.min(system.available_memory());
        }
        (self.tell)(Progress {
            phase: self.phase.to_owned(),
            bytes_done: bytes,
            bytes_total: total,
            bytes_per_second: self.rate(),
            bytes_fetched: self.parts.fetched,
            bytes_decoded: self.parts.decoded,
            bytes_written: self.parts.written,
            bytes_skipped: self.parts.skipped,
        });
    }

    fn rate(&self) -> u64 {
        let (Some((from, before)), Some((to, after))) = (self.samples.front(), self.samples.back())
        else {
            return 0;
        };
        let micros = (*to - *from).as_micros();
        let bytes = u128::from(after.saturating_sub(*before));
        let rate = (bytes * 1_000_000).checked_div(micros).unwrap_or(0);
        u64::try_from(rate).unwrap_or(u64::MAX)
    }

    /// The least memory that was available; 0 when it cannot be told.
    pub(crate) fn memory_low(&self) -> u64 {
        if self.memory_low == u64::MAX {
            0
        } else {
            self.memory_low
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn the_rate_is_bytes_by_time() {
        let told = Mutex::new(Vec::new());
        let tell = |progress: Progress| told.lock().unwrap().push(progress);
        let mut meter = Meter::new(&tell, "writing");
        let start = Instant::now();
        meter.sample(start, 0, Some(100));
        meter.sample(start + Duration::from_secs(2), 50, Some(100));
        meter.tick(60, None);
        let told = told.lock().unwrap();
        assert_eq!(told.len(), 2, "not twice within an interval");
        assert_eq!(told[1].bytes_per_second, 25);
        assert_eq!(told[1].bytes_done, 50);
        assert!(meter.memory_low() > 0);
    }
}
