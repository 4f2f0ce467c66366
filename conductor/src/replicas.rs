//! One of several conductors on one database: keeps its lease, takes and gives hosts, follows what
//! the others write.
//!
//! Every replica answers every call, of people as of agents; who drives a host is settled here.
//! A replica that cannot renew its lease stops driving before others may take its hosts.

#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use serde_json::{Map, Value};
use sqlx::PgPool;
use sqlx::postgres::PgListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::hosts::Hosts;
use crate::lifecycle::driver::Driver;
use crate::store::backup;
use crate::store::commit::CHANNEL;
use crate::store::database::Database;
use crate::store::leases::{Leases, TTL};
use crate::store::{Document, Entries, Expect, Store, StoreError, Write};
use crate::token;

/// Between renewals.
const RENEWAL: Duration = Duration::from_secs(1);
/// How long before its end a lease is not believed any more.
const MARGIN: u64 = 2;
/// How long a lease is believed, from when its renewal was asked for.
const BELIEVED: Duration = Duration::from_secs(TTL - MARGIN);
/// Hosts that are handed over at once, so that a newcomer gets its share gently.
const HANDED_OVER: usize = 50;
/// Between looks at what others wrote, should a message be lost.
const LOOK: Duration = Duration::from_secs(1);

/// This conductor, as one of several.
#[derive(Debug)]
pub(crate) struct Replica {
    /// Of this process, and of no other ever.
    pub(crate) id: String,
    /// Who drives what.
    pub(crate) leases: Arc<dyn Leases>,
    /// The hosts.
    pub(crate) hosts: Arc<Hosts>,
    /// Drives those that are held.
    pub(crate) driver: Arc<Driver>,
}

impl Replica {
    /// Holds its lease until it is told to stop, then hands everything over.
    pub(crate) async fn run(self, stop: CancellationToken) {
        tracing::info!(replica = self.id, "one of several");
        let mut tick = tokio::time::interval(RENEWAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                _ = tick.tick() => {}
                () = self.hosts.ownership().woken() => {}
            }
            let turn = tokio::time::timeout(BELIEVED, self.turn()).await;
            if !matches!(turn, Ok(Ok(()))) {
                self.hosts.ownership().note(|facts| facts.missed += 1);
            }
            match turn {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, "the lease is not renewed"),
                Err(_) => tracing::warn!("the lease is not renewed: the database is slow"),
            }
            if !self.hosts.ownership().is_valid() {
                self.driver.stop_all();
            }
        }
        self.driver.stop_all();
        self.driver.join().await;
        if let Err(error) = self.leases.leave(&self.id).await {
            tracing::warn!(%error, "the lease is not given back: it ends by itself");
        }
    }

    /// Renews, lets go of what is too much, takes what is too little, drives what is held.
    pub(crate) async fn turn(&self) -> Result<(), StoreError> {
        let until = Instant::now() + BELIEVED;
        let alive = self.leases.renew(&self.id).await?;
        self.hosts.ownership().note(|facts| {
            facts.replica.clone_from(&self.id);
            facts.alive.clone_from(&alive);
            facts.renewed = Some(clock::now());
        });
        let all = self.leases.hosts().await?;
        let share = all.div_ceil(alive.len().max(1) as u64);
        let mut held = self.leases.owned(&self.id).await?;
        let has = held.len() as u64;
        if has > share {
            let surplus = usize::try_from(has - share).unwrap_or(usize::MAX);
            for (host, _) in held.drain(..surplus.min(HANDED_OVER)) {
                self.hand_over(&host).await?;
            }
        } else if has < share {
            let taken = self.leases.claim(&self.id, share - has).await?;
            if !taken.is_empty() {
                tracing::info!(replica = self.id, hosts = taken.len(), "took hosts");
                let count = taken.len() as u64;
                self.hosts.ownership().note(|facts| facts.taken += count);
                held.extend(taken);
            }
        }
        self.drive(held, until).await
    }

    async fn hand_over(&self, host: &str) -> Result<(), StoreError> {
        self.hosts.ownership().drop(host);
        self.driver.stop_driving(host).await;
        self.hosts.ownership().note(|facts| facts.handed_over += 1);
        self.leases.release(&self.id, host).await
    }

    async fn drive(&self, held: Vec<(String, u64)>, until: Instant) -> Result<(), StoreError> {
        let new = held.iter().any(|(host, _)| !self.driver.drives(host));
        if new {
            // What the owner before wrote last is decided upon.
            self.hosts.follow_store().await?;
        }
        let names: Vec<_> = held.iter().map(|(host, _)| host.clone()).collect();
        self.hosts.ownership().hold(held, until);
        self.driver.only(names);
        Ok(())
    }
}

/// Follows what other replicas write, until it is told to stop.
pub(crate) async fn follow(hosts: Arc<Hosts>, pool: PgPool, stop: CancellationToken) {
    let mut listener = None;
    loop {
        if listener.is_none() {
            listener = listen(&pool).await;
        }
        let told = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            told = next(&mut listener) => told,
            () = tokio::time::sleep(LOOK) => None,
        };
        if told.is_some_and(|revision| revision <= hosts.covered()) {
            continue;
        }
        if let Err(error) = look(&hosts).await {
            tracing::warn!(%error, "what other replicas write is not seen; trying again");
            listener = None;
            tokio::time::sleep(LOOK).await;
        }
    }
}

async fn look(hosts: &Hosts) -> Result<(), StoreError> {
    hosts.follow_store().await?;
    hosts.follow_contacts().await
}

async fn listen(pool: &PgPool) -> Option<PgListener> {
    let mut listener = PgListener::connect_with(pool).await.ok()?;
    listener.listen(CHANNEL).await.ok()?;
    Some(listener)
}

/// The revision that the next message tells of; none when the connection was lost.
async fn next(listener: &mut Option<PgListener>) -> Option<u64> {
    let Some(open) = listener else {
        return std::future::pending().await;
    };
    if let Ok(Some(told)) = open.try_recv().await {
        return told.payload().parse().ok();
    }
    *listener = None;
    None
}

/// The document with [`IDENTITY`].
const SHARED: (&str, &str) = ("Shared", "identity");
/// Files of the state folder that make a conductor the one that hosts and people know: all replicas
/// share them, and a backup has them.
const IDENTITY: [&str; 3] = ["tls/ca.pem", "tls/ca.key", "admin.token"];

/// Whether a replica was here before.
pub(crate) async fn shares_files(database: &Database) -> Result<bool, StoreError> {
    Ok(database.document(SHARED.0, SHARED.1).await?.is_some())
}

/// The identity that lies in the state folder.
pub(crate) fn identity(dir: &Path) -> anyhow::Result<Document> {
    let (kind, name) = SHARED;
    let mut secret = Map::new();
    for file in IDENTITY {
        let path = dir.join(file);
        let text = std::fs::read_to_string(&path);
        let text = text.with_context(|| format!("reading {}", path.display()))?;
        secret.insert(file.to_owned(), Value::String(text));
    }
    Ok(Document {
        secret: Some(Value::Object(secret)),
        ..Document::new(kind, name, clock::now(), Value::Null)
    })
}

/// The files that all replicas must share, in the state folder: made by whoever comes first, kept
/// sealed in the database, written by everybody else.
pub(crate) async fn share_files(database: &Database, dir: &Path) -> anyhow::Result<()> {
    if !shares_files(database).await? {
        let write = Write::Put {
            document: Box::new(identity(dir)?),
            expect: Expect::Absent,
            with: Entries::default(),
        };
        match database.commit(&[write]).await.pop() {
            Some(Ok(_) | Err(StoreError::Exists { .. })) | None => {}
            Some(Err(error)) => return Err(error.into()),
        }
    }
    write_files(database, dir).await
}

/// Writes the identity that the database has into the state folder.
async fn write_files(database: &Database, dir: &Path) -> anyhow::Result<()> {
    let shared = database.document(SHARED.0, SHARED.1).await?;
    let shared = shared.and_then(|shared| shared.secret).unwrap_or_default();
    for file in IDENTITY {
        let text = shared[file].as_str();
        let text = text.with_context(|| format!("the database has no {file}"))?;
        let path = dir.join(file);
        path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        token::write_private(&path, text.as_bytes())
            .with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// Takes the identity that came with a backup out of the database of a conductor that is alone,
/// into its state folder. Whether there was one: older backups have none.
pub(crate) async fn take_identity(database: &Database, dir: &Path) -> anyhow::Result<bool> {
    if !shares_files(database).await? {
        return Ok(false);
    }
    write_files(database, dir).await?;
    backup::forget(database.pool(), SHARED.0, SHARED.1).await?;
    Ok(true)
}

/// The earliest contact that is asked for anew: what was written since the last look.
pub(crate) fn lately(last: Timestamp) -> Timestamp {
    last.checked_sub(jiff::SignedDuration::from_secs(10))
        .unwrap_or(Timestamp::MIN)
}
