//! Calls of people and their tools.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use ferrite_proto::api::{
    EventList, Explanation, HostList, HostListKind, Provision, Timeline, Version,
};
use ferrite_proto::host::{BmcSpec, Host, HostManifest};
use ferrite_proto::inventory::Inventory;
use ferrite_proto::merge;
use ferrite_proto::problem::{Code, Problem};
use ferrite_proto::resource::{ApiVersion, ListMetadata, ResourceVersion};
use ferrite_proto::secret::Secret;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Answer, ApiError, App, Body, Query};
use crate::access::caller::{Visible, actor};
use crate::clock;
use crate::crash::{self, Moment, Work};
use crate::lifecycle::{explain as words, intent};

/// Longest that a reader may wait for a change.
const LONGEST_WAIT: u64 = 60;
const MOST_EVENTS: u32 = 2000;
const MOST_RUNS: u32 = 50;

/// Wait for a version.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct After {
    after: Option<u64>,
    #[serde(default)]
    wait: u64,
}

/// How many.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Limit {
    limit: Option<u32>,
}

/// `GET /v1/hosts`
pub(crate) async fn list(State(app): State<Arc<App>>, visible: Visible) -> Answer<HostList> {
    let hosts = app.hosts.list(&visible);
    let revision = app.hosts.revision();
    Ok(Json(HostList {
        api_version: ApiVersion::V1,
        kind: HostListKind::HostList,
        metadata: ListMetadata {
            resource_version: ResourceVersion(revision),
            next: None,
        },
        items: hosts,
    }))
}

/// `POST /v1/hosts`
pub(crate) async fn add(
    State(app): State<Arc<App>>,
    Body(manifest): Body<HostManifest>,
) -> Result<(StatusCode, Json<Host>), ApiError> {
    enrol(&app, manifest).await
}

async fn enrol(app: &App, manifest: HostManifest) -> Result<(StatusCode, Json<Host>), ApiError> {
    check_bmc(app, &manifest.spec.bmc)?;
    let uid = uuid::Uuid::new_v4().to_string();
    let change = intent::enrol(manifest, uid, clock::now())?;
    crash::point(Work::Add, Moment::Before);
    let host = app.hosts.insert(&actor(), change).await?;
    crash::point(Work::Add, Moment::After);
    tracing::info!(host = %host.name, bmc = %host.spec.bmc.address, "host added");
    app.driver.drive(host.name.clone());
    Ok((StatusCode::CREATED, Json(host)))
}

/// An address that cannot be used is refused at once, not when the host is driven.
fn check_bmc(app: &App, spec: &BmcSpec) -> Result<(), Problem> {
    let tried = (app.world.connect)(spec, &Secret::new(String::new()));
    tried.map(|_| ()).map_err(|error| {
        let problem = Problem::from(error);
        Problem::new(Code::RequestInvalid, problem.message, problem.advice)
    })
}

/// `GET /v1/hosts/{name}`
pub(crate) async fn get(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Query(query): Query<After>,
) -> Answer<Host> {
    let above = query.after;
    if let (Some(after), Some(mut versions)) = (above, app.hosts.follow(&name)) {
        let wait = Duration::from_secs(query.wait.min(LONGEST_WAIT));
        tokio::select! {
            _ = versions.wait_for(|version| *version > after) => {}
            () = tokio::time::sleep(wait) => {}
            () = app.stop.cancelled() => {}
        }
    }
    Ok(Json(app.hosts.get(&name)?))
}

/// `PUT /v1/hosts/{name}`
pub(crate) async fn put(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Body(manifest): Body<HostManifest>,
) -> Result<(StatusCode, Json<Host>), ApiError> {
    if manifest.metadata.name != name {
        return Err(misnamed(&name, &manifest.metadata.name).into());
    }
    let is_new = app.hosts.live(&name).is_none();
    if is_new && manifest.metadata.resource_version.is_none() {
        return enrol(&app, manifest).await;
    }
    check_bmc(&app, &manifest.spec.bmc)?;
    let actor = actor();
    let changed = app
        .hosts
        .update(&name, &actor, |change| change.apply(manifest.clone()));
    let stored = changed.await?.0;
    crash::point(Work::Update, Moment::After);
    Ok((StatusCode::OK, Json(app.hosts.shown(&stored))))
}

/// `PATCH /v1/hosts/{name}`: a JSON merge patch of the manifest.
pub(crate) async fn patch(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Body(patch): Body<Value>,
) -> Answer<Host> {
    let actor = actor();
    let changed = app.hosts.update(&name, &actor, |change| {
        let manifest = patched(&change.record.host, &patch)?;
        check_bmc(&app, &manifest.spec.bmc)?;
        change.apply(manifest)
    });
    let stored = changed.await?.0;
    crash::point(Work::Update, Moment::After);
    Ok(Json(app.hosts.shown(&stored)))
}

/// What a host's manifest is with the patch. Secrets cannot be read: those of the patch are all.
fn patched(host: &Host, patch: &Value) -> Result<HostManifest, Problem> {
    let mut whole = json!({
        "apiVersion": ApiVersion::V1,
        "kind": "Host",
        "metadata": {
            "name": host.name, "project": host.project,
            "labels": host.labels, "annotations": host.annotations,
        },
        "spec": host.spec,
    });
    merge::apply(&mut whole, patch);
    serde_path_to_error::deserialize(whole).map_err(|error| {
        let what = format!("the patched host cannot be used: {error}");
        Problem::new(Code::RequestInvalid, what, "correct the patch")
    })
}

fn misnamed(path: &str, body: &str) -> Problem {
    Problem::new(
        Code::RequestInvalid,
        format!("metadata.name is {body:?}, but the call is of {path:?}"),
        "a name cannot be changed: give the same in both",
    )
}

/// `POST /v1/hosts/{name}/provision`
pub(crate) async fn provision(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Body(request): Body<Provision>,
) -> Answer<Host> {
    let actor = actor();
    let changed = app
        .hosts
        .update(&name, &actor, |change| change.provision(request.clone()));
    let stored = changed.await?.0;
    crash::point(Work::Provision, Moment::After);
    Ok(Json(app.hosts.shown(&stored)))
}

/// `POST /v1/hosts/{name}/deprovision`
pub(crate) async fn deprovision(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Answer<Host> {
    let actor = actor();
    let changed = app
        .hosts
        .update(&name, &actor, crate::lifecycle::change::Change::deprovision);
    let stored = changed.await?.0;
    crash::point(Work::Deprovision, Moment::After);
    Ok(Json(app.hosts.shown(&stored)))
}

/// `POST /v1/hosts/{name}/retry`
pub(crate) async fn retry(State(app): State<Arc<App>>, Path(name): Path<String>) -> Answer<Host> {
    let actor = actor();
    let changed = app.hosts.update(&name, &actor, |change| {
        change.retry();
        Ok(())
    });
    let stored = changed.await?.0;
    crash::point(Work::Retry, Moment::After);
    Ok(Json(app.hosts.shown(&stored)))
}

/// `GET /v1/hosts/{name}/explain`
pub(crate) async fn explain(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Answer<Explanation> {
    Ok(Json(words::explain(&app.hosts.get(&name)?, clock::now())))
}

/// `GET /v1/hosts/{name}/events`
pub(crate) async fn events(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Query(query): Query<Limit>,
) -> Answer<EventList> {
    let limit = query.limit.unwrap_or(100).min(MOST_EVENTS);
    let events = app.hosts.events(&name, limit).await?;
    Ok(Json(EventList { events }))
}

/// `GET /v1/hosts/{name}/inventory`
pub(crate) async fn inventory(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Answer<Box<Inventory>> {
    let found = app.hosts.inventory(&name).await?;
    let missing = || {
        let text = format!("the host {name:?} was not inspected yet");
        Problem::new(
            Code::NotFound,
            text,
            "`ferrite host explain` says what it waits for",
        )
    };
    Ok(Json(found.ok_or_else(missing)?))
}

/// `GET /v1/hosts/{name}/timeline`
pub(crate) async fn timeline(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Query(query): Query<Limit>,
) -> Answer<Timeline> {
    let limit = query.limit.unwrap_or(MOST_RUNS).min(MOST_RUNS);
    let mut runs = app.hosts.runs(&name, limit).await?;
    runs.extend(app.hosts.stored(&name)?.record.run.doing.clone());
    Ok(Json(Timeline { runs }))
}

/// `DELETE /v1/hosts/{name}`
pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    let actor = actor();
    let changed = app
        .hosts
        .update(&name, &actor, crate::lifecycle::change::Change::delete);
    changed.await?;
    crash::point(Work::Delete, Moment::After);
    Ok(StatusCode::ACCEPTED)
}

/// `GET /v1/version`
pub(crate) async fn version() -> Answer<Version> {
    Ok(Json(Version {
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }))
}
