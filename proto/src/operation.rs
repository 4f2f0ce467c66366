//! What can be done with a host beside its nine states: operations, plans that wait for approval,
//! and its turn among other hosts.
//!
//! Each is a field of the host's status or a request of a person; none is a state.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::secret::Secret;
use crate::step::EraseMethod;

/// Why a host is held.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Hold {
    /// For people.
    #[serde(default)]
    pub reason: String,
}

/// Who lets a destructive plan go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Approval {
    /// What `spec` says is enough.
    #[default]
    Automatic,
    /// A person, each time: `POST /v1/hosts/{name}/approve`.
    Required,
}

/// What is done beside the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum OperationKind {
    /// Chosen clean steps, on an available host.
    Clean,
    /// Chosen steps that wipe nothing, on a provisioned host; then its OS is started again.
    Service,
    /// The rescue ramdisk, on a provisioned host, until `unrescue`.
    Rescue,
    /// Out of the rescue ramdisk into the OS.
    Unrescue,
}

impl OperationKind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Clean, Self::Service, Self::Rescue, Self::Unrescue];

    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Service => "service",
            Self::Rescue => "rescue",
            Self::Unrescue => "unrescue",
        }
    }
}

/// An operation under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Operation {
    /// Which.
    pub kind: OperationKind,
    /// Who asked for it.
    #[serde(default)]
    pub by: String,
    /// Since when.
    pub since: Timestamp,
    /// Its chosen steps.
    #[serde(default)]
    pub steps: Vec<String>,
    /// It was aborted: its OS is being started again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub aborted: bool,
    /// How to get in, once the rescue ramdisk is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<RescueAccess>,
}

/// How to get into a host that is in rescue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RescueAccess {
    /// Since when.
    pub since: Timestamp,
    /// Where it listens for SSH; the user is `root`.
    pub addresses: Vec<String>,
    /// Fingerprints of its SSH host keys.
    pub host_keys: Vec<String>,
}

/// Something destructive that waits for approval, or was approved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Plan {
    /// What `approve` must name. A plan that changes in any way has another.
    pub id: String,
    /// What would be done.
    #[serde(flatten)]
    pub destruction: Destruction,
    /// Since when it waits.
    pub since: Timestamp,
    /// Who approved it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approved_by: Option<String>,
    /// When.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approved_at: Option<Timestamp>,
}

/// What would be destroyed, and what for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Destruction {
    /// `erase` or `write-image`.
    pub step: String,
    /// The disks whose content goes, as last inspected.
    pub disks: Vec<PlannedDisk>,
    /// Where the image comes from that takes their place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Its digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

/// A disk of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PlannedDisk {
    /// `/dev/sda` when it was inspected.
    pub name: String,
    /// Model.
    pub model: Option<String>,
    /// Serial number.
    pub serial: Option<String>,
    /// Bytes.
    pub size_bytes: u64,
}

/// Work of which only so much is done at once in a group of hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    /// Putting an OS on, or servicing it.
    Deploy,
    /// Erasing.
    Clean,
    /// Reading the hardware.
    Inspect,
    /// Switching on or resetting.
    Power,
}

impl Work {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Deploy, Self::Clean, Self::Inspect, Self::Power];

    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Deploy => "deploy",
            Self::Clean => "clean",
            Self::Inspect => "inspect",
            Self::Power => "power",
        }
    }
}

/// A host's turn among those of its group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Turn {
    /// For what.
    pub work: Work,
    /// Since when it waits, or has it.
    pub since: Timestamp,
    /// It has its turn.
    #[serde(default)]
    pub admitted: bool,
}

/// A clean step that can be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "step", rename_all = "kebab-case", deny_unknown_fields)]
pub enum CleanStep {
    /// Read the hardware.
    Inspect {},
    /// Make every disk forget.
    Erase {
        /// How thoroughly.
        #[serde(default)]
        method: EraseMethod,
    },
}

/// A service step that can be chosen. None of them can write to a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "step", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ServiceStep {
    /// Read the hardware.
    Inspect {},
    /// Make the firmware boot the root disk first.
    SetBootEntry {},
}

/// Clean an available host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Clean {
    /// In this order.
    pub steps: Vec<CleanStep>,
}

/// Work on a provisioned host without wiping it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// In this order.
    pub steps: Vec<ServiceStep>,
}

/// Boot a provisioned host into the rescue ramdisk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Rescue {
    /// Lines for root's `authorized_keys`.
    pub authorized_keys: Vec<String>,
}

/// How to get into a host that will be in rescue. The password is told once, here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RescuePassword {
    /// The host.
    pub host: String,
    /// Whom to log in as.
    pub user: String,
    /// Good until the rescue ends.
    pub password: Secret<String>,
}

/// Let a plan go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Approve {
    /// Its id, from the host's status.
    pub plan: String,
}
