//! Figures of a conductor that is one of several: what it drives, and whether it is in touch.
//!
//! Alone on its database a conductor has none of them.

use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::ownership::Facts;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Label {
    replica: String,
}

/// Set when somebody asks.
#[derive(Debug, Default)]
pub(super) struct Figures {
    alive: Family<Label, Gauge>,
    leases: Family<Label, Gauge>,
    renewed: Family<Label, Gauge<f64, AtomicU64>>,
    taken: Family<Label, Counter>,
    handed_over: Family<Label, Counter>,
    missed: Family<Label, Counter>,
}

impl Figures {
    pub(super) fn register(&self, to: &mut Registry) {
        let help = "Replicas that are alive, as this one sees it";
        to.register("replicas", help, self.alive.clone());
        let help = "Hosts that this replica drives";
        to.register("replica_leases", help, self.leases.clone());
        let help = "Time since this replica renewed its lease";
        let unit = Unit::Seconds;
        to.register_with_unit("replica_renewed", help, unit, self.renewed.clone());
        let help = "Hosts that this replica took: new ones, and of replicas that are gone";
        to.register("replica_taken", help, self.taken.clone());
        let help = "Hosts that this replica left to others";
        to.register("replica_handed_over", help, self.handed_over.clone());
        let help = "Renewals of this replica's lease that failed";
        to.register("replica_missed_renewals", help, self.missed.clone());
    }

    pub(super) fn set(&self, facts: &Facts, now: Timestamp) {
        let Some(renewed) = facts.renewed else {
            return;
        };
        let label = &Label {
            replica: facts.replica.clone(),
        };
        let count = |of: usize| i64::try_from(of).unwrap_or(i64::MAX);
        let driven = if facts.drives { facts.leases.len() } else { 0 };
        self.alive
            .get_or_create(label)
            .set(count(facts.alive.len()));
        self.leases.get_or_create(label).set(count(driven));
        let age = now.duration_since(renewed).as_secs_f64().max(0.0);
        self.renewed.get_or_create(label).set(age);
        for (counter, value) in [
            (&self.taken, facts.taken),
            (&self.handed_over, facts.handed_over),
            (&self.missed, facts.missed),
        ] {
            let counter = counter.get_or_create(label);
            counter.inner().store(value, Ordering::Relaxed);
        }
    }
}
