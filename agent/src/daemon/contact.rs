//! The daemon's side of its protocol as a pure machine: which call is next, and how long to wait
//! after it. `mod.rs` has the network, the files and the clock.

use std::time::Duration;

use ferrite_proto::agent_api::{CheckInReply, CloudInitStage, DaemonConfig, Enroll, Identity};
use ferrite_proto::secret::Secret;
use sha2::{Digest, Sha256};

use crate::conductor::CallError;

/// Between check-ins while cloud-init is at work: somebody is waiting for it.
const WHILE_STARTING: Duration = Duration::from_secs(2);
/// What the conductor may ask for.
const LONGEST_INTERVAL: u32 = 3600;
/// Wait after a refusal: only a person can change it.
pub(super) const AFTER_REFUSAL: Duration = Duration::from_mins(1);
/// Longest wait for a conductor that does not answer.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// What is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// The key is not known yet: [`Contact::enroll`].
    Enroll,
    /// The heartbeat, with the key.
    CheckIn,
}

/// The machine.
#[derive(Debug)]
pub struct Contact {
    config: DaemonConfig,
    key: Secret<String>,
    /// Whether this process has enrolled, or need not.
    enrolled: bool,
    failures: u32,
}

impl Contact {
    /// A daemon that has just started.
    pub fn new(config: DaemonConfig, key: Secret<String>) -> Self {
        let enrolled = config.credential.expose().is_empty();
        Self {
            config,
            key,
            enrolled,
            failures: 0,
        }
    }

    /// What the config drive said, less what was used up.
    pub fn config(&self) -> &DaemonConfig {
        &self.config
    }

    /// For `Authorization: Bearer` of a check-in.
    pub fn key(&self) -> &Secret<String> {
        &self.key
    }

    /// What is to be sent now.
    pub fn next(&self) -> Call {
        if self.enrolled {
            Call::CheckIn
        } else {
            Call::Enroll
        }
    }

    /// Has the key known. Sent again unchanged when the reply was lost.
    pub fn enroll(&self, identity: Identity) -> Enroll {
        let digest = Sha256::digest(self.key.expose());
        Enroll {
            credential: self.config.credential.clone(),
            key_sha256: ferrite_proto::digest::to_hex(&digest),
            identity,
        }
    }

    /// An enrolment was answered. Returns how long to wait.
    pub fn enrolled(&mut self) -> Duration {
        self.failures = 0;
        self.enrolled = true;
        Duration::ZERO
    }

    /// A check-in was answered. Returns how long to wait.
    pub fn checked_in(&mut self, reply: &CheckInReply, stage: CloudInitStage) -> Duration {
        self.failures = 0;
        let asked = reply.check_in_seconds.clamp(1, LONGEST_INTERVAL);
        let asked = Duration::from_secs(asked.into());
        if stage == CloudInitStage::Running {
            asked.min(WHILE_STARTING)
        } else {
            asked
        }
    }

    /// The credential is void once the key was used: it need not lie around. Whether there was one.
    pub fn forget_credential(&mut self) -> bool {
        if self.config.credential.expose().is_empty() {
            return false;
        }
        self.config.credential = Secret::new(String::new());
        true
    }

    /// A call had no usable answer. Returns how long to wait.
    pub fn failed(&mut self, error: &CallError) -> Duration {
        if matches!(error, CallError::Unauthorized { .. }) {
            // A refused enrolment may mean that an earlier life of this daemon got through.
            self.enrolled = !self.enrolled || self.config.credential.expose().is_empty();
            return AFTER_REFUSAL;
        }
        self.failures = self.failures.saturating_add(1);
        let doubled = 1_u64.checked_shl(self.failures - 1).unwrap_or(u64::MAX);
        Duration::from_secs(doubled).min(LONGEST_WAIT)
    }
}
