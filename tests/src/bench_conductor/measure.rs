//! Measuring from outside: latencies, rates, and what a process costs meanwhile.

use std::time::{Duration, Instant};

use anyhow::Result;
use futures_util::StreamExt;
use serde::Serialize;

/// Latencies of calls.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct Latency {
    /// Calls.
    pub(super) calls: usize,
    /// Half of them took at most so long, milliseconds.
    pub(super) p50_ms: f64,
    /// 99 of 100.
    pub(super) p99_ms: f64,
    /// All.
    pub(super) worst_ms: f64,
}

impl Latency {
    /// Of what each call took.
    pub(super) fn of(mut took: Vec<Duration>) -> Self {
        took.sort_unstable();
        let at = |share: usize| {
            let index = (took.len() * share).div_ceil(100).saturating_sub(1);
            took.get(index).map_or(0.0, |took| millis(*took))
        };
        Self {
            calls: took.len(),
            p50_ms: at(50),
            p99_ms: at(99),
            worst_ms: at(100),
        }
    }
}

/// In milliseconds.
pub(super) fn millis(took: Duration) -> f64 {
    took.as_secs_f64() * 1e3
}

/// So many in so long, a second.
pub(super) fn rate(count: usize, took: Duration) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let count = count as f64;
    count / took.as_secs_f64().max(1e-9)
}

/// Bytes in MiB.
pub(super) fn mib(bytes: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let bytes = bytes as f64;
    bytes / f64::from(1 << 20)
}

/// Makes the same call again and again, one after the other.
pub(super) async fn repeat<F: Future<Output = Result<()>>>(
    times: usize,
    call: impl Fn() -> F,
) -> Result<Latency> {
    let mut took = Vec::with_capacity(times);
    for _ in 0..times {
        let started = Instant::now();
        call().await?;
        took.push(started.elapsed());
    }
    Ok(Latency::of(took))
}

/// Calls that go on side by side until the time is over.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct Flood {
    /// Calls at once.
    pub(super) at_once: usize,
    /// Answered well, a second.
    pub(super) per_second: f64,
    /// Not answered well.
    pub(super) failed: usize,
    /// Of those that were answered.
    pub(super) latency: Latency,
}

/// Lets `at_once` callers make call after call for so long. `call` is told which caller it is, and
/// the how-manieth of its calls.
pub(super) async fn flood<F: Future<Output = Result<()>>>(
    at_once: usize,
    long: Duration,
    call: impl Fn(usize, usize) -> F,
) -> Flood {
    let started = Instant::now();
    let callers = (0..at_once).map(|caller| {
        let call = &call;
        async move {
            let (mut took, mut failed) = (Vec::new(), 0);
            for turn in 0.. {
                if started.elapsed() >= long {
                    break;
                }
                let before = Instant::now();
                match call(caller, turn).await {
                    Ok(()) => took.push(before.elapsed()),
                    Err(error) => {
                        if failed == 0 {
                            tracing::warn!("a call failed: {error:#}");
                        }
                        failed += 1;
                    }
                }
            }
            (took, failed)
        }
    });
    let done: Vec<_> = futures_util::stream::iter(callers)
        .buffer_unordered(at_once.max(1))
        .collect()
        .await;
    let elapsed = started.elapsed();
    let failed = done.iter().map(|(_, failed)| failed).sum();
    let took: Vec<_> = done.into_iter().flat_map(|(took, _)| took).collect();
    Flood {
        at_once,
        per_second: rate(took.len(), elapsed),
        failed,
        latency: Latency::of(took),
    }
}

/// Share of one processor that was used between two readings, in percent.
pub(super) fn share(before: Duration, after: Duration, long: Duration) -> f64 {
    100.0 * after.saturating_sub(before).as_secs_f64() / long.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_calls_are_those_of_the_sorted_list() {
        let took = (1..=200).rev().map(Duration::from_millis).collect();
        let latency = Latency::of(took);
        let near = |a: f64, b: f64| (a - b).abs() < 1e-6;
        assert!(near(latency.p50_ms, 100.0), "{latency:?}");
        assert!(near(latency.p99_ms, 198.0), "{latency:?}");
        assert!(near(latency.worst_ms, 200.0), "{latency:?}");
        assert_eq!(Latency::of(Vec::new()).calls, 0);
    }

    #[tokio::test]
    async fn a_flood_counts_what_was_answered_and_what_was_not() {
        let long = Duration::from_millis(50);
        let flood = flood(2, long, |caller, _| async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            anyhow::ensure!(caller == 0, "no");
            Ok(())
        })
        .await;
        assert!(flood.failed > 0 && flood.latency.calls > 0, "{flood:?}");
    }
}
