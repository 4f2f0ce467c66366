//! Who drives which host, when several conductors share a database.
//!
//! A replica is alive as long as it renews its lease, by the database's clock. The hosts of one
//! that is not are taken by others, each with a fence that is one higher: what the earlier owner
//! writes after that is refused by the database.

use super::StoreFuture;
use super::sql::{Pool, Row};

/// How long a lease holds without being renewed, in seconds.
pub(crate) const TTL: u64 = 5;

/// A host and the fence of its owner.
pub(crate) type Owned = (String, u64);

/// Leases of replicas, and their hosts.
pub(crate) trait Leases: Send + Sync + std::fmt::Debug {
    /// Renews the replica's own lease: the ids of all that are alive.
    fn renew<'a>(&'a self, me: &'a str) -> StoreFuture<'a, Vec<String>>;
    /// How many hosts there are.
    fn hosts(&self) -> StoreFuture<'_, u64>;
    /// Takes hosts that no living replica drives, at most so many.
    fn claim<'a>(&'a self, me: &'a str, most: u64) -> StoreFuture<'a, Vec<Owned>>;
    /// The replica's hosts.
    fn owned<'a>(&'a self, me: &'a str) -> StoreFuture<'a, Vec<Owned>>;
    /// Lets others have a host.
    fn release<'a>(&'a self, me: &'a str, host: &'a str) -> StoreFuture<'a, ()>;
    /// Lets others have everything at once.
    fn leave<'a>(&'a self, me: &'a str) -> StoreFuture<'a, ()>;
}

/// Leases in `PostgreSQL`.
#[derive(Debug, Clone)]
pub(crate) struct InDatabase(pub(crate) Pool);

fn owned(mut row: Row) -> Result<Owned, super::StoreError> {
    Ok((row.text(0)?, row.count(1)?))
}

impl Leases for InDatabase {
    fn renew<'a>(&'a self, me: &'a str) -> StoreFuture<'a, Vec<String>> {
        Box::pin(async move {
            let mut session = self.0.begin().await?;
            let sql = "INSERT INTO replicas (id, renewed) VALUES ($1, \
                       (EXTRACT(EPOCH FROM clock_timestamp()) * 1000000)::BIGINT) \
                       ON CONFLICT (id) DO UPDATE SET renewed = excluded.renewed";
            session.run(sql, vec![me.into()]).await?;
            let sql = "DELETE FROM replicas WHERE renewed < \
                       (EXTRACT(EPOCH FROM clock_timestamp()) * 1000000)::BIGINT - $1 * 20000000";
            session.run(sql, vec![TTL.into()]).await?;
            let sql = "SELECT id FROM replicas WHERE renewed > \
                       (EXTRACT(EPOCH FROM clock_timestamp()) * 1000000)::BIGINT - $1 * 1000000 \
                       ORDER BY id";
            let rows = session.rows(sql, vec![TTL.into()]).await?;
            session.commit().await?;
            rows.into_iter().map(|mut row| Ok(row.text(0)?)).collect()
        })
    }

    fn hosts(&self) -> StoreFuture<'_, u64> {
        Box::pin(async move {
            let rows = self
                .0
                .rows("SELECT COUNT(*) FROM hosts", Vec::new())
                .await?;
            let row = rows.into_iter().next();
            Ok(row.ok_or(sqlx::Error::RowNotFound)?.count(0)?)
        })
    }

    fn claim<'a>(&'a self, me: &'a str, most: u64) -> StoreFuture<'a, Vec<Owned>> {
        Box::pin(async move {
            let sql = "UPDATE hosts SET owner = $1, fence = fence + 1 WHERE name IN ( \
                       SELECT name FROM hosts WHERE owner IS NULL OR NOT EXISTS ( \
                       SELECT 1 FROM replicas WHERE id = hosts.owner AND renewed > \
                       (EXTRACT(EPOCH FROM clock_timestamp()) * 1000000)::BIGINT - $3 * 1000000) \
                       LIMIT $2 FOR UPDATE SKIP LOCKED) RETURNING name, fence";
            let values = vec![me.into(), most.into(), TTL.into()];
            let rows = self.0.rows(sql, values).await?;
            rows.into_iter().map(owned).collect()
        })
    }

    fn owned<'a>(&'a self, me: &'a str) -> StoreFuture<'a, Vec<Owned>> {
        Box::pin(async move {
            let sql = "SELECT name, fence FROM hosts WHERE owner = $1 ORDER BY name";
            let rows = self.0.rows(sql, vec![me.into()]).await?;
            rows.into_iter().map(owned).collect()
        })
    }

    fn release<'a>(&'a self, me: &'a str, host: &'a str) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            let sql = "UPDATE hosts SET owner = NULL WHERE owner = $1 AND name = $2";
            self.0.rows(sql, vec![me.into(), host.into()]).await?;
            Ok(())
        })
    }

    fn leave<'a>(&'a self, me: &'a str) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            let mut session = self.0.begin().await?;
            let sql = "UPDATE hosts SET owner = NULL WHERE owner = $1";
            session.run(sql, vec![me.into()]).await?;
            let sql = "DELETE FROM replicas WHERE id = $1";
            session.run(sql, vec![me.into()]).await?;
            Ok(session.commit().await?)
        })
    }
}
