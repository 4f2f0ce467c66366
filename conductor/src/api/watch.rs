//! Following changes: server-sent events from a version on. Each change's `id` is its revision, so
//! that a client that was cut off goes on with `Last-Event-ID`. What is there when a watch begins
//! comes by name, not by revision, and has no `id`: a client that is cut off in the middle of it
//! begins again, and misses nothing. The bookmark after it is the first place to go on from.
//!
//! `DELETED` tells of a thing that is gone by its name only: there is nothing else left of it. One
//! that is there and no longer selected is told as it is now. How far a step is between two changes
//! is not told here; whoever wants it reads the host.
//!
//! A reader that takes nothing for a while is cut off; one that is merely slow gets the last state
//! of what it missed, not each one in between. There are so many watchers and no more.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderMap;
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use ferrite_proto::problem::{Code, Problem};
use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use super::App;
use super::select::Selectors;
use crate::access::caller::Visible;
use crate::hosts::Changed;
use crate::roll::What;

/// Watchers at once.
const WATCHERS: usize = 512;
/// Events that wait for a reader.
const WAITING: usize = 64;
/// How long a reader may take nothing.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between signs of life.
const HEARTBEAT: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 15 });

/// Slots for watchers.
#[derive(Debug, Clone)]
pub(crate) struct Watchers(Arc<Semaphore>);

impl Default for Watchers {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(WATCHERS)))
    }
}

impl Watchers {
    /// A slot, if there is one.
    pub(crate) fn slot(&self) -> Result<OwnedSemaphorePermit, Problem> {
        Arc::clone(&self.0).try_acquire_owned().map_err(|_| {
            Problem::new(
                Code::TooManyRequests,
                format!("{WATCHERS} are watching already"),
                "try again when another has ended",
            )
        })
    }
}

/// Where a watch goes on: what the client heard last, or else what it asked for.
pub(crate) fn from(headers: &HeaderMap, asked: Option<u64>) -> Option<u64> {
    let last = headers.get("last-event-id");
    let last = last.and_then(|value| value.to_str().ok()?.parse().ok());
    last.or(asked)
}

/// A resource as it is now.
pub(crate) struct Shown {
    /// Of its last change.
    pub(crate) version: u64,
    /// Whose it is.
    pub(crate) project: String,
    /// Writes the resource: most of what it costs, and not always wanted.
    pub(crate) json: Box<dyn FnOnce() -> Value + Send>,
}

impl std::fmt::Debug for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shown")
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

/// Gives all names.
pub(crate) type Names = Box<dyn Fn(&App) -> Vec<String> + Send + Sync>;
/// Gives one as it is now.
pub(crate) type Reader = Box<dyn Fn(&App, &str) -> Option<Shown> + Send + Sync>;

/// What a watch is of.
pub(crate) struct Source {
    /// As it is among changes.
    pub(crate) change_kind: &'static str,
    /// As it is in resources.
    pub(crate) kind: &'static str,
    /// All names.
    pub(crate) names: Names,
    /// One as it is now.
    pub(crate) read: Reader,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source")
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

/// Begins a watch.
pub(crate) fn start(
    app: &Arc<App>,
    watchers: &Watchers,
    source: Source,
    visible: Visible,
    selectors: Selectors,
    from: Option<u64>,
) -> Result<Response, Problem> {
    let slot = watchers.slot()?;
    let watching = app.hosts.seeing().metrics.watching();
    // Heard of from here on, so that nothing is lost between what was and what comes.
    let changes = app.hosts.changes();
    let now = app.hosts.revision();
    let missed = match from {
        Some(revision) => Some(app.hosts.since(revision)?),
        None => None,
    };
    let (sender, receiver) = mpsc::channel(WAITING);
    let mut watch = Watch {
        app: Arc::clone(app),
        source,
        visible,
        selectors,
        told: BTreeSet::new(),
        at: from.unwrap_or(now),
        sender,
    };
    tokio::spawn(async move {
        // An end is an end, whoever made it.
        let _ = watch.run(missed, changes).await;
        drop((slot, watching));
    });
    Ok(answer(receiver))
}

/// Events as they come.
pub(crate) fn answer(receiver: mpsc::Receiver<Event>) -> Response {
    use tokio_stream::StreamExt;
    let events = ReceiverStream::new(receiver).map(Ok::<_, Infallible>);
    Sse::new(events).into_response()
}

/// The reader is gone, or takes nothing.
#[derive(Debug)]
pub(crate) struct Ended;

/// Hands an event to the reader.
pub(crate) async fn tell(
    sender: &mpsc::Sender<Event>,
    word: &str,
    id: u64,
    object: &Value,
) -> Result<(), Ended> {
    send(sender, word, Some(id), object).await
}

async fn send(
    sender: &mpsc::Sender<Event>,
    word: &str,
    id: Option<u64>,
    object: &Value,
) -> Result<(), Ended> {
    let data = json!({"type": word, "object": object}).to_string();
    let event = Event::default().event(word).data(data);
    let event = match id {
        Some(id) => event.id(id.to_string()),
        None => event,
    };
    match tokio::time::timeout(PATIENCE, sender.send(event)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(Ended),
    }
}

/// A sign of life that says how far the watch is.
pub(crate) async fn bookmark(
    sender: &mpsc::Sender<Event>,
    kind: &str,
    id: u64,
) -> Result<(), Ended> {
    let object = json!({"apiVersion": "ferrite/v1", "kind": kind,
        "metadata": {"resourceVersion": id.to_string()}});
    tell(sender, "BOOKMARK", id, &object).await
}

struct Watch {
    app: Arc<App>,
    source: Source,
    visible: Visible,
    selectors: Selectors,
    /// Names that the reader knows of, as far as we know.
    told: BTreeSet<String>,
    at: u64,
    sender: mpsc::Sender<Event>,
}

impl Watch {
    async fn run(
        &mut self,
        missed: Option<Vec<Changed>>,
        mut changes: tokio::sync::broadcast::Receiver<Changed>,
    ) -> Result<(), Ended> {
        match missed {
            Some(missed) => self.catch_up(missed).await?,
            None => self.tell_all().await?,
        }
        bookmark(&self.sender, self.source.kind, self.at).await?;
        let stop = self.app.stop.clone();
        loop {
            let next = tokio::select! {
                next = changes.recv() => next,
                () = tokio::time::sleep(HEARTBEAT) => {
                    bookmark(&self.sender, self.source.kind, self.at).await?;
                    continue;
                }
                () = stop.cancelled() => return Ok(()),
                () = self.sender.closed() => return Err(Ended),
            };
            match next {
                Ok(one) => self.take(&one).await?,
                Err(RecvError::Lagged(_)) => self.after_lag().await?,
                Err(RecvError::Closed) => return Ok(()),
            }
        }
    }

    /// Everything as it is, for a reader that knows nothing.
    async fn tell_all(&mut self) -> Result<(), Ended> {
        for name in (self.source.names)(&self.app) {
            if let Some((_, json)) = self.seen(&name) {
                send(&self.sender, "ADDED", None, &json).await?;
                self.told.insert(name);
            }
        }
        Ok(())
    }

    /// What the reader missed; what it saw before is not known, so it counts as seen.
    async fn catch_up(&mut self, missed: Vec<Changed>) -> Result<(), Ended> {
        for name in (self.source.names)(&self.app) {
            if self.sees(&name) {
                self.told.insert(name);
            }
        }
        for changed in missed {
            let known = self.visible.sees(&changed.project);
            if known && changed.kind == self.source.change_kind {
                self.told.insert(changed.name.clone());
            }
            self.take(&changed).await?;
        }
        Ok(())
    }

    async fn after_lag(&mut self) -> Result<(), Ended> {
        let Ok(missed) = self.app.hosts.since(self.at) else {
            let gone = json!({"code": Code::RevisionGone, "status": 410,
                "detail": "the reader was too slow: list again"});
            return tell(&self.sender, "ERROR", self.at, &gone)
                .await
                .and(Err(Ended));
        };
        for changed in missed {
            self.take(&changed).await?;
        }
        Ok(())
    }

    async fn take(&mut self, changed: &Changed) -> Result<(), Ended> {
        if changed.revision <= self.at {
            return Ok(());
        }
        self.at = changed.revision;
        if changed.kind != self.source.change_kind {
            return Ok(());
        }
        let seen = self.seen(&changed.name);
        let seen = seen.filter(|_| changed.what != What::Removed);
        let name = &changed.name;
        match seen {
            // A later change is on its way, and says it all.
            Some((version, _)) if version > changed.revision => Ok(()),
            Some((_, json)) => {
                let new = self.told.insert(name.clone());
                let word = if new { "ADDED" } else { "MODIFIED" };
                tell(&self.sender, word, changed.revision, &json).await
            }
            None if self.told.remove(name) => {
                let gone = self.gone(changed);
                tell(&self.sender, "DELETED", changed.revision, &gone).await
            }
            None => Ok(()),
        }
    }

    /// One that the reader has no longer: all that is known of it, and may be.
    fn gone(&self, changed: &Changed) -> Value {
        let there = self.visible(&changed.name);
        match there.filter(|_| changed.what != What::Removed) {
            Some(shown) => (shown.json)(),
            None => json!({
                "apiVersion": "ferrite/v1", "kind": self.source.kind,
                "metadata": {
                    "name": changed.name, "resourceVersion": changed.revision.to_string(),
                },
            }),
        }
    }

    /// Whether the reader may see one and asked for it.
    fn sees(&self, name: &str) -> bool {
        let shown = self.visible(name);
        shown.is_some_and(|shown| {
            self.selectors.is_empty() || self.selectors.select_json(&(shown.json)())
        })
    }

    /// The version of one, and what it is now, if the reader may see it and asked for it.
    fn seen(&self, name: &str) -> Option<(u64, Value)> {
        let shown = self.visible(name)?;
        let json = (shown.json)();
        let meant = self.selectors.is_empty() || self.selectors.select_json(&json);
        meant.then_some((shown.version, json))
    }

    fn visible(&self, name: &str) -> Option<Shown> {
        let shown = (self.source.read)(&self.app, name)?;
        self.visible.sees(&shown.project).then_some(shown)
    }
}
