//! What is stored of a host: the resource that people see, and what the conductor keeps beside it.
//!
//! Everything the lifecycle decides on is in here, so that a conductor that was killed decides the
//! same when it is back. Nothing here is a secret: those are sealed and stored apart ([`Kept`]).

use std::collections::BTreeMap;
use std::time::Duration;

use ferrite_proto::hints;
use ferrite_proto::host::{Host, HostSecrets, HostState, Power, Run};
use ferrite_proto::image::ImageRef;
use ferrite_proto::inventory::Disk;
use ferrite_proto::operation::{Approval, Destruction, Operation, OperationKind, PlannedDisk};
use ferrite_proto::secret::Secret;
use ferrite_proto::step::{BootMethod, RootDisk};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::image::Wanted;
use super::joining::{JoinFiles, Joining};
use super::{Kind, StepName, Workflow};
use crate::guard::{self, Guard};

/// A host as stored.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Record {
    /// What people see.
    pub(crate) host: Host,
    /// What the conductor keeps beside it.
    pub(crate) run: Runtime,
}

/// The private part of a host.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Runtime {
    /// How often in a row an agent was lost in the middle of a step.
    pub(crate) agent_losses: u32,
    /// The last order number that was given. Numbers grow, and none is used twice.
    pub(crate) last_order: u64,
    /// The BMC of the present `spec` has answered.
    pub(crate) registered: bool,
    /// UUID of the machine behind the BMC, from the first contact.
    pub(crate) bmc_uuid: Option<String>,
    /// When power was last read.
    pub(crate) power_at: Option<Timestamp>,
    /// When the BMC last took a request to switch on.
    pub(crate) power_asked_at: Option<Timestamp>,
    /// The way to the ramdisk, while it is gone or was last gone.
    pub(crate) boot: Option<RamdiskBoot>,
    /// The agent of this boot of the ramdisk.
    pub(crate) session: Option<Session>,
    /// The steps of the present state.
    pub(crate) workflow: Option<Workflow>,
    /// Nothing was written since the last erasure.
    pub(crate) clean: bool,
    /// Grows whenever a deployment is to begin afresh.
    pub(crate) request: u64,
    /// The deployment under way or in place.
    pub(crate) deployment: Option<Deployment>,
    /// The daemon's way in.
    pub(crate) daemon: Option<DaemonAccess>,
    /// What is being done with it, and where the seconds of that went.
    pub(crate) doing: Option<Run>,
    /// Being let go.
    pub(crate) deletion: Option<Deletion>,
    /// Steps that a person chose for the operation under way.
    pub(crate) chosen: Vec<StepName>,
    /// Boot of the OS that an operation took down: what its daemon said late is of the past.
    pub(crate) boot_before: Option<String>,
    /// A person wants what is under way to stop.
    pub(crate) abort: Option<Abort>,
    /// As last inspected: what a destructive plan names.
    pub(crate) disks: Vec<Disk>,
    /// SMBIOS system UUID, as last inspected.
    #[serde(default)]
    pub(crate) system_uuid: Option<String>,
    /// The way into its cluster, or out of it.
    pub(crate) joining: Option<Joining>,
}

/// A person wants what is under way to stop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Abort {
    /// Who.
    pub(crate) by: String,
    /// When.
    pub(crate) at: Timestamp,
}

/// Which ramdisk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum BootFlavour {
    /// The one that inspects, cleans and deploys.
    #[default]
    Ordinary,
    /// The larger one that people can log in to.
    Rescue,
}

/// How people get into the rescue ramdisk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RescueSecret {
    /// Hash of root's password, in the form of crypt(5).
    pub(crate) password_hash: Secret<String>,
    /// Lines for `authorized_keys`.
    #[serde(default)]
    pub(crate) authorized_keys: Vec<String>,
}

/// A way to the ramdisk: the medium, the override, the power.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RamdiskBoot {
    /// Hex SHA-256 of the ticket; the ticket itself is in [`Kept`].
    pub(crate) ticket_sha256: String,
    /// When it was armed.
    pub(crate) armed_at: Timestamp,
    /// The ticket is void after that.
    pub(crate) expires_at: Timestamp,
    /// How far it is.
    pub(crate) phase: BootPhase,
    /// Which ramdisk it is.
    #[serde(default)]
    pub(crate) flavour: BootFlavour,
    /// The ramdisk said hello with the ticket.
    #[serde(default)]
    pub(crate) used: bool,
    /// What was last seen of it on the network, in words.
    #[serde(default)]
    pub(crate) seen: Option<String>,
}

/// How far a boot of the ramdisk is. Each is stored before the next is begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "kebab-case")]
pub(crate) enum BootPhase {
    /// The ticket is armed.
    Armed,
    /// The ISO is in the virtual drive.
    MediaIn,
    /// The firmware is told what to boot.
    OverrideSet,
    /// The BMC took the request for power.
    PowerAsked {
        /// When.
        at: Timestamp,
    },
}

/// The agent of one boot of the ramdisk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Session {
    /// Hex SHA-256 of its ticket.
    pub(crate) ticket_sha256: String,
    /// PID 1's.
    pub(crate) nonce: String,
    /// Hex SHA-256 of its token.
    pub(crate) token_sha256: String,
    /// First contact.
    pub(crate) hello_at: Timestamp,
    /// It has polled: the ticket's answer is not given again.
    #[serde(default)]
    pub(crate) polled: bool,
    /// It said that it starts the OS: no order is for it any more.
    #[serde(default)]
    pub(crate) leaving: bool,
    /// The last poll whose reports were taken.
    #[serde(default)]
    pub(crate) last_sequence: u64,
    /// Which ramdisk it is.
    #[serde(default)]
    pub(crate) flavour: BootFlavour,
}

/// What is, or is being, put on the host. Taken from `spec` when it begins, so that a change in
/// the middle cannot mix two wishes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Deployment {
    /// The [`Runtime::request`] that it answers.
    pub(crate) request: u64,
    /// The image.
    pub(crate) image: ImageRef,
    /// The packed form of it that the conductor keeps, which the host is given in its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) kept: Option<ImageRef>,
    /// Where it goes.
    pub(crate) root: RootDisk,
    /// How it is started.
    pub(crate) method: BootMethod,
    /// Whether it is read back from the disk.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) verify: bool,
    /// When the agent said that it starts the OS.
    #[serde(default)]
    pub(crate) booting_at: Option<Timestamp>,
}

/// How the host daemon of this deployment gets in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DaemonAccess {
    /// Hex SHA-256 of the one-time credential; the credential itself is in [`Kept`].
    pub(crate) credential_sha256: String,
    /// Hex SHA-256 of the key that the daemon made, once it enrolled.
    #[serde(default)]
    pub(crate) key_sha256: Option<String>,
    /// It has checked in: the credential is void.
    #[serde(default)]
    pub(crate) used: bool,
}

/// How far letting go is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Deletion {
    /// The machine is off, or could not be switched off in three attempts.
    #[serde(default)]
    pub(crate) powered_off: bool,
    /// The virtual drive is empty, or could not be emptied in three attempts.
    #[serde(default)]
    pub(crate) released: bool,
}

/// All secrets of a host; sealed before they are stored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Kept {
    /// Those that people gave.
    pub(crate) host: HostSecrets,
    /// The boot ticket, while it is armed.
    pub(crate) ticket: Option<Secret<String>>,
    /// What the ISO's URL carries, while it may be read.
    pub(crate) iso_token: Option<Secret<String>>,
    /// The agent's token, until its first poll.
    pub(crate) agent_token: Option<Secret<String>>,
    /// The daemon's one-time credential, until it is used.
    pub(crate) credential: Option<Secret<String>>,
    /// kubeadm's configurations for a host that joins by cloud-init, until it does not need them
    /// any more.
    #[serde(default)]
    pub(crate) join: Option<JoinFiles>,
    /// How people get in, while the host is in rescue.
    pub(crate) rescue: Option<RescueSecret>,
}

/// Time limits and retries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Power on to hello.
    pub(crate) boot: Duration,
    /// An order given to its end.
    pub(crate) step: Duration,
    /// OS started to cloud-init's end.
    pub(crate) daemon: Duration,
    /// Power asked to power read as on.
    pub(crate) power: Duration,
    /// Silence after which an agent counts as lost.
    pub(crate) agent_silence: Duration,
    /// Silence after which a daemon counts as lost.
    pub(crate) daemon_silence: Duration,
    /// Between readings of power while nothing happens.
    pub(crate) power_interval: Duration,
    /// First pause before a retry; each further one is twice as long.
    pub(crate) retry_first: Duration,
    /// Longest pause.
    pub(crate) retry_max: Duration,
    /// Failures in a row after which a person is asked.
    pub(crate) max_attempts: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            boot: Duration::from_mins(15),
            step: Duration::from_hours(2),
            daemon: Duration::from_mins(30),
            power: Duration::from_mins(1),
            agent_silence: Duration::from_secs(90),
            daemon_silence: Duration::from_mins(5),
            power_interval: Duration::from_mins(1),
            retry_first: Duration::from_secs(5),
            retry_max: Duration::from_mins(5),
            max_attempts: 8,
        }
    }
}

/// What is seen beside the record.
#[derive(Debug, Clone)]
pub(crate) struct Observed<'a> {
    /// Last contact of the agent; not before this conductor started, since it could not have been
    /// heard.
    pub(crate) agent_seen: Option<Timestamp>,
    /// Last contact of the daemon, likewise.
    pub(crate) daemon_seen: Option<Timestamp>,
    /// When the clock was last set: what it skipped has not passed, for any limit.
    pub(crate) steady_since: Option<Timestamp>,
    /// Which image the host would be given.
    pub(crate) image: Wanted,
    /// Time limits.
    pub(crate) limits: &'a Limits,
}

/// Facts of a first contact, once it was let in.
#[derive(Debug, Clone)]
pub(crate) struct HelloFacts {
    /// Hex SHA-256 of the ticket.
    pub(crate) ticket_sha256: String,
    /// PID 1's.
    pub(crate) nonce: String,
    /// Hex SHA-256 of the token that is given.
    pub(crate) token_sha256: String,
    /// The agent's version.
    pub(crate) version: String,
    /// Its kernel.
    pub(crate) kernel: String,
    /// Seconds since the kernel started.
    pub(crate) uptime_seconds: f64,
    /// Memory of the ramdisk.
    pub(crate) memory_bytes: u64,
    /// Bytes that the boot took over the network.
    pub(crate) netboot_bytes: u64,
}

impl Record {
    /// The state.
    pub(crate) const fn state(&self) -> HostState {
        self.host.status.state
    }

    /// Whether the machine is on, as last read.
    pub(crate) const fn power(&self) -> Option<Power> {
        self.host.status.power
    }

    /// The order that the agent is still to take. One whose wish has been withdrawn meanwhile is
    /// withheld.
    pub(crate) fn to_hand_out(&self) -> Option<(u64, StepName)> {
        let flow = self.run.workflow.as_ref()?;
        let (number, step) = flow.to_hand_out()?;
        let wanted = match flow.kind {
            // Each ends with an OS that runs.
            Kind::Deploy | Kind::Service | Kind::Rescue | Kind::Unrescue => {
                self.deployed_as_wanted()
            }
            Kind::Inspect | Kind::Clean | Kind::ManualClean => true,
        };
        let wanted = guard::holds(Guard::WishStillCurrent, wanted && !flow.cancelling);
        let stays = guard::holds(Guard::NoOrderWhileDeleting, self.run.deletion.is_none());
        let held = self.is_held(flow.kind, step) || self.run.abort.is_some();
        (wanted && stays && !held).then_some((number, step))
    }

    /// Whether a step may not be handed out, whatever was planned.
    fn is_held(&self, kind: Kind, step: StepName) -> bool {
        let spec = &self.host.spec;
        let keeps_disks = matches!(kind, Kind::Service | Kind::Rescue | Kind::Unrescue);
        let wipes = step.is_destructive();
        let free = guard::holds(Guard::HeldIsLeftAlone, !spec.paused && !spec.detached);
        let erasable = guard::holds(Guard::ProtectedIsNotErased, !spec.protected);
        !free
            || (wipes && (keeps_disks || !self.is_approved(step)))
            || (step == StepName::Erase && !erasable)
    }

    /// Whether a destructive step may go.
    pub(crate) fn is_approved(&self, step: StepName) -> bool {
        let approved = self.host.spec.approval == Approval::Automatic
            || self.host.status.plan.as_ref().is_some_and(|plan| {
                plan.approved_by.is_some() && plan.destruction == self.destruction(step)
            });
        guard::holds(Guard::ApprovedBeforeDestroyed, approved)
    }

    /// What a destructive step would destroy.
    pub(crate) fn destruction(&self, step: StepName) -> Destruction {
        let usable = self.run.disks.iter();
        let usable = usable.filter(|disk| hints::unusable(disk).is_none());
        let writes = step == StepName::WriteImage;
        let deployment = self.run.deployment.as_ref().filter(|_| writes);
        let root = deployment.and_then(|deployment| {
            let root = &deployment.root;
            root.hints.select(&self.run.disks, root.default).ok()
        });
        let disks: Vec<_> = match (writes, root) {
            (true, Some(root)) => vec![planned(root)],
            // Which one cannot be told: it may be any.
            (true, None) | (false, _) => usable.map(planned).collect(),
        };
        let digest = deployment.and_then(|d| d.image.digest.as_ref());
        Destruction {
            step: step.as_str().to_owned(),
            disks,
            image: deployment.map(|d| d.image.url.clone()),
            digest: digest.map(ToString::to_string),
        }
    }

    /// The operation beside the state.
    pub(crate) fn operation(&self) -> Option<&Operation> {
        self.host.status.operation.as_ref()
    }

    /// Which ramdisk is to boot.
    pub(crate) fn wanted_flavour(&self) -> BootFlavour {
        let kind = self.operation().map(|operation| operation.kind);
        if kind == Some(OperationKind::Rescue) {
            BootFlavour::Rescue
        } else {
            BootFlavour::Ordinary
        }
    }

    /// Whether what is on the host is what is wanted.
    pub(crate) fn deployed_as_wanted(&self) -> bool {
        self.host.spec.image.is_some()
            && self.run.deployment.as_ref().is_some_and(|deployment| {
                let same = deployment.request == self.run.request;
                guard::holds(Guard::DeploymentAnswersRequest, same)
            })
    }
}

fn planned(disk: &Disk) -> PlannedDisk {
    PlannedDisk {
        name: disk.name.clone(),
        model: disk.model.clone(),
        serial: disk.serial.clone(),
        size_bytes: disk.size_bytes,
    }
}

/// Adds what was given to what is kept; what was not given stays.
pub(crate) fn merge_secrets(kept: &mut HostSecrets, given: HostSecrets) {
    fn take<T>(old: &mut Option<T>, new: Option<T>) {
        if new.is_some() {
            *old = new;
        }
    }
    take(&mut kept.bmc_password, given.bmc_password);
    take(&mut kept.user_data, given.user_data);
    take(&mut kept.bootstrap_data, given.bootstrap_data);
    take(&mut kept.bootstrap_format, given.bootstrap_format);
    take(&mut kept.network_data, given.network_data);
    take::<BTreeMap<_, _>>(&mut kept.meta_data, given.meta_data);
    take(&mut kept.vendor_data, given.vendor_data);
}
