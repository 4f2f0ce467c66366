//! The store in memory: slow, in conflict, failing before a commit, and failing after one.

use std::pin::Pin;
use std::sync::Arc;

use ferrite_proto::api::HostEvent;
use ferrite_proto::host::Run;
use ferrite_proto::inventory::Inventory;
use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::checks;
use super::state::{Sim, State};
use crate::store::{
    AuditHead, AuditLine, Contact, Document, Entries, Expect, LogLine, News, Outcomes, Removed,
    Revision, Store, StoreError, StoreFuture, Stored, Write,
};

/// The store, as one life of the conductor sees it.
#[derive(Debug)]
pub(super) struct SimStore {
    sim: Arc<Sim>,
    dead: CancellationToken,
}

impl SimStore {
    pub(super) fn new(sim: &Arc<Sim>, dead: &CancellationToken) -> Self {
        let (sim, dead) = (Arc::clone(sim), dead.clone());
        Self { sim, dead }
    }

    /// What a killed conductor asks never gets here.
    async fn alive(&self) {
        if self.dead.is_cancelled() {
            std::future::pending::<()>().await;
        }
    }

    async fn takes_time(&self) {
        self.alive().await;
        let until = self.sim.lock().slow_until;
        let slow = until.is_some_and(|until| until > Instant::now());
        let most = if slow || self.sim.mishap(1) { 4_000 } else { 3 };
        self.sim.pause(0, most).await;
        self.alive().await;
    }

    async fn transaction(&self, writes: &[Write]) -> Outcomes {
        self.takes_time().await;
        if self.sim.mishap(1) {
            self.sim.say("", "store", "fails before the commit");
            return failed(writes);
        }
        let outcomes = writes.iter().map(|write| self.write(write)).collect();
        if self.sim.mishap(1) {
            self.sim.say("", "store", "fails after the commit");
            return failed(writes);
        }
        self.takes_time().await;
        outcomes
    }

    fn write(&self, write: &Write) -> Result<Revision, StoreError> {
        match write {
            Write::Add { host, with } => self.add(host, with),
            Write::Save {
                host, before, with, ..
            } => self.save(host, before, with),
            Write::Remove { host, .. } => self.remove(host),
            Write::Put {
                document, expect, ..
            } => put(&mut self.sim.lock(), document, *expect),
            Write::Drop {
                kind, name, expect, ..
            } => drop_document(&mut self.sim.lock(), kind, name, *expect),
            Write::Audit(_) => Ok(next(&mut self.sim.lock())),
            Write::Heard(contact) => {
                let mut state = self.sim.lock();
                let uid = contact.uid.clone();
                state.contacts.insert(uid, contact.clone());
                Ok(state.revision)
            }
            Write::Forget { .. } => Ok(self.sim.lock().revision),
        }
    }

    fn add(&self, host: &Stored, with: &Entries) -> Result<Revision, StoreError> {
        let name = &host.record.host.name;
        if self.sim.lock().stored.contains_key(name) {
            let owner = format!("host {name:?}");
            return Err(StoreError::Exists {
                what: "name",
                owner,
            });
        }
        checks::added(&self.sim, name);
        Ok(keep(&mut self.sim.lock(), host, with))
    }

    fn save(
        &self,
        host: &Stored,
        made_of: &Stored,
        with: &Entries,
    ) -> Result<Revision, StoreError> {
        let name = &host.record.host.name;
        let before = self.known(host)?;
        let expected = made_of.record.host.version;
        if before.record.host.version != expected || self.sim.mishap(1) {
            return Err(StoreError::Conflict(format!("host {name:?}")));
        }
        checks::committed(&self.sim, &before, host);
        Ok(keep(&mut self.sim.lock(), host, with))
    }

    fn known(&self, host: &Stored) -> Result<Stored, StoreError> {
        let (name, uid) = (&host.record.host.name, &host.record.host.uid);
        let known = self.sim.lock().stored.get(name).cloned();
        let known = known.filter(|known| known.record.host.uid == *uid);
        known.ok_or_else(|| not_found("host", name))
    }

    fn remove(&self, host: &Stored) -> Result<Revision, StoreError> {
        let before = self.known(host)?;
        checks::removed(&self.sim, &before);
        let mut state = self.sim.lock();
        let revision = next(&mut state);
        let name = host.record.host.name.clone();
        state.say(&name, "store", "it is forgotten");
        state.stored.remove(&name);
        state.events.remove(&name);
        state.removed.push(Removed {
            revision,
            kind: "Host".to_owned(),
            name,
            project: host.record.host.project.clone(),
        });
        Ok(revision)
    }
}

fn next(state: &mut State) -> Revision {
    state.revision += 1;
    state.revision
}

fn failed(writes: &[Write]) -> Outcomes {
    let fail = |_: &Write| Err(StoreError::Database(Arc::new(sqlx::Error::PoolTimedOut)));
    writes.iter().map(fail).collect()
}

fn not_found(kind: &str, name: &str) -> StoreError {
    StoreError::NotFound {
        kind: kind.to_owned(),
        name: name.to_owned(),
    }
}

fn keep(state: &mut State, host: &Stored, with: &Entries) -> Revision {
    let name = &host.record.host.name;
    let revision = next(state);
    for event in &with.events {
        state.say(name, "log", &format!("{}: {}", event.kind, event.text));
    }
    let log = state.events.entry(name.clone()).or_default();
    log.extend_from_slice(&with.events);
    let mut host = host.clone();
    host.record.host.version = revision;
    state.stored.insert(name.clone(), host);
    revision
}

fn put(state: &mut State, document: &Document, expect: Expect) -> Result<Revision, StoreError> {
    let key = (document.kind.clone(), document.name.clone());
    let known = state.documents.get(&key).map(|known| known.revision);
    let good = match expect {
        Expect::Absent => known.is_none(),
        Expect::Revision(revision) => known == Some(revision),
        Expect::Anything => true,
    };
    if !good {
        return Err(StoreError::Conflict(document.name.clone()));
    }
    let revision = next(state);
    let document = Document {
        revision,
        ..document.clone()
    };
    state.documents.insert(key, document);
    Ok(revision)
}

fn drop_document(
    state: &mut State,
    kind: &str,
    name: &str,
    expect: Expect,
) -> Result<Revision, StoreError> {
    let key = (kind.to_owned(), name.to_owned());
    let known = state.documents.get(&key).map(|known| known.revision);
    match (known, expect) {
        (None, _) => Err(not_found(kind, name)),
        (Some(known), Expect::Revision(wanted)) if known != wanted => {
            Err(StoreError::Conflict(name.to_owned()))
        }
        (Some(_), _) => {
            state.documents.remove(&key);
            Ok(next(state))
        }
    }
}

impl Store for SimStore {
    fn commit<'a>(
        &'a self,
        writes: &'a [Write],
    ) -> Pin<Box<dyn Future<Output = Outcomes> + Send + 'a>> {
        Box::pin(self.transaction(writes))
    }

    fn news(&self, after: Revision) -> StoreFuture<'_, News> {
        Box::pin(async move {
            self.takes_time().await;
            if self.sim.mishap(1) {
                self.sim.say("", "store", "cannot be read");
                return Err(StoreError::Database(Arc::new(sqlx::Error::PoolTimedOut)));
            }
            let state = self.sim.lock();
            let newer = |stored: &&Stored| stored.record.host.version > after;
            let documents = state.documents.values();
            Ok(News {
                revision: state.revision,
                pruned: 0,
                hosts: state.stored.values().filter(newer).cloned().collect(),
                documents: documents.filter(|d| d.revision > after).cloned().collect(),
                removed: {
                    let removed = state.removed.iter();
                    removed.filter(|r| r.revision > after).cloned().collect()
                },
            })
        })
    }

    fn contacts(&self, _: Timestamp) -> StoreFuture<'_, Vec<Contact>> {
        let contacts = self.sim.lock().contacts.values().cloned().collect();
        Box::pin(async move { Ok(contacts) })
    }

    fn events<'a>(&'a self, host: &'a str, _: u32) -> StoreFuture<'a, Vec<HostEvent>> {
        let events = self.sim.lock().events.get(host).cloned();
        Box::pin(async move { Ok(events.unwrap_or_default()) })
    }

    fn log(&self, _: u64, _: u32) -> StoreFuture<'_, Vec<LogLine>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn outbox(&self, _: u64, _: u32) -> StoreFuture<'_, Vec<LogLine>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn has_departed(&self) -> StoreFuture<'_, bool> {
        Box::pin(async { Ok(false) })
    }

    fn log_before(&self, _: u64, _: u32) -> StoreFuture<'_, Vec<LogLine>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn log_end(&self) -> StoreFuture<'_, u64> {
        Box::pin(async { Ok(0) })
    }

    fn audit(&self, _: u64, _: u32) -> StoreFuture<'_, Vec<AuditLine>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn audit_head(&self) -> StoreFuture<'_, Option<AuditHead>> {
        Box::pin(async { Ok(None) })
    }

    fn inventory<'a>(&'a self, _: &'a str) -> StoreFuture<'a, Option<Box<Inventory>>> {
        Box::pin(async { Ok(None) })
    }

    fn runs<'a>(&'a self, _: &'a str, _: u32) -> StoreFuture<'a, Vec<Run>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn runs_since(&self, _: Timestamp, _: u32) -> StoreFuture<'_, Vec<Run>> {
        Box::pin(async { Ok(Vec::new()) })
    }
}
