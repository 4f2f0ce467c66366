//! The figures as a person reads them: what is expected, what was measured, the peer's, and by how
//! much ours is better. Rows that are lost are shown like the others.

use std::io::Write;

use anyhow::Result;

use super::ours::Size;
use super::{Report, ironic, ours};

/// Percent of the machine that others may use without a word about it.
const QUIET: f64 = 10.0;

/// A line of the table.
#[derive(Debug, Default)]
struct Row {
    what: String,
    unit: &'static str,
    ours: Option<f64>,
    peer: Option<f64>,
    /// Less is better.
    cost: bool,
    /// What is expected of ours: at most this of a cost, at least this of a rate.
    goal: Option<f64>,
    /// How many times better than the peer is expected.
    times: Option<f64>,
}

impl Row {
    fn cost(what: impl Into<String>, unit: &'static str, ours: Option<f64>) -> Self {
        Self {
            what: what.into(),
            unit,
            ours,
            cost: true,
            ..Self::default()
        }
    }

    fn gain(what: impl Into<String>, unit: &'static str, ours: Option<f64>) -> Self {
        Self {
            cost: false,
            ..Self::cost(what, unit, ours)
        }
    }

    fn goal(self, goal: f64) -> Self {
        let goal = Some(goal);
        Self { goal, ..self }
    }

    fn peer(self, peer: Option<f64>) -> Self {
        Self { peer, ..self }
    }

    fn times(self, times: f64) -> Self {
        let times = Some(times);
        Self { times, ..self }
    }

    /// By how much ours is better than the peer's.
    fn ratio(&self) -> Option<f64> {
        let (ours, peer) = self.ours.zip(self.peer)?;
        let (better, worse) = if self.cost {
            (peer, ours)
        } else {
            (ours, peer)
        };
        (worse > 0.0).then(|| better / worse)
    }

    /// Whether what is expected is met; `None` when nothing is, or nothing was measured.
    fn met(&self) -> Option<bool> {
        let ours = self.ours?;
        let within = |goal: f64| {
            if self.cost {
                ours <= goal
            } else {
                ours >= goal
            }
        };
        let by_goal = self.goal.map(within);
        let by_ratio = self.times.and_then(|times| Some(self.ratio()? >= times));
        match (by_goal, by_ratio) {
            (None, None) => None,
            (a, b) => Some(a.unwrap_or(true) && b.unwrap_or(true)),
        }
    }

    fn expected(&self) -> String {
        let sign = if self.cost { "≤" } else { "≥" };
        let goal = self.goal.map(|goal| format!("{sign} {goal}"));
        let times = self.times.map(|times| format!("≥ {times} ×"));
        let all: Vec<_> = goal.into_iter().chain(times).collect();
        all.join(", ")
    }
}

/// Prints everything.
pub(super) fn print(report: &Report, out: &mut dyn Write) -> Result<()> {
    let (ours, peer) = (report.ours.as_ref(), report.peer.as_ref());
    let peer_name = peer.map_or_else(String::new, |peer| {
        format!("Ironic {}, {} nodes", peer.version, peer.nodes)
    });
    writeln!(out, "\nOn {} cores. Peer: {peer_name}\n", report.cores)?;
    writeln!(
        out,
        "{:44} {:>11} {:>11} {:>9}  {:<16} met",
        "", "Ferrite", "Ironic", "ratio", "expected"
    )?;
    for row in rows(ours, peer) {
        let figure = |figure: Option<f64>| figure.map_or_else(|| "-".to_owned(), shown);
        writeln!(
            out,
            "{:44} {:>11} {:>11} {:>9}  {:<16} {}",
            format!("{} ({})", row.what, row.unit),
            figure(row.ours),
            figure(row.peer),
            row.ratio()
                .map_or_else(|| "-".to_owned(), |r| format!("{} ×", shown(r))),
            row.expected(),
            match row.met() {
                Some(true) => "yes",
                Some(false) => "NO",
                None => "",
            }
        )?;
    }
    if let Some(ours) = ours {
        curve(ours, out)?;
        let others = ours.others_percent;
        writeln!(
            out,
            "\nothers on the machine meanwhile: {}% of its processors{}",
            shown(others),
            if others > QUIET {
                ". It was not quiet: rates, latencies and restarts are worse than they are"
            } else {
                ""
            }
        )?;
    }
    Ok(())
}

fn rows(ours: Option<&ours::Figures>, peer: Option<&ironic::Figures>) -> Vec<Row> {
    let mut rows = Vec::from(rates(ours, peer));
    rows.extend(at_first_size(
        ours.and_then(|ours| ours.sizes.first()),
        peer,
    ));
    rows.extend(
        ours.into_iter()
            .flat_map(|ours| &ours.sizes)
            .flat_map(of_size),
    );
    rows.extend(
        ours.map(|ours| deployed(&ours.deployments))
            .into_iter()
            .flatten(),
    );
    rows
}

fn rates(ours: Option<&ours::Figures>, peer: Option<&ironic::Figures>) -> [Row; 9] {
    let us = |figure: fn(&ours::Figures) -> f64| ours.map(figure);
    let them = |figure: fn(&ironic::Figures) -> f64| peer.map(figure);
    let beats = us(|f| f.heartbeats.per_second);
    let lost = us(|f| f.heartbeat_lost_seconds);
    [
        // The peer stores a node and leaves it alone until it is asked to manage it.
        Row::gain(
            "creates, 1 client, stored only",
            "1/s",
            us(|f| f.creates_stored),
        )
        .peer(them(|f| f.creates_1))
        .times(20.0),
        Row::gain(
            "creates, 1 client, and each driven",
            "1/s",
            us(|f| f.creates_1),
        )
        .peer(them(|f| f.creates_1)),
        Row::gain(
            "creates, 16 clients, and each driven",
            "1/s",
            us(|f| f.creates_16),
        )
        .peer(them(|f| f.creates_16))
        .times(20.0),
        Row::cost(
            "  processor time of one (and driving it)",
            "ms",
            us(|f| f.create_cpu_ms),
        ),
        Row::gain("heartbeats (ours are recorded)", "1/s", beats)
            .peer(them(|f| f.heartbeats.per_second))
            .times(20.0),
        Row::cost("  processor time of one", "ms", us(|f| f.heartbeat_cpu_ms)),
        Row::cost("lost of a contact by kill -9", "s", lost),
        Row::cost("resident, idle", "MiB", us(|f| f.idle_rss_mib))
            .peer(them(|f| f.idle_pss_mib))
            .goal(40.0),
        Row::cost("processor, idle", "%", us(|f| f.idle_cpu_percent)),
    ]
}

fn at_first_size(size: Option<&Size>, peer: Option<&ironic::Figures>) -> [Row; 6] {
    let us = |figure: fn(&Size) -> f64| size.map(figure);
    let them = |figure: fn(&ironic::Figures) -> f64| peer.map(figure);
    [
        Row::cost("list of 1,000, p50", "ms", us(|s| s.list.p50_ms))
            .peer(them(|f| f.list.p50_ms))
            .times(20.0),
        Row::cost("list of 1,000 in full, p50", "ms", us(|s| s.list.p50_ms))
            .peer(them(|f| f.list_detail.p50_ms)),
        Row::cost("list of 1,000, processor", "ms", us(|s| s.list_cpu_ms))
            .peer(them(|f| f.list_cpu_ms)),
        Row::cost("resident with the first size", "MiB", us(|s| s.rss_mib))
            .peer(them(|f| f.rss_mib)),
        Row::cost(
            "processor at rest, first size",
            "%",
            us(|s| s.rest_cpu_percent),
        )
        .peer(them(|f| f.rest_cpu_percent)),
        Row::cost("restart to ready, first size", "ms", us(|s| s.restart_ms))
            .peer(them(|f| f.restart_ms)),
    ]
}

fn deployed(all: &ours::Deployments) -> [Row; 4] {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let doubled = all.doubled as f64;
    let what = format!("{} deployments at once", all.hosts);
    [
        Row::cost(what, "s", Some(all.seconds)).goal(300.0),
        Row::cost(
            "  of it simulated disk and OS",
            "s",
            Some(all.simulated_seconds),
        ),
        Row::cost("  processor time", "s", Some(all.cpu_seconds)),
        Row::cost("  orders that ran twice", "", Some(doubled)).goal(0.0),
    ]
}

fn of_size(size: &Size) -> Vec<Row> {
    let of = |what: &str| format!("{} hosts: {what}", size.hosts);
    let event = size.event.map(|event| event.p99_ms);
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let silent = size.restart_silent as f64;
    vec![
        Row::gain(of("enrolments, 16 clients"), "1/s", Some(size.enrols)),
        Row::cost(of("all available"), "s", Some(size.available_seconds)),
        Row::cost(of("resident"), "MiB", Some(size.rss_mib)).goal(1000.0),
        Row::cost(of("processor at rest"), "%", Some(size.rest_cpu_percent)),
        Row::cost(of("list of 1,000, p99"), "ms", Some(size.list.p99_ms)).goal(50.0),
        Row::cost(of("change to watcher, p99"), "ms", event).goal(200.0),
        Row::cost(of("restart to ready"), "ms", Some(size.restart_ms)).goal(5000.0),
        Row::cost(
            of("  processor time of it"),
            "ms",
            Some(size.restart_cpu_ms),
        ),
        Row::cost(
            of("restart to all heard (every 30 s)"),
            "s",
            Some(size.restart_all_seconds),
        ),
        Row::cost(of("  not heard again"), "", Some(silent)).goal(0.0),
    ]
}

/// Cost per host over the sizes: flat is what is expected. Milliseconds without CPU are of the
/// clock; the others, ppm and µs are the conductor's own processor time.
fn curve(ours: &ours::Figures, out: &mut dyn Write) -> Result<()> {
    writeln!(out, "\ncost per host")?;
    writeln!(
        out,
        "{:>8} {:>13} {:>18} {:>9} {:>12} {:>12} {:>16} {:>12}",
        "hosts",
        "resident KiB",
        "processor ppm/rest",
        "calls/s",
        "list p50 ms",
        "list CPU ms",
        "to available ms",
        "restart µs"
    )?;
    for size in &ours.sizes {
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let hosts = size.hosts as f64;
        writeln!(
            out,
            "{:>8} {:>13.1} {:>18.1} {:>9.1} {:>12.1} {:>12.1} {:>16.2} {:>12.1}",
            size.hosts,
            size.rss_kib_per_host,
            size.rest_cpu_percent * 1e4 / hosts,
            size.rest_calls,
            size.list.p50_ms,
            size.list_cpu_ms,
            size.available_cpu_ms,
            size.restart_cpu_ms * 1e3 / hosts
        )?;
    }
    Ok(())
}

fn shown(figure: f64) -> String {
    if figure >= 100.0 {
        format!("{figure:.0}")
    } else if figure >= 1.0 {
        format!("{figure:.1}")
    } else {
        format!("{figure:.2}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_row_says_so() {
        let slow = Row::cost("list", "ms", Some(60.0))
            .goal(50.0)
            .peer(Some(600.0));
        assert_eq!(slow.met(), Some(false));
        assert!(
            slow.ratio()
                .is_some_and(|ratio| (ratio - 10.0).abs() < 1e-9)
        );
        let fast = Row::gain("creates", "1/s", Some(900.0))
            .peer(Some(30.0))
            .times(20.0);
        assert_eq!(fast.met(), Some(true));
        let slower = Row::gain("creates", "1/s", Some(500.0))
            .peer(Some(30.0))
            .times(20.0);
        assert_eq!(slower.met(), Some(false));
        assert_eq!(Row::cost("x", "s", None).goal(1.0).met(), None);
    }
}
