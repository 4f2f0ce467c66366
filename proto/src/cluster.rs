//! A place to join: a Kubernetes cluster, how we are let into it, and what a check of it found.
//!
//! Not here: what a host asks of it, and how it is called.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::resource::{ApiVersion, ListMetadata, Metadata};
use crate::secret::Secret;

/// The kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ClusterKind {
    /// The only one.
    #[default]
    Cluster,
}

/// The kind of a list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ClusterListKind {
    /// The only one.
    #[default]
    ClusterList,
}

/// A place to join: hosts say `spec.cluster`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cluster {
    /// The version of this form.
    pub api_version: ApiVersion,
    /// What it is.
    pub kind: ClusterKind,
    /// Name, labels, annotations.
    pub metadata: Metadata,
    /// Where it is.
    pub spec: ClusterSpec,
    /// How we are let in. Taken, never shown; those that are kept stay where a change has none.
    #[serde(default, skip_serializing_if = "ClusterSecrets::is_empty")]
    pub secrets: ClusterSecrets,
    /// What is seen of it. Shown, not taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<ClusterStatus>,
}

/// Several, by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct ClusterList {
    /// The version of this form.
    pub api_version: ApiVersion,
    /// What it is.
    pub kind: ClusterListKind,
    /// As of when.
    pub metadata: ListMetadata,
    /// By name.
    pub items: Vec<Cluster>,
}

/// Of a [`Cluster`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ClusterSpec {
    /// What runs it.
    #[serde(default)]
    pub control_plane: ControlPlane,
    /// Its API server as hosts reach it: `https://host:6443`. Otherwise as the kubeconfig has it,
    /// or as Kamaji tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Its CA, as PEM; certificates only. Otherwise as the kubeconfig has it, or as Kamaji tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// It is this control plane of Kamaji; the kubeconfig is that of the management cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Tenant>,
}

/// A `TenantControlPlane` of Kamaji.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Tenant {
    /// The namespace in the management cluster.
    pub namespace: String,
    /// Its name there.
    pub name: String,
}

/// What runs a cluster.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum ControlPlane {
    /// Any cluster that kubeadm made.
    #[default]
    Kubeadm,
    /// A tenant control plane of Kamaji.
    Kamaji,
}

/// How we are let into a [`Cluster`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default, deny_unknown_fields)]
pub struct ClusterSecrets {
    /// A kubeconfig, as YAML or JSON, with everything in it: it names no file and no program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubeconfig: Option<Secret<String>>,
}

impl ClusterSecrets {
    /// Whether nothing is there.
    pub const fn is_empty(&self) -> bool {
        self.kubeconfig.is_none()
    }
}

/// What is seen of a [`Cluster`], looked at every half a minute.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct ClusterStatus {
    /// Where hosts join: `host:port`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Of its API server: `v1.34.1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubernetes_version: Option<String>,
    /// Pins of its CA, as kubeadm has them: `sha256:…`.
    pub ca_hashes: Vec<String>,
    /// What Kamaji says of it: `Ready`, `Sleeping`, …
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// Why hosts cannot join now: a stable code, and words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<crate::problem::Problem>,
}

/// What a check of a cluster found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ClusterReport {
    /// Which cluster.
    pub cluster: String,
    /// When.
    pub at: Timestamp,
    /// Nothing stands in the way of a join.
    pub can_join: bool,
    /// What was seen of it.
    pub status: ClusterStatus,
    /// One of each thing that was looked at, in that order.
    pub findings: Vec<Finding>,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Finding {
    /// Stable, for programs: `endpoint`, `ca-pin`, …
    pub code: String,
    /// How it stands.
    pub verdict: Verdict,
    /// What was looked at, or what was seen.
    pub what: String,
    /// Why it is so; empty when it is fine.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// What a person can do; empty when it is fine.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub fix: String,
}

/// How a thing stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Fine.
    Ok,
    /// It could not be looked at, because of another finding.
    Skipped,
    /// A join works; something will not be as wanted.
    Warning,
    /// A join fails.
    Error,
}
