//! One way to run a statement on both databases: the SQL is the same text, with `$1`, `$2`, ….
//!
//! sqlx's own `Any` driver does this for fewer types and boxes every row.

use sqlx::postgres::{PgPool, PgRow, Postgres};
use sqlx::sqlite::{Sqlite, SqlitePool, SqliteRow};
use sqlx::{Column, Row as _, SqlSafeStr, Transaction, TypeInfo, ValueRef};

/// A value that goes in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    /// A whole number.
    Int(Option<i64>),
    /// Text.
    Text(Option<String>),
    /// Bytes.
    Blob(Option<Vec<u8>>),
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Int(Some(value))
    }
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Int(Some(i64::try_from(value).unwrap_or(i64::MAX)))
    }
}

impl From<Option<i64>> for Value {
    fn from(value: Option<i64>) -> Self {
        Self::Int(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Text(Some(value.to_owned()))
    }
}

impl From<&String> for Value {
    fn from(value: &String) -> Self {
        Self::Text(Some(value.clone()))
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::Text(Some(value))
    }
}

impl From<Option<String>> for Value {
    fn from(value: Option<String>) -> Self {
        Self::Text(value)
    }
}

impl From<Vec<u8>> for Value {
    fn from(value: Vec<u8>) -> Self {
        Self::Blob(Some(value))
    }
}

impl From<Option<Vec<u8>>> for Value {
    fn from(value: Option<Vec<u8>>) -> Self {
        Self::Blob(value)
    }
}

/// A row that came out, column by column.
#[derive(Debug)]
pub(crate) struct Row(Vec<Value>);

impl Row {
    fn at(&mut self, column: usize) -> Result<Value, sqlx::Error> {
        let value = self.0.get_mut(column);
        let value = value.ok_or(sqlx::Error::ColumnIndexOutOfBounds {
            index: column,
            len: 0,
        })?;
        Ok(std::mem::replace(value, Value::Int(None)))
    }

    /// A number; none when it is null.
    pub(crate) fn maybe_int(&mut self, column: usize) -> Result<Option<i64>, sqlx::Error> {
        match self.at(column)? {
            Value::Int(value) => Ok(value),
            Value::Text(None) | Value::Blob(None) => Ok(None),
            Value::Text(_) | Value::Blob(_) => Err(wrong(column, "a number")),
        }
    }

    /// A number.
    pub(crate) fn int(&mut self, column: usize) -> Result<i64, sqlx::Error> {
        self.maybe_int(column)?
            .ok_or_else(|| wrong(column, "a number"))
    }

    /// A number that is never negative.
    pub(crate) fn count(&mut self, column: usize) -> Result<u64, sqlx::Error> {
        u64::try_from(self.int(column)?).map_err(|_| wrong(column, "a positive number"))
    }

    /// A text; none when it is null.
    pub(crate) fn maybe_text(&mut self, column: usize) -> Result<Option<String>, sqlx::Error> {
        match self.at(column)? {
            Value::Text(value) => Ok(value),
            Value::Int(None) | Value::Blob(None) => Ok(None),
            Value::Int(_) | Value::Blob(_) => Err(wrong(column, "a text")),
        }
    }

    /// A text.
    pub(crate) fn text(&mut self, column: usize) -> Result<String, sqlx::Error> {
        self.maybe_text(column)?
            .ok_or_else(|| wrong(column, "a text"))
    }

    /// Bytes; none when it is null.
    pub(crate) fn maybe_blob(&mut self, column: usize) -> Result<Option<Vec<u8>>, sqlx::Error> {
        match self.at(column)? {
            Value::Blob(value) => Ok(value),
            Value::Int(None) | Value::Text(None) => Ok(None),
            Value::Int(_) | Value::Text(_) => Err(wrong(column, "bytes")),
        }
    }

    /// Bytes.
    pub(crate) fn blob(&mut self, column: usize) -> Result<Vec<u8>, sqlx::Error> {
        self.maybe_blob(column)?
            .ok_or_else(|| wrong(column, "bytes"))
    }

    /// The values, for whoever copies rows as they are.
    pub(crate) fn into_values(self) -> Vec<Value> {
        self.0
    }
}

fn wrong(column: usize, wanted: &str) -> sqlx::Error {
    sqlx::Error::ColumnDecode {
        index: column.to_string(),
        source: format!("it is not {wanted}").into(),
    }
}

/// A database, of either kind.
#[derive(Debug, Clone)]
pub(crate) enum Pool {
    /// One file.
    Sqlite(SqlitePool),
    /// A server.
    Postgres(PgPool),
}

/// A transaction, of either kind.
#[derive(Debug)]
pub(crate) enum Session {
    /// Of a file.
    Sqlite(Transaction<'static, Sqlite>),
    /// Of a server.
    Postgres(Transaction<'static, Postgres>),
}

macro_rules! bound {
    ($sql:expr, $values:expr) => {{
        let mut query = sqlx::query($sql);
        for value in $values {
            query = match value {
                Value::Int(value) => query.bind(value),
                Value::Text(value) => query.bind(value),
                Value::Blob(value) => query.bind(value),
            };
        }
        query
    }};
}

impl Pool {
    /// The server's, if it is one.
    pub(crate) const fn as_postgres(&self) -> Option<&PgPool> {
        match self {
            Self::Sqlite(_) => None,
            Self::Postgres(pool) => Some(pool),
        }
    }

    /// A transaction that writes. `SQLite`'s takes the lock at once: it waits instead of failing.
    pub(crate) async fn begin(&self) -> Result<Session, sqlx::Error> {
        Ok(match self {
            Self::Sqlite(pool) => Session::Sqlite(pool.begin_with("BEGIN IMMEDIATE").await?),
            Self::Postgres(pool) => Session::Postgres(pool.begin().await?),
        })
    }

    /// A transaction that reads one state of everything.
    pub(crate) async fn snapshot(&self) -> Result<Session, sqlx::Error> {
        Ok(match self {
            Self::Sqlite(pool) => Session::Sqlite(pool.begin().await?),
            Self::Postgres(pool) => {
                let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
                Session::Postgres(pool.begin_with(begin).await?)
            }
        })
    }

    /// Rows, outside of any transaction.
    pub(crate) async fn rows(
        &self,
        sql: &'static str,
        values: Vec<Value>,
    ) -> Result<Vec<Row>, sqlx::Error> {
        match self {
            Self::Sqlite(pool) => {
                let rows = bound!(sql, values).fetch_all(pool).await?;
                rows.iter().map(of_sqlite).collect()
            }
            Self::Postgres(pool) => {
                let rows = bound!(sql, values).fetch_all(pool).await?;
                rows.iter().map(of_postgres).collect()
            }
        }
    }
}

impl Session {
    /// Runs a statement: how many rows it touched.
    pub(crate) async fn run(
        &mut self,
        sql: impl SqlSafeStr,
        values: Vec<Value>,
    ) -> Result<u64, sqlx::Error> {
        Ok(match self {
            Self::Sqlite(on) => bound!(sql, values)
                .execute(&mut **on)
                .await?
                .rows_affected(),
            Self::Postgres(on) => bound!(sql, values)
                .execute(&mut **on)
                .await?
                .rows_affected(),
        })
    }

    /// Rows of a query.
    pub(crate) async fn rows(
        &mut self,
        sql: impl SqlSafeStr,
        values: Vec<Value>,
    ) -> Result<Vec<Row>, sqlx::Error> {
        match self {
            Self::Sqlite(on) => {
                let rows = bound!(sql, values).fetch_all(&mut **on).await?;
                rows.iter().map(of_sqlite).collect()
            }
            Self::Postgres(on) => {
                let rows = bound!(sql, values).fetch_all(&mut **on).await?;
                rows.iter().map(of_postgres).collect()
            }
        }
    }

    /// The first row of a query.
    pub(crate) async fn row(
        &mut self,
        sql: &'static str,
        values: Vec<Value>,
    ) -> Result<Option<Row>, sqlx::Error> {
        Ok(self.rows(sql, values).await?.into_iter().next())
    }

    /// Tells other processes, once it lasts. A file has no others.
    pub(crate) async fn notify(&mut self, channel: &str, what: &str) -> Result<(), sqlx::Error> {
        match self {
            Self::Sqlite(_) => Ok(()),
            Self::Postgres(_) => {
                let values = vec![channel.into(), what.into()];
                let sql = "SELECT 1 FROM (SELECT pg_notify($1, $2)) AS told";
                self.run(sql, values).await.map(drop)
            }
        }
    }

    /// Makes it last.
    pub(crate) async fn commit(self) -> Result<(), sqlx::Error> {
        match self {
            Self::Sqlite(on) => on.commit().await,
            Self::Postgres(on) => on.commit().await,
        }
    }
}

fn of_sqlite(row: &SqliteRow) -> Result<Row, sqlx::Error> {
    let value = |index| {
        let raw = row.try_get_raw(index)?;
        if raw.is_null() {
            return Ok(Value::Int(None));
        }
        let kind = raw.type_info();
        Ok(match kind.name() {
            "TEXT" => Value::Text(row.try_get(index)?),
            "BLOB" => Value::Blob(row.try_get(index)?),
            _ => Value::Int(row.try_get(index)?),
        })
    };
    (0..row.len()).map(value).collect::<Result<_, _>>().map(Row)
}

fn of_postgres(row: &PgRow) -> Result<Row, sqlx::Error> {
    let value = |(index, column): (usize, &sqlx::postgres::PgColumn)| {
        Ok(match column.type_info().name() {
            "TEXT" | "VARCHAR" | "NAME" => Value::Text(row.try_get(index)?),
            "BYTEA" => Value::Blob(row.try_get(index)?),
            "INT4" => Value::Int(row.try_get::<Option<i32>, _>(index)?.map(Into::into)),
            _ => Value::Int(row.try_get(index)?),
        })
    };
    let columns = row.columns().iter().enumerate();
    columns.map(value).collect::<Result<_, _>>().map(Row)
}
