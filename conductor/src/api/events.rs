//! The log of all hosts: the newest lines first asked for, older ones by `continue`, new ones by a
//! watch. Its `resourceVersion` is a place in the log, not a revision of the store.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::Event as Sent;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use ferrite_proto::api::{Event, FleetEventKind, FleetEvents};
use ferrite_proto::problem::{Code, Problem};
use ferrite_proto::resource::ApiVersion;
use jiff::Timestamp;
use serde::Deserialize;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;

use super::App;
use super::body::Query;
use super::error::Answered;
use super::list;
use super::watch::{self, Ended, Watchers, bookmark, tell};
use crate::access::caller::Visible;
use crate::store::LogLine;

/// Lines read at once.
const READ: u32 = 1000;
/// Lines looked through for one page: a rare kind of line may take several pages.
const LOOKED_THROUGH: u32 = 20_000;
/// Lines on a page when nothing is said, and the most.
const PAGE: usize = 200;
const MOST: usize = 1000;
/// Between signs of life.
const HEARTBEAT: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 15 });

/// What stands behind the `?`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EventQuery {
    limit: Option<usize>,
    #[serde(rename = "continue")]
    before: Option<String>,
    host: Option<String>,
    kind: Option<String>,
    project: Option<String>,
    since: Option<Timestamp>,
    #[serde(default)]
    watch: bool,
    resource_version: Option<String>,
}

/// `GET /v1/events`
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    Extension(watchers): Extension<Watchers>,
    visible: Visible,
    headers: HeaderMap,
    Query(query): Query<EventQuery>,
) -> Answered {
    // Nothing that cannot be read is passed over, also where a call has no use for it.
    let asked = number(query.resource_version.as_deref(), "resource_version")?;
    let before = number(query.before.as_deref(), "continue")?;
    let limit = query.limit.unwrap_or(PAGE);
    if limit == 0 || limit > MOST {
        return Err(invalid(format!("limit is 1 to {MOST}, not {limit}")).into());
    }
    if query.watch {
        let from = watch::from(&headers, asked);
        return Ok(follow(app, &watchers, visible, query, from).await?);
    }
    let newest = newest(&app).await?;
    let before = before.unwrap_or(newest + 1);
    let (items, next) = page(&app, &query, &visible, before, limit).await?;
    Ok(Json(FleetEvents {
        api_version: ApiVersion::V1,
        kind: FleetEventKind::EventList,
        metadata: list::metadata(newest, next),
        items,
    })
    .into_response())
}

/// At most so many lines before a place, oldest first, and where older ones are.
async fn page(
    app: &App,
    query: &EventQuery,
    visible: &Visible,
    mut before: u64,
    limit: usize,
) -> Result<(Vec<Event>, Option<String>), Problem> {
    let (mut items, mut looked) = (Vec::new(), 0);
    'pages: while before > 0 && looked < LOOKED_THROUGH {
        let lines = app.hosts.log_before(before, READ).await?;
        looked += READ;
        let is_last = lines.len() < READ as usize;
        for line in lines {
            before = line.id;
            items.extend(event(app, query, visible, line));
            if items.len() == limit {
                break 'pages;
            }
        }
        before = if is_last { 0 } else { before };
    }
    items.reverse();
    Ok((items, (before > 0).then(|| before.to_string())))
}

/// The place of the last line.
async fn newest(app: &App) -> Result<u64, Problem> {
    let last = app.hosts.log_before(u64::MAX, 1).await?;
    Ok(last.first().map_or(0, |line| line.id))
}

fn number(text: Option<&str>, what: &str) -> Result<Option<u64>, Problem> {
    let text = text.filter(|text| !text.is_empty());
    let read = text.map(|text| {
        let digits = text.len() <= 18 && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse().ok().filter(|_| digits);
        number.ok_or_else(|| invalid(format!("{text:?} is no {what}")))
    });
    read.transpose()
}

fn invalid(what: String) -> Problem {
    Problem::new(Code::QueryInvalid, what, "/openapi.json describes the call")
}

/// A line, if it is meant and may be seen.
fn event(app: &App, query: &EventQuery, visible: &Visible, line: LogLine) -> Option<Event> {
    let stored = app.hosts.stored(&line.host).ok()?;
    let project = &stored.record.host.project;
    let is = |asked: &Option<String>, it: &str| asked.as_deref().is_none_or(|asked| asked == it);
    let meant = is(&query.host, &line.host)
        && is(&query.kind, &line.event.kind)
        && is(&query.project, project)
        && query.since.is_none_or(|since| line.event.at >= since);
    (meant && visible.sees(project)).then(|| Event {
        id: line.id,
        at: line.event.at,
        host: line.host,
        project: project.clone(),
        kind: line.event.kind,
        text: line.event.text,
    })
}

async fn follow(
    app: Arc<App>,
    watchers: &Watchers,
    visible: Visible,
    query: EventQuery,
    from: Option<u64>,
) -> Result<Response, Problem> {
    let slot = watchers.slot()?;
    let watching = app.hosts.seeing().metrics.watching();
    let mut changes = app.hosts.changes();
    let mut at = match from {
        Some(from) => from,
        None => newest(&app).await?,
    };
    let (sender, receiver) = mpsc::channel(64);
    tokio::spawn(async move {
        let _held = (slot, watching);
        let stop = app.stop.clone();
        // The reader hears at once that it is heard, and from where on.
        if bookmark(&sender, "Event", at).await.is_err() {
            return;
        }
        while say(&app, &query, &visible, &sender, &mut at).await.is_ok() {
            let heard = tokio::select! {
                next = changes.recv() => next.map(|_| ()),
                () = tokio::time::sleep(HEARTBEAT) => match bookmark(&sender, "Event", at).await {
                    Ok(()) => Ok(()),
                    Err(Ended) => return,
                },
                () = stop.cancelled() => return,
                () = sender.closed() => return,
            };
            if matches!(heard, Err(RecvError::Closed)) {
                return;
            }
            // What else has come is read at once.
            while changes.try_recv().is_ok() {}
        }
    });
    Ok(watch::answer(receiver))
}

/// Tells what the log says after a place.
async fn say(
    app: &App,
    query: &EventQuery,
    visible: &Visible,
    sender: &mpsc::Sender<Sent>,
    at: &mut u64,
) -> Result<(), Ended> {
    loop {
        let Ok(lines) = app.hosts.log(*at, READ).await else {
            // The reader comes back with the last place that it heard.
            return Err(Ended);
        };
        let whole = lines.len() == READ as usize;
        for line in lines {
            *at = line.id;
            if let Some(event) = event(app, query, visible, line) {
                let object = serde_json::to_value(&event).unwrap_or_default();
                tell(sender, "ADDED", event.id, &object).await?;
            }
        }
        if !whole {
            return Ok(());
        }
    }
}
