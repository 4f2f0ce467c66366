//! Joining the cluster, when the conductor says so: what stands in the way is told, material is
//! asked for, kubeadm is run, and what it says is passed on.
//!
//! Nothing here decides whether the host has joined, or whether to try again: the conductor does,
//! which sees the Node. Material is held in memory and in a folder that no disk has, for as long
//! as kubeadm runs.

mod kubeadm;
mod readiness;

use std::path::{Path, PathBuf};
use std::time::Duration;

use ferrite_proto::join::{
    JOIN, JOIN_REPORT, JoinEnd, JoinMaterial, JoinOrder, JoinReport, JoinReportReply, JoinRequest,
};
use ferrite_proto::secret::Secret;
use jiff::Timestamp;

use self::kubeadm::{Programs, Running};
use super::{PATIENCE, keep};
use crate::conductor::{CallError, Conductor};
use crate::ramdisk::worker::identity;
use crate::root::Root;

/// Minting takes as long as the cluster takes to sign.
const MINTING: Duration = Duration::from_mins(1);
/// Between looks at kubeadm while it runs.
const LOOK: Duration = Duration::from_secs(1);
/// In the daemon's state folder: that an attempt was begun on this disk.
const MARK: &str = "joining";

/// The attempts of this life of the daemon.
#[derive(Debug)]
pub(super) struct Joining {
    root: Root,
    programs: Programs,
    mark: PathBuf,
    running: Option<Running>,
    /// What the conductor has not taken yet.
    unsent: JoinReport,
    /// The last attempt that ended here.
    ended: u32,
}

impl Joining {
    /// No attempt yet. `state` is the folder that the daemon keeps.
    pub(super) fn new(root: Root, state: &Path) -> Self {
        Self::with(root, state, Programs::system())
    }

    fn with(root: Root, state: &Path, programs: Programs) -> Self {
        Self {
            root,
            programs,
            mark: state.join(MARK),
            running: None,
            unsent: JoinReport::default(),
            ended: 0,
        }
    }

    /// Takes what the answer to a check-in said.
    pub(super) fn ordered(
        &mut self,
        order: Option<JoinOrder>,
        conductor: &Conductor,
        key: &Secret<String>,
    ) {
        let wanted = order.map(|order| order.attempt);
        if let Some(running) = &mut self.running
            && Some(running.attempt) != wanted
        {
            tracing::warn!(attempt = running.attempt, "the join is no longer wanted");
            running.stop();
            self.running = None;
        }
        let Some(attempt) = wanted else { return };
        if self.running.is_some() || attempt <= self.ended {
            return;
        }
        match self.ask(attempt, conductor, key) {
            Ok(material) if material.attempt == attempt => self.begin(&material),
            Ok(material) => {
                tracing::error!(
                    attempt,
                    other = material.attempt,
                    "material of another attempt"
                );
            }
            Err(error) => tracing::warn!("{error}; asking again at the next check-in"),
        }
    }

    /// Asks for material, of a host that no earlier attempt has left half joined.
    fn ask(
        &mut self,
        attempt: u32,
        conductor: &Conductor,
        key: &Secret<String>,
    ) -> Result<JoinMaterial, CallError> {
        if self.mark.exists() {
            self.programs.end_unit();
            tracing::info!(attempt, "undoing the attempt before");
            if let Err(error) = self.programs.reset() {
                tracing::warn!(%error, "kubeadm reset failed");
            }
        }
        let request = JoinRequest {
            attempt,
            boot_id: self
                .root
                .text("/proc/sys/kernel/random/boot_id")
                .unwrap_or_default(),
            system_uuid: identity(&self.root).uuid,
            clock: Timestamp::now(),
            kubeadm: self.programs.version("kubeadm"),
            kubelet: self.programs.version("kubelet"),
            cri_socket: readiness::cri_socket(&self.root),
            findings: readiness::findings(&self.root),
        };
        conductor.call(JOIN, Some(key), &request, MINTING)
    }

    fn begin(&mut self, material: &JoinMaterial) {
        let attempt = material.attempt;
        tracing::info!(attempt, "joining the cluster");
        self.unsent = JoinReport {
            attempt,
            ..JoinReport::default()
        };
        // Before kubeadm, so that a power loss in the middle is known of afterwards.
        let begun = keep::write(&self.mark, attempt.to_string().as_bytes(), 0o600)
            .and_then(|()| self.programs.join(material));
        match begun {
            Ok(running) => self.running = Some(running),
            Err(error) => {
                tracing::error!(%error, "kubeadm could not be run");
                self.ended = attempt;
                let why = error.to_string();
                self.unsent.ended = Some(JoinEnd::NotRun { why });
            }
        }
    }

    /// Passes on what is new. How soon it wants to be called again, while there is something.
    pub(super) fn tend(&mut self, conductor: &Conductor, key: &Secret<String>) -> Option<Duration> {
        self.listen();
        if self.unsent.lines.is_empty() && self.unsent.ended.is_none() {
            return self.running.is_some().then_some(LOOK);
        }
        match conductor.call(JOIN_REPORT, Some(key), &self.unsent, PATIENCE) {
            Ok(JoinReportReply { stop }) => {
                self.unsent = JoinReport {
                    attempt: self.unsent.attempt,
                    ..JoinReport::default()
                };
                if let Some(mut running) = self.running.take_if(|_| stop) {
                    tracing::warn!(attempt = running.attempt, "the join is no longer wanted");
                    running.stop();
                }
            }
            Err(CallError::Status { status, .. }) if status < 500 => {
                tracing::warn!("the conductor does not take the join's report");
                self.unsent = JoinReport::default();
            }
            Err(error) => tracing::warn!("{error}; the join's report is sent again"),
        }
        self.running.is_some().then_some(LOOK)
    }

    /// Takes kubeadm's news, unless the conductor has not taken those before.
    fn listen(&mut self) {
        if !self.unsent.lines.is_empty() || self.unsent.ended.is_some() {
            return;
        }
        let Some(running) = &mut self.running else {
            return;
        };
        let (lines, ended) = running.news();
        self.unsent.lines = lines;
        if let Some(how) = ended {
            tracing::info!(attempt = running.attempt, ?how, "kubeadm has ended");
            self.ended = running.attempt;
            self.unsent.ended = Some(how);
            self.running = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::kubeadm::tests::{fixture, material};
    use super::*;
    use crate::conductor::fixture::{Answer, serve};
    use serde_json::{Value, json};
    use std::sync::{Arc, Mutex};

    type Log = Arc<Mutex<Vec<(String, Value)>>>;

    /// A conductor that gives material and takes reports, but loses the first.
    fn conductor() -> (Conductor, Log) {
        let log: Log = Arc::default();
        let seen = Arc::clone(&log);
        let conductor = serve(move |path, _, body: Value| {
            let mut seen = seen.lock().unwrap();
            seen.push((path.to_owned(), body));
            match (path, seen.len()) {
                (JOIN, _) => Answer::Reply(200, serde_json::to_value(material()).unwrap()),
                (_, 2) => Answer::Lose,
                _ => Answer::Reply(200, json!({})),
            }
        });
        (conductor, log)
    }

    fn joining(root: &Root) -> Joining {
        let state = root.path("/var/lib/ferrite");
        Joining::with(root.clone(), &state, Programs::at(root))
    }

    const FIRST: Option<JoinOrder> = Some(JoinOrder { attempt: 1 });
    const SECOND: Option<JoinOrder> = Some(JoinOrder { attempt: 2 });

    #[test]
    fn an_order_becomes_a_run_of_kubeadm_and_every_line_arrives_once() {
        let (_folder, root) = fixture(r#"[ "$1" = version ] && echo v1.33.1 || echo "$1 here""#);
        let (conductor, log) = conductor();
        let key = Secret::new("key".to_owned());
        let mut joining = joining(&root);
        joining.ordered(FIRST, &conductor, &key);
        for _ in 0..400 {
            if joining.tend(&conductor, &key).is_none() && joining.unsent.ended.is_none() {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        joining.ordered(FIRST, &conductor, &key);
        let log = log.lock().unwrap();
        let (path, request) = &log[0];
        assert_eq!(path, JOIN);
        assert_eq!(request["kubeadm"], "v1.33.1");
        let codes = request["findings"].as_array().unwrap();
        assert!(codes.iter().any(|found| found["code"] == "runtime-absent"));
        assert!(
            log[1..].iter().all(|(path, _)| path == JOIN_REPORT),
            "not asked twice"
        );
        assert_eq!(log[1].1, log[2].1, "what was lost is sent again");
        let lines: Vec<_> = log[2..]
            .iter()
            .flat_map(|(_, report)| report["lines"].as_array().unwrap().clone())
            .collect();
        assert_eq!(lines, ["join here"]);
        assert_eq!(log.last().unwrap().1["ended"]["how"], "succeeded");
        assert!(!root.path(ferrite_proto::join::FOLDER).exists());
    }

    #[test]
    fn what_is_no_longer_wanted_is_stopped_and_the_next_attempt_undoes_it() {
        let script = r#"case "$1" in join) exec sleep 600;; *) echo "$1" >> "$0.log";; esac"#;
        let (_folder, root) = fixture(script);
        let (conductor, log) = conductor();
        let key = Secret::new("key".to_owned());
        let mut joining = joining(&root);
        joining.ordered(FIRST, &conductor, &key);
        assert_eq!(joining.tend(&conductor, &key), Some(LOOK));
        joining.ordered(None, &conductor, &key);
        assert!(joining.running.is_none());
        assert_eq!(joining.tend(&conductor, &key), None);
        joining.ordered(SECOND, &conductor, &key);
        assert!(joining.running.is_none(), "the material is of attempt 1");
        let done = std::fs::read_to_string(root.path("/usr/bin/kubeadm.log")).unwrap();
        assert_eq!(done, "version\nreset\nversion\n");
        assert_eq!(log.lock().unwrap().len(), 2);
    }
}
