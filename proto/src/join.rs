//! Joining a cluster from the deployed OS: what the host daemon and the conductor say to each
//! other about one run of `kubeadm join`.
//!
//! | call | the daemon says | the conductor answers |
//! | --- | --- | --- |
//! | check-in | nothing new | [`JoinOrder`]: join, attempt N |
//! | [`JOIN`] | [`JoinRequest`]: what it found on the host | [`JoinMaterial`], for it alone |
//! | [`JOIN_REPORT`] | [`JoinReport`]: lines of kubeadm, its end | nothing |
//!
//! That kubeadm ends with status 0 proves nothing: the conductor looks for the Node itself.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::problem::Problem;
use crate::secret::Secret;

/// Which cluster a host joins, and as what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct JoinSpec {
    /// The [`Cluster`](crate::catalog::Cluster)'s name.
    pub cluster: String,
    /// Labels of its Node, set once it has joined.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_labels: BTreeMap<String, String>,
    /// Taints that its Node is registered with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub node_taints: Vec<NodeTaint>,
    /// Who runs `kubeadm join`.
    #[serde(default, skip_serializing_if = "JoinBy::is_daemon")]
    pub by: JoinBy,
    /// Whether pods are asked to leave before the host is taken back; true unless said otherwise.
    #[serde(default = "yes", skip_serializing_if = "Clone::clone")]
    pub drain: bool,
}

/// Who runs `kubeadm join` on the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum JoinBy {
    /// The host daemon, with a token that no disk ever has.
    #[default]
    Daemon,
    /// cloud-init, with a token that is on the config drive until the Node appears.
    CloudInit,
    /// The user data or the bootstrap data that somebody gave. Ferrite makes no token, and watches.
    UserData,
}

impl JoinBy {
    /// Whether it is the daemon, as where nothing is said.
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
    fn is_daemon(&self) -> bool {
        *self == Self::Daemon
    }
}

const fn yes() -> bool {
    true
}

/// A taint, as Kubernetes has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NodeTaint {
    /// The key.
    pub key: String,
    /// The value, if there is one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub value: String,
    /// What it does to pods.
    pub effect: TaintEffect,
}

/// What a taint does to pods that do not tolerate it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum TaintEffect {
    /// None is scheduled there.
    NoSchedule,
    /// None is scheduled there if it can be helped.
    PreferNoSchedule,
    /// Those that are there go.
    NoExecute,
}

impl TaintEffect {
    /// As Kubernetes writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoSchedule => "NoSchedule",
            Self::PreferNoSchedule => "PreferNoSchedule",
            Self::NoExecute => "NoExecute",
        }
    }
}

/// How far a host is on its way into a cluster, and out of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct JoinStatus {
    /// The cluster.
    pub cluster: String,
    /// Its Node there.
    pub node: String,
    /// How often `kubeadm join` was ordered.
    pub attempt: u32,
    /// How far it is.
    pub phase: JoinPhase,
    /// Since when.
    pub since: Timestamp,
    /// What the daemon and kubeadm said that may be why it does not go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<Problem>,
    /// What the host's prerequisites lack.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<HostFinding>,
}

/// How far a host is on its way into a cluster. Each but the last two is proved before the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum JoinPhase {
    /// The daemon is to ask for material.
    Ordered,
    /// It has material; a certificate for the Node is to be issued.
    Certificate,
    /// The Node is to appear.
    Node,
    /// The Node is to be this machine, in this boot.
    Identity,
    /// The Node is to be ready.
    Ready,
    /// Labels are to be set, the token is to go.
    Settling,
    /// It has joined, and waits for the cluster's CNI.
    WaitingForCni,
    /// It has joined, and was ready.
    Joined,
}

impl JoinPhase {
    /// The name as people read it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ordered => "ordered",
            Self::Certificate => "certificate",
            Self::Node => "node",
            Self::Identity => "identity",
            Self::Ready => "ready",
            Self::Settling => "settling",
            Self::WaitingForCni => "waiting-for-cni",
            Self::Joined => "joined",
        }
    }

    /// Whether the host is a worker.
    pub const fn has_joined(self) -> bool {
        matches!(self, Self::WaitingForCni | Self::Joined)
    }
}

/// Ask for what it takes to join.
pub const JOIN: &str = "/v1/daemon/join";
/// Tell how the attempt goes.
pub const JOIN_REPORT: &str = "/v1/daemon/join-report";
/// Where the daemon puts the files of an attempt; only root reads them, and no disk has them.
pub const FOLDER: &str = "/run/ferrite/join";
/// The name of the file with the `JoinConfiguration` in [`FOLDER`].
pub const CONFIGURATION: &str = "config.yaml";
/// The folder with patches in [`FOLDER`], as `patches.directory` names it.
pub const PATCHES: &str = "patches";
/// Most lines of one [`JoinReport`].
pub const LINES: usize = 200;
/// Most characters of one line.
pub const LINE_CHARS: usize = 1000;

/// The host shall join.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct JoinOrder {
    /// Grows by one with every attempt. An attempt that the daemon has ended is not begun again.
    pub attempt: u32,
}

/// What the daemon found before it asks for material.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct JoinRequest {
    /// Of the [`JoinOrder`].
    pub attempt: u32,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// SMBIOS system UUID, as the kubelet will tell it too.
    #[serde(default)]
    pub system_uuid: Option<String>,
    /// The host's clock, to be compared.
    pub clock: Timestamp,
    /// `kubeadm version`, such as `v1.33.1`.
    #[serde(default)]
    pub kubeadm: Option<String>,
    /// `kubelet --version`, such as `v1.33.1`.
    #[serde(default)]
    pub kubelet: Option<String>,
    /// The runtime's socket: `unix:///run/containerd/containerd.sock`.
    #[serde(default)]
    pub cri_socket: Option<String>,
    /// What stands in the way, or may.
    #[serde(default)]
    pub findings: Vec<HostFinding>,
}

/// A prerequisite that is not met.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HostFinding {
    /// Stable, for programs: `swap-on`, `runtime-absent`, …
    pub code: String,
    /// Whether a join cannot work.
    pub fatal: bool,
    /// What was found, and where.
    pub what: String,
    /// What a person can do.
    pub fix: String,
}

/// What it takes to join: for one attempt of one host, in one boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct JoinMaterial {
    /// Of the request.
    pub attempt: u32,
    /// kubeadm's `JoinConfiguration`, YAML; the token is in it.
    pub configuration: Secret<String>,
    /// The token alone: it is cut out of every line that is reported.
    pub token: Secret<String>,
    /// Files for kubeadm's `patches`, by name.
    #[serde(default)]
    pub patches: BTreeMap<String, String>,
    /// After so many seconds kubeadm is stopped.
    pub deadline_seconds: u32,
}

/// How the attempt goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct JoinReport {
    /// Of the [`JoinOrder`].
    pub attempt: u32,
    /// Lines of kubeadm since the last report, without the token.
    #[serde(default)]
    pub lines: Vec<String>,
    /// How it ended, once it did.
    #[serde(default)]
    pub ended: Option<JoinEnd>,
}

/// How kubeadm ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "how", rename_all = "kebab-case")]
pub enum JoinEnd {
    /// Status 0. The Node may come later, or not at all.
    Succeeded,
    /// Another status.
    Failed {
        /// Its status; absent when a signal ended it.
        status: Option<i32>,
    },
    /// It was stopped at its deadline.
    Late,
    /// It could not be run.
    NotRun {
        /// Why.
        why: String,
    },
    /// Of a newer daemon.
    #[serde(other)]
    Unknown,
}

/// The answer to [`JoinReport`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct JoinReportReply {
    /// The attempt is no longer wanted: stop it.
    #[serde(default)]
    pub stop: bool,
}
