//! Events, told to others: at least once, in order for each webhook, signed as Standard Webhooks
//! want it.
//!
//! A webhook reads the store's log behind a cursor of its own that is stored, too: a receiver that
//! is down for a day, or a conductor that was killed, costs repeats and loses nothing that the log
//! still has; what was said of a host that was removed waits for a week. Each has its own task, so
//! that a stuck receiver is waited for by nobody else.
//!
//! Of several replicas one delivers at a time: the cursor names it, and is written only over the
//! revision that was read. Who delivers renews; another takes over when it saw no renewal for a
//! while by its own clock, so that clocks that differ do no harm.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ferrite_proto::problem::Problem;
use ferrite_proto::secret::Secret;
use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Seeing;
use super::config::{self, FileError, WebhookConfig};
use crate::crash::{self, Moment, Work};
use crate::{clock, token};

/// Lines that are read at once.
const PAGE: u32 = 200;
/// Deliveries after which the cursor is stored, if not before: at most so many are repeated.
const KEEP_EVERY: u32 = 50;
/// How long a receiver may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// A look without being told of news: what another replica stored is not told of.
const LOOK: Duration = Duration::from_secs(15);

/// What is not renewed for so long is another's to take.
const LEASE: Duration = Duration::from_secs(15);
/// Between renewals.
const RENEWAL: Duration = Duration::from_secs(5);

/// What comes of reading or keeping.
pub(crate) type Kept<'a, T> = Pin<Box<dyn Future<Output = Result<T, Problem>> + Send + 'a>>;

/// An event with its place in the log of all hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    /// Its place; later ones are larger.
    pub(crate) id: u64,
    /// Which host.
    pub(crate) host: String,
    /// `state`, `error`, …
    pub(crate) kind: String,
    /// When.
    pub(crate) at: Timestamp,
    /// In words.
    pub(crate) text: String,
}

/// How far a webhook is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cursor {
    /// Everything up to here was taken.
    pub(crate) after: u64,
    /// Of the address: another one begins without what was said of this one.
    pub(crate) url_sha256: String,
    /// The receiver said that it is gone.
    #[serde(default)]
    pub(crate) gone: bool,
    /// The replica that delivers; empty when none does.
    #[serde(default)]
    pub(crate) owner: String,
    /// Changes with each renewal.
    #[serde(default)]
    pub(crate) beat: u64,
}

/// A cursor as it is stored, and the revision that the next one is written over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Held {
    /// The cursor.
    pub(crate) cursor: Cursor,
    /// Of its last change; none when it is not stored yet.
    pub(crate) revision: Option<u64>,
}

/// Where events come from, and where cursors are kept.
pub(crate) trait Outbox: Send + Sync {
    /// Lines after a place, oldest first.
    fn after(&self, place: u64, limit: u32) -> Kept<'_, Vec<Line>>;
    /// The place of the last line.
    fn end(&self) -> Kept<'_, u64>;
    /// The cursor of a webhook.
    fn cursor<'a>(&'a self, webhook: &'a str) -> Kept<'a, Option<Held>>;
    /// Stores it over the revision that is held: the new one, or none when another wrote since.
    fn keep<'a>(&'a self, webhook: &'a str, held: &'a Held) -> Kept<'a, Option<u64>>;
    /// Whether other replicas may deliver, too.
    fn is_shared(&self) -> bool;
}

/// Pauses between attempts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Backoff {
    /// The first.
    pub(crate) first: Duration,
    /// The longest.
    pub(crate) longest: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            first: Duration::from_secs(1),
            longest: Duration::from_mins(5),
        }
    }
}

impl Backoff {
    /// Twice as long each time, and between half of it and all of it, so that those who failed
    /// together do not come back together. `chance` is within 0 and 1.
    fn pause(self, attempt: u32, chance: f64) -> Duration {
        let doubled = self.first.saturating_mul(1 << attempt.min(20));
        doubled.min(self.longest).mul_f64(0.5 + chance / 2.0)
    }
}

/// How long things hold between replicas.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lease {
    /// Without renewal.
    holds: Duration,
    /// Between renewals.
    renewal: Duration,
    /// Between looks without news.
    look: Duration,
}

impl Default for Lease {
    fn default() -> Self {
        Self {
            holds: LEASE,
            renewal: RENEWAL,
            look: LOOK,
        }
    }
}

/// One webhook, ready to deliver.
pub(crate) struct Webhook {
    /// This replica; of a conductor that is alone the same after each start.
    me: String,
    lease: Lease,
    /// When it renewed last.
    renewed: Option<Instant>,
    /// Another's last renewal, and when it was first seen.
    other: Option<(String, u64, Instant)>,
    config: WebhookConfig,
    key: Secret<Vec<u8>>,
    client: reqwest::Client,
    backoff: Backoff,
    outbox: Arc<dyn Outbox>,
    seeing: Arc<Seeing>,
}

/// What a round came to.
enum Round {
    /// There may be more.
    More,
    /// Nothing is left, or somebody else does it.
    Idle,
    /// It was told to stop.
    Stopped,
}

/// What became of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Delivery {
    Taken,
    Gone,
    Stopped,
}

impl Webhook {
    /// Reads its key and its authorities.
    pub(crate) fn new(
        config: WebhookConfig,
        backoff: Backoff,
        outbox: Arc<dyn Outbox>,
        seeing: Arc<Seeing>,
    ) -> Result<Self, FileError> {
        let me = if outbox.is_shared() {
            token::random().expose().clone()
        } else {
            "alone".to_owned()
        };
        Ok(Self {
            me,
            lease: Lease::default(),
            renewed: None,
            other: None,
            key: config::webhook_key(&config.secret_file)?,
            client: config::client(config.ca_file.as_deref(), PATIENCE)?,
            config,
            backoff,
            outbox,
            seeing,
        })
    }

    /// Delivers until it is told to stop. `news` changes whenever something may have been stored.
    pub(crate) async fn run(mut self, mut news: watch::Receiver<u64>, stop: CancellationToken) {
        loop {
            let pause = match self.round(&stop).await {
                Ok(Round::Stopped) => return,
                Ok(Round::More) => continue,
                Ok(Round::Idle) => self.lease.look,
                Err(problem) => {
                    tracing::warn!(webhook = self.config.name, %problem, "cannot go on");
                    self.backoff.pause(3, rand::random())
                }
            };
            tokio::select! {
                told = news.changed() => if told.is_err() { return },
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    async fn round(&mut self, stop: &CancellationToken) -> Result<Round, Problem> {
        let Some(mut held) = self.begin().await? else {
            return Ok(Round::Idle);
        };
        if held.cursor.gone {
            return Ok(Round::Idle);
        }
        let lines = self.outbox.after(held.cursor.after, PAGE).await?;
        let full = lines.len() >= PAGE as usize;
        // Claimed before anything is sent: of two replicas one delivers.
        if lines.is_empty() || !self.claim(&mut held).await? {
            self.seeing.metrics.webhook_waits(&self.config.name, None);
            return Ok(Round::Idle);
        }
        let mut unkept = 0;
        let mut round = if full { Round::More } else { Round::Idle };
        for line in lines {
            match self.deliver_renewing(&line, &mut held, stop).await? {
                Some(Delivery::Taken) => held.cursor.after = line.id,
                Some(Delivery::Gone) => {
                    held.cursor.gone = true;
                    round = Round::Idle;
                    break;
                }
                Some(Delivery::Stopped) => {
                    // Whoever is left goes on at once.
                    held.cursor.owner = String::new();
                    round = Round::Stopped;
                    break;
                }
                None => return Ok(Round::Idle),
            }
            unkept += 1;
            if unkept >= KEEP_EVERY {
                unkept = 0;
                if !self.keep(&mut held).await? {
                    return Ok(Round::Idle);
                }
            }
        }
        if !self.keep(&mut held).await? && matches!(round, Round::More) {
            round = Round::Idle;
        }
        Ok(round)
    }

    /// Makes this replica the one that delivers; false when another is.
    async fn claim(&mut self, held: &mut Held) -> Result<bool, Problem> {
        let cursor = &mut held.cursor;
        let is_mine = cursor.owner == self.me;
        let lately = |renewed: Instant| renewed.elapsed() < self.lease.renewal;
        if is_mine && (!self.outbox.is_shared() || self.renewed.is_some_and(lately)) {
            return Ok(true);
        }
        if !is_mine && !cursor.owner.is_empty() {
            let seen = match &self.other {
                Some((owner, beat, seen)) if *owner == cursor.owner && *beat == cursor.beat => {
                    *seen
                }
                _ => Instant::now(),
            };
            self.other = Some((cursor.owner.clone(), cursor.beat, seen));
            if self.outbox.is_shared() && seen.elapsed() < self.lease.holds {
                return Ok(false);
            }
        }
        cursor.owner.clone_from(&self.me);
        self.keep(held).await
    }

    /// Stores how far it is, which renews; false when another took over.
    async fn keep(&mut self, held: &mut Held) -> Result<bool, Problem> {
        let asked = Instant::now();
        held.cursor.beat += 1;
        held.revision = match self.outbox.keep(&self.config.name, held).await? {
            Some(revision) => Some(revision),
            None => return Ok(false),
        };
        self.renewed = Some(asked);
        crash::point(Work::Deliver, Moment::After);
        Ok(true)
    }

    /// Delivers, and renews meanwhile; none when another took over.
    async fn deliver_renewing(
        &mut self,
        line: &Line,
        held: &mut Held,
        stop: &CancellationToken,
    ) -> Result<Option<Delivery>, Problem> {
        let mut renewed = self.renewed.unwrap_or_else(Instant::now);
        let delivery = {
            let mut sending = std::pin::pin!(self.deliver(line, stop));
            loop {
                let due = self.lease.renewal.saturating_sub(renewed.elapsed());
                tokio::select! {
                    biased;
                    delivery = &mut sending => break delivery,
                    () = tokio::time::sleep(due), if self.outbox.is_shared() => {}
                }
                renewed = Instant::now();
                held.cursor.beat += 1;
                held.revision = match self.outbox.keep(&self.config.name, held).await? {
                    Some(revision) => Some(revision),
                    None => return Ok(None),
                };
            }
        };
        self.renewed = Some(renewed);
        Ok(Some(delivery))
    }

    /// The cursor that is stored; of a new webhook, or one that moved, a new one. None when
    /// another replica makes it now.
    async fn begin(&mut self) -> Result<Option<Held>, Problem> {
        let url_sha256 = token::sha256(&self.config.url);
        if let Some(mut held) = self.outbox.cursor(&self.config.name).await? {
            if held.cursor.url_sha256 != url_sha256 {
                held.cursor.url_sha256 = url_sha256;
                held.cursor.gone = false;
            }
            return Ok(Some(held));
        }
        // What happened before anybody wanted to know is not sent.
        let cursor = Cursor {
            after: self.outbox.end().await?,
            url_sha256,
            gone: false,
            owner: String::new(),
            beat: 0,
        };
        let mut held = Held {
            cursor,
            revision: None,
        };
        let kept = self.keep(&mut held).await?;
        Ok(kept.then_some(held))
    }

    fn wants(&self, line: &Line) -> bool {
        self.config.kinds.is_empty() || self.config.kinds.contains(&line.kind)
    }

    /// Tries until it is taken: what comes after it waits, so that the order holds.
    async fn deliver(&self, line: &Line, stop: &CancellationToken) -> Delivery {
        if !self.wants(line) {
            return Delivery::Taken;
        }
        let body = body(line);
        let mut attempt = 0;
        loop {
            let waiting = Some(line.at);
            self.seeing
                .metrics
                .webhook_waits(&self.config.name, waiting);
            crash::point(Work::Deliver, Moment::Before);
            let sent = tokio::select! {
                sent = self.send(line.id, &body) => sent,
                () = stop.cancelled() => return Delivery::Stopped,
            };
            let why = match sent {
                Ok(status) if status.is_success() => {
                    crash::point(Work::Deliver, Moment::Acted);
                    self.seeing.metrics.webhook(&self.config.name, "taken");
                    return Delivery::Taken;
                }
                Ok(reqwest::StatusCode::GONE) => {
                    let webhook = &self.config.name;
                    tracing::warn!(webhook, "the receiver is gone (410): nothing more is sent");
                    self.seeing.metrics.webhook(webhook, "gone");
                    return Delivery::Gone;
                }
                Ok(status) => format!("HTTP {}", status.as_u16()),
                Err(error) => error.without_url().to_string(),
            };
            self.seeing.metrics.webhook(&self.config.name, "failed");
            let pause = self.backoff.pause(attempt, rand::random());
            let webhook = &self.config.name;
            tracing::warn!(webhook, event = line.id, attempt, ?pause, why, "not taken");
            attempt = attempt.saturating_add(1);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => return Delivery::Stopped,
            }
        }
    }

    async fn send(&self, id: u64, body: &str) -> Result<reqwest::StatusCode, reqwest::Error> {
        let id = format!("evt_{id}");
        let timestamp = clock::now().as_second();
        let signature = sign(self.key.expose(), &id, timestamp, body);
        let request = self.client.post(&self.config.url);
        let sent = request
            .header("content-type", "application/json")
            .header("webhook-id", id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", signature)
            .body(body.to_owned());
        // What the receiver says beside its status is not read.
        sent.send().await.map(|answer| answer.status())
    }
}

fn body(line: &Line) -> String {
    serde_json::json!({
        "type": format!("host.{}", line.kind),
        "timestamp": line.at,
        "data": {
            "id": line.id, "host": line.host, "kind": line.kind, "text": line.text,
        },
    })
    .to_string()
}

/// `v1,` and base64 of HMAC-SHA256 over number, time and body.
fn sign(key: &[u8], id: &str, timestamp: i64, body: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(format!("{id}.{timestamp}.{body}").as_bytes());
    let digest = mac.finalize().into_bytes();
    format!("v1,{}", BASE64_STANDARD.encode(digest))
}

#[cfg(test)]
mod tests;
