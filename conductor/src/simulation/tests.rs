//! The seeds, and that they find what they should.

use std::ops::RangeInclusive;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::{Plan, Run, run};
use crate::crash;
use crate::guard::Guard;

/// Lines of a transcript that are shown.
const SHOWN: usize = 400;
/// Seeds that fail, after which no more are looked for.
const FAILURES: usize = 30;
/// Seeds that together pass the points of every workflow.
const KILL_SEEDS: u64 = 30;

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

/// Runs the plans on every core; gives what came of each that was begun, in their order. None is
/// begun once there are enough failures.
fn run_all(plans: Vec<Plan>, enough: usize) -> Vec<(Plan, Run)> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let plans = Mutex::new(plans.into_iter().enumerate());
    let found = Mutex::new(Vec::new());
    let failures = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while failures.load(Ordering::Relaxed) < enough {
                    let next = plans.lock().unwrap().next();
                    let Some((place, plan)) = next else { return };
                    let run = run(plan);
                    failures.fetch_add(run.violation.iter().len(), Ordering::Relaxed);
                    found.lock().unwrap().push((place, plan, run));
                }
            });
        }
    });
    let mut found = found.into_inner().unwrap();
    found.sort_by_key(|(place, ..)| *place);
    found
        .into_iter()
        .map(|(_, plan, run)| (plan, run))
        .collect()
}

fn plans(seeds: RangeInclusive<u64>, without: Option<Guard>) -> Vec<Plan> {
    let plan = |seed| Plan {
        seed,
        without,
        ..Plan::default()
    };
    seeds.map(plan).collect()
}

/// Whatever goes wrong, nothing happens that must not, and every host ends as wanted.
#[test]
fn nothing_that_must_not_happen_does() {
    let (began, seeds) = (Instant::now(), seeds());
    let runs = run_all(plans(seeds, None), FAILURES);
    let hosts = |(_, run): &(Plan, Run)| run.passed.as_secs_f64() * f64::from(run.hosts);
    let (took, days) = (
        began.elapsed().as_secs_f64(),
        runs.iter().map(hosts).sum::<f64>() / 86_400.0,
    );
    let count = f64::from(u32::try_from(runs.len()).unwrap());
    let (rate, speed) = (count / took, days * 60.0 / took);
    eprintln!("{count} seeds in {took:.1} s: {rate:.1} seeds/s");
    eprintln!("{days:.1} days of hosts: {speed:.0} a minute");
    let failed = runs.iter().filter(|(_, run)| run.violation.is_some());
    let failed: Vec<_> = failed.map(|(plan, run)| (plan.seed, run)).collect();
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
        let runs = run_all(plans(1..=most, Some(*guard)), 1);
        let found = runs.iter().find(|(_, run)| run.violation.is_some());
        if let Some((Plan { seed, .. }, run)) = found {
            let violation = run.violation.as_deref().unwrap_or_default();
            eprintln!("{name:<28} seed {seed:>3}: {violation}");
        } else {
            eprintln!("{name:<28} NOT MISSED in {most} seeds");
            unmissed.push(name);
        }
    }
    assert!(unmissed.is_empty(), "{unmissed:?}");
}

/// Killed once at any point that the seeds pass, and started again, the conductor does nothing
/// twice and ends all. The real one is killed at every point by the tests' `kills`.
#[test]
fn the_conductor_is_killed_at_each_point() {
    let runs = run_all(plans(1..=KILL_SEEDS, None), 1);
    let kills = crash::POINTS.iter().filter_map(|point| {
        let name = crash::name(point.0, point.1);
        let (plan, _) = runs.iter().find(|(_, run)| run.points.contains(&name))?;
        Some(Plan {
            kill_at: Some(*point),
            ..*plan
        })
    });
    let kills: Vec<_> = kills.collect();
    assert!(kills.len() >= 130, "only {} points are passed", kills.len());
    eprintln!("killed at {} points", kills.len());
    for (plan, run) in run_all(kills, 1) {
        let (work, moment) = plan.kill_at.expect("each of these has one");
        let name = crash::name(work, moment);
        let killed = format!("is killed at {name}");
        assert!(run.violation.is_none(), "{name}: {}", told(plan.seed, &run));
        assert!(run.transcript.iter().any(|line| line.ends_with(&killed)));
    }
}
