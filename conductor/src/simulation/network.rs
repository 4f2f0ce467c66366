//! The network between the conductor and everybody: messages are lost, late, doubled, reordered.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body as HttpBody;
use axum::http::Request;
use ferrite_proto::boot::BootParameters;
use serde_json::Value;
use tower::ServiceExt;

use super::checks;
use super::conductor::Incarnation;
use super::state::{LootKind, Sim};
use crate::bmc::BootDevice;
use crate::netboot::{BootAnswer, BootDirectory, Requester};

/// How long a caller waits for an answer.
const PATIENCE: Duration = Duration::from_secs(45);
/// Bytes of a body that is read here.
const BODY: usize = 1 << 24;

/// A call.
#[derive(Debug, Clone)]
pub(super) struct Call {
    /// The machine that calls; empty for people.
    pub(super) from: String,
    pub(super) method: &'static str,
    pub(super) path: String,
    pub(super) token: String,
    pub(super) body: Value,
}

impl Call {
    pub(super) fn post(from: &str, path: &str, token: &str, body: Value) -> Self {
        Self {
            from: from.to_owned(),
            method: "POST",
            path: path.to_owned(),
            token: token.to_owned(),
            body,
        }
    }
}

/// Makes a call; `None` when nothing came back.
pub(super) async fn call(sim: &Arc<Sim>, call: Call) -> Option<(u16, Value)> {
    if is_cut_off(sim, &call) {
        tokio::time::sleep(Duration::from_secs(10)).await;
        return None;
    }
    // What people send goes over one connection: it is never doubled.
    if !call.from.is_empty() && sim.mishap(6) {
        double(sim, call.clone());
    }
    let most = if sim.mishap(3) { 8_000 } else { 30 };
    sim.pause(1, most).await;
    if sim.mishap(2) {
        tokio::time::sleep(Duration::from_secs(10)).await;
        return None;
    }
    let answer = tokio::time::timeout(PATIENCE, deliver(sim, &call)).await;
    let answer = answer.ok().flatten();
    if answer.is_none() || is_cut_off(sim, &call) || sim.mishap(3) {
        tokio::time::sleep(Duration::from_secs(2)).await;
        return None;
    }
    sim.pause(1, 30).await;
    answer
}

fn is_cut_off(sim: &Sim, call: &Call) -> bool {
    !call.from.is_empty() && sim.machine(&call.from, |machine| machine.cut_off())
}

/// The same message once more, soon or long after.
fn double(sim: &Arc<Sim>, call: Call) {
    let sim = Arc::clone(sim);
    tokio::spawn(async move {
        let most = if sim.chance(50) { 120_000 } else { 5_000 };
        sim.pause(1, most).await;
        if let Some((status, _)) = deliver(&sim, &call).await {
            let said = format!("a doubled {} is answered {status}", call.path);
            sim.say(&call.from, "network", said);
        }
    });
}

/// Hands a call to the conductor that runs, if one does and lives on until it has answered.
pub(super) async fn deliver(sim: &Arc<Sim>, call: &Call) -> Option<(u16, Value)> {
    let conductor = sim.lock().conductor.clone()?;
    let request = Request::builder()
        .method(call.method)
        .uri(&call.path)
        .header("content-type", "application/json")
        .header("authorization", format!("Bearer {}", call.token))
        .body(HttpBody::from(call.body.to_string()))
        .expect("a request of our own");
    let handled = tokio::spawn(handle(Arc::clone(sim), conductor, call.clone(), request)).await;
    handled.unwrap_or_else(|panic| {
        sim.violate(format!("{} panics: {panic}", call.path));
        None
    })
}

async fn handle(
    sim: Arc<Sim>,
    conductor: Arc<Incarnation>,
    call: Call,
    request: Request<HttpBody>,
) -> Option<(u16, Value)> {
    let work = async {
        let reply = conductor.router.clone().oneshot(request).await.ok()?;
        let status = reply.status().as_u16();
        let bytes = axum::body::to_bytes(reply.into_body(), BODY).await.ok()?;
        Some((
            status,
            serde_json::from_slice(&bytes).unwrap_or(Value::Null),
        ))
    };
    let answer = tokio::select! {
        biased;
        () = conductor.dead.cancelled() => None,
        answer = work => answer,
    };
    // Killed in the midst of it: it never got out.
    let (status, body) = answer.filter(|_| !conductor.dead.is_cancelled())?;
    checks::answered(&sim, &call, status, &body);
    Some((status, body))
}

/// What a machine finds to boot: the ticket in it, or nothing but its own disk.
pub(super) fn boot_medium(
    sim: &Arc<Sim>,
    name: &str,
    device: Option<BootDevice>,
) -> Option<BootParameters> {
    let conductor = sim.lock().conductor.clone()?;
    let (mac, drive) = sim.machine(name, |machine| (machine.mac, machine.drive.clone()));
    let found: Option<BootParameters> = match device? {
        BootDevice::Pxe => {
            let who = Requester {
                mac,
                ip: None,
                arch: None,
            };
            match conductor.boots.answer(&who) {
                BootAnswer::Ramdisk(_, parameters) => Some(parameters),
                BootAnswer::OwnDisk | BootAnswer::Unknown => None,
            }
        }
        BootDevice::Cd => {
            let drive = drive?;
            let found = conductor.boots.iso(drive.strip_prefix("http://c/iso/")?);
            found.map(|(_, parameters)| parameters)
        }
    };
    let ticket = found.as_ref().map(|found| found.ticket.expose().clone());
    // This way is in clear: whoever listens has a copy.
    if let Some(ticket) = ticket {
        checks::served(sim, name, &ticket);
        sim.copied(name, LootKind::Ticket, &ticket);
        super::thieves::saw_ticket(sim, name, ticket);
    }
    found
}
