//! Operations, aborts and approvals: what people ask, and how the record changes as they go.
//!
//! Pure; refusals are problems. Not here: what comes next (`operations.rs`, `gate.rs`).

use ferrite_proto::digest::to_hex;
use ferrite_proto::host::HostState;
use ferrite_proto::operation::{
    Clean, CleanStep, Operation, OperationKind, Plan, RescueAccess, Service, ServiceStep, Turn,
    Work,
};
use ferrite_proto::problem::{Code, Problem};
use ferrite_proto::step::EraseMethod;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::change::Change;
use super::record::{Abort, BootPhase, Limits, RescueSecret};
use super::{Kind, StepName, Workflow};
use crate::crash::{self, Moment, Work as Point};
use crate::guard::{self, Guard};

/// Steps that can be chosen at once.
pub(crate) const MOST_STEPS: usize = 16;
/// Characters of all `authorized_keys` of a rescue.
pub(crate) const MOST_KEYS: usize = 32;
/// Characters of each: as many as a key of 8192 bits of RSA has, and a comment.
pub(crate) const KEY_CHARS: usize = 2048;
/// Hex digits of a plan's id.
const ID_DIGITS: usize = 12;

fn conflict(what: impl Into<String>, advice: impl Into<String>) -> Problem {
    Problem::new(Code::Conflict, what, advice)
}

impl Change {
    /// Chosen clean steps, on an available host.
    pub(crate) fn clean(&mut self, asked: &Clean) -> Result<(), Problem> {
        let chosen: Vec<_> = asked.steps.iter().map(|step| clean_step(*step)).collect();
        let (spec, name) = (&self.record.host.spec, &self.record.host.name);
        if spec.protected && chosen.contains(&StepName::Erase) {
            return Err(self.protected("erase"));
        }
        if spec.image.is_some() {
            return Err(conflict(
                format!("{name} is to be provisioned"),
                format!("`ferrite host deprovision {name}` first"),
            ));
        }
        self.begin(OperationKind::Clean, chosen, HostState::Available)?;
        crash::point(Point::Clean, Moment::Before);
        Ok(())
    }

    /// Chosen steps on a provisioned host, which keeps its disks.
    pub(crate) fn service(&mut self, asked: &Service) -> Result<(), Problem> {
        let chosen = asked.steps.iter().map(|step| match step {
            ServiceStep::Inspect {} => StepName::Inspect,
            ServiceStep::SetBootEntry {} => StepName::SetBootEntry,
        });
        let chosen = chosen.collect();
        self.begin(OperationKind::Service, chosen, HostState::Provisioned)?;
        crash::point(Point::Service, Moment::Before);
        Ok(())
    }

    /// The rescue ramdisk on a provisioned host.
    pub(crate) fn rescue(&mut self, secret: RescueSecret) -> Result<(), Problem> {
        let keys = &secret.authorized_keys;
        let bad = |key: &String| {
            let is_long = key.chars().count() > KEY_CHARS;
            is_long || key.chars().any(char::is_control) || key.trim().is_empty()
        };
        if keys.len() > MOST_KEYS || keys.iter().any(bad) {
            return Err(Problem::new(
                Code::RequestInvalid,
                format!(
                    "authorized_keys: at most {MOST_KEYS}, each one line of at most {KEY_CHARS}"
                ),
                "give each key as it stands in a .pub file",
            ));
        }
        self.begin(
            OperationKind::Rescue,
            vec![StepName::Rescue],
            HostState::Provisioned,
        )?;
        self.record.run.chosen.clear();
        self.kept.rescue = Some(secret);
        crash::point(Point::Rescue, Moment::Before);
        Ok(())
    }

    /// Out of the rescue ramdisk, into the OS.
    pub(crate) fn unrescue(&mut self) -> Result<(), Problem> {
        let name = &self.record.host.name;
        match self.record.operation().map(|operation| operation.kind) {
            Some(OperationKind::Unrescue) => return Ok(()),
            Some(OperationKind::Rescue) if self.record.run.deletion.is_none() => {}
            Some(_) | None => {
                return Err(conflict(
                    format!("{name} is not in rescue"),
                    format!("`ferrite host explain {name}` says what it does"),
                ));
            }
        }
        self.clear_error();
        self.event("request", "unrescue");
        self.audit("unrescue", json!({}));
        self.back_to_os(false);
        crash::point(Point::Unrescue, Moment::Before);
        Ok(())
    }

    /// What is under way is to stop at the next safe point.
    pub(crate) fn abort(&mut self) -> Result<(), Problem> {
        let state = self.record.state();
        let name = self.record.host.name.clone();
        let explain = format!("`ferrite host explain {name}` says what it does");
        if self.record.run.deletion.is_some() {
            return Err(conflict(
                format!("{name} is being deleted, which cannot be aborted"),
                "wait until it is gone and add it again",
            ));
        }
        let operation = self.record.operation().map(|operation| operation.kind);
        let under_way = match (operation, state) {
            (Some(OperationKind::Unrescue), _) => {
                return Err(conflict(format!("{name} is on its way to its OS"), explain));
            }
            (
                None,
                HostState::Available | HostState::Provisioned | HostState::ExternallyProvisioned,
            ) => false,
            (Some(_) | None, _) => true,
        };
        if !under_way {
            return Err(conflict(
                format!("{name} is {state}: nothing is under way"),
                explain,
            ));
        }
        let error = self.record.host.status.error.as_ref();
        let rests = error.is_some_and(|error| error.problem.code == Code::Aborted);
        if rests || self.record.run.abort.is_some() {
            return Ok(());
        }
        self.clear_error();
        self.record.run.abort = Some(Abort {
            by: self.actor.to_string(),
            at: self.now,
        });
        self.event("request", "abort");
        self.audit("abort", json!({"state": state}));
        crash::point(Point::Abort, Moment::Before);
        Ok(())
    }

    /// Lets the plan of this id go.
    pub(crate) fn approve(&mut self, id: &str) -> Result<(), Problem> {
        let name = self.record.host.name.clone();
        let by = self.actor.to_string();
        let now = self.now;
        let Some(plan) = &mut self.record.host.status.plan else {
            return Err(Problem::new(
                Code::PlanChanged,
                format!("no plan of {name} waits for approval"),
                format!("`ferrite host explain {name}` says what it waits for"),
            ));
        };
        if plan.id != id {
            return Err(Problem::new(
                Code::PlanChanged,
                format!("the plan of {name} is {}, not {id}", plan.id),
                format!("read it again: `ferrite host show {name}`"),
            ));
        }
        if plan.approved_by.is_some() {
            return Ok(());
        }
        (plan.approved_by, plan.approved_at) = (Some(by), Some(now));
        let detail = json!({"plan": plan});
        self.event("request", format!("plan {id} approved"));
        self.audit("approve", detail);
        crash::point(Point::Approve, Moment::Before);
        Ok(())
    }

    fn begin(
        &mut self,
        kind: OperationKind,
        chosen: Vec<StepName>,
        state: HostState,
    ) -> Result<(), Problem> {
        let name = self.record.host.name.clone();
        let explain = format!("`ferrite host explain {name}` says what it does");
        if self.record.run.deletion.is_some() || self.record.host.spec.detached {
            let why = format!("{name} is being deleted, or detached");
            return Err(conflict(why, explain));
        }
        if chosen.is_empty() || chosen.len() > MOST_STEPS {
            return Err(Problem::new(
                Code::RequestInvalid,
                format!("steps: from 1 to {MOST_STEPS} are wanted"),
                "name the steps to run",
            ));
        }
        if let Some(running) = self.record.operation() {
            let why = format!("{name} is in {} already", running.kind.as_str());
            return Err(conflict(
                why,
                format!("wait, or `ferrite host abort {name}`"),
            ));
        }
        if self.record.state() != state {
            let (is, kind) = (self.record.state(), kind.as_str());
            let why = format!("{name} is {is}; {kind} needs it {state}");
            return Err(conflict(why, explain));
        }
        let steps: Vec<_> = chosen.iter().map(|step| step.as_str().to_owned()).collect();
        self.event(
            "request",
            format!("{}: {}", kind.as_str(), steps.join(", ")),
        );
        self.audit(kind.as_str(), json!({"steps": steps}));
        self.begin_run(kind.as_str());
        self.clear_error();
        self.record.run.chosen = chosen;
        self.record.run.workflow = None;
        self.record.host.status.operation = Some(Operation {
            kind,
            by: self.actor.to_string(),
            since: self.now,
            steps,
            aborted: false,
            access: None,
        });
        Ok(())
    }

    /// That the host is protected.
    pub(super) fn protected(&self, what: &str) -> Problem {
        let name = &self.record.host.name;
        Problem::new(
            Code::Protected,
            format!("{name} is protected: no {what}"),
            format!("`ferrite host unprotect {name}` first, if it is really meant"),
        )
    }

    /// The host has its turn.
    pub(crate) fn admit(&mut self, work: Work) {
        self.set_turn(work, true);
    }

    /// The host waits for its turn.
    pub(crate) fn queued(&mut self, work: Work) {
        self.set_turn(work, false);
    }

    fn set_turn(&mut self, work: Work, admitted: bool) {
        let now = self.now;
        let turn = &mut self.record.host.status.turn;
        let same = turn.as_ref().filter(|turn| turn.work == work);
        if same.is_some_and(|turn| turn.admitted == admitted) {
            return;
        }
        *turn = Some(Turn {
            work,
            since: now,
            admitted,
        });
    }

    /// The host lets others have its turn.
    pub(crate) fn yield_turn(&mut self) {
        self.record.host.status.turn = None;
    }

    /// Puts a destructive step before people.
    pub(crate) fn propose(&mut self, step: StepName) {
        let destruction = self.record.destruction(step);
        let (run, host) = (&self.record.run, &self.record.host);
        let content = json!([destruction, host.uid, run.request, run.last_order, self.now]);
        let mut id = to_hex(&Sha256::digest(content.to_string()));
        id.truncate(ID_DIGITS);
        self.event("plan", format!("plan {id} waits for approval"));
        self.record.host.status.plan = Some(Plan {
            id,
            destruction,
            since: self.now,
            approved_by: None,
            approved_at: None,
        });
    }

    /// What was aborted comes to rest; a service or a rescue by starting the OS again.
    pub(crate) fn rest(&mut self, limits: &Limits) {
        let Some(abort) = self.record.run.abort.take() else {
            return;
        };
        let flow = self.record.run.workflow.as_ref();
        let step = flow.and_then(Workflow::current).map(|step| step.name);
        if flow.and_then(Workflow::outstanding).is_some() {
            // It has been silent since: whether it goes on cannot be known.
            self.drop_agent("what it did was aborted");
        }
        self.record.host.status.turn = None;
        let kind = self.record.operation().map(|operation| operation.kind);
        match kind {
            Some(OperationKind::Clean) => {
                self.event("operation", "clean aborted");
                self.end_run("aborted");
                self.record.run.workflow = None;
                self.forget_operation();
            }
            Some(OperationKind::Service | OperationKind::Rescue) => self.back_to_os(true),
            Some(OperationKind::Unrescue) => {}
            None => {
                let (state, name) = (self.record.state(), &self.record.host.name);
                let at =
                    step.map_or_else(String::new, |step| format!(", before {}", step.as_str()));
                let problem = Problem::new(
                    Code::Aborted,
                    format!("{} aborted it while {state}{at}", abort.by),
                    format!("`ferrite host retry {name}` goes on with it"),
                );
                self.fail(problem, limits);
            }
        }
    }

    /// The operation becomes the way back to the OS. A machine that was not touched yet keeps
    /// running.
    fn back_to_os(&mut self, aborted: bool) {
        let run = &self.record.run;
        let asked = run.boot.as_ref().map(|boot| boot.phase);
        let is_up = self.record.host.status.daemon.is_some();
        let untouched =
            run.session.is_none() && is_up && !matches!(asked, Some(BootPhase::PowerAsked { .. }));
        let steps = if untouched {
            &[StepName::ReleaseBoot]
        } else {
            Kind::Unrescue.steps()
        };
        if untouched || self.record.run.session.is_none() {
            self.drop_agent("its OS is to run");
        }
        self.forget_password();
        self.record.run.chosen.clear();
        self.record.run.workflow = Some(Workflow::of(Kind::Unrescue, steps));
        self.end_running_step();
        if let Some(operation) = &mut self.record.host.status.operation {
            operation.kind = OperationKind::Unrescue;
            operation.aborted = aborted;
            operation.access = None;
        }
        if aborted {
            self.event("operation", "aborted: its OS is started again");
        }
    }

    /// People can log in.
    pub(super) fn rescue_ready(&mut self, addresses: Vec<String>, host_keys: Vec<String>) {
        let since = self.now;
        if let Some(operation) = &mut self.record.host.status.operation {
            operation.access = Some(RescueAccess {
                since,
                addresses,
                host_keys,
            });
        }
    }

    /// The operation is over.
    pub(crate) fn end_operation(&mut self) {
        if let Some(operation) = self.record.operation() {
            let (kind, since) = (operation.kind.as_str(), operation.since);
            let took = self.now.duration_since(since).as_secs();
            self.event("operation", format!("{kind} is over after {took} s"));
        }
        // What went wrong on the way did not stop it.
        self.clear_error();
        let state = self.record.state();
        self.end_run(state.as_str());
        self.record.run.workflow = None;
        self.forget_operation();
    }

    /// Nothing is left of an operation, its secrets least of all.
    pub(super) fn forget_operation(&mut self) {
        let status = &mut self.record.host.status;
        (status.operation, status.plan, status.turn) = (None, None, None);
        self.record.run.chosen.clear();
        self.forget_password();
    }

    fn forget_password(&mut self) {
        if guard::stands(Guard::PasswordGoesWithTheRescue) {
            self.kept.rescue = None;
        }
    }

    /// The OS that ran is being taken down: its daemon is heard no more until it is up again.
    pub(super) fn forget_daemon(&mut self) {
        if let Some(daemon) = self.record.host.status.daemon.take() {
            self.record.run.boot_before = Some(daemon.boot_id);
        }
    }

    /// The power was asked for to start the OS from its disk, where that is the next step.
    pub(super) fn started_from_disk(&mut self) {
        let flow = self.record.run.workflow.as_ref();
        let boots = flow.is_some_and(|flow| {
            matches!(flow.kind, Kind::Service | Kind::Unrescue)
                && flow.outstanding().is_none()
                && flow
                    .current()
                    .is_some_and(|step| step.name == StepName::Boot)
        });
        if !boots || self.record.run.boot.is_some() {
            return;
        }
        self.forget_daemon();
        self.own_step_done(StepName::Boot);
        self.os_starts();
        self.record.host.status.booted_by = Some("reboot: no ramdisk was in touch".to_owned());
        self.event("step", "the firmware starts the OS");
    }
}

const fn clean_step(step: CleanStep) -> StepName {
    match step {
        CleanStep::Inspect {} => StepName::Inspect,
        CleanStep::Erase {
            method: EraseMethod::Metadata,
        } => StepName::Erase,
    }
}
