//! Rolling the hosts of a cluster to another image, a few at a time: what is asked for, and how far
//! it is.
//!
//! Not here: which host is next; the conductor decides that.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::host::HostState;
use crate::image::ImageRef;
use crate::problem::Problem;

/// How many hosts may be unavailable at once: a number, or a share of all of them as `"25%"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Raw", into = "Raw")]
pub enum MaxUnavailable {
    /// So many.
    Hosts(u32),
    /// So many of a hundred.
    Percent(u32),
}

/// As it is written.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
enum Raw {
    Number(u32),
    Text(String),
}

/// Text that is no such number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither a number of hosts from 1 on nor a share from 1% to 100%")]
pub struct InvalidMaxUnavailable(String);

impl Default for MaxUnavailable {
    fn default() -> Self {
        Self::Hosts(1)
    }
}

impl MaxUnavailable {
    /// How many of so many that is: rounded down, but one at least.
    pub fn of(self, total: usize) -> usize {
        match self {
            Self::Hosts(count) => usize::try_from(count).unwrap_or(usize::MAX),
            Self::Percent(share) => {
                let share = usize::try_from(share).unwrap_or(100);
                (total.saturating_mul(share) / 100).max(1)
            }
        }
    }
}

impl FromStr for MaxUnavailable {
    type Err = InvalidMaxUnavailable;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |digits: &str| {
            // No sign, no leading zero: one way to write each.
            let plain = matches!(digits.bytes().next(), Some(b'1'..=b'9'));
            digits.parse::<u32>().ok().filter(|_| plain)
        };
        let read = match text.strip_suffix('%') {
            Some(share) => number(share).filter(|n| *n <= 100).map(Self::Percent),
            None => number(text).map(Self::Hosts),
        };
        read.ok_or_else(|| InvalidMaxUnavailable(text.chars().take(40).collect()))
    }
}

impl TryFrom<Raw> for MaxUnavailable {
    type Error = InvalidMaxUnavailable;

    fn try_from(raw: Raw) -> Result<Self, Self::Error> {
        match raw {
            Raw::Number(count) => count.to_string().parse(),
            Raw::Text(text) if text.ends_with('%') => text.parse(),
            Raw::Text(text) => Err(InvalidMaxUnavailable(text.chars().take(40).collect())),
        }
    }
}

impl From<MaxUnavailable> for Raw {
    fn from(most: MaxUnavailable) -> Self {
        match most {
            MaxUnavailable::Hosts(count) => Self::Number(count),
            MaxUnavailable::Percent(_) => Self::Text(most.to_string()),
        }
    }
}

impl fmt::Display for MaxUnavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hosts(count) => write!(f, "{count}"),
            Self::Percent(share) => write!(f, "{share}%"),
        }
    }
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct RollRequest {
    /// The image; or `image_name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageRef>,
    /// The name of an image. What it stands for now is what all hosts get.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_name: Option<String>,
    /// How many hosts may be unavailable at once; 1 when absent.
    #[serde(default)]
    pub max_unavailable: MaxUnavailable,
    /// So many are rolled and ready before any other is begun; none when 0.
    #[serde(default)]
    pub canary: u32,
}

/// What was asked for, with what the image's name stood for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RollSpec {
    /// The image.
    pub image: ImageRef,
    /// Its name, if it was given by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_name: Option<String>,
    /// How many hosts may be unavailable at once.
    pub max_unavailable: MaxUnavailable,
    /// So many are rolled and ready before any other is begun.
    #[serde(default)]
    pub canary: u32,
}

/// A cluster's hosts on their way to another image. A cluster has one roll at most; the last is
/// kept until there is another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ClusterRoll {
    /// The cluster.
    pub cluster: String,
    /// Of this roll, and of no other ever.
    pub uid: String,
    /// Who asked for it.
    pub by: String,
    /// What was asked for.
    pub spec: RollSpec,
    /// How far it is.
    pub status: RollStatus,
}

/// How far a roll is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RollStatus {
    /// What becomes of it.
    pub phase: RollPhase,
    /// Since when.
    pub since: Timestamp,
    /// When it was asked for.
    pub started: Timestamp,
    /// What it is doing or waiting for, in words.
    pub message: String,
    /// Hosts of the cluster.
    #[serde(default)]
    pub total: u32,
    /// Those that have the image and are ready.
    #[serde(default)]
    pub updated: u32,
    /// Those that are not ready, and those that are being rolled.
    #[serde(default)]
    pub unavailable: u32,
    /// Those that are being rolled.
    #[serde(default)]
    pub current: Vec<RollingHost>,
    /// Those that are left out, since a person holds them.
    #[serde(default)]
    pub skipped: Vec<SkippedHost>,
    /// What stopped it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<RollFailure>,
    /// The same for programs that know Kubernetes' conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<RollCondition>,
}

/// What becomes of a roll.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum RollPhase {
    /// It goes on.
    Progressing,
    /// A person paused it: nothing is begun.
    Paused,
    /// Something failed: nothing is begun until a person resumes it.
    Stopped,
    /// Every host that nobody holds has the image and is ready.
    Complete,
    /// A person ended it.
    Aborted,
}

impl RollPhase {
    /// The name as people read it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Progressing => "progressing",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Complete => "complete",
            Self::Aborted => "aborted",
        }
    }

    /// Whether it is over for good.
    pub const fn has_ended(self) -> bool {
        matches!(self, Self::Complete | Self::Aborted)
    }
}

impl fmt::Display for RollPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A host that is being rolled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RollingHost {
    /// Its name.
    pub host: String,
    /// Of this host, and of no other of that name.
    pub uid: String,
    /// Since when.
    pub since: Timestamp,
    /// It was told to take the image.
    #[serde(default)]
    pub ordered: bool,
    /// Where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<HostState>,
    /// What it waits for there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_for: Option<String>,
}

/// A host that is left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SkippedHost {
    /// Its name.
    pub host: String,
    /// Why.
    pub reason: String,
}

/// What stopped a roll.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RollFailure {
    /// The host.
    pub host: String,
    /// When it was seen.
    pub at: Timestamp,
    /// What is wrong with it: a stable code, and words.
    pub problem: Problem,
}

/// A condition, as Kubernetes has them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RollCondition {
    /// `Progressing` or `Complete`.
    pub r#type: String,
    /// `True` or `False`.
    pub status: String,
    /// A word for programs: `HostsAreRolled`, `Paused`, `HostFailed`, `Complete`, `Aborted`.
    pub reason: String,
    /// Words for people.
    pub message: String,
    /// Since when.
    pub last_transition_time: Timestamp,
}

impl RollStatus {
    /// The conditions that the phase stands for.
    pub fn conditions_of(&self) -> Vec<RollCondition> {
        let reason = match self.phase {
            RollPhase::Progressing => "HostsAreRolled",
            RollPhase::Paused => "Paused",
            RollPhase::Stopped => "HostFailed",
            RollPhase::Complete => "Complete",
            RollPhase::Aborted => "Aborted",
        };
        let condition = |kind: &str, holds: bool| RollCondition {
            r#type: kind.to_owned(),
            status: if holds { "True" } else { "False" }.to_owned(),
            reason: reason.to_owned(),
            message: self.message.clone(),
            last_transition_time: self.since,
        };
        vec![
            condition("Progressing", self.phase == RollPhase::Progressing),
            condition("Complete", self.phase == RollPhase::Complete),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_share_is_rounded_down_and_never_to_nothing() {
        let of = |text: &str, total| text.parse::<MaxUnavailable>().map(|most| most.of(total));
        assert_eq!(of("25%", 10), Ok(2));
        assert_eq!(of("25%", 3), Ok(1));
        assert_eq!(of("100%", 3), Ok(3));
        assert_eq!(of("7", 3), Ok(7));
        for bad in ["", "0", "0%", "101%", "-1", "+1", "01%", "1.5", "%", "a"] {
            assert!(bad.parse::<MaxUnavailable>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_limit_is_written_as_kubernetes_writes_it() {
        let read = |json| serde_json::from_value::<MaxUnavailable>(json);
        assert_eq!(read(json!(2)).unwrap(), MaxUnavailable::Hosts(2));
        assert_eq!(read(json!("30%")).unwrap(), MaxUnavailable::Percent(30));
        for bad in [json!("2"), json!(0), json!("0%"), json!(-1), json!(null)] {
            assert!(read(bad.clone()).is_err(), "{bad}");
        }
        assert_eq!(json!(MaxUnavailable::Percent(30)), json!("30%"));
        assert_eq!(json!(MaxUnavailable::Hosts(2)), json!(2));
    }
}
