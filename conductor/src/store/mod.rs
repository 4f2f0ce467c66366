//! What outlives the process: hosts, documents, their log and the audit log.
//!
//! Every write gets a **revision**, one growing number for the whole store. Writes of many callers
//! go to the database in one transaction ([`writer`]); each succeeds or fails by itself, and is
//! durable once it is answered. Not here: what a change means, and who may make it.

pub(crate) mod backup;
pub(crate) mod commit;
mod contacts;
pub(crate) mod database;
pub(crate) mod leases;
#[cfg(test)]
mod old_tests;
#[cfg(test)]
pub(crate) mod postgres;
pub(crate) mod rows;
pub(crate) mod sql;
#[cfg(test)]
mod tests;
pub(crate) mod upgrade;
pub(crate) mod writer;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use ferrite_proto::api::HostEvent;
use ferrite_proto::host::Run;
use ferrite_proto::inventory::Inventory;
use jiff::Timestamp;
use serde_json::Value;

use crate::actor::Actor;
use crate::lifecycle::record::{Kept, Record};
use crate::seal::SealError;

/// The number of a committed write; later ones are larger.
pub(crate) type Revision = u64;

/// What a store answers in.
pub(crate) type StoreFuture<'a, T> =
    Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// What became of each write.
pub(crate) type Outcomes = Vec<Result<Revision, StoreError>>;

/// A host and its secrets.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Stored {
    /// The host.
    pub(crate) record: Record,
    /// Its secrets, opened.
    pub(crate) kept: Kept,
}

/// Something that is not a host.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Document {
    /// `Image`, `Token`, …
    pub(crate) kind: String,
    /// Unique within its kind.
    pub(crate) name: String,
    /// Whose it is.
    pub(crate) project: String,
    /// Of its last change; the store sets it.
    pub(crate) revision: Revision,
    /// When it was first put.
    pub(crate) created: Timestamp,
    /// It is gone after that.
    pub(crate) expires: Option<Timestamp>,
    /// What it says.
    pub(crate) body: Value,
    /// What of it is secret: sealed in the database.
    pub(crate) secret: Option<Value>,
}

/// What is written together with a change.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Entries {
    /// Lines of the host's log.
    pub(crate) events: Vec<HostEvent>,
    /// Entries of the audit log.
    pub(crate) audit: Vec<AuditEntry>,
    /// A new inventory of the host.
    pub(crate) inventory: Option<Box<Inventory>>,
    /// Runs of the host that ended.
    pub(crate) runs: Vec<Run>,
}

/// An entry of the audit log, before it is chained.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct AuditEntry {
    /// Whose it is to read; empty for what concerns the whole conductor.
    pub(crate) project: String,
    /// Who, what, when, from where.
    pub(crate) body: Value,
}

/// What must hold for a document to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expect {
    /// There is none of that name.
    Absent,
    /// Its last change is this one.
    Revision(Revision),
    /// Whatever is there.
    Anything,
}

/// When a host was last heard.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Contact {
    /// Which host.
    pub(crate) uid: String,
    /// The agent.
    pub(crate) agent: Option<Timestamp>,
    /// The daemon.
    pub(crate) daemon: Option<Timestamp>,
}

/// A change to what is stored.
#[derive(Debug, Clone)]
pub(crate) enum Write {
    /// A new host.
    Add {
        /// The host; its version is set by the store.
        host: Box<Stored>,
        /// With it.
        with: Entries,
    },
    /// A host as changed.
    Save {
        /// The host; its version is set by the store.
        host: Box<Stored>,
        /// What it was made from: refused when that is not what is stored.
        before: Arc<Stored>,
        /// The writer's fence, when it writes as the host's owner.
        fence: Option<u64>,
        /// With it.
        with: Entries,
    },
    /// A host goes, and everything of it.
    Remove {
        /// As it was.
        host: Arc<Stored>,
        /// The writer's fence, when it writes as the host's owner.
        fence: Option<u64>,
        /// Entries of the audit log.
        with: Entries,
    },
    /// A document.
    Put {
        /// As it shall be.
        document: Box<Document>,
        /// Refused when this does not hold.
        expect: Expect,
        /// Entries of the audit log.
        with: Entries,
    },
    /// A document goes.
    Drop {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
        /// Refused when this does not hold.
        expect: Expect,
        /// Entries of the audit log.
        with: Entries,
    },
    /// Entries of the audit log alone.
    Audit(Vec<AuditEntry>),
    /// When a host was last heard: takes no revision.
    Heard(Contact),
    /// Lines of removed hosts' logs go: takes no revision.
    Forget {
        /// Everybody was told of them up to here.
        upto: u64,
        /// Those of hosts that were removed before this go anyway.
        before: Timestamp,
    },
}

/// A line of the audit log as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AuditLine {
    /// 1, 2, 3, …
    pub(crate) id: u64,
    /// The change that it tells of.
    pub(crate) revision: Revision,
    /// Whose.
    pub(crate) project: String,
    /// The very text that was hashed.
    pub(crate) body: String,
    /// Hex SHA-256 of the hash before and the body.
    pub(crate) hash: String,
}

/// The end of the audit log, as the store's key vouches for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AuditHead {
    /// Of the last line.
    pub(crate) id: u64,
    /// Of the last line.
    pub(crate) hash: String,
    /// Whether the key says so, too.
    pub(crate) vouched: bool,
}

/// Something that was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Removed {
    /// When, in revisions.
    pub(crate) revision: Revision,
    /// `Host`, or a document's kind.
    pub(crate) kind: String,
    /// Its name.
    pub(crate) name: String,
    /// Whose it was.
    pub(crate) project: String,
}

/// What changed after a revision, in no order.
#[derive(Debug, Clone, Default)]
pub(crate) struct News {
    /// The last revision that this covers.
    pub(crate) revision: Revision,
    /// Removals up to here are forgotten.
    pub(crate) pruned: Revision,
    /// Hosts.
    pub(crate) hosts: Vec<Stored>,
    /// Documents.
    pub(crate) documents: Vec<Document>,
    /// What went.
    pub(crate) removed: Vec<Removed>,
}

/// A line of a host's log, with its place among all hosts' lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogLine {
    /// Its place.
    pub(crate) id: u64,
    /// Which host.
    pub(crate) host: String,
    /// The line.
    pub(crate) event: HostEvent,
}

/// The database. A commit is one transaction, durable once it is answered.
pub(crate) trait Store: Send + Sync + fmt::Debug {
    /// Writes all, in this order; each succeeds or fails by itself.
    fn commit<'a>(
        &'a self,
        writes: &'a [Write],
    ) -> Pin<Box<dyn Future<Output = Outcomes> + Send + 'a>>;
    /// What changed after a revision; everything after 0.
    fn news(&self, after: Revision) -> StoreFuture<'_, News>;
    /// When each host was last heard, of those that were heard after a time.
    fn contacts(&self, after: Timestamp) -> StoreFuture<'_, Vec<Contact>>;
    /// The last lines of a host's log, newest last.
    fn events<'a>(&'a self, host: &'a str, limit: u32) -> StoreFuture<'a, Vec<HostEvent>>;
    /// Lines of all hosts' logs after a place, oldest first.
    fn log(&self, after: u64, limit: u32) -> StoreFuture<'_, Vec<LogLine>>;
    /// The same with those of hosts that were removed and are not forgotten yet.
    fn outbox(&self, after: u64, limit: u32) -> StoreFuture<'_, Vec<LogLine>>;
    /// Whether there are lines of removed hosts.
    fn has_departed(&self) -> StoreFuture<'_, bool>;
    /// The place of the last line of all hosts' logs; 0 when there is none.
    fn log_end(&self) -> StoreFuture<'_, u64>;
    /// Lines of all hosts' logs before a place, newest first.
    fn log_before(&self, before: u64, limit: u32) -> StoreFuture<'_, Vec<LogLine>>;
    /// Lines of the audit log after a place, oldest first.
    fn audit(&self, after: u64, limit: u32) -> StoreFuture<'_, Vec<AuditLine>>;
    /// The end of the audit log; none while it is empty.
    fn audit_head(&self) -> StoreFuture<'_, Option<AuditHead>>;
    /// A host's inventory.
    fn inventory<'a>(&'a self, uid: &'a str) -> StoreFuture<'a, Option<Box<Inventory>>>;
    /// The last runs of a host that ended, newest last.
    fn runs<'a>(&'a self, uid: &'a str, limit: u32) -> StoreFuture<'a, Vec<Run>>;
    /// Runs of all hosts that ended after a time, newest last.
    fn runs_since(&self, ended: Timestamp, limit: u32) -> StoreFuture<'_, Vec<Run>>;
}

/// Why the store did not do it.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum StoreError {
    /// No such thing.
    #[error("there is no {kind} {name:?}")]
    NotFound {
        /// `host`, or a document's kind.
        kind: String,
        /// Which.
        name: String,
    },
    /// Name, boot MAC or BMC address is taken.
    #[error("{owner} has this {what} already")]
    Exists {
        /// What is taken.
        what: &'static str,
        /// By whom: `host "a"`.
        owner: String,
    },
    /// Somebody else saved in between.
    #[error("{0} was changed at the same time")]
    Conflict(String),
    /// Another replica owns the host now.
    #[error("host {0:?} is driven by another replica now")]
    Fenced(String),
    /// What is stored cannot be read.
    #[error("what is stored of {owner} cannot be read: {what}")]
    Damaged {
        /// Whose.
        owner: String,
        /// What about it.
        what: String,
    },
    /// The secrets.
    #[error(transparent)]
    Seal(Arc<SealError>),
    /// The database.
    #[error("the database failed: {0}")]
    Database(Arc<sqlx::Error>),
    /// The schema.
    #[error("the database's schema cannot be brought up to date: {0}")]
    Migrate(Arc<sqlx::migrate::MigrateError>),
    /// The writer has ended.
    #[error("the conductor is stopping: nothing is stored any more")]
    Stopped,
}

impl StoreError {
    /// Whether the database has no room: what is freed makes it go on.
    pub(crate) fn is_full(&self) -> bool {
        let Self::Database(error) = self else {
            return false;
        };
        let code = match &**error {
            sqlx::Error::Database(refusal) => refusal.code(),
            _ => None,
        };
        // SQLITE_FULL, SQLITE_IOERR_SHMSIZE (its index of the log cannot grow), and PostgreSQL's
        // disk_full.
        matches!(code.as_deref(), Some("13" | "4874" | "53100"))
    }
}

impl StoreError {
    /// Whether the database cannot be reached or does not serve yet: it may, later.
    pub(crate) fn is_away(&self) -> bool {
        use sqlx::migrate::MigrateError::{Execute, ExecuteMigration};
        match self {
            Self::Database(error) => away(error),
            Self::Migrate(error) => {
                matches!(&**error, Execute(error) | ExecuteMigration(error, _) if away(error))
            }
            _ => false,
        }
    }
}

fn away(error: &sqlx::Error) -> bool {
    let refusal = match error {
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut => return true,
        sqlx::Error::Database(refusal) => refusal.code(),
        _ => None,
    };
    // PostgreSQL's codes: connections broken or refused, shutting down or starting, and a follower
    // that was not promoted yet (it takes no writes).
    let passing = ["08", "53300", "57P01", "57P02", "57P03", "25006"];
    refusal.is_some_and(|code| passing.iter().any(|begin| code.starts_with(begin)))
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(Arc::new(error))
    }
}

impl From<SealError> for StoreError {
    fn from(error: SealError) -> Self {
        Self::Seal(Arc::new(error))
    }
}

impl From<sqlx::migrate::MigrateError> for StoreError {
    fn from(error: sqlx::migrate::MigrateError) -> Self {
        Self::Migrate(Arc::new(error))
    }
}

impl Document {
    /// A new one, of everybody, for ever.
    pub(crate) fn new(kind: &str, name: &str, created: Timestamp, body: Value) -> Self {
        Self {
            kind: kind.to_owned(),
            name: name.to_owned(),
            project: String::new(),
            revision: 0,
            created,
            expires: None,
            body,
            secret: None,
        }
    }
}

impl AuditEntry {
    /// What was done to something; `detail` is an object, of which nothing is secret.
    pub(crate) fn of(
        actor: &Actor,
        at: Timestamp,
        action: &str,
        (kind, name, project): (&str, &str, &str),
        detail: Value,
    ) -> Self {
        let mut body = serde_json::json!({
            "at": at,
            "actor": actor.to_json(),
            "action": action,
            "target": {"kind": kind, "name": name, "project": project},
        });
        body["detail"] = detail;
        Self {
            project: project.to_owned(),
            body,
        }
    }
}

impl Write {
    /// Whether it takes a revision.
    pub(crate) const fn is_numbered(&self) -> bool {
        !matches!(self, Self::Heard(_) | Self::Forget { .. })
    }
}
