//! Starts what sends and serves what is seen, as the configuration has it: figures for anybody,
//! traces, webhooks.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;
use ferrite_proto::problem::{Code, Problem};
use jiff::SignedDuration;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::config::SeeingConfig;
use super::metrics;
use super::traces::{self, Exporter};
use super::webhooks::{Backoff, Held, Kept, Line, Outbox, Webhook};
use crate::clock;
use crate::hosts::Hosts;
use crate::lifecycle::record::Limits;
use crate::listen::{self, Bounds};
use crate::store::{Document, Expect};

/// Kind of the documents in which cursors are kept.
const CURSOR: &str = "WebhookCursor";
/// Connections to the figures.
const CONNECTIONS: usize = 64;
/// How long nothing of an answer may be taken.
const STALL: Duration = Duration::from_secs(30);

/// Between looks at what may be forgotten.
const FORGET: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 60 });
/// For how long lines of a removed host wait for a webhook whose receiver is down.
const DEPARTED: SignedDuration = SignedDuration::from_hours(7 * 24);

/// Starts all of it; it ends after `stop`. What cannot be started says so now.
pub(crate) fn start(
    config: SeeingConfig,
    hosts: &Arc<Hosts>,
    limits: &Limits,
    stop: &CancellationToken,
) -> anyhow::Result<JoinSet<()>> {
    let mut tasks = JoinSet::new();
    if let Some(at) = config.metrics {
        let listener = std::net::TcpListener::bind(at)
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .with_context(|| format!("listening on {at} for metrics"))?;
        let served = (Arc::clone(hosts), limits.clone());
        tasks.spawn(serve_figures(listener, served, stop.clone()));
    }
    if let Some(traces) = &config.traces {
        let exporter = Exporter::new(traces, Duration::from_secs(1)).context("starting traces")?;
        let (to, from) = mpsc::channel(traces::QUEUE);
        hosts.seeing().send_runs_to(to);
        tasks.spawn(exporter.run(from, stop.clone()));
    }
    let told = config.webhooks.iter().map(|webhook| webhook.name.clone());
    tasks.spawn(forget(Arc::clone(hosts), told.collect(), stop.clone()));
    if config.webhooks.is_empty() {
        return Ok(tasks);
    }
    let news = watch::Sender::new(0);
    for webhook in config.webhooks {
        let name = webhook.name.clone();
        let outbox: Arc<dyn Outbox> = Arc::<Hosts>::clone(hosts);
        let seeing = Arc::clone(hosts.seeing());
        let webhook = Webhook::new(webhook, Backoff::default(), outbox, seeing)
            .with_context(|| format!("starting the webhook {name:?}"))?;
        tasks.spawn(webhook.run(news.subscribe(), stop.clone()));
    }
    tasks.spawn(tell_news(Arc::clone(hosts), news, stop.clone()));
    Ok(tasks)
}

type Served = (Arc<Hosts>, Limits);

async fn serve_figures(listener: std::net::TcpListener, served: Served, stop: CancellationToken) {
    let router = axum::Router::new()
        .route("/metrics", get(figures))
        .with_state(Arc::new(served));
    let bounded = match axum_server::from_tcp(listener) {
        Ok(open) => listen::bounded(
            open,
            Bounds {
                connections: CONNECTIONS,
                per_address: CONNECTIONS,
                stall: STALL,
            },
        ),
        Err(error) => return tracing::error!(%error, "metrics are not served"),
    };
    tokio::select! {
        ended = bounded.serve(router.into_make_service()) => {
            tracing::error!(?ended, "metrics are not served any more");
        }
        () = stop.cancelled() => {}
    }
}

async fn figures(State(served): State<Arc<Served>>) -> impl IntoResponse {
    let (hosts, limits) = &*served;
    let text = super::figures(hosts, limits, clock::now());
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text)
}

/// Wakes the webhooks after each change.
async fn tell_news(hosts: Arc<Hosts>, news: watch::Sender<u64>, stop: CancellationToken) {
    let mut changes = hosts.changes();
    loop {
        let told = tokio::select! {
            told = changes.recv() => told,
            () = stop.cancelled() => return,
        };
        match told {
            // A cursor that was stored is no news.
            Ok(change) if change.kind == CURSOR => {}
            Ok(change) => drop(news.send_replace(change.revision)),
            Err(RecvError::Lagged(_)) => drop(news.send_replace(hosts.revision())),
            Err(RecvError::Closed) => return,
        }
    }
}

/// Forgets what was said of removed hosts, once every webhook has told it.
async fn forget(hosts: Arc<Hosts>, webhooks: Vec<String>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(FORGET) => {}
            () = stop.cancelled() => return,
        }
        if let Err(problem) = forget_now(&hosts, &webhooks).await {
            tracing::warn!(%problem, "lines of removed hosts stay for now");
        }
    }
}

async fn forget_now(hosts: &Hosts, webhooks: &[String]) -> Result<(), Problem> {
    let mut told = u64::MAX;
    for webhook in webhooks {
        let held = hosts.cursor(webhook).await?;
        let upto = match held {
            Some(held) if held.cursor.gone => u64::MAX,
            held => held.map_or(0, |held| held.cursor.after),
        };
        told = told.min(upto);
    }
    let before = clock::now().checked_sub(DEPARTED);
    let before = before.unwrap_or(jiff::Timestamp::MIN);
    hosts.forget_departed(told, before).await
}

impl Outbox for Hosts {
    fn after(&self, place: u64, limit: u32) -> Kept<'_, Vec<Line>> {
        Box::pin(async move {
            let lines = self.outbox(place, limit).await?;
            let lines = lines.into_iter().map(|line| Line {
                id: line.id,
                host: line.host,
                kind: line.event.kind,
                at: line.event.at,
                text: line.event.text,
            });
            Ok(lines.collect())
        })
    }

    fn end(&self) -> Kept<'_, u64> {
        Box::pin(self.log_end())
    }

    fn cursor<'a>(&'a self, webhook: &'a str) -> Kept<'a, Option<Held>> {
        Box::pin(async move {
            let Some(kept) = self.documents().get(CURSOR, webhook) else {
                return Ok(None);
            };
            let cursor = serde_json::from_value(kept.body.clone()).map_err(|error| {
                Problem::new(
                    Code::Internal,
                    format!("the cursor of webhook {webhook:?} cannot be read: {error}"),
                    "give the webhook another name: it begins anew",
                )
            })?;
            let revision = Some(kept.revision);
            Ok(Some(Held { cursor, revision }))
        })
    }

    fn keep<'a>(&'a self, webhook: &'a str, held: &'a Held) -> Kept<'a, Option<u64>> {
        Box::pin(async move {
            let body = serde_json::json!(held.cursor);
            let document = Document::new(CURSOR, webhook, clock::now(), body);
            let expect = held.revision.map_or(Expect::Absent, Expect::Revision);
            let documents = self.documents();
            match documents.put(document, expect, Vec::new()).await {
                Err(problem) if matches!(problem.code, Code::Conflict | Code::AlreadyExists) => {
                    Ok(None)
                }
                put => put.map(Some),
            }
        })
    }

    fn is_shared(&self) -> bool {
        self.ownership().is_shared()
    }
}
