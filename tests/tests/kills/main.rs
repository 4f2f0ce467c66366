//! A real conductor is killed at each named point of every workflow and started again: whatever
//! was wanted is reached without a human, nothing is done twice, nothing acknowledged is lost.
//!
//! The points come from the binary itself, and which workflow passes which from going through all
//! of them once. Short by default: as many points as fit into a minute, spread over all;
//! `FERRITE_LONG=1` takes each, and fails when one is never reached.

mod first;
mod hook;
mod lane;
mod office;
mod person;
mod stages;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use lane::{Lane, Round};
use stages::{Rest, Stage};

/// How long the short form goes on killing.
const SHORT: Duration = Duration::from_secs(40);
/// Workflows of the short form: what every host goes through.
const MAIN: [Stage; 4] = [
    Stage::Enrol,
    Stage::Provision,
    Stage::Deprovision,
    Stage::Delete,
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_point_a_conductor_goes_on() -> Result<()> {
    let long = std::env::var_os("FERRITE_LONG").is_some();
    let lane = Lane::start().await?;
    let stages = if long { &Stage::ALL[..] } else { &MAIN[..] };
    let first = first::survey().await?;
    let mut matrix = survey(&lane, stages).await?;
    say(&format!(
        "{} points are known; {} are passed by {} workflows, {} by a first start",
        first.known.len(),
        matrix.passing.len(),
        stages.len(),
        first.passed.len()
    ));
    let started = Instant::now();
    for point in first.passed.iter().take(if long { usize::MAX } else { 2 }) {
        matrix.rounds.push(first::round(point).await?);
    }
    while let Some((stage, point)) = matrix.next() {
        if !long && started.elapsed() > SHORT {
            break;
        }
        for step in matrix.way_to(stage.from()) {
            lane.walk(step).await?;
        }
        let round = lane.round(stage, &point).await?;
        matrix.done(stage, point, round);
    }
    lane.finish().await?;
    say(&matrix.table());
    if long {
        let never: BTreeSet<_> = first.known.difference(&matrix.died()).cloned().collect();
        ensure!(never.is_empty(), "never reached: {never:?}");
        ensure!(
            matrix.rounds.len() >= 60,
            "only {} points",
            matrix.rounds.len()
        );
    } else {
        ensure!(
            matrix.rounds.len() >= 5,
            "only {} points",
            matrix.rounds.len()
        );
    }
    Ok(())
}

/// Which workflow passes which point.
async fn survey(lane: &Lane, stages: &[Stage]) -> Result<Matrix> {
    let mut matrix = Matrix::default();
    for stage in stages {
        for step in matrix.way_to(stage.from()) {
            lane.walk(step).await?;
        }
        let passed = lane.survey(*stage).await?;
        for point in passed {
            matrix.passing.entry(point).or_default().push(*stage);
        }
        matrix.at = stage.to();
    }
    matrix.spread();
    Ok(matrix)
}

/// What is left to kill, and what came of it.
#[derive(Default)]
struct Matrix {
    /// Workflows that pass a point and were not tried yet.
    passing: BTreeMap<String, Vec<Stage>>,
    /// The order in which points are taken.
    order: VecDeque<String>,
    at: Rest,
    rounds: Vec<Round>,
}

impl Matrix {
    /// From many places at first, so that a few of them are a spread of all.
    fn spread(&mut self) {
        let all: Vec<_> = self.passing.keys().cloned().collect();
        let stride = 7;
        for first in 0..stride {
            self.order
                .extend(all.iter().skip(first).step_by(stride).cloned());
        }
    }

    /// The next point: one that can be reached from where the host rests, if there is one.
    fn next(&mut self) -> Option<(Stage, String)> {
        let here = self.order.iter().position(|point| {
            let stages = self.passing.get(point);
            stages.is_some_and(|stages| stages.iter().any(|stage| stage.from() == self.at))
        });
        let point = self.order.remove(here.unwrap_or(0))?;
        let stages = self.passing.get(&point)?;
        let near = stages.iter().find(|stage| stage.from() == self.at);
        let stage = *near.or_else(|| stages.first())?;
        Some((stage, point))
    }

    /// Workflows that lead to a rest.
    fn way_to(&mut self, to: Rest) -> Vec<Stage> {
        let way = match (self.at, to) {
            (Rest::Absent, Rest::Available) => vec![Stage::Enrol],
            (Rest::Absent, Rest::Provisioned) => vec![Stage::Enrol, Stage::Provision],
            (Rest::Available, Rest::Absent) => vec![Stage::Delete],
            (Rest::Available, Rest::Provisioned) => vec![Stage::Provision],
            (Rest::Provisioned, Rest::Absent) => vec![Stage::Deprovision, Stage::Delete],
            (Rest::Provisioned, Rest::Available) => vec![Stage::Deprovision],
            (Rest::Absent, Rest::Absent)
            | (Rest::Available, Rest::Available)
            | (Rest::Provisioned, Rest::Provisioned) => Vec::new(),
        };
        self.at = to;
        way
    }

    /// A point that was not reached this time is tried in another workflow.
    fn done(&mut self, stage: Stage, point: String, round: Option<Round>) {
        self.at = stage.to();
        if let Some(round) = round {
            self.rounds.push(round);
            return;
        }
        let left = self.passing.entry(point.clone()).or_default();
        left.retain(|tried| *tried != stage);
        if !left.is_empty() {
            self.order.push_back(point);
        }
    }

    fn died(&self) -> BTreeSet<String> {
        let points = self.rounds.iter().map(|round| round.point.clone());
        points.collect()
    }

    fn table(&self) -> String {
        let mut table = format!(
            "killed at {} points\n{:<34} {:<13} {:>9} {:>12} {:>6}\n",
            self.rounds.len(),
            "point",
            "workflow",
            "to death",
            "to recovered",
            "boots"
        );
        for round in &self.rounds {
            let _ = writeln!(
                table,
                "{:<34} {:<13} {:>7.2} s {:>10.2} s {:>6}",
                round.point,
                round.workflow,
                round.death.as_secs_f64(),
                round.recovered.as_secs_f64(),
                round.boots
            );
        }
        let mut took: Vec<_> = self.rounds.iter().map(|round| round.recovered).collect();
        took.sort_unstable();
        if let (Some(median), Some(last)) = (took.get(took.len() / 2), took.last()) {
            let _ = writeln!(table, "recovered: median {median:.1?}, longest {last:.1?}");
        }
        table
    }
}

fn say(what: &str) {
    let _ = writeln!(std::io::stderr(), "kills: {what}");
}
