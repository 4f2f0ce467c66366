//! What is under way on a host, as one of the tasks of the fleet.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::host::{HostError, HostState};
use crate::resource::{ApiVersion, ListMetadata, Metadata};
use crate::step::Progress;

/// The kind of a [`Task`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum TaskKind {
    /// A task.
    #[default]
    Task,
}

/// What is under way on a host. Its name is the host's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Task {
    /// The version of this form.
    pub api_version: ApiVersion,
    /// `Task`.
    pub kind: TaskKind,
    /// The host's name, project and labels.
    pub metadata: Metadata,
    /// How far it is.
    pub status: TaskStatus,
}

/// How far a [`Task`] is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TaskStatus {
    /// Which host.
    pub host: String,
    /// What the host is in.
    pub state: HostState,
    /// The step that runs.
    #[serde(default)]
    pub step: Option<String>,
    /// Since when: the step, or else the state.
    pub since: Timestamp,
    /// How far the step is.
    #[serde(default)]
    pub progress: Option<Progress>,
    /// What it waits for, in one sentence.
    #[serde(default)]
    pub waiting_for: Option<String>,
    /// What went wrong, until it is over.
    #[serde(default)]
    pub error: Option<HostError>,
}

/// The kind of a [`TaskList`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum TaskListKind {
    /// Tasks.
    #[default]
    TaskList,
}

/// Tasks, by the host's name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct TaskList {
    /// The version of this form.
    pub api_version: ApiVersion,
    /// `TaskList`.
    pub kind: TaskListKind,
    /// As of when.
    pub metadata: ListMetadata,
    /// By name.
    pub items: Vec<Task>,
}
