//! The agent protocol: the agent always calls, and is never called.
//!
//! All calls are `POST` with JSON over HTTPS to a conductor whose CA is pinned.
//!
//! | path | who | authorization |
//! | --- | --- | --- |
//! | [`HELLO`] | the ramdisk, once a boot | the boot ticket in the body |
//! | [`POLL`] | the ramdisk, all the time | `Bearer` agent token |
//! | [`ENROLL`] | the host daemon, once a deployment | the one-time credential in the body |
//! | [`CHECK_IN`] | the host daemon, all the time | `Bearer` daemon key |
//! | [`join`](crate::join) | the host daemon, while it joins | `Bearer` daemon key |

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::boot::CaPin;
use crate::inventory::BootMode;
use crate::join::JoinOrder;
use crate::mac::Mac;
use crate::problem::Problem;
use crate::secret::Secret;
use crate::step::{Outcome, Progress, Step};

/// First words of a ramdisk.
pub const HELLO: &str = "/v1/agent/hello";
/// Ask for work, report work.
pub const POLL: &str = "/v1/agent/poll";
/// First words of a host daemon.
pub const ENROLL: &str = "/v1/daemon/enroll";
/// The daemon's heartbeat.
pub const CHECK_IN: &str = "/v1/daemon/check-in";

/// Who is calling, as the machine itself tells.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Identity {
    /// SMBIOS system UUID, lower case.
    pub uuid: Option<String>,
    /// SMBIOS system serial.
    pub serial: Option<String>,
    /// MACs of its NICs.
    pub macs: Vec<Mac>,
}

/// First words of a ramdisk. The same ticket and nonce get the same answer until the first poll;
/// any other second use is refused and raises an alarm.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Hello {
    /// From the boot medium.
    pub ticket: Secret<String>,
    /// Made by PID 1 once a boot; a restarted child sends the same.
    pub nonce: String,
    /// The machine.
    pub identity: Identity,
    /// The agent's version.
    pub agent_version: String,
    /// `uname -r`.
    pub kernel: String,
    /// Seconds since the kernel started, so that the conductor can tell firmware time from ours.
    pub uptime_seconds: f64,
    /// How it was booted.
    pub boot_mode: BootMode,
    /// Memory the kernel can use, bytes.
    pub memory_bytes: u64,
}

/// The answer to [`Hello`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HelloReply {
    /// For `Authorization: Bearer`.
    pub token: Secret<String>,
    /// The host's name in Ferrite, for the console.
    pub host: String,
    /// How long the conductor may hold a poll open.
    pub poll_seconds: u32,
}

/// Ask and report. A poll whose reply was lost is sent again unchanged.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Poll {
    /// Grows by one with every new poll.
    pub sequence: u64,
    /// What happened since the last poll that was answered. A poll with reports is answered at
    /// once; one without may be held for `poll_seconds`.
    pub reports: Vec<Report>,
}

/// The answer to [`Poll`].
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PollReply {
    /// What to do next. Sent again until it is accepted, never run twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Order>,
    /// An accepted order that shall be stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancel: Option<u64>,
}

/// A numbered step. Numbers grow within a host's life.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Order {
    /// The number that reports name.
    pub number: u64,
    /// What to do.
    pub step: Step,
}

/// What an agent says of an order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "report", rename_all = "kebab-case")]
pub enum Report {
    /// Taken; it starts when this poll is answered.
    Accepted {
        /// The order.
        order: u64,
    },
    /// Under way.
    Progress {
        /// The order.
        order: u64,
        /// How far.
        progress: Progress,
    },
    /// Done.
    Done {
        /// The order.
        order: u64,
        /// What came of it.
        outcome: Outcome,
        /// Wall seconds.
        seconds: f64,
    },
    /// Ended without success. The step left the disk as its problem's advice says.
    Failed {
        /// The order.
        order: u64,
        /// Why.
        problem: Problem,
    },
    /// A line for the host's log; at most 1,000 characters.
    Log {
        /// The line.
        line: String,
    },
    /// Of a newer agent.
    #[serde(other)]
    Unknown,
}

/// What the config drive tells the host daemon.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DaemonConfig {
    /// `https://host:port` of the conductor.
    pub url: String,
    /// Its CA.
    pub ca: CaPin,
    /// The host's name in Ferrite.
    pub host: String,
    /// Exchanged at the first contact for the daemon's own key, then void.
    pub credential: Secret<String>,
}

/// First words of a host daemon. The daemon makes its key itself and keeps it; the conductor only
/// ever sees its digest here. The same credential with the same digest is answered again until the
/// first check-in (a lost reply costs nothing); with another digest it is refused.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Enroll {
    /// From [`DaemonConfig`].
    pub credential: Secret<String>,
    /// Lower-case hex SHA-256 of the key that [`CHECK_IN`] will carry.
    pub key_sha256: String,
    /// The machine.
    pub identity: Identity,
}

/// The answer to [`Enroll`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EnrollReply {
    /// The host's name in Ferrite.
    pub host: String,
    /// Seconds between check-ins.
    pub check_in_seconds: u32,
}

/// The daemon's heartbeat.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CheckIn {
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// When this kernel started.
    pub booted_at: Timestamp,
    /// Seconds since.
    pub uptime_seconds: f64,
    /// `PRETTY_NAME` of os-release.
    pub os: String,
    /// `uname -r`.
    pub kernel: String,
    /// The daemon's version.
    pub agent_version: String,
    /// What cloud-init says of itself.
    pub cloud_init: CloudInit,
}

/// cloud-init's result (`/run/cloud-init/result.json`, `status.json`).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct CloudInit {
    /// How far it is.
    pub stage: CloudInitStage,
    /// The data source it read.
    pub datasource: Option<String>,
    /// Its errors.
    pub errors: Vec<String>,
    /// When it finished.
    pub finished_at: Option<Timestamp>,
}

/// How far cloud-init is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum CloudInitStage {
    /// Not installed, or it did not start.
    #[default]
    Absent,
    /// Running.
    Running,
    /// Finished without errors.
    Done,
    /// Finished with errors.
    Failed,
}

/// The answer to [`CheckIn`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CheckInReply {
    /// Seconds to the next.
    pub check_in_seconds: u32,
    /// It shall join its cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub join: Option<JoinOrder>,
}
