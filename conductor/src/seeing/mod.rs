//! What can be seen of the conductor from outside: figures, traces, logs, webhooks, and the bundle
//! that people send when they want help.
//!
//! It looks on and decides nothing: no host waits for it, and what it loses is only sight.

pub(crate) mod bundle;
pub(crate) mod calls;
pub(crate) mod config;
pub(crate) mod logs;
pub(crate) mod measured;
pub(crate) mod metrics;
mod process;
pub(crate) mod webhooks;

use std::sync::OnceLock;

use ferrite_proto::host::Run;
use jiff::Timestamp;

use crate::store::Stored;
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
}

impl Seeing {
    /// A host was changed, and the change is stored.
    pub(crate) fn changed(&self, before: &Stored, after: &Stored, runs: &[Run], now: Timestamp) {
        self.metrics
            .changed(&before.record, &after.record, runs, now);
    }
}
