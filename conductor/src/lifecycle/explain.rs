//! What a host is doing, what comes next, and what a person can do: in sentences. Pure.

use ferrite_proto::api::Explanation;
use ferrite_proto::host::{Host, HostError, HostState};
use ferrite_proto::problem::Class;
use jiff::Timestamp;

fn clock(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// Explains the host.
pub(crate) fn explain(host: &Host, now: Timestamp) -> Explanation {
    let status = &host.status;
    let since = clock(status.since);
    match &status.error {
        Some(error) => of_error(host, error, now),
        None => Explanation {
            doing: format!(
                "{} is {} (since {since}) and {}.",
                host.name,
                words(status.state),
                waits(status.waiting_for.as_deref())
            ),
            next: next(host).to_owned(),
            advice: advice(host),
        },
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

fn next(host: &Host) -> &'static str {
    match host.status.state {
        HostState::Registering => "The ramdisk is booted to inspect the hardware.",
        HostState::Inspecting => "Its disks are cleaned.",
        HostState::Preparing => "It becomes available.",
        HostState::Available => "Nothing, until an image is set.",
        HostState::Provisioning => {
            "Image, config drive, boot entry, boot; then the host daemon and cloud-init report."
        }
        HostState::Provisioned => "Nothing: it runs what was asked for.",
        HostState::Deprovisioning => "Its disks are cleaned, then it becomes available.",
        HostState::ExternallyProvisioned => "Nothing: somebody else provisioned it.",
        HostState::Deleting => "It is switched off and forgotten.",
    }
}

fn advice(host: &Host) -> Option<String> {
    let name = &host.name;
    match host.status.state {
        HostState::Available => Some(format!(
            "`ferrite host provision {name} --image URL --digest sha256:…` puts an OS on it."
        )),
        HostState::Provisioned => Some(format!(
            "`ferrite host deprovision {name}` takes the OS away."
        )),
        HostState::Registering
        | HostState::Inspecting
        | HostState::Preparing
        | HostState::Provisioning
        | HostState::Deprovisioning
        | HostState::ExternallyProvisioned
        | HostState::Deleting => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferrite_proto::problem::{Code, Problem};

    fn host(state: HostState) -> Host {
        serde_json::from_value(serde_json::json!({
            "name": "n", "uid": "u", "version": 1, "generation": 1,
            "created": "2026-11-21T00:00:00Z",
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
