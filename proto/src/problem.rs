//! A problem as a person and a program read it: a stable code, what happened, what can be done.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What the lifecycle does about a problem; it acts on this alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Try again by itself, later each time.
    Retry,
    /// Wait until a person has changed something.
    Operator,
    /// Ours: report it; a person may try again.
    Bug,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $text:literal, $class:ident;)*) => {
        /// The stable codes. A code never changes its meaning; new ones are added.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum Code {
            $($(#[$doc])* #[serde(rename = $text)] $variant,)*
            /// A code of a newer peer.
            #[serde(other, rename = "unknown")]
            Unknown,
        }

        impl Code {
            /// Every code that this version knows.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The code as written.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* Self::Unknown => "unknown" }
            }

            /// What is done about it.
            pub const fn class(self) -> Class {
                match self { $(Self::$variant => Class::$class,)* Self::Unknown => Class::Operator }
            }
        }
    };
}

codes! {
    /// No answer from the BMC: connection refused, timed out, no route.
    BmcUnreachable = "bmc-unreachable", Retry;
    /// 401 or 403 from the BMC.
    BmcCredentialsRefused = "bmc-credentials-refused", Operator;
    /// The BMC answered something that cannot be used.
    BmcProtocol = "bmc-protocol", Retry;
    /// The BMC took the request, but power did not change.
    BmcPowerStuck = "bmc-power-stuck", Retry;
    /// The BMC refused or lost the virtual media.
    BmcMediaRefused = "bmc-media-refused", Retry;
    /// The BMC's system is another machine than before.
    BmcWrongMachine = "bmc-wrong-machine", Operator;
    /// The ramdisk did not say hello in time.
    AgentSilent = "agent-silent", Retry;
    /// The agent was in touch and is no longer.
    AgentLost = "agent-lost", Retry;
    /// A ticket that is unknown, used or expired.
    AgentTicketRefused = "agent-ticket-refused", Operator;
    /// The machine has no disk that could be used.
    NoDisk = "no-disk", Operator;
    /// Root device hints match no disk.
    NoDiskMatches = "no-disk-matches", Operator;
    /// Root device hints (or none) leave several disks.
    SeveralDisksMatch = "several-disks-match", Operator;
    /// The disk is mounted, held, read-only or a boot medium.
    DiskInUse = "disk-in-use", Operator;
    /// The image does not fit on the disk.
    ImageTooLarge = "image-too-large", Operator;
    /// The disk failed a read or a write.
    DiskIo = "disk-io", Operator;
    /// The image's server does not answer, or answers 5xx.
    ImageUnreachable = "image-unreachable", Retry;
    /// The image's server says 4xx.
    ImageNotFound = "image-not-found", Operator;
    /// The image ended before its announced length, or inside its compression.
    ImageTruncated = "image-truncated", Retry;
    /// The fetched bytes have another digest.
    ImageDigestMismatch = "image-digest-mismatch", Operator;
    /// The bytes are not what was declared, or not a bootable image.
    ImageFormat = "image-format", Operator;
    /// The image description cannot be used.
    ImageInvalid = "image-invalid", Operator;
    /// The conductor has no room for the image.
    ImageStoreFull = "image-store-full", Retry;
    /// The conductor's folder of images cannot be read or written.
    ImageStoreIo = "image-store-io", Retry;
    /// The config drive does not fit.
    ConfigDriveTooLarge = "config-drive-too-large", Operator;
    /// The config drive could not be written.
    ConfigDrive = "config-drive", Operator;
    /// The firmware did not take the boot entry.
    BootEntry = "boot-entry", Operator;
    /// Neither kexec nor a reboot could be started.
    BootFailed = "boot-failed", Retry;
    /// The deployed OS did not report in time.
    DaemonSilent = "daemon-silent", Operator;
    /// cloud-init ended with errors, or did not end in time.
    CloudInit = "cloud-init", Operator;
    /// Inspection failed.
    Inspect = "inspect", Retry;
    /// The agent does not know the step.
    StepUnknown = "step-unknown", Bug;
    /// The ramdisk has nothing to log in with: it is not the one for rescue.
    RescueAbsent = "rescue-absent", Operator;
    /// The rescue could not be set up.
    RescueFailed = "rescue-failed", Retry;
    /// The step was cut off by a restart or a power loss.
    StepInterrupted = "step-interrupted", Retry;
    /// The step was cancelled.
    StepCancelled = "step-cancelled", Retry;
    /// The step outlived its time limit.
    StepTimeout = "step-timeout", Retry;
    /// There is such a host already.
    HostExists = "host-exists", Operator;
    /// There is no such host.
    HostNotFound = "host-not-found", Operator;
    /// The request cannot be understood.
    RequestInvalid = "request-invalid", Operator;
    /// What stands behind the `?` cannot be used.
    QueryInvalid = "query-invalid", Operator;
    /// `If-Match` or `If-None-Match` does not hold.
    PreconditionFailed = "precondition-failed", Operator;
    /// The idempotency key was used for another request.
    IdempotencyKeyReused = "idempotency-key-reused", Operator;
    /// The request's body has more bytes than are taken.
    BodyTooLong = "body-too-long", Operator;
    /// The request's body did not arrive in time.
    BodyTooSlow = "body-too-slow", Retry;
    /// More calls than are served.
    TooManyRequests = "too-many-requests", Retry;
    /// No or a wrong token.
    Unauthorized = "unauthorized", Operator;
    /// It is known who calls, and they may not.
    Forbidden = "forbidden", Operator;
    /// The audit log was tampered with.
    AuditBroken = "audit-broken", Operator;
    /// There is no such thing.
    NotFound = "not-found", Operator;
    /// It names something that is not there.
    ReferenceMissing = "reference-missing", Operator;
    /// The path names another thing than the body.
    NameMismatch = "name-mismatch", Operator;
    /// There is such a thing already.
    AlreadyExists = "already-exists", Operator;
    /// What is followed from is too long ago.
    RevisionGone = "revision-gone", Operator;
    /// Another replica owns the host.
    NotOwner = "not-owner", Retry;
    /// The database does not answer.
    StoreUnavailable = "store-unavailable", Retry;
    /// The database's disk is full.
    StoreFull = "store-full", Retry;
    /// The request does not fit the host's present state or version.
    Conflict = "conflict", Operator;
    /// A person aborted it.
    Aborted = "aborted", Operator;
    /// The host is protected.
    Protected = "protected", Operator;
    /// The plan that was approved is not the one that waits.
    PlanChanged = "plan-changed", Operator;
    /// No answer from the cluster's API server.
    ClusterUnreachable = "cluster-unreachable", Retry;
    /// The certificate of the cluster's API server does not hold: its name, its CA, or its time.
    ClusterCertificate = "cluster-certificate", Retry;
    /// The cluster does not know us any more: 401.
    ClusterCredentialsRefused = "cluster-credentials-refused", Retry;
    /// The cluster knows us, and we may not: 403.
    ClusterForbidden = "cluster-forbidden", Retry;
    /// No kubeconfig was given for the cluster, or what it holds cannot be used.
    ClusterCredentials = "cluster-credentials", Operator;
    /// The cluster answered something that cannot be used.
    ClusterProtocol = "cluster-protocol", Retry;
    /// The control plane takes no joins now: it sleeps, is migrated, or is not there.
    ClusterNotJoinable = "cluster-not-joinable", Retry;
    /// The cluster's bootstrapsigner did not sign for the bootstrap token in time.
    ClusterTokenUnsigned = "cluster-token-unsigned", Retry;
    /// `cluster-info` is absent, or not vouched for by the CA that we know.
    ClusterInfo = "cluster-info", Retry;
    /// Pods stay on the node for longer than a drain may take.
    DrainBlocked = "drain-blocked", Operator;
    /// The host daemon did not ask for what it takes to join.
    JoinNotAsked = "join-not-asked", Retry;
    /// The host lacks what a join needs.
    JoinPrerequisites = "join-prerequisites", Retry;
    /// The host's clock is wrong.
    JoinClock = "join-clock", Retry;
    /// The host's kubelet or kubeadm does not fit the cluster's version.
    JoinVersionSkew = "join-version-skew", Retry;
    /// The host does not reach the cluster's API server.
    JoinUnreachable = "join-unreachable", Retry;
    /// What answers the host at the endpoint is not the cluster.
    JoinCertificate = "join-certificate", Retry;
    /// The cluster's CA is not the one that was pinned.
    JoinCaMismatch = "join-ca-mismatch", Retry;
    /// The bootstrap token is not known to the cluster, or not signed for.
    JoinTokenRefused = "join-token-refused", Retry;
    /// The cluster lets bootstrap tokens do less than a join needs.
    JoinForbidden = "join-forbidden", Retry;
    /// The cluster's kubelet configuration cannot be used by this host's kubelet.
    JoinKubeletConfiguration = "join-kubelet-configuration", Retry;
    /// The kubelet does not stay up.
    JoinKubelet = "join-kubelet", Retry;
    /// Nobody approved or signed the kubelet's certificate.
    JoinCsrPending = "join-csr-pending", Retry;
    /// Somebody denied the kubelet's certificate.
    JoinCsrDenied = "join-csr-denied", Retry;
    /// There is a Node of that name, and it is not this host.
    JoinNodeExists = "join-node-exists", Retry;
    /// No Node appeared.
    JoinNodeAbsent = "join-node-absent", Retry;
    /// The Node is another machine, or of an earlier boot.
    JoinNodeOther = "join-node-other", Retry;
    /// The Node did not become ready.
    JoinNotReady = "join-not-ready", Retry;
    /// `kubeadm join` failed in a way that has no name here.
    JoinFailed = "join-failed", Retry;
    /// The hosts of the cluster are being rolled to an image already.
    RollUnderWay = "roll-under-way", Operator;
    /// Something that should not happen.
    Internal = "internal", Bug;
}

impl Code {
    /// Whether it is of the way into a cluster or out of it: nothing is given up there, since what
    /// is missing is most often the cluster's.
    pub fn concerns_joining(self) -> bool {
        self.ends_an_attempt_to_join() || self.as_str().starts_with("cluster-")
    }

    /// Whether it is of one attempt to join, and the next is another.
    pub fn ends_an_attempt_to_join(self) -> bool {
        self.as_str().starts_with("join-")
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What went wrong, whole enough to act on without a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[error("{message} [{code}]")]
pub struct Problem {
    /// Stable, for programs.
    pub code: Code,
    /// Names the host, disk, URL or byte, and the reason.
    pub message: String,
    /// What a person can do.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub advice: String,
}

impl Problem {
    /// A problem with its advice.
    pub fn new(code: Code, message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            advice: advice.into(),
        }
    }

    /// What is done about it.
    pub const fn class(&self) -> Class {
        self.code.class()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_written_as_it_reads_and_a_newer_one_survives() {
        for code in Code::ALL {
            let json = serde_json::to_string(code).unwrap();
            assert_eq!(json, format!("\"{code}\""));
            assert_eq!(serde_json::from_str::<Code>(&json).unwrap(), *code);
        }
        assert_eq!(
            serde_json::from_str::<Code>("\"from-2030\"").unwrap(),
            Code::Unknown
        );
    }
}
