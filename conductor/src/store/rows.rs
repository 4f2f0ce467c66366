//! Hosts, documents and lines of logs as rows, and back.
//!
//! Times are microseconds since 1970; in the columns of the first schema they are text.

use std::str::FromStr;

use ferrite_proto::api::HostEvent;
use ferrite_proto::host::Host;
use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::sql::{Row, Value};
use super::{AuditLine, Contact, Document, LogLine, Removed, Revision, StoreError, Stored};
use crate::lifecycle::record::Record;
use crate::seal::Sealer;

/// What cannot be read of whom.
pub(crate) fn damaged(owner: &str, what: &dyn std::fmt::Display) -> StoreError {
    StoreError::Damaged {
        owner: owner.to_owned(),
        what: what.to_string(),
    }
}

/// A value as JSON.
pub(crate) fn to_json<T: Serialize>(owner: &str, value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| damaged(owner, &error))
}

/// A value from JSON.
pub(crate) fn from_json<T: DeserializeOwned>(owner: &str, text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|error| damaged(owner, &error))
}

/// A host's secrets, sealed for it.
pub(crate) fn seal(sealer: &Sealer, host: &Stored) -> Result<Vec<u8>, StoreError> {
    let shown = &host.record.host;
    let clear = serde_json::to_vec(&host.kept).map_err(|error| damaged(&shown.name, &error))?;
    Ok(sealer.seal(&shown.uid, &clear)?)
}

/// `kind, name, project, revision, created, expires, body, sealed`, to be stored.
pub(crate) fn document_values(
    document: &Document,
    revision: Revision,
    sealer: &Sealer,
) -> Result<Vec<Value>, StoreError> {
    let sealed = match &document.secret {
        Some(secret) => {
            let owner = seal_owner(&document.kind, &document.name);
            Some(sealer.seal(&owner, to_json(&owner, secret)?.as_bytes())?)
        }
        None => None,
    };
    Ok(vec![
        (&document.kind).into(),
        (&document.name).into(),
        (&document.project).into(),
        revision.into(),
        document.created.as_microsecond().into(),
        micros(document.expires),
        to_json(&document.name, &document.body)?.into(),
        sealed.into(),
    ])
}

/// `name, uid, version, generation, created, spec, status, runtime, secrets, project, labels,
/// annotations`
pub(crate) fn host(row: &mut Row, sealer: &Sealer) -> Result<Stored, StoreError> {
    let name = row.text(0)?;
    let owner = format!("host {name:?}");
    let uid = row.text(1)?;
    let clear = sealer.open(&uid, &row.blob(8)?)?;
    let kept = serde_json::from_slice(&clear).map_err(|error| damaged(&owner, &error))?;
    let created = row.text(4)?;
    let shown = Host {
        project: row.text(9)?,
        labels: from_json(&owner, &row.text(10)?)?,
        annotations: from_json(&owner, &row.text(11)?)?,
        version: row.count(2)?,
        generation: row.count(3)?,
        created: Timestamp::from_str(&created).map_err(|error| damaged(&owner, &error))?,
        spec: from_json(&owner, &row.text(5)?)?,
        status: from_json(&owner, &row.text(6)?)?,
        name,
        uid,
    };
    let run = from_json(&owner, &row.text(7)?)?;
    Ok(Stored {
        record: Record { host: shown, run },
        kept,
    })
}

/// For whom a document's secret is sealed.
pub(crate) fn seal_owner(kind: &str, name: &str) -> String {
    format!("{kind}/{name}")
}

/// `kind, name, project, revision, created, expires, body, sealed`
pub(crate) fn document(row: &mut Row, sealer: &Sealer) -> Result<Document, StoreError> {
    let (kind, name) = (row.text(0)?, row.text(1)?);
    let owner = seal_owner(&kind, &name);
    let secret = match row.maybe_blob(7)? {
        Some(blob) => {
            let opened = sealer.open(&owner, &blob)?;
            Some(serde_json::from_slice(&opened).map_err(|error| damaged(&owner, &error))?)
        }
        None => None,
    };
    let expires = row.maybe_int(5)?;
    Ok(Document {
        project: row.text(2)?,
        revision: row.count(3)?,
        created: time(&owner, row.int(4)?)?,
        expires: expires.map(|at| time(&owner, at)).transpose()?,
        body: from_json(&owner, &row.text(6)?)?,
        secret,
        kind,
        name,
    })
}

/// A time from its number.
pub(crate) fn time(owner: &str, micros: i64) -> Result<Timestamp, StoreError> {
    Timestamp::from_microsecond(micros).map_err(|error| damaged(owner, &error))
}

/// A time as a number.
pub(crate) fn micros(time: Option<Timestamp>) -> Value {
    Value::Int(time.map(Timestamp::as_microsecond))
}

/// `host, at, kind, text, id`
pub(crate) fn line(row: &mut Row) -> Result<LogLine, StoreError> {
    let host = row.text(0)?;
    let at = Timestamp::from_str(&row.text(1)?).map_err(|error| damaged(&host, &error))?;
    let event = HostEvent {
        at,
        kind: row.text(2)?,
        text: row.text(3)?,
    };
    let id = row.count(4)?;
    Ok(LogLine { id, host, event })
}

/// `uid, agent_seen, daemon_seen`
pub(crate) fn contact(row: &mut Row) -> Result<Contact, StoreError> {
    let uid = row.text(0)?;
    let at = |micros: Option<i64>| micros.map(|at| time(&uid, at)).transpose();
    let (agent, daemon) = (at(row.maybe_int(1)?)?, at(row.maybe_int(2)?)?);
    Ok(Contact { uid, agent, daemon })
}

/// `revision, kind, name, project`
pub(crate) fn removed(row: &mut Row) -> Result<Removed, StoreError> {
    Ok(Removed {
        revision: row.count(0)?,
        kind: row.text(1)?,
        name: row.text(2)?,
        project: row.text(3)?,
    })
}

/// `id, revision, project, body, hash`
pub(crate) fn audit(row: &mut Row) -> Result<AuditLine, StoreError> {
    Ok(AuditLine {
        id: row.count(0)?,
        revision: row.count(1)?,
        project: row.text(2)?,
        body: row.text(3)?,
        hash: row.text(4)?,
    })
}
