//! Hosts in an `SQLite` database: one file, one connection, every commit on disk before an answer.

use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use ferrite_proto::api::HostEvent;
use ferrite_proto::host::Host;
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow,
    SqliteSynchronous,
};
use sqlx::{Row, SqliteConnection};

use super::{Store, StoreError, StoreFuture, Stored};
use crate::lifecycle::record::Record;
use crate::seal::Sealer;

/// Lines of a host's log that are kept.
const EVENTS_KEPT: i64 = 2000;

/// The store.
#[derive(Debug)]
pub(crate) struct Sqlite {
    pool: SqlitePool,
    sealer: Sealer,
}

impl Sqlite {
    /// Opens the file, makes it when there is none, and brings its schema up to date.
    pub(crate) async fn open(path: &Path, sealer: Sealer) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(10));
        // One connection: SQLite has one writer anyway, and nobody ever waits for a lock.
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .connect_with(options)
            .await?;
        sqlx::migrate!("./migrations").run(&pool).await?;
        Ok(Self { pool, sealer })
    }

    fn read(&self, row: &SqliteRow) -> Result<Stored, StoreError> {
        let name: String = row.try_get("name")?;
        let uid: String = row.try_get("uid")?;
        let sealed: Vec<u8> = row.try_get("secrets")?;
        let clear = self.sealer.open(&uid, &sealed)?;
        let kept = serde_json::from_slice(&clear).map_err(|error| damaged(&name, &error))?;
        let host = Host {
            project: row.try_get("project")?,
            labels: json(&name, row.try_get("labels")?)?,
            annotations: json(&name, row.try_get("annotations")?)?,
            version: unsigned(row.try_get("version")?),
            generation: unsigned(row.try_get("generation")?),
            created: time(&name, row.try_get("created")?)?,
            spec: json(&name, row.try_get("spec")?)?,
            status: json(&name, row.try_get("status")?)?,
            name: name.clone(),
            uid,
        };
        let run = json(&name, row.try_get("runtime")?)?;
        let record = Record { host, run };
        Ok(Stored { record, kept })
    }

    async fn write(&self, sql: Sql, host: &Stored, events: &[HostEvent]) -> Result<(), StoreError> {
        let Record { host: shown, run } = &host.record;
        let name = &shown.name;
        let clear = serde_json::to_vec(&host.kept).map_err(|error| damaged(name, &error))?;
        let sealed = self.sealer.seal(&shown.uid, &clear)?;
        let text = |value: serde_json::Result<String>| value.map_err(|e| damaged(name, &e));
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let query = sqlx::query(sql.text())
            .bind(name)
            .bind(&shown.uid)
            .bind(signed(shown.version))
            .bind(signed(shown.generation))
            .bind(shown.created.to_string())
            .bind(shown.status.state.as_str())
            .bind(shown.spec.boot_mac.map(|mac| mac.to_string()))
            .bind(shown.spec.bmc.address.to_ascii_lowercase())
            .bind(text(serde_json::to_string(&shown.spec))?)
            .bind(text(serde_json::to_string(&shown.status))?)
            .bind(text(serde_json::to_string(run))?)
            .bind(sealed)
            .bind(&shown.project)
            .bind(text(serde_json::to_string(&shown.labels))?)
            .bind(text(serde_json::to_string(&shown.annotations))?);
        let done = query.execute(&mut *transaction).await.map_err(taken)?;
        if done.rows_affected() == 0 {
            return Err(StoreError::Conflict(name.clone()));
        }
        add_events(&mut transaction, name, events).await?;
        transaction.commit().await?;
        Ok(())
    }
}

#[derive(Clone, Copy)]
enum Sql {
    Insert,
    Update,
}

impl Sql {
    const fn text(self) -> &'static str {
        match self {
            Self::Insert => {
                "INSERT INTO hosts (name, uid, version, generation, created, state, boot_mac, \
                 bmc_address, spec, status, runtime, secrets, project, labels, annotations) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)"
            }
            Self::Update => {
                "UPDATE hosts SET version = ?3, generation = ?4, created = ?5, state = ?6, \
                 boot_mac = ?7, bmc_address = ?8, spec = ?9, status = ?10, runtime = ?11, \
                 secrets = ?12, project = ?13, labels = ?14, annotations = ?15 WHERE name = ?1 AND uid = ?2 AND version = ?3 - 1"
            }
        }
    }
}

async fn add_events(
    connection: &mut SqliteConnection,
    name: &str,
    events: &[HostEvent],
) -> Result<(), StoreError> {
    for event in events {
        sqlx::query("INSERT INTO events (host, at, kind, text) VALUES (?, ?, ?, ?)")
            .bind(name)
            .bind(event.at.to_string())
            .bind(&event.kind)
            .bind(&event.text)
            .execute(&mut *connection)
            .await?;
    }
    if !events.is_empty() {
        sqlx::query(
            "DELETE FROM events WHERE host = ?1 AND id <= (SELECT id FROM events WHERE host = ?1 \
             ORDER BY id DESC LIMIT 1 OFFSET ?2)",
        )
        .bind(name)
        .bind(EVENTS_KEPT)
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}

impl Store for Sqlite {
    fn list(&self) -> StoreFuture<'_, Vec<Stored>> {
        Box::pin(async move {
            let rows = sqlx::query("SELECT * FROM hosts ORDER BY name")
                .fetch_all(&self.pool)
                .await?;
            rows.iter().map(|row| self.read(row)).collect()
        })
    }

    fn load<'a>(&'a self, name: &'a str) -> StoreFuture<'a, Stored> {
        Box::pin(async move {
            let row = sqlx::query("SELECT * FROM hosts WHERE name = ?")
                .bind(name)
                .fetch_optional(&self.pool)
                .await?;
            let row = row.ok_or_else(|| StoreError::NotFound(name.to_owned()))?;
            self.read(&row)
        })
    }

    fn insert<'a>(&'a self, host: &'a Stored, events: &'a [HostEvent]) -> StoreFuture<'a, ()> {
        Box::pin(self.write(Sql::Insert, host, events))
    }

    fn save<'a>(&'a self, host: &'a Stored, events: &'a [HostEvent]) -> StoreFuture<'a, ()> {
        Box::pin(self.write(Sql::Update, host, events))
    }

    fn remove<'a>(&'a self, name: &'a str) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
            for sql in [
                "DELETE FROM events WHERE host = ?",
                "DELETE FROM hosts WHERE name = ?",
            ] {
                sqlx::query(sql)
                    .bind(name)
                    .execute(&mut *transaction)
                    .await?;
            }
            transaction.commit().await?;
            Ok(())
        })
    }

    fn events<'a>(&'a self, name: &'a str, limit: u32) -> StoreFuture<'a, Vec<HostEvent>> {
        Box::pin(async move {
            let rows = sqlx::query(
                "SELECT at, kind, text FROM events WHERE host = ? ORDER BY id DESC LIMIT ?",
            )
            .bind(name)
            .bind(limit)
            .fetch_all(&self.pool)
            .await?;
            let read = |row: &SqliteRow| {
                Ok(HostEvent {
                    at: time(name, row.try_get("at")?)?,
                    kind: row.try_get("kind")?,
                    text: row.try_get("text")?,
                })
            };
            rows.iter().rev().map(read).collect()
        })
    }
}

fn damaged(host: &str, what: &dyn std::fmt::Display) -> StoreError {
    StoreError::Damaged {
        host: host.to_owned(),
        what: what.to_string(),
    }
}

fn json<T: DeserializeOwned>(host: &str, text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|error| damaged(host, &error))
}

fn time(host: &str, text: &str) -> Result<Timestamp, StoreError> {
    Timestamp::from_str(text).map_err(|error| damaged(host, &error))
}

fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn taken(error: sqlx::Error) -> StoreError {
    let unique = error
        .as_database_error()
        .filter(|error| error.is_unique_violation());
    let Some(database) = unique else {
        return StoreError::Database(error);
    };
    let message = database.message();
    StoreError::Exists(if message.contains("boot_mac") {
        "boot MAC"
    } else if message.contains("bmc_address") {
        "BMC address"
    } else {
        "name"
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::intent;
    use ferrite_proto::host::HostManifest;

    fn host(name: &str, nic: u8) -> Stored {
        let add = serde_json::json!({
            "apiVersion": "ferrite/v1", "kind": "Host",
            "metadata": {"name": name, "project": "p", "labels": {"rack": "r1"}},
            "spec": {
                "bmc": {"address": format!("redfish+http://10.0.0.{nic}"), "username": "u"},
                "boot_mac": format!("52:54:00:00:00:{nic:02x}"),
            },
            "secrets": {"bmc_password": "hunter2"},
        });
        let add: HostManifest = serde_json::from_value(add).unwrap();
        let change = intent::enrol(add, format!("uid-{name}"), Timestamp::UNIX_EPOCH).unwrap();
        Stored {
            record: change.record,
            kept: change.kept,
        }
    }

    async fn store(dir: &Path) -> Sqlite {
        let sealer = Sealer::load_or_create(&dir.join("key")).unwrap();
        Sqlite::open(&dir.join("db"), sealer).await.unwrap()
    }

    #[tokio::test]
    async fn what_is_stored_comes_back_after_a_restart_and_no_secret_is_in_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let given = host("a", 1);
        let event = HostEvent {
            at: Timestamp::UNIX_EPOCH,
            kind: "state".into(),
            text: "added".into(),
        };
        let first = store(dir.path()).await;
        first
            .insert(&given, std::slice::from_ref(&event))
            .await
            .unwrap();
        first.pool.close().await;
        let again = store(dir.path()).await;
        assert_eq!(again.load("a").await.unwrap(), given);
        assert_eq!(again.events("a", 9).await.unwrap(), [event]);
        let bytes = std::fs::read(dir.path().join("db")).unwrap();
        assert!(!bytes.windows(7).any(|w| w == b"hunter2"));
        again.remove("a").await.unwrap();
        assert!(again.list().await.unwrap().is_empty());
        assert!(again.events("a", 9).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_save_over_somebody_elses_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path()).await;
        let mut given = host("a", 1);
        store.insert(&given, &[]).await.unwrap();
        given.record.host.version += 1;
        store.save(&given, &[]).await.unwrap();
        let refused = store.save(&given, &[]).await;
        assert!(matches!(refused, Err(StoreError::Conflict(_))));
    }

    #[tokio::test]
    async fn no_two_hosts_share_a_name_a_nic_or_a_bmc() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path()).await;
        store.insert(&host("a", 1), &[]).await.unwrap();
        let mut same_nic = host("b", 1);
        same_nic.record.host.spec.bmc.address = "redfish+http://elsewhere".into();
        let mut same_bmc = host("c", 1);
        same_bmc.record.host.spec.boot_mac = None;
        let mut same_name = host("a", 2);
        same_name.record.host.uid = "another".into();
        for (host, what) in [
            (same_nic, "boot MAC"),
            (same_bmc, "BMC address"),
            (same_name, "name"),
        ] {
            let refused = store.insert(&host, &[]).await;
            assert!(
                matches!(refused, Err(StoreError::Exists(found)) if found == what),
                "{refused:?}"
            );
        }
    }
}
