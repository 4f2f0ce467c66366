//! What a look at the cluster proves of a host that joins, and what it tells of an attempt that
//! can come to nothing more. Pure.
//!
//! Not here: when it is looked, and what follows; that is `joining.rs`.

use std::time::Duration;

use ferrite_proto::join::{JoinBy, JoinPhase};
use ferrite_proto::problem::{Code, Problem};
use jiff::Timestamp;

use super::change::Change;
use super::joining::{Csr, Look, SeenNode, TEXT, provider_id};
use super::record::Limits;
use super::reports::harmless;

/// For how long a request for a certificate may wait, or `cluster-info` be without the token's
/// signature, before that is told.
const PATIENCE: Duration = Duration::from_secs(10);
/// For how long a request waits before the host makes another: an approver that was away looks at
/// new ones only.
const APPROVAL: Duration = Duration::from_secs(75);
/// A lease that was renewed longer ago is not fresh.
pub(super) const FRESH_LEASE: Duration = Duration::from_mins(1);

impl Change {
    /// The cluster was looked at.
    pub(crate) fn looked(&mut self, look: &Look, limits: &Limits) {
        let now = self.now;
        let joining = self.record.run.joining.as_ref();
        if joining.is_some_and(|joining| joining.failed) {
            // Nobody tries again: it stays an error, unless it comes after all.
            return self.looked_after_the_end(look);
        }
        let was_away = self.record.host.status.error.is_some();
        if let Some(joining) = &mut self.record.run.joining {
            joining.looked_at = Some(now);
            if was_away {
                joining.unsigned_since = None;
                joining.pending_since = None;
            }
        }
        if let (true, Some(status)) = (was_away, &mut self.record.host.status.join) {
            // The time in which the cluster was away does not count.
            status.since = now;
        }
        self.clear_error_of(Code::concerns_joining);
        let by = self.record.run.joining.as_ref();
        let by = by.map_or(JoinBy::Daemon, |joining| joining.spec.by);
        match (self.in_the_way(look), by) {
            (None, _) => {}
            (Some(problem), JoinBy::Daemon) => return self.join_failed(problem, limits),
            (Some(problem), _) if problem.code == Code::JoinCsrDenied => {
                return self.join_failed(problem, limits);
            }
            // Nothing can be given anew: it is watched on.
            (Some(mut problem), JoinBy::CloudInit | JoinBy::UserData) => {
                if problem.code == Code::JoinTokenRefused {
                    "`ferrite host provision` deploys it anew, with another token"
                        .clone_into(&mut problem.advice);
                }
                if let Some(status) = &mut self.record.host.status.join {
                    status.hint = Some(problem);
                }
            }
        }
        while let Some(next) = self.next_proof(look) {
            self.join_phase(next);
            if next == JoinPhase::Settling {
                break;
            }
        }
        self.note_readiness(look);
    }

    fn looked_after_the_end(&mut self, look: &Look) {
        if let Some(joining) = &mut self.record.run.joining {
            joining.looked_at = Some(self.now);
        }
        while let Some(next) = self.next_proof(look) {
            self.clear_error_of(Code::concerns_joining);
            if let Some(joining) = &mut self.record.run.joining {
                joining.failed = false;
            }
            self.join_phase(next);
            if next == JoinPhase::Settling {
                break;
            }
        }
        self.note_readiness(look);
    }

    /// Why the attempt can come to nothing more, by what the cluster says. kubeadm would find it
    /// out, too, minutes later.
    fn in_the_way(&mut self, look: &Look) -> Option<Problem> {
        let now = self.now;
        let status = self.record.host.status.join.as_ref()?;
        let phase = status.phase;
        let hint = status.hint.as_ref().map(|hint| hint.code);
        let joining = self.record.run.joining.as_mut()?;
        if phase > JoinPhase::Node {
            return None;
        }
        let known = |pin: &String| look.ca_hashes.contains(pin);
        if !look.ca_hashes.is_empty()
            && !joining.ca_hashes.is_empty()
            && !joining.ca_hashes.iter().any(known)
        {
            return Some(Problem::new(
                Code::JoinCaMismatch,
                format!(
                    "the cluster's CA was rotated since the host was given its pin: it is {} now",
                    look.ca_hashes.join(", ")
                ),
                "it is tried again with the new one",
            ));
        }
        let awaited = phase == JoinPhase::Certificate;
        let lasts = |since: &mut Option<Timestamp>, is_so: bool| {
            *since = is_so.then(|| since.filter(|since| *since <= now).unwrap_or(now));
            since.map(|since| now.duration_since(since).unsigned_abs())
        };
        let is_unsigned = look.is_unsigned || hint == Some(Code::JoinTokenRefused);
        let unsigned = lasts(&mut joining.unsigned_since, awaited && is_unsigned);
        let is_pending = awaited && look.csr == Csr::Pending;
        let pending = lasts(&mut joining.pending_since, is_pending);
        if unsigned.is_some_and(|lasted| lasted >= PATIENCE) {
            let token = joining.token.as_deref().unwrap_or_default();
            return Some(Problem::new(
                Code::JoinTokenRefused,
                format!(
                    "the cluster signs no more for the bootstrap token that the host has \
                     ({token}): it has expired there, or somebody removed it"
                ),
                "it is tried again with a new token; if that goes, too, look who removes Secrets \
                 bootstrap-token-*, and at the cluster's clock",
            ));
        }
        if let Csr::Denied(why) = &look.csr {
            let why = harmless(why, TEXT);
            return Some(Problem::new(
                Code::JoinCsrDenied,
                format!("the kubelet's certificate was denied: {why}"),
                "whoever denied it (`kubectl get csr`) must let this host in; it is tried again \
                 with a new request",
            ));
        }
        let problem = unapproved(pending.filter(|lasted| *lasted >= PATIENCE)?);
        if pending.is_some_and(|lasted| lasted >= APPROVAL) {
            return Some(problem);
        }
        if let Some(status) = &mut self.record.host.status.join {
            status.hint = Some(problem);
        }
        None
    }

    /// The phase after the present one, if the look proves it.
    fn next_proof(&mut self, look: &Look) -> Option<JoinPhase> {
        let phase = self.record.host.status.join.as_ref()?.phase;
        let node = look.node.as_ref();
        match phase {
            JoinPhase::Certificate if look.csr == Csr::Issued => Some(JoinPhase::Node),
            JoinPhase::Node if node.is_some() => Some(JoinPhase::Identity),
            JoinPhase::Identity if self.is_this_host(node?) => {
                let uid = node.map(|node| node.uid.clone());
                self.record.run.joining.as_mut()?.node_uid = uid;
                Some(JoinPhase::Ready)
            }
            JoinPhase::Ready if node?.waits_for_cni => Some(JoinPhase::Settling),
            JoinPhase::Ready if node?.ready && self.is_fresh(node?) => Some(JoinPhase::Settling),
            JoinPhase::Ordered
            | JoinPhase::Certificate
            | JoinPhase::Node
            | JoinPhase::Identity
            | JoinPhase::Ready
            | JoinPhase::Settling
            | JoinPhase::WaitingForCni
            | JoinPhase::Joined => None,
        }
    }

    /// This machine, in this boot, and nobody else's Node.
    fn is_this_host(&self, node: &SeenNode) -> bool {
        let joining = self.record.run.joining.as_ref();
        let uuid = joining.and_then(|joining| joining.system_uuid.as_ref());
        let daemon = self.record.host.status.daemon.as_ref();
        let ours = provider_id(&self.record);
        // Who else joins it names it otherwise.
        let theirs = joining.is_some_and(|joining| joining.spec.by == JoinBy::UserData);
        let named = node.provider_id.as_ref();
        uuid.is_none_or(|uuid| uuid.eq_ignore_ascii_case(&node.system_uuid))
            && (theirs || named.is_none_or(|told| *told == ours))
            && daemon.is_some_and(|daemon| daemon.boot_id == node.boot_id)
    }

    /// Renewed lately, or again since it was first seen: the host's clock may be behind.
    fn is_fresh(&self, node: &SeenNode) -> bool {
        let joining = self.record.run.joining.as_ref();
        let first = joining.and_then(|joining| joining.first_lease);
        node.lease_renewed
            .is_some_and(|at| at + FRESH_LEASE > self.now || first.is_some_and(|first| at > first))
    }

    fn note_readiness(&mut self, look: &Look) {
        let Some(node) = &look.node else { return };
        let cni = node.waits_for_cni;
        if let Some(joining) = &mut self.record.run.joining {
            joining.waits_for_cni = cni;
            joining.first_lease = joining.first_lease.or(node.lease_renewed);
        }
        let text = harmless(&node.message, TEXT);
        let Some(status) = &mut self.record.host.status.join else {
            return;
        };
        if status.phase == JoinPhase::WaitingForCni && node.ready {
            status.hint = None;
            self.join_phase(JoinPhase::Joined);
            return self.event("join", "the Node is ready");
        }
        let awaited = matches!(
            status.phase,
            JoinPhase::Ready | JoinPhase::Settling | JoinPhase::WaitingForCni
        );
        if !awaited {
            return;
        }
        let advice = if cni {
            "install a CNI in the cluster: it waits for nothing else"
        } else {
            "`kubectl describe node` tells its conditions"
        };
        let hint = Problem::new(Code::JoinNotReady, format!("the Node says: {text}"), advice);
        status.hint = (!node.ready).then_some(hint);
    }
}

fn unapproved(lasted: Duration) -> Problem {
    let seconds = lasted.as_secs();
    Problem::new(
        Code::JoinCsrPending,
        format!("nobody has approved the kubelet's request for a certificate for {seconds} s"),
        "the ClusterRoleBinding kubeadm:node-autoapprove-bootstrap and the csrapproving controller \
         do it, or `kubectl certificate approve`",
    )
}
