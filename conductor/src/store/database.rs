//! The store in a database: an `SQLite` file, or a `PostgreSQL` server.

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use ferrite_proto::api::HostEvent;
use ferrite_proto::host::Run;
use ferrite_proto::inventory::Inventory;
use jiff::Timestamp;
use sqlx::Connection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};

use super::commit::{Batch, head_owner};
use super::sql::{Pool, Row, Session, Value};
use super::{
    AuditHead, AuditLine, Contact, Document, LogLine, News, Outcomes, Revision, Store, StoreError,
    StoreFuture, Stored, Write, rows, upgrade,
};
use crate::crash::{self, Moment, Work};
use crate::seal::Sealer;

/// Connections to a server: one writes, the others read.
const CONNECTIONS: u32 = 6;

/// Hosts that are read at once.
const HOSTS_AT_ONCE: i64 = 500;

/// The database, and the key of what is secret in it.
#[derive(Debug)]
pub(crate) struct Database {
    pool: Pool,
    sealer: Arc<Sealer>,
}

impl Database {
    /// Opens the file, makes it when there is none, and brings its schema up to date.
    pub(crate) async fn sqlite(path: &Path, sealer: Sealer) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(10));
        // One connection: SQLite has one writer anyway, and nobody ever waits for a lock.
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            // SQLite ends a transaction by itself when the disk is full. sqlx counts it as open
            // for ever, and would begin no other: such a connection is closed.
            .before_acquire(|connection, _| {
                Box::pin(async move { Ok(!connection.is_in_transaction()) })
            })
            .connect_with(options)
            .await?;
        sqlx::migrate!("./migrations/sqlite").run(&pool).await?;
        let pool = Pool::Sqlite(pool);
        upgrade::out_of_status(&pool).await?;
        Ok(Self {
            pool,
            sealer: Arc::new(sealer),
        })
    }

    /// Opens a database on a server, and brings its schema up to date.
    pub(crate) async fn postgres(
        options: PgConnectOptions,
        sealer: Sealer,
    ) -> Result<Self, StoreError> {
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(Duration::from_secs(5))
            .connect_with(options)
            .await?;
        sqlx::migrate!("./migrations/postgres").run(&pool).await?;
        Ok(Self {
            pool: Pool::Postgres(pool),
            sealer: Arc::new(sealer),
        })
    }

    /// The database itself.
    pub(crate) const fn pool(&self) -> &Pool {
        &self.pool
    }

    async fn write(&self, writes: &[Write]) -> Result<Outcomes, StoreError> {
        let session = self.pool.begin().await?;
        let mut batch = Batch::begin(session, &self.sealer, writes).await?;
        let outcomes = batch.write_all(writes).await?;
        crash::point(Work::Commit, Moment::Before);
        batch.commit().await?;
        crash::point(Work::Commit, Moment::After);
        Ok(outcomes)
    }

    /// One by one: who is refused spoils nothing for the others.
    async fn write_each(&self, writes: &[Write]) -> Outcomes {
        let mut outcomes = Vec::with_capacity(writes.len());
        for write in writes {
            let one = self.write(std::slice::from_ref(write)).await;
            outcomes.push(one.and_then(|mut one| one.pop().unwrap_or(Err(StoreError::Stopped))));
        }
        outcomes
    }

    async fn read<T>(
        &self,
        sql: &'static str,
        values: Vec<Value>,
        one: impl Fn(&mut Row) -> Result<T, StoreError>,
    ) -> Result<Vec<T>, StoreError> {
        let mut rows = self.pool.rows(sql, values).await?;
        rows.iter_mut().map(one).collect()
    }

    async fn news(&self, after_revision: Revision) -> Result<News, StoreError> {
        let mut session = self.pool.snapshot().await?;
        let sql = "SELECT value, pruned FROM revision";
        let row = session.row(sql, Vec::new()).await?;
        let mut row = row.ok_or(sqlx::Error::RowNotFound)?;
        let mut news = News {
            revision: row.count(0)?,
            pruned: row.count(1)?,
            ..News::default()
        };
        let after = || vec![after_revision.into()];
        self.read_hosts(&mut session, after_revision, &mut news.hosts)
            .await?;
        let sql = "SELECT kind, name, project, revision, created, expires, body, sealed \
                   FROM documents WHERE revision > $1 ORDER BY kind, name";
        for mut row in session.rows(sql, after()).await? {
            news.documents.push(rows::document(&mut row, &self.sealer)?);
        }
        let sql = "SELECT revision, kind, name, project FROM removed WHERE revision > $1 \
                   ORDER BY revision";
        for mut row in session.rows(sql, after()).await? {
            news.removed.push(rows::removed(&mut row)?);
        }
        session.commit().await?;
        Ok(news)
    }

    /// Piece by piece: all rows of ten thousand hosts at once, as text, would be the largest thing
    /// that a conductor ever holds.
    async fn read_hosts(
        &self,
        session: &mut Session,
        after: Revision,
        hosts: &mut Vec<Stored>,
    ) -> Result<(), StoreError> {
        let sql = "SELECT name, uid, version, generation, created, spec, status, runtime, \
                   secrets, project, labels, annotations FROM hosts \
                   WHERE (version, name) > ($1, $2) ORDER BY version, name LIMIT $3";
        let (mut version, mut name) = (after + 1, String::new());
        loop {
            let values = vec![version.into(), (&name).into(), HOSTS_AT_ONCE.into()];
            let rows = session.rows(sql, values).await?;
            if rows.is_empty() {
                return Ok(());
            }
            for mut row in rows {
                hosts.push(rows::host(&mut row, &self.sealer)?);
            }
            if let Some(last) = hosts.last() {
                let last = &last.record.host;
                version = last.version;
                name.clone_from(&last.name);
            }
        }
    }

    /// One document, expired or not.
    pub(crate) async fn document(
        &self,
        kind: &str,
        name: &str,
    ) -> Result<Option<Document>, StoreError> {
        let sql = "SELECT kind, name, project, revision, created, expires, body, sealed \
                   FROM documents WHERE kind = $1 AND name = $2";
        let read = |row: &mut Row| rows::document(row, &self.sealer);
        let found = self.read(sql, vec![kind.into(), name.into()], read).await?;
        Ok(found.into_iter().next())
    }

    async fn audit_head(&self) -> Result<Option<AuditHead>, StoreError> {
        let sql = "SELECT id, hash, mac FROM audit_head";
        let rows = self.pool.rows(sql, Vec::new()).await?;
        let Some(mut row) = rows.into_iter().next() else {
            return Ok(None);
        };
        let (id, hash, mac) = (row.count(0)?, row.text(1)?, row.blob(2)?);
        let opened = self.sealer.open(&head_owner(id), &mac);
        let vouched = opened.is_ok_and(|opened| opened == hash.as_bytes());
        Ok(Some(AuditHead { id, hash, vouched }))
    }
}

/// Whether the database refused a statement, and not everything.
fn is_one_of_them(error: &StoreError) -> bool {
    let StoreError::Database(error) = error else {
        return false;
    };
    let sqlx::Error::Database(error) = &**error else {
        return false;
    };
    let kind = error.kind();
    !matches!(kind, sqlx::error::ErrorKind::Other) || error.code().as_deref() == Some("P0001")
}

fn run(row: &mut Row) -> Result<Run, StoreError> {
    rows::from_json("a run", &row.text(0)?)
}

fn newest_last<T>(mut all: Vec<T>) -> Vec<T> {
    all.reverse();
    all
}

impl Store for Database {
    fn commit<'a>(
        &'a self,
        writes: &'a [Write],
    ) -> Pin<Box<dyn Future<Output = Outcomes> + Send + 'a>> {
        Box::pin(async move {
            match self.write(writes).await {
                Ok(outcomes) => outcomes,
                Err(error) if writes.len() > 1 && is_one_of_them(&error) => {
                    self.write_each(writes).await
                }
                Err(error) => writes.iter().map(|_| Err(error.clone())).collect(),
            }
        })
    }

    fn news(&self, after: Revision) -> StoreFuture<'_, News> {
        Box::pin(self.news(after))
    }

    fn contacts(&self, after: Timestamp) -> StoreFuture<'_, Vec<Contact>> {
        let sql = "SELECT uid, agent_seen, daemon_seen FROM contacts \
                   WHERE agent_seen > $1 OR daemon_seen > $1";
        Box::pin(self.read(sql, vec![after.as_microsecond().into()], rows::contact))
    }

    fn events<'a>(&'a self, host: &'a str, limit: u32) -> StoreFuture<'a, Vec<HostEvent>> {
        let sql = "SELECT host, at, kind, text, id FROM events WHERE host = $1 \
                   ORDER BY id DESC LIMIT $2";
        Box::pin(async move {
            let values = vec![host.into(), i64::from(limit).into()];
            let lines = self.read(sql, values, rows::line).await?;
            let events = lines.into_iter().map(|line| line.event).collect();
            Ok(newest_last(events))
        })
    }

    fn log(&self, after: u64, limit: u32) -> StoreFuture<'_, Vec<LogLine>> {
        let sql = "SELECT host, at, kind, text, id FROM events WHERE id > $1 ORDER BY id LIMIT $2";
        let values = vec![after.into(), i64::from(limit).into()];
        Box::pin(self.read(sql, values, rows::line))
    }

    fn outbox(&self, after: u64, limit: u32) -> StoreFuture<'_, Vec<LogLine>> {
        let sql = "SELECT * FROM (SELECT host, at, kind, text, id FROM events \
                   WHERE id > $1 ORDER BY id LIMIT $2) AS present \
                   UNION ALL SELECT * FROM (SELECT host, at, kind, text, id FROM departed \
                   WHERE id > $1 ORDER BY id LIMIT $2) AS gone \
                   ORDER BY id LIMIT $2";
        let values = vec![after.into(), i64::from(limit).into()];
        Box::pin(self.read(sql, values, rows::line))
    }

    fn has_departed(&self) -> StoreFuture<'_, bool> {
        Box::pin(async move {
            let sql = "SELECT id FROM departed LIMIT 1";
            let found = self.read(sql, Vec::new(), |row| Ok(row.count(0)?)).await?;
            Ok(!found.is_empty())
        })
    }

    fn log_end(&self) -> StoreFuture<'_, u64> {
        Box::pin(async move {
            let sql = "SELECT COALESCE(MAX(id), 0) FROM (SELECT MAX(id) AS id FROM events \
                       UNION ALL SELECT MAX(id) FROM departed) AS ends";
            let last = self.read(sql, Vec::new(), |row| Ok(row.count(0)?)).await?;
            Ok(last.into_iter().next().unwrap_or(0))
        })
    }

    fn log_before(&self, before: u64, limit: u32) -> StoreFuture<'_, Vec<LogLine>> {
        let sql = "SELECT host, at, kind, text, id FROM events WHERE id < $1 ORDER BY id DESC \
                   LIMIT $2";
        let values = vec![before.into(), i64::from(limit).into()];
        Box::pin(self.read(sql, values, rows::line))
    }

    fn audit(&self, after: u64, limit: u32) -> StoreFuture<'_, Vec<AuditLine>> {
        let sql = "SELECT id, revision, project, body, hash FROM audit WHERE id > $1 \
                   ORDER BY id LIMIT $2";
        let values = vec![after.into(), i64::from(limit).into()];
        Box::pin(self.read(sql, values, rows::audit))
    }

    fn audit_head(&self) -> StoreFuture<'_, Option<AuditHead>> {
        Box::pin(self.audit_head())
    }

    fn inventory<'a>(&'a self, uid: &'a str) -> StoreFuture<'a, Option<Box<Inventory>>> {
        Box::pin(async move {
            let sql = "SELECT body FROM inventories WHERE uid = $1";
            let read = |row: &mut Row| rows::from_json("an inventory", &row.text(0)?);
            let found = self.read(sql, vec![uid.into()], read).await?;
            Ok(found.into_iter().next())
        })
    }

    fn runs<'a>(&'a self, uid: &'a str, limit: u32) -> StoreFuture<'a, Vec<Run>> {
        Box::pin(async move {
            let sql = "SELECT body FROM runs WHERE uid = $1 ORDER BY id DESC LIMIT $2";
            let values = vec![uid.into(), i64::from(limit).into()];
            self.read(sql, values, run).await.map(newest_last)
        })
    }

    fn runs_since(&self, ended: Timestamp, limit: u32) -> StoreFuture<'_, Vec<Run>> {
        Box::pin(async move {
            let sql = "SELECT body FROM runs WHERE ended >= $1 ORDER BY ended DESC LIMIT $2";
            let values = vec![ended.as_microsecond().into(), i64::from(limit).into()];
            self.read(sql, values, run).await.map(newest_last)
        })
    }
}
