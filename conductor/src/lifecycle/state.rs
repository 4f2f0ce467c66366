//! The edges between a host's states, and the policy of each state and operation.
//!
//! The diagram in `mod.rs` and the page `docs/lifecycle.md` are compared with them by tests.

use ferrite_proto::host::HostState;
use ferrite_proto::operation::OperationKind;

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

/// What is told of a state: what it does, by when, what is done when that fails.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Policy {
    /// Which state.
    pub(crate) state: HostState,
    /// What comes next in it.
    pub(crate) next: &'static str,
    /// What it waits for, and for how long at most.
    pub(crate) deadline: &'static str,
    /// What is done when that fails.
    pub(crate) retry: &'static str,
}

const fn policy_of(
    state: HostState,
    next: &'static str,
    deadline: &'static str,
    retry: &'static str,
) -> Policy {
    Policy {
        state,
        next,
        deadline,
        retry,
    }
}

const BOOT_AND_STEP: &str = "hello within `boot_seconds`, each step within `step_seconds`";
const BACKOFF: &str = "again after `retry_first_seconds`, doubled up to `retry_max_seconds`, \
                       `max_attempts` times in a row; then a person";

/// Every state's policy. The names are those of `[lifecycle]` in the configuration.
pub(crate) const POLICIES: [Policy; 9] = [
    policy_of(
        HostState::Registering,
        "The ramdisk is booted to inspect the hardware.",
        "each call to the BMC has its own time limit",
        BACKOFF,
    ),
    policy_of(
        HostState::Inspecting,
        "Its disks are cleaned.",
        BOOT_AND_STEP,
        BACKOFF,
    ),
    policy_of(
        HostState::Preparing,
        "It becomes available.",
        BOOT_AND_STEP,
        BACKOFF,
    ),
    policy_of(
        HostState::Available,
        "Nothing, until an image is set.",
        "none: it is at rest; power is read every `power_interval_seconds`",
        "for ever",
    ),
    policy_of(
        HostState::Provisioning,
        "Image, config drive, boot entry, boot; then the host daemon and cloud-init report.",
        "hello within `boot_seconds`, each step within `step_seconds`, the OS and cloud-init \
         within `daemon_seconds`",
        BACKOFF,
    ),
    policy_of(
        HostState::Provisioned,
        "Nothing: it runs what was asked for.",
        "none: it is at rest; a daemon that is silent for `daemon_silence_seconds` is a problem",
        "clears by itself when the daemon is back",
    ),
    policy_of(
        HostState::Deprovisioning,
        "Its disks are cleaned, then it becomes available.",
        BOOT_AND_STEP,
        BACKOFF,
    ),
    policy_of(
        HostState::ExternallyProvisioned,
        "Nothing: somebody else provisioned it.",
        "none: it is at rest; power is read every `power_interval_seconds`",
        "for ever",
    ),
    policy_of(
        HostState::Deleting,
        "It is switched off and forgotten.",
        "three attempts to switch off, three to empty the virtual drive",
        "it is let go without the BMC's consent",
    ),
];

/// The policy of a state.
pub(crate) fn policy(state: HostState) -> &'static Policy {
    let found = POLICIES.iter().find(|policy| policy.state == state);
    found.unwrap_or(&POLICIES[0])
}

/// What is told of an operation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OperationPolicy {
    /// Which.
    pub(crate) kind: OperationKind,
    /// The state that it begins in, and ends in.
    #[cfg_attr(not(test), expect(dead_code, reason = "people read it, in the docs"))]
    pub(crate) on: HostState,
    /// What comes next in it.
    pub(crate) next: &'static str,
    /// By when.
    pub(crate) deadline: &'static str,
    /// What an abort, or a failure that is not tried again, leaves.
    pub(crate) abort: &'static str,
}

/// Every operation's policy.
pub(crate) const OPERATIONS: [OperationPolicy; 4] = [
    OperationPolicy {
        kind: OperationKind::Clean,
        on: HostState::Available,
        next: "Its chosen steps; then it is available as before.",
        deadline: BOOT_AND_STEP,
        abort: "available; what was not erased yet stays",
    },
    OperationPolicy {
        kind: OperationKind::Service,
        on: HostState::Provisioned,
        next: "Its chosen steps; then its OS is started again.",
        deadline: "hello within `boot_seconds`, each step within `step_seconds`, the OS within \
                   `daemon_seconds`",
        abort: "its OS is started again, unless it was not touched yet",
    },
    OperationPolicy {
        kind: OperationKind::Rescue,
        on: HostState::Provisioned,
        next: "The rescue ramdisk stays until `unrescue`.",
        deadline: "hello within `boot_seconds`; then none",
        abort: "its OS is started again, unless it was not touched yet",
    },
    OperationPolicy {
        kind: OperationKind::Unrescue,
        on: HostState::Provisioned,
        next: "Its OS is started, and its daemon reports.",
        deadline: "the OS within `daemon_seconds`",
        abort: "cannot be aborted: it is the way back",
    },
];

/// The policy of an operation.
pub(crate) fn operation_policy(kind: OperationKind) -> &'static OperationPolicy {
    let found = OPERATIONS.iter().find(|policy| policy.kind == kind);
    found.unwrap_or(&OPERATIONS[0])
}
