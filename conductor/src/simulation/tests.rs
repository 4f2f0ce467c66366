//! The seeds, and that they find what they should.

use std::ops::RangeInclusive;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::{Plan, Run, run};
use crate::crash;
use crate::guard::Guard;

/// Lines of a transcript that are shown.
const SHOWN: usize = 400;
/// Seeds that fail, after which no more are looked for.
const FAILURES: usize = 30;

fn told(seed: u64, run: &Run) -> String {
    let last = run.transcript.len().saturating_sub(SHOWN);
    let lines = run.transcript[last..].join("\n");
    let violation = run.violation.as_deref().unwrap_or_default();
    format!("{lines}\n\nseed {seed}: {violation}\nreplay with: make simulate SEED={seed}")
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// The seeds of this run: `SEED=n` is one, `SEEDS=n` are so many, else a hundred.
fn seeds() -> RangeInclusive<u64> {
    let first = number("FIRST").unwrap_or(1);
    match (number("SEED"), number("SEEDS")) {
        (Some(seed), _) => seed..=seed,
        (None, Some(count)) => first..=first + count - 1,
        (None, None) => first..=first + 99,
    }
}

#[test]
fn the_straight_way() {
    let run = run(Plan {
        calm: true,
        ..Plan::default()
    });
    assert!(run.violation.is_none(), "{}", told(0, &run));
}

/// Killed once at any point that this run passes, the conductor goes on all the same. The real one
/// is killed at every point by the tests' `kills`.
#[test]
fn the_straight_way_with_a_kill_at_any_point() {
    let calm = Plan {
        calm: true,
        ..Plan::default()
    };
    let passed = run(calm).points;
    let mut killed = 0;
    for (work, moment) in crash::POINTS {
        let name = crash::name(*work, *moment);
        if passed.contains(&name) {
            let run = run(Plan {
                kill_at: Some((*work, *moment)),
                ..calm
            });
            assert!(run.violation.is_none(), "{name}: {}", told(0, &run));
            killed += 1;
        }
    }
    assert!(killed >= 20, "only {killed} points are passed");
}

/// Runs the seeds on every core; gives those that failed and the simulated time of all hosts.
fn run_all(seeds: RangeInclusive<u64>, without: Option<Guard>) -> (Vec<(u64, Run)>, f64) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicU64::new(*seeds.start());
    let found = Mutex::new((Vec::new(), 0.0));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let most = without.map_or(FAILURES, |_| 1);
                    let enough = found.lock().unwrap().0.len() >= most;
                    if !seeds.contains(&seed) || enough {
                        return;
                    }
                    let run = run(Plan {
                        seed,
                        without,
                        ..Plan::default()
                    });
                    let mut found = found.lock().unwrap();
                    found.1 += run.passed.as_secs_f64() * f64::from(run.hosts);
                    if run.violation.is_some() {
                        found.0.push((seed, run));
                    }
                }
            });
        }
    });
    let (mut failed, seconds) = found.into_inner().unwrap();
    failed.sort_by_key(|(seed, _)| *seed);
    (failed, seconds)
}

/// Whatever goes wrong, nothing happens that must not, and every host ends as wanted.
#[test]
fn nothing_that_must_not_happen_does() {
    let (began, seeds) = (Instant::now(), seeds());
    let (failed, seconds) = run_all(seeds.clone(), None);
    let (took, days) = (began.elapsed().as_secs_f64(), seconds / 86_400.0);
    let count = f64::from(u32::try_from(seeds.count()).unwrap());
    let (rate, speed) = (count / took, days * 60.0 / took);
    eprintln!("{count} seeds in {took:.1} s: {rate:.1} seeds/s");
    eprintln!("{days:.1} days of hosts: {speed:.0} a minute");
    for (seed, run) in &failed {
        let violation = run.violation.as_deref().unwrap_or_default();
        eprintln!("seed {seed}: {violation}");
    }
    if let Some((seed, run)) = failed.first() {
        panic!("{}", told(*seed, run));
    }
}

/// The same seed gives the same run, line by line.
#[test]
fn a_seed_replays_exactly() {
    for seed in [3, 7] {
        let plan = Plan {
            seed,
            ..Plan::default()
        };
        let (one, other) = (run(plan), run(plan));
        assert!(one.transcript.len() > 100);
        for (one, other) in one.transcript.iter().zip(&other.transcript) {
            assert_eq!(one, other);
        }
        assert_eq!(one.transcript.len(), other.transcript.len());
    }
}

/// Without any one guard, a seed among a hundred finds what it kept from happening. `GUARD=Name`
/// takes that one alone.
#[test]
fn each_guard_is_missed() {
    let most = number("GUARD_SEEDS").unwrap_or(100);
    let only = std::env::var("GUARD").ok();
    let mut unmissed = Vec::new();
    for guard in Guard::ALL {
        let name = format!("{guard:?}");
        if only.as_ref().is_some_and(|only| *only != name) {
            continue;
        }
        let (found, _) = run_all(1..=most, Some(*guard));
        if let Some((seed, run)) = found.first() {
            let violation = run.violation.as_deref().unwrap_or_default();
            eprintln!("{name:<28} seed {seed:>3}: {violation}");
        } else {
            eprintln!("{name:<28} NOT MISSED in {most} seeds");
            unmissed.push(name);
        }
    }
    assert!(unmissed.is_empty(), "{unmissed:?}");
}
