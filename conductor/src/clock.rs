//! The one place that tells the time, so that the simulation can run days in a second, and jump.
//!
//! Deadlines of a host are compared with this wall clock, as they are stored; how long a task
//! sleeps is tokio's clock.

/// The time.
#[cfg(not(test))]
pub(crate) fn now() -> jiff::Timestamp {
    jiff::Timestamp::now()
}

#[cfg(test)]
pub(crate) use simulated::now;

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

    /// Sets this thread's clock; from here on it goes with tokio's, which a test may pause.
    pub(crate) fn set(to: Timestamp) {
        SET.set(Some((to, tokio::time::Instant::now())));
    }
}
