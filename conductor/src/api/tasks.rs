//! What is under way, on all hosts: one task for each host that is not at rest. Its name is the
//! host's. Not here: how a task is done, or undone.

use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use ferrite_proto::host::HostState;
use ferrite_proto::resource::{ApiVersion, Metadata, ResourceVersion};
use ferrite_proto::task::{Task, TaskKind, TaskList, TaskListKind, TaskStatus};

use super::App;
use super::body::Query;
use super::error::Answered;
use super::list::{self, ListQuery};
use super::watch::{self, Shown, Source, Watchers};
use crate::access::caller::Visible;
use crate::roll::HOST;
use crate::store::Stored;

/// `GET /v1/tasks`
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    Extension(watchers): Extension<Watchers>,
    visible: Visible,
    headers: HeaderMap,
    Query(query): Query<ListQuery>,
) -> Answered {
    let selectors = query.selectors()?;
    if query.watch {
        let from = watch::from(&headers, query.version()?);
        return Ok(watch::start(
            &app,
            &watchers,
            source(),
            visible,
            selectors,
            from,
        )?);
    }
    let (after, limit) = (query.after()?.unwrap_or_default(), query.limit()?);
    let revision = app.hosts.revision();
    let all = app.hosts.all();
    let tasks = all
        .iter()
        .filter(|stored| {
            let host = &stored.record.host;
            host.name > after && visible.sees(&host.project)
        })
        .filter_map(|stored| task(stored))
        .filter(|task| {
            let whole = || serde_json::to_value(task).unwrap_or_default();
            let project = task.metadata.project.as_deref().unwrap_or_default();
            selectors.select(project, &task.metadata.labels, whole)
        });
    let (items, next) = list::page(tasks, limit, |task| &task.metadata.name);
    Ok(answer(TaskList {
        api_version: ApiVersion::V1,
        kind: TaskListKind::TaskList,
        metadata: list::metadata(revision, next),
        items,
    }))
}

fn answer(list: TaskList) -> Response {
    Json(list).into_response()
}

/// A task comes and goes with the state of its host.
fn source() -> Source {
    Source {
        change_kind: HOST,
        kind: "Task",
        names: Box::new(|app| app.hosts.names()),
        read: Box::new(|app, name| {
            let stored = app.hosts.stored(name).ok()?;
            let (host, task) = (&stored.record.host, task(&stored)?);
            Some(Shown {
                version: host.version,
                project: host.project.clone(),
                json: Box::new(move || serde_json::to_value(task).unwrap_or_default()),
            })
        }),
    }
}

/// What is under way on a host, if anything.
fn task(stored: &Stored) -> Option<Task> {
    let host = &stored.record.host;
    let status = &host.status;
    let at_rest = match status.state {
        HostState::Available | HostState::Provisioned | HostState::ExternallyProvisioned => true,
        HostState::Registering
        | HostState::Inspecting
        | HostState::Preparing
        | HostState::Provisioning
        | HostState::Deprovisioning
        | HostState::Deleting => false,
    };
    let flow = stored.record.run.workflow.as_ref();
    if at_rest && flow.is_none() {
        return None;
    }
    let step = status.step.as_ref();
    Some(Task {
        api_version: ApiVersion::V1,
        kind: TaskKind::Task,
        metadata: Metadata {
            name: host.name.clone(),
            project: Some(host.project.clone()),
            labels: host.labels.clone(),
            resource_version: Some(ResourceVersion(host.version)),
            creation_timestamp: Some(status.since),
            ..Metadata::default()
        },
        status: TaskStatus {
            host: host.name.clone(),
            state: status.state,
            step: step.map(|step| step.name.clone()),
            since: step.map_or(status.since, |step| step.started),
            progress: step.map(|step| step.progress.clone()),
            waiting_for: status.waiting_for.clone(),
            error: status.error.clone(),
        },
    })
}
