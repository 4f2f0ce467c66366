//! What goes into the audit log, and whether a log is whole.
//!
//! Every change that a person makes is there, by construction: whoever saves a host for a person
//! without saying what was done has it said here. So is every order that destroys data: given,
//! accepted, done or failed. Secrets are named, never shown.
//!
//! The store chains the lines and vouches for the last one with its key. So whoever changes,
//! removes, adds or moves lines without that key is found out. Whoever puts the whole database
//! back to an earlier day is not, unless somebody noted a later end: `ferrite audit verify
//! --head` compares with it.

use ferrite_proto::access::{AuditHead, AuditLine};
use serde_json::{Map, Value, json};

use crate::actor::Actor;
use crate::lifecycle::StepName;
use crate::lifecycle::change::Change;
use crate::store::Stored;
use crate::store::commit::chained;

impl Change {
    /// Notes what became of an order, if it is one that destroys data.
    pub(crate) fn audit_order(&mut self, what: &str, order: u64, step: StepName, detail: Value) {
        if !destroys(step) {
            return;
        }
        let mut all = json!({"order": order, "step": step.as_str()});
        if let (Value::Object(all), Value::Object(detail)) = (&mut all, detail) {
            all.extend(detail);
        }
        self.audit(what, all);
    }

    /// Notes what a person changed, unless that is said already.
    pub(crate) fn audit_person(&mut self, before: Option<&Stored>) {
        let is_person = matches!(self.actor, Actor::Person { .. });
        if is_person && self.audit.is_empty() {
            let action = if before.is_some() { "change" } else { "create" };
            let detail = self.difference(before);
            self.audit(action, detail);
        }
    }

    /// Names of what is another than before.
    fn difference(&self, before: Option<&Stored>) -> Value {
        let host = &self.record.host;
        let was = before.map(|before| &before.record.host);
        let spec = names(was.map(|was| &was.spec), &host.spec);
        let secrets = names(before.map(|before| &before.kept.host), &self.kept.host);
        let mut detail = json!({"generation": host.generation});
        let mut add = |key: &str, value: Value| detail[key] = value;
        if !spec.is_empty() {
            add("spec", json!(spec));
        }
        if !secrets.is_empty() {
            add("secrets", json!(secrets));
        }
        if let Some(was) = was.filter(|was| was.project != host.project) {
            add("moved_from", json!(was.project));
        }
        let image = host.spec.image.as_ref().map(|image| &image.url);
        if was.map(|was| was.spec.image.as_ref().map(|image| &image.url)) != Some(image) {
            add("image", json!(image));
        }
        let asked = self.events.iter().filter(|event| event.kind == "request");
        let asked: Vec<_> = asked.map(|event| event.text.as_str()).collect();
        if !asked.is_empty() {
            add("request", json!(asked));
        }
        detail
    }
}

/// Steps after which the disk is not what it was.
const fn destroys(step: StepName) -> bool {
    matches!(
        step,
        StepName::Erase | StepName::WriteImage | StepName::WriteConfigDrive
    )
}

/// Fields that are another than before; never what is in them.
fn names<T: serde::Serialize>(before: Option<&T>, now: &T) -> Vec<String> {
    let object = |value: Option<&T>| match value.map(serde_json::to_value) {
        Some(Ok(Value::Object(object))) => object,
        _ => Map::new(),
    };
    let (before, now) = (object(before), object(Some(now)));
    let mut names: Vec<String> = before.keys().chain(now.keys()).cloned().collect();
    names.sort();
    names.dedup();
    names.retain(|name| before.get(name) != now.get(name));
    names
}

/// Why a log is not whole: which line, and what about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Broken {
    /// A number is missing, there twice, or out of order.
    #[error("line {expected} is missing: line {found} stands in its place")]
    Gap {
        /// Which should be here.
        expected: u64,
        /// Which is.
        found: u64,
    },
    /// Its hash does not follow from it and the line before.
    #[error("line {id} was changed, or the line before it")]
    Changed {
        /// Which.
        id: u64,
    },
    /// Lines at the end are gone, or too many.
    #[error("the log ends with line {found}, and should with line {expected}")]
    Cut {
        /// The last that should be.
        expected: u64,
        /// The last that is.
        found: u64,
    },
    /// The end is another than it was noted.
    #[error("line {id} is the last and has another hash than the end that was noted")]
    End {
        /// Which.
        id: u64,
    },
    /// The end was not written by a conductor with the key.
    #[error("the conductor's key does not vouch for the end of the log, line {id}")]
    NotVouched {
        /// Which.
        id: u64,
    },
    /// The end that somebody noted is not there.
    #[error("line {id} is not the one that was noted: the log was put back, or made anew")]
    Noted {
        /// Which.
        id: u64,
    },
}

/// Reads a log, line by line.
#[derive(Debug, Default)]
pub(crate) struct Check {
    id: u64,
    hash: String,
    noted: Option<(u64, String)>,
}

impl Check {
    /// From the first line on; a line that was noted before has to come by.
    pub(crate) fn with_noted(noted: Option<(u64, String)>) -> Self {
        Self {
            noted,
            ..Self::default()
        }
    }

    /// The next line.
    pub(crate) fn take(&mut self, line: &AuditLine) -> Result<(), Broken> {
        let expected = self.id + 1;
        if line.id != expected {
            let found = line.id;
            return Err(Broken::Gap { expected, found });
        }
        if line.hash != chained(&self.hash, line.id, &line.project, &line.body) {
            return Err(Broken::Changed { id: line.id });
        }
        if let Some((id, hash)) = &self.noted
            && *id == line.id
            && *hash != line.hash
        {
            return Err(Broken::Noted { id: *id });
        }
        self.id = line.id;
        self.hash.clone_from(&line.hash);
        Ok(())
    }

    /// After the last line. The head is as old as the first answer: lines may have come since.
    pub(crate) fn end(&self, head: Option<&AuditHead>) -> Result<(), Broken> {
        if let Some((id, _)) = &self.noted
            && *id > self.id
        {
            return Err(Broken::Noted { id: *id });
        }
        let expected = head.map_or(0, |head| head.id);
        if expected != self.id {
            let found = self.id;
            return Err(Broken::Cut { expected, found });
        }
        match head {
            Some(head) if head.hash != self.hash => Err(Broken::End { id: head.id }),
            Some(head) if !head.vouched => Err(Broken::NotVouched { id: head.id }),
            Some(_) | None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(lines: u64) -> (AuditHead, Vec<AuditLine>) {
        let mut all = Vec::new();
        let mut hash = String::new();
        for id in 1..=lines {
            let body = format!("{{\"action\":\"a{id}\"}}");
            hash = chained(&hash, id, "p", &body);
            all.push(AuditLine {
                id,
                revision: id,
                project: "p".into(),
                body,
                hash: hash.clone(),
            });
        }
        let head = AuditHead {
            id: lines,
            hash,
            vouched: true,
        };
        (head, all)
    }

    fn check(head: &AuditHead, lines: &[AuditLine]) -> Result<(), Broken> {
        let mut check = Check::default();
        for line in lines {
            check.take(line)?;
        }
        check.end(Some(head))
    }

    /// Hashes anew from a line on, as somebody without the key can.
    fn rehash(lines: &mut [AuditLine]) -> (u64, String) {
        let mut hash = String::new();
        for line in lines.iter_mut() {
            hash = chained(&hash, line.id, &line.project, &line.body);
            line.hash.clone_from(&hash);
        }
        (lines.len() as u64, hash)
    }

    #[test]
    fn a_whole_log_is_whole() {
        let (head, lines) = log(20);
        assert_eq!(check(&head, &lines), Ok(()));
        assert_eq!(Check::default().end(None), Ok(()));
    }

    #[test]
    fn any_line_that_is_changed_removed_moved_or_added_is_named() {
        let (head, lines) = log(20);
        for at in 0..lines.len() {
            let id = lines[at].id;
            for field in 0..4 {
                let mut changed = lines.clone();
                match field {
                    0 => changed[at].body.push(' '),
                    1 => changed[at].project = "q".into(),
                    2 => changed[at].hash = "0".repeat(64),
                    _ => changed[at].id += 100,
                }
                assert!(check(&head, &changed).is_err(), "field {field} of {id}");
            }
            let mut removed = lines.clone();
            removed.remove(at);
            let found = check(&head, &removed).unwrap_err();
            let named = match found {
                Broken::Gap { expected, .. } | Broken::Cut { expected, .. } => expected,
                other => panic!("{other}"),
            };
            assert_eq!(named, id);
            let mut added = lines.clone();
            added.insert(at, lines[at].clone());
            assert!(check(&head, &added).is_err(), "{id} twice");
            if at > 0 {
                let mut moved = lines.clone();
                moved.swap(at - 1, at);
                assert!(check(&head, &moved).is_err(), "{id} moved");
            }
        }
    }

    #[test]
    fn a_chain_that_was_made_anew_does_not_fit_its_end() {
        let (head, mut lines) = log(20);
        lines[7].body = "{}".into();
        let (id, hash) = rehash(&mut lines);
        assert_eq!(check(&head, &lines), Err(Broken::End { id: 20 }));
        // With an end to fit: nobody with the key wrote that.
        let forged = AuditHead {
            id,
            hash,
            vouched: false,
        };
        let found = check(&forged, &lines);
        assert_eq!(found, Err(Broken::NotVouched { id: 20 }));
    }

    #[test]
    fn a_cut_tail_is_seen_and_so_is_an_earlier_day() {
        let (head, lines) = log(20);
        for cut in 0..20 {
            let found = u64::try_from(cut).unwrap();
            let expected = 20;
            assert_eq!(
                check(&head, &lines[..cut]),
                Err(Broken::Cut { expected, found })
            );
        }
        let (earlier, fewer) = log(10);
        assert_eq!(check(&earlier, &fewer), Ok(()));
        let mut check = Check::with_noted(Some((20, head.hash)));
        for line in &fewer {
            check.take(line).unwrap();
        }
        assert_eq!(check.end(Some(&earlier)), Err(Broken::Noted { id: 20 }));
    }
}
