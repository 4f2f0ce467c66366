//! What people and their tools ask of one host at once, and read of it.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use ferrite_proto::api::{EventList, Explanation, FleetTimeline, Provision, Timeline, Version};
use ferrite_proto::host::Host;
use ferrite_proto::inventory::Inventory;
use ferrite_proto::problem::{Code, Problem};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;

use super::{Answer, App, Body, Query};
use crate::access::caller::{Visible, actor};
use crate::clock;
use crate::crash::{self, Moment, Work};
use crate::lifecycle::explain as words;
use crate::seeing::fleet;

const MOST_EVENTS: u32 = 2000;
const MOST_RUNS: u32 = 50;
/// Runs of all hosts that percentiles are taken of.
const MOST_OF_FLEET: u32 = 5000;
/// How far back those go, unless asked otherwise.
const FLEET_SINCE: SignedDuration = SignedDuration::from_hours(24);

/// How many.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Limit {
    limit: Option<u32>,
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

/// Since when.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Since {
    since: Option<Timestamp>,
}

/// `GET /v1/timeline`
pub(crate) async fn fleet_timeline(
    State(app): State<Arc<App>>,
    visible: Visible,
    Query(query): Query<Since>,
) -> Answer<FleetTimeline> {
    let day = clock::now().checked_sub(FLEET_SINCE);
    let since = query.since.unwrap_or(day.unwrap_or(Timestamp::MIN));
    let mut runs = app.hosts.runs_since(since, MOST_OF_FLEET).await?;
    let complete = runs.len() < MOST_OF_FLEET as usize;
    // Those of a host that is gone are for who sees everything.
    runs.retain(|run| match app.hosts.stored(&run.host) {
        Ok(stored) => visible.sees(&stored.record.host.project),
        Err(_) => visible == Visible::all(),
    });
    Ok(Json(FleetTimeline {
        since,
        complete,
        kinds: fleet::percentiles(&runs),
    }))
}

/// `GET /v1/version`
pub(crate) async fn version() -> Answer<Version> {
    Ok(Json(Version {
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }))
}
