//! The one place that tells the time, so that the simulation can run days in a second, and jump.
//!
//! Deadlines of a host are compared with this wall clock, as they are stored; how long a task
//! sleeps is tokio's clock. In a debug build `FERRITE_CLOCK=FILE` names a file with seconds that
//! are added, and may change at any time.

#[cfg(not(test))]
pub(crate) use real::{now, steady_since};

/// The system's clock, and whether somebody set it.
#[cfg(not(test))]
mod real {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicI64, Ordering};
    use std::time::Instant;

    use jiff::Timestamp;

    /// More than a clock is put right by without anybody noticing.
    const JUMP: u64 = 5_000_000;

    /// A moment on both clocks: the wall's, and the one that cannot be set.
    static BEGIN: OnceLock<(Timestamp, Instant)> = OnceLock::new();
    /// By how much the wall clock was further than the other, in microseconds.
    static AHEAD: AtomicI64 = AtomicI64::new(0);
    /// When it was last put forward or back, in microseconds.
    static SET: AtomicI64 = AtomicI64::new(i64::MIN);

    /// The time.
    pub(crate) fn now() -> Timestamp {
        let now = shown();
        let (begin, since) = BEGIN.get_or_init(|| (now, Instant::now()));
        let passed = i64::try_from(since.elapsed().as_micros()).unwrap_or(i64::MAX);
        let shown = now.as_microsecond() - begin.as_microsecond();
        let ahead = shown.saturating_sub(passed);
        let before = AHEAD.swap(ahead, Ordering::Relaxed);
        if ahead.abs_diff(before) > JUMP {
            SET.store(now.as_microsecond(), Ordering::Relaxed);
        }
        now
    }

    /// When the clock was last put forward or back while this conductor ran.
    pub(crate) fn steady_since() -> Option<Timestamp> {
        Timestamp::from_microsecond(SET.load(Ordering::Relaxed)).ok()
    }

    #[cfg(not(debug_assertions))]
    fn shown() -> Timestamp {
        Timestamp::now()
    }

    /// As the environment has it wrong.
    #[cfg(debug_assertions)]
    fn shown() -> Timestamp {
        static FILE: OnceLock<Option<std::path::PathBuf>> = OnceLock::new();
        let now = Timestamp::now();
        let file = FILE.get_or_init(|| std::env::var_os("FERRITE_CLOCK").map(Into::into));
        let seconds = file.as_ref().and_then(|file| {
            let text = std::fs::read_to_string(file).ok()?;
            text.trim().parse().ok()
        });
        let wrong = jiff::SignedDuration::from_secs(seconds.unwrap_or(0));
        now.checked_add(wrong).unwrap_or(now)
    }
}

#[cfg(test)]
pub(crate) use simulated::{now, steady_since};

/// A test's own clock, for the thread that the test runs on.
#[cfg(test)]
pub(crate) mod simulated {
    use std::cell::Cell;

    use jiff::{SignedDuration, Timestamp};

    thread_local! {
        static SET: Cell<Option<(Timestamp, tokio::time::Instant)>> = const { Cell::new(None) };
    }

    /// The time: the system's, unless this thread's clock was set.
    pub(crate) fn now() -> Timestamp {
        SET.get().map_or_else(Timestamp::now, |(base, since)| {
            let passed = SignedDuration::try_from(since.elapsed()).unwrap_or(SignedDuration::MAX);
            base.checked_add(passed).unwrap_or(Timestamp::MAX)
        })
    }

    /// The simulation puts its clocks forward without telling.
    pub(crate) fn steady_since() -> Option<Timestamp> {
        None
    }

    /// Sets this thread's clock; from here on it goes with tokio's, which a test may pause.
    pub(crate) fn set(to: Timestamp) {
        SET.set(Some((to, tokio::time::Instant::now())));
    }
}
