//! Where hosts are kept: one trait, so that a second kind of database is a second file.
//!
//! Not here: what a change means. A save is refused when somebody else saved in between.

pub(crate) mod sqlite;

use std::fmt;
use std::future::Future;
use std::pin::Pin;

use ferrite_proto::api::HostEvent;

use crate::lifecycle::record::{Kept, Record};

/// What a store answers in.
pub(crate) type StoreFuture<'a, T> =
    Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// A host and its secrets.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Stored {
    /// The host.
    pub(crate) record: Record,
    /// Its secrets, opened.
    pub(crate) kept: Kept,
}

/// Keeps hosts. Every call is one transaction, durable once it is answered.
pub(crate) trait Store: Send + Sync + fmt::Debug {
    /// Every host, by name.
    fn list(&self) -> StoreFuture<'_, Vec<Stored>>;
    /// One host.
    fn load<'a>(&'a self, name: &'a str) -> StoreFuture<'a, Stored>;
    /// A new host, with the first lines of its log.
    fn insert<'a>(&'a self, host: &'a Stored, events: &'a [HostEvent]) -> StoreFuture<'a, ()>;
    /// The host as changed, with lines for its log. Its version must be one above what is stored.
    fn save<'a>(&'a self, host: &'a Stored, events: &'a [HostEvent]) -> StoreFuture<'a, ()>;
    /// Forgets a host and its log.
    fn remove<'a>(&'a self, name: &'a str) -> StoreFuture<'a, ()>;
    /// The last lines of a host's log, newest last.
    fn events<'a>(&'a self, name: &'a str, limit: u32) -> StoreFuture<'a, Vec<HostEvent>>;
}

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// No such host.
    #[error("there is no host {0:?}")]
    NotFound(String),
    /// Name, boot MAC or BMC address is taken.
    #[error("another host has this {0} already")]
    Exists(&'static str),
    /// Somebody else saved in between.
    #[error("host {0:?} was changed at the same time")]
    Conflict(String),
    /// What is stored cannot be read.
    #[error("what is stored of host {host:?} cannot be read: {what}")]
    Damaged {
        /// Whose.
        host: String,
        /// What about it.
        what: String,
    },
    /// The secrets.
    #[error(transparent)]
    Seal(#[from] crate::seal::SealError),
    /// The database.
    #[error("the database failed: {0}")]
    Database(#[from] sqlx::Error),
    /// The schema.
    #[error("the database's schema cannot be brought up to date: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
}
