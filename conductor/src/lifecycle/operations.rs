//! What comes next in an operation beside the state: clean, service, rescue, unrescue. Pure, as
//! `plan.rs` is.

use ferrite_proto::host::Power;
use ferrite_proto::operation::{Operation, OperationKind};
use jiff::Timestamp;

use super::plan::{Action, Agent, Decision, View, wait};
use super::{Kind, StepName, Workflow};

impl View<'_> {
    /// What comes next in the operation.
    pub(super) fn operation(&self, operation: &Operation) -> Decision {
        let end = Decision::Do(Action::EndOperation);
        match operation.kind {
            OperationKind::Clean => self.steps(Kind::ManualClean).unwrap_or(end),
            OperationKind::Service => self.back_to_os(Kind::Service).unwrap_or(end),
            OperationKind::Unrescue => self.back_to_os(Kind::Unrescue).unwrap_or(end),
            OperationKind::Rescue => self.steps(Kind::Rescue).unwrap_or_else(|| self.in_rescue()),
        }
    }

    /// The ramdisk stays until a person has had enough of it; should it go, it is booted again.
    fn in_rescue(&self) -> Decision {
        let name = &self.record.host.name;
        match self.rescuer() {
            Agent::InTouch { silent_at } => wait(
                format!("a person: it is in rescue; `ferrite host unrescue {name}` starts its OS"),
                Some(silent_at),
            ),
            Agent::Absent | Agent::Silent => Decision::Do(Action::BeginSteps(Kind::Rescue)),
        }
    }

    /// The steps; a ramdisk that is gone when only the OS is to be started is not booted again.
    fn back_to_os(&self, kind: Kind) -> Option<Decision> {
        let flow = self.record.run.workflow.as_ref();
        let flow = flow.filter(|flow| flow.kind == kind);
        let only_boots = flow.and_then(Workflow::current).is_some_and(|step| {
            step.name == StepName::Boot && flow.is_some_and(|flow| flow.outstanding().is_none())
        });
        match self.agent() {
            Agent::Absent | Agent::Silent if only_boots => flow.map(|f| self.start_from_disk(f)),
            Agent::Absent | Agent::Silent | Agent::InTouch { .. } => self.steps(kind),
        }
    }

    /// The firmware starts the OS, as after any reset.
    fn start_from_disk(&self, flow: &Workflow) -> Decision {
        let run = &self.record.run;
        if run.session.is_some() || run.boot.is_some() {
            return Decision::Do(Action::ForgetAgent);
        }
        let since = self.past(flow.done_at(StepName::ReleaseBoot));
        let fresh = |at: &Timestamp| since.is_none_or(|since| *at >= since);
        let read = self.power_read_at().filter(fresh);
        match (read, self.record.power()) {
            (None, _) | (Some(_), None) => Decision::Do(Action::ReadPower),
            (Some(_), Some(Power::Off)) => Decision::Do(Action::PowerOn),
            (Some(_), Some(Power::On)) => Decision::Do(Action::ForceRestart),
        }
    }
}
