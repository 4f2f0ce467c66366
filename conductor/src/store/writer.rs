//! One writer for everybody: what waits goes to the database in one transaction.
//!
//! While one transaction is made durable the next one gathers, so that a disk that syncs a hundred
//! times in a second still takes thousands of changes. Nobody is answered before its change lasts.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::{Contact, Outcomes, Revision, Store, StoreError, Write};
use crate::clock;
use crate::seeing::Seeing;

/// Writes of one transaction.
const MOST: usize = 512;
/// Contacts of one transaction.
const MOST_CONTACTS: usize = 2048;
/// Writes that wait.
const QUEUE: usize = 4096;
/// How long a contact waits for company.
const CONTACTS: Duration = Duration::from_secs(1);
/// A transaction that takes longer keeps hosts waiting, and not the other way round.
const LONG: Duration = Duration::from_secs(1);

/// Learns what was committed, in the order of revisions, before the writers are answered.
pub(crate) trait Follower: Send + Sync {
    /// These writes came to this.
    fn committed(&self, writes: Vec<Write>, outcomes: &Outcomes);
    /// A transaction failed: what became of it is not known.
    fn doubtful(&self);
}

struct Job {
    write: Write,
    answer: oneshot::Sender<Result<Revision, StoreError>>,
}

/// The way to the writer.
#[derive(Clone)]
pub(crate) struct Writer {
    jobs: mpsc::Sender<Job>,
    contacts: Arc<Mutex<BTreeMap<String, Contact>>>,
    pulse: Arc<Mutex<Pulse>>,
}

/// How the store has been.
#[derive(Debug, Default)]
struct Pulse {
    /// Why the last transaction failed, if it did.
    trouble: Option<StoreError>,
    /// When the present one was begun.
    begun: Option<Instant>,
    /// The last moment at which one was known to fail, or to take long.
    held_up: Option<Timestamp>,
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Writer")
    }
}

impl Writer {
    /// Starts the task that writes; it ends after the last writer is gone.
    pub(crate) fn start(
        store: Arc<dyn Store>,
        follower: Arc<dyn Follower>,
        seeing: Arc<Seeing>,
    ) -> Self {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let contacts = Arc::<Mutex<BTreeMap<_, _>>>::default();
        let pulse = Arc::<Mutex<Pulse>>::default();
        let task = Task {
            store,
            follower,
            queue,
            contacts: Arc::clone(&contacts),
            pulse: Arc::clone(&pulse),
            seeing,
        };
        tokio::spawn(task.run());
        Self {
            jobs,
            contacts,
            pulse,
        }
    }

    /// Why the last transaction failed, if it did.
    pub(crate) fn trouble(&self) -> Option<StoreError> {
        lock(&self.pulse).trouble.clone()
    }

    /// Until when the store was last known to keep everybody waiting, in vain or not.
    pub(crate) fn held_up(&self) -> Option<Timestamp> {
        let pulse = lock(&self.pulse);
        if pulse.begun.is_some_and(|begun| begun.elapsed() > LONG) {
            return Some(clock::now());
        }
        pulse.held_up
    }

    /// Writes, and waits until it lasts.
    pub(crate) async fn write(&self, write: Write) -> Result<Revision, StoreError> {
        let (answer, answered) = oneshot::channel();
        let job = Job { write, answer };
        self.jobs.send(job).await.map_err(|_| StoreError::Stopped)?;
        answered.await.map_err(|_| StoreError::Stopped)?
    }

    /// Notes a contact: it lasts within a second or so, and nobody waits for it.
    pub(crate) fn heard(&self, contact: Contact) {
        let mut waiting = lock(&self.contacts);
        let known = waiting.entry(contact.uid.clone()).or_default();
        known.agent = contact.agent.max(known.agent);
        known.daemon = contact.daemon.max(known.daemon);
        known.uid = contact.uid;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // What is guarded is never left half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Task {
    store: Arc<dyn Store>,
    follower: Arc<dyn Follower>,
    queue: mpsc::Receiver<Job>,
    contacts: Arc<Mutex<BTreeMap<String, Contact>>>,
    pulse: Arc<Mutex<Pulse>>,
    seeing: Arc<Seeing>,
}

impl Task {
    async fn run(mut self) {
        let mut tick = tokio::time::interval(CONTACTS);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut jobs = Vec::with_capacity(MOST);
        loop {
            let open = tokio::select! {
                biased;
                got = self.queue.recv_many(&mut jobs, MOST) => got > 0,
                _ = tick.tick() => true,
            };
            self.commit(&mut jobs).await;
            if !open {
                break;
            }
        }
        tracing::debug!("the writer ends");
    }

    async fn commit(&mut self, jobs: &mut Vec<Job>) {
        let (mut writes, answers): (Vec<_>, Vec<_>) =
            jobs.drain(..).map(|job| (job.write, job.answer)).unzip();
        let contacts = self.take_contacts();
        writes.extend(contacts.iter().cloned().map(Write::Heard));
        if writes.is_empty() {
            return;
        }
        let started = Instant::now();
        lock(&self.pulse).begun = Some(started);
        let outcomes = self.store.commit(&writes).await;
        let took = started.elapsed();
        tracing::trace!(writes = writes.len(), ?took, "committed");
        self.seeing.metrics.commit(writes.len(), took);
        let failed = |outcome: &Result<_, _>| match outcome {
            Err(error @ StoreError::Database(_)) => Some(error.clone()),
            Ok(_) | Err(_) => None,
        };
        let trouble = outcomes.iter().find_map(failed);
        let is_failed = trouble.is_some();
        let mut pulse = lock(&self.pulse);
        if is_failed || took > LONG {
            pulse.held_up = Some(clock::now());
        }
        (pulse.trouble, pulse.begun) = (trouble, None);
        drop(pulse);
        if is_failed {
            self.follower.doubtful();
            self.keep_contacts(contacts);
        }
        self.follower.committed(writes, &outcomes);
        for (answer, outcome) in answers.into_iter().zip(outcomes) {
            // Whoever asked may be gone: what was written stays written.
            let _ = answer.send(outcome);
        }
    }

    fn take_contacts(&self) -> Vec<Contact> {
        let mut waiting = lock(&self.contacts);
        let mut taken = Vec::new();
        while taken.len() < MOST_CONTACTS {
            let Some((_, contact)) = waiting.pop_first() else {
                break;
            };
            taken.push(contact);
        }
        taken
    }

    fn keep_contacts(&self, contacts: Vec<Contact>) {
        let mut waiting = lock(&self.contacts);
        for contact in contacts {
            let known = waiting.entry(contact.uid.clone()).or_default();
            known.agent = contact.agent.max(known.agent);
            known.daemon = contact.daemon.max(known.daemon);
            known.uid = contact.uid;
        }
    }
}
