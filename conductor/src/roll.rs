//! What is in memory of the store: every host and document, who is known by which digest, and who
//! wants to hear of changes.
//!
//! It can be thrown away at any time: it is made from the store at start, and follows its commits.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ferrite_proto::step::Progress;
use jiff::Timestamp;
use serde_json::value::RawValue;
use tokio::sync::{Notify, broadcast, watch};

use crate::boots::Boots;
use crate::lifecycle::record::Record;
use crate::lifecycle::reports::harmless;
use crate::lifecycle::turns::Turns;
use crate::store::commit::REMOVED_KEPT;
use crate::store::writer::Follower;
use crate::store::{Contact, Document, News, Outcomes, Removed, Revision, Stored, Write};

/// Changes that a follower may be behind before it has to begin anew.
const CHANGES: usize = 4096;
/// Characters of what a step is at.
const PHASE_CHARS: usize = 200;
/// How often the progress of a step is stored.
const STORED_EVERY: jiff::SignedDuration = jiff::SignedDuration::from_secs(10);
/// How often it is told to those who follow.
const TOLD_EVERY: jiff::SignedDuration = jiff::SignedDuration::from_secs(1);

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

/// What became of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    /// It is new.
    Added,
    /// It is another.
    Changed,
    /// It is gone.
    Removed,
}

/// A committed change. They come in the order of their revisions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Changed {
    /// Its number.
    pub(crate) revision: Revision,
    /// `Host`, or a document's kind.
    pub(crate) kind: String,
    /// Its name.
    pub(crate) name: String,
    /// Whose it is.
    pub(crate) project: String,
    /// What became of it.
    pub(crate) what: What,
}

/// What is in memory of a host.
#[derive(Debug)]
pub(crate) struct Live {
    /// The version that is stored.
    pub(crate) changed: watch::Sender<u64>,
    /// Wakes the host's driver.
    pub(crate) wake: Notify,
    /// One change at a time.
    pub(crate) lock: tokio::sync::Mutex<()>,
    stored: Mutex<Arc<Stored>>,
    seen: Mutex<Seen>,
    progress: Mutex<Option<Ticked>>,
    written: Mutex<Option<Written>>,
}

/// A host as JSON, as lists have it, and what it is the JSON of.
#[derive(Debug, Clone)]
struct Written {
    version: Revision,
    agent: Option<Timestamp>,
    daemon: Option<Timestamp>,
    json: Arc<RawValue>,
}

/// How far a step is, newer than what is stored.
#[derive(Debug, Clone)]
struct Ticked {
    order: u64,
    progress: Progress,
    /// When it was last stored, and last told.
    stored: Timestamp,
    told: Timestamp,
}

/// When a host was last heard.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Seen {
    /// The agent.
    pub(crate) agent: Option<Timestamp>,
    /// The daemon.
    pub(crate) daemon: Option<Timestamp>,
    /// The BMC, telling the power that is stored.
    pub(crate) power: Option<Timestamp>,
}

impl Live {
    /// The host as it is stored.
    pub(crate) fn stored(&self) -> Arc<Stored> {
        Arc::clone(&lock(&self.stored))
    }

    /// When it was last heard.
    pub(crate) fn seen(&self) -> Seen {
        *lock(&self.seen)
    }

    /// How far the step of an order is, if that is known better than it is stored.
    pub(crate) fn progress_of(&self, order: u64) -> Option<Progress> {
        let ticked = lock(&self.progress);
        let ticked = ticked.as_ref().filter(|ticked| ticked.order == order);
        ticked.map(|ticked| ticked.progress.clone())
    }

    /// The host as JSON: of before where it is the same still, else as `write` makes it.
    pub(crate) fn written(
        &self,
        version: Revision,
        write: impl FnOnce() -> serde_json::Result<Box<RawValue>>,
    ) -> serde_json::Result<Arc<RawValue>> {
        let seen = self.seen();
        let (agent, daemon) = (seen.agent, seen.daemon);
        let known = lock(&self.written).clone();
        let of_now = |known: &Written| {
            known.version == version && known.agent == agent && known.daemon == daemon
        };
        if let Some(known) = known.filter(of_now) {
            return Ok(known.json);
        }
        let json: Arc<RawValue> = write()?.into();
        *lock(&self.written) = Some(Written {
            version,
            agent,
            daemon,
            json: Arc::clone(&json),
        });
        Ok(json)
    }

    /// Power was read, and is as before.
    pub(crate) fn hear_power(&self, at: Option<Timestamp>) {
        lock(&self.seen).power = at;
    }

    /// It was heard; what is earlier than what is known changes nothing.
    pub(crate) fn hear(&self, agent: Option<Timestamp>, daemon: Option<Timestamp>) {
        let mut seen = lock(&self.seen);
        // The last one counts, not the latest: the clock may have been set back.
        seen.agent = agent.or(seen.agent);
        seen.daemon = daemon.or(seen.daemon);
    }
}

/// All that is in memory.
#[derive(Debug)]
pub(crate) struct Roll {
    boots: Arc<Boots>,
    turns: Arc<Turns>,
    hosts: Mutex<BTreeMap<String, Arc<Live>>>,
    known: Mutex<HashMap<(Credential, String), String>>,
    documents: Mutex<BTreeMap<String, BTreeMap<String, Arc<Document>>>>,
    removed: Mutex<VecDeque<Removed>>,
    pruned: AtomicU64,
    /// The last commit that was seen.
    revision: AtomicU64,
    /// Everything up to here was read from the store.
    covered: AtomicU64,
    doubtful: AtomicBool,
    changes: broadcast::Sender<Changed>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is guarded is replaced whole; a panic elsewhere leaves nothing half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Roll {
    /// Nothing yet.
    pub(crate) fn new(boots: Arc<Boots>) -> Self {
        Self {
            boots,
            turns: Arc::default(),
            hosts: Mutex::default(),
            known: Mutex::default(),
            documents: Mutex::default(),
            removed: Mutex::default(),
            pruned: AtomicU64::new(0),
            revision: AtomicU64::new(0),
            covered: AtomicU64::new(0),
            doubtful: AtomicBool::new(false),
            changes: broadcast::channel(CHANGES).0,
        }
    }

    /// Whose turn it is among the hosts of a group.
    pub(crate) const fn turns(&self) -> &Arc<Turns> {
        &self.turns
    }

    /// Names of all hosts, in order.
    pub(crate) fn names(&self) -> Vec<String> {
        lock(&self.hosts).keys().cloned().collect()
    }

    /// Every host, by name.
    pub(crate) fn all(&self) -> Vec<Arc<Live>> {
        lock(&self.hosts).values().cloned().collect()
    }

    /// So many hosts, by name, that come after a name.
    pub(crate) fn after(&self, name: &str, most: usize) -> Vec<Arc<Live>> {
        let from = (Bound::Excluded(name), Bound::Unbounded);
        let hosts = lock(&self.hosts);
        let after = hosts.range::<str, _>(from).map(|(_, live)| live);
        after.take(most).cloned().collect()
    }

    /// What is in memory of a host.
    pub(crate) fn live(&self, name: &str) -> Option<Arc<Live>> {
        lock(&self.hosts).get(name).cloned()
    }

    /// The host that a digest belongs to.
    pub(crate) fn find(&self, what: Credential, sha256: &str) -> Option<String> {
        lock(&self.known).get(&(what, sha256.to_owned())).cloned()
    }

    /// A document that has not expired.
    pub(crate) fn document(&self, kind: &str, name: &str, now: Timestamp) -> Option<Arc<Document>> {
        let found = self.any_document(kind, name)?;
        is_valid(&found, now).then_some(found)
    }

    /// A document, expired or not.
    pub(crate) fn any_document(&self, kind: &str, name: &str) -> Option<Arc<Document>> {
        lock(&self.documents).get(kind)?.get(name).cloned()
    }

    /// All documents of a kind that have not expired, by name.
    pub(crate) fn documents(&self, kind: &str, now: Timestamp) -> Vec<Arc<Document>> {
        let documents = lock(&self.documents);
        let of_kind = documents.get(kind).into_iter().flat_map(BTreeMap::values);
        of_kind.filter(|d| is_valid(d, now)).cloned().collect()
    }

    /// Documents that have expired.
    pub(crate) fn expired(&self, now: Timestamp) -> Vec<Arc<Document>> {
        let documents = lock(&self.documents);
        let all = documents.values().flat_map(BTreeMap::values);
        all.filter(|d| !is_valid(d, now)).cloned().collect()
    }

    /// The revision of the last commit.
    pub(crate) fn revision(&self) -> Revision {
        self.revision.load(Ordering::Acquire)
    }

    /// Everything up to here was read from the store.
    pub(crate) fn covered(&self) -> Revision {
        self.covered.load(Ordering::Acquire)
    }

    /// Whether a transaction came to an unknown end since the store was last read.
    pub(crate) fn is_doubtful(&self) -> bool {
        self.doubtful.load(Ordering::Acquire)
    }

    /// Shows how far a step is, and tells of it once a second. False when it is to be stored.
    pub(crate) fn progress(
        &self,
        live: &Live,
        order: u64,
        progress: &Progress,
        now: Timestamp,
    ) -> bool {
        let mut known = lock(&live.progress);
        let stored = live.stored();
        let flow = stored.record.run.workflow.as_ref();
        if !flow.is_some_and(|flow| flow.is_under_way(order)) {
            *known = None;
            return false;
        }
        let progress = Progress {
            phase: harmless(&progress.phase, PHASE_CHARS),
            ..progress.clone()
        };
        let mut ticked = known.take().unwrap_or_else(|| Ticked {
            order: 0,
            progress: Progress::default(),
            stored: now,
            told: now,
        });
        let is_first = ticked.order != order;
        let to_store = is_first || now.duration_since(ticked.stored) >= STORED_EVERY;
        let to_tell = now.duration_since(ticked.told) >= TOLD_EVERY;
        (ticked.order, ticked.progress) = (order, progress);
        if to_store {
            ticked.stored = now;
        }
        if to_store || to_tell {
            ticked.told = now;
        }
        *known = Some(ticked);
        drop(known);
        if to_tell && !to_store {
            self.tell(of_host(&stored, What::Changed));
        }
        !to_store
    }

    /// Hears of every change from here on.
    pub(crate) fn changes(&self) -> broadcast::Receiver<Changed> {
        self.changes.subscribe()
    }

    /// The last change of everything that changed after a revision, in order; none when removals
    /// since then are forgotten.
    pub(crate) fn since(&self, revision: Revision) -> Option<Vec<Changed>> {
        if revision < self.pruned.load(Ordering::Acquire) {
            return None;
        }
        let removed = lock(&self.removed);
        let newer = removed.iter().filter(|gone| gone.revision > revision);
        let mut all: Vec<_> = newer.cloned().map(Removed::into_changed).collect();
        drop(removed);
        let hosts = self.all().into_iter().map(|live| live.stored());
        let newer = hosts.filter(|stored| stored.record.host.version > revision);
        all.extend(newer.map(|stored| of_host(&stored, What::Changed)));
        let documents = lock(&self.documents);
        let documents = documents.values().flat_map(BTreeMap::values);
        let newer = documents.filter(|document| document.revision > revision);
        all.extend(newer.map(|document| of_document(document, What::Changed)));
        all.sort_by_key(|changed| changed.revision);
        Some(all)
    }

    /// Takes over what was read from the store.
    pub(crate) fn take(&self, news: News) {
        for host in news.hosts {
            self.keep(host);
        }
        for document in news.documents {
            self.keep_document(document);
        }
        for removed in news.removed {
            if removed.revision > self.covered() {
                self.forget(removed);
            }
        }
        self.pruned.fetch_max(news.pruned, Ordering::AcqRel);
        self.revision.fetch_max(news.revision, Ordering::AcqRel);
        self.covered.fetch_max(news.revision, Ordering::AcqRel);
        self.doubtful.store(false, Ordering::Release);
    }

    /// Takes over when hosts were heard.
    pub(crate) fn take_contacts(&self, contacts: Vec<Contact>) {
        let by_uid: HashMap<_, _> = contacts.into_iter().map(|c| (c.uid.clone(), c)).collect();
        for live in self.all() {
            if let Some(contact) = by_uid.get(&live.stored().record.host.uid) {
                live.hear(contact.agent, contact.daemon);
            }
        }
    }

    fn keep(&self, host: Stored) {
        let name = host.record.host.name.clone();
        let revision = host.record.host.version;
        let stored = Arc::new(host);
        let mut hosts = lock(&self.hosts);
        let before = hosts.get(&name).map(|live| live.stored());
        if before
            .as_ref()
            .is_some_and(|known| known.record.host.version >= revision)
        {
            return;
        }
        self.boots.refresh(&stored);
        self.know(before.as_deref(), Some(&stored));
        let live = hosts.entry(name).or_insert_with(|| new_live(&stored));
        *lock(&live.stored) = Arc::clone(&stored);
        live.changed.send_replace(revision);
        live.wake.notify_one();
        wake(&hosts, &self.turns.refresh(&stored.record.host));
        drop(hosts);
        let what = before.map_or(What::Added, |_| What::Changed);
        self.tell(of_host(&stored, what));
    }

    /// Which digests lead to the host.
    fn know(&self, before: Option<&Stored>, after: Option<&Stored>) {
        let of = |stored: Option<&Stored>| {
            stored.map_or_else(Vec::new, |stored| credentials(&stored.record))
        };
        let (before, now) = (of(before), of(after));
        if before == now {
            return;
        }
        let mut known = lock(&self.known);
        for credential in before {
            known.remove(&credential);
        }
        if let Some(after) = after {
            let name = &after.record.host.name;
            known.extend(now.into_iter().map(|credential| (credential, name.clone())));
        }
    }

    fn keep_document(&self, document: Document) {
        let document = Arc::new(document);
        let mut documents = lock(&self.documents);
        let of_kind = documents.entry(document.kind.clone()).or_default();
        let before = of_kind.get(&document.name).map(|known| known.revision);
        if before.is_some_and(|known| known >= document.revision) {
            return;
        }
        of_kind.insert(document.name.clone(), Arc::clone(&document));
        drop(documents);
        let what = before.map_or(What::Added, |_| What::Changed);
        self.tell(of_document(&document, what));
    }

    fn forget(&self, removed: Removed) {
        if removed.kind == HOST {
            self.forget_host(&removed);
        } else if let Some(of_kind) = lock(&self.documents).get_mut(&removed.kind) {
            let known = of_kind.get(&removed.name);
            if known.is_some_and(|known| known.revision < removed.revision) {
                of_kind.remove(&removed.name);
            }
        }
        let mut all = lock(&self.removed);
        all.push_back(removed.clone());
        if all.len() > usize::try_from(REMOVED_KEPT).unwrap_or(usize::MAX)
            && let Some(oldest) = all.pop_front()
        {
            self.pruned.fetch_max(oldest.revision, Ordering::AcqRel);
        }
        drop(all);
        self.tell(removed.into_changed());
    }

    fn forget_host(&self, removed: &Removed) {
        let mut hosts = lock(&self.hosts);
        let Some(live) = hosts.get(&removed.name) else {
            return;
        };
        let stored = live.stored();
        if stored.record.host.version > removed.revision {
            return;
        }
        self.know(Some(&stored), None);
        self.boots.forget(&removed.name);
        if let Some(live) = hosts.remove(&removed.name) {
            live.changed.send_replace(u64::MAX);
            live.wake.notify_one();
        }
        wake(&hosts, &self.turns.forget(&removed.name));
    }

    fn tell(&self, changed: Changed) {
        self.revision.fetch_max(changed.revision, Ordering::AcqRel);
        // Nobody listens: nothing is lost.
        let _ = self.changes.send(changed);
    }

    fn follow(&self, write: Write, revision: Revision) {
        match write {
            Write::Add { mut host, .. } | Write::Save { mut host, .. } => {
                host.record.host.version = revision;
                self.keep(*host);
            }
            Write::Put { mut document, .. } => {
                document.revision = revision;
                self.keep_document(*document);
            }
            Write::Remove { host, .. } => self.forget(Removed {
                revision,
                kind: HOST.to_owned(),
                name: host.record.host.name.clone(),
                project: of_host(&host, What::Removed).project,
            }),
            Write::Drop { kind, name, .. } => {
                let documents = lock(&self.documents);
                let known = documents.get(&kind).and_then(|of_kind| of_kind.get(&name));
                let project = known.map_or_else(String::new, |known| known.project.clone());
                drop(documents);
                self.forget(Removed {
                    revision,
                    kind,
                    name,
                    project,
                });
            }
            Write::Audit(_) | Write::Heard(_) | Write::Forget { .. } => {}
        }
    }
}

/// The kind of hosts among changes.
pub(crate) const HOST: &str = "Host";

impl Follower for Roll {
    fn committed(&self, writes: Vec<Write>, outcomes: &Outcomes) {
        if let Some((first, last)) = span(&writes, outcomes) {
            // Nobody else wrote in between: there is nothing to read.
            let known = Ordering::AcqRel;
            let _ = self
                .covered
                .compare_exchange(first - 1, last, known, Ordering::Acquire);
        }
        for (write, outcome) in writes.into_iter().zip(outcomes) {
            if let Ok(revision) = outcome {
                self.follow(write, *revision);
            }
        }
    }

    fn doubtful(&self) {
        self.doubtful.store(true, Ordering::Release);
    }
}

/// The first and the last revision of writes that took one after the other without a gap.
fn span(writes: &[Write], outcomes: &Outcomes) -> Option<(Revision, Revision)> {
    let all = writes.iter().zip(outcomes);
    let mut numbered = all.filter(|(write, _)| write.is_numbered());
    let first = *numbered.next()?.1.as_ref().ok()?;
    let mut last = first;
    for (at, (_, outcome)) in (1..).zip(numbered) {
        let Ok(revision) = outcome else { continue };
        if *revision != first + at {
            return None;
        }
        last = *revision;
    }
    Some((first, last))
}

impl Removed {
    fn into_changed(self) -> Changed {
        Changed {
            revision: self.revision,
            kind: self.kind,
            name: self.name,
            project: self.project,
            what: What::Removed,
        }
    }
}

fn of_host(stored: &Stored, what: What) -> Changed {
    let host = &stored.record.host;
    Changed {
        revision: host.version,
        kind: HOST.to_owned(),
        name: host.name.clone(),
        project: host.project.clone(),
        what,
    }
}

fn of_document(document: &Document, what: What) -> Changed {
    Changed {
        revision: document.revision,
        kind: document.kind.clone(),
        name: document.name.clone(),
        project: document.project.clone(),
        what,
    }
}

/// It is their turn.
fn wake(hosts: &BTreeMap<String, Arc<Live>>, names: &[String]) {
    for live in names.iter().filter_map(|name| hosts.get(name)) {
        live.wake.notify_one();
    }
}

fn is_valid(document: &Document, now: Timestamp) -> bool {
    document.expires.is_none_or(|expires| expires > now)
}

fn new_live(stored: &Arc<Stored>) -> Arc<Live> {
    Arc::new(Live {
        changed: watch::Sender::new(stored.record.host.version),
        wake: Notify::new(),
        lock: tokio::sync::Mutex::default(),
        stored: Mutex::new(Arc::clone(stored)),
        seen: Mutex::default(),
        progress: Mutex::default(),
        written: Mutex::default(),
    })
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
