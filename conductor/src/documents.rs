//! Everything that is stored and is not a host: images, profiles, tokens, certificates, answers
//! that were given before.
//!
//! Reads come from memory, changes go to the store first. Not here: what a document says.

use std::sync::Arc;

use ferrite_proto::problem::{Code, Problem};

use crate::clock;
use crate::hosts::problem_of;
use crate::roll::Roll;
use crate::store::writer::Writer;
use crate::store::{AuditEntry, Document, Entries, Expect, Revision, Write};

/// All documents.
#[derive(Debug, Clone)]
pub(crate) struct Documents {
    roll: Arc<Roll>,
    writer: Writer,
}

impl Documents {
    pub(crate) const fn new(roll: Arc<Roll>, writer: Writer) -> Self {
        Self { roll, writer }
    }

    /// A document that has not expired.
    pub(crate) fn get(&self, kind: &str, name: &str) -> Option<Arc<Document>> {
        self.roll.document(kind, name, clock::now())
    }

    /// All documents of a kind that have not expired, by name.
    pub(crate) fn list(&self, kind: &str) -> Vec<Arc<Document>> {
        self.roll.documents(kind, clock::now())
    }

    /// Writes a document whole, with entries of the audit log; gives its revision.
    pub(crate) async fn put(
        &self,
        document: Document,
        expect: Expect,
        audit: Vec<AuditEntry>,
    ) -> Result<Revision, Problem> {
        let expect = self.instead_of_expired(&document, expect);
        let write = Write::Put {
            document: Box::new(document),
            expect,
            with: only(audit),
        };
        let written = self.writer.write(write).await;
        written.map_err(|error| problem_of(&error))
    }

    /// What has expired and is not swept away yet is as good as absent.
    fn instead_of_expired(&self, document: &Document, expect: Expect) -> Expect {
        if expect != Expect::Absent || self.get(&document.kind, &document.name).is_some() {
            return expect;
        }
        let expired = self.roll.any_document(&document.kind, &document.name);
        expired.map_or(expect, |old| Expect::Revision(old.revision))
    }

    /// Removes a document.
    pub(crate) async fn remove(
        &self,
        kind: &str,
        name: &str,
        expect: Expect,
        audit: Vec<AuditEntry>,
    ) -> Result<Revision, Problem> {
        let write = Write::Drop {
            kind: kind.to_owned(),
            name: name.to_owned(),
            expect,
            with: only(audit),
        };
        let written = self.writer.write(write).await;
        written.map_err(|error| problem_of(&error))
    }

    /// Removes what has expired.
    pub(crate) async fn sweep(&self) -> Result<usize, Problem> {
        let expired = self.roll.expired(clock::now());
        for document in &expired {
            let expect = Expect::Revision(document.revision);
            let removed = self.remove(&document.kind, &document.name, expect, Vec::new());
            match removed.await {
                // Somebody put a new one in its place.
                Err(problem) if problem.code == Code::Conflict => {}
                removed => drop(removed?),
            }
        }
        Ok(expired.len())
    }
}

fn only(audit: Vec<AuditEntry>) -> Entries {
    Entries {
        audit,
        ..Entries::default()
    }
}
