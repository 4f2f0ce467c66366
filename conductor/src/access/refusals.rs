//! Refused calls: counted, logged a few at a time, and summed up in the audit log.
//!
//! Not every one of them is written down: whoever guesses tokens would fill the disk. The sum of a
//! burst is written when the next call is refused after its minute.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use crate::actor::Actor;
use crate::store::AuditEntry;

/// What is summed up.
const WINDOW: SignedDuration = SignedDuration::from_mins(1);
/// Lines of the log in one window.
const LOGGED: u64 = 10;
/// Addresses that are named.
const NAMED: usize = 20;

/// Counts refused calls.
#[derive(Debug, Default)]
pub(crate) struct Refusals(Mutex<Window>);

#[derive(Debug, Default)]
struct Window {
    since: Option<Timestamp>,
    count: u64,
    from: BTreeSet<String>,
}

/// What is to be done about a refusal.
#[derive(Debug, PartialEq)]
pub(crate) struct Noted {
    /// It is worth a line of the log.
    pub(crate) log: bool,
    /// The sum of an earlier window.
    pub(crate) sum: Option<AuditEntry>,
}

impl Refusals {
    /// A call from an address was refused.
    pub(crate) fn note(&self, from: &str, now: Timestamp) -> Noted {
        // What is guarded is never left half done.
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_over = |since: Timestamp| now.duration_since(since).abs() >= WINDOW;
        let sum = match window.since {
            Some(since) if is_over(since) => Some(std::mem::take(&mut *window).sum(since, now)),
            _ => None,
        };
        window.since = window.since.or(Some(now));
        window.count += 1;
        if window.from.len() < NAMED {
            window.from.insert(from.to_owned());
        }
        Noted {
            log: window.count <= LOGGED,
            sum,
        }
    }
}

impl Window {
    fn sum(self, since: Timestamp, now: Timestamp) -> AuditEntry {
        let detail = json!({"calls": self.count, "since": since, "from": self.from});
        let target = ("Api", "", "");
        AuditEntry::of(&Actor::Conductor, now, "refused", target, detail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_ten_lines_and_one_entry() {
        let refusals = Refusals::default();
        let start = Timestamp::from_second(1_800_000_000).unwrap();
        let noted: Vec<_> = (0..5000)
            .map(|n| refusals.note(&format!("10.0.0.{}", n % 100), start))
            .collect();
        assert_eq!(noted.iter().filter(|noted| noted.log).count(), 10);
        assert!(noted.iter().all(|noted| noted.sum.is_none()));
        let next = refusals.note("10.0.0.1", start + WINDOW);
        let sum = next.sum.unwrap().body;
        assert_eq!(sum["detail"]["calls"], 5000);
        assert_eq!(sum["detail"]["from"].as_array().unwrap().len(), NAMED);
        assert!(next.log);
        assert_eq!(refusals.note("10.0.0.1", start + WINDOW).sum, None);
    }
}
