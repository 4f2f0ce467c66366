//! The deployed OS and its host daemon.

use std::sync::Arc;
use std::time::Duration;

use ferrite_proto::agent_api::{CHECK_IN, CheckIn, CloudInit, CloudInitStage, ENROLL};
use serde_json::json;
use tokio::time::Instant;

use super::kubelet::Joiner;
use super::network::{self, Call};
use super::state::{self, LootKind, Running, Sim};
use crate::{clock, token};

/// Starts from the disk, if there is anything to start.
pub(super) async fn run(sim: &Arc<Sim>, name: &str) {
    let drive = sim.machine(name, |machine| {
        machine.running = Running::Nothing;
        let starts = machine.boots_from_disk();
        machine.running = if starts {
            Running::Os
        } else {
            Running::Nothing
        };
        machine.disk.drive.clone().filter(|_| starts)
    });
    let Some(drive) = drive else {
        return sim.say(name, "machine", "finds nothing to boot");
    };
    sim.say(name, "os", "starts");
    let started = Instant::now();
    sim.pause(5_000, 20_000).await;
    let Some(key) = enroll(sim, name, &drive.credential).await else {
        return sim.say(name, "os", "is refused");
    };
    heartbeats(sim, name, &key, started).await;
}

/// The daemon's key: the one of before, or a new one that the conductor learns of.
async fn enroll(sim: &Arc<Sim>, name: &str, credential: &str) -> Option<String> {
    let known = sim.machine(name, |machine| machine.disk.key.clone());
    let enrolled = known.is_some();
    let key = known.unwrap_or_else(state::fresh);
    if enrolled {
        return Some(key);
    }
    let body = enroll_body(sim, name, credential, &key);
    loop {
        let call = Call::post(name, ENROLL, "", body.clone());
        match network::call(sim, call).await {
            Some((200, _)) => {
                sim.say(name, "os", "is enrolled");
                sim.copied(name, LootKind::DaemonKey, &key);
                sim.machine(name, |machine| machine.disk.key = Some(key.clone()));
                return Some(key);
            }
            Some((401 | 403, _)) => return None,
            Some(_) | None => sim.pause(2_000, 10_000).await,
        }
    }
}

/// The words of an enrolment, as the machine would say them.
pub(super) fn enroll_body(sim: &Sim, name: &str, credential: &str, key: &str) -> serde_json::Value {
    let (uuid, mac) = sim.machine(name, |machine| (machine.uuid.clone(), machine.mac));
    json!({
        "credential": credential, "key_sha256": token::sha256(key),
        "identity": {"uuid": uuid, "macs": [mac]},
    })
}

async fn heartbeats(sim: &Arc<Sim>, name: &str, key: &str, started: Instant) {
    let boot_id = state::fresh();
    sim.machine(name, |machine| machine.boot_id.clone_from(&boot_id));
    let joiner = Joiner {
        sim,
        name,
        key,
        boot_id: &boot_id,
    };
    if sim.joins() {
        joiner.register().await;
    }
    let mut ended = 0;
    let booted_at = clock::now();
    let ready = sim.between(Duration::from_secs(5), Duration::from_mins(2));
    let fails = sim.mishap(3);
    loop {
        let stage = match (started.elapsed() < ready, fails) {
            (true, _) => CloudInitStage::Running,
            (false, false) => CloudInitStage::Done,
            (false, true) => CloudInitStage::Failed,
        };
        let report = check_in(&boot_id, booted_at, started, stage);
        let call = Call::post(name, CHECK_IN, key, json!(report));
        let pause = match network::call(sim, call).await {
            Some((200, reply)) => {
                let order = reply["join"]["attempt"].as_u64();
                if let Some(attempt) = order.filter(|attempt| *attempt > ended)
                    && joiner.join(attempt).await
                {
                    ended = attempt;
                }
                reply["check_in_seconds"].as_u64().unwrap_or(60).max(10)
            }
            Some((401 | 403, _)) => 300,
            Some(_) | None => 10,
        };
        tokio::time::sleep(Duration::from_secs(pause)).await;
    }
}

/// The words of a heartbeat.
pub(super) fn check_in(
    boot_id: &str,
    booted_at: jiff::Timestamp,
    started: Instant,
    stage: CloudInitStage,
) -> CheckIn {
    CheckIn {
        boot_id: boot_id.to_owned(),
        booted_at,
        uptime_seconds: started.elapsed().as_secs_f64(),
        os: "Debian".into(),
        kernel: "6".into(),
        agent_version: "0".into(),
        cloud_init: CloudInit {
            stage,
            ..CloudInit::default()
        },
    }
}
