//! Calls of those who look on: figures, and whether the conductor is well.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use ferrite_proto::api::{LogLine, LogLines};
use ferrite_proto::problem::{Code, Problem};
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use super::{ApiError, App, Query};
use crate::clock;
use crate::seeing::{gather, metrics};

/// `GET /metrics`
pub(crate) async fn figures(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let (hosts, limits) = (&app.hosts, &app.world.limits);
    let text = crate::seeing::figures(hosts, limits, clock::now());
    Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}

/// `GET /healthz`: the process answers.
pub(crate) async fn alive() -> &'static str {
    "ok\n"
}

/// `GET /readyz`: the store answers and takes what is written, and the conductor is not on its way
/// out.
pub(crate) async fn ready(State(app): State<Arc<App>>) -> (StatusCode, &'static str) {
    let stopping = app.stop.is_cancelled();
    // Whoever asks is not known: no more is told than in one word why not.
    match app.hosts.answers().await {
        Ok(()) if !stopping => (StatusCode::OK, "ok\n"),
        Ok(()) => (StatusCode::SERVICE_UNAVAILABLE, "stopping\n"),
        Err(problem) => {
            tracing::error!(%problem, "not ready");
            let why = match problem.code {
                Code::StoreFull => "store-full\n",
                Code::StoreUnavailable => "store-unavailable\n",
                _ => "not ready\n",
            };
            (StatusCode::SERVICE_UNAVAILABLE, why)
        }
    }
}

/// Lines that are told when nobody says how many.
const TAIL: usize = 100;
/// Between signs of life on a quiet stream.
const QUIET: Duration = Duration::from_secs(15);

/// Which lines.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Which {
    tail: Option<usize>,
    #[serde(default)]
    follow: bool,
}

/// `GET /v1/hosts/{name}/logs`: the last lines of the host's agent; with `follow=true` as events
/// of a stream that goes on.
pub(crate) async fn logs(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Query(which): Query<Which>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    app.hosts.stored(&name)?;
    let tail = which.tail.unwrap_or(TAIL);
    let lines = &app.hosts.seeing().agent_lines;
    if !which.follow {
        let items = lines.tail(&name, tail);
        return Ok(Json(LogLines { items }).into_response());
    }
    let (mut before, heard) = lines.follow(&name, tail);
    // Whoever comes back goes on behind the last line that was read.
    let known = headers
        .get("last-event-id")
        .and_then(|id| id.to_str().ok()?.parse().ok());
    before.retain(|line| known.is_none_or(|known: u64| line.number > known));
    let last = before.last().map(|line| line.number).or(known).unwrap_or(0);
    let watching = app.hosts.seeing().metrics.watching();
    let stop = app.stop.clone();
    let to_come = stream::unfold((heard, watching), move |(mut heard, watching)| {
        let stop = stop.clone();
        async move {
            tokio::select! {
                told = next(&mut heard, last) => told.map(|event| (event, (heard, watching))),
                () = stop.cancelled() => None,
            }
        }
    });
    let before = stream::iter(before.into_iter().map(|line| event(&line)));
    let all = before.chain(to_come).map(Ok::<_, Infallible>);
    let alive = KeepAlive::new().interval(QUIET);
    Ok(Sse::new(all).keep_alive(alive).into_response())
}

/// The next line that was not told yet; none when there will be no more.
async fn next(heard: &mut Receiver<LogLine>, last: u64) -> Option<Event> {
    loop {
        match heard.recv().await {
            Ok(line) if line.number <= last => {}
            Ok(line) => return Some(event(&line)),
            Err(RecvError::Lagged(missed)) => {
                let missed = missed.to_string();
                return Some(Event::default().event("missed").data(missed));
            }
            Err(RecvError::Closed) => return None,
        }
    }
}

fn event(line: &LogLine) -> Event {
    let event = Event::default().event("line").id(line.number.to_string());
    let text = serde_json::to_string(line).unwrap_or_default();
    event.data(text)
}

/// `GET /v1/support-bundle`
pub(crate) async fn bundle(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let facts = gather::facts(&app).await?;
    let packed = tokio::task::spawn_blocking(move || gather::pack(facts)).await;
    let cannot = |why: String| {
        let text = format!("the bundle cannot be packed: {why}");
        Problem::new(Code::Internal, text, "look at the conductor's log")
    };
    let packed = packed.map_err(|error| cannot(error.to_string()))?;
    let (name, bytes) = packed.map_err(|error| cannot(error.to_string()))?;
    let headers = [
        (header::CONTENT_TYPE, "application/gzip".to_owned()),
        (
            header::CONTENT_DISPOSITION,
            format!("attachment; filename={name:?}"),
        ),
    ];
    Ok((headers, bytes).into_response())
}
