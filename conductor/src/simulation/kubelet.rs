//! kubeadm and the kubelet of a simulated OS, as far as conductor and cluster see them.

use std::sync::Arc;
use std::time::Duration;

use ferrite_proto::join::{JOIN, JOIN_REPORT};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::cluster::Kubelet;
use super::network::{self, Call};
use super::state::{Sim, fresh};
use crate::clock;

/// kubeadm's time limits, as the configuration has them.
const DISCOVERY: Duration = Duration::from_mins(2);
const BOOTSTRAP: Duration = Duration::from_mins(3);
/// Between reports.
const REPORT: Duration = Duration::from_secs(10);

/// The daemon of a host that joins.
#[derive(Debug)]
pub(super) struct Joiner<'a> {
    pub(super) sim: &'a Arc<Sim>,
    pub(super) name: &'a str,
    pub(super) key: &'a str,
    pub(super) boot_id: &'a str,
}

/// Why kubeadm does not go on.
enum Stopped {
    /// It failed, with these words.
    With(String),
    /// The conductor wants it no more.
    Unwanted,
}

impl Joiner<'_> {
    /// One attempt. Whether it came to an end: it is not begun again then.
    pub(super) async fn join(&self, attempt: u64) -> bool {
        let sim = self.sim;
        let uuid = sim.machine(self.name, |machine| {
            // kubeadm reset
            machine.disk.kubelet = None;
            machine.uuid.clone()
        });
        let request = json!({
            "attempt": attempt, "boot_id": self.boot_id, "system_uuid": uuid,
            "clock": clock::now(), "kubeadm": "v1.34.1", "kubelet": "v1.34.1",
        });
        let ask = || Call::post(self.name, JOIN, self.key, request.clone());
        let Some((200, material)) = network::call(sim, ask()).await else {
            return false;
        };
        sim.say(self.name, "kubeadm", format!("joins, attempt {attempt}"));
        let (lines, end) = match self.kubeadm(attempt, &material).await {
            Ok(()) => (Vec::new(), json!({"how": "succeeded"})),
            Err(Stopped::Unwanted) => {
                sim.say(self.name, "kubeadm", "is stopped");
                return true;
            }
            Err(Stopped::With(line)) => {
                sim.say(self.name, "kubeadm", &line);
                (vec![line], json!({"how": "failed", "status": 1}))
            }
        };
        let report = json!({"attempt": attempt, "lines": lines, "ended": end});
        for _ in 0..100 {
            let call = Call::post(self.name, JOIN_REPORT, self.key, report.clone());
            match network::call(sim, call).await {
                Some((status, _)) if status < 500 => break,
                Some(_) | None => sim.pause(1_000, 3_000).await,
            }
        }
        if sim.mishap(20) {
            // What was asked before is asked again, long after.
            sim.pause(1_000, 30_000).await;
            network::call(sim, ask()).await;
        }
        true
    }

    async fn kubeadm(&self, attempt: u64, material: &Value) -> Result<(), Stopped> {
        let token = material["token"].as_str().unwrap_or_default();
        let (id, secret) = token.split_once('.').unwrap_or_default();
        let sim = self.sim;
        let deadline = Instant::now() + DISCOVERY;
        loop {
            let (up, signed) = {
                let cluster = &mut sim.lock().cluster;
                (cluster.is_up(), cluster.signs_for(id))
            };
            let line = match (up, signed) {
                (true, true) => break,
                (true, false) => "does not yet contain a JWS signature",
                (false, _) => "connect: connection refused",
            };
            self.go_on(attempt, &[line]).await?;
            if Instant::now() > deadline {
                return Err(Stopped::With(line.to_owned()));
            }
        }
        if !sim.lock().cluster.knows(id, secret) {
            return Err(Stopped::With("Unauthorized".to_owned()));
        }
        if sim.lock().cluster.is_taken(self.name) {
            let name = self.name;
            return Err(Stopped::With(format!(
                "a Node with name {name:?} and status \"Ready\" already exists in the cluster"
            )));
        }
        self.certificate(attempt, id).await?;
        let configuration: Value =
            serde_json::from_str(material["configuration"].as_str().unwrap_or_default())
                .unwrap_or_default();
        let arguments = &configuration["nodeRegistration"]["kubeletExtraArgs"];
        let provider_id = arguments[0]["value"].as_str().unwrap_or_default();
        sim.machine(self.name, |machine| {
            machine.disk.kubelet = Some(provider_id.to_owned());
        });
        sim.pause(3_000, 15_000).await;
        self.register().await;
        Ok(())
    }

    /// Waits a little, and asks whether to go on.
    async fn go_on(&self, attempt: u64, lines: &[&str]) -> Result<(), Stopped> {
        tokio::time::sleep(REPORT).await;
        let report = json!({"attempt": attempt, "lines": lines});
        let call = Call::post(self.name, JOIN_REPORT, self.key, report);
        match network::call(self.sim, call).await {
            Some((200, reply)) if reply["stop"] == true => Err(Stopped::Unwanted),
            _ => Ok(()),
        }
    }

    async fn certificate(&self, attempt: u64, token_id: &str) -> Result<(), Stopped> {
        let sim = self.sim;
        let most = if sim.mishap(10) { 200 } else { 6 };
        let wait = sim.between(Duration::ZERO, Duration::from_secs(most));
        let name = format!("csr-{}", fresh());
        sim.lock().cluster.request(&name, self.name, token_id, wait);
        let deadline = Instant::now() + BOOTSTRAP;
        while !sim.lock().cluster.is_issued(&name) {
            self.go_on(attempt, &[]).await?;
            if Instant::now() > deadline {
                return Err(Stopped::With(
                    "failed while waiting for TLS bootstrap".to_owned(),
                ));
            }
        }
        Ok(())
    }

    /// The kubelet registers, by what is on its disk, once somebody answers.
    pub(super) async fn register(&self) {
        let sim = self.sim;
        let on_disk = sim.machine(self.name, |machine| {
            let provider_id = machine.disk.kubelet.clone()?;
            Some((machine.uuid.clone(), provider_id))
        });
        let Some((system_uuid, provider_id)) = on_disk else {
            return;
        };
        while !sim.lock().cluster.is_up() {
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
        let kubelet = Kubelet {
            uid: fresh(),
            provider_id,
            system_uuid,
            boot_id: self.boot_id.to_owned(),
        };
        let ready_in = sim.between(Duration::from_secs(1), Duration::from_secs(14));
        let mut state = sim.lock();
        state.cluster.register(self.name, &kubelet, ready_in);
        state.say(self.name, "kubelet", "registers its Node");
    }
}
