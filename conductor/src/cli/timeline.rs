//! Where the seconds went, as a waterfall: of one run of a host, or as percentiles of all hosts.
//! Pure: values in, text out.

use std::fmt::Write;

use comfy_table::{CellAlignment, Table};
use ferrite_proto::api::{FleetTimeline, KindTimeline, Timeline};
use ferrite_proto::host::{Run, Stage};
use jiff::Timestamp;

use super::show::{amount, clock, lines, new_table};

/// Columns of the longest bar.
const WIDTH: f64 = 40.0;

/// One run of a host, by its number from the newest, 1; and which others there are.
pub(crate) fn of_host(
    timeline: &Timeline,
    number: usize,
    now: Timestamp,
) -> anyhow::Result<String> {
    let count = timeline.runs.len();
    let Some(run) = count
        .checked_sub(number)
        .and_then(|at| timeline.runs.get(at))
    else {
        anyhow::bail!("there are {count} runs, numbered from the newest, 1: no run {number}");
    };
    let mut text = waterfall(run, now);
    let others = timeline.runs.iter().rev().enumerate();
    for (at, other) in others.filter(|(at, _)| at + 1 != number) {
        let (at, head) = (at + 1, head(other, now));
        let _ = writeln!(text, "--run {at}: {head}");
    }
    Ok(text)
}

/// The newest run; nothing where there is none.
pub(crate) fn newest(timeline: &Timeline, now: Timestamp) -> String {
    let newest = timeline.runs.last();
    newest.map(|run| waterfall(run, now)).unwrap_or_default()
}

fn head(run: &Run, now: Timestamp) -> String {
    let seconds = seconds_between(run.started, run.ended.unwrap_or(now));
    let boots = run.stages.iter().filter(|stage| stage.name == "firmware");
    let outcome = match (&run.ended, &run.outcome) {
        (None, _) => "under way",
        (Some(_), Some(outcome)) => outcome,
        (Some(_), None) => "ended",
    };
    let (kind, started, boots) = (&run.kind, clock(run.started), boots.count());
    format!("{kind} at {started}: {outcome}, {seconds:.1} s, firmware boots: {boots}")
}

fn waterfall(run: &Run, now: Timestamp) -> String {
    let whole = seconds_between(run.started, run.ended.unwrap_or(now)).max(0.001);
    let mut table = new_table(&["STAGE", "SECONDS", "BYTES", "", "DETAIL"]);
    to_the_right(&mut table, &[1, 2]);
    for stage in &run.stages {
        let seconds = stage.seconds.map_or("-".to_owned(), |s| format!("{s:.1}"));
        table.add_row([
            stage.name.clone(),
            seconds,
            stage.bytes.map(amount).unwrap_or_default(),
            bar(run, stage, whole, now),
            stage.detail.clone().unwrap_or_default(),
        ]);
    }
    format!("{}\n{}", head(run, now), lines(&table))
}

/// As long as the stage took, where it was; at least one column, so that none is lost.
fn bar(run: &Run, stage: &Stage, whole: f64, now: Timestamp) -> String {
    let running = || seconds_between(stage.started, run.ended.unwrap_or(now));
    let took = stage.seconds.unwrap_or_else(running);
    let indent = columns(seconds_between(run.started, stage.started) / whole);
    let (indent, took) = (indent.min(39), columns(took / whole).max(1));
    format!("{:indent$}{:█<took$}", "", "")
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to 0..=40"
)]
fn columns(part: f64) -> usize {
    (part * WIDTH).round().clamp(0.0, WIDTH) as usize
}

fn seconds_between(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64()
}

fn to_the_right(table: &mut Table, columns: &[usize]) {
    for column in columns {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

/// Percentiles of all hosts.
pub(crate) fn of_fleet(fleet: &FleetTimeline) -> String {
    let mut text = format!("runs that ended since {}\n", clock(fleet.since));
    if !fleet.complete {
        text.push_str("only the last 5000 of them; ask with a later --since\n");
    }
    if fleet.kinds.is_empty() {
        text.push_str("none\n");
    }
    for kind in &fleet.kinds {
        let _ = write!(text, "\n{}", of_kind(kind));
    }
    text
}

fn of_kind(kind: &KindTimeline) -> String {
    let mut table = new_table(&["STAGE", "COUNT", "P50", "P90", "P99", "MAX"]);
    to_the_right(&mut table, &[1, 2, 3, 4, 5]);
    let stages = kind.stages.iter();
    let rows = stages.map(|stage| (stage.name.as_str(), stage.count, stage.seconds));
    let whole = ("whole run", kind.runs, kind.seconds);
    for (name, count, seconds) in rows.chain([whole]) {
        let spread = [seconds.p50, seconds.p90, seconds.p99, seconds.max];
        let cells = [name.to_owned(), count.to_string()].into_iter();
        table.add_row(cells.chain(spread.map(|s| format!("{s:.1}"))));
    }
    format!("{}\n{}", kind.kind, lines(&table))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn timeline() -> Timeline {
        let stage = |name: &str, second: i64, seconds: Option<f64>| {
            let started = at(second);
            json!({"name": name, "started": started, "seconds": seconds})
        };
        let runs = json!({"runs": [
            {"host": "n", "kind": "enrol", "started": at(0), "ended": at(50),
             "outcome": "available", "stages": [stage("firmware", 0, Some(50.0))]},
            {"host": "n", "kind": "deploy", "started": at(100), "stages": [
                stage("write-image", 100, Some(30.0)), stage("boot", 130, None)]},
        ]});
        serde_json::from_value(runs).unwrap()
    }

    #[test]
    fn the_newest_run_is_drawn_and_the_others_are_named() {
        let text = of_host(&timeline(), 1, at(140)).unwrap();
        let lines: Vec<_> = text.lines().map(str::trim_end).collect();
        let (first, second) = ("█".repeat(30), "█".repeat(10));
        assert_eq!(
            lines,
            [
                "deploy at 1970-01-01 00:01:40: under way, 40.0 s, firmware boots: 0".to_owned(),
                format!(" STAGE        SECONDS  BYTES  {:40}  DETAIL", ""),
                format!(" write-image     30.0         {first}"),
                format!(" boot               -         {:30}{second}", ""),
                "--run 2: enrol at 1970-01-01 00:00:00: available, 50.0 s, firmware boots: 1"
                    .to_owned(),
            ]
        );
        let older = of_host(&timeline(), 2, at(140)).unwrap();
        assert!(older.starts_with("enrol at"), "{older}");
        assert!(of_host(&timeline(), 3, at(140)).is_err());
        assert!(of_host(&timeline(), 0, at(140)).is_err());
    }

    #[test]
    fn a_fleet_is_told_by_kind() {
        let spread = json!({"p50": 1.0, "p90": 2.0, "p99": 3.0, "max": 4.0});
        let fleet = json!({"since": at(0), "complete": true, "kinds": [{
            "kind": "deploy", "runs": 7, "seconds": spread,
            "stages": [{"name": "firmware", "count": 8, "seconds": spread}],
        }]});
        let text = of_fleet(&serde_json::from_value(fleet).unwrap());
        assert_eq!(
            text,
            "runs that ended since 1970-01-01 00:00:00\n\ndeploy\n \
             STAGE      COUNT  P50  P90  P99  MAX\n \
             firmware       8  1.0  2.0  3.0  4.0\n \
             whole run      7  1.0  2.0  3.0  4.0\n"
        );
    }
}
