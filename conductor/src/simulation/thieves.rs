//! Somebody who copies what goes over the network in clear, and what lies on a disk, and tries it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ferrite_proto::agent_api::{CHECK_IN, CloudInitStage, ENROLL, HELLO, POLL};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::network::{self, Call};
use super::state::{Loot, LootKind, Sim};
use super::{agent, os, state};
use crate::bmc::BootDevice;
use crate::lifecycle::record::Record;
use crate::{clock, token};

/// A ticket went by in clear.
pub(super) fn saw_ticket(sim: &Arc<Sim>, name: &str, ticket: String) {
    if !sim.mishap(25) {
        return;
    }
    let (sim, name) = (Arc::clone(sim), name.to_owned());
    tokio::spawn(async move {
        if sim.chance(30) {
            strange_machine(&sim, &name, &ticket).await;
        }
        for longest in [60, 300, 3600] {
            sim.pause(1_000, longest * 1000).await;
            let loot = Loot {
                host: name.clone(),
                kind: LootKind::Ticket,
                secret: ticket.clone(),
            };
            try_it(&sim, &loot).await;
        }
        let all = sim.lock().loot.clone();
        let its = all.into_iter().filter(|loot| loot.host == name);
        for loot in its {
            try_it(&sim, &loot).await;
        }
    });
}

/// Somebody boots over the network with the MAC of another.
pub(super) fn asks_for_a_ticket(sim: &Arc<Sim>, name: &str) {
    let (sim, name) = (Arc::clone(sim), name.to_owned());
    tokio::spawn(async move {
        sim.pause(100, 20_000).await;
        let medium = network::boot_medium(&sim, &name, Some(BootDevice::Pxe));
        let Some(parameters) = medium else { return };
        let stored = sim.lock().stored.get(&name).cloned();
        let boot = stored.and_then(|stored| stored.record.run.boot);
        let Some(boot) = boot else { return };
        let left = boot.expires_at.duration_since(clock::now());
        tokio::time::sleep(Duration::try_from(left).unwrap_or_default()).await;
        sim.pause(1, 60_000).await;
        let loot = Loot {
            host: name,
            kind: LootKind::Ticket,
            secret: parameters.ticket.into_inner(),
        };
        try_it(&sim, &loot).await;
    });
}

/// Somebody boots with that MAC just when the host itself has.
pub(super) fn asks_after_the_hello(sim: &Arc<Sim>, name: &str) {
    let (sim, name) = (Arc::clone(sim), name.to_owned());
    tokio::spawn(async move {
        sim.pause(5, 100).await;
        // What is given out is looked at on its way.
        let _ = network::boot_medium(&sim, &name, Some(BootDevice::Pxe));
    });
}

/// Another machine with a copy of the ticket.
async fn strange_machine(sim: &Arc<Sim>, name: &str, ticket: &str) {
    let mut body = agent::hello_body(sim, name, ticket, "strange");
    body["identity"] = json!({"uuid": sim.lock().stranger, "macs": ["52:54:00:99:99:99"]});
    if let Some(200) = said(sim, HELLO, "", body).await {
        sim.violate(format!("a strange machine is let in as {name}"));
    }
}

async fn said(sim: &Arc<Sim>, path: &str, token: &str, body: Value) -> Option<u16> {
    let call = Call::post("", path, token, body);
    network::deliver(sim, &call).await.map(|(status, _)| status)
}

/// Uses what was copied, where it should be good for nothing any more.
async fn try_it(sim: &Arc<Sim>, loot: &Loot) {
    if is_still_good(sim, loot) {
        return;
    }
    let (path, token, body) = attempt(sim, loot);
    let name = &loot.host;
    if let Some(200) = said(sim, path, token, body).await {
        let kind = loot.kind;
        sim.violate(format!(
            "{name}: a {kind:?} is good for a thief after it was used"
        ));
    }
}

/// The call that opens something with what was copied.
fn attempt<'a>(sim: &Sim, loot: &'a Loot) -> (&'static str, &'a str, Value) {
    let (name, secret) = (&loot.host, loot.secret.as_str());
    match loot.kind {
        LootKind::Ticket => (HELLO, "", agent::hello_body(sim, name, secret, "thief")),
        LootKind::AgentToken => (POLL, secret, json!({"sequence": 1, "reports": []})),
        LootKind::Credential => {
            let body = os::enroll_body(sim, name, secret, &state::fresh());
            (ENROLL, "", body)
        }
        LootKind::DaemonKey => {
            let report = os::check_in("b", clock::now(), Instant::now(), CloudInitStage::Done);
            (CHECK_IN, secret, json!(report))
        }
    }
}

/// A secret is used in the very moment in which a transaction makes it void.
pub(super) fn uses_what_ends(sim: &Arc<Sim>, before: &Record, after: &Record) {
    let good_before = secrets_of(before);
    let good_after = secrets_of(after);
    let ends = |loot: &&Loot| {
        let digest = token::sha256(&loot.secret);
        good_before.contains(&digest) && !good_after.contains(&digest)
    };
    let loot: Vec<_> = sim.lock().loot.iter().filter(ends).cloned().collect();
    for loot in loot.into_iter().filter(|_| sim.mishap(20)) {
        let sim = Arc::clone(sim);
        tokio::spawn(async move {
            let (path, token, body) = attempt(&sim, &loot);
            if let Some(200) = said(&sim, path, token, body).await {
                let (name, kind) = (&loot.host, loot.kind);
                sim.violate(format!("{name}: a {kind:?} is good after it was made void"));
            }
        });
    }
}

/// Digests of what opens something to an agent or a daemon.
fn secrets_of(record: &Record) -> BTreeSet<String> {
    let run = &record.run;
    let session = run.session.as_ref().map(|it| it.token_sha256.clone());
    let daemon = run.daemon.as_ref();
    let credential = daemon.filter(|it| it.key_sha256.is_none());
    let credential = credential.map(|it| it.credential_sha256.clone());
    let key = daemon.and_then(|it| it.key_sha256.clone());
    [session, credential, key].into_iter().flatten().collect()
}

/// Whether what was copied opens something as yet, by what is stored.
fn is_still_good(sim: &Sim, loot: &Loot) -> bool {
    let digest = token::sha256(&loot.secret);
    let state = sim.lock();
    let Some(stored) = state.stored.get(&loot.host) else {
        return false;
    };
    let run = &stored.record.run;
    match loot.kind {
        LootKind::Ticket => run.boot.as_ref().is_some_and(|boot| {
            let lives = boot.expires_at > clock::now() && run.deletion.is_none();
            boot.ticket_sha256 == digest && !boot.used && lives
        }),
        LootKind::AgentToken => {
            let session = run.session.as_ref();
            session.is_some_and(|session| session.token_sha256 == digest)
        }
        LootKind::Credential => {
            let daemon = run.daemon.as_ref();
            daemon.is_some_and(|d| d.credential_sha256 == digest && d.key_sha256.is_none())
        }
        LootKind::DaemonKey => {
            let daemon = run.daemon.as_ref();
            daemon.is_some_and(|daemon| daemon.key_sha256.as_ref() == Some(&digest))
        }
    }
}

/// At the end, everything that ever was copied.
pub(super) async fn try_everything(sim: &Arc<Sim>) {
    tokio::time::sleep(Duration::from_secs(1)).await;
    let all = sim.lock().loot.clone();
    for loot in all {
        try_it(sim, &loot).await;
    }
}
