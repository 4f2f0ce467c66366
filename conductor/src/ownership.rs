//! Which hosts this conductor may drive, and until when it may believe that.
//!
//! Alone on its database it drives all. Of several, each drives those that it holds a lease on; the
//! fence of the lease goes with every write. Time is counted here by the monotonic clock.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ferrite_proto::problem::{Code, Problem};
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::Notify;
use tokio::time::Instant;

/// What may be driven.
#[derive(Debug, Default)]
pub(crate) struct Ownership {
    shared: Option<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    held: Mutex<Held>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Held {
    until: Option<Instant>,
    fences: BTreeMap<String, u64>,
    facts: Facts,
}

/// What people want to know of a replica.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Facts {
    /// Its id.
    pub(crate) replica: String,
    /// All that are alive, itself too, when it looked last.
    pub(crate) alive: Vec<String>,
    /// When it renewed its lease last.
    pub(crate) renewed: Option<Timestamp>,
    /// Renewals that failed.
    pub(crate) missed: u64,
    /// Hosts that it took: new ones, and those of replicas that are gone.
    pub(crate) taken: u64,
    /// Hosts that it left to others, so that each has its share.
    pub(crate) handed_over: u64,
    /// Whether it may drive now.
    pub(crate) drives: bool,
    /// The hosts that it drives, each with the fence of its lease.
    pub(crate) leases: BTreeMap<String, u64>,
}

impl Shared {
    fn held(&self) -> MutexGuard<'_, Held> {
        // Each entry is whole by itself.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ownership {
    /// One of several: nothing is held yet.
    pub(crate) fn shared() -> Self {
        Self {
            shared: Some(Shared::default()),
        }
    }

    /// Whether there may be others.
    pub(crate) const fn is_shared(&self) -> bool {
        self.shared.is_some()
    }

    /// The fence to write with as the host's owner; none is needed alone.
    pub(crate) fn fence(&self, host: &str) -> Result<Option<u64>, Problem> {
        let Some(shared) = &self.shared else {
            return Ok(None);
        };
        let held = shared.held();
        let valid = held.until.is_some_and(|until| until > Instant::now());
        let fence = held.fences.get(host).filter(|_| valid);
        fence.copied().map(Some).ok_or_else(|| {
            let text = format!("host {host:?} is not driven by this replica");
            Problem::new(Code::NotOwner, text, "nothing: its owner goes on")
        })
    }

    /// Whether what is held may still be believed.
    pub(crate) fn is_valid(&self) -> bool {
        let until = self.shared.as_ref().and_then(|shared| shared.held().until);
        until.is_some_and(|until| until > Instant::now())
    }

    /// What is held, and until when that may be believed.
    pub(crate) fn hold(&self, hosts: Vec<(String, u64)>, until: Instant) {
        if let Some(shared) = &self.shared {
            let mut held = shared.held();
            held.until = Some(until);
            held.fences = hosts.into_iter().collect();
        }
    }

    /// A host is not held any more.
    pub(crate) fn drop(&self, host: &str) {
        if let Some(shared) = &self.shared {
            shared.held().fences.remove(host);
        }
    }

    /// Notes something for people.
    pub(crate) fn note(&self, change: impl FnOnce(&mut Facts)) {
        if let Some(shared) = &self.shared {
            change(&mut shared.held().facts);
        }
    }

    /// What this replica is and has; none when there are no others.
    pub(crate) fn facts(&self) -> Option<Facts> {
        let held = self.shared.as_ref()?.held();
        Some(Facts {
            drives: held.until.is_some_and(|until| until > Instant::now()),
            leases: held.fences.clone(),
            ..held.facts.clone()
        })
    }

    /// There is something new to take.
    pub(crate) fn wake(&self) {
        if let Some(shared) = &self.shared {
            shared.wake.notify_one();
        }
    }

    /// Waits for something new to take.
    pub(crate) async fn woken(&self) {
        match &self.shared {
            Some(shared) => shared.wake.notified().await,
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn what_is_held_is_believed_for_so_long() {
        assert_eq!(Ownership::default().fence("a").unwrap(), None);
        let shared = Ownership::shared();
        assert_eq!(shared.fence("a").unwrap_err().code, Code::NotOwner);
        let until = Instant::now() + Duration::from_secs(3);
        shared.hold(vec![("a".into(), 7)], until);
        assert_eq!(shared.fence("a").unwrap(), Some(7));
        assert!(shared.fence("b").is_err());
        shared.note(|facts| facts.taken += 1);
        let facts = shared.facts().unwrap();
        assert_eq!((facts.taken, facts.drives, facts.leases["a"]), (1, true, 7));
        assert_eq!(Ownership::default().facts(), None);
        tokio::time::advance(Duration::from_secs(4)).await;
        assert!(shared.fence("a").is_err() && !shared.is_valid());
    }
}
