//! What SQL alone cannot bring up to date: JSON of an earlier version.

use ferrite_proto::host::{HostState, Run, Stage};
use serde_json::Value as Json;

use super::StoreError;
use super::rows::{damaged, from_json, micros, to_json};
use super::sql::{Pool, Row, Session};

/// Version 0.1 kept inventory and timeline in `status`. They go where they are now.
pub(crate) async fn out_of_status(pool: &Pool) -> Result<(), StoreError> {
    let mut session = pool.begin().await?;
    let sql = "SELECT uid, name, project, state, status, runtime FROM hosts \
               WHERE status LIKE '%\"timeline\":%'";
    let rows = session.rows(sql, Vec::new()).await?;
    if !rows.is_empty() {
        tracing::info!(hosts = rows.len(), "bringing stored hosts up to date");
    }
    for row in rows {
        upgrade(&mut session, row).await?;
    }
    Ok(session.commit().await?)
}

async fn upgrade(session: &mut Session, mut row: Row) -> Result<(), StoreError> {
    let (uid, name, project) = (row.text(0)?, row.text(1)?, row.text(2)?);
    let state: HostState = from_json(&name, &format!("{:?}", row.text(3)?.replace(' ', "-")))?;
    let mut status: Json = from_json(&name, &row.text(4)?)?;
    let mut runtime: Json = from_json(&name, &row.text(5)?)?;
    let object = |json: &mut Json| json.as_object_mut().map(std::mem::take);
    let (Some(mut fields), Some(mut kept)) = (object(&mut status), object(&mut runtime)) else {
        return Err(damaged(&name, &"status and runtime are no objects"));
    };
    let inventory = fields.remove("inventory").filter(|json| !json.is_null());
    let stages = fields.remove("timeline").unwrap_or_default();
    let stages = serde_json::from_value(stages).map_err(|error| damaged(&name, &error))?;
    if let Some(run) = run_of(&name, stages) {
        if matches!(state, HostState::Available | HostState::Provisioned) {
            let sql = "INSERT INTO runs (uid, host, project, started, ended, body) \
                       VALUES ($1, $2, $3, $4, $5, $6)";
            let values = vec![
                (&uid).into(),
                (&name).into(),
                project.into(),
                micros(Some(run.started)),
                micros(run.ended),
                to_json(&name, &run)?.into(),
            ];
            session.run(sql, values).await?;
        } else {
            let doing = Run { ended: None, ..run };
            let doing = serde_json::to_value(doing).map_err(|error| damaged(&name, &error))?;
            kept.insert("doing".to_owned(), doing);
        }
    }
    if let Some(inventory) = inventory {
        let sql = "INSERT INTO inventories (uid, body) VALUES ($1, $2) ON CONFLICT DO NOTHING";
        let body = inventory.to_string();
        session.run(sql, vec![(&uid).into(), body.into()]).await?;
    }
    let sql = "UPDATE hosts SET status = $2, runtime = $3 WHERE uid = $1";
    let values = vec![
        uid.into(),
        Json::Object(fields).to_string().into(),
        Json::Object(kept).to_string().into(),
    ];
    session.run(sql, values).await?;
    Ok(())
}

/// The stages of before as one run; it ended when its last stage did.
fn run_of(host: &str, stages: Vec<Stage>) -> Option<Run> {
    let started = stages.first()?.started;
    let ends = stages.iter().map(|stage| {
        let took = stage.seconds.unwrap_or_default();
        stage.started + crate::lifecycle::change::seconds(took)
    });
    Some(Run {
        host: host.to_owned(),
        kind: "earlier".to_owned(),
        started,
        ended: Some(ends.max().unwrap_or(started)),
        outcome: None,
        stages,
    })
}
