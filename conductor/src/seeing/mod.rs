//! What can be seen of the conductor from outside: figures, traces, logs, webhooks, and the bundle
//! that people send when they want help.
//!
//! It looks on and decides nothing: no host waits for it, and what it loses is only sight.

pub(crate) mod bundle;
pub(crate) mod calls;
pub(crate) mod config;
pub(crate) mod fleet;
pub(crate) mod gather;
pub(crate) mod logs;
pub(crate) mod measured;
pub(crate) mod metrics;
pub(crate) mod outlets;
mod process;
mod replica;
mod traces;
pub(crate) mod webhooks;

use std::sync::OnceLock;

use ferrite_proto::host::Run;
use jiff::Timestamp;
use tokio::sync::mpsc;

use crate::hosts::Hosts;
use crate::lifecycle::record::Limits;
use crate::store::Stored;
use gather::Place;
use logs::{AgentLines, OwnLines};
use metrics::Metrics;

/// Everything that looks on.
#[derive(Debug, Default)]
pub(crate) struct Seeing {
    /// Figures.
    pub(crate) metrics: Metrics,
    /// Lines of the agents.
    pub(crate) agent_lines: AgentLines,
    /// The conductor's own lines.
    own_lines: OnceLock<OwnLines>,
    /// What the support bundle tells of the place.
    place: OnceLock<Place>,
    /// Where runs that ended go to become traces.
    runs: OnceLock<mpsc::Sender<Run>>,
}

/// All figures of a conductor, as Prometheus reads them.
pub(crate) fn figures(hosts: &Hosts, limits: &Limits, now: Timestamp) -> String {
    let metrics = &hosts.seeing().metrics;
    if let Some(facts) = hosts.ownership().facts() {
        metrics.replica(&facts, now);
    }
    metrics.queues(&hosts.turns().waiting());
    metrics.text(hosts.tallies(), limits, now)
}

impl Seeing {
    /// A host was changed, and the change is stored together with the runs that it ended.
    pub(crate) fn changed(&self, before: &Stored, after: &Stored, runs: Vec<Run>, now: Timestamp) {
        self.metrics
            .changed(&before.record, &after.record, &runs, now);
        let Some(to) = self.runs.get() else {
            return;
        };
        for run in runs {
            if to.try_send(run).is_err() {
                self.metrics.trace_dropped();
            }
        }
    }

    /// From here on runs become traces. Said once.
    pub(super) fn send_runs_to(&self, to: mpsc::Sender<Run>) {
        let _ = self.runs.set(to);
    }

    /// The conductor's own lines are in here. Said once.
    pub(crate) fn own_lines_are_in(&self, lines: OwnLines) {
        let _ = self.own_lines.set(lines);
    }

    /// What the support bundle tells of the place. Said once.
    pub(crate) fn place_is(&self, place: Place) {
        let _ = self.place.set(place);
    }

    fn place(&self) -> Option<&Place> {
        self.place.get()
    }

    /// The conductor's own last lines, oldest first.
    pub(crate) fn own_lines(&self) -> Vec<u8> {
        self.own_lines.get().map(OwnLines::text).unwrap_or_default()
    }
}
