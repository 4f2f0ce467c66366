//! Calls of the host daemon in the deployed OS: enrol, once a deployment, and check in.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use ferrite_proto::agent_api::{CheckIn, CheckInReply, Enroll, EnrollReply};
use ferrite_proto::host::HostState;
use ferrite_proto::problem::Problem;

use super::agent::{fits, refused, shown, void};
use super::{Answer, App, Body};
use crate::access::caller::DaemonOf;
use crate::actor::Actor;
use crate::crash::{self, Moment, Work};
use crate::guard::{self, Guard};
use crate::hosts::Credential;
use crate::lifecycle::change::Change;
use crate::lifecycle::record::{DaemonAccess, Record};
use crate::lifecycle::reports::harmless;
use crate::token;

/// Between check-ins while the deployment waits for the OS.
const WHILE_PROVISIONING: u32 = 2;
/// Characters of a text that is kept of a daemon.
const TEXT: usize = 500;
/// Errors of cloud-init that are kept.
const ERRORS: usize = 20;

/// `POST /v1/daemon/enroll`
pub(crate) async fn enroll(
    State(app): State<Arc<App>>,
    Body(request): Body<Enroll>,
) -> Answer<EnrollReply> {
    let digest = token::sha256(request.credential.expose());
    let Some(name) = app.hosts.find(Credential::Enrolment, &digest) else {
        let who = shown(&request.identity);
        tracing::warn!(who, "enrolment with an unknown credential");
        return Err(refused("the daemon's credential is unknown or void").into());
    };
    let answered = app.hosts.update(&name, &Actor::Daemon, |change| {
        let answer = let_in(change, &request, &digest);
        if let Err(problem) = &answer {
            change.event(
                "alarm",
                format!("an enrolment was refused: {}", problem.message),
            );
        }
        crash::point(Work::Enroll, Moment::Before);
        Ok(answer)
    });
    answered.await?.1?;
    crash::point(Work::Enroll, Moment::After);
    app.hosts.heard_daemon(&name);
    Ok(Json(EnrollReply {
        host: name,
        check_in_seconds: WHILE_PROVISIONING,
    }))
}

fn let_in(change: &mut Change, request: &Enroll, digest: &str) -> Result<(), Problem> {
    fits(&change.record, &request.identity)?;
    let key = &request.key_sha256;
    let is_digest = key.len() == 64 && key.chars().all(|c| c.is_ascii_hexdigit());
    if !is_digest {
        return Err(refused("the key's digest is not 64 hex digits"));
    }
    let daemon = change.record.run.daemon.as_ref();
    let its = |known: &&DaemonAccess| {
        guard::holds(Guard::VoidOnTheWay, known.credential_sha256 == digest)
    };
    let daemon = daemon.filter(its);
    let daemon = daemon.ok_or_else(|| refused("the daemon's credential is void"))?;
    match &daemon.key_sha256 {
        // A lost reply costs nothing.
        Some(known) if !daemon.used && known.eq_ignore_ascii_case(key) => {}
        Some(_) if guard::stands(Guard::CredentialMakesOneKey) => {
            return Err(refused("the daemon's credential was used already"));
        }
        None | Some(_) => change.enrolled(key.to_ascii_lowercase()),
    }
    Ok(())
}

/// `POST /v1/daemon/check-in`
pub(crate) async fn check_in(
    State(app): State<Arc<App>>,
    DaemonOf(daemon): DaemonOf,
    Body(report): Body<CheckIn>,
) -> Answer<CheckInReply> {
    app.hosts.heard_daemon(&daemon.host);
    let report = bounded(report);
    let changed = app.hosts.update(&daemon.host, &Actor::Daemon, |change| {
        let known = change.record.run.daemon.as_ref();
        let same = known.is_some_and(|known| known.key_sha256.as_ref() == Some(&daemon.sha256));
        if !guard::holds(Guard::VoidOnTheWay, same) {
            return Err(void());
        }
        change.checked_in(report.clone());
        crash::point(Work::CheckIn, Moment::Before);
        Ok(())
    });
    let (stored, ()) = changed.await?;
    crash::point(Work::CheckIn, Moment::After);
    Ok(Json(CheckInReply {
        check_in_seconds: interval(&app, &stored.record),
        join: super::joining::order(&stored.record),
    }))
}

fn interval(app: &App, record: &Record) -> u32 {
    if record.state() == HostState::Provisioning {
        WHILE_PROVISIONING
    } else {
        app.check_in_seconds
    }
}

/// What a host says of itself, cut to what a status can carry.
fn bounded(mut report: CheckIn) -> CheckIn {
    let texts = [
        &mut report.boot_id,
        &mut report.os,
        &mut report.kernel,
        &mut report.agent_version,
    ];
    for text in texts {
        *text = harmless(text, TEXT);
    }
    let init = &mut report.cloud_init;
    init.errors.truncate(ERRORS);
    for text in init.errors.iter_mut().chain(&mut init.datasource) {
        *text = harmless(text, TEXT);
    }
    report
}
