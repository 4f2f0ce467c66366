//! What holds a decision back: a person's pause, maintenance, an approval that is still to come,
//! the host's turn among others, an abort. Pure, as `plan.rs` is.
//!
//! Not here: what would be done otherwise.

use ferrite_proto::host::HostState;
use ferrite_proto::operation::Work;

use super::plan::{Action, Agent, Decision, View, wait};
use super::{Kind, StepName, StepRun, Workflow};
use crate::guard::{self, Guard};

impl View<'_> {
    /// The decision, or what holds it.
    pub(super) fn gate(&self, decision: Decision) -> Decision {
        let (host, deletion) = (&self.record.host, &self.record.run.deletion);
        let (spec, name) = (&host.spec, &host.name);
        let stands = guard::stands(Guard::HeldIsLeftAlone);
        if spec.paused && stands {
            return self.held(format!(
                "spec.paused to be cleared: `ferrite host resume {name}`"
            ));
        }
        if spec.detached && deletion.is_none() && stands {
            return self.held(format!(
                "nothing: it is detached; `ferrite host attach {name}` takes it back"
            ));
        }
        if let Some(maintenance) = &spec.maintenance {
            let why = match maintenance.reason.as_str() {
                "" => String::new(),
                reason => format!(" ({reason})"),
            };
            let reason = format!("maintenance to end{why}: `ferrite host maintenance off {name}`");
            return self.in_maintenance(decision, reason);
        }
        match decision {
            Decision::Wait { .. } if self.waits_for_a_person() => self.held_as(decision),
            Decision::Wait { .. } | Decision::Go(_) | Decision::Do(_) | Decision::Fail(_) => {
                decision
            }
        }
    }

    fn waits_for_a_person(&self) -> bool {
        let error = self.record.host.status.error.as_ref();
        error.is_some_and(|error| error.retry_at.is_none())
    }

    fn held(&self, reason: String) -> Decision {
        self.held_as(wait(reason, None))
    }

    /// Whoever waits for a person lets others have the turn, once nothing runs.
    fn held_as(&self, decision: Decision) -> Decision {
        let turn = self.record.host.status.turn.as_ref();
        if turn.is_some() && self.is_between_steps() {
            Decision::Do(Action::Yield)
        } else {
            decision
        }
    }

    /// Nothing is out at an agent.
    fn is_between_steps(&self) -> bool {
        let flow = self.record.run.workflow.as_ref();
        flow.and_then(Workflow::outstanding).is_none()
    }

    /// What is under way ends; nothing else is begun.
    fn in_maintenance(&self, decision: Decision, reason: String) -> Decision {
        let flow = self.record.run.workflow.as_ref();
        let step = flow.and_then(Workflow::current);
        let under_way =
            !self.is_between_steps() || step.is_some_and(|step| is_of_the_os(step.name));
        match decision {
            Decision::Do(Action::OsIsUp | Action::Cancel | Action::Rest | Action::Join(_))
            | Decision::Go(HostState::Provisioned) => decision,
            Decision::Wait { .. } | Decision::Fail(_) | Decision::Do(Action::ReadPower)
                if under_way =>
            {
                decision
            }
            Decision::Wait { .. } | Decision::Fail(_) | Decision::Do(_) | Decision::Go(_) => {
                self.held(reason)
            }
        }
    }

    /// What must be before a step is begun: no protection, an approval, and the host's turn.
    pub(super) fn before_step(&self, flow: &Workflow, step: StepRun) -> Option<Decision> {
        if flow.outstanding().is_some() || is_of_the_os(step.name) {
            return None;
        }
        let held = self.protection(step).or_else(|| self.approval(flow));
        held.or_else(|| self.turn(flow.kind))
    }

    fn protection(&self, step: StepRun) -> Option<Decision> {
        let (spec, name) = (&self.record.host.spec, &self.record.host.name);
        let erases = step.name == StepName::Erase;
        if !erases || guard::holds(Guard::ProtectedIsNotErased, !spec.protected) {
            return None;
        }
        Some(self.held(format!(
            "spec.protected to be cleared, erasing would break it: `ferrite host unprotect {name}`"
        )))
    }

    fn approval(&self, flow: &Workflow) -> Option<Decision> {
        let step = flow.left().find(|step| step.is_destructive())?;
        if self.record.is_approved(step) {
            return None;
        }
        let wanted = self.record.destruction(step);
        let plan = self.record.host.status.plan.as_ref();
        let Some(plan) = plan.filter(|plan| plan.destruction == wanted) else {
            return Some(Decision::Do(Action::Propose(step)));
        };
        let (id, name) = (&plan.id, &self.record.host.name);
        let reason = format!(
            "approval of plan {id} ({}): `ferrite host approve {name} {id}`",
            step.as_str()
        );
        Some(self.held(reason))
    }

    fn turn(&self, kind: Kind) -> Option<Decision> {
        let work = work_of(kind)?;
        let turn = self.record.host.status.turn.as_ref();
        let has_it = turn.is_some_and(|turn| turn.work == work && turn.admitted);
        (!has_it).then_some(Decision::Do(Action::Admit(work)))
    }

    /// Whether the ramdisk that is up is not the one that is wanted.
    pub(super) fn is_of_another_ramdisk(&self) -> bool {
        let session = self.record.run.session.as_ref();
        let flavour = session.map(|session| session.flavour).unwrap_or_default();
        let flow = self.record.run.workflow.as_ref();
        // The OS can be started from either.
        let leaves = flow.is_some_and(|flow| flow.kind == Kind::Unrescue);
        flavour != self.record.wanted_flavour() && !leaves
    }

    /// What it takes to come to rest after an abort; `None` without one.
    pub(super) fn aborting(&self) -> Option<Decision> {
        self.record.run.abort.as_ref()?;
        Some(self.call_off().unwrap_or(Decision::Do(Action::Rest)))
    }

    /// Whether the rescue ramdisk is up and in touch.
    pub(super) fn rescuer(&self) -> Agent {
        match self.agent() {
            Agent::InTouch { .. } if self.is_of_another_ramdisk() => Agent::Absent,
            agent @ (Agent::InTouch { .. } | Agent::Absent | Agent::Silent) => agent,
        }
    }
}

/// Whether it is the OS that is at work, and nobody's turn is waited for.
const fn is_of_the_os(step: StepName) -> bool {
    matches!(step, StepName::AwaitOs | StepName::Join)
}

/// What a workflow counts as among the hosts of its group. Rescue does not wait.
pub(crate) const fn work_of(kind: Kind) -> Option<Work> {
    match kind {
        Kind::Inspect => Some(Work::Inspect),
        Kind::Clean | Kind::ManualClean => Some(Work::Clean),
        Kind::Deploy | Kind::Service => Some(Work::Deploy),
        Kind::Rescue | Kind::Unrescue => None,
    }
}
