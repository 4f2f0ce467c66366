//! The whole store as one file, from either kind of database and into either.
//!
//! JSON lines: what it is, then every row, then the SHA-256 of all before. Secrets stay sealed: the
//! file is of use only with the key they were sealed under.

use std::io::Write as _;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ferrite_proto::digest::to_hex;
use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};
use sqlx::AssertSqlSafe;

use super::rows::seal_owner;
use super::sql::{Pool, Session, Value};
use super::{Document, StoreError};
use crate::seal::Sealer;

/// Of this form.
const FORMAT: &str = "ferrite-backup/1";
/// Rows that are read at once of what only grows.
const PAGE: i64 = 5000;

/// A table: its columns, and of each whether it is a number, text or bytes.
#[derive(Debug)]
pub(crate) struct Table {
    name: &'static str,
    columns: &'static str,
    kinds: &'static str,
}

/// Every table that outlives a restore; runs and events have numbers of their own.
const TABLES: [Table; 11] = [
    table("revision", "one, value, pruned", "iii"),
    table(
        "hosts",
        "name, uid, version, generation, created, state, boot_mac, bmc_address, spec, status, \
         runtime, secrets, project, labels, annotations",
        "ttiitttttttbttt",
    ),
    table("events", "id, host, at, kind, text, revision", "itttti"),
    table(
        "departed",
        "id, host, at, kind, text, revision, removed",
        "ittttii",
    ),
    table("removed", "revision, kind, name, project", "ittt"),
    table(
        "documents",
        "kind, name, project, revision, created, expires, body, sealed",
        "tttiiitb",
    ),
    table("audit", "id, revision, project, body, hash", "iittt"),
    table("audit_head", "one, id, hash, mac", "iitb"),
    table("inventories", "uid, body", "tt"),
    table(
        "runs",
        "id, uid, host, project, started, ended, body",
        "itttiit",
    ),
    table("contacts", "uid, agent_seen, daemon_seen", "tii"),
];

const fn table(name: &'static str, columns: &'static str, kinds: &'static str) -> Table {
    Table {
        name,
        columns,
        kinds,
    }
}

/// Why there is no backup, or nothing came of one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BackupError {
    /// It is no backup, or not a whole one.
    #[error("this is no whole backup: {0}")]
    Unusable(String),
    /// It is sealed under another key.
    #[error("the backup's secrets were sealed under another key; put that key where this one is")]
    OtherKey,
    /// There is something in the store already.
    #[error("the store is not empty: it has {0}; restore into a new one")]
    NotEmpty(String),
    /// The database.
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
    /// The file.
    #[error("the backup cannot be written")]
    File(#[from] std::io::Error),
}

fn unusable(what: impl std::fmt::Display) -> BackupError {
    BackupError::Unusable(what.to_string())
}

/// A document as a row, for a backup that has more than the database.
pub(crate) fn row_of(document: &Document, sealer: &Sealer) -> Result<Vec<Value>, StoreError> {
    super::rows::document_values(document, document.revision, sealer)
}

/// Writes one state of everything, and further documents; gives the number of rows.
pub(crate) async fn dump(
    pool: &Pool,
    further: &[Vec<Value>],
    out: impl std::io::Write,
) -> Result<u64, BackupError> {
    let mut out = Hashed {
        inner: std::io::BufWriter::new(out),
        hash: Sha256::new(),
    };
    let mut session = pool.snapshot().await?;
    let head = json!({"format": FORMAT, "version": env!("CARGO_PKG_VERSION"),
                      "made": crate::clock::now()});
    out.line(&head)?;
    let mut count = 0;
    for table in &TABLES {
        count += dump_table(&mut session, table, &mut out).await?;
    }
    session.commit().await?;
    for row in further {
        let cells: Vec<_> = row.iter().map(to_json).collect();
        out.line(&json!({"t": "documents", "r": cells}))?;
        count += 1;
    }
    let sha256 = to_hex(&out.hash.clone().finalize());
    out.line(&json!({"rows": count, "sha256": sha256}))?;
    out.inner.flush()?;
    Ok(count)
}

struct Hashed<W: std::io::Write> {
    inner: std::io::BufWriter<W>,
    hash: Sha256,
}

impl<W: std::io::Write> Hashed<W> {
    fn line(&mut self, json: &Json) -> std::io::Result<()> {
        let line = format!("{json}\n");
        self.hash.update(line.as_bytes());
        self.inner.write_all(line.as_bytes())
    }
}

async fn dump_table<W: std::io::Write>(
    session: &mut Session,
    table: &Table,
    out: &mut Hashed<W>,
) -> Result<u64, BackupError> {
    let Table { name, columns, .. } = table;
    let (mut count, mut after) = (0, 0);
    let paged = columns.starts_with("id, ");
    loop {
        let (sql, values) = if paged {
            let sql =
                format!("SELECT {columns} FROM {name} WHERE id > $1 ORDER BY id LIMIT {PAGE}");
            (sql, vec![Value::from(after)])
        } else {
            (
                format!("SELECT {columns} FROM {name} ORDER BY 1"),
                Vec::new(),
            )
        };
        let rows = session.rows(AssertSqlSafe(sql), values).await?;
        let full = rows.len() as u64 == PAGE.unsigned_abs();
        for row in rows {
            let values = row.into_values();
            if let (true, Some(Value::Int(Some(id)))) = (paged, values.first()) {
                after = *id;
            }
            let cells: Vec<_> = values.iter().map(to_json).collect();
            out.line(&json!({"t": name, "r": cells}))?;
            count += 1;
        }
        if !(paged && full) {
            return Ok(count);
        }
    }
}

fn to_json(value: &Value) -> Json {
    match value {
        Value::Int(value) => json!(value),
        Value::Text(value) => json!(value),
        Value::Blob(value) => json!(value.as_ref().map(|bytes| BASE64_STANDARD.encode(bytes))),
    }
}

/// A row of a backup.
pub(crate) type Row = (&'static Table, Vec<Value>);

/// Reads a backup whole, and checks it: nothing is written before that.
pub(crate) fn read(bytes: &[u8], sealer: &Sealer) -> Result<Vec<Row>, BackupError> {
    let text = std::str::from_utf8(bytes).map_err(unusable)?;
    let body = text
        .strip_suffix('\n')
        .ok_or_else(|| unusable("its end is missing"))?;
    let (body, last) = body
        .rsplit_once('\n')
        .ok_or_else(|| unusable("it is empty"))?;
    let last: Json = serde_json::from_str(last).map_err(unusable)?;
    let mut hash = Sha256::new();
    hash.update(body.as_bytes());
    hash.update(b"\n");
    if last["sha256"] != json!(to_hex(&hash.finalize())) {
        return Err(unusable("its SHA-256 is another"));
    }
    let mut lines = body.lines();
    let head: Json = serde_json::from_str(lines.next().unwrap_or_default()).map_err(unusable)?;
    if head["format"] != json!(FORMAT) {
        return Err(unusable(format!(
            "its form is {}, not {FORMAT}",
            head["format"]
        )));
    }
    let rows: Vec<Row> = lines.map(parse).collect::<Result<_, _>>()?;
    if last["rows"] != json!(rows.len()) {
        return Err(unusable("rows are missing"));
    }
    for row in &rows {
        check_key(row, sealer)?;
    }
    Ok(rows)
}

fn parse(line: &str) -> Result<Row, BackupError> {
    let row: Json = serde_json::from_str(line).map_err(unusable)?;
    let table = TABLES.iter().find(|table| row["t"] == json!(table.name));
    let table = table.ok_or_else(|| unusable(format!("there is no table {}", row["t"])))?;
    let cells = row["r"]
        .as_array()
        .filter(|cells| cells.len() == table.kinds.len());
    let cells = cells.ok_or_else(|| unusable(format!("a row of {} is not whole", table.name)))?;
    let value = |(cell, kind): (&Json, char)| from_json(cell, kind);
    let values = cells.iter().zip(table.kinds.chars()).map(value);
    Ok((table, values.collect::<Result<_, _>>()?))
}

fn from_json(cell: &Json, kind: char) -> Result<Value, BackupError> {
    let text = cell.as_str().map(str::to_owned);
    match kind {
        'i' if cell.is_null() || cell.is_i64() => Ok(Value::Int(cell.as_i64())),
        't' if cell.is_null() || cell.is_string() => Ok(Value::Text(text)),
        'b' if cell.is_null() || cell.is_string() => {
            let bytes = text.map(|text| BASE64_STANDARD.decode(text)).transpose();
            Ok(Value::Blob(bytes.map_err(unusable)?))
        }
        _ => Err(unusable("a value is of another kind")),
    }
}

/// Whether what is sealed in a row opens.
fn check_key((table, cells): &Row, sealer: &Sealer) -> Result<(), BackupError> {
    let found = match (table.name, cells.as_slice()) {
        (
            "hosts",
            [
                _,
                Value::Text(Some(uid)),
                ..,
                Value::Blob(Some(blob)),
                _,
                _,
                _,
            ],
        ) => Some((uid.clone(), blob)),
        (
            "documents",
            [
                Value::Text(Some(kind)),
                Value::Text(Some(name)),
                ..,
                Value::Blob(Some(blob)),
            ],
        ) => Some((seal_owner(kind, name), blob)),
        _ => None,
    };
    match found {
        Some((owner, blob)) if sealer.open(&owner, blob).is_err() => Err(BackupError::OtherKey),
        _ => Ok(()),
    }
}

/// Writes what was read into an empty store: all of it, or nothing.
pub(crate) async fn restore(pool: &Pool, rows: Vec<Row>) -> Result<(), BackupError> {
    let mut session = pool.begin().await?;
    for (table, what) in [
        ("hosts", "hosts"),
        ("documents", "documents"),
        ("audit", "an audit log"),
    ] {
        let sql = AssertSqlSafe(format!("SELECT COUNT(*) FROM {table}"));
        let row = session.rows(sql, Vec::new()).await?.pop();
        if row.ok_or(sqlx::Error::RowNotFound)?.count(0)? > 0 {
            return Err(BackupError::NotEmpty(what.to_owned()));
        }
    }
    session.run("DELETE FROM revision", Vec::new()).await?;
    let last = last_event(&rows);
    for (table, values) in rows {
        let marks: Vec<_> = (1..=values.len()).map(|at| format!("${at}")).collect();
        let (name, columns) = (table.name, table.columns);
        let marks = marks.join(", ");
        let sql = format!("INSERT INTO {name} ({columns}) VALUES ({marks})");
        session.run(AssertSqlSafe(sql), values).await?;
    }
    number_on(&mut session, last).await?;
    Ok(session.commit().await?)
}

/// Removes a document that nobody follows, as if it had never been there.
pub(crate) async fn forget(pool: &Pool, kind: &str, name: &str) -> Result<(), StoreError> {
    let mut session = pool.begin().await?;
    let sql = "DELETE FROM documents WHERE kind = $1 AND name = $2";
    session.run(sql, vec![kind.into(), name.into()]).await?;
    Ok(session.commit().await?)
}

/// The last place in the hosts' logs that anybody knows of, though its line may be gone: no later
/// line may have it, or webhooks would pass over it.
fn last_event(rows: &[Row]) -> i64 {
    let place = |(table, cells): &Row| match (table.name, cells.as_slice()) {
        ("events" | "departed", [Value::Int(Some(id)), ..]) => Some(*id),
        ("documents", [Value::Text(Some(kind)), .., Value::Text(Some(body)), _])
            if kind == "WebhookCursor" =>
        {
            let body: Json = serde_json::from_str(body).ok()?;
            body["after"].as_i64()
        }
        _ => None,
    };
    rows.iter().filter_map(place).max().unwrap_or_default()
}

/// New lines and runs get numbers after those that were restored.
async fn number_on(session: &mut Session, last: i64) -> Result<(), sqlx::Error> {
    let last: Vec<Value> = vec![last.max(1).into()];
    if let Session::Postgres(_) = session {
        let events = "SELECT setval(pg_get_serial_sequence('events', 'id'), $1)";
        session.run(events, last).await?;
        let runs = "SELECT setval(pg_get_serial_sequence('runs', 'id'), \
                    (SELECT COALESCE(MAX(id), 1) FROM runs))";
        session.run(runs, Vec::new()).await?;
        return Ok(());
    }
    // Runs are numbered after their last by SQLite itself.
    let old = "DELETE FROM sqlite_sequence WHERE name = 'events'";
    session.run(old, Vec::new()).await?;
    let new = "INSERT INTO sqlite_sequence (name, seq) VALUES ('events', $1)";
    session.run(new, last).await?;
    Ok(())
}

/// Seals everything anew under the first key; what the older ones open stays readable meanwhile.
pub(crate) async fn reseal(pool: &Pool, sealer: &Sealer) -> Result<u64, StoreError> {
    let mut session = pool.begin().await?;
    let mut count = 0;
    for mut row in session
        .rows("SELECT uid, secrets FROM hosts", Vec::new())
        .await?
    {
        let (uid, old) = (row.text(0)?, row.blob(1)?);
        let new = sealer.seal(&uid, &sealer.open(&uid, &old)?)?;
        let sql = "UPDATE hosts SET secrets = $2 WHERE uid = $1";
        count += session.run(sql, vec![uid.into(), new.into()]).await?;
    }
    let sql = "SELECT kind, name, sealed FROM documents WHERE sealed IS NOT NULL";
    for mut row in session.rows(sql, Vec::new()).await? {
        let (kind, name, old) = (row.text(0)?, row.text(1)?, row.blob(2)?);
        let owner = seal_owner(&kind, &name);
        let new = sealer.seal(&owner, &sealer.open(&owner, &old)?)?;
        let sql = "UPDATE documents SET sealed = $3 WHERE kind = $1 AND name = $2";
        let values = vec![kind.into(), name.into(), new.into()];
        count += session.run(sql, values).await?;
    }
    for mut row in session
        .rows("SELECT id, mac FROM audit_head", Vec::new())
        .await?
    {
        let owner = super::commit::head_owner(row.count(0)?);
        let new = sealer.seal(&owner, &sealer.open(&owner, &row.blob(1)?)?)?;
        let sql = "UPDATE audit_head SET mac = $1";
        count += session.run(sql, vec![new.into()]).await?;
    }
    session.commit().await?;
    Ok(count)
}
