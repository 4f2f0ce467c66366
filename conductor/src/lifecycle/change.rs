//! How a host's record changes when something was done or heard. Pure: no effects, no clock.
//!
//! Each change is one transaction of the store, together with the lines it adds to the host's
//! log. Doing the same change twice leaves what doing it once leaves.

use std::time::Duration;

use ferrite_proto::api::HostEvent;
use ferrite_proto::host::{AgentStatus, HostError, HostState, Power, Run};
use ferrite_proto::image::ImageRef;
use ferrite_proto::inventory::Inventory;
use ferrite_proto::join::JoinBy;
use ferrite_proto::problem::{Class, Code, Problem};
use ferrite_proto::secret::Secret;
use ferrite_proto::step::RootDisk;
use jiff::Timestamp;
use serde_json::Value;

use super::record::{
    BootFlavour, BootPhase, DaemonAccess, Deployment, HelloFacts, Kept, Limits, RamdiskBoot,
    Record, Session,
};
use super::{Kind, StepName, Workflow, state, timeline};
use crate::actor::Actor;
use crate::crash::{self, Moment, Work};
use crate::guard::{self, Guard};
use crate::lifecycle::timeline::Stages;
use crate::store::{AuditEntry, Entries, Stored};

/// Failures of an action after which a host is let go of all the same.
const DELETE_ATTEMPTS: u32 = 3;

/// Longest pause before a cluster is tried again: whoever mends it does not want to wait.
const CLUSTER_PAUSE: Duration = Duration::from_secs(20);

/// A record in the course of being changed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Change {
    /// The host.
    pub(crate) record: Record,
    /// Its secrets.
    pub(crate) kept: Kept,
    /// Lines for its log.
    pub(crate) events: Vec<HostEvent>,
    /// Entries for the audit log.
    pub(crate) audit: Vec<AuditEntry>,
    /// A new inventory.
    pub(crate) inventory: Option<Box<Inventory>>,
    /// Runs that ended.
    pub(crate) runs: Vec<Run>,
    /// Who does it.
    pub(crate) actor: Actor,
    /// When this happens.
    pub(crate) now: Timestamp,
}

/// What was made for a boot of the ramdisk.
#[derive(Debug, Clone)]
pub(crate) struct NewTicket {
    /// The ticket.
    pub(crate) ticket: Secret<String>,
    /// Hex SHA-256 of it.
    pub(crate) sha256: String,
    /// What the ISO's URL carries.
    pub(crate) iso_token: Secret<String>,
}

impl Change {
    /// Nothing changed yet.
    pub(crate) const fn new(record: Record, kept: Kept, now: Timestamp) -> Self {
        Self {
            record,
            kept,
            events: Vec::new(),
            audit: Vec::new(),
            inventory: None,
            runs: Vec::new(),
            actor: Actor::Conductor,
            now,
        }
    }

    /// Whether there is nothing to store.
    pub(crate) fn is_unchanged(&self, before: &Stored) -> bool {
        self.record == before.record
            && self.kept == before.kept
            && self.events.is_empty()
            && self.audit.is_empty()
            && self.inventory.is_none()
            && self.runs.is_empty()
    }

    /// The host as it is to be stored, and what is written with it.
    pub(crate) fn into_parts(self) -> (Stored, Entries) {
        let host = Stored {
            record: self.record,
            kept: self.kept,
        };
        let with = Entries {
            events: self.events,
            audit: self.audit,
            inventory: self.inventory,
            runs: self.runs,
        };
        (host, with)
    }

    /// Adds an entry to the audit log; `detail` is an object, of which nothing is secret.
    pub(crate) fn audit(&mut self, action: &str, detail: Value) {
        let host = &self.record.host;
        let target = ("Host", host.name.as_str(), host.project.as_str());
        let entry = AuditEntry::of(&self.actor, self.now, action, target, detail);
        self.audit.push(entry);
    }

    /// Adds a line to the host's log.
    pub(crate) fn event(&mut self, kind: &str, text: impl Into<String>) {
        self.events.push(HostEvent {
            at: self.now,
            kind: kind.to_owned(),
            text: text.into(),
        });
    }

    /// The host's stages.
    pub(crate) fn stages(&mut self) -> Stages<'_> {
        Stages::new(&self.record.host.name, &mut self.record.run.doing)
    }

    /// Something is begun with the host: its stages are kept together from here on.
    pub(crate) fn begin_run(&mut self, kind: &str) {
        self.end_run("given up");
        let new = timeline::new_run(&self.record.host.name, kind, self.now);
        self.record.run.doing = Some(new);
    }

    /// What was being done with the host has come to this.
    pub(crate) fn end_run(&mut self, outcome: &str) {
        if let Some(mut run) = self.record.run.doing.take() {
            run.ended = Some(self.now);
            run.outcome = Some(outcome.to_owned());
            self.runs.push(run);
        }
    }

    /// A state at rest ends what was being done, another begins it.
    fn note_run(&mut self, to: HostState) {
        let kind = match to {
            HostState::Available | HostState::Provisioned | HostState::ExternallyProvisioned => {
                return self.end_run(to.as_str());
            }
            HostState::Registering | HostState::Inspecting | HostState::Preparing => "prepare",
            HostState::Provisioning => "deploy",
            HostState::Deprovisioning => "deprovision",
            HostState::Deleting => "delete",
        };
        let begins = matches!(to, HostState::Deprovisioning | HostState::Deleting);
        if begins || self.record.run.doing.is_none() {
            self.begin_run(kind);
        }
    }

    /// Enters a state.
    pub(crate) fn enter(&mut self, to: HostState) {
        let from = self.record.state();
        debug_assert!(state::is_edge(from, to), "{from} to {to}");
        self.event("state", format!("{from} → {to}"));
        self.note_run(to);
        let (status, run) = (&mut self.record.host.status, &mut self.record.run);
        status.state = to;
        status.since = self.now;
        status.error = None;
        status.waiting_for = None;
        status.step = None;
        status.observed_generation = self.record.host.generation;
        run.workflow = None;
        run.abort = None;
        self.forget_operation();
        match to {
            HostState::Deprovisioning if guard::stands(Guard::DaemonOfThePastIsMute) => {
                self.close_daemon_access();
            }
            HostState::Provisioned => self.note_cloud_init(),
            HostState::ExternallyProvisioned => {
                self.drop_agent("the host is somebody else's");
                self.record.run.clean = false;
            }
            HostState::Registering
            | HostState::Inspecting
            | HostState::Preparing
            | HostState::Available
            | HostState::Provisioning
            | HostState::Deprovisioning
            | HostState::Deleting => {}
        }
    }

    /// The OS that was there gets no word in any more.
    fn close_daemon_access(&mut self) {
        self.record.run.daemon = None;
        self.record.run.deployment = None;
        self.record.run.boot_before = None;
        self.record.host.status.daemon = None;
        self.record.host.status.booted_by = None;
        self.kept.credential = None;
    }

    /// Notes a problem: when it is tried again, or that a person is needed.
    pub(crate) fn fail(&mut self, problem: Problem, limits: &Limits) {
        let before = self.record.host.status.error.as_ref();
        let same = before.filter(|error| error.problem.code == problem.code);
        let mut attempts = same.map_or(0, |error| error.attempts).saturating_add(1);
        if problem.code == Code::AgentLost {
            // Each new hello ends the error; only a step that is done ends the count.
            self.record.run.agent_losses = self.record.run.agent_losses.saturating_add(1);
            attempts = self.record.run.agent_losses;
        }
        // Nobody waits for a host at rest, and letting go gives up by itself: both go on trying.
        let state = self.record.state();
        let at_rest = matches!(state, HostState::Available | HostState::Provisioned);
        let of_cluster = problem.code.concerns_joining();
        let goes_on = attempts < limits.max_attempts || at_rest || of_cluster;
        let retries = match problem.class() {
            Class::Retry => goes_on,
            Class::Operator | Class::Bug => state == HostState::Deleting,
        };
        let pause = backoff(limits, attempts);
        let pause = if of_cluster {
            pause.min(CLUSTER_PAUSE)
        } else {
            pause
        };
        let retry_at = retries.then(|| self.now + pause);
        self.event("error", format!("{problem} (attempt {attempts})"));
        self.consequences(problem.code, attempts);
        self.record.host.status.waiting_for = None;
        self.record.host.status.error = Some(HostError {
            problem,
            at: self.now,
            attempts,
            retry_at,
        });
    }

    fn consequences(&mut self, code: Code, attempts: u32) {
        match code {
            Code::AgentSilent | Code::BmcPowerStuck => {
                self.record.run.boot = None;
                self.stages().give_up("no hello");
            }
            Code::StepTimeout => self.drop_agent("step outlived its time limit"),
            code if code.ends_an_attempt_to_join() => {
                if let Some(joining) = &mut self.record.run.joining {
                    joining.failed = true;
                }
            }
            _ => {}
        }
        if self.record.state() == HostState::Deleting && attempts >= DELETE_ATTEMPTS {
            self.give_up_letting_go();
        }
    }

    /// A BMC that does not obey must not keep a host from being deleted.
    fn give_up_letting_go(&mut self) {
        if let Some(deletion) = &mut self.record.run.deletion {
            let what = if !deletion.powered_off {
                deletion.powered_off = true;
                "let go without the BMC's consent"
            } else if !deletion.released {
                deletion.released = true;
                "let go without the BMC's consent"
            } else {
                self.record.run.joining = None;
                "let go although its Node may still be in the cluster"
            };
            self.event("alarm", what);
        }
    }

    /// Forgets the problem: a person changed something, or it is over.
    pub(crate) fn clear_error(&mut self) {
        self.record.host.status.error = None;
        self.record.host.status.waiting_for = None;
    }

    pub(super) fn clear_error_of(&mut self, over: impl Fn(Code) -> bool) {
        let error = self.record.host.status.error.as_ref();
        if error.is_some_and(|error| over(error.problem.code)) {
            self.clear_error();
        }
    }

    /// The BMC did what was asked.
    pub(crate) fn bmc_obeyed(&mut self) {
        self.clear_error_of(|code| {
            matches!(
                code,
                Code::BmcUnreachable
                    | Code::BmcCredentialsRefused
                    | Code::BmcProtocol
                    | Code::BmcMediaRefused
                    | Code::BmcWrongMachine
            )
        });
    }

    /// The BMC told which machine it is.
    pub(crate) fn identified(&mut self, uuid: Option<&str>, power: Power, limits: &Limits) {
        let known = self.record.run.bmc_uuid.clone();
        if let (Some(known), Some(found)) = (&known, uuid)
            && !guard::holds(Guard::BmcOfTheSameMachine, known == found)
        {
            let text = format!("the BMC's system is {found}, and this host is {known}");
            let advice = "correct the BMC's address with `ferrite host set`, or delete the host \
                          and add it anew";
            self.fail(Problem::new(Code::BmcWrongMachine, text, advice), limits);
            return;
        }
        self.power_read(power);
        self.record.run.bmc_uuid = known.or_else(|| uuid.map(str::to_owned));
        self.record.run.registered = true;
        self.event(
            "bmc",
            format!("system {}, power {power:?}", uuid.unwrap_or("without UUID")),
        );
    }

    /// The BMC told whether the machine is on.
    pub(crate) fn power_read(&mut self, power: Power) {
        self.bmc_obeyed();
        let before = self.record.host.status.power.replace(power);
        self.record.run.power_at = Some(self.now);
        let boot = self.record.run.boot.as_ref();
        let to_boot = boot.is_some_and(|boot| boot.phase == BootPhase::OverrideSet);
        let came_on = before == Some(Power::Off) && power == Power::On;
        if to_boot && came_on && guard::stands(Guard::LostAnswerIsNoSecondBoot) {
            // The request took effect, and its answer was lost or we ended before it was noted. To
            // reset the machine would be a second boot.
            self.power_asked(self.now);
        }
    }

    /// A ticket was made: a boot of the ramdisk begins, and any agent of before is given up.
    pub(crate) fn armed(&mut self, new: NewTicket, limits: &Limits) {
        self.drop_agent("the ramdisk is booted anew");
        self.kept.ticket = Some(new.ticket);
        self.kept.iso_token = Some(new.iso_token);
        // Media, override and power come before the clock of `boot` starts.
        let slack = Duration::from_mins(10);
        self.record.run.boot = Some(RamdiskBoot {
            ticket_sha256: new.sha256,
            armed_at: self.now,
            expires_at: self.now + limits.boot + slack,
            phase: BootPhase::Armed,
            flavour: self.record.wanted_flavour(),
            used: false,
            seen: None,
        });
        self.stages().give_up("begun anew");
    }

    /// The boot of the ramdisk is one phase further.
    pub(crate) fn boot_phase(&mut self, phase: BootPhase) {
        self.bmc_obeyed();
        if let Some(boot) = &mut self.record.run.boot {
            boot.phase = phase;
        }
    }

    /// The BMC took the request for power; `asked` is when it was sent.
    pub(crate) fn power_asked(&mut self, asked: Timestamp) {
        self.boot_phase(BootPhase::PowerAsked { at: self.now });
        let now = self.now;
        self.record.run.power_asked_at = Some(now);
        self.started_from_disk();
        self.stages().past("power-on", asked, now, None, None);
        self.stages().open("firmware", now);
        self.event("power", "the BMC took the request to switch on");
    }

    /// The first sign of the machine on the network, or of its ISO being read.
    pub(crate) fn boot_seen(&mut self, at: Timestamp, what: &str) {
        let Some(boot) = &mut self.record.run.boot else {
            return;
        };
        boot.seen = Some(format!("{what} at {}", at.strftime("%H:%M:%S UTC")));
        if self.stages().close("firmware", at, None, None) {
            self.stages().open("netboot", at);
        }
    }

    /// A ramdisk said hello and was let in.
    pub(crate) fn hello(&mut self, facts: HelloFacts, token: Secret<String>) {
        let kernel_start = self.now - seconds(facts.uptime_seconds);
        let now = self.now;
        timeline::ramdisk_came(
            &mut self.stages(),
            kernel_start,
            now,
            facts.netboot_bytes,
            &facts.kernel,
        );
        self.interrupt_order();
        if self.record.operation().is_some() {
            self.forget_daemon();
        }
        let run = &mut self.record.run;
        let mut flavour = BootFlavour::default();
        if let Some(boot) = &mut run.boot {
            boot.used = true;
            flavour = boot.flavour;
        }
        run.session = Some(Session {
            ticket_sha256: facts.ticket_sha256,
            nonce: facts.nonce,
            token_sha256: facts.token_sha256,
            hello_at: self.now,
            polled: false,
            leaving: false,
            last_sequence: 0,
            flavour,
        });
        self.kept.agent_token = Some(token);
        self.record.host.status.power = Some(Power::On);
        self.record.host.status.agent = Some(AgentStatus {
            version: facts.version,
            kernel: facts.kernel,
            hello_at: self.now,
            kernel_to_hello_seconds: facts.uptime_seconds,
            seen_at: self.now,
            memory_bytes: facts.memory_bytes,
        });
        self.clear_error_of(|code| matches!(code, Code::AgentSilent | Code::AgentLost));
        // Whatever the BMC did not say meanwhile, the host is on.
        self.bmc_obeyed();
        self.event("agent", "the ramdisk said hello");
    }

    /// The agent polled, and its reports are taken. An order that is being called off and that it
    /// has not taken by now never reached it.
    pub(crate) fn polled(&mut self) {
        let flow = self.record.run.workflow.as_mut();
        if let Some(flow) = flow.filter(|flow| flow.cancelling && flow.to_hand_out().is_some()) {
            flow.go_back();
            self.end_running_step();
            self.event("step", "the order is withdrawn before it was taken");
        }
        self.kept.agent_token = None;
        self.kept.ticket = None;
        if let Some(session) = &mut self.record.run.session {
            session.polled = true;
        }
        self.clear_error_of(|code| code == Code::AgentLost);
        if self.step_is_out() {
            // The BMC was only asked because the agent had fallen silent.
            self.bmc_obeyed();
        }
    }

    fn step_is_out(&self) -> bool {
        let flow = self.record.run.workflow.as_ref();
        flow.is_some_and(|flow| flow.outstanding().is_some())
    }

    /// The agent is given up: what it was at is cut off.
    pub(crate) fn drop_agent(&mut self, why: &str) {
        self.interrupt_order();
        self.kept.agent_token = None;
        self.record.run.boot = None;
        self.kept.iso_token = None;
        self.kept.ticket = None;
        self.record.host.status.agent = None;
        if self.record.run.session.take().is_some() {
            self.event("agent", format!("the agent is given up: {why}"));
        }
    }

    fn interrupt_order(&mut self) {
        let flow = self.record.run.workflow.as_mut();
        let Some(flow) = flow.filter(|flow| flow.outstanding().is_some()) else {
            return;
        };
        if guard::stands(Guard::CutOffIsOrderedAnew) {
            flow.go_back();
        }
        self.end_running_step();
    }

    pub(super) fn end_running_step(&mut self) {
        self.record.host.status.step = None;
        self.record.host.status.waiting_for = None;
    }

    /// The deployment that is wanted begins.
    pub(crate) fn open_deployment(
        &mut self,
        kept: Option<ImageRef>,
        credential: Secret<String>,
        sha256: String,
    ) {
        let spec = &self.record.host.spec;
        let Some(image) = spec.image.clone() else {
            return;
        };
        let deployment = Deployment {
            request: self.record.run.request,
            image,
            kept,
            root: RootDisk {
                hints: spec.root_device_hints.clone(),
                default: spec.root_device_default,
            },
            method: spec.boot_method,
            verify: spec.verify_image,
            booting_at: None,
        };
        self.event("step", format!("deploying {}", deployment.image.url));
        self.close_daemon_access();
        self.kept.credential = Some(credential);
        self.record.run.deployment = Some(deployment);
        self.record.run.workflow = None;
        self.end_running_step();
        self.record.host.status.observed_generation = self.record.host.generation;
        self.record.run.daemon = Some(DaemonAccess {
            credential_sha256: sha256,
            key_sha256: None,
            used: false,
        });
    }

    /// The image is written again after an OS came up from it: a write that was cut off was further
    /// than it had told. That OS goes, and its word with it.
    pub(crate) fn renew_credential(&mut self, credential: Secret<String>, sha256: String) {
        self.record.host.status.daemon = None;
        self.kept.credential = Some(credential);
        self.record.run.daemon = Some(DaemonAccess {
            credential_sha256: sha256,
            key_sha256: None,
            used: false,
        });
        self.event(
            "step",
            "another credential for the daemon: the first was used",
        );
    }

    /// The steps of the state begin.
    pub(crate) fn begin_steps(&mut self, kind: Kind) {
        let mut steps = self.record.run.chosen.clone();
        let join = self.record.host.spec.join.as_ref();
        let join = join.filter(|_| kind == Kind::Deploy);
        let on_drive = join.is_some_and(|join| join.by == JoinBy::CloudInit);
        steps.extend(join.map(|_| StepName::CheckCluster));
        for step in kind.steps() {
            let mints = on_drive && *step == StepName::WriteConfigDrive;
            steps.extend(mints.then_some(StepName::MintToken));
            steps.push(*step);
        }
        steps.extend(join.map(|_| StepName::Join));
        self.record.run.workflow = Some(Workflow::of(kind, &steps));
    }

    /// The current step gets an order, which has a number that never was.
    pub(crate) fn order(&mut self, name: StepName) {
        let now = self.now;
        if guard::stands(Guard::OrderNumberIsNew) {
            self.record.run.last_order += 1;
        }
        let number = self.record.run.last_order;
        if let Some(flow) = &mut self.record.run.workflow {
            flow.order(number, now);
        }
        match name {
            // From here on the disk may hold anything.
            StepName::WriteImage => {
                if guard::stands(Guard::WrittenIsNotClean) {
                    self.record.run.clean = false;
                }
                if guard::stands(Guard::HalfWrittenIsNotShown) {
                    self.record.host.status.image = None;
                }
            }
            StepName::Erase => self.record.host.status.image = None,
            StepName::Inspect
            | StepName::WriteConfigDrive
            | StepName::SetBootEntry
            | StepName::ReleaseBoot
            | StepName::Boot
            | StepName::AwaitOs
            | StepName::Rescue
            | StepName::CheckCluster
            | StepName::MintToken
            | StepName::Join => {}
        }
        self.record.host.status.step = Some(ferrite_proto::host::RunningStep {
            order: number,
            name: name.as_str().to_owned(),
            started: now,
            progress: ferrite_proto::step::Progress::default(),
        });
        self.event("step", format!("order {number}: {}", name.as_str()));
        let image = self.record.host.spec.image.as_ref().map(|image| &image.url);
        let image = serde_json::json!({"image": image.filter(|_| name == StepName::WriteImage)});
        self.audit_order("order", number, name, image);
    }

    /// The order that is out shall be stopped.
    pub(crate) fn cancel(&mut self) {
        if let Some(flow) = &mut self.record.run.workflow {
            flow.cancelling = true;
        }
    }

    /// The virtual drive is empty and the boot override clear.
    pub(crate) fn released(&mut self) {
        self.bmc_obeyed();
        if let Some(deletion) = &mut self.record.run.deletion {
            deletion.released = true;
        }
        self.own_step_done(StepName::ReleaseBoot);
    }

    /// The machine was switched off to let it go.
    pub(crate) fn powered_off(&mut self) {
        self.power_read(Power::Off);
        if let Some(deletion) = &mut self.record.run.deletion {
            deletion.powered_off = true;
        }
        self.drop_agent("the host is switched off");
    }

    /// The last step of a deployment is done.
    pub(crate) fn os_is_up(&mut self) {
        self.own_step_done(StepName::AwaitOs);
    }

    pub(super) fn own_step_done(&mut self, name: StepName) {
        let now = self.now;
        if let Some(flow) = &mut self.record.run.workflow
            && flow.current().is_some_and(|step| step.name == name)
        {
            flow.done(now);
        }
    }

    /// A person, or the passing of time, has it tried again at once.
    pub(crate) fn retry(&mut self) {
        self.clear_error();
        self.record.run.agent_losses = 0;
        self.record.run.abort = None;
        let now = self.now;
        if let Some(deployment) = &mut self.record.run.deployment
            && deployment.booting_at.is_some()
        {
            deployment.booting_at = Some(now);
        }
        self.event("request", "retry");
        crash::point(Work::Retry, Moment::Before);
    }
}

/// The pause before the next attempt: doubled each time, up to the longest.
pub(crate) fn backoff(limits: &Limits, attempts: u32) -> Duration {
    let factor = 2_u32.saturating_pow(attempts.saturating_sub(1).min(16));
    limits
        .retry_first
        .saturating_mul(factor)
        .min(limits.retry_max)
}

/// Seconds from outside, made harmless.
pub(crate) fn seconds(value: f64) -> Duration {
    const DAYS_100: f64 = 8_640_000.0;
    Duration::try_from_secs_f64(value.clamp(0.0, DAYS_100)).unwrap_or_default()
}
