//! The host daemon: on the deployed OS, in touch with the conductor for as long as it runs.
//!
//! It makes its own key, has it known by a one-time credential, and then only reports; and it runs
//! `kubeadm join` when the conductor says that this host joins a cluster. It is never called,
//! opens no port, and runs nothing that anybody sends.

mod cloud_init;
pub(crate) mod contact;
pub(crate) mod install;
mod join;
mod keep;
mod report;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use ferrite_proto::agent_api::{
    CHECK_IN, CheckIn, CheckInReply, DaemonConfig, ENROLL, EnrollReply,
};
use ferrite_proto::secret::Secret;

use self::contact::{Call, Contact};
use self::join::Joining;
use crate::conductor::{CallError, Conductor};
use crate::ramdisk::worker::identity;
use crate::root::Root;

/// How long a call may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// `ferrite-agent daemon`.
#[derive(Debug, Args)]
pub(crate) struct DaemonArgs {
    #[command(subcommand)]
    action: Option<Action>,
    /// What the config drive said
    #[arg(long, default_value = install::CONFIG)]
    config: PathBuf,
    /// Folder for the daemon's key
    #[arg(long, default_value = install::STATE)]
    state: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Install the daemon from a config drive and start it; changes nothing the second time
    Install {
        /// The folder with ferrite-agent and daemon.json
        #[arg(long)]
        from: PathBuf,
    },
}

/// Runs the daemon for ever, or installs it.
pub(crate) fn run(args: &DaemonArgs) -> anyhow::Result<()> {
    match &args.action {
        Some(Action::Install { from }) => install::install(&Root::system(), from),
        None => serve(args),
    }
}

fn serve(args: &DaemonArgs) -> anyhow::Result<()> {
    let config = keep::read_config(&args.config)
        .with_context(|| format!("reading {}", args.config.display()))?;
    let key = keep::key(&args.state)
        .with_context(|| format!("keeping the daemon's key in {}", args.state.display()))?;
    let conductor = Conductor::new(&config.url, config.ca)?;
    tracing::info!(host = %config.host, conductor = %conductor.url(), "host daemon started");
    let mut daemon = Daemon::new(Root::system(), conductor, config, args, key);
    loop {
        let next = Instant::now() + daemon.round();
        daemon.tend_until(next);
    }
}

/// The daemon between two calls.
struct Daemon {
    root: Root,
    conductor: Conductor,
    contact: Contact,
    config_path: PathBuf,
    joining: Joining,
}

impl Daemon {
    fn new(
        root: Root,
        conductor: Conductor,
        config: DaemonConfig,
        args: &DaemonArgs,
        key: Secret<String>,
    ) -> Self {
        Self {
            joining: Joining::new(root.clone(), &args.state),
            root,
            conductor,
            contact: Contact::new(config, key),
            config_path: args.config.clone(),
        }
    }

    /// Waits for the next check-in, and passes on meanwhile what a join has to say.
    fn tend_until(&mut self, next: Instant) {
        loop {
            let soon = self.joining.tend(&self.conductor, self.contact.key());
            let left = next.saturating_duration_since(Instant::now());
            std::thread::sleep(soon.map_or(left, |soon| soon.min(left)));
            if Instant::now() >= next {
                return;
            }
        }
    }

    /// Makes one call and returns how long to wait before the next.
    fn round(&mut self) -> Duration {
        let result = match self.contact.next() {
            Call::CheckIn => self.check_in(),
            Call::Enroll => self.enroll(),
        };
        result.unwrap_or_else(|error| {
            let wait = self.contact.failed(&error);
            if matches!(error, CallError::Unauthorized { .. }) {
                tracing::error!(
                    "{error}; deploy this host again, or register it again, to let it back in"
                );
            } else {
                tracing::warn!("{error}; trying again in {} s", wait.as_secs());
            }
            wait
        })
    }

    fn enroll(&mut self) -> Result<Duration, CallError> {
        let enroll = self.contact.enroll(identity(&self.root));
        let reply: EnrollReply = self.conductor.call(ENROLL, None, &enroll, PATIENCE)?;
        tracing::info!(host = %reply.host, "enrolled");
        Ok(self.contact.enrolled())
    }

    fn check_in(&mut self) -> Result<Duration, CallError> {
        let report: CheckIn = report::read(&self.root);
        let key = Some(self.contact.key());
        let reply: CheckInReply = self.conductor.call(CHECK_IN, key, &report, PATIENCE)?;
        if self.contact.forget_credential()
            && let Err(error) = keep::write_config(&self.config_path, self.contact.config())
        {
            tracing::warn!(%error, "the used credential could not be taken out of the config file");
        }
        self.joining
            .ordered(reply.join, &self.conductor, self.contact.key());
        Ok(self.contact.checked_in(&reply, report.cloud_init.stage))
    }
}

#[cfg(test)]
mod tests {
    use super::contact::AFTER_REFUSAL;
    use super::*;
    use crate::conductor::fixture::{Answer, serve};
    use ferrite_proto::boot::CaPin;
    use serde_json::{Value, json};
    use sha2::{Digest, Sha256};
    use std::sync::{Arc, Mutex};

    fn config() -> DaemonConfig {
        DaemonConfig {
            url: "https://10.77.0.1:7443".into(),
            ca: CaPin([1; 32]),
            host: "lab-1".into(),
            credential: Secret::new("once".into()),
        }
    }

    fn daemon(folder: &std::path::Path, conductor: Conductor) -> Daemon {
        let path = folder.join("daemon.json");
        if !path.exists() {
            keep::write_config(&path, &config()).unwrap();
        }
        let config = keep::read_config(&path).unwrap();
        let key = keep::key(folder).unwrap();
        let args = DaemonArgs {
            action: None,
            config: path,
            state: folder.to_owned(),
        };
        Daemon::new(Root::at(folder), conductor, config, &args, key)
    }

    #[test]
    fn enrolment_survives_a_lost_reply_and_is_done_once() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let conductor = serve(move |path, authorization, body: Value| {
            let mut log = log.lock().unwrap();
            log.push((
                path.to_owned(),
                authorization.to_owned(),
                body["key_sha256"].clone(),
            ));
            match (path, log.len()) {
                (ENROLL, 1) => Answer::Lose,
                (ENROLL, _) => Answer::Reply(200, json!({"host": "lab-1", "check_in_seconds": 9})),
                _ => Answer::Reply(200, json!({"check_in_seconds": 9})),
            }
        });
        let folder = tempfile::tempdir().unwrap();
        let mut first = daemon(folder.path(), conductor);
        let waits: Vec<_> = (0..3).map(|_| first.round().as_secs()).collect();
        assert_eq!(waits, [1, 0, 9]);
        let seen = seen.lock().unwrap();
        let paths: Vec<_> = seen.iter().map(|(path, ..)| path.as_str()).collect();
        assert_eq!(paths, [ENROLL, ENROLL, CHECK_IN]);
        assert_eq!(seen[0].2, seen[1].2, "the same key again");
        let bearer = seen[2].1.strip_prefix("Bearer ").unwrap();
        let digest = ferrite_proto::digest::to_hex(&Sha256::digest(bearer));
        assert_eq!(seen[0].2, digest, "the key is the one that was enrolled");
        let kept = keep::read_config(&folder.path().join("daemon.json")).unwrap();
        assert!(
            kept.credential.expose().is_empty(),
            "the credential is gone"
        );
    }

    #[test]
    fn the_next_life_uses_the_same_key_and_does_not_enroll() {
        let folder = tempfile::tempdir().unwrap();
        let used = DaemonConfig {
            credential: Secret::new(String::new()),
            ..config()
        };
        keep::write_config(&folder.path().join("daemon.json"), &used).unwrap();
        let key = keep::key(folder.path()).unwrap();
        let conductor = serve(move |path, authorization, _| {
            assert_eq!(path, CHECK_IN);
            let ours = authorization == format!("Bearer {}", key.expose());
            Answer::Reply(if ours { 200 } else { 401 }, json!({"check_in_seconds": 5}))
        });
        let mut second = daemon(folder.path(), conductor);
        assert_eq!(second.round().as_secs(), 5);
    }

    #[test]
    fn a_used_credential_is_followed_by_a_check_in_with_the_key() {
        let conductor = serve(|path, _, _| match path {
            ENROLL => Answer::Reply(403, json!({"code": "unauthorized", "message": "used"})),
            _ => Answer::Reply(200, json!({"check_in_seconds": 7})),
        });
        let folder = tempfile::tempdir().unwrap();
        let mut daemon = daemon(folder.path(), conductor);
        assert_eq!(daemon.round(), AFTER_REFUSAL);
        assert_eq!(daemon.round().as_secs(), 7);
    }
}
