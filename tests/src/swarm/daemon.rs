//! The host daemon on a simulated OS: the real daemon's contact, driven as the agent's
//! `daemon/mod.rs` drives it.

use std::time::Duration;

use ferrite_agent::protocol::{Call, CallError, Contact};
use ferrite_proto::agent_api::{
    CHECK_IN, CheckIn, CheckInReply, CloudInit, CloudInitStage, DaemonConfig, ENROLL, EnrollReply,
};
use ferrite_proto::join::{
    JOIN, JOIN_REPORT, JoinEnd, JoinMaterial, JoinOrder, JoinReport, JoinReportReply, JoinRequest,
};
use ferrite_proto::secret::Secret;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Shared;
use super::dial::Dial;
use super::kubeadm;
use super::machine::Machine;

/// How long a call may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between looks at kubeadm, as in the agent.
const LOOK: Duration = Duration::from_millis(500);
/// A check-in after so many.
const CHECK_IN_LOOKS: u32 = 10;
/// How long the cluster may take, as in the agent.
const MINTING: Duration = Duration::from_mins(1);

/// Runs for as long as the OS does.
pub(super) async fn run(machine: &Machine, shared: &Shared, config: DaemonConfig) {
    let dialled = shared.exchange.dial(
        machine.number,
        &config.url,
        &shared.settings.servers,
        config.ca,
    );
    let Ok(dial) = dialled else { return };
    let key = key(machine);
    machine.keep_key(key.clone());
    let mut daemon = Daemon {
        machine,
        shared,
        dial,
        contact: Contact::new(config, key),
        boot_id: uuid::Uuid::new_v4().to_string(),
        booted: Timestamp::now(),
        started: Instant::now(),
        joined: 0,
    };
    loop {
        let wait = daemon.round().await;
        tokio::time::sleep(wait).await;
    }
}

/// The key that an earlier start of this OS made, else a new one.
fn key(machine: &Machine) -> Secret<String> {
    let used = machine.disk().daemon;
    let used = used.is_some_and(|config| config.credential.expose().is_empty());
    let kept = machine.daemon_key().filter(|_| used);
    kept.unwrap_or_else(|| {
        let (a, b) = (uuid::Uuid::new_v4(), uuid::Uuid::new_v4());
        Secret::new(format!("{}{}", a.simple(), b.simple()))
    })
}

struct Daemon<'a> {
    machine: &'a Machine,
    shared: &'a Shared,
    dial: Dial,
    contact: Contact,
    boot_id: String,
    booted: Timestamp,
    started: Instant,
    /// The last attempt to join that ended.
    joined: u32,
}

impl Daemon<'_> {
    async fn round(&mut self) -> Duration {
        let result = match self.contact.next() {
            Call::Enroll => self.enroll().await,
            Call::CheckIn => self.check_in().await,
        };
        self.shared.counts.call(self.machine, &result);
        result.unwrap_or_else(|error| self.contact.failed(&error))
    }

    async fn enroll(&mut self) -> Result<Duration, CallError> {
        let enroll = self.contact.enroll(self.machine.identity());
        let _: EnrollReply = self.dial.call(ENROLL, None, &enroll, PATIENCE).await?;
        self.machine.note(|deeds| deeds.enrolled += 1);
        Ok(self.contact.enrolled())
    }

    async fn check_in(&mut self) -> Result<Duration, CallError> {
        self.join_by_cloud_init().await;
        let report = self.report();
        let key = Some(self.contact.key());
        let reply: CheckInReply = self.dial.call(CHECK_IN, key, &report, PATIENCE).await?;
        self.machine.note(|deeds| deeds.check_ins += 1);
        if self.contact.forget_credential() {
            let config = self.contact.config().clone();
            self.machine.change_disk(|disk| disk.daemon = Some(config));
        }
        if let Some(order) = reply.join.filter(|order| order.attempt > self.joined) {
            self.join(order).await?;
        }
        Ok(self.contact.checked_in(&reply, report.cloud_init.stage))
    }

    /// What our vendor script does, right before cloud-init ends.
    async fn join_by_cloud_init(&mut self) {
        let ended = self.started.elapsed() >= self.shared.settings.pace.cloud_init;
        let Some(configuration) = self.machine.disk().kubeadm.filter(|_| ended) else {
            return;
        };
        // cloud-init runs it once an instance.
        self.machine.change_disk(|disk| disk.kubeadm = None);
        self.machine.note(|deeds| deeds.joins += 1);
        let (lines, _nobody_reads) = mpsc::unbounded_channel();
        let run = kubeadm::Run {
            machine: self.machine,
            boot_id: self.boot_id.clone(),
            lines,
        };
        let material = JoinMaterial {
            attempt: 0,
            configuration,
            token: Secret::new(String::new()),
            patches: std::collections::BTreeMap::new(),
            deadline_seconds: 60,
        };
        for _ in 0..5 {
            if kubeadm::join(&material, &run).await == JoinEnd::Succeeded {
                return;
            }
        }
    }

    /// One attempt, from the request for material to the report of its end.
    async fn join(&mut self, order: JoinOrder) -> Result<(), CallError> {
        let request = JoinRequest {
            attempt: order.attempt,
            boot_id: self.boot_id.clone(),
            system_uuid: Some(self.machine.uuid.clone()),
            clock: Timestamp::now() + self.machine.clock_is_wrong_by(),
            kubeadm: Some("v1.34.1".to_owned()),
            kubelet: Some("v1.34.1".to_owned()),
            cri_socket: None,
            findings: self.machine.findings(),
        };
        let key = Some(self.contact.key());
        let material: JoinMaterial = self.dial.call(JOIN, key, &request, MINTING).await?;
        self.machine.note(|deeds| deeds.joins += 1);
        let (lines, mut said) = mpsc::unbounded_channel();
        let run = kubeadm::Run {
            machine: self.machine,
            boot_id: self.boot_id.clone(),
            lines,
        };
        let kubeadm = kubeadm::join(&material, &run);
        tokio::pin!(kubeadm);
        let mut report = JoinReport {
            attempt: order.attempt,
            ..JoinReport::default()
        };
        for look in 1_u32.. {
            if report.ended.is_none() {
                report.ended = tokio::time::timeout(LOOK, &mut kubeadm).await.ok();
            } else {
                tokio::time::sleep(LOOK).await;
            }
            while let Ok(line) = said.try_recv() {
                report.lines.push(line);
            }
            let is_wanted = self.tell(&mut report).await;
            let asks = look.is_multiple_of(CHECK_IN_LOOKS);
            if !is_wanted || (asks && !self.is_to_join(order).await) {
                break;
            }
            if report.ended.is_some() && report.lines.is_empty() {
                break;
            }
        }
        self.joined = order.attempt;
        Ok(())
    }

    /// Passes on what is new; what the conductor did not take is told again. Whether to go on.
    async fn tell(&mut self, report: &mut JoinReport) -> bool {
        if report.lines.is_empty() && report.ended.is_none() {
            return true;
        }
        let key = Some(self.contact.key());
        let told = self.dial.call(JOIN_REPORT, key, report, PATIENCE).await;
        match told {
            Ok(JoinReportReply { stop }) => {
                report.lines.clear();
                !stop
            }
            Err(CallError::Status { status, .. }) => status >= 500,
            Err(_) => {
                // One more line than none: it is not at its end yet.
                report.lines.push(String::new());
                true
            }
        }
    }

    async fn is_to_join(&mut self, order: JoinOrder) -> bool {
        let report = self.report();
        let key = Some(self.contact.key());
        let reply: Result<CheckInReply, CallError> =
            self.dial.call(CHECK_IN, key, &report, PATIENCE).await;
        // A conductor that does not answer has not called it off.
        reply.map_or(true, |reply| reply.join == Some(order))
    }

    fn report(&self) -> CheckIn {
        let up = self.started.elapsed();
        let ended = up >= self.shared.settings.pace.cloud_init;
        CheckIn {
            boot_id: self.boot_id.clone(),
            booted_at: self.booted,
            uptime_seconds: up.as_secs_f64(),
            os: "Debian GNU/Linux 13 (simulated)".to_owned(),
            kernel: "6.12.0-amd64".to_owned(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            cloud_init: self.cloud_init(ended),
        }
    }

    fn cloud_init(&self, ended: bool) -> CloudInit {
        let took = SignedDuration::try_from(self.shared.settings.pace.cloud_init);
        let finished = self.booted.checked_add(took.unwrap_or_default()).ok();
        CloudInit {
            stage: if ended {
                CloudInitStage::Done
            } else {
                CloudInitStage::Running
            },
            datasource: Some("DataSourceConfigDrive".to_owned()),
            errors: Vec::new(),
            finished_at: finished.filter(|_| ended),
        }
    }
}
