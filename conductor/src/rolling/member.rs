//! A host of a cluster, as a roll sees it. Pure.

use ferrite_proto::host::HostState;
use ferrite_proto::image::ImageRef;
use ferrite_proto::join::JoinPhase;
use ferrite_proto::problem::Problem;

use crate::lifecycle::record::Record;

/// An error that is tried again by itself counts as a failure after so many attempts.
const ATTEMPTS: u32 = 3;

/// A host of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    /// Its name.
    pub(super) name: String,
    /// Of this host, and of no other of that name.
    pub(super) uid: String,
    /// It is told to have the roll's image.
    pub(super) is_told: bool,
    /// It runs the image that it was told, and is a worker of its cluster.
    pub(super) has_settled: bool,
    /// Its Node is ready, as the cluster says.
    pub(super) is_ready: bool,
    /// What holds it, in words: a person.
    pub(super) hold: Option<String>,
    /// What is wrong with it, and will not go by itself.
    pub(super) failure: Option<Problem>,
}

impl Member {
    /// The host, if it is one of the cluster's. Whether its Node is ready is yet to be asked.
    pub(super) fn of(record: &Record, cluster: &str, image: &ImageRef) -> Option<Self> {
        let (host, spec) = (&record.host, &record.host.spec);
        let joins = spec.join.as_ref()?.cluster == cluster;
        let wanted = spec.image.as_ref()?;
        let ours = record.run.deletion.is_none() && !spec.externally_provisioned;
        let joined = host.status.join.as_ref();
        let joined = joined
            .is_some_and(|join| join.cluster == cluster && matches!(join.phase, JoinPhase::Joined));
        (joins && ours).then(|| Self {
            name: host.name.clone(),
            uid: host.uid.clone(),
            is_told: wanted == image,
            has_settled: joined
                && record.state() == HostState::Provisioned
                && record.deployed_as_wanted()
                && record.operation().is_none(),
            is_ready: false,
            hold: hold(record),
            failure: failure(record),
        })
    }

    /// It can be counted on.
    pub(super) const fn is_available(&self) -> bool {
        self.has_settled && self.is_ready
    }

    /// It has the image and can be counted on.
    pub(super) const fn is_updated(&self) -> bool {
        self.is_told && self.is_available()
    }
}

/// What a person holds the host with; nothing that a roll may break.
pub(super) fn hold(record: &Record) -> Option<String> {
    let spec = &record.host.spec;
    let because = |what: &str, reason: &str| match reason {
        "" => what.to_owned(),
        reason => format!("{what} ({reason})"),
    };
    if spec.paused {
        return Some("it is paused".to_owned());
    }
    if spec.detached {
        return Some("it is detached".to_owned());
    }
    if spec.protected {
        return Some("it is protected".to_owned());
    }
    if let Some(hold) = &spec.maintenance {
        return Some(because("it is in maintenance", &hold.reason));
    }
    if let Some(hold) = &spec.retired {
        return Some(because("it is retired", &hold.reason));
    }
    let operation = record.operation()?;
    Some(format!(
        "its operation {} is under way",
        operation.kind.as_str()
    ))
}

/// What is wrong with the host, once it waits for a person, an attempt to join came to nothing, or
/// it was tried several times. A cluster that does not answer is waited for.
fn failure(record: &Record) -> Option<Problem> {
    let error = record.host.status.error.as_ref()?;
    let code = error.problem.code;
    let patient = code.concerns_joining() && !code.ends_an_attempt_to_join();
    let again = error.retry_at.is_some();
    let lasts = error.attempts >= ATTEMPTS && !patient;
    let fails = !again || code.ends_an_attempt_to_join() || lasts;
    fails.then(|| error.problem.clone())
}
