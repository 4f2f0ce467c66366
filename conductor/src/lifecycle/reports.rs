//! How a host's record changes by what its agent and its daemon report. Pure.

use ferrite_proto::agent_api::{CheckIn, CloudInitStage, Report};
use ferrite_proto::host::{DaemonStatus, HostState};
use ferrite_proto::problem::{Code, Problem};
use ferrite_proto::step::{BootMethod, Outcome, Progress};
use serde_json::json;

use super::StepName;
use super::change::{Change, seconds};
use super::record::Limits;
use crate::guard::{self, Guard};

const LOG_LINE_CHARS: usize = 1000;
/// Of a problem, a detail, the name of a phase.
const TEXT_CHARS: usize = 2000;

/// Text of a host as it may stand in a log and on a terminal: one line, bounded, nothing that a
/// terminal obeys.
pub(crate) fn harmless(text: &str, most: usize) -> String {
    let clean = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    clean.take(most).collect()
}

impl Change {
    /// Takes one report. Reports of orders that are not out are of the past, and change nothing.
    pub(crate) fn report(&mut self, report: Report, limits: &Limits) {
        match report {
            Report::Accepted { order } => self.accepted(order),
            Report::Progress { order, progress } => self.progress(order, progress),
            Report::Done {
                order,
                outcome,
                seconds,
            } => self.done(order, outcome, seconds, limits),
            Report::Failed { order, problem } => self.failed(order, &problem, limits),
            Report::Log { line } => {
                self.event("log", harmless(&line, LOG_LINE_CHARS));
            }
            Report::Unknown => self.event("log", "a report of a kind that is not known here"),
        }
    }

    fn is_out(&self, order: u64) -> Option<StepName> {
        let flow = self.record.run.workflow.as_ref()?;
        flow.outstanding()
            .filter(|(number, _)| guard::holds(Guard::ReportOfTheOrderThatIsOut, *number == order))
            .map(|(_, name)| name)
    }

    fn accepted(&mut self, order: u64) {
        let Some(flow) = &mut self.record.run.workflow else {
            return;
        };
        let fresh = flow.to_hand_out().filter(|(number, _)| *number == order);
        if let (true, Some((_, name))) = (flow.accepted(order), fresh) {
            self.audit_order("accepted", order, name, json!({}));
        }
    }

    fn progress(&mut self, order: u64, mut progress: Progress) {
        if self.is_out(order).is_none() {
            return;
        }
        self.accepted(order);
        progress.phase = harmless(&progress.phase, TEXT_CHARS);
        if let Some(step) = &mut self.record.host.status.step {
            step.progress = progress;
        }
    }

    fn done(&mut self, order: u64, outcome: Outcome, took: f64, limits: &Limits) {
        let Some(name) = self.is_out(order) else {
            return;
        };
        let detail = match self.take_outcome(name, outcome) {
            Ok(detail) => detail,
            Err(problem) => return self.failed(order, &problem, limits),
        };
        let now = self.now;
        if let Some(flow) = &mut self.record.run.workflow {
            flow.done(now);
        }
        let started = now - seconds(took);
        let (bytes, text) = (detail.bytes, Some(detail.text.clone()));
        if name == StepName::Boot {
            // It ends when the deployed kernel starts, of which the daemon tells.
            self.stages().open_with(name.as_str(), started, text);
        } else {
            self.stages().past(name.as_str(), started, now, bytes, text);
        }
        let disks = json!({"on": detail.text, "bytes": bytes});
        self.audit_order("done", order, name, disks);
        let said = format!("order {order}: {} done: {}", name.as_str(), detail.text);
        self.event("step", said.trim_end_matches([':', ' ']));
        self.clear_error();
        self.record.run.agent_losses = 0;
        self.end_running_step();
        if name == StepName::Boot {
            self.os_starts();
        }
    }

    /// Takes what came of a step; an outcome of another step is a bug of the agent.
    fn take_outcome(&mut self, name: StepName, outcome: Outcome) -> Result<Detail, Problem> {
        let status = &mut self.record.host.status;
        match (name, outcome) {
            (StepName::Inspect, Outcome::Inspected { inventory }) => {
                let text = format!("{} disks", inventory.disks.len());
                self.record.run.disks.clone_from(&inventory.disks);
                self.record
                    .run
                    .system_uuid
                    .clone_from(&inventory.system.uuid);
                self.inventory = Some(inventory);
                Ok(Detail::text(text))
            }
            (StepName::Erase, Outcome::Erased { disks }) => {
                self.record.run.clean = true;
                status.image = None;
                let names: Vec<_> = disks.iter().map(|disk| disk.name.as_str()).collect();
                let bytes = disks
                    .iter()
                    .fold(0_u64, |all, disk| all.saturating_add(disk.bytes));
                Ok(Detail::moved(names.join(", "), bytes))
            }
            (StepName::WriteImage, Outcome::ImageWritten(written)) => {
                let detail = Detail::moved(written.disk.clone(), written.bytes_read);
                let deployment = self.record.run.deployment.as_ref();
                status.image = deployment.map(|deployment| deployment.image.clone());
                status.image_written = Some(written);
                Ok(detail)
            }
            (StepName::WriteConfigDrive, Outcome::ConfigDriveWritten { partition, bytes }) => {
                Ok(Detail::moved(partition, bytes))
            }
            (StepName::SetBootEntry, Outcome::BootEntrySet { detail }) => Ok(Detail::text(detail)),
            (StepName::Boot, Outcome::Booting { method, detail }) => {
                let text = match method {
                    BootMethod::Kexec => format!("kexec: {detail}"),
                    BootMethod::Reboot => format!("reboot: {detail}"),
                };
                let detail = Detail::text(text);
                status.booted_by = Some(detail.text.clone());
                Ok(detail)
            }
            (
                StepName::Rescue,
                Outcome::RescueReady {
                    addresses,
                    host_keys,
                },
            ) => {
                let text = addresses.join(", ");
                self.rescue_ready(addresses, host_keys);
                Ok(Detail::text(text))
            }
            (name, _) => Err(Problem::new(
                Code::Internal,
                format!(
                    "the agent ended {} with another step's outcome",
                    name.as_str()
                ),
                "report this; a ramdisk of the conductor's own version does not do it",
            )),
        }
    }

    /// The agent is on its way out; the rest is the daemon's.
    pub(super) fn os_starts(&mut self) {
        let now = self.now;
        if let Some(deployment) = &mut self.record.run.deployment {
            deployment.booting_at = Some(now);
        }
        // Its last poll may come again, should the answer be lost: the token stays good.
        if let Some(session) = &mut self.record.run.session {
            session.leaving = true;
        }
    }

    fn failed(&mut self, order: u64, problem: &Problem, limits: &Limits) {
        let Some(name) = self.is_out(order) else {
            return;
        };
        let Some(flow) = &mut self.record.run.workflow else {
            return;
        };
        let was_asked = flow.cancelling && problem.code == Code::StepCancelled;
        flow.go_back();
        self.audit_order("failed", order, name, json!({"code": problem.code}));
        self.end_running_step();
        if was_asked {
            self.event("step", format!("order {order}: {} stopped", name.as_str()));
            return;
        }
        let message = format!("{}: {}", name.as_str(), problem.message);
        let problem = Problem {
            code: problem.code,
            message: harmless(&message, TEXT_CHARS),
            advice: harmless(&problem.advice, TEXT_CHARS),
        };
        self.fail(problem, limits);
    }

    /// The daemon has its key.
    pub(crate) fn enrolled(&mut self, key_sha256: String) {
        if let Some(daemon) = &mut self.record.run.daemon {
            daemon.key_sha256 = Some(key_sha256);
        }
        self.event("daemon", "the host daemon enrolled");
    }

    /// The daemon's heartbeat.
    pub(crate) fn checked_in(&mut self, report: CheckIn) {
        if self.record.run.boot_before.as_ref() == Some(&report.boot_id) {
            // Said before an operation took that OS down; it only arrives now.
            return;
        }
        self.kept.credential = None;
        if let Some(daemon) = &mut self.record.run.daemon {
            daemon.used = true;
        }
        let before = self.record.host.status.daemon.take();
        let known = before.clone();
        let booted = before
            .as_ref()
            .filter(|status| status.boot_id == report.boot_id)
            .map_or(self.now - seconds(report.uptime_seconds), |s| s.booted_at);
        if before.is_none() {
            self.first_contact(booted, &report);
        } else if before.is_some_and(|status| status.boot_id != report.boot_id) {
            self.event("daemon", "the host was booted again");
        }
        self.cloud_init_ended(booted, &report);
        let ended = matches!(
            report.cloud_init.stage,
            CloudInitStage::Done | CloudInitStage::Failed
        );
        let mut status = DaemonStatus {
            seen_at: self.now,
            boot_id: report.boot_id,
            booted_at: booted,
            os: report.os,
            kernel: report.kernel,
            agent_version: report.agent_version,
            cloud_init: report.cloud_init,
        };
        if let Some(known) = known {
            // A check-in without news is no change: contacts are kept apart.
            let told_at = std::mem::replace(&mut status.seen_at, known.seen_at);
            if status != known {
                status.seen_at = told_at;
            }
        }
        self.record.host.status.daemon = Some(status);
        // In `provisioned` an error of cloud-init stays to be seen; before, it only took long.
        let late = self.record.state() == HostState::Provisioning && ended;
        self.clear_error_of(|code| code == Code::DaemonSilent || (late && code == Code::CloudInit));
    }

    /// `booted` is on our clock: the host's own may be wrong.
    fn first_contact(&mut self, booted: jiff::Timestamp, report: &CheckIn) {
        let now = self.now;
        self.drop_agent("the deployed OS runs");
        self.stages().close("boot", booted, None, None);
        self.stages().close("firmware", booted, None, None);
        self.stages()
            .past("os", booted, now, None, Some(report.kernel.clone()));
        self.stages().open("cloud-init", now);
        self.event("daemon", format!("first contact: {}", report.os));
    }

    fn cloud_init_ended(&mut self, booted: jiff::Timestamp, report: &CheckIn) {
        let ended = match report.cloud_init.stage {
            CloudInitStage::Done | CloudInitStage::Failed => self.now,
            CloudInitStage::Absent | CloudInitStage::Running => return,
        };
        // The host's clock may be off ours; the time since its kernel started is not.
        let after_boot = |at: jiff::Timestamp| {
            // Nor need they be times that can be added up.
            let since = at.duration_since(report.booted_at);
            booted.checked_add(since).unwrap_or(ended)
        };
        let ended = report
            .cloud_init
            .finished_at
            .map_or(ended, |at| after_boot(at).min(ended));
        let source = report.cloud_init.datasource.clone();
        self.stages().close("cloud-init", ended, None, source);
    }

    /// cloud-init's errors are for a person to see; the OS runs all the same.
    pub(super) fn note_cloud_init(&mut self) {
        let Some(daemon) = &self.record.host.status.daemon else {
            return;
        };
        if daemon.cloud_init.stage != CloudInitStage::Failed {
            return;
        }
        let errors = daemon.cloud_init.errors.join("; ");
        let problem = Problem::new(
            Code::CloudInit,
            format!("cloud-init ended with errors: {errors}"),
            "the OS runs; see /var/log/cloud-init.log on it, correct the user data and provision \
             again",
        );
        self.fail(problem, &Limits::default());
    }
}

/// What is said of a step that is done.
struct Detail {
    text: String,
    bytes: Option<u64>,
}

impl Detail {
    fn text(text: impl AsRef<str>) -> Self {
        Self {
            text: harmless(text.as_ref(), TEXT_CHARS),
            bytes: None,
        }
    }

    fn moved(text: impl AsRef<str>, bytes: u64) -> Self {
        Self {
            bytes: Some(bytes),
            ..Self::text(text)
        }
    }
}
