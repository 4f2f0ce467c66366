//! What a host is doing, what comes next, and what a person can do: in sentences. Pure.

use ferrite_proto::api::Explanation;
use ferrite_proto::host::{Host, HostError, HostState};
use ferrite_proto::operation::{Operation, OperationKind};
use ferrite_proto::problem::Class;
use jiff::Timestamp;

use super::state::{operation_policy, policy};

fn clock(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// Explains the host.
pub(crate) fn explain(host: &Host, now: Timestamp) -> Explanation {
    let status = &host.status;
    match &status.error {
        Some(error) if held(host).is_none() => of_error(host, error, now),
        Some(_) | None => Explanation {
            doing: format!(
                "{} is {} (since {}, for {}) and {}.",
                host.name,
                beside(host),
                clock(since(host)),
                long(now.duration_since(since(host)).as_secs()),
                waits(status.waiting_for.as_deref())
            ),
            next: next(host),
            advice: advice(host),
        },
    }
}

/// The state, and what is done beside it.
fn beside(host: &Host) -> String {
    let state = words(host.status.state);
    match &host.status.operation {
        None => state.to_owned(),
        Some(operation) => {
            let aborted = if operation.aborted { ", aborted" } else { "" };
            format!("{state}, in {}{aborted}", operation.kind.as_str())
        }
    }
}

/// Since when it does what it does.
fn since(host: &Host) -> Timestamp {
    let operation = host.status.operation.as_ref();
    operation.map_or(host.status.since, |operation| operation.since)
}

/// A time as people say it.
fn long(seconds: i64) -> String {
    match seconds.max(0) {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

/// What a person holds it by, and the command that lets it go.
fn held(host: &Host) -> Option<(&'static str, String)> {
    let (spec, name) = (&host.spec, &host.name);
    if spec.paused {
        Some(("paused", format!("ferrite host resume {name}")))
    } else if spec.detached {
        Some(("detached", format!("ferrite host attach {name}")))
    } else if spec.maintenance.is_some() {
        let command = format!("ferrite host maintenance off {name}");
        Some(("in maintenance", command))
    } else {
        None
    }
}

/// A state behind "is".
const fn words(state: HostState) -> &'static str {
    match state {
        HostState::Registering => "being registered",
        HostState::Inspecting => "being inspected",
        HostState::Preparing => "being prepared",
        HostState::Available => "available",
        HostState::Provisioning => "being provisioned",
        HostState::Provisioned => "provisioned",
        HostState::Deprovisioning => "being deprovisioned",
        HostState::ExternallyProvisioned => "provisioned by somebody else",
        HostState::Deleting => "being deleted",
    }
}

fn waits(reason: Option<&str>) -> String {
    match reason {
        None => "begins its next step".to_owned(),
        Some(reason) if reason.starts_with("nothing") => "waits for nothing".to_owned(),
        Some(reason) => format!("waits for {reason}"),
    }
}

fn of_error(host: &Host, error: &HostError, now: Timestamp) -> Explanation {
    let next = match (error.retry_at, error.problem.class()) {
        (Some(at), _) if at <= now => format!(
            "It is being tried again, after attempt {}, and {}.",
            error.attempts,
            waits(host.status.waiting_for.as_deref())
        ),
        (Some(at), _) => format!(
            "It is tried again at {}; attempt {} failed.",
            clock(at),
            error.attempts
        ),
        (None, Class::Retry) => format!(
            "Nothing by itself: {} attempts failed. `ferrite host retry {}` tries again.",
            error.attempts, host.name
        ),
        (None, Class::Operator | Class::Bug) => format!(
            "Nothing by itself: it waits for a change of the host, or for `ferrite host retry {}`.",
            host.name
        ),
    };
    let advice = &error.problem.advice;
    Explanation {
        doing: format!(
            "{} is {} (since {}) and met a problem at {}: {}.",
            host.name,
            words(host.status.state),
            clock(host.status.since),
            clock(error.at),
            error.problem
        ),
        next,
        advice: (!advice.is_empty()).then(|| advice.clone()),
    }
}

fn next(host: &Host) -> String {
    if let Some((how, _)) = held(host) {
        return format!("Nothing is begun while it is {how}.");
    }
    let plan = host.status.plan.as_ref();
    if let Some(plan) = plan.filter(|plan| plan.approved_by.is_none()) {
        let disks = plan.destruction.disks.iter().map(|disk| {
            let serial = disk.serial.as_deref().unwrap_or("unknown");
            let size = ferrite_proto::size::ByteSize(disk.size_bytes);
            format!("{} ({size}, serial {serial})", disk.name)
        });
        let disks: Vec<_> = disks.collect();
        let (step, disks) = (&plan.destruction.step, disks.join(", "));
        return format!("Once plan {} is approved, {step} of {disks}.", plan.id);
    }
    if let Some(operation) = &host.status.operation {
        let policy = operation_policy(operation.kind);
        let (next, deadline, abort) = (policy.next, policy.deadline, policy.abort);
        return format!("{next} Deadline: {deadline}. After an abort: {abort}.");
    }
    let policy = policy(host.status.state);
    let (next, deadline, retry) = (policy.next, policy.deadline, policy.retry);
    format!("{next} Deadline: {deadline}. When that fails: {retry}.")
}

fn advice(host: &Host) -> Option<String> {
    let name = &host.name;
    if let Some((_, command)) = held(host) {
        return Some(format!("`{command}` lets it go on."));
    }
    let plan = host.status.plan.as_ref();
    if let Some(plan) = plan.filter(|plan| plan.approved_by.is_none()) {
        let id = &plan.id;
        return Some(format!("`ferrite host approve {name} {id}` lets it go."));
    }
    if let Some(operation) = &host.status.operation {
        return Some(advice_in(operation, name));
    }
    Some(match host.status.state {
        HostState::Available if host.spec.retired.is_some() => {
            format!("`ferrite host retire {name} --undo` takes it back into use.")
        }
        HostState::Available => format!(
            "`ferrite host provision {name} --image URL --digest sha256:…` puts an OS on it."
        ),
        HostState::Provisioned => {
            format!("`ferrite host deprovision {name}` takes the OS away.")
        }
        HostState::ExternallyProvisioned => {
            format!("`ferrite host adopt {name} --undo` takes it back.")
        }
        HostState::Registering
        | HostState::Inspecting
        | HostState::Preparing
        | HostState::Provisioning
        | HostState::Deprovisioning => format!("`ferrite host abort {name}` stops it."),
        HostState::Deleting => return None,
    })
}

fn advice_in(operation: &Operation, name: &str) -> String {
    match (&operation.access, operation.kind) {
        (Some(access), _) => format!(
            "`ssh root@{}` with the password that `rescue` told; host keys {}. `ferrite host \
             unrescue {name}` starts its OS.",
            access.addresses.join(" or "),
            access.host_keys.join(", ")
        ),
        (None, OperationKind::Unrescue) => {
            format!("`ferrite host watch {name}` follows it.")
        }
        (None, OperationKind::Clean | OperationKind::Service | OperationKind::Rescue) => {
            format!("`ferrite host abort {name}` stops it.")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferrite_proto::problem::{Code, Problem};

    fn host(state: HostState) -> Host {
        serde_json::from_value(serde_json::json!({
            "apiVersion": "ferrite/v1", "kind": "Host",
            "metadata": {"name": "n"},
            "spec": {"bmc": {"address": "redfish://b", "username": "u"}},
            "status": {"state": state, "since": "2026-11-21T00:00:00Z"},
        }))
        .unwrap()
    }

    #[test]
    fn every_state_is_one_sentence() {
        for state in HostState::ALL {
            for waiting_for in [
                None,
                Some("nothing: it runs"),
                Some("the agent to end erase"),
            ] {
                let mut host = host(state);
                host.status.waiting_for = waiting_for.map(str::to_owned);
                let told = explain(&host, Timestamp::UNIX_EPOCH);
                assert!(told.doing.starts_with("n is "), "{}", told.doing);
                assert_eq!(told.doing.matches(['.', ':']).count(), 3, "{}", told.doing);
                assert!(told.doing.ends_with('.') && told.next.ends_with('.'));
            }
        }
    }

    #[test]
    fn whoever_is_held_is_told_the_command_that_lets_go() {
        let mut host = host(HostState::Provisioned);
        host.spec.maintenance = Some(ferrite_proto::operation::Hold::default());
        let now = host.status.since + jiff::SignedDuration::from_mins(5);
        let told = explain(&host, now);
        assert!(told.doing.contains("for 5 min"), "{}", told.doing);
        let advice = told.advice.unwrap();
        assert_eq!(advice, "`ferrite host maintenance off n` lets it go on.");
        host.spec.paused = true;
        let told = explain(&host, now);
        assert_eq!(told.next, "Nothing is begun while it is paused.");
    }

    #[test]
    fn an_error_says_when_it_is_tried_again_or_who_must_act() {
        let mut host = host(HostState::Provisioning);
        let mut error = HostError {
            problem: Problem::new(Code::ImageUnreachable, "no route", "look at the network"),
            at: Timestamp::UNIX_EPOCH,
            attempts: 2,
            retry_at: Some(Timestamp::UNIX_EPOCH),
        };
        host.status.error = Some(error.clone());
        let now = Timestamp::UNIX_EPOCH;
        let told = explain(&host, now);
        assert!(
            told.doing.contains("no route [image-unreachable]"),
            "{}",
            told.doing
        );
        assert!(told.next.starts_with("It is being tried again"));
        assert_eq!(told.advice.as_deref(), Some("look at the network"));
        error.retry_at = None;
        host.status.error = Some(error);
        let told = explain(&host, now);
        assert!(
            told.next.contains("`ferrite host retry n`"),
            "{}",
            told.next
        );
    }
}
