//! The hosts of this conductor: changing one, waiting for a change, finding the one a digest is of.
//!
//! What is in memory here can be thrown away at any time: it is made from the store at start.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ferrite_proto::api::HostEvent;
use ferrite_proto::host::Host;
use ferrite_proto::problem::{Code, Problem};
use jiff::Timestamp;
use tokio::sync::{Notify, watch};

use crate::access::caller::Visible;
use crate::boots::Boots;
use crate::clock;
use crate::lifecycle::change::Change;
use crate::lifecycle::record::{Limits, Observed, Record};
use crate::seeing::Seeing;
use crate::store::{Store, StoreError, Stored};

/// What a digest is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Credential {
    /// A boot ticket, armed or used.
    Ticket,
    /// An agent's token.
    AgentToken,
    /// A daemon's one-time credential.
    Enrolment,
    /// A daemon's key.
    DaemonKey,
}

/// What is in memory of a host.
#[derive(Debug)]
pub(crate) struct Live {
    /// The version that is stored.
    changed: watch::Sender<u64>,
    /// Wakes the host's driver.
    pub(crate) wake: Notify,
    /// One change at a time.
    lock: tokio::sync::Mutex<()>,
    seen: Mutex<Seen>,
    credentials: Mutex<Vec<(Credential, String)>>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    agent: Option<Timestamp>,
    daemon: Option<Timestamp>,
}

/// All hosts.
#[derive(Debug)]
pub(crate) struct Hosts {
    store: Arc<dyn Store>,
    boots: Arc<Boots>,
    live: Mutex<HashMap<String, Arc<Live>>>,
    /// One host comes or goes at a time: store and memory must not disagree on who is there.
    roster: tokio::sync::Mutex<()>,
    started: Timestamp,
    seeing: Arc<Seeing>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is guarded is replaced whole; a panic elsewhere leaves nothing half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hosts {
    /// Reads every host.
    pub(crate) async fn load(store: Arc<dyn Store>, boots: Arc<Boots>) -> Result<Self, StoreError> {
        let hosts = Self {
            store,
            boots,
            live: Mutex::default(),
            roster: tokio::sync::Mutex::default(),
            started: clock::now(),
            seeing: Arc::default(),
        };
        for stored in hosts.store.list().await? {
            hosts.remember(&stored);
        }
        Ok(hosts)
    }

    /// Looks on at what happens to them.
    pub(crate) const fn seeing(&self) -> &Arc<Seeing> {
        &self.seeing
    }

    /// Names of all hosts.
    pub(crate) fn names(&self) -> Vec<String> {
        lock(&self.live).keys().cloned().collect()
    }

    /// What is in memory of a host.
    pub(crate) fn live(&self, name: &str) -> Option<Arc<Live>> {
        lock(&self.live).get(name).cloned()
    }

    /// Every host as people see it, as far as the caller may.
    pub(crate) async fn list(&self, visible: &Visible) -> Result<Vec<Host>, Problem> {
        let all = self.store.list().await.map_err(|e| problem_of(&e))?;
        let shown = all
            .into_iter()
            .filter(|_| visible.sees(crate::access::door::DEFAULT_PROJECT))
            .map(|stored| self.shown(stored.record));
        Ok(shown.collect())
    }

    /// One host as people see it.
    pub(crate) async fn get(&self, name: &str) -> Result<Host, Problem> {
        self.stored(name)
            .await
            .map(|stored| self.shown(stored.record))
    }

    /// One host as it is stored.
    pub(crate) async fn stored(&self, name: &str) -> Result<Stored, Problem> {
        self.store.load(name).await.map_err(|e| problem_of(&e))
    }

    /// Last contacts are in memory, and newer than what is stored.
    pub(crate) fn shown(&self, record: Record) -> Host {
        let mut host = record.host;
        let seen = self.live(&host.name).map(|live| *lock(&live.seen));
        let agent = seen.and_then(|seen| seen.agent);
        if let (Some(agent), Some(at)) = (&mut host.status.agent, agent) {
            agent.seen_at = agent.seen_at.max(at);
        }
        host
    }

    /// A host's log.
    pub(crate) async fn events(&self, name: &str, limit: u32) -> Result<Vec<HostEvent>, Problem> {
        self.stored(name).await?;
        let events = self.store.events(name, limit).await;
        events.map_err(|e| problem_of(&e))
    }

    /// Adds a host.
    pub(crate) async fn insert(&self, change: Change) -> Result<Host, Problem> {
        let stored = Stored {
            record: change.record,
            kept: change.kept,
        };
        let _one_at_a_time = self.roster.lock().await;
        self.store
            .insert(&stored, &change.events)
            .await
            .map_err(|e| problem_of(&e))?;
        self.remember(&stored);
        Ok(stored.record.host)
    }

    /// Changes a host: one transaction, or none when nothing changed.
    pub(crate) async fn update<R>(
        &self,
        name: &str,
        change: impl FnOnce(&mut Change) -> Result<R, Problem>,
    ) -> Result<(Stored, R), Problem> {
        let live = self.live(name).ok_or_else(|| unknown(name))?;
        let _one_at_a_time = live.lock.lock().await;
        let before = self.stored(name).await?;
        let now = clock::now();
        let mut draft = Change::new(before.record.clone(), before.kept.clone(), now);
        let answer = change(&mut draft)?;
        let mut after = Stored {
            record: draft.record,
            kept: draft.kept,
        };
        if after == before && draft.events.is_empty() {
            return Ok((after, answer));
        }
        after.record.host.version += 1;
        self.store
            .save(&after, &draft.events)
            .await
            .map_err(|e| problem_of(&e))?;
        log_events(name, &draft.events);
        self.seeing.changed(&before, &after, now);
        self.remember(&after);
        live.wake.notify_one();
        Ok((after, answer))
    }

    /// Forgets a host.
    pub(crate) async fn remove(&self, name: &str) -> Result<(), Problem> {
        let _one_at_a_time = self.roster.lock().await;
        let live = self.live(name).ok_or_else(|| unknown(name))?;
        // A change that is under way would bring it back to memory.
        let _no_change = live.lock.lock().await;
        self.store.remove(name).await.map_err(|e| problem_of(&e))?;
        self.boots.forget(name);
        lock(&self.live).remove(name);
        live.changed.send_replace(u64::MAX);
        live.wake.notify_one();
        tracing::info!(host = name, "host removed");
        Ok(())
    }

    /// The host that a digest belongs to.
    pub(crate) fn find(&self, what: Credential, sha256: &str) -> Option<String> {
        let live = lock(&self.live);
        let is_its = |live: &Live| {
            let known = lock(&live.credentials);
            known.iter().any(|(kind, d)| *kind == what && d == sha256)
        };
        live.iter()
            .find(|(_, live)| is_its(live))
            .map(|(name, _)| name.clone())
    }

    /// Notes that the agent was heard.
    pub(crate) fn heard_agent(&self, name: &str) {
        if let Some(live) = self.live(name) {
            lock(&live.seen).agent = Some(clock::now());
        }
    }

    /// Notes that the daemon was heard.
    pub(crate) fn heard_daemon(&self, name: &str) {
        if let Some(live) = self.live(name) {
            lock(&live.seen).daemon = Some(clock::now());
        }
    }

    /// What is seen of a host. Before this conductor started nobody could be heard: silence
    /// counts from then.
    pub(crate) fn observed<'a>(&self, name: &str, limits: &'a Limits) -> Observed<'a> {
        let seen = self.live(name).map(|live| *lock(&live.seen));
        let seen = seen.unwrap_or_default();
        Observed {
            agent_seen: seen.agent.or(Some(self.started)),
            daemon_seen: seen.daemon.or(Some(self.started)),
            limits,
        }
    }

    /// Follows the versions of a host.
    pub(crate) fn follow(&self, name: &str) -> Option<watch::Receiver<u64>> {
        self.live(name).map(|live| live.changed.subscribe())
    }

    fn remember(&self, stored: &Stored) {
        let record = &stored.record;
        self.boots.refresh(stored);
        let live = self.live(&record.host.name).unwrap_or_else(|| {
            let new = Arc::new(Live {
                changed: watch::Sender::new(record.host.version),
                wake: Notify::new(),
                lock: tokio::sync::Mutex::default(),
                seen: Mutex::default(),
                credentials: Mutex::default(),
            });
            lock(&self.live).insert(record.host.name.clone(), Arc::clone(&new));
            new
        });
        *lock(&live.credentials) = credentials(record);
        live.changed.send_replace(record.host.version);
    }
}

fn credentials(record: &Record) -> Vec<(Credential, String)> {
    let run = &record.run;
    let mut all = Vec::new();
    if let Some(boot) = &run.boot {
        all.push((Credential::Ticket, boot.ticket_sha256.clone()));
    }
    if let Some(session) = &run.session {
        all.push((Credential::Ticket, session.ticket_sha256.clone()));
        all.push((Credential::AgentToken, session.token_sha256.clone()));
    }
    if let Some(daemon) = &run.daemon {
        let credential = daemon.credential_sha256.clone();
        all.push((Credential::Enrolment, credential));
        let key = daemon.key_sha256.clone();
        all.extend(key.map(|key| (Credential::DaemonKey, key)));
    }
    all
}

fn log_events(host: &str, events: &[HostEvent]) {
    for event in events {
        match event.kind.as_str() {
            "alarm" | "error" => tracing::warn!(host, kind = event.kind, "{}", event.text),
            _ => tracing::info!(host, kind = event.kind, "{}", event.text),
        }
    }
}

/// That there is no such host.
pub(crate) fn unknown(name: &str) -> Problem {
    problem_of(&StoreError::NotFound(name.to_owned()))
}

fn problem_of(error: &StoreError) -> Problem {
    let text = error.to_string();
    match error {
        StoreError::NotFound(_) => {
            Problem::new(Code::HostNotFound, text, "`ferrite host list` names all")
        }
        StoreError::Exists(_) => Problem::new(
            Code::HostExists,
            text,
            "`ferrite host list --output json` shows which",
        ),
        StoreError::Conflict(_) => Problem::new(Code::Conflict, text, "do it again"),
        StoreError::Damaged { .. }
        | StoreError::Seal(_)
        | StoreError::Database(_)
        | StoreError::Migrate(_) => Problem::new(
            Code::Internal,
            text,
            "look at the conductor's disk and its log",
        ),
    }
}
