//! The life of a host.
//!
//! ```text
//!  add ─▶ registering ─▶ inspecting ─▶ preparing ─▶ available ─▶ provisioning ─▶ provisioned
//!                                         ▲                           │              │
//!                                         └───── deprovisioning ◀─────┴──────────────┘
//!                  ▲   ▲                    │
//!                  │   └──────────┐         ▼
//!             registering ─▶ externally provisioned
//!  any state ─▶ deleting ─▶ gone
//! ```
//!
//! - new → registering: a person adds the host.
//! - registering → inspecting: the BMC answered: identity and power are read.
//! - registering → externally provisioned: somebody else provisioned it: `spec` says so.
//! - inspecting → preparing: the agent sent the inventory.
//! - preparing → available: the disks are erased, or cleaning is disabled.
//! - available → provisioning: an image is wanted.
//! - available → externally provisioned: it is given to somebody else: `spec` says so.
//! - externally provisioned → inspecting: it is taken back: `spec` no longer says so.
//! - provisioning → provisioned: the host daemon is in touch and cloud-init has ended.
//! - provisioning → deprovisioning: the image is no longer wanted.
//! - provisioned → deprovisioning: no image or another one is wanted.
//! - deprovisioning → preparing: it is back in the ramdisk, erased, its daemon's key void.
//! - any → deleting: a person deletes the host, whatever its state.
//! - deleting → gone: the host is off, its drive empty, its record gone.
//!
//! `plan.rs` decides, purely; `execute.rs` acts and decides nothing; `change.rs` and `reports.rs`
//! say how the record changes; `driver.rs` goes round. An error never changes the state: it lies
//! beside it, with the time of the next attempt, or none when a person is needed. So do
//! operations (`operate.rs`, `operations.rs`), and what holds a host (`gate.rs`).

mod at_cluster;
#[cfg(test)]
mod bench;
pub(crate) mod change;
pub(crate) mod driver;
pub(crate) mod execute;
pub(crate) mod explain;
pub(crate) mod gate;
#[cfg(test)]
mod guide;
pub(crate) mod image;
pub(crate) mod intent;
pub(crate) mod joining;
#[cfg(test)]
mod joining_tests;
pub(crate) mod operate;
mod operations;
#[cfg(test)]
mod operations_tests;
pub(crate) mod order;
pub(crate) mod plan;
mod proofs;
pub(crate) mod record;
pub(crate) mod reports;
#[cfg(test)]
mod simulation_tests;
pub(crate) mod state;
pub(crate) mod timeline;
pub(crate) mod turns;

pub(crate) use crate::workflow::{Kind, Place, StepName, StepRun, StepState, Workflow};

#[cfg(test)]
mod tests {
    use super::state::EDGES;

    /// The sentences above, rebuilt from the edges.
    #[test]
    fn the_diagram_says_what_the_edges_say() {
        let written: Vec<_> = include_str!("mod.rs")
            .lines()
            .filter_map(|line| line.strip_prefix("//! - "))
            .collect();
        let rebuilt: Vec<_> = EDGES
            .iter()
            .map(|edge| {
                let from = match (edge.from, edge.to) {
                    (Some(from), _) => from.as_str(),
                    (None, Some(ferrite_proto::host::HostState::Deleting)) => "any",
                    (None, _) => "new",
                };
                let to = edge
                    .to
                    .map_or("gone", ferrite_proto::host::HostState::as_str);
                format!("{from} → {to}: {}.", edge.when)
            })
            .collect();
        assert_eq!(written, rebuilt);
        drawing_names_every_state();
    }

    fn drawing_names_every_state() {
        let text = include_str!("mod.rs");
        let drawing = text.split("```").nth(1).unwrap_or_default();
        for edge in EDGES {
            for state in [edge.from, edge.to].into_iter().flatten() {
                assert!(drawing.contains(state.as_str()), "{state} is not drawn");
            }
        }
    }
}
