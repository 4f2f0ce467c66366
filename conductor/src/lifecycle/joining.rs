//! How a host joins its cluster after its OS is up, and how it leaves: what comes next, and how
//! the record changes. Pure.
//!
//! A host has joined when the cluster says so, proof by proof: its certificate is issued, its Node
//! is there, that Node is this machine in this boot, and it is ready. What kubeadm says is a hint
//! for people, never a proof. Each proof has its own time limit and its own problem.

use std::time::Duration;

use ferrite_proto::host::HostState;
use ferrite_proto::join::{HostFinding, JoinBy, JoinEnd, JoinPhase, JoinSpec, JoinStatus};
use ferrite_proto::problem::{Code, Problem};
use ferrite_proto::secret::Secret;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::change::Change;
use super::plan::{Action, Decision, View, clock, wait};
use super::record::{Limits, Record};
use super::reports::harmless;
use super::{StepName, Workflow};
use crate::guard::{self, Guard};
use crate::joining::causes;

/// The daemon checks in every few seconds; then it looks at its host.
const ASK: Duration = Duration::from_mins(3);
/// kubeadm's discovery, its checks, and the kubelet's first words.
const CERTIFICATE: Duration = Duration::from_mins(8);
/// From the certificate to the Node.
const NODE: Duration = Duration::from_mins(3);
/// From the Node to what its kubelet says of machine and boot.
const IDENTITY: Duration = Duration::from_mins(1);
/// From there to ready.
const READY: Duration = Duration::from_mins(5);
/// What a token on a config drive lives longer than the OS may take to start.
pub(super) const JOINING: Duration = Duration::from_mins(10);
/// Between looks at the cluster while a host joins.
const LOOK: Duration = Duration::from_secs(3);
/// Between looks while the cluster's CNI is awaited, and at a drain.
const SLOW_LOOK: Duration = Duration::from_secs(15);
/// How long pods have to leave.
const DRAIN: Duration = Duration::from_mins(10);
/// Characters of a text that is kept of a daemon or of a cluster.
pub(super) const TEXT: usize = 500;
/// Findings that are kept.
const FINDINGS: usize = 20;

/// What the driver does about a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum JoinAction {
    /// Before anything is written: that the cluster can be joined, and that no other machine has
    /// the name there.
    Check,
    /// Have a token made for a host that joins by cloud-init, before its config drive is written.
    Mint,
    /// An attempt begins.
    Begin,
    /// Look for the certificate and the Node.
    Look,
    /// Set labels and taints.
    Settle,
    /// Remove the token.
    Revoke,
    /// Have the pods leave.
    Drain,
    /// Remove the Node.
    DeleteNode,
}

/// A host's way into a cluster, and out of it; kept from the first attempt until it has left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Joining {
    /// What was asked for when it began.
    pub(crate) spec: JoinSpec,
    /// When the attempt was ordered.
    pub(crate) ordered_at: Timestamp,
    /// When the daemon was given material for it.
    #[serde(default)]
    pub(crate) given_at: Option<Timestamp>,
    /// The id of the token in it, until it is removed.
    #[serde(default)]
    pub(crate) token: Option<String>,
    /// Pins of the CA that the host was given.
    #[serde(default)]
    pub(crate) ca_hashes: Vec<String>,
    /// Since when the cluster does not sign for the token.
    #[serde(default)]
    pub(crate) unsigned_since: Option<Timestamp>,
    /// Since when nobody approves the kubelet's request.
    #[serde(default)]
    pub(crate) pending_since: Option<Timestamp>,
    /// The Node's lease when it was first looked at.
    #[serde(default)]
    pub(crate) first_lease: Option<Timestamp>,
    /// When last looked at, the Node lacked the cluster's CNI and nothing else.
    #[serde(default)]
    pub(crate) waits_for_cni: bool,
    /// The machine's UUID, as its daemon told.
    #[serde(default)]
    pub(crate) system_uuid: Option<String>,
    /// When the cluster was last looked at.
    #[serde(default)]
    pub(crate) looked_at: Option<Timestamp>,
    /// The attempt came to nothing: the next is another.
    #[serde(default)]
    pub(crate) failed: bool,
    /// The Node's uid, once it was proved to be this host's.
    #[serde(default)]
    pub(crate) node_uid: Option<String>,
    /// When its pods were first asked to leave.
    #[serde(default)]
    pub(crate) draining_since: Option<Timestamp>,
    /// They have left.
    #[serde(default)]
    pub(crate) drained: bool,
}

/// kubeadm's configuration for a host that joins by cloud-init: nobody knows yet which version its
/// image's kubeadm reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JoinFiles {
    /// As kubeadm reads it before 1.31.
    pub(crate) v1beta3: Secret<String>,
    /// Since.
    pub(crate) v1beta4: Secret<String>,
}

/// What the cluster says of a host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Look {
    /// The kubelet's request for a certificate.
    pub(crate) csr: Csr,
    /// Its Node.
    pub(crate) node: Option<SeenNode>,
    /// The cluster signs for no token of that id; known only while the certificate is awaited.
    pub(crate) is_unsigned: bool,
    /// Pins of the CA that the cluster has now.
    pub(crate) ca_hashes: Vec<String>,
}

/// How the request for a certificate stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Csr {
    /// There is none.
    #[default]
    Absent,
    /// Nobody has approved it.
    Pending,
    /// Somebody denied it, or it failed.
    Denied(String),
    /// It is issued.
    Issued,
}

/// A Node, as far as a join cares.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SeenNode {
    /// Another Node of that name has another.
    pub(crate) uid: String,
    /// `spec.providerID`.
    pub(crate) provider_id: Option<String>,
    /// SMBIOS UUID of the machine.
    pub(crate) system_uuid: String,
    /// Boot of its kernel.
    pub(crate) boot_id: String,
    /// The condition Ready is True.
    pub(crate) ready: bool,
    /// It is only the cluster's CNI that is missing.
    pub(crate) waits_for_cni: bool,
    /// What the condition Ready says.
    pub(crate) message: String,
    /// When its kubelet last renewed its lease.
    pub(crate) lease_renewed: Option<Timestamp>,
}

/// How far a drain is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Draining {
    /// Nothing is left that a drain takes.
    Done,
    /// These pods or volumes are still there.
    Left(Vec<String>),
}

/// How the provider IDs of all our hosts begin.
pub(super) const PROVIDER: &str = "ferrite://";

/// What a host is called in a cluster's eyes, whatever its Node's name.
pub(crate) fn provider_id(record: &Record) -> String {
    format!("{PROVIDER}{}", record.host.uid)
}

impl Record {
    /// Whether an attempt of the daemon is the one that is out.
    pub(crate) fn is_joining(&self, attempt: u32) -> bool {
        let step = self.run.workflow.as_ref().and_then(Workflow::current);
        let status = self.host.status.join.as_ref();
        self.state() == HostState::Provisioning
            && self.run.deletion.is_none()
            && self.deployed_as_wanted()
            && step.is_some_and(|step| step.name == StepName::Join)
            && status.is_some_and(|status| status.attempt == attempt)
            && self
                .run
                .joining
                .as_ref()
                .is_some_and(|joining| joining.spec.by == JoinBy::Daemon && !joining.failed)
    }
}

impl View<'_> {
    /// The step that comes after the OS is up.
    pub(super) fn join(&self) -> Decision {
        let begin = Decision::Do(Action::Join(JoinAction::Begin));
        let status = self.record.host.status.join.as_ref();
        let (Some(joining), Some(status)) = (&self.record.run.joining, status) else {
            return begin;
        };
        let spec = self.record.host.spec.join.as_ref();
        let other = spec.is_some_and(|spec| spec.cluster != joining.spec.cluster);
        // Nothing can be given anew to an OS that was to join by itself: it is watched on.
        let ended = match joining.spec.by {
            JoinBy::Daemon => joining.failed || other,
            JoinBy::CloudInit | JoinBy::UserData => status.phase == JoinPhase::Ordered,
        };
        if ended {
            return begin;
        }
        let since = self.past(Some(status.since)).unwrap_or(self.now);
        let Some(proof) = proof(status.phase) else {
            return Decision::Do(Action::Join(JoinAction::Settle));
        };
        let due = self.counted(since) + proof.limit;
        // A cluster that does not answer proves nothing, in either way.
        let next = match (status.phase, self.due_to_look(joining, LOOK)) {
            (JoinPhase::Ordered, _) => due,
            (_, None) => return Decision::Do(Action::Join(JoinAction::Look)),
            (_, Some(next)) => next,
        };
        if due <= self.now {
            return Decision::Fail(too_late(status, &proof, joining.spec.by));
        }
        let until = next.min(due);
        let hint = status.hint.as_ref().map(|hint| format!(" ({hint})"));
        let hint = hint.unwrap_or_default();
        let what = proof.what;
        wait(format!("{what}, until {}{hint}", clock(due)), Some(until))
    }

    /// When the cluster is to be looked at; `None` for now.
    fn due_to_look(&self, joining: &Joining, pause: Duration) -> Option<Timestamp> {
        let next = self.past(joining.looked_at)? + pause;
        (next > self.now).then_some(next)
    }

    /// Whether a token is out that nobody needs any more.
    pub(super) fn spent_token(&self) -> Option<Decision> {
        let joining = self.record.run.joining.as_ref()?;
        joining.token.as_ref()?;
        let status = self.record.host.status.join.as_ref();
        let under_way = self.record.state() == HostState::Provisioning
            && self.record.run.deletion.is_none()
            && self.record.deployed_as_wanted()
            && !joining.failed
            && status.is_some_and(|status| match joining.spec.by {
                // It is on a disk: no longer than the kubelet needs it.
                JoinBy::CloudInit => status.phase <= JoinPhase::Node,
                JoinBy::Daemon | JoinBy::UserData => !status.phase.has_joined(),
            });
        let is_over = !under_way && guard::stands(Guard::TokenGoesWithTheJoin);
        is_over.then_some(Decision::Do(Action::Join(JoinAction::Revoke)))
    }

    /// A worker that waits for its cluster's CNI is looked at until it is ready.
    pub(super) fn awaits_cni(&self) -> Result<Decision, Option<Timestamp>> {
        let status = self.record.host.status.join.as_ref();
        let waits = status.is_some_and(|status| status.phase == JoinPhase::WaitingForCni);
        let Some(joining) = self.record.run.joining.as_ref().filter(|_| waits) else {
            return Err(None);
        };
        match self.due_to_look(joining, SLOW_LOOK) {
            None => Ok(Decision::Do(Action::Join(JoinAction::Look))),
            next => Err(next),
        }
    }

    /// Before the disk of a worker is wiped its pods leave it.
    pub(super) fn drain(&self) -> Option<Decision> {
        let joining = self.record.run.joining.as_ref()?;
        if joining.drained || joining.node_uid.is_none() || !self.drains() {
            return None;
        }
        let since = joining
            .draining_since
            .and_then(|since| self.past(Some(since)));
        let due = since.map(|since| self.counted(since) + DRAIN);
        if due.is_some_and(|due| due <= self.now) {
            let left = self.left_on_node();
            return Some(Decision::Fail(Problem::new(
                Code::DrainBlocked,
                format!("the pods have not left within {DRAIN:?}{left}"),
                "look at their disruption budgets; `ferrite host deprovision --no-drain` goes on \
                 without waiting for them",
            )));
        }
        let next = since.and_then(|_| self.due_to_look(joining, SLOW_LOOK));
        match next {
            None => Some(Decision::Do(Action::Join(JoinAction::Drain))),
            next => {
                let reason = format!("the pods to leave the Node{}", self.left_on_node());
                Some(wait(reason, next))
            }
        }
    }

    /// Who has not left yet.
    fn left_on_node(&self) -> String {
        let status = self.record.host.status.join.as_ref();
        let left = status.and_then(|status| status.hint.as_ref());
        left.map_or_else(String::new, |left| format!(": {}", left.message))
    }

    fn drains(&self) -> bool {
        let spec = self.record.host.spec.join.as_ref();
        spec.is_none_or(|spec| spec.drain) && self.record.run.deletion.is_none()
    }

    /// Once nothing of it can start any more, its Node goes.
    pub(super) fn forget_node(&self) -> Option<Decision> {
        let joining = self.record.run.joining.as_ref()?;
        joining.given_at?;
        Some(Decision::Do(Action::Join(JoinAction::DeleteNode)))
    }
}

/// What is awaited in a phase.
struct Proof {
    what: &'static str,
    limit: Duration,
    code: Code,
    advice: &'static str,
}

/// What is awaited; none where all is proved.
const fn proof(phase: JoinPhase) -> Option<Proof> {
    let (what, limit, code, advice) = match phase {
        JoinPhase::Ordered => (
            "the host daemon to ask for what it takes to join",
            ASK,
            Code::JoinNotAsked,
            "look at `journalctl -u ferrite-agent` on the host; an agent that is older than this \
             conductor cannot join: provision again",
        ),
        JoinPhase::Certificate => (
            "the kubelet's certificate",
            CERTIFICATE,
            Code::JoinCsrPending,
            "`ferrite logs host/NAME` has kubeadm's words, `ferrite cluster check` looks at what \
             approves and signs certificates",
        ),
        JoinPhase::Node => (
            "the Node to appear",
            NODE,
            Code::JoinNodeAbsent,
            "`journalctl -u kubelet` on the host says why it does not register",
        ),
        JoinPhase::Identity => (
            "the Node to be this machine in this boot",
            IDENTITY,
            Code::JoinNodeOther,
            "another machine, or an earlier boot of this one, has the name in the cluster: delete \
             that Node",
        ),
        JoinPhase::Ready => (
            "the Node to be ready",
            READY,
            Code::JoinNotReady,
            "`kubectl describe node` tells its conditions",
        ),
        JoinPhase::Settling | JoinPhase::WaitingForCni | JoinPhase::Joined => return None,
    };
    Some(Proof {
        what,
        limit,
        code,
        advice,
    })
}

/// What kubeadm said is closer to the cause than what is missing because of it.
fn too_late(status: &JoinStatus, proof: &Proof, by: JoinBy) -> Problem {
    status.hint.clone().unwrap_or_else(|| {
        let (what, limit) = (proof.what, proof.limit);
        let since = clock(status.since);
        let text = format!("waited for {what} since {since} for {limit:?}");
        let advice = match by {
            JoinBy::Daemon => proof.advice,
            JoinBy::CloudInit => {
                "/var/log/cloud-init-output.log on the host has kubeadm's words; its token is \
                 gone: `ferrite host provision` deploys it anew with another"
            }
            JoinBy::UserData => {
                "/var/log/cloud-init-output.log on the host tells how the data that was given \
                 joined; the Node is to have the host's name"
            }
        };
        Problem::new(proof.code, text, advice)
    })
}

impl Change {
    /// A token was made for a host that joins by cloud-init.
    pub(crate) fn minted(&mut self, token: &str, files: &JoinFiles) {
        let Some(spec) = self.record.host.spec.join.clone() else {
            self.own_step_done(StepName::MintToken);
            return;
        };
        self.record.host.status.join = None;
        self.open_attempt(spec);
        let (now, uuid) = (self.now, self.record.run.system_uuid.clone());
        if let Some(joining) = &mut self.record.run.joining {
            joining.given_at = Some(now);
            joining.token = Some(token.to_owned());
            joining.system_uuid = uuid;
        }
        self.kept.join = Some(files.clone());
        self.clear_error_of(Code::concerns_joining);
        self.event(
            "join",
            format!("bootstrap token {token} goes onto the config drive"),
        );
        self.own_step_done(StepName::MintToken);
    }

    /// An attempt to join begins.
    pub(crate) fn begin_joining(&mut self) {
        let Some(spec) = self.record.host.spec.join.clone() else {
            // It is wanted no longer.
            self.own_step_done(StepName::Join);
            return;
        };
        self.kept.join = None;
        let minted = self.record.run.joining.as_ref();
        let minted = minted.is_some_and(|minted| minted.spec.by == JoinBy::CloudInit);
        match spec.by {
            JoinBy::Daemon => return self.open_attempt(spec),
            JoinBy::CloudInit if minted => {}
            JoinBy::CloudInit | JoinBy::UserData => self.watch_attempt(spec),
        }
        let now = self.now;
        self.stages().open("join", now);
        self.join_phase(JoinPhase::Certificate);
    }

    /// Whoever has the OS join does so since it boots.
    fn watch_attempt(&mut self, spec: JoinSpec) {
        let booting = self.record.run.deployment.as_ref();
        let booting = booting.and_then(|deployment| deployment.booting_at);
        self.open_attempt(spec);
        let uuid = self.record.run.system_uuid.clone();
        if let Some(joining) = &mut self.record.run.joining {
            joining.given_at = booting.or(Some(joining.ordered_at));
            joining.system_uuid = uuid;
        }
    }

    fn open_attempt(&mut self, spec: JoinSpec) {
        let (host, now) = (&self.record.host, self.now);
        let before = host.status.join.as_ref();
        let attempt = before.map_or(0, |before| before.attempt).saturating_add(1);
        let uid = self.record.run.joining.take().and_then(|old| old.node_uid);
        let status = JoinStatus {
            cluster: spec.cluster.clone(),
            node: host.name.clone(),
            attempt,
            phase: JoinPhase::Ordered,
            since: now,
            hint: None,
            findings: Vec::new(),
        };
        if attempt == 1 && spec.by == JoinBy::Daemon {
            self.stages().open("join", now);
        }
        self.event(
            "join",
            format!("joining {}, attempt {attempt}", spec.cluster),
        );
        self.record.host.status.join = Some(status);
        self.record.run.joining = Some(Joining {
            spec,
            ordered_at: now,
            given_at: None,
            token: None,
            ca_hashes: Vec::new(),
            unsigned_since: None,
            pending_since: None,
            first_lease: None,
            waits_for_cni: false,
            system_uuid: None,
            looked_at: None,
            failed: false,
            node_uid: uid,
            draining_since: None,
            drained: false,
        });
    }

    /// What the daemon found on its host.
    pub(crate) fn found(&mut self, findings: &[HostFinding], system_uuid: Option<&str>) {
        if let Some(status) = &mut self.record.host.status.join {
            let cut = |finding: &HostFinding| HostFinding {
                code: harmless(&finding.code, TEXT),
                fatal: finding.fatal,
                what: harmless(&finding.what, TEXT),
                fix: harmless(&finding.fix, TEXT),
            };
            status.findings = findings.iter().take(FINDINGS).map(cut).collect();
        }
        if let Some(joining) = &mut self.record.run.joining {
            joining.system_uuid = system_uuid.map(|uuid| harmless(uuid, TEXT));
        }
    }

    /// The daemon is given material with this token and these pins.
    pub(crate) fn given(&mut self, token: &str, ca_hashes: &[String]) {
        let now = self.now;
        if let Some(joining) = &mut self.record.run.joining {
            joining.given_at = Some(now);
            joining.token = Some(token.to_owned());
            joining.ca_hashes = ca_hashes.to_vec();
            joining.looked_at = None;
        }
        self.clear_error_of(Code::concerns_joining);
        self.join_phase(JoinPhase::Certificate);
        self.event(
            "join",
            format!("bootstrap token {token} is given to the host"),
        );
    }

    pub(super) fn join_phase(&mut self, phase: JoinPhase) {
        let now = self.now;
        if let Some(status) = &mut self.record.host.status.join
            && status.phase != phase
        {
            status.phase = phase;
            status.since = now;
        }
    }

    /// Lines of kubeadm: the last that tells of a cause is a hint for people.
    pub(crate) fn kubeadm_said(&mut self, attempt: u32, lines: &[String]) {
        if !self.record.is_joining(attempt) {
            return;
        }
        let Some(status) = &mut self.record.host.status.join else {
            return;
        };
        for line in lines {
            let line = harmless(line, TEXT);
            let cause = causes::cause_of(&line);
            if causes::has_discovered(&line) {
                status.hint = None;
            }
            let known = status.hint.as_ref().map(|hint| hint.code);
            if cause.is_some() && known != cause.as_ref().map(|cause| cause.code) {
                status.hint = cause;
            }
        }
    }

    /// kubeadm has ended. Status 0 proves nothing.
    pub(crate) fn kubeadm_ended(
        &mut self,
        attempt: u32,
        end: &JoinEnd,
        last_line: Option<&str>,
        limits: &Limits,
    ) {
        if !self.record.is_joining(attempt) {
            return;
        }
        let how = match end {
            JoinEnd::Succeeded => {
                if let Some(status) = &mut self.record.host.status.join {
                    status.hint = None;
                }
                return self.event("join", "kubeadm join has ended well");
            }
            JoinEnd::Failed {
                status: Some(status),
            } => format!("ended with status {status}"),
            JoinEnd::Failed { status: None } => "was ended by a signal".to_owned(),
            JoinEnd::Late => "did not end in time".to_owned(),
            JoinEnd::NotRun { why } => format!("could not be run: {}", harmless(why, TEXT)),
            JoinEnd::Unknown => "ended in a way that is not known here".to_owned(),
        };
        let hint = self.record.host.status.join.as_ref();
        let hint = hint.and_then(|status| status.hint.clone());
        let last = last_line.map(|line| harmless(line, TEXT));
        let problem = hint.unwrap_or_else(|| causes::unknown(&how, last.as_deref()));
        self.join_failed(problem, limits);
    }

    /// The attempt came to nothing; another follows.
    pub(crate) fn join_failed(&mut self, problem: Problem, limits: &Limits) {
        if let Some(joining) = &mut self.record.run.joining {
            joining.failed = true;
        }
        self.fail(problem, limits);
    }

    /// Labels and taints are set: the host is a worker.
    pub(crate) fn joined(&mut self) {
        let Some(status) = &self.record.host.status.join else {
            return;
        };
        let joining = self.record.run.joining.as_ref();
        let waits = joining.is_some_and(|joining| joining.waits_for_cni);
        let (cluster, attempt) = (status.cluster.clone(), status.attempt);
        self.join_phase(if waits {
            JoinPhase::WaitingForCni
        } else {
            JoinPhase::Joined
        });
        let now = self.now;
        let detail = match attempt {
            1 => cluster.clone(),
            attempts => format!("{cluster}, {attempts} attempts"),
        };
        self.stages().close("join", now, None, Some(detail));
        let how = if waits { ", and waits for its CNI" } else { "" };
        self.event("join", format!("it has joined {cluster}{how}"));
        self.clear_error();
        self.own_step_done(StepName::Join);
    }

    /// No token of it is out any more.
    pub(crate) fn revoked(&mut self) {
        self.kept.join = None;
        if let Some(joining) = &mut self.record.run.joining {
            joining.token = None;
        }
    }

    /// How far the drain is.
    pub(crate) fn drained(&mut self, draining: &Draining) {
        let now = self.now;
        let Some(joining) = &mut self.record.run.joining else {
            return;
        };
        joining.looked_at = Some(now);
        joining.draining_since.get_or_insert(now);
        joining.drained = *draining == Draining::Done;
        let left = match draining {
            Draining::Done => None,
            Draining::Left(names) => {
                let shown: Vec<_> = names
                    .iter()
                    .take(5)
                    .map(|name| harmless(name, TEXT))
                    .collect();
                let more = names.len().saturating_sub(shown.len());
                let more = if more > 0 {
                    format!(" and {more} more")
                } else {
                    String::new()
                };
                let text = format!("{}{more}", shown.join(", "));
                Some(Problem::new(Code::DrainBlocked, text, ""))
            }
        };
        if left.is_none() {
            self.event("join", "its pods have left");
        }
        if let Some(status) = &mut self.record.host.status.join {
            status.hint = left;
        }
    }

    /// The Node is gone, and the host is nobody's worker.
    pub(crate) fn left_cluster(&mut self) {
        let left = self.record.host.status.join.take();
        self.record.run.joining = None;
        self.kept.join = None;
        if let Some(status) = left {
            self.event("join", format!("it has left {}", status.cluster));
        }
    }
}
