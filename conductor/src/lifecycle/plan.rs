//! What to do next with a host: a pure function of what is stored, what is seen, and the time.
//!
//! No effects, no clock, no randomness. Whatever is decided here is stored before it is acted on,
//! and acting on the same decision twice does no harm.

use std::time::Duration;

use ferrite_proto::host::{BootVia, HostState, Power};
use ferrite_proto::join::JoinPhase;
use ferrite_proto::operation::Work;
use ferrite_proto::problem::{Code, Problem};
use jiff::Timestamp;

use super::image::Wanted;
use super::joining::JoinAction;
use super::record::{BootPhase, Deployment, Observed, RamdiskBoot, Record, Session};
use super::{Kind, Place, StepName, StepRun, StepState, Workflow};
use crate::guard::{self, Guard};

/// How often power is read while it is expected to change.
const POWER_POLL: Duration = Duration::from_secs(2);

/// How often it is looked whether an image is there.
const IMAGE_POLL: Duration = Duration::from_secs(3);

/// Silence in the middle of a step after which the BMC is asked whether the host still has power:
/// an agent at work reports every second or two.
const DOUBT: Duration = Duration::from_secs(15);

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Nothing, until something happens or `until` has come.
    Wait {
        /// What people read: "waits for …".
        reason: String,
        /// When to look again at the latest.
        until: Option<Timestamp>,
    },
    /// Enter another state.
    Go(HostState),
    /// Act.
    Do(Action),
    /// Note a problem; its class decides what becomes of it.
    Fail(Problem),
}

/// What can be done. Each may be done again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Ask the BMC which machine it is, and whether it is on.
    Identify,
    /// Ask the BMC whether the machine is on.
    ReadPower,
    /// Make a ticket; any agent of before is given up.
    Arm,
    /// Put the ISO into the virtual drive.
    InsertMedia,
    /// Tell the firmware to boot the ramdisk, once.
    SetBootOnce,
    /// Switch on.
    PowerOn,
    /// Reset.
    ForceRestart,
    /// Switch off.
    PowerOff,
    /// Empty the virtual drive, clear the boot override.
    ReleaseBoot,
    /// Take the deployment from `spec` and make the daemon's credential.
    OpenDeployment,
    /// Begin the steps of the present state.
    BeginSteps(Kind),
    /// Make an order of the current step.
    Order(StepName),
    /// Have the order that is out stopped.
    Cancel,
    /// Give up an agent that went away while nothing was asked of it.
    ForgetAgent,
    /// The OS is up: the last step of the deployment is done.
    OsIsUp,
    /// Ask for the host's turn among those of its group.
    Admit(Work),
    /// Let others have the turn: the host waits for a person.
    Yield,
    /// Put a destructive step before people, to be approved.
    Propose(StepName),
    /// What was aborted comes to rest.
    Rest,
    /// The operation is over.
    EndOperation,
    /// Something at its cluster.
    Join(JoinAction),
    /// Forget the host.
    Remove,
}

/// The agent of the ramdisk, as seen from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Agent {
    Absent,
    InTouch { silent_at: Timestamp },
    Silent,
}

/// What to do next with the host.
pub(crate) fn plan(record: &Record, seen: &Observed<'_>, now: Timestamp) -> Decision {
    let view = View { record, seen, now };
    view.gate(view.decide())
}

pub(super) fn wait(reason: impl Into<String>, until: Option<Timestamp>) -> Decision {
    Decision::Wait {
        reason: reason.into(),
        until,
    }
}

/// A time as people read it in a sentence.
pub(super) fn clock(at: Timestamp) -> String {
    at.strftime("%H:%M:%S UTC").to_string()
}

/// A host as it is looked at.
pub(super) struct View<'a> {
    pub(super) record: &'a Record,
    pub(super) seen: &'a Observed<'a>,
    pub(super) now: Timestamp,
}

impl View<'_> {
    /// What the host itself asks for, whatever holds it.
    fn decide(&self) -> Decision {
        if self.record.run.deletion.is_some() && self.record.state() != HostState::Deleting {
            return Decision::Go(HostState::Deleting);
        }
        if let Some(decision) = self.aborting() {
            return decision;
        }
        if let Some(revoke) = self.spent_token() {
            return revoke;
        }
        if let Some(wait) = self.held_by_error() {
            return wait;
        }
        match self.record.state() {
            HostState::Registering => self.registering(),
            HostState::Inspecting => self.inspecting(),
            HostState::Preparing => self.preparing(),
            HostState::Available => self.available(),
            HostState::Provisioning => self.provisioning(),
            HostState::Provisioned => self.provisioned(),
            HostState::Deprovisioning => self.deprovisioning(),
            HostState::ExternallyProvisioned => self.externally_provisioned(),
            HostState::Deleting => self.deleting(),
        }
    }

    fn held_by_error(&self) -> Option<Decision> {
        let error = self.record.host.status.error.as_ref()?;
        let what = &error.problem;
        match error.retry_at {
            Some(at) if at <= self.now => None,
            // The clock was set back: such a pause was never made.
            Some(at) if at > self.now + self.seen.limits.retry_max => None,
            Some(at) => Some(wait(
                format!(
                    "the next attempt at {} (attempt {} failed: {what})",
                    clock(at),
                    error.attempts
                ),
                Some(at),
            )),
            None => Some(wait(format!("a person: {what}"), None)),
        }
    }

    pub(super) fn agent(&self) -> Agent {
        let session = self.record.run.session.as_ref();
        let Some(session) = session.filter(|session| !session.leaving) else {
            return Agent::Absent;
        };
        let silence = self.seen.limits.agent_silence;
        let silent_at = self.agent_heard(session).saturating_add(silence);
        let silent_at = silent_at.unwrap_or(Timestamp::MIN);
        let in_touch = silent_at > self.now && !self.lost_power(session);
        if in_touch && guard::stands(Guard::AgentInTouchIsKept) {
            Agent::InTouch { silent_at }
        } else {
            Agent::Silent
        }
    }

    fn agent_heard(&self, session: &Session) -> Timestamp {
        let heard = self.past(self.seen.agent_seen);
        heard
            .max(self.past(Some(session.hello_at)))
            .unwrap_or(Timestamp::MIN)
    }

    /// A time that is yet to come was noted before the clock was set back, and tells nothing.
    pub(super) fn past(&self, at: Option<Timestamp>) -> Option<Timestamp> {
        at.filter(|at| *at <= self.now)
    }

    /// From when a limit counts: time in which the clock was set does not.
    pub(super) fn counted(&self, at: Timestamp) -> Timestamp {
        self.seen.steady_since.map_or(at, |steady| at.max(steady))
    }

    /// When the power was last read.
    pub(super) fn power_read_at(&self) -> Option<Timestamp> {
        self.past(self.record.run.power_at)
    }

    /// Whether the host was found switched off after its agent was last heard.
    fn lost_power(&self, session: &Session) -> bool {
        let heard = self.agent_heard(session);
        let read = self.power_read_at();
        self.record.power() == Some(Power::Off) && read.is_some_and(|at| at > heard)
    }

    /// A reading of power when an agent at work has fallen silent, else when it would be due.
    fn doubted(&self, step: StepRun) -> Result<Decision, Option<Timestamp>> {
        let session = self.record.run.session.as_ref();
        let (Some(session), StepState::Accepted { .. }) = (session, step.state) else {
            return Err(None);
        };
        let heard = self.agent_heard(session);
        let read = self.power_read_at().unwrap_or(heard);
        let due = heard.max(read).saturating_add(DOUBT).unwrap_or(self.now);
        if due <= self.now {
            Ok(Decision::Do(Action::ReadPower))
        } else {
            Err(Some(due))
        }
    }

    fn registering(&self) -> Decision {
        match (
            self.record.run.registered,
            self.record.host.spec.externally_provisioned,
        ) {
            (false, _) => Decision::Do(Action::Identify),
            (true, false) => Decision::Go(HostState::Inspecting),
            (true, true) => Decision::Go(HostState::ExternallyProvisioned),
        }
    }

    fn inspecting(&self) -> Decision {
        self.steps(Kind::Inspect)
            .unwrap_or(Decision::Go(HostState::Preparing))
    }

    fn preparing(&self) -> Decision {
        if self.record.run.clean || self.cleaning_disabled() {
            return Decision::Go(HostState::Available);
        }
        self.steps(Kind::Clean)
            .unwrap_or(Decision::Go(HostState::Available))
    }

    fn cleaning_disabled(&self) -> bool {
        use ferrite_proto::host::AutomatedCleaning::{Disabled, Metadata};
        let spec = &self.record.host.spec;
        match spec.automated_cleaning {
            // Whoever is retired leaves nothing behind.
            Disabled => spec.retired.is_none(),
            Metadata => false,
        }
    }

    fn available(&self) -> Decision {
        let spec = &self.record.host.spec;
        if let Some(operation) = self.record.operation() {
            return self.operation(operation);
        }
        if spec.externally_provisioned {
            return Decision::Go(HostState::ExternallyProvisioned);
        }
        if spec.image.is_some() && spec.retired.is_none() {
            return Decision::Go(HostState::Provisioning);
        }
        let reason = match &spec.retired {
            Some(retired) => format!("nothing: it is retired ({})", retired.reason),
            None => "an image to be set".to_owned(),
        };
        let until = match self.agent() {
            Agent::Silent => return Decision::Do(Action::ForgetAgent),
            Agent::InTouch { silent_at } => Some(silent_at),
            Agent::Absent => None,
        };
        self.stale_power()
            .unwrap_or_else(|at| wait(reason, Some(until.unwrap_or(at).min(at))))
    }

    fn externally_provisioned(&self) -> Decision {
        if !self.record.host.spec.externally_provisioned {
            return Decision::Go(HostState::Inspecting);
        }
        self.stale_power()
            .unwrap_or_else(|at| wait("nothing: somebody else provisioned it", Some(at)))
    }

    fn provisioning(&self) -> Decision {
        if self.record.host.spec.image.is_none() {
            return self.leave(HostState::Deprovisioning);
        }
        if !self.record.deployed_as_wanted() {
            return self.call_off().unwrap_or_else(|| self.open_deployment());
        }
        self.steps(Kind::Deploy)
            .unwrap_or(Decision::Go(HostState::Provisioned))
    }

    fn open_deployment(&self) -> Decision {
        match &self.seen.image {
            Wanted::NotYet(reason) => wait(reason, Some(self.now + IMAGE_POLL)),
            Wanted::AsItIs | Wanted::Kept(_) => Decision::Do(Action::OpenDeployment),
        }
    }

    fn provisioned(&self) -> Decision {
        if !self.record.deployed_as_wanted() {
            return self.leave(HostState::Deprovisioning);
        }
        if let Some(operation) = self.record.operation() {
            return self.operation(operation);
        }
        let heard = self.daemon_heard();
        let silent_at = heard + self.seen.limits.daemon_silence;
        if silent_at <= self.now {
            return Decision::Fail(Problem::new(
                Code::DaemonSilent,
                format!("the host daemon was last heard at {}", clock(heard)),
                "look at the host's console and network; this clears by itself when it is back",
            ));
        }
        let look_at = match self.awaits_cni() {
            Ok(look) => return look,
            Err(next) => next.unwrap_or(silent_at),
        };
        let reason = match self.record.host.status.join.as_ref() {
            Some(join) if join.phase == JoinPhase::WaitingForCni => {
                "nothing of its own: it has joined, and the cluster has no CNI yet"
            }
            Some(_) | None => "nothing: it runs",
        };
        self.stale_power()
            .unwrap_or_else(|at| wait(reason, Some(at.min(silent_at).min(look_at))))
    }

    fn daemon_heard(&self) -> Timestamp {
        let stored = self.record.host.status.daemon.as_ref().map(|d| d.seen_at);
        let since = self.record.host.status.since;
        stored
            .max(self.seen.daemon_seen)
            .unwrap_or(since)
            .max(since)
    }

    fn deprovisioning(&self) -> Decision {
        // What was a worker is one no longer before it is anything else.
        let next = || {
            self.forget_node()
                .unwrap_or(Decision::Go(HostState::Preparing))
        };
        if guard::holds(Guard::WipedBeforeItsNodeGoes, self.record.run.clean) {
            return next();
        }
        if let Some(drain) = self.drain() {
            return drain;
        }
        if self.cleaning_disabled() {
            // The OS must not go on running, though its disk is kept.
            return self.ramdisk().unwrap_or_else(next);
        }
        self.steps(Kind::Clean).unwrap_or_else(next)
    }

    fn deleting(&self) -> Decision {
        let Some(deletion) = &self.record.run.deletion else {
            return Decision::Do(Action::Remove);
        };
        let spec = &self.record.host.spec;
        let never_ours = spec.detached || spec.externally_provisioned;
        // A BMC that never answered has nothing to be let go of.
        if never_ours || self.record.run.power_at.is_none() {
            return Decision::Do(Action::Remove);
        }
        // An address that was changed may lead to somebody else's machine.
        let identified = guard::holds(Guard::IdentifiedBeforeSwitched, self.record.run.registered);
        if !(identified || (deletion.powered_off && deletion.released)) {
            return Decision::Do(Action::Identify);
        }
        if !guard::holds(Guard::OffBeforeForgotten, deletion.powered_off) {
            return Decision::Do(Action::PowerOff);
        }
        if !guard::holds(Guard::ReleasedBeforeForgotten, deletion.released) {
            return Decision::Do(Action::ReleaseBoot);
        }
        self.forget_node().unwrap_or(Decision::Do(Action::Remove))
    }

    /// Leaves the state once nothing is under way at the agent.
    fn leave(&self, next: HostState) -> Decision {
        self.call_off().unwrap_or(Decision::Go(next))
    }

    /// What it takes to have the order that is out stopped; `None` once none is.
    pub(super) fn call_off(&self) -> Option<Decision> {
        let Agent::InTouch { silent_at } = self.agent() else {
            return None;
        };
        if !guard::stands(Guard::StoppedBeforeAnotherBegins) {
            return None;
        }
        let flow = self.record.run.workflow.as_ref()?;
        let (_, step) = flow.outstanding()?;
        if flow.cancelling {
            let reason = format!("the agent to stop {}", step.as_str());
            Some(wait(reason, Some(silent_at)))
        } else {
            Some(Decision::Do(Action::Cancel))
        }
    }

    /// What it takes to go through the steps; `None` once all are done.
    pub(super) fn steps(&self, kind: Kind) -> Option<Decision> {
        let flow = self.record.run.workflow.as_ref();
        let Some(flow) = flow.filter(|flow| flow.kind == kind) else {
            return Some(Decision::Do(Action::BeginSteps(kind)));
        };
        let step = flow.current()?;
        if let Some(first) = self.before_step(flow, step) {
            return Some(first);
        }
        Some(match step.name.place() {
            Place::Agent => self
                .ramdisk()
                .unwrap_or_else(|| self.agent_step(flow, step)),
            Place::Conductor => self.own_step(step.name),
        })
    }

    fn agent_step(&self, flow: &Workflow, step: StepRun) -> Decision {
        let (at, taken) = match step.state {
            StepState::Pending | StepState::Done { .. } => {
                return Decision::Do(Action::Order(step.name));
            }
            StepState::Ordered { at, .. } => (at, false),
            StepState::Accepted { at, .. } => (at, true),
        };
        let due = self.counted(at) + self.seen.limits.step;
        let name = step.name.as_str();
        if due <= self.now {
            return Decision::Fail(Problem::new(
                Code::StepTimeout,
                format!("{name} has not ended within {:?}", self.seen.limits.step),
                "the ramdisk is booted again and the step repeated; `ferrite host timeline` tells \
                 how long each step took",
            ));
        }
        let reason = match (flow.cancelling, taken) {
            (true, _) => format!("the agent to stop {name}"),
            (false, true) => format!("the agent to end {name}, until {}", clock(due)),
            (false, false) => format!("the agent to take {name}, until {}", clock(due)),
        };
        let doubt_at = match self.doubted(step) {
            Ok(read) => return read,
            Err(at) => at.unwrap_or(due),
        };
        let until = match self.agent() {
            Agent::InTouch { silent_at } => due.min(silent_at),
            Agent::Absent | Agent::Silent => due,
        };
        wait(reason, Some(until.min(doubt_at)))
    }

    fn own_step(&self, name: StepName) -> Decision {
        let identified = guard::holds(Guard::IdentifiedBeforeSwitched, self.record.run.registered);
        if name == StepName::ReleaseBoot {
            return Decision::Do(if identified {
                Action::ReleaseBoot
            } else {
                Action::Identify
            });
        }
        match name {
            StepName::CheckCluster => Decision::Do(Action::Join(JoinAction::Check)),
            StepName::MintToken => Decision::Do(Action::Join(JoinAction::Mint)),
            StepName::Join => self.join(),
            _ => self.await_os(),
        }
    }

    /// The agent has said that it starts the OS; now the daemon has the word.
    fn await_os(&self) -> Decision {
        use ferrite_proto::agent_api::CloudInitStage::{Absent, Done, Failed, Running};
        let booting = self.record.run.deployment.as_ref();
        let since = booting
            .and_then(|d: &Deployment| d.booting_at)
            .unwrap_or(self.record.host.status.since);
        // The clock was set back: nobody knows for how long it has been waited.
        let due = self.past(Some(since));
        let due = due.map_or(self.now, |since| {
            self.counted(since) + self.seen.limits.daemon
        });
        let daemon = self.record.host.status.daemon.as_ref();
        let (waits_for, code) = match daemon.map(|daemon| daemon.cloud_init.stage) {
            Some(Done | Failed) => return Decision::Do(Action::OsIsUp),
            Some(Running | Absent) => ("cloud-init to end", Code::CloudInit),
            None => ("the host daemon's first contact", Code::DaemonSilent),
        };
        if due > self.now {
            return self.while_os_starts(waits_for, due);
        }
        Decision::Fail(Problem::new(
            code,
            format!(
                "waited for {waits_for} since {} for {:?}",
                clock(since),
                self.seen.limits.daemon
            ),
            "look at the host's console; `ferrite host retry` waits once more, `ferrite host \
             provision` writes the disk anew, `ferrite host deprovision` takes the host back",
        ))
    }

    /// A machine that lost power on its way into the OS is switched on again: it has all it needs.
    fn while_os_starts(&self, waits_for: &str, due: Timestamp) -> Decision {
        let asked = self.past(self.record.run.power_asked_at);
        let lately = asked.filter(|at| *at + self.seen.limits.power_interval > self.now);
        match (self.stale_power(), self.record.power(), lately) {
            (Ok(read), _, _) => read,
            (Err(_), Some(Power::Off), None) => Decision::Do(Action::PowerOn),
            (Err(next), Some(Power::On | Power::Off) | None, _) => {
                let reason = format!("{waits_for}, until {}", clock(due));
                wait(reason, Some(due.min(next)))
            }
        }
    }

    /// What it takes to have an agent in touch; `None` once there is one.
    pub(super) fn ramdisk(&self) -> Option<Decision> {
        match self.agent() {
            Agent::InTouch { .. } if self.is_of_another_ramdisk() => {
                Some(Decision::Do(Action::Arm))
            }
            Agent::InTouch { .. } => None,
            Agent::Absent => Some(self.boot()),
            Agent::Silent => Some(self.lost_agent()),
        }
    }

    /// An agent that was lost is waited for until the first retry: it may come back, and a
    /// machine that is not reset loses no time.
    fn lost_agent(&self) -> Decision {
        let noted = self.record.host.status.error.as_ref();
        if noted.is_some_and(|error| error.problem.code == Code::AgentLost) {
            return Decision::Do(Action::Arm);
        }
        let flow = self.record.run.workflow.as_ref();
        match flow.and_then(Workflow::outstanding) {
            None => Decision::Do(Action::Arm),
            Some((order, step)) => {
                let what = match self.record.run.session.as_ref() {
                    Some(session) if self.lost_power(session) => "the host is off".to_owned(),
                    Some(_) | None => {
                        let limit = self.seen.limits.agent_silence;
                        format!("the agent has been silent for {limit:?}")
                    }
                };
                Decision::Fail(Problem::new(
                    Code::AgentLost,
                    format!("{what} in the middle of {} (order {order})", step.as_str()),
                    "the ramdisk is booted again and the step repeated; if it goes on, look at \
                     the host's power and network",
                ))
            }
        }
    }

    /// One firmware boot into the ramdisk, phase by phase.
    fn boot(&self) -> Decision {
        if !guard::holds(Guard::IdentifiedBeforeSwitched, self.record.run.registered) {
            return Decision::Do(Action::Identify);
        }
        let known = |boot: &RamdiskBoot| boot.armed_at <= self.now;
        let fresh = |boot: &&RamdiskBoot| !boot.used && known(boot) && !self.too_old(boot);
        let Some(boot) = self.record.run.boot.as_ref().filter(fresh) else {
            return Decision::Do(Action::Arm);
        };
        match (boot.phase, self.record.host.spec.boot_via) {
            (BootPhase::Armed, BootVia::VirtualMedia) => Decision::Do(Action::InsertMedia),
            (BootPhase::Armed, BootVia::Pxe) | (BootPhase::MediaIn, _) => {
                Decision::Do(Action::SetBootOnce)
            }
            (BootPhase::OverrideSet, _) => self.switch_on(boot),
            (BootPhase::PowerAsked { at }, _) => self.await_hello(boot, at),
        }
    }

    /// A ticket that would end while the machine boots: the BMC kept us waiting, or a person did.
    fn too_old(&self, boot: &RamdiskBoot) -> bool {
        let asked = matches!(boot.phase, BootPhase::PowerAsked { .. });
        !asked && boot.expires_at < self.now + self.seen.limits.boot
    }

    fn switch_on(&self, boot: &RamdiskBoot) -> Decision {
        let is_fresh = |at: &Timestamp| guard::holds(Guard::PowerReadFresh, *at > boot.armed_at);
        let fresh = self.power_read_at().filter(is_fresh);
        match (fresh, self.record.power()) {
            (None, _) | (Some(_), None) => Decision::Do(Action::ReadPower),
            (Some(_), Some(Power::Off)) => Decision::Do(Action::PowerOn),
            (Some(_), Some(Power::On)) => Decision::Do(Action::ForceRestart),
        }
    }

    fn await_hello(&self, boot: &RamdiskBoot, asked: Timestamp) -> Decision {
        let read = self.power_read_at().filter(|at| *at >= asked);
        let is_on = read.is_some() && self.record.power() == Some(Power::On);
        if !is_on {
            return self.await_power(asked);
        }
        let due = self.counted(asked) + self.seen.limits.boot;
        if due > self.now {
            let reason = format!("the ramdisk to say hello, until {}", clock(due));
            // A machine that lost its power will not say hello: better to know before `due`.
            return self
                .stale_power()
                .unwrap_or_else(|next| wait(reason, Some(due.min(next))));
        }
        let saw = boot.seen.as_deref().unwrap_or("nothing");
        Decision::Fail(Problem::new(
            Code::AgentSilent,
            format!(
                "no hello from the ramdisk within {:?}; seen of its boot: {saw}",
                self.seen.limits.boot
            ),
            "the host is reset and the ramdisk booted again; look at its console, at the boot \
             NIC's MAC and cabling, and at its boot mode",
        ))
    }

    fn await_power(&self, asked: Timestamp) -> Decision {
        if self.counted(asked) + self.seen.limits.power <= self.now {
            return Decision::Fail(Problem::new(
                Code::BmcPowerStuck,
                format!(
                    "the BMC took the request for power at {}, and the host is still off",
                    clock(asked)
                ),
                "look at the BMC's own log and at the power supplies",
            ));
        }
        let read = self.power_read_at();
        let next = read.unwrap_or(asked).max(asked) + POWER_POLL;
        if read.is_none_or(|at| at < asked) || next <= self.now {
            return Decision::Do(Action::ReadPower);
        }
        wait("the BMC to report that the host is on", Some(next))
    }

    /// A reading of power when the last is old, else when it will be.
    pub(super) fn stale_power(&self) -> Result<Decision, Timestamp> {
        if !self.record.run.registered {
            return Ok(Decision::Do(Action::Identify));
        }
        let due = self
            .power_read_at()
            .map(|at| at + self.seen.limits.power_interval);
        match due {
            Some(due) if due > self.now => Err(due),
            Some(_) | None => Ok(Decision::Do(Action::ReadPower)),
        }
    }
}
