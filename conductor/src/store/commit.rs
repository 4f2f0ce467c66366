//! Many writes in one transaction. Each is refused by a condition in its own statement, so that a
//! refusal never spoils the transaction for the others, in either database.

use ferrite_proto::digest::to_hex;
use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::contacts::Heard;
use super::rows::{document_values, micros, seal, to_json};
use super::sql::{Session, Value};
use super::{AuditEntry, Document, Entries, Expect, Outcomes, Revision, StoreError};
use super::{Stored, Write};
use crate::seal::Sealer;

/// Lines of a host's log that are kept.
const EVENTS_KEPT: i64 = 2000;
/// Lines of all removed hosts' logs that are kept for webhooks.
const DEPARTED_KEPT: i64 = 200_000;
/// Runs of a host that are kept.
const RUNS_KEPT: i64 = 50;
/// Removals that are remembered.
pub(crate) const REMOVED_KEPT: i64 = 10_000;

/// Where other replicas hear of commits.
pub(crate) const CHANNEL: &str = "ferrite";

/// A transaction in which writes are made.
pub(crate) struct Batch<'a> {
    session: Session,
    sealer: &'a Sealer,
    next: Revision,
    audited: Vec<(Revision, &'a AuditEntry)>,
    removed: bool,
    heard: Heard<'a>,
}

impl<'a> Batch<'a> {
    /// Takes revisions for all writes: from here on nobody else writes.
    pub(crate) async fn begin(
        mut session: Session,
        sealer: &'a Sealer,
        writes: &[Write],
    ) -> Result<Self, StoreError> {
        let numbered = writes.iter().filter(|write| write.is_numbered()).count() as u64;
        let mut next = 0;
        if numbered > 0 {
            let sql = "UPDATE revision SET value = value + $1 RETURNING value";
            let row = session.row(sql, vec![numbered.into()]).await?;
            let last = row.ok_or(sqlx::Error::RowNotFound)?.count(0)?;
            next = last - numbered + 1;
        }
        Ok(Self {
            session,
            sealer,
            next,
            audited: Vec::new(),
            removed: false,
            heard: Heard::default(),
        })
    }

    /// Makes all writes: refusals are each write's own, an error is all of theirs.
    pub(crate) async fn write_all(&mut self, writes: &'a [Write]) -> Result<Outcomes, StoreError> {
        let mut outcomes = Vec::with_capacity(writes.len());
        for write in writes {
            outcomes.push(match self.write(write).await {
                Err(StoreError::Database(error)) => return Err(StoreError::Database(error)),
                outcome => outcome,
            });
        }
        Ok(outcomes)
    }

    /// Ends the transaction, durably.
    pub(crate) async fn commit(mut self) -> Result<(), StoreError> {
        std::mem::take(&mut self.heard)
            .write(&mut self.session)
            .await?;
        self.chain_audit().await?;
        if self.removed {
            self.prune_removed().await?;
        }
        if self.next > 0 {
            let last = (self.next - 1).to_string();
            self.session.notify(CHANNEL, &last).await?;
        }
        Ok(self.session.commit().await?)
    }

    async fn write(&mut self, write: &'a Write) -> Result<Revision, StoreError> {
        let revision = self.next;
        if write.is_numbered() {
            self.next += 1;
        }
        match write {
            Write::Add { host, with } => {
                self.add(revision, host).await?;
                self.enter(revision, Some(host), with).await?;
            }
            Write::Save {
                host,
                before,
                fence,
                with,
            } => {
                self.save(revision, host, before, *fence).await?;
                self.enter(revision, Some(host), with).await?;
            }
            Write::Remove { host, fence, with } => {
                self.remove(revision, host, *fence).await?;
                self.enter(revision, None, with).await?;
            }
            Write::Put {
                document,
                expect,
                with,
            } => {
                self.put(revision, document, *expect).await?;
                self.enter(revision, None, with).await?;
            }
            Write::Drop {
                kind,
                name,
                expect,
                with,
            } => {
                self.drop(revision, kind, name, *expect).await?;
                self.enter(revision, None, with).await?;
            }
            Write::Audit(entries) => self.note_audit(revision, entries),
            Write::Heard(contact) => self.heard.note(contact),
            Write::Forget { upto, before } => self.forget(*upto, *before).await?,
        }
        Ok(revision)
    }

    async fn add(&mut self, revision: Revision, host: &Stored) -> Result<(), StoreError> {
        let sql = "INSERT INTO hosts (name, uid, version, generation, state, boot_mac, \
                   bmc_address, spec, status, runtime, secrets, project, labels, annotations, \
                   created) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, \
                   $14, $15) \
                   ON CONFLICT DO NOTHING";
        let mut values = columns(revision, host)?;
        values[7] = to_json(&host.record.host.name, &host.record.host.spec)?.into();
        values[10] = seal(self.sealer, host)?.into();
        values.push(host.record.host.created.to_string().into());
        match self.session.run(sql, values).await? {
            0 => Err(self.taken(host).await?),
            _ => Ok(()),
        }
    }

    async fn save(
        &mut self,
        revision: Revision,
        host: &Stored,
        before: &Stored,
        fence: Option<u64>,
    ) -> Result<(), StoreError> {
        let mut values = columns(revision, host)?;
        let shown = &host.record.host;
        if shown.spec != before.record.host.spec {
            values[7] = to_json(&shown.name, &shown.spec)?.into();
        }
        if host.kept != before.kept {
            values[10] = seal(self.sealer, host)?.into();
        }
        values.push(before.record.host.version.into());
        values.push(optional(fence));
        // Looked up only when it could be: in both indexes.
        let moved = keys(host) != keys(before);
        let sql = if moved { SAVE_MOVED } else { SAVE };
        match self.session.run(sql, values).await? {
            0 => Err(self.refusal(host, Some(before), fence).await?),
            _ => Ok(()),
        }
    }

    /// Why a host was not written.
    async fn refusal(
        &mut self,
        host: &Stored,
        before: Option<&Stored>,
        fence: Option<u64>,
    ) -> Result<StoreError, StoreError> {
        let shown = &host.record.host;
        let sql = "SELECT uid, version, fence FROM hosts WHERE name = $1";
        let row = self.session.row(sql, vec![(&shown.name).into()]).await?;
        let Some(mut row) = row else {
            return Ok(no_host(&shown.name));
        };
        let (uid, version, owned) = (row.text(0)?, row.count(1)?, row.count(2)?);
        if uid != shown.uid {
            return Ok(no_host(&shown.name));
        }
        if fence.is_some_and(|fence| fence != owned) {
            return Ok(StoreError::Fenced(shown.name.clone()));
        }
        if before.is_some_and(|before| before.record.host.version != version) {
            return Ok(StoreError::Conflict(format!("host {:?}", shown.name)));
        }
        self.taken(host).await
    }

    /// What of a host is taken, and by whom.
    async fn taken(&mut self, host: &Stored) -> Result<StoreError, StoreError> {
        let (name, mac, address) = keys(host);
        let sql = "SELECT name, boot_mac, bmc_address FROM hosts WHERE name = $1 \
                   OR boot_mac = $2 OR bmc_address = $3 ORDER BY name";
        let values = vec![name.into(), mac.clone().into(), address.clone().into()];
        let rows = self.session.rows(sql, values).await?;
        let mut what = ("name", name.to_owned());
        for mut row in rows {
            let owner = row.text(0)?;
            what = if owner == name {
                // A change of the very host: what is taken is another's.
                continue;
            } else if mac.is_some() && row.maybe_text(1)? == mac {
                ("boot MAC", owner)
            } else {
                ("BMC address", owner)
            };
            break;
        }
        Ok(StoreError::Exists {
            what: what.0,
            owner: format!("host {:?}", what.1),
        })
    }

    async fn remove(
        &mut self,
        revision: Revision,
        host: &Stored,
        fence: Option<u64>,
    ) -> Result<(), StoreError> {
        let shown = &host.record.host;
        let sql = "DELETE FROM hosts WHERE name = $1 AND uid = $2 AND ($3 IS NULL OR fence = $3)";
        let values = vec![(&shown.name).into(), (&shown.uid).into(), optional(fence)];
        if self.session.run(sql, values).await? == 0 {
            return Err(self.refusal(host, None, fence).await?);
        }
        // Not in the same place: the next host of this name has a log of its own.
        let sql = "INSERT INTO departed (id, host, at, kind, text, revision, removed) \
                   SELECT id, host, at, kind, text, revision, $2 FROM events WHERE host = $1";
        let now = crate::clock::now().as_microsecond();
        let values = vec![(&shown.name).into(), now.into()];
        self.session.run(sql, values).await?;
        let sql = "DELETE FROM events WHERE host = $1";
        self.session.run(sql, vec![(&shown.name).into()]).await?;
        for sql in [
            "DELETE FROM inventories WHERE uid = $1",
            "DELETE FROM runs WHERE uid = $1",
            "DELETE FROM contacts WHERE uid = $1",
        ] {
            self.session.run(sql, vec![(&shown.uid).into()]).await?;
        }
        self.bury(revision, "Host", &shown.name, &shown.project)
            .await
    }

    /// Lines of removed hosts that nobody waits for, or not with reason any more.
    async fn forget(&mut self, upto: u64, before: Timestamp) -> Result<(), StoreError> {
        let sql = "DELETE FROM departed WHERE id <= $1 OR removed < $2";
        let values = vec![upto.into(), before.as_microsecond().into()];
        self.session.run(sql, values).await?;
        let sql = "DELETE FROM departed WHERE id <= (SELECT id FROM departed \
                   ORDER BY id DESC LIMIT 1 OFFSET $1)";
        self.session.run(sql, vec![DEPARTED_KEPT.into()]).await?;
        Ok(())
    }

    /// Remembers a removal, for those who follow.
    async fn bury(
        &mut self,
        revision: Revision,
        kind: &str,
        name: &str,
        project: &str,
    ) -> Result<(), StoreError> {
        let sql = "INSERT INTO removed (revision, kind, name, project) VALUES ($1, $2, $3, $4)";
        let values = vec![revision.into(), kind.into(), name.into(), project.into()];
        self.session.run(sql, values).await?;
        self.removed = true;
        Ok(())
    }

    async fn prune_removed(&mut self) -> Result<(), StoreError> {
        let sql = "SELECT revision FROM removed ORDER BY revision DESC LIMIT 1 OFFSET $1";
        let Some(mut row) = self.session.row(sql, vec![REMOVED_KEPT.into()]).await? else {
            return Ok(());
        };
        let last = row.count(0)?;
        let sql = "DELETE FROM removed WHERE revision <= $1";
        self.session.run(sql, vec![last.into()]).await?;
        let sql = "UPDATE revision SET pruned = $1";
        self.session.run(sql, vec![last.into()]).await?;
        Ok(())
    }

    async fn put(
        &mut self,
        revision: Revision,
        document: &Document,
        expect: Expect,
    ) -> Result<(), StoreError> {
        let mut values = document_values(document, revision, self.sealer)?;
        let sql = match expect {
            Expect::Absent => PUT_NEW,
            Expect::Anything => PUT_ANY,
            Expect::Revision(expected) => {
                values.push(expected.into());
                PUT_OVER
            }
        };
        match self.session.run(sql, values).await? {
            0 => Err(document_refusal(&document.kind, &document.name, expect)),
            _ => Ok(()),
        }
    }

    async fn drop(
        &mut self,
        revision: Revision,
        kind: &str,
        name: &str,
        expect: Expect,
    ) -> Result<(), StoreError> {
        let expected = match expect {
            Expect::Revision(expected) => Some(expected),
            Expect::Absent | Expect::Anything => None,
        };
        let sql = "DELETE FROM documents WHERE kind = $1 AND name = $2 \
                   AND ($3 IS NULL OR revision = $3) RETURNING project";
        let values = vec![kind.into(), name.into(), optional(expected)];
        let Some(mut row) = self.session.row(sql, values).await? else {
            return Err(document_refusal(kind, name, expect));
        };
        let project = row.text(0)?;
        self.bury(revision, kind, name, &project).await
    }

    /// Writes what comes with a change.
    async fn enter(
        &mut self,
        revision: Revision,
        host: Option<&Stored>,
        with: &'a Entries,
    ) -> Result<(), StoreError> {
        if let Some(host) = host {
            self.enter_host(revision, host, with).await?;
        }
        self.note_audit(revision, &with.audit);
        Ok(())
    }

    async fn enter_host(
        &mut self,
        revision: Revision,
        host: &Stored,
        with: &Entries,
    ) -> Result<(), StoreError> {
        let shown = &host.record.host;
        for event in &with.events {
            let sql = "INSERT INTO events (host, at, kind, text, revision) \
                       VALUES ($1, $2, $3, $4, $5)";
            let values = vec![
                (&shown.name).into(),
                event.at.to_string().into(),
                (&event.kind).into(),
                (&event.text).into(),
                revision.into(),
            ];
            self.session.run(sql, values).await?;
        }
        if let Some(inventory) = &with.inventory {
            let sql = "INSERT INTO inventories (uid, body) VALUES ($1, $2) \
                       ON CONFLICT (uid) DO UPDATE SET body = excluded.body";
            let body = to_json(&shown.name, inventory)?;
            self.session
                .run(sql, vec![(&shown.uid).into(), body.into()])
                .await?;
        }
        for run in &with.runs {
            self.enter_run(host, run).await?;
        }
        // Now and then the log is cut: often enough, and not at each line.
        if !with.events.is_empty() && revision.is_multiple_of(64) {
            let sql = "DELETE FROM events WHERE host = $1 AND id <= (SELECT id FROM events \
                       WHERE host = $1 ORDER BY id DESC LIMIT 1 OFFSET $2)";
            let values = vec![(&shown.name).into(), EVENTS_KEPT.into()];
            self.session.run(sql, values).await?;
        }
        Ok(())
    }

    async fn enter_run(
        &mut self,
        host: &Stored,
        run: &ferrite_proto::host::Run,
    ) -> Result<(), StoreError> {
        let shown = &host.record.host;
        let sql = "INSERT INTO runs (uid, host, project, started, ended, body) \
                   VALUES ($1, $2, $3, $4, $5, $6)";
        let values = vec![
            (&shown.uid).into(),
            (&shown.name).into(),
            (&host.record.host.project).into(),
            run.started.as_microsecond().into(),
            micros(Some(run.ended.unwrap_or(run.started))),
            to_json(&shown.name, run)?.into(),
        ];
        self.session.run(sql, values).await?;
        let sql = "DELETE FROM runs WHERE uid = $1 AND id <= (SELECT id FROM runs WHERE uid = $1 \
                   ORDER BY id DESC LIMIT 1 OFFSET $2)";
        let values = vec![(&shown.uid).into(), RUNS_KEPT.into()];
        self.session.run(sql, values).await?;
        Ok(())
    }

    fn note_audit(&mut self, revision: Revision, entries: &'a [AuditEntry]) {
        self.audited
            .extend(entries.iter().map(|entry| (revision, entry)));
    }

    /// Adds to the audit log: each line's hash covers the line before, and the key vouches for
    /// the last one.
    async fn chain_audit(&mut self) -> Result<(), StoreError> {
        if self.audited.is_empty() {
            return Ok(());
        }
        let sql = "SELECT id, hash FROM audit_head";
        let (mut id, mut hash) = match self.session.row(sql, Vec::new()).await? {
            Some(mut row) => (row.count(0)?, row.text(1)?),
            None => (0, String::new()),
        };
        for (revision, entry) in std::mem::take(&mut self.audited) {
            let body = to_json("the audit log", &entry.body)?;
            id += 1;
            hash = chained(&hash, id, &entry.project, &body);
            let sql = "INSERT INTO audit (id, revision, project, body, hash) \
                       VALUES ($1, $2, $3, $4, $5)";
            let values = vec![
                id.into(),
                revision.into(),
                (&entry.project).into(),
                body.into(),
                (&hash).into(),
            ];
            self.session.run(sql, values).await?;
        }
        let mac = self.sealer.seal(&head_owner(id), hash.as_bytes())?;
        let sql = "INSERT INTO audit_head (one, id, hash, mac) VALUES (1, $1, $2, $3) \
                   ON CONFLICT (one) DO UPDATE SET id = excluded.id, hash = excluded.hash, \
                   mac = excluded.mac";
        let values = vec![id.into(), hash.into(), mac.into()];
        self.session.run(sql, values).await?;
        Ok(())
    }
}

const SAVE: &str = "UPDATE hosts SET version = $3, generation = $4, state = $5, boot_mac = $6, \
                    bmc_address = $7, spec = COALESCE($8, spec), status = $9, runtime = $10, \
                    secrets = COALESCE($11, secrets), project = $12, labels = $13, \
                    annotations = $14, fence = COALESCE($16, fence) \
                    WHERE name = $1 AND uid = $2 AND version = $15 \
                    AND ($16 IS NULL OR fence = $16)";
const SAVE_MOVED: &str = "UPDATE hosts SET version = $3, generation = $4, state = $5, \
                    boot_mac = $6, bmc_address = $7, spec = COALESCE($8, spec), status = $9, \
                    runtime = $10, secrets = COALESCE($11, secrets), project = $12, \
                    labels = $13, annotations = $14, \
                    fence = COALESCE($16, fence) WHERE name = $1 AND uid = $2 AND version = $15 \
                    AND ($16 IS NULL OR fence = $16) \
                    AND NOT EXISTS (SELECT 1 FROM hosts AS other WHERE other.name <> $1 \
                    AND (other.boot_mac = $6 OR other.bmc_address = $7))";
const PUT_NEW: &str = "INSERT INTO documents \
                    (kind, name, project, revision, created, expires, body, sealed) \
                    VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING";
const PUT_ANY: &str = "INSERT INTO documents \
                    (kind, name, project, revision, created, expires, body, sealed) \
                    VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (kind, name) DO UPDATE \
                    SET project = excluded.project, revision = excluded.revision, \
                    expires = excluded.expires, body = excluded.body, sealed = excluded.sealed";
const PUT_OVER: &str = "UPDATE documents SET project = $3, revision = $4, created = $5, \
                    expires = $6, body = $7, sealed = $8 \
                    WHERE kind = $1 AND name = $2 AND revision = $9";

/// The hash of a line of the audit log.
pub(crate) fn chained(before: &str, id: u64, project: &str, body: &str) -> String {
    let mut hasher = Sha256::new();
    for part in [before, &id.to_string(), project, body] {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part.as_bytes());
    }
    to_hex(&hasher.finalize())
}

/// For whom the last hash of the audit log is sealed.
pub(crate) fn head_owner(id: u64) -> String {
    format!("audit/{id}")
}

fn optional(number: Option<u64>) -> Value {
    Value::Int(number.map(|number| i64::try_from(number).unwrap_or(i64::MAX)))
}

/// What no two hosts may share.
fn keys(host: &Stored) -> (&str, Option<String>, String) {
    let shown = &host.record.host;
    let mac = shown.spec.boot_mac.map(|mac| mac.to_string());
    (
        &shown.name,
        mac,
        shown.spec.bmc.address.to_ascii_lowercase(),
    )
}

/// The columns of a host, without `spec` and `secrets`.
fn columns(revision: Revision, host: &Stored) -> Result<Vec<Value>, StoreError> {
    let shown = &host.record.host;
    let (name, mac, address) = keys(host);
    Ok(vec![
        name.into(),
        (&shown.uid).into(),
        revision.into(),
        shown.generation.into(),
        shown.status.state.as_str().into(),
        mac.into(),
        address.into(),
        Value::Text(None),
        to_json(name, &shown.status)?.into(),
        to_json(name, &host.record.run)?.into(),
        Value::Blob(None),
        (&host.record.host.project).into(),
        to_json(name, &shown.labels)?.into(),
        to_json(name, &shown.annotations)?.into(),
    ])
}

fn no_host(name: &str) -> StoreError {
    StoreError::NotFound {
        kind: "host".to_owned(),
        name: name.to_owned(),
    }
}

fn document_refusal(kind: &str, name: &str, expect: Expect) -> StoreError {
    match expect {
        Expect::Absent => StoreError::Exists {
            what: "name",
            owner: format!("{kind} {name:?}"),
        },
        Expect::Revision(_) => StoreError::Conflict(format!("{kind} {name:?}")),
        Expect::Anything => StoreError::NotFound {
            kind: kind.to_owned(),
            name: name.to_owned(),
        },
    }
}
