//! The edges between a host's states. The diagram in `mod.rs` is compared with them by a test.

use ferrite_proto::host::HostState;

/// A way from one state to another.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Edge {
    /// Where from; `None` is a host that is not known yet.
    pub(crate) from: Option<HostState>,
    /// Where to; `None` is a host that is gone.
    pub(crate) to: Option<HostState>,
    /// When it is taken.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "people read it, in the diagram")
    )]
    pub(crate) when: &'static str,
}

const fn edge(from: HostState, to: HostState, when: &'static str) -> Edge {
    Edge {
        from: Some(from),
        to: Some(to),
        when,
    }
}

/// Every way. `deleting` can be reached from every other state and stands here once.
pub(crate) const EDGES: &[Edge] = &[
    Edge {
        from: None,
        to: Some(HostState::Registering),
        when: "a person adds the host",
    },
    edge(
        HostState::Registering,
        HostState::Inspecting,
        "the BMC answered: identity and power are read",
    ),
    edge(
        HostState::Registering,
        HostState::ExternallyProvisioned,
        "somebody else provisioned it: `spec` says so",
    ),
    edge(
        HostState::Inspecting,
        HostState::Preparing,
        "the agent sent the inventory",
    ),
    edge(
        HostState::Preparing,
        HostState::Available,
        "the disks are erased, or cleaning is disabled",
    ),
    edge(
        HostState::Available,
        HostState::Provisioning,
        "an image is wanted",
    ),
    edge(
        HostState::Available,
        HostState::ExternallyProvisioned,
        "it is given to somebody else: `spec` says so",
    ),
    edge(
        HostState::ExternallyProvisioned,
        HostState::Inspecting,
        "it is taken back: `spec` no longer says so",
    ),
    edge(
        HostState::Provisioning,
        HostState::Provisioned,
        "the host daemon is in touch and cloud-init has ended",
    ),
    edge(
        HostState::Provisioning,
        HostState::Deprovisioning,
        "the image is no longer wanted",
    ),
    edge(
        HostState::Provisioned,
        HostState::Deprovisioning,
        "no image or another one is wanted",
    ),
    edge(
        HostState::Deprovisioning,
        HostState::Preparing,
        "it is back in the ramdisk, erased, its daemon's key void",
    ),
    Edge {
        from: None,
        to: Some(HostState::Deleting),
        when: "a person deletes the host, whatever its state",
    },
    Edge {
        from: Some(HostState::Deleting),
        to: None,
        when: "the host is off, its drive empty, its record gone",
    },
];

/// Whether there is such a way.
pub(crate) fn is_edge(from: HostState, to: HostState) -> bool {
    to == HostState::Deleting
        || EDGES
            .iter()
            .any(|edge| edge.from == Some(from) && edge.to == Some(to))
}
