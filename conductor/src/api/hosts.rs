//! Hosts as resources: listed, followed, and declared whole or by patches.
//!
//! Not here: what is asked of one host at once (provision, retry, …), which is `operator`.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use ferrite_proto::api::HostListKind;
use ferrite_proto::host::{BmcSpec, Host, HostManifest};
use ferrite_proto::problem::{Code, Problem};
use ferrite_proto::resource::{ApiVersion, ListMetadata};
use ferrite_proto::secret::Secret;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::App;
use super::body::{self, Body, Query};
use super::catalog;
use super::error::Answered;
use super::list::{self, ListQuery};
use super::preconditions::{Preconditions, etag};
use super::watch::{self, Shown, Source, Watchers};
use crate::access::caller::{Visible, actor};
use crate::clock;
use crate::crash::{self, Moment, Work};
use crate::hosts::shown_as_json;
use crate::lifecycle::change::Change;
use crate::lifecycle::intent;
use crate::roll::HOST;
use crate::token;

/// Longest that a reader may wait for a change.
const LONGEST_WAIT: u64 = 60;

/// Wait for a version.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct After {
    after: Option<u64>,
    #[serde(default)]
    wait: u64,
}

/// Only say what would be.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DryRun {
    #[serde(default)]
    pub(crate) dry_run: bool,
}

/// `GET /v1/hosts`
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
    // Before the list is read: what changes meanwhile is told again.
    let revision = app.hosts.revision();
    let meant = app.hosts.after(&after).filter(|(_, stored)| {
        let host = &stored.record.host;
        let whole = || serde_json::to_value(host).unwrap_or_default();
        visible.sees(&host.project) && selectors.select(&host.project, &host.labels, whole)
    });
    let (items, next) = list::page(meant, limit, |(_, stored)| &stored.record.host.name);
    let items = items
        .iter()
        .map(|(live, stored)| shown_as_json(live, stored));
    let items = items
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| unwritten(&error))?;
    let all = Page {
        api_version: ApiVersion::V1,
        kind: HostListKind::HostList,
        metadata: list::metadata(revision, next),
        items: items.iter().map(AsRef::as_ref).collect(),
    };
    Ok(Json(all).into_response())
}

/// A [`HostList`] whose hosts are written already.
///
/// [`HostList`]: ferrite_proto::api::HostList
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Page<'a> {
    api_version: ApiVersion,
    kind: HostListKind,
    metadata: ListMetadata,
    items: Vec<&'a RawValue>,
}

fn unwritten(error: &serde_json::Error) -> Problem {
    let what = format!("a host cannot be written as JSON: {error}");
    Problem::new(Code::Internal, what, "report this")
}

fn source() -> Source {
    Source {
        change_kind: HOST,
        kind: "Host",
        names: Box::new(|app| app.hosts.names()),
        read: Box::new(|app, name| {
            let host = app.hosts.get(name).ok()?;
            Some(Shown {
                version: host.version,
                project: host.project.clone(),
                json: Box::new(move || serde_json::to_value(&host).unwrap_or_default()),
            })
        }),
    }
}

fn answer(status: StatusCode, host: &Host) -> Response {
    (status, etag(host.version), Json(host)).into_response()
}

/// `GET /v1/hosts/{name}`
pub(crate) async fn get(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Query(query): Query<After>,
) -> Answered {
    if query.wait > LONGEST_WAIT {
        let what = format!("wait is 0 to {LONGEST_WAIT}, not {}", query.wait);
        let advice = "call again when the time is over";
        return Err(Problem::new(Code::QueryInvalid, what, advice).into());
    }
    let above = query.after;
    if let (Some(after), Some(mut versions)) = (above, app.hosts.follow(&name)) {
        let wait = Duration::from_secs(query.wait);
        tokio::select! {
            _ = versions.wait_for(|version| *version > after) => {}
            () = tokio::time::sleep(wait) => {}
            () = app.stop.cancelled() => {}
        }
    }
    Ok(answer(StatusCode::OK, &app.hosts.get(&name)?))
}

/// `POST /v1/hosts`
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    Query(query): Query<DryRun>,
    Body(mut whole): Body<Value>,
) -> Answered {
    catalog::resolve(&app, &mut whole, None)?;
    enrol(&app, body::read_value(whole)?, query).await
}

async fn enrol(app: &App, manifest: HostManifest, query: DryRun) -> Answered {
    check_bmc(app, &manifest.spec.bmc)?;
    let uid = token::uid();
    let change = intent::enrol(manifest, uid, clock::now())?;
    if query.dry_run {
        app.hosts.is_free(&change.record.host)?;
        return Ok(answer(StatusCode::OK, &change.record.host));
    }
    crash::point(Work::Add, Moment::Before);
    let host = app.hosts.insert(&actor(), change).await?;
    crash::point(Work::Add, Moment::After);
    tracing::info!(host = %host.name, bmc = %host.spec.bmc.address, "host added");
    app.driver.drive(host.name.clone());
    Ok(answer(StatusCode::CREATED, &host))
}

/// An address that cannot be used is refused at once, not when the host is driven.
fn check_bmc(app: &App, spec: &BmcSpec) -> Result<(), Problem> {
    let tried = (app.world.connect)(spec, &Secret::new(String::new()));
    tried.map(|_| ()).map_err(|error| {
        let problem = Problem::from(error);
        Problem::new(Code::RequestInvalid, problem.message, problem.advice)
    })
}

/// `PUT /v1/hosts/{name}`
pub(crate) async fn put(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Query(query): Query<DryRun>,
    expected: Preconditions,
    Body(mut whole): Body<Value>,
) -> Answered {
    let before = app.hosts.stored(&name).ok();
    let before = before.as_ref().map(|stored| &stored.record.host);
    catalog::resolve(&app, &mut whole, before)?;
    let manifest: HostManifest = body::read_value(whole)?;
    if manifest.metadata.name != name {
        return Err(misnamed(&name, &manifest.metadata.name).into());
    }
    if before.is_none() && manifest.metadata.resource_version.is_none() {
        expected.check(None)?;
        return enrol(&app, manifest, query).await;
    }
    check_bmc(&app, &manifest.spec.bmc)?;
    change(&app, &name, query, |change| {
        expected.check(Some(change.record.host.version))?;
        change.apply(manifest.clone())
    })
    .await
}

/// `PATCH /v1/hosts/{name}`: a JSON merge patch of the manifest.
pub(crate) async fn patch(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Query(query): Query<DryRun>,
    expected: Preconditions,
    Body(patch): Body<Value>,
) -> Answered {
    change(&app, &name, query, |change| {
        expected.check(Some(change.record.host.version))?;
        let whole = catalog::patched(&app, &change.record.host, &patch)?;
        let manifest: HostManifest = body::read_value(whole)?;
        check_bmc(&app, &manifest.spec.bmc)?;
        change.apply(manifest)
    })
    .await
}

/// `DELETE /v1/hosts/{name}`
pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Query(query): Query<DryRun>,
    expected: Preconditions,
) -> Answered {
    let changed = change(&app, &name, query, |change| {
        expected.check(Some(change.record.host.version))?;
        change.delete()
    });
    changed.await?;
    crash::point(Work::Delete, Moment::After);
    Ok(StatusCode::ACCEPTED.into_response())
}

async fn change(
    app: &App,
    name: &str,
    query: DryRun,
    mut make: impl FnMut(&mut Change) -> Result<(), Problem>,
) -> Answered {
    if query.dry_run {
        let host = app.hosts.preview(name, make)?;
        app.hosts.is_free(&host)?;
        return Ok(answer(StatusCode::OK, &host));
    }
    let actor = actor();
    let changed = app.hosts.update(name, &actor, &mut make);
    let stored = changed.await?.0;
    crash::point(Work::Update, Moment::After);
    Ok(answer(StatusCode::OK, &app.hosts.shown(&stored)))
}

pub(super) fn misnamed(path: &str, body: &str) -> Problem {
    Problem::new(
        Code::NameMismatch,
        format!("metadata.name is {body:?}, but the call is of {path:?}"),
        "a name cannot be changed: give the same in both",
    )
}
