//! Requests and replies of the conductor's HTTP API. Every call needs `Authorization: Bearer`.
//!
//! | call | meaning |
//! | --- | --- |
//! | `POST /v1/hosts` [`HostManifest`] | enrol; 201 with the [`Host`] |
//! | `GET /v1/hosts` | [`HostList`], by name |
//! | `GET /v1/hosts/{name}` | the [`Host`] |
//! | `GET /v1/hosts/{name}?after=V&wait=S` | the same, once its version is above V, or in S s |
//! | `PUT /v1/hosts/{name}` [`HostManifest`] | what is wanted, whole: enrol (201) or replace |
//! | `PATCH /v1/hosts/{name}` | a merge patch (RFC 7386) of a [`HostManifest`] |
//! | `GET /v1/hosts/{name}/events?limit=N` | [`EventList`], newest last |
//! | `GET /v1/hosts/{name}/inventory` | [`Inventory`], from the last inspection |
//! | `GET /v1/hosts/{name}/timeline?limit=N` | [`Timeline`]: where the seconds went |
//! | `POST /v1/hosts/{name}/provision` [`Provision`] | set the image and the cloud-init data |
//! | `POST /v1/hosts/{name}/deprovision` | remove the image |
//! | `POST /v1/hosts/{name}/retry` | try now what failed |
//! | `GET /v1/hosts/{name}/explain` | [`Explanation`] |
//! | `DELETE /v1/hosts/{name}` | let the host go; 202 |
//! | `GET /v1/version` | [`Version`] |
//!
//! Errors are RFC 9457 `application/problem+json`: [`ErrorBody`].
//!
//! [`HostManifest`]: crate::host::HostManifest
//! [`Inventory`]: crate::inventory::Inventory

use serde::{Deserialize, Serialize};

use crate::host::{Host, HostSecrets, Run, Stage};
use crate::image::ImageRef;
use crate::problem::Code;
use crate::resource::{ApiVersion, ListMetadata};

/// Where the seconds of a host went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Timeline {
    /// Its runs, newest last; the one under way has no end.
    pub runs: Vec<Run>,
}

impl Timeline {
    /// The stages of all its runs, oldest first.
    pub fn stages(&self) -> impl Iterator<Item = &Stage> {
        self.runs.iter().flat_map(|run| &run.stages)
    }
}

/// Where the seconds of all hosts went, by kind of run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FleetTimeline {
    /// Runs that ended since then.
    pub since: jiff::Timestamp,
    /// Whether these are all of them, and not only the last 5000.
    pub complete: bool,
    /// By kind of run, in the order of their names.
    pub kinds: Vec<KindTimeline>,
}

/// Where the seconds of one kind of run went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct KindTimeline {
    /// `enrol`, `deploy`, `deprovision`, …
    pub kind: String,
    /// How many ended.
    pub runs: usize,
    /// From the beginning of a run to its end.
    pub seconds: Spread,
    /// Stages in the order in which they usually begin.
    pub stages: Vec<StageSpread>,
}

/// One stage of all runs of a kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct StageSpread {
    /// `firmware`, `ramdisk`, `write-image`, …
    pub name: String,
    /// How often it ended. More often than the runs, where it was repeated.
    pub count: usize,
    /// How long it took.
    pub seconds: Spread,
}

/// Percentiles of seconds, by the nearest rank: each is a time that was really seen.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Spread {
    /// Half of them took no longer.
    pub p50: f64,
    /// Nine of ten took no longer.
    pub p90: f64,
    /// Ninety-nine of a hundred took no longer.
    pub p99: f64,
    /// The longest.
    pub max: f64,
}

/// Set what a host shall run.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Provision {
    /// The image.
    pub image: ImageRef,
    /// cloud-init data. `bmc_password` is refused here.
    #[serde(default)]
    pub secrets: HostSecrets,
    /// Replaces the host's root device hints when given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_device_hints: Option<crate::hints::RootDeviceHints>,
    /// Replaces how the OS is started when given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_method: Option<crate::step::BootMethod>,
    /// Replaces whether the image is read back from the disk when given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify_image: Option<bool>,
    /// Replaces which cluster the host joins when given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join: Option<crate::join::JoinSpec>,
}

/// What happened to a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HostEvent {
    /// When.
    pub at: jiff::Timestamp,
    /// `state`, `step`, `error`, `alarm`, `log`, `request`, …
    pub kind: String,
    /// In words.
    pub text: String,
}

/// Events of a host, newest last.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EventList {
    /// The events.
    pub events: Vec<HostEvent>,
}

/// A line of the log of all hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Event {
    /// Its place in the log.
    pub id: u64,
    /// When.
    pub at: jiff::Timestamp,
    /// Which host.
    pub host: String,
    /// Whose host.
    pub project: String,
    /// `state`, `step`, `error`, `alarm`, `log`, `request`, …
    pub kind: String,
    /// In words.
    pub text: String,
}

/// The kind of [`FleetEvents`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum FleetEventKind {
    /// Events.
    #[default]
    EventList,
}

/// A page of the log of all hosts, newest last. `continue` leads to older ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct FleetEvents {
    /// The version of this form.
    pub api_version: ApiVersion,
    /// `EventList`.
    pub kind: FleetEventKind,
    /// As of when; `resourceVersion` is a place in the log.
    pub metadata: ListMetadata,
    /// Newest last.
    pub items: Vec<Event>,
}

/// The kind of a [`HostList`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum HostListKind {
    /// Hosts.
    #[default]
    HostList,
}

/// Hosts.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct HostList {
    /// The version of this form.
    pub api_version: ApiVersion,
    /// `HostList`.
    pub kind: HostListKind,
    /// As of when.
    pub metadata: ListMetadata,
    /// By name.
    pub items: Vec<Host>,
}

/// A line of a host's agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LogLine {
    /// Grows from line to line, with gaps, and over restarts of the conductor.
    pub number: u64,
    /// When it came.
    pub at: jiff::Timestamp,
    /// What it says.
    pub text: String,
}

/// The last lines of a host's agent, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LogLines {
    /// The lines.
    pub items: Vec<LogLine>,
}

/// What a host is doing, for a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Explanation {
    /// One sentence: what it does or waits for, since when.
    pub doing: String,
    /// What happens next, and when.
    pub next: String,
    /// What a person can do, if anything.
    pub advice: Option<String>,
}

/// Versions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Version {
    /// Of the conductor.
    pub version: String,
}

/// RFC 9457 body of every error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ErrorBody {
    /// `urn:ferrite:problem:` and the code.
    #[serde(default, rename = "type")]
    pub kind: String,
    /// The code in words.
    #[serde(default)]
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// Stable code.
    pub code: Code,
    /// What happened.
    pub detail: String,
    /// What a person can do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
    /// Which part of the body it is about: `spec.bmc.address`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// The call's number, as the conductor's log has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}
