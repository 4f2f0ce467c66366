//! Durable steps: what was asked of a host, what has begun, what is done.
//!
//! A workflow is a list of named steps that is stored with its host. A step is stored before it
//! runs and after it ends, so a conductor that is killed in between goes on where it was. Pure:
//! who runs a step, and when, is not decided here.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::guard::{self, Guard};

/// What a workflow is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// Read the hardware.
    Inspect,
    /// Make the disks forget.
    Clean,
    /// Put an OS on the disk and start it.
    Deploy,
    /// Clean steps that a person chose.
    ManualClean,
    /// Service steps that a person chose, then the OS again.
    Service,
    /// Have a person log in to the ramdisk.
    Rescue,
    /// The OS again, out of the ramdisk.
    Unrescue,
}

/// The named steps. Most are the agent's; the others are the conductor's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum StepName {
    /// The agent reads the hardware.
    Inspect,
    /// The agent erases the disks.
    Erase,
    /// The agent writes the image.
    WriteImage,
    /// The conductor has a token made for a host that joins by cloud-init.
    MintToken,
    /// The agent adds the config drive.
    WriteConfigDrive,
    /// The agent sets the firmware's boot order.
    SetBootEntry,
    /// The conductor empties the virtual drive and clears the boot override.
    ReleaseBoot,
    /// The agent starts the deployed OS.
    Boot,
    /// The conductor waits for the host daemon and for cloud-init.
    AwaitOs,
    /// The agent lets a person log in.
    Rescue,
    /// The conductor makes sure that the cluster can be joined, before anything is written.
    CheckCluster,
    /// The conductor has the host join its cluster, and waits until it has.
    Join,
}

/// Who runs a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// The agent, by an order.
    Agent,
    /// The conductor.
    Conductor,
}

impl Kind {
    /// Every kind.
    #[cfg(test)]
    pub(crate) const ALL: [Self; 7] = [
        Self::Inspect,
        Self::Clean,
        Self::Deploy,
        Self::ManualClean,
        Self::Service,
        Self::Rescue,
        Self::Unrescue,
    ];

    /// The name as people write it.
    #[cfg(test)]
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Inspect => "inspect",
            Self::Clean => "clean",
            Self::Deploy => "deploy",
            Self::ManualClean => "manual clean",
            Self::Service => "service",
            Self::Rescue => "rescue",
            Self::Unrescue => "unrescue",
        }
    }

    /// Its steps, in order; those that a person chose come before them.
    pub(crate) const fn steps(self) -> &'static [StepName] {
        match self {
            Self::Inspect => &[StepName::Inspect],
            Self::Clean => &[StepName::Erase],
            Self::Deploy => &[
                StepName::WriteImage,
                StepName::WriteConfigDrive,
                StepName::SetBootEntry,
                StepName::ReleaseBoot,
                StepName::Boot,
                StepName::AwaitOs,
            ],
            Self::ManualClean => &[],
            Self::Service | Self::Unrescue => {
                &[StepName::ReleaseBoot, StepName::Boot, StepName::AwaitOs]
            }
            Self::Rescue => &[StepName::Rescue],
        }
    }
}

impl StepName {
    /// The name as people and the agent protocol write it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Inspect => "inspect",
            Self::Erase => "erase",
            Self::WriteImage => "write-image",
            Self::MintToken => "mint-token",
            Self::WriteConfigDrive => "write-config-drive",
            Self::SetBootEntry => "set-boot-entry",
            Self::ReleaseBoot => "release-boot",
            Self::Boot => "boot",
            Self::AwaitOs => "await-os",
            Self::Rescue => "rescue",
            Self::CheckCluster => "check-cluster",
            Self::Join => "join",
        }
    }

    /// Who runs it.
    pub(crate) const fn place(self) -> Place {
        match self {
            Self::ReleaseBoot
            | Self::AwaitOs
            | Self::CheckCluster
            | Self::MintToken
            | Self::Join => Place::Conductor,
            Self::Inspect
            | Self::Erase
            | Self::WriteImage
            | Self::WriteConfigDrive
            | Self::SetBootEntry
            | Self::Boot
            | Self::Rescue => Place::Agent,
        }
    }

    /// Whether it takes what is on a disk away.
    pub(crate) const fn is_destructive(self) -> bool {
        match self {
            Self::Erase | Self::WriteImage => true,
            Self::Inspect
            | Self::WriteConfigDrive
            | Self::SetBootEntry
            | Self::ReleaseBoot
            | Self::Boot
            | Self::AwaitOs
            | Self::Rescue
            | Self::CheckCluster
            | Self::MintToken
            | Self::Join => false,
        }
    }

    /// Where to go on from when this step was cut off or failed. A config drive is made in a
    /// partition table that `write-image` wrote last: after a cut nothing is known of either.
    fn redo(self) -> Self {
        match self {
            Self::WriteConfigDrive if guard::stands(Guard::ImageRedoneAfterCut) => Self::WriteImage,
            Self::Inspect
            | Self::Erase
            | Self::WriteImage
            | Self::WriteConfigDrive
            | Self::SetBootEntry
            | Self::ReleaseBoot
            | Self::Boot
            | Self::AwaitOs
            | Self::Rescue
            | Self::CheckCluster
            | Self::MintToken
            | Self::Join => self,
        }
    }
}

/// How far a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub(crate) enum StepState {
    /// Not begun.
    Pending,
    /// An order was made; the agent has not taken it yet.
    Ordered {
        /// Its number.
        order: u64,
        /// When.
        at: Timestamp,
    },
    /// The agent has taken the order.
    Accepted {
        /// Its number.
        order: u64,
        /// When it was ordered.
        at: Timestamp,
    },
    /// Ended well.
    Done {
        /// When.
        at: Timestamp,
    },
}

/// A step of a workflow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StepRun {
    /// Which.
    pub(crate) name: StepName,
    /// How far.
    #[serde(flatten)]
    pub(crate) state: StepState,
}

/// A list of steps, under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Workflow {
    /// What for.
    pub(crate) kind: Kind,
    /// Its steps.
    pub(crate) steps: Vec<StepRun>,
    /// The order that is out shall be stopped.
    #[serde(default)]
    pub(crate) cancelling: bool,
}

impl Workflow {
    /// All steps pending.
    #[cfg(test)]
    pub(crate) fn new(kind: Kind) -> Self {
        Self::of(kind, kind.steps())
    }

    /// These steps, all pending.
    pub(crate) fn of(kind: Kind, steps: &[StepName]) -> Self {
        let pending = |name: &StepName| StepRun {
            name: *name,
            state: StepState::Pending,
        };
        Self {
            kind,
            steps: steps.iter().map(pending).collect(),
            cancelling: false,
        }
    }

    /// The first step that is not done; `None` when all are.
    pub(crate) fn current(&self) -> Option<StepRun> {
        self.steps
            .iter()
            .find(|step| !matches!(step.state, StepState::Done { .. }))
            .copied()
    }

    /// The steps that are not done.
    pub(crate) fn left(&self) -> impl Iterator<Item = StepName> {
        let is_left = |step: &&StepRun| !matches!(step.state, StepState::Done { .. });
        self.steps.iter().filter(is_left).map(|step| step.name)
    }

    /// When a step was done.
    pub(crate) fn done_at(&self, name: StepName) -> Option<Timestamp> {
        let step = self.steps.iter().find(|step| step.name == name)?;
        match step.state {
            StepState::Done { at } => Some(at),
            StepState::Pending | StepState::Ordered { .. } | StepState::Accepted { .. } => None,
        }
    }

    /// The order that is out, taken or not: its number and its step.
    pub(crate) fn outstanding(&self) -> Option<(u64, StepName)> {
        let step = self.current()?;
        match step.state {
            StepState::Ordered { order, .. } | StepState::Accepted { order, .. } => {
                Some((order, step.name))
            }
            StepState::Pending | StepState::Done { .. } => None,
        }
    }

    /// Whether the agent has taken this order and has not ended it.
    pub(crate) fn is_under_way(&self, number: u64) -> bool {
        self.current().is_some_and(
            |step| matches!(step.state, StepState::Accepted { order, .. } if order == number),
        )
    }

    /// The order that an agent is still to take.
    pub(crate) fn to_hand_out(&self) -> Option<(u64, StepName)> {
        let step = self.current()?;
        match step.state {
            StepState::Ordered { order, .. } => Some((order, step.name)),
            StepState::Accepted { order, .. } if !guard::stands(Guard::AcceptedIsNotHandedOut) => {
                Some((order, step.name))
            }
            StepState::Pending | StepState::Accepted { .. } | StepState::Done { .. } => None,
        }
    }

    /// The current step gets an order.
    pub(crate) fn order(&mut self, order: u64, at: Timestamp) {
        self.cancelling = false;
        self.set_current(StepState::Ordered { order, at });
    }

    /// The agent has taken an order. False when it is not the one that is out.
    pub(crate) fn accepted(&mut self, number: u64) -> bool {
        match self.current().map(|step| step.state) {
            Some(StepState::Ordered { order, at }) if order == number => {
                self.set_current(StepState::Accepted { order, at });
                true
            }
            Some(StepState::Accepted { order, .. }) => order == number,
            _ => false,
        }
    }

    /// The current step ended well.
    pub(crate) fn done(&mut self, at: Timestamp) {
        self.cancelling = false;
        self.set_current(StepState::Done { at });
    }

    /// The current step was cut off or failed: go back to where it is safe to go on from.
    pub(crate) fn go_back(&mut self) {
        self.cancelling = false;
        let Some(current) = self.current() else {
            return;
        };
        let from = self
            .steps
            .iter()
            .position(|step| step.name == current.name.redo())
            .unwrap_or(0);
        for step in self.steps.iter_mut().skip(from) {
            step.state = StepState::Pending;
        }
    }

    fn set_current(&mut self, state: StepState) {
        let current = self
            .steps
            .iter_mut()
            .find(|step| !matches!(step.state, StepState::Done { .. }));
        if let Some(step) = current {
            step.state = state;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_workflow_goes_through_its_steps_in_order() {
        let mut flow = Workflow::new(Kind::Deploy);
        for (index, name) in Kind::Deploy.steps().iter().enumerate() {
            assert_eq!(flow.current().unwrap().name, *name);
            let order = u64::try_from(index).unwrap() + 1;
            flow.order(order, at(1));
            assert_eq!(flow.to_hand_out(), Some((order, *name)));
            assert!(flow.accepted(order) && flow.accepted(order));
            assert!(!flow.accepted(order + 1));
            assert_eq!(flow.to_hand_out(), None);
            assert_eq!(flow.outstanding(), Some((order, *name)));
            flow.done(at(2));
        }
        assert_eq!(flow.current(), None);
    }

    #[test]
    fn a_config_drive_that_was_cut_off_writes_the_image_again_and_a_boot_does_not() {
        let mut flow = Workflow::new(Kind::Deploy);
        flow.order(1, at(1));
        flow.done(at(2));
        flow.order(2, at(3));
        flow.go_back();
        assert_eq!(flow.current().unwrap().name, StepName::WriteImage);
        for order in 3..7 {
            flow.order(order, at(4));
            flow.done(at(5));
        }
        assert_eq!(flow.current().unwrap().name, StepName::Boot);
        flow.order(7, at(6));
        flow.go_back();
        assert_eq!(flow.current().unwrap().name, StepName::Boot);
    }
}
