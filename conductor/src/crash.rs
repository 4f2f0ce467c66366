//! Named points at which a test kills the conductor.
//!
//! In a debug build `FERRITE_CRASH_AT=NAME[:NTH]` ends the process there as SIGKILL does, and
//! `FERRITE_CRASH_TRACE=FILE` has every name there is (`known NAME`) and every pass (`passed NAME`)
//! added to a file; in the simulation nothing that follows the point gets out any more. A release
//! build has no points.

use ferrite_proto::agent_api::Report;
use ferrite_proto::host::HostState;
use ferrite_proto::step::Outcome;

use crate::lifecycle::joining::JoinAction;
use crate::lifecycle::plan::Action;
use crate::lifecycle::{Kind, StepName};

/// How far a piece of work is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    /// Decided; neither done nor stored.
    Before,
    /// Done outside; not stored.
    Acted,
    /// Stored.
    After,
}

macro_rules! works {
    ($($name:ident = $text:literal [$($moment:ident),*],)*) => {
        /// The pieces of work of every workflow.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Work {
            $(#[doc = $text] $name,)*
        }

        impl Work {
            #[cfg(any(test, debug_assertions))]
            const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }

        /// Every point.
        #[cfg(any(test, debug_assertions))]
        pub(crate) const POINTS: &[(Work, Moment)] = &[$($((Work::$name, Moment::$moment),)*)*];
    };
}

works! {
    Identify = "identify" [Before, Acted, After],
    ReadPower = "read-power" [Before, Acted, After],
    InsertMedia = "insert-media" [Before, Acted, After],
    SetBootOnce = "set-boot-once" [Before, Acted, After],
    PowerOn = "power-on" [Before, Acted, After],
    ForceRestart = "force-restart" [Before, Acted, After],
    PowerOff = "power-off" [Before, Acted, After],
    ReleaseBoot = "release-boot" [Before, Acted, After],
    Remove = "remove" [Before, After],
    Arm = "arm" [Before, After],
    OpenDeployment = "open-deployment" [Before, After],
    BeginInspect = "begin-inspect" [Before, After],
    BeginClean = "begin-clean" [Before, After],
    BeginDeploy = "begin-deploy" [Before, After],
    OrderInspect = "order-inspect" [Before, After],
    OrderErase = "order-erase" [Before, After],
    OrderWriteImage = "order-write-image" [Before, After],
    OrderWriteConfigDrive = "order-write-config-drive" [Before, After],
    OrderSetBootEntry = "order-set-boot-entry" [Before, After],
    OrderBoot = "order-boot" [Before, After],
    Cancel = "cancel" [Before, After],
    ForgetAgent = "forget-agent" [Before, After],
    OsIsUp = "os-is-up" [Before, After],
    CheckCluster = "check-cluster" [Before, Acted, After],
    MintForDrive = "mint-for-drive" [Before, Acted, After],
    BeginJoin = "begin-join" [Before, After],
    LookAtCluster = "look-at-cluster" [Before, Acted, After],
    SettleNode = "settle-node" [Before, Acted, After],
    EndToken = "end-token" [Before, Acted, After],
    DrainNode = "drain-node" [Before, Acted, After],
    DeleteNode = "delete-node" [Before, Acted, After],
    BeginManualClean = "begin-manual-clean" [Before, After],
    BeginService = "begin-service" [Before, After],
    BeginRescue = "begin-rescue" [Before, After],
    OrderRescue = "order-rescue" [Before, After],
    Admit = "admit" [Before, After],
    Yield = "yield" [Before, After],
    Propose = "propose" [Before, After],
    Rest = "rest" [Before, After],
    EndOperation = "end-operation" [Before, After],
    EnterExternallyProvisioned = "enter-externally-provisioned" [Before, After],
    EnterInspecting = "enter-inspecting" [Before, After],
    EnterPreparing = "enter-preparing" [Before, After],
    EnterAvailable = "enter-available" [Before, After],
    EnterProvisioning = "enter-provisioning" [Before, After],
    EnterProvisioned = "enter-provisioned" [Before, After],
    EnterDeprovisioning = "enter-deprovisioning" [Before, After],
    EnterDeleting = "enter-deleting" [Before, After],
    Fail = "fail" [Before, After],
    Hello = "hello" [Before, After],
    Accepted = "accepted" [Before, After],
    Inspected = "inspected" [Before, After],
    Erased = "erased" [Before, After],
    ImageWritten = "image-written" [Before, After],
    ConfigDriveWritten = "config-drive-written" [Before, After],
    BootEntrySet = "boot-entry-set" [Before, After],
    Booting = "booting" [Before, After],
    RescueReady = "rescue-ready" [Before, After],
    StepFailed = "step-failed" [Before, After],
    Enroll = "enroll" [Before, After],
    CheckIn = "check-in" [Before, After],
    NoteToken = "note-token" [Before, After],
    MintToken = "mint-token" [Before, Acted, After],
    StrikeToken = "strike-token" [Before, Acted, After],
    JoinReport = "join-report" [Before, After],
    Add = "add" [Before, After],
    Provision = "provision" [Before, After],
    Deprovision = "deprovision" [Before, After],
    Update = "update" [Before, After],
    Retry = "retry" [Before, After],
    Delete = "delete" [Before, After],
    Clean = "clean" [Before, After],
    Service = "service" [Before, After],
    Rescue = "rescue" [Before, After],
    Unrescue = "unrescue" [Before, After],
    Abort = "abort" [Before, After],
    Approve = "approve" [Before, After],
    Commit = "commit" [Before, After],
    MakeKey = "make-key" [Before, After],
    MakeCa = "make-ca" [Before, Acted, After],
    MakeCertificate = "make-certificate" [Before, Acted, After],
    MakeAdminToken = "make-admin-token" [Before, After],
    CreateToken = "create-token" [Before, After],
    RevokeToken = "revoke-token" [Before, After],
    IssueCertificate = "issue-certificate" [Before, After],
    RevokeCertificate = "revoke-certificate" [Before, After],
    Grant = "grant" [Before, After],
    Withdraw = "withdraw" [Before, After],
    PutResource = "put-resource" [Before, After],
    DropResource = "drop-resource" [Before, After],
    KeepAnswer = "keep-answer" [Before, After],
    PackImage = "pack-image" [Before, Acted, After],
    Sighting = "sighting" [Before, After],
    Deliver = "deliver" [Before, Acted, After],
}

impl Work {
    /// Doing what was decided; none for steps that nobody orders.
    pub(crate) const fn doing(action: Action) -> Option<Self> {
        Some(match action {
            Action::Join(JoinAction::Check) => Self::CheckCluster,
            Action::Join(JoinAction::Mint) => Self::MintForDrive,
            Action::Join(JoinAction::Begin) => Self::BeginJoin,
            Action::Join(JoinAction::Look) => Self::LookAtCluster,
            Action::Join(JoinAction::Settle) => Self::SettleNode,
            Action::Join(JoinAction::Revoke) => Self::EndToken,
            Action::Join(JoinAction::Drain) => Self::DrainNode,
            Action::Join(JoinAction::DeleteNode) => Self::DeleteNode,
            Action::Identify => Self::Identify,
            Action::ReadPower => Self::ReadPower,
            Action::Arm => Self::Arm,
            Action::InsertMedia => Self::InsertMedia,
            Action::SetBootOnce => Self::SetBootOnce,
            Action::PowerOn => Self::PowerOn,
            Action::ForceRestart => Self::ForceRestart,
            Action::PowerOff => Self::PowerOff,
            Action::ReleaseBoot | Action::Order(StepName::ReleaseBoot) => Self::ReleaseBoot,
            Action::OpenDeployment => Self::OpenDeployment,
            Action::BeginSteps(Kind::Inspect) => Self::BeginInspect,
            Action::BeginSteps(Kind::Clean) => Self::BeginClean,
            Action::BeginSteps(Kind::Deploy) => Self::BeginDeploy,
            Action::BeginSteps(Kind::ManualClean) => Self::BeginManualClean,
            Action::BeginSteps(Kind::Service) => Self::BeginService,
            // The way out of rescue begins with the request for it.
            Action::BeginSteps(Kind::Rescue | Kind::Unrescue) => Self::BeginRescue,
            Action::Order(StepName::Rescue) => Self::OrderRescue,
            Action::Admit(_) => Self::Admit,
            Action::Yield => Self::Yield,
            Action::Propose(_) => Self::Propose,
            Action::Rest => Self::Rest,
            Action::EndOperation => Self::EndOperation,
            Action::Order(StepName::Inspect) => Self::OrderInspect,
            Action::Order(StepName::Erase) => Self::OrderErase,
            Action::Order(StepName::WriteImage) => Self::OrderWriteImage,
            Action::Order(StepName::WriteConfigDrive) => Self::OrderWriteConfigDrive,
            Action::Order(StepName::SetBootEntry) => Self::OrderSetBootEntry,
            Action::Order(StepName::Boot) => Self::OrderBoot,
            Action::Cancel => Self::Cancel,
            Action::ForgetAgent => Self::ForgetAgent,
            Action::OsIsUp => Self::OsIsUp,
            Action::Order(
                StepName::AwaitOs | StepName::CheckCluster | StepName::MintToken | StepName::Join,
            ) => return None,
            Action::Remove => Self::Remove,
        })
    }

    /// Entering a state; none for the state that a host begins in.
    pub(crate) const fn entering(state: HostState) -> Option<Self> {
        match state {
            HostState::Registering => None,
            HostState::ExternallyProvisioned => Some(Self::EnterExternallyProvisioned),
            HostState::Inspecting => Some(Self::EnterInspecting),
            HostState::Preparing => Some(Self::EnterPreparing),
            HostState::Available => Some(Self::EnterAvailable),
            HostState::Provisioning => Some(Self::EnterProvisioning),
            HostState::Provisioned => Some(Self::EnterProvisioned),
            HostState::Deprovisioning => Some(Self::EnterDeprovisioning),
            HostState::Deleting => Some(Self::EnterDeleting),
        }
    }

    /// Taking a report; none for those that end nothing.
    pub(crate) const fn taking(report: &Report) -> Option<Self> {
        match report {
            Report::Accepted { .. } => Some(Self::Accepted),
            Report::Done { outcome, .. } => match outcome {
                Outcome::Inspected { .. } => Some(Self::Inspected),
                Outcome::Erased { .. } => Some(Self::Erased),
                Outcome::ImageWritten(_) => Some(Self::ImageWritten),
                Outcome::ConfigDriveWritten { .. } => Some(Self::ConfigDriveWritten),
                Outcome::BootEntrySet { .. } => Some(Self::BootEntrySet),
                Outcome::Booting { .. } => Some(Self::Booting),
                Outcome::RescueReady { .. } => Some(Self::RescueReady),
                Outcome::PoweringOff | Outcome::Unknown => None,
            },
            Report::Failed { .. } => Some(Self::StepFailed),
            Report::Progress { .. } | Report::Log { .. } | Report::Unknown => None,
        }
    }
}

/// A point that the conductor may be killed at.
#[cfg(not(any(test, debug_assertions)))]
#[inline]
pub(crate) fn point(_: Work, _: Moment) {}

#[cfg(any(test, debug_assertions))]
pub(crate) use armed::point;

/// A point, where there is one.
pub(crate) fn passing(work: Option<Work>, moment: Moment) {
    if let Some(work) = work {
        point(work, moment);
    }
}

/// A point's name.
#[cfg(any(test, debug_assertions))]
pub(crate) fn name(work: Work, moment: Moment) -> String {
    let moment = match moment {
        Moment::Before => "before",
        Moment::Acted => "acted",
        Moment::After => "after",
    };
    format!("{}.{moment}", work.as_str())
}

/// A debug build is killed where the environment says.
#[cfg(all(debug_assertions, not(test)))]
mod armed {
    use std::fs::{File, OpenOptions};
    use std::io::{self, Write};
    use std::path::Path;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    use nix::sys::signal::{Signal, raise};

    use super::{Moment, POINTS, Work, name};

    static WANTED: OnceLock<Option<(String, AtomicU32)>> = OnceLock::new();
    static TRACE: OnceLock<Option<File>> = OnceLock::new();

    /// A point that the conductor may be killed at.
    pub(crate) fn point(work: Work, moment: Moment) {
        if let Some(file) = TRACE.get_or_init(trace) {
            note(file, &format!("passed {}\n", name(work, moment)));
        }
        let Some((wanted, left)) = WANTED.get_or_init(wanted) else {
            return;
        };
        if *wanted == name(work, moment) && left.fetch_sub(1, Ordering::SeqCst) == 1 {
            tracing::warn!(point = wanted, "killed, as the environment says");
            let killed = raise(Signal::SIGKILL);
            tracing::error!(?killed, "still alive");
        }
    }

    fn wanted() -> Option<(String, AtomicU32)> {
        let wanted = std::env::var("FERRITE_CRASH_AT").ok()?;
        let (name, nth) = wanted.split_once(':').unwrap_or((&wanted, "1"));
        Some((name.to_owned(), AtomicU32::new(nth.parse().unwrap_or(1))))
    }

    /// The file that passes are added to; it begins with all that there are.
    fn trace() -> Option<File> {
        let path = std::env::var_os("FERRITE_CRASH_TRACE")?;
        match open(Path::new(&path)) {
            Ok(file) => Some(file),
            Err(error) => {
                tracing::error!(%error, "the points that are passed are not traced");
                None
            }
        }
    }

    fn open(path: &Path) -> io::Result<File> {
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        for (work, moment) in POINTS {
            writeln!(file, "known {}", name(*work, *moment))?;
        }
        Ok(file)
    }

    /// One call for one line: threads do not mix theirs.
    fn note(mut file: &File, line: &str) {
        if let Err(error) = file.write_all(line.as_bytes()) {
            tracing::error!(%error, "a point that was passed is not traced");
        }
    }
}

/// A test learns of each point that its thread passes.
#[cfg(test)]
pub(crate) mod armed {
    use std::cell::RefCell;

    use super::{Moment, Work};

    type Watcher = Box<dyn FnMut(Work, Moment)>;

    thread_local! {
        static WATCHER: RefCell<Option<Watcher>> = const { RefCell::new(None) };
    }

    /// A point that the conductor may be killed at.
    pub(crate) fn point(work: Work, moment: Moment) {
        WATCHER.with_borrow_mut(|watcher| {
            if let Some(watcher) = watcher {
                watcher(work, moment);
            }
        });
    }

    /// Has this thread's points watched, or no longer.
    pub(crate) fn watch(watcher: Option<Watcher>) {
        WATCHER.set(watcher);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_point_has_a_name_of_its_own() {
        let names: BTreeSet<_> = POINTS
            .iter()
            .map(|(work, moment)| name(*work, *moment))
            .collect();
        assert_eq!(names.len(), POINTS.len());
        assert!(names.len() >= 60, "{}", names.len());
    }
}
