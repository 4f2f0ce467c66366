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
                "{} is {} since {since} and waits for {}.",
                host.name,
                status.state,
                status.waiting_for.as_deref().unwrap_or("its next step")
            ),
            next: next(host).to_owned(),
            advice: advice(host),
        },
    }
}

fn of_error(host: &Host, error: &HostError, now: Timestamp) -> Explanation {
    let next = match (error.retry_at, error.problem.class()) {
        (Some(at), _) if at <= now => format!(
            "It is being tried again, after attempt {}: waits for {}.",
            error.attempts,
            host.status
                .waiting_for
                .as_deref()
                .unwrap_or("its next step")
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
            "{} is {} since {} and met a problem at {}: {}.",
            host.name,
            host.status.state,
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
