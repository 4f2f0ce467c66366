//! The closed set of steps that an agent runs, what comes of them, and how far they are.
//!
//! An unknown step is refused by the agent, never skipped.

use serde::{Deserialize, Serialize};

use crate::hints::{RootDeviceDefault, RootDeviceHints};
use crate::image::ImageRef;
use crate::image_server::ImageServer;
use crate::inventory::Inventory;
use crate::secret::Secret;

/// One verb for an agent, with all it needs to know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum Step {
    /// Read the hardware. Idempotent.
    Inspect,
    /// Make every usable disk of the host forget what it held. Must restart when cut off.
    Erase {
        /// How thoroughly.
        method: EraseMethod,
    },
    /// Write the image to the root disk. Must restart when cut off.
    WriteImage {
        /// What to write.
        image: ImageRef,
        /// Where to.
        root: RootDisk,
        /// What is known of the servers it is on.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        servers: Vec<ImageServer>,
        /// Read all of it back before the disk becomes bootable.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        verify: bool,
    },
    /// Add the config drive partition to the root disk. When cut off, starts from `WriteImage`.
    WriteConfigDrive {
        /// The disk that the image was written to.
        root: RootDisk,
        /// Its files. The agent adds its own binary as [`CONFIG_DRIVE_AGENT`].
        files: Vec<ConfigFile>,
    },
    /// Make the firmware boot the root disk first (UEFI variables; nothing to do under BIOS).
    SetBootEntry {
        /// The disk that the image was written to.
        root: RootDisk,
    },
    /// Boot the deployed OS. The agent reports before it goes.
    Boot {
        /// The disk that the image was written to.
        root: RootDisk,
        /// How.
        method: BootMethod,
    },
    /// Let a person log in over SSH. Only the rescue ramdisk has what it takes; another refuses.
    /// Idempotent.
    Rescue {
        /// Hash of root's password in the form of crypt(5), `$6$…`.
        password_hash: Secret<String>,
        /// Lines for root's `authorized_keys`.
        #[serde(default)]
        authorized_keys: Vec<String>,
    },
    /// Switch the machine off. The agent reports before it goes.
    PowerOff,
}

impl Step {
    /// The step's name, as in the JSON tag and in the file that implements it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Inspect => "inspect",
            Self::Erase { .. } => "erase",
            Self::WriteImage { .. } => "write-image",
            Self::WriteConfigDrive { .. } => "write-config-drive",
            Self::SetBootEntry { .. } => "set-boot-entry",
            Self::Boot { .. } => "boot",
            Self::Rescue { .. } => "rescue",
            Self::PowerOff => "power-off",
        }
    }
}

/// Where the agent's binary lies on the config drive.
pub const CONFIG_DRIVE_AGENT: &str = "ferrite/ferrite-agent";
/// Where the host daemon's configuration ([`crate::agent_api::DaemonConfig`]) lies on it.
pub const CONFIG_DRIVE_DAEMON: &str = "ferrite/daemon.json";
/// Volume label and partition name of the config drive (OpenStack's ConfigDrive version 2).
pub const CONFIG_DRIVE_LABEL: &str = "config-2";

/// How a disk is erased.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum EraseMethod {
    /// Partition tables and signatures: the first and last MiB of the disk and its partitions.
    #[default]
    Metadata,
}

/// The rule that finds the root disk; evaluated afresh by each step.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RootDisk {
    /// What a person said.
    #[serde(default)]
    pub hints: RootDeviceHints,
    /// What holds when nothing was said.
    #[serde(default)]
    pub default: RootDeviceDefault,
}

/// A file of the config drive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ConfigFile {
    /// Relative, of `[A-Za-z0-9._-]` parts joined by `/`.
    pub path: String,
    /// Its text. User data and the daemon's credential are secrets.
    pub content: Secret<String>,
}

/// How the deployed OS is started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum BootMethod {
    /// kexec where the kernel can be found without running anything of the image, else reboot.
    #[default]
    Kexec,
    /// Through the firmware.
    Reboot,
}

/// What came of a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Outcome {
    /// Of `inspect`.
    Inspected {
        /// The machine.
        inventory: Box<Inventory>,
    },
    /// Of `erase`.
    Erased {
        /// Each disk that was erased.
        disks: Vec<ErasedDisk>,
    },
    /// Of `write-image`.
    ImageWritten(ImageWritten),
    /// Of `write-config-drive`.
    ConfigDriveWritten {
        /// The partition's device.
        partition: String,
        /// Bytes written.
        bytes: u64,
    },
    /// Of `set-boot-entry`.
    BootEntrySet {
        /// `Boot0007: debian`, or why there was nothing to do.
        detail: String,
    },
    /// Of `boot`: sent before the agent goes.
    Booting {
        /// What is really done, after any fallback.
        method: BootMethod,
        /// Kernel that is started, or why it is a reboot.
        detail: String,
    },
    /// Of `rescue`: the SSH server listens.
    RescueReady {
        /// The machine's addresses.
        addresses: Vec<String>,
        /// Fingerprints of its SSH host keys, as `ssh` shows them.
        host_keys: Vec<String>,
    },
    /// Of `power-off`: sent before the agent goes.
    PoweringOff,
    /// Of a newer agent.
    #[serde(other)]
    Unknown,
}

/// What was erased.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ErasedDisk {
    /// `/dev/sda`.
    pub name: String,
    /// Serial number.
    pub serial: Option<String>,
    /// Bytes overwritten.
    pub bytes: u64,
}

/// What was written, in figures.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct ImageWritten {
    /// The disk.
    pub disk: String,
    /// Its serial number.
    pub serial: Option<String>,
    /// Bytes of the file as fetched.
    pub bytes_read: u64,
    /// Bytes of the image, decompressed.
    pub bytes_image: u64,
    /// Bytes sent to the disk.
    pub bytes_written: u64,
    /// Bytes of zeros that the disk was told to zero, not sent.
    pub bytes_zeroed: u64,
    /// Bytes of the image that the disk had already.
    pub bytes_skipped: u64,
    /// The digest found, which is the one demanded.
    pub digest: Option<String>,
    /// All of it was read back from the disk before that became bootable.
    pub verified: bool,
    /// Wall seconds.
    pub seconds: f64,
    /// Peak resident memory of the agent, bytes (`VmHWM`).
    pub agent_peak_bytes: u64,
    /// Least memory that was available on the machine meanwhile, bytes (`MemAvailable`).
    pub memory_low_bytes: u64,
}

/// How far a step is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Progress {
    /// What it is at, in a word or two.
    pub phase: String,
    /// Bytes done of the whole.
    pub bytes_done: u64,
    /// Bytes in all, when known.
    pub bytes_total: Option<u64>,
    /// Present rate.
    pub bytes_per_second: u64,
    /// Of an image that is written: bytes of its file that have come.
    pub bytes_fetched: u64,
    /// Bytes of the image that have been decoded.
    pub bytes_decoded: u64,
    /// Bytes of it that were sent to the disk.
    pub bytes_written: u64,
    /// Bytes of it that the disk had already.
    pub bytes_skipped: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tag_is_the_name() {
        let step = Step::Boot {
            root: RootDisk::default(),
            method: BootMethod::Kexec,
        };
        let json = serde_json::to_value(&step).unwrap();
        assert_eq!(json["step"], step.name());
        assert_eq!(serde_json::from_value::<Step>(json).unwrap(), step);
    }

    #[test]
    fn an_unknown_step_is_refused_and_an_unknown_outcome_survives() {
        assert!(serde_json::from_str::<Step>(r#"{"step":"flash-bios"}"#).is_err());
        let outcome: Outcome = serde_json::from_str(r#"{"outcome":"flashed","x":1}"#).unwrap();
        assert_eq!(outcome, Outcome::Unknown);
    }
}
