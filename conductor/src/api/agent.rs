//! Calls of the ramdisk's agent: hello, once a boot, and poll, all the time.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use ferrite_proto::agent_api::{Hello, HelloReply, Identity, Poll, PollReply, Report};
use ferrite_proto::problem::{Code, Problem};
use ferrite_proto::secret::Secret;

use super::{Answer, ApiError, App, Body};
use crate::access::caller::{AgentOf, Presented};
use crate::actor::Actor;
use crate::crash::{self, Moment, Work};
use crate::guard::{self, Guard};
use crate::hosts::Credential;
use crate::lifecycle::change::Change;
use crate::lifecycle::record::{HelloFacts, Record, Session};
use crate::lifecycle::{order, reports};
use crate::store::Stored;
use crate::{clock, token};

/// `POST /v1/agent/hello`
pub(crate) async fn hello(
    State(app): State<Arc<App>>,
    Body(hello): Body<Hello>,
) -> Answer<HelloReply> {
    let ticket_sha256 = token::sha256(hello.ticket.expose());
    let Some(name) = app.hosts.find(Credential::Ticket, &ticket_sha256) else {
        let who = shown(&hello.identity);
        tracing::warn!(who, "hello with a ticket that nobody knows");
        return Err(refused("the boot ticket is unknown").into());
    };
    let bytes = app.boots.bytes(&name);
    let answered = app.hosts.update(&name, &Actor::Agent, |change| {
        // A refusal is an alarm in the host's log: it must be stored as well.
        let answer = let_in(change, &hello, &ticket_sha256, bytes);
        if let Err(problem) = &answer {
            change.event("alarm", format!("a hello was refused: {}", problem.message));
        }
        crash::point(Work::Hello, Moment::Before);
        Ok(answer)
    });
    let (_, token) = answered.await?;
    crash::point(Work::Hello, Moment::After);
    let token = token?;
    app.hosts.seeing().agent_lines.new_agent(&name);
    app.hosts.heard_agent(&name);
    Ok(Json(HelloReply {
        token,
        host: name,
        poll_seconds: app.poll_seconds,
    }))
}

fn let_in(
    change: &mut Change,
    hello: &Hello,
    ticket_sha256: &str,
    netboot_bytes: u64,
) -> Result<Secret<String>, Problem> {
    let run = &change.record.run;
    let session = run.session.as_ref();
    let same_ticket = |session: &&Session| session.ticket_sha256 == ticket_sha256;
    let once = guard::stands(Guard::TicketOpensOnce);
    if let Some(session) = session.filter(same_ticket).filter(|_| once) {
        let same_boot = session.nonce == hello.nonce;
        let again = guard::holds(Guard::TokenToldToItsBoot, same_boot) && !session.polled;
        let token = change.kept.agent_token.clone().filter(|_| again);
        return token.ok_or_else(|| refused("the boot ticket was used already"));
    }
    let armed = run.boot.as_ref();
    let armed = armed.filter(|boot| boot.ticket_sha256 == ticket_sha256 && (!boot.used || !once));
    let armed = armed.ok_or_else(|| refused("the boot ticket is not armed"))?;
    let stays = guard::holds(Guard::NoHelloWhileDeleting, run.deletion.is_none());
    if !guard::holds(Guard::TicketNotExpired, armed.expires_at > change.now) || !stays {
        return Err(refused("the boot ticket has expired"));
    }
    if hello.nonce.is_empty() || hello.nonce.len() > 128 {
        return Err(refused("the nonce has a length that no agent sends"));
    }
    fits(&change.record, &hello.identity)?;
    let token = token::random();
    let facts = HelloFacts {
        ticket_sha256: ticket_sha256.to_owned(),
        nonce: hello.nonce.clone(),
        token_sha256: token::sha256(token.expose()),
        version: short(&hello.agent_version),
        kernel: short(&hello.kernel),
        uptime_seconds: hello.uptime_seconds,
        memory_bytes: hello.memory_bytes,
        netboot_bytes,
    };
    change.hello(facts, token.clone());
    Ok(token)
}

/// Text from a host, cut to what a status can carry.
fn short(text: &str) -> String {
    reports::harmless(text, 200)
}

/// Who a stranger says it is, cut to what a log can carry.
pub(super) fn shown(identity: &Identity) -> String {
    short(&format!("{identity:?}"))
}

/// Whether the machine that calls is the host: by its boot NIC, or by the UUID that its BMC told.
pub(crate) fn fits(record: &Record, identity: &Identity) -> Result<(), Problem> {
    let mac = record.host.spec.boot_mac;
    let same_mac = mac.map(|mac| identity.macs.contains(&mac));
    let uuids = record.run.bmc_uuid.as_ref().zip(identity.uuid.as_ref());
    let same_uuid = uuids.map(|(known, told)| known.eq_ignore_ascii_case(told));
    match (same_mac, same_uuid) {
        (Some(true), _) | (_, Some(true)) | (None, None) => Ok(()),
        (Some(false), _) | (_, Some(false)) if !guard::stands(Guard::MachineFits) => Ok(()),
        (Some(false), _) | (_, Some(false)) => Err(refused(&format!(
            "the machine (UUID {}) is not the host {}",
            short(identity.uuid.as_deref().unwrap_or("unknown")),
            record.host.name
        ))),
    }
}

/// The refusal of a first contact.
pub(crate) fn refused(what: &str) -> Problem {
    Problem::new(
        Code::AgentTicketRefused,
        what,
        "boot the host through the conductor again: `ferrite host retry`",
    )
}

/// Characters of a line of an agent.
const LINE_CHARS: usize = 1000;
/// Lines of an agent that are stored when a step of it failed.
const LINES_OF_A_FAILURE: usize = 50;

/// `POST /v1/agent/poll`
pub(crate) async fn poll(
    State(app): State<Arc<App>>,
    AgentOf(agent): AgentOf,
    Body(poll): Body<Poll>,
) -> Answer<PollReply> {
    let name = agent.host.clone();
    app.hosts.heard_agent(&name);
    let held = poll.reports.is_empty();
    let taken = accepted(&poll);
    // In a box: what is held for half a minute, ten thousand times, is small.
    let stored = Box::pin(take(&app, &agent, poll)).await?;
    let mut reply = reply(&app, &stored)?;
    reply.cancel = called_off(&stored.record, &taken).or(reply.cancel);
    if !held || reply.order.is_some() || reply.cancel.is_some() {
        return Ok(Json(reply));
    }
    let reply = hold(&app, &agent, stored.record.host.version).await?;
    app.hosts.heard_agent(&name);
    Ok(Json(reply))
}

/// Takes what an agent reports. A poll without news changes nothing but the first; lines and the
/// ticks of a step's progress are kept in memory.
async fn take(app: &App, agent: &Presented, poll: Poll) -> Result<Arc<Stored>, Problem> {
    let name = agent.host.as_str();
    let limits = &app.world.limits;
    let reports = keep_in_memory(app, name, &poll);
    let works: Vec<_> = reports
        .iter()
        .filter_map(|report| Work::taking(report))
        .collect();
    let failed = reports
        .iter()
        .any(|report| matches!(report, Report::Failed { .. }));
    let taken = app.hosts.update(name, &Actor::Agent, |change| {
        if !is_still_its(&change.record, agent) {
            return Err(void());
        }
        if let Some(session) = change
            .record
            .run
            .session
            .as_mut()
            .filter(|_| !reports.is_empty())
        {
            session.last_sequence = poll.sequence;
        }
        for report in &reports {
            change.report((*report).clone(), limits);
        }
        // What was said before a failure outlives the memory that it is in.
        if failed && change.events.iter().any(|event| event.kind == "error") {
            let lines = &app.hosts.seeing().agent_lines;
            for line in lines.tail(name, LINES_OF_A_FAILURE) {
                change.event("log", line.text);
            }
        }
        change.polled();
        pass(&works, Moment::Before);
        Ok(())
    });
    let (stored, ()) = taken.await?;
    pass(&works, Moment::After);
    Ok(stored)
}

/// Takes lines and progress; gives the reports that are to be stored.
fn keep_in_memory<'a>(app: &App, name: &str, poll: &'a Poll) -> Vec<&'a Report> {
    let lines = poll.reports.iter().filter_map(|report| match report {
        Report::Log { line } => Some(reports::harmless(line, LINE_CHARS)),
        _ => None,
    });
    let (now, lines) = (clock::now(), lines.collect::<Vec<_>>());
    let known = &app.hosts.seeing().agent_lines;
    // A poll that comes again repeats its lines; other reports are safe to repeat.
    known.take(name, poll.sequence, now, lines);
    let is_stored = |report: &&Report| match report {
        Report::Log { .. } => false,
        Report::Progress { order, progress } => !app.hosts.progress(name, *order, progress),
        _ => true,
    };
    poll.reports.iter().filter(is_stored).collect()
}

/// The orders that a poll says are taken.
fn accepted(poll: &Poll) -> Vec<u64> {
    let orders = poll.reports.iter().filter_map(|report| match report {
        Report::Accepted { order } => Some(*order),
        _ => None,
    });
    orders.collect()
}

/// An order that was taken after it had been called off: its answer was on the way longer than
/// that took. It must not begin.
fn called_off(record: &Record, taken: &[u64]) -> Option<u64> {
    let flow = record.run.workflow.as_ref();
    let out = flow.and_then(crate::lifecycle::Workflow::outstanding);
    let out = out.map(|(number, _)| number);
    let late = taken.iter().copied().find(|order| Some(*order) != out);
    late.filter(|_| guard::stands(Guard::CalledOffIsNotBegun))
}

fn pass(works: &[Work], moment: Moment) {
    for work in works {
        crash::point(*work, moment);
    }
}

fn reply(app: &App, stored: &Stored) -> Result<PollReply, Problem> {
    let order = order::to_hand_out(&stored.record, &stored.kept, &app.world.reach)?;
    let flow = stored.record.run.workflow.as_ref();
    let cancel = flow
        .filter(|flow| flow.cancelling)
        .and_then(crate::lifecycle::Workflow::outstanding)
        .map(|(number, _)| number);
    Ok(PollReply { order, cancel })
}

/// Whether the agent that called is the host's still: another boot may have come meanwhile.
fn is_still_its(record: &Record, agent: &Presented) -> bool {
    let session = record.run.session.as_ref();
    let same = session.is_some_and(|session| session.token_sha256 == agent.sha256);
    guard::holds(Guard::VoidOnTheWay, same)
}

/// The refusal of a token that was good when the call came.
pub(super) fn void() -> Problem {
    Problem::new(
        Code::Unauthorized,
        "the token is no longer valid",
        "nothing: the host has gone on without it",
    )
}

/// Holds a poll until there is something to say.
async fn hold(app: &App, agent: &Presented, version: u64) -> Result<PollReply, ApiError> {
    let name = agent.host.as_str();
    let Some(mut versions) = app.hosts.follow(name) else {
        return Ok(PollReply::default());
    };
    let end = tokio::time::Instant::now() + Duration::from_secs(app.poll_seconds.into());
    let mut known = version;
    loop {
        tokio::select! {
            biased;
            changed = versions.wait_for(|version| *version > known) => match changed {
                Ok(version) => known = *version,
                Err(_) => return Ok(PollReply::default()),
            },
            () = tokio::time::sleep_until(end) => return Ok(PollReply::default()),
            () = app.stop.cancelled() => return Ok(PollReply::default()),
        }
        let stored = match app.hosts.stored(name) {
            Ok(stored) if is_still_its(&stored.record, agent) => stored,
            Ok(_) | Err(_) => return Ok(PollReply::default()),
        };
        let reply = reply(app, &stored)?;
        if reply.order.is_some() || reply.cancel.is_some() {
            return Ok(reply);
        }
    }
}
