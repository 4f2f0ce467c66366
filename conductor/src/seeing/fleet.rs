//! Where the seconds of all hosts went: percentiles of every stage, by kind of run.
//!
//! Pure. Not here: where runs are kept, nor who may see which.

use std::collections::BTreeMap;

use ferrite_proto::api::{KindTimeline, Spread, StageSpread};
use ferrite_proto::host::Run;

/// What is known of a stage: when it began in its runs, and how long it took.
#[derive(Debug, Default)]
struct Seen {
    offsets: Vec<f64>,
    seconds: Vec<f64>,
}

/// Percentiles of the runs that ended, by kind.
pub(crate) fn percentiles(runs: &[Run]) -> Vec<KindTimeline> {
    let mut kinds: BTreeMap<&str, Vec<&Run>> = BTreeMap::new();
    for run in runs.iter().filter(|run| run.ended.is_some()) {
        kinds.entry(&run.kind).or_default().push(run);
    }
    let kinds = kinds.into_iter();
    kinds
        .filter_map(|(kind, runs)| of_kind(kind, &runs))
        .collect()
}

fn of_kind(kind: &str, runs: &[&Run]) -> Option<KindTimeline> {
    let took = |run: &&Run| Some(run.ended?.duration_since(run.started).as_secs_f64());
    Some(KindTimeline {
        kind: kind.to_owned(),
        runs: runs.len(),
        seconds: spread(runs.iter().filter_map(took).collect())?,
        stages: stages(runs),
    })
}

fn stages(runs: &[&Run]) -> Vec<StageSpread> {
    let mut seen: BTreeMap<&str, Seen> = BTreeMap::new();
    for run in runs {
        for stage in &run.stages {
            let Some(seconds) = stage.seconds else {
                continue;
            };
            let seen = seen.entry(&stage.name).or_default();
            let offset = stage.started.duration_since(run.started).as_secs_f64();
            seen.offsets.push(offset);
            seen.seconds.push(seconds);
        }
    }
    let of = |(name, seen): (&str, Seen)| {
        let begins = spread(seen.offsets)?.p50;
        let stage = StageSpread {
            name: name.to_owned(),
            count: seen.seconds.len(),
            seconds: spread(seen.seconds)?,
        };
        Some((begins, stage))
    };
    let mut all: Vec<_> = seen.into_iter().filter_map(of).collect();
    all.sort_by(|(one, _), (other, _)| one.total_cmp(other));
    all.into_iter().map(|(_, stage)| stage).collect()
}

/// `None` for nothing at all.
fn spread(mut seconds: Vec<f64>) -> Option<Spread> {
    seconds.sort_by(f64::total_cmp);
    let rank = |percent: usize| {
        let place = (seconds.len() * percent).div_ceil(100);
        seconds.get(place.saturating_sub(1)).copied()
    };
    Some(Spread {
        p50: rank(50)?,
        p90: rank(90)?,
        p99: rank(99)?,
        max: rank(100)?,
    })
}

#[cfg(test)]
mod tests {
    use ferrite_proto::host::Stage;
    use jiff::Timestamp;

    use super::*;

    fn run(kind: &str, stages: &[(&str, i64, Option<f64>)], took: Option<i64>) -> Run {
        let at = |second: i64| Timestamp::from_second(1000 + second).unwrap();
        let stage = |(name, begins, seconds): &(&str, i64, Option<f64>)| Stage {
            name: (*name).to_owned(),
            started: at(*begins),
            seconds: *seconds,
            bytes: None,
            detail: None,
        };
        Run {
            host: "n".into(),
            kind: kind.into(),
            started: at(0),
            ended: took.map(at),
            outcome: None,
            stages: stages.iter().map(stage).collect(),
        }
    }

    fn told(spread: &Spread) -> String {
        let Spread { p50, p90, p99, max } = spread;
        format!("{p50} {p90} {p99} {max}")
    }

    #[test]
    fn a_percentile_is_a_time_that_was_seen() {
        let hundred = (1..=100).map(f64::from).collect();
        let of_hundred = spread(hundred).unwrap();
        assert_eq!(told(&of_hundred), "50 90 99 100");
        assert_eq!(told(&spread(vec![7.0]).unwrap()), "7 7 7 7");
        assert!(spread(Vec::new()).is_none());
    }

    #[test]
    fn stages_come_in_their_usual_order_and_what_runs_is_left_out() {
        let quick = [("write-image", 30, Some(10.0)), ("firmware", 0, Some(20.0))];
        let slow = [("firmware", 0, Some(40.0)), ("write-image", 50, None)];
        let runs = [
            run("deploy", &quick, Some(40)),
            run("deploy", &slow, Some(90)),
            run("deploy", &quick, None),
            run("clean", &[], Some(5)),
        ];
        let kinds = percentiles(&runs);
        let names: Vec<_> = kinds.iter().map(|k| (k.kind.as_str(), k.runs)).collect();
        assert_eq!(names, [("clean", 1), ("deploy", 2)]);
        let deploy = &kinds[1];
        assert_eq!(told(&deploy.seconds), "40 90 90 90");
        let names: Vec<_> = deploy
            .stages
            .iter()
            .map(|s| (s.name.as_str(), s.count))
            .collect();
        assert_eq!(names, [("firmware", 2), ("write-image", 1)]);
    }
}
