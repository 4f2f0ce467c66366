//! The hosts of this conductor: changing one, waiting for a change, finding the one a digest is of.
//!
//! Reads come from memory ([`Roll`]), changes go to the store first. Not here: what a change means.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ferrite_proto::api::HostEvent;
use ferrite_proto::host::{Host, HostState, Run};
use ferrite_proto::inventory::Inventory;
use ferrite_proto::problem::{Code, Problem};
use ferrite_proto::step::Progress;
use jiff::Timestamp;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::sync::{broadcast, watch};

use crate::access::caller::Visible;
use crate::actor::Actor;
use crate::boots::Boots;
use crate::clock;
use crate::documents::Documents;
use crate::images;
use crate::lifecycle::change::Change;
use crate::lifecycle::image::{self, Wanted};
use crate::lifecycle::record::{Limits, Observed, Record};
use crate::lifecycle::turns::Turns;
use crate::ownership::Ownership;
use crate::replicas;
pub(crate) use crate::roll::{Changed, Credential, Live};
use crate::roll::{HOST, Roll};
use crate::seeing::Seeing;
use crate::seeing::metrics::Tally;
use crate::store::writer::Writer;
use crate::store::{
    AuditEntry, AuditHead, AuditLine, Contact, Entries, LogLine, Revision, Store, StoreError,
    Stored, Write,
};

/// How often a change is made anew because somebody else saved in between.
const ATTEMPTS: u32 = 10;
/// How long the database may take to show that it is there.
const ANSWER: Duration = Duration::from_secs(2);

/// Hosts that are fetched at once for a list.
const PIECE: usize = 256;

/// All hosts.
#[derive(Debug)]
pub(crate) struct Hosts {
    store: Arc<dyn Store>,
    writer: Writer,
    roll: Arc<Roll>,
    started: Timestamp,
    seeing: Arc<Seeing>,
    ownership: Ownership,
    /// When contacts were last read from the store.
    contacts_at: Mutex<Timestamp>,
}

impl Hosts {
    /// Reads every host, and starts the task that writes.
    #[cfg(test)]
    pub(crate) async fn load(store: Arc<dyn Store>, boots: Arc<Boots>) -> Result<Self, StoreError> {
        Self::load_as(store, boots, Ownership::default()).await
    }

    /// The same, alone or as one of several.
    pub(crate) async fn load_as(
        store: Arc<dyn Store>,
        boots: Arc<Boots>,
        ownership: Ownership,
    ) -> Result<Self, StoreError> {
        let roll = Arc::new(Roll::new(boots));
        roll.take(store.news(0).await?);
        roll.take_contacts(store.contacts(Timestamp::UNIX_EPOCH).await?);
        let follower: Arc<Roll> = Arc::clone(&roll);
        let seeing = Arc::<Seeing>::default();
        Ok(Self {
            writer: Writer::start(Arc::clone(&store), follower, Arc::clone(&seeing)),
            store,
            roll,
            started: clock::now(),
            seeing,
            ownership,
            contacts_at: Mutex::new(clock::now()),
        })
    }

    /// Which hosts are driven here.
    pub(crate) const fn ownership(&self) -> &Ownership {
        &self.ownership
    }

    /// Looks on at what happens to them.
    pub(crate) const fn seeing(&self) -> &Arc<Seeing> {
        &self.seeing
    }

    /// Everything that is not a host.
    pub(crate) fn documents(&self) -> Documents {
        Documents::new(Arc::clone(&self.roll), self.writer.clone())
    }

    /// Names of all hosts, in order.
    pub(crate) fn names(&self) -> Vec<String> {
        self.roll.names()
    }

    /// Whose turn it is among the hosts of a group.
    pub(crate) fn turns(&self) -> &Arc<Turns> {
        self.roll.turns()
    }

    /// What is in memory of a host.
    pub(crate) fn live(&self, name: &str) -> Option<Arc<Live>> {
        self.roll.live(name)
    }

    /// Every host as it is stored, by name.
    pub(crate) fn all(&self) -> Vec<Arc<Stored>> {
        let all = self.roll.all();
        all.iter().map(|live| live.stored()).collect()
    }

    /// The hosts after a name, by name, as they are stored. Fetched piece by piece: whoever wants a
    /// page of ten thousand does not wait for all of them.
    pub(crate) fn after(&self, name: &str) -> impl Iterator<Item = (Arc<Live>, Arc<Stored>)> {
        let mut last = name.to_owned();
        let pieces = std::iter::from_fn(move || {
            let piece = self.roll.after(&last, PIECE);
            let piece: Vec<_> = piece.into_iter().map(with_stored).collect();
            last.clone_from(&piece.last()?.1.record.host.name);
            Some(piece)
        });
        pieces.flatten()
    }

    /// What is counted of every host.
    pub(crate) fn tallies(&self) -> impl Iterator<Item = Tally> {
        let all = self.roll.all().into_iter();
        all.map(|live| Tally::of(&live.stored().record.host.status, live.seen()))
    }

    /// Every host as people see it, by name, as far as the caller may.
    pub(crate) fn list(&self, visible: &Visible) -> Vec<Host> {
        let all = self.roll.all();
        let all = all.iter().map(|live| (live, live.stored()));
        all.filter(|(_, stored)| visible.sees(&stored.record.host.project))
            .map(|(live, stored)| shown(live, &stored))
            .collect()
    }

    /// One host as people see it.
    pub(crate) fn get(&self, name: &str) -> Result<Host, Problem> {
        let live = self.live(name).ok_or_else(|| unknown(name))?;
        let mut host = shown(&live, &live.stored());
        // Places move all the time: they are told, never stored.
        if let (Some(place), Some(turn)) = (self.turns().place(name), &host.status.turn) {
            let reason = place.reason(&host.spec.group, turn.work);
            host.status.waiting_for = Some(reason);
        }
        Ok(host)
    }

    /// One host as it is stored.
    pub(crate) fn stored(&self, name: &str) -> Result<Arc<Stored>, Problem> {
        let live = self.live(name).ok_or_else(|| unknown(name))?;
        Ok(live.stored())
    }

    /// Last contacts are in memory, and newer than what is stored.
    pub(crate) fn shown(&self, stored: &Stored) -> Host {
        match self.live(&stored.record.host.name) {
            Some(live) => shown(&live, stored),
            None => stored.record.host.clone(),
        }
    }

    /// A host that was just read, with its last contacts.
    pub(crate) fn seen(&self, host: &Host) -> Host {
        let mut host = host.clone();
        if let Some(live) = self.live(&host.name) {
            note_contacts(&live, &mut host);
        }
        host
    }

    /// What a change would make of a host. Nothing is stored, nobody is woken.
    pub(crate) fn preview(
        &self,
        name: &str,
        change: impl FnOnce(&mut Change) -> Result<(), Problem>,
    ) -> Result<Host, Problem> {
        let stored = self.stored(name)?;
        let mut draft = Change::new(stored.record.clone(), stored.kept.clone(), clock::now());
        change(&mut draft)?;
        Ok(self.seen(&draft.record.host))
    }

    /// Whether no other host has this one's name, NIC or BMC: what the store would say.
    pub(crate) fn is_free(&self, host: &Host) -> Result<(), Problem> {
        let all = self.all();
        let others = all.iter().map(|stored| &stored.record.host);
        for other in others.filter(|other| other.uid != host.uid) {
            let (ours, its) = (&host.spec, &other.spec);
            let what = if other.name == host.name {
                "name"
            } else if ours.boot_mac.is_some() && ours.boot_mac == its.boot_mac {
                "boot MAC"
            } else if ours.bmc.address.eq_ignore_ascii_case(&its.bmc.address) {
                "BMC address"
            } else {
                continue;
            };
            let owner = format!("host {:?}", other.name);
            return Err(problem_of(&StoreError::Exists { what, owner }));
        }
        Ok(())
    }

    /// A host's log.
    pub(crate) async fn events(&self, name: &str, limit: u32) -> Result<Vec<HostEvent>, Problem> {
        self.stored(name)?;
        let events = self.store.events(name, limit).await;
        events.map_err(|e| problem_of(&e))
    }

    /// Lines of all hosts' logs after a place, oldest first.
    pub(crate) async fn log(&self, after: u64, limit: u32) -> Result<Vec<LogLine>, Problem> {
        let lines = self.store.log(after, limit).await;
        lines.map_err(|e| problem_of(&e))
    }

    /// The same with those of hosts that were removed, as long as webhooks wait for them.
    pub(crate) async fn outbox(&self, after: u64, limit: u32) -> Result<Vec<LogLine>, Problem> {
        let lines = self.store.outbox(after, limit).await;
        lines.map_err(|e| problem_of(&e))
    }

    /// Forgets lines of removed hosts: those up to a place, and those of hosts that were removed
    /// before a time.
    pub(crate) async fn forget_departed(
        &self,
        upto: u64,
        before: Timestamp,
    ) -> Result<(), Problem> {
        if !self
            .store
            .has_departed()
            .await
            .map_err(|e| problem_of(&e))?
        {
            return Ok(());
        }
        let forgotten = self.write(Write::Forget { upto, before }).await;
        forgotten.map(|_| ())
    }

    /// The place of the last line of all hosts' logs.
    pub(crate) async fn log_end(&self) -> Result<u64, Problem> {
        self.store.log_end().await.map_err(|e| problem_of(&e))
    }

    /// Lines of all hosts' logs before a place, newest first.
    pub(crate) async fn log_before(
        &self,
        before: u64,
        limit: u32,
    ) -> Result<Vec<LogLine>, Problem> {
        let lines = self.store.log_before(before, limit).await;
        lines.map_err(|e| problem_of(&e))
    }

    /// A host's inventory, once it was inspected.
    pub(crate) async fn inventory(&self, name: &str) -> Result<Option<Box<Inventory>>, Problem> {
        let stored = self.stored(name)?;
        let found = self.store.inventory(&stored.record.host.uid).await;
        found.map_err(|e| problem_of(&e))
    }

    /// The runs of a host that ended, newest last.
    pub(crate) async fn runs(&self, name: &str, limit: u32) -> Result<Vec<Run>, Problem> {
        let stored = self.stored(name)?;
        let runs = self.store.runs(&stored.record.host.uid, limit).await;
        runs.map_err(|e| problem_of(&e))
    }

    /// Runs of all hosts that ended after a time, newest last.
    pub(crate) async fn runs_since(
        &self,
        ended: Timestamp,
        limit: u32,
    ) -> Result<Vec<Run>, Problem> {
        let runs = self.store.runs_since(ended, limit).await;
        runs.map_err(|e| problem_of(&e))
    }

    /// Lines of the audit log after a place, oldest first.
    pub(crate) async fn audit_lines(
        &self,
        after: u64,
        limit: u32,
    ) -> Result<Vec<AuditLine>, Problem> {
        let lines = self.store.audit(after, limit).await;
        lines.map_err(|e| problem_of(&e))
    }

    /// Whether the database answers, and takes what is written. As long as it does, nothing is
    /// written only to see that.
    pub(crate) async fn answers(&self) -> Result<(), Problem> {
        let asked = async {
            match self.writer.trouble() {
                Some(_) => self.write(Write::Audit(Vec::new())).await.map(|_| ()),
                None => self.audit_head().await.map(|_| ()),
            }
        };
        tokio::time::timeout(ANSWER, asked)
            .await
            .unwrap_or_else(|_| {
                let text = format!("the database has not answered within {ANSWER:?}");
                let advice = "look at its disk, and at who else has it open";
                Err(Problem::new(Code::StoreUnavailable, text, advice))
            })
    }

    /// The end of the audit log.
    pub(crate) async fn audit_head(&self) -> Result<Option<AuditHead>, Problem> {
        self.store.audit_head().await.map_err(|e| problem_of(&e))
    }

    /// Adds to the audit log what comes with no change.
    pub(crate) async fn audit(&self, entries: Vec<AuditEntry>) -> Result<(), Problem> {
        self.write(Write::Audit(entries)).await.map(|_| ())
    }

    /// Hears of every change from here on, in the order of revisions.
    pub(crate) fn changes(&self) -> broadcast::Receiver<Changed> {
        self.roll.changes()
    }

    /// The last change of everything that changed after a revision, in order.
    pub(crate) fn since(&self, revision: Revision) -> Result<Vec<Changed>, Problem> {
        self.roll.since(revision).ok_or_else(|| {
            Problem::new(
                Code::RevisionGone,
                format!("what was removed since revision {revision} is forgotten"),
                "list everything again and follow from the list's resourceVersion",
            )
        })
    }

    /// The revision of the last change of anything.
    pub(crate) fn revision(&self) -> Revision {
        self.roll.revision()
    }

    /// Adds a host.
    pub(crate) async fn insert(&self, actor: &Actor, change: Change) -> Result<Host, Problem> {
        let mut change = change;
        change.actor = actor.clone();
        change.audit_person(None);
        let name = change.record.host.name.clone();
        let (host, with) = change.into_parts();
        let events = with.events.clone();
        let host = Box::new(host);
        self.write(Write::Add { host, with }).await?;
        log_events(&name, &events);
        self.get(&name)
    }

    /// Changes a host: one transaction, or none when nothing changed. `change` is called again, on
    /// what is stored by then, when somebody else saved in between.
    pub(crate) async fn update<R>(
        &self,
        name: &str,
        actor: &Actor,
        change: impl FnMut(&mut Change) -> Result<R, Problem>,
    ) -> Result<(Arc<Stored>, R), Problem> {
        self.change(name, actor, false, change).await
    }

    /// The same, as the one who drives the host: refused when that is another by now.
    pub(crate) async fn update_as_owner<R>(
        &self,
        name: &str,
        change: impl FnMut(&mut Change) -> Result<R, Problem>,
    ) -> Result<(Arc<Stored>, R), Problem> {
        self.change(name, &Actor::Conductor, true, change).await
    }

    async fn change<R>(
        &self,
        name: &str,
        actor: &Actor,
        as_owner: bool,
        mut change: impl FnMut(&mut Change) -> Result<R, Problem>,
    ) -> Result<(Arc<Stored>, R), Problem> {
        let live = self.live(name).ok_or_else(|| unknown(name))?;
        let _one_at_a_time = live.lock.lock().await;
        let mut attempts = 0;
        loop {
            self.be_sure().await?;
            let fence = self.fence(name, as_owner)?;
            let before = live.stored();
            let mut draft = Change::new(before.record.clone(), before.kept.clone(), clock::now());
            draft.actor = actor.clone();
            draft.record.run.power_at = latest(before.record.run.power_at, live.seen().power);
            let answer = change(&mut draft)?;
            if is_unchanged(&before, &mut draft) {
                live.hear_power(draft.record.run.power_at);
                return Ok((before, answer));
            }
            draft.audit_person(Some(&before));
            let (after, with) = draft.into_parts();
            let (events, runs) = (with.events.clone(), with.runs.clone());
            let write = Write::Save {
                host: Box::new(after),
                before: Arc::clone(&before),
                fence,
                with,
            };
            match self.writer.write(write).await {
                Ok(_) => {
                    let after = live.stored();
                    log_events(name, &events);
                    self.seeing.changed(&before, &after, runs, clock::now());
                    return Ok((after, answer));
                }
                Err(StoreError::Conflict(_)) if attempts < ATTEMPTS => {
                    attempts += 1;
                    self.refresh().await?;
                }
                Err(error) => return Err(problem_of(&error)),
            }
        }
    }

    /// Forgets a host.
    pub(crate) async fn remove(&self, name: &str, actor: &Actor) -> Result<(), Problem> {
        let live = self.live(name).ok_or_else(|| unknown(name))?;
        let _no_change = live.lock.lock().await;
        self.be_sure().await?;
        let fence = self.fence(name, *actor == Actor::Conductor)?;
        let host = live.stored();
        let target = (HOST, name, host.record.host.project.as_str());
        let entry = AuditEntry::of(actor, clock::now(), "remove", target, Value::Null);
        let with = Entries {
            audit: vec![entry],
            ..Entries::default()
        };
        self.write(Write::Remove { host, fence, with }).await?;
        self.seeing.agent_lines.forget(name);
        tracing::info!(host = name, "host removed");
        Ok(())
    }

    fn fence(&self, name: &str, as_owner: bool) -> Result<Option<u64>, Problem> {
        if as_owner {
            self.ownership.fence(name)
        } else {
            Ok(None)
        }
    }

    async fn write(&self, write: Write) -> Result<Revision, Problem> {
        self.writer.write(write).await.map_err(|e| problem_of(&e))
    }

    /// After a transaction whose end is not known, the store is read before anything is decided.
    pub(crate) async fn be_sure(&self) -> Result<(), Problem> {
        if self.roll.is_doubtful() {
            self.refresh().await?;
        }
        Ok(())
    }

    /// Takes over what others changed.
    pub(crate) async fn refresh(&self) -> Result<(), Problem> {
        self.follow_store().await.map_err(|e| problem_of(&e))
    }

    /// Takes over what others changed.
    pub(crate) async fn follow_store(&self) -> Result<(), StoreError> {
        self.roll.take(self.store.news(self.covered()).await?);
        Ok(())
    }

    /// Takes over when other replicas heard hosts.
    pub(crate) async fn follow_contacts(&self) -> Result<(), StoreError> {
        let (last, now) = (*lock(&self.contacts_at), clock::now());
        let contacts = self.store.contacts(replicas::lately(last)).await?;
        self.roll.take_contacts(contacts);
        *lock(&self.contacts_at) = now;
        Ok(())
    }

    /// Everything up to here was read from the store.
    pub(crate) fn covered(&self) -> Revision {
        self.roll.covered()
    }

    /// The host that a digest belongs to.
    pub(crate) fn find(&self, what: Credential, sha256: &str) -> Option<String> {
        self.roll.find(what, sha256)
    }

    /// Notes that the agent was heard.
    pub(crate) fn heard_agent(&self, name: &str) {
        self.heard(name, Some(clock::now()), None);
    }

    /// Notes that the daemon was heard.
    pub(crate) fn heard_daemon(&self, name: &str) {
        self.heard(name, None, Some(clock::now()));
    }

    fn heard(&self, name: &str, agent: Option<Timestamp>, daemon: Option<Timestamp>) {
        let Some(live) = self.live(name) else {
            return;
        };
        live.hear(agent, daemon);
        let uid = live.stored().record.host.uid.clone();
        self.writer.heard(Contact { uid, agent, daemon });
    }

    /// Shows how far a step is. False when that is to be stored, too: now and then, and whenever
    /// the order was not known to be under way.
    pub(crate) fn progress(&self, name: &str, order: u64, progress: &Progress) -> bool {
        self.live(name)
            .is_some_and(|live| self.roll.progress(&live, order, progress, clock::now()))
    }

    /// What is seen of a host. Before this conductor started, before its clock was set, and
    /// while its store kept everybody waiting, nobody could be heard: silence counts from then.
    pub(crate) fn observed<'a>(&self, name: &str, limits: &'a Limits) -> Observed<'a> {
        let seen = self.live(name).map(|live| live.seen());
        let seen = seen.unwrap_or_default();
        let now = clock::now();
        // The clock may have been set back meanwhile.
        let past = |at: Option<Timestamp>| at.filter(|at| *at <= now);
        let steady_since = past(clock::steady_since());
        let started = past(Some(self.started)).max(steady_since);
        let started = started.max(past(self.writer.held_up()));
        Observed {
            agent_seen: past(seen.agent).max(started),
            daemon_seen: past(seen.daemon).max(started),
            steady_since,
            image: Wanted::default(),
            limits,
        }
    }

    /// Which image a host would be given now.
    pub(crate) fn wanted_image(&self, record: &Record) -> Wanted {
        let provisioning = record.state() == HostState::Provisioning;
        let name = image::name_of(&record.host.spec).filter(|_| provisioning);
        let Some(name) = name else {
            return Wanted::default();
        };
        let found = self.documents().get("Image", name);
        let named = found.and_then(|document| images::named(&document));
        image::wanted(record, named.as_ref())
    }

    /// Follows the versions of a host.
    pub(crate) fn follow(&self, name: &str) -> Option<watch::Receiver<u64>> {
        self.live(name).map(|live| live.changed.subscribe())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A time is replaced whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The later reading of the power. One that is yet to come was noted before the clock was set back:
/// it must not hide those of now, or the BMC is asked without end.
fn latest(stored: Option<Timestamp>, heard: Option<Timestamp>) -> Option<Timestamp> {
    let now = clock::now();
    let past = |at: Option<Timestamp>| at.filter(|at| *at <= now);
    past(stored).max(past(heard)).or(stored)
}

/// Whether nothing changed but when power was last read: a host at rest costs no writes.
fn is_unchanged(before: &Stored, draft: &mut Change) -> bool {
    let stored_at = before.record.run.power_at;
    let read_at = std::mem::replace(&mut draft.record.run.power_at, stored_at);
    let same = draft.is_unchanged(before);
    draft.record.run.power_at = read_at;
    same
}

fn with_stored(live: Arc<Live>) -> (Arc<Live>, Arc<Stored>) {
    let stored = live.stored();
    (live, stored)
}

/// A host as people see it: last contacts are in memory, and newer than what is stored.
fn shown(live: &Live, stored: &Stored) -> Host {
    let mut host = stored.record.host.clone();
    note_contacts(live, &mut host);
    host
}

/// The same as JSON. A host at rest is written once for all lists until it is heard again; of one
/// in a step the progress is of now each time.
pub(crate) fn shown_as_json(live: &Live, stored: &Stored) -> serde_json::Result<Arc<RawValue>> {
    let host = &stored.record.host;
    let write = || serde_json::value::to_raw_value(&shown(live, stored));
    if host.status.step.is_some() {
        return write().map(Into::into);
    }
    live.written(host.version, write)
}

fn note_contacts(live: &Live, host: &mut Host) {
    let seen = live.seen();
    if let (Some(agent), Some(at)) = (&mut host.status.agent, seen.agent) {
        agent.seen_at = agent.seen_at.max(at);
    }
    if let (Some(daemon), Some(at)) = (&mut host.status.daemon, seen.daemon) {
        daemon.seen_at = daemon.seen_at.max(at);
    }
    if let Some(step) = &mut host.status.step
        && let Some(progress) = live.progress_of(step.order)
    {
        step.progress = progress;
    }
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
    problem_of(&StoreError::NotFound {
        kind: "host".to_owned(),
        name: name.to_owned(),
    })
}

/// A failure of the store as people read it.
pub(crate) fn problem_of(error: &StoreError) -> Problem {
    let text = error.to_string();
    match error {
        StoreError::NotFound { kind, .. } if kind == "host" => {
            Problem::new(Code::HostNotFound, text, "`ferrite host list` names all")
        }
        StoreError::NotFound { .. } => Problem::new(Code::NotFound, text, "list all to see which"),
        StoreError::Exists { owner, .. } if owner.starts_with("host ") => Problem::new(
            Code::HostExists,
            text,
            "`ferrite host list --output json` shows which",
        ),
        StoreError::Exists { .. } => {
            Problem::new(Code::AlreadyExists, text, "take another name, or change it")
        }
        StoreError::Conflict(_) => Problem::new(Code::Conflict, text, "do it again"),
        StoreError::Fenced(_) => Problem::new(Code::NotOwner, text, "nothing: the other goes on"),
        StoreError::Database(_) if error.is_full() => Problem::new(
            Code::StoreFull,
            text,
            "nothing was lost; free space on the disk of the conductor's state folder, or of its \
             database server, then do it again",
        ),
        StoreError::Database(_) | StoreError::Stopped => Problem::new(
            Code::StoreUnavailable,
            text,
            "nothing was lost; look at the database and its disk, then do it again",
        ),
        StoreError::Damaged { .. } | StoreError::Seal(_) | StoreError::Migrate(_) => Problem::new(
            Code::Internal,
            text,
            "look at the conductor's disk and its log",
        ),
    }
}
