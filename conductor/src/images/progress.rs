//! How far a piece of work is, told between the task that does it and the one that shows it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// How far it is.
#[derive(Debug, Default)]
pub(super) struct Progress {
    done: AtomicU64,
    /// Zero: nobody knows.
    total: AtomicU64,
    stop: AtomicBool,
}

impl Progress {
    pub(super) fn set(&self, done: u64, total: Option<u64>) {
        self.done.store(done, Ordering::Relaxed);
        self.total.store(total.unwrap_or(0), Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> (u64, Option<u64>) {
        let total = self.total.load(Ordering::Relaxed);
        let done = self.done.load(Ordering::Relaxed);
        (done, Some(total).filter(|total| *total > 0))
    }

    /// Nobody wants it any more.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Stops what goes on in a thread when whoever waits for it goes away.
#[derive(Debug)]
pub(super) struct StopOnDrop<'a>(pub(super) &'a Progress);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}
