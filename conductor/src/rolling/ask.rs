//! What people ask of a roll: begin one, look at it, pause, resume, abort it.

use std::sync::Arc;

use ferrite_proto::problem::{Code, Problem};
use ferrite_proto::rolling::{ClusterRoll, RollPhase, RollSpec, RollStatus};
use serde_json::{Value, json};

use super::{KIND, read};
use crate::actor::Actor;
use crate::clock;
use crate::cluster;
use crate::hosts::Hosts;
use crate::store::{AuditEntry, Document, Expect};
use crate::token;

/// How often a change is made anew because somebody else wrote in between.
const ATTEMPTS: usize = 5;

/// What can be asked of a roll that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ask {
    /// Begin nothing more for now.
    Pause,
    /// Go on, also after a failure.
    Resume,
    /// Begin nothing more ever.
    Abort,
}

impl Ask {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Abort => "abort",
        }
    }

    /// The phase that follows; `None` where it is the same already.
    fn phase(self, roll: &ClusterRoll) -> Result<Option<RollPhase>, Problem> {
        let next = match (self, roll.status.phase) {
            (Self::Pause, RollPhase::Paused)
            | (Self::Resume, RollPhase::Progressing)
            | (Self::Abort, RollPhase::Aborted) => None,
            (Self::Pause, RollPhase::Progressing) => Some(RollPhase::Paused),
            (Self::Resume, RollPhase::Paused | RollPhase::Stopped) => Some(RollPhase::Progressing),
            (Self::Abort, RollPhase::Progressing | RollPhase::Paused | RollPhase::Stopped) => {
                Some(RollPhase::Aborted)
            }
            (_, phase) => {
                let (what, cluster) = (self.as_str(), &roll.cluster);
                let text = format!("the roll of cluster {cluster} is {phase}: {what} is too late");
                let advice = "`ferrite cluster roll NAME --image …` begins another";
                return Err(Problem::new(Code::Conflict, text, advice));
            }
        };
        Ok(next)
    }
}

/// Begins a roll. Refused while there is another that goes on or is paused.
pub(crate) async fn begin(
    hosts: &Hosts,
    cluster: &str,
    spec: RollSpec,
    actor: &Actor,
) -> Result<ClusterRoll, Problem> {
    let documents = hosts.documents();
    if documents.get(cluster::KIND, cluster).is_none() {
        let text = format!("there is no cluster {cluster:?}");
        return Err(Problem::new(
            Code::NotFound,
            text,
            "GET /v1/clusters names all",
        ));
    }
    let before = documents.get(KIND, cluster);
    // One that cannot be read any more is replaced.
    if let Some(before) = before.as_deref().and_then(|before| read(before).ok()) {
        refuse_second(&before)?;
    }
    let now = clock::now();
    let roll = ClusterRoll {
        cluster: cluster.to_owned(),
        uid: token::uid(),
        by: actor.to_string(),
        spec,
        status: RollStatus {
            phase: RollPhase::Progressing,
            since: now,
            started: now,
            message: "it is about to begin".to_owned(),
            total: 0,
            updated: 0,
            unavailable: 0,
            current: Vec::new(),
            skipped: Vec::new(),
            failure: None,
            conditions: Vec::new(),
        },
    };
    let expect = before.map_or(Expect::Absent, |before| Expect::Revision(before.revision));
    let document = Document::new(KIND, cluster, now, json!(roll));
    let detail =
        json!({"image": roll.spec.image.url, "max_unavailable": roll.spec.max_unavailable});
    let entry = entry(actor, "begin", cluster, detail);
    documents.put(document, expect, vec![entry]).await?;
    Ok(shown(hosts, roll))
}

fn refuse_second(before: &ClusterRoll) -> Result<(), Problem> {
    let (cluster, phase) = (&before.cluster, before.status.phase);
    if !matches!(phase, RollPhase::Progressing | RollPhase::Paused) {
        return Ok(());
    }
    Err(Problem::new(
        Code::RollUnderWay,
        format!(
            "cluster {cluster} is being rolled to {} ({phase})",
            before.spec.image.url
        ),
        format!("wait for it, or `ferrite cluster roll abort {cluster}`"),
    ))
}

fn entry(actor: &Actor, action: &str, cluster: &str, detail: Value) -> AuditEntry {
    AuditEntry::of(actor, clock::now(), action, (KIND, cluster, ""), detail)
}

/// A cluster's roll, the one that goes on or the last.
pub(crate) fn of(hosts: &Hosts, cluster: &str) -> Result<ClusterRoll, Problem> {
    let (_, roll) = find(hosts, cluster)?;
    Ok(shown(hosts, roll))
}

fn find(hosts: &Hosts, cluster: &str) -> Result<(Arc<Document>, ClusterRoll), Problem> {
    let document = hosts.documents().get(KIND, cluster).ok_or_else(|| {
        Problem::new(
            Code::NotFound,
            format!("there is no roll of a cluster {cluster:?}"),
            "`ferrite cluster roll NAME --image …` begins one",
        )
    })?;
    let roll = read(&document)?;
    Ok((document, roll))
}

/// Asks something of the roll that is there. Asking it twice changes nothing more.
pub(crate) async fn ask(
    hosts: &Hosts,
    cluster: &str,
    what: Ask,
    actor: &Actor,
) -> Result<ClusterRoll, Problem> {
    let mut attempts = 0;
    loop {
        let (document, mut roll) = find(hosts, cluster)?;
        let Some(phase) = what.phase(&roll)? else {
            return Ok(shown(hosts, roll));
        };
        enter(&mut roll, phase);
        let mut changed = Document::clone(&document);
        changed.body = json!(roll);
        let expect = Expect::Revision(document.revision);
        let entry = entry(actor, what.as_str(), cluster, Value::Null);
        match hosts.documents().put(changed, expect, vec![entry]).await {
            // How far it is was written in between.
            Err(problem) if problem.code == Code::Conflict && attempts < ATTEMPTS => {
                attempts += 1;
                hosts.refresh().await?;
            }
            put => return put.map(|_| shown(hosts, roll)),
        }
    }
}

fn enter(roll: &mut ClusterRoll, phase: RollPhase) {
    let status = &mut roll.status;
    (status.phase, status.since) = (phase, clock::now());
    if phase == RollPhase::Progressing {
        status.failure = None;
    } else {
        // Those that were not told yet are not begun.
        status.current.retain(|entry| entry.ordered);
    }
    status.message = match (phase, status.current.len()) {
        (RollPhase::Progressing, _) => "it goes on".to_owned(),
        (_, 0) => phase.to_string(),
        (_, count) => format!("{phase}; {count} hosts will be let finish"),
    };
}

/// A roll with where its hosts are now.
fn shown(hosts: &Hosts, mut roll: ClusterRoll) -> ClusterRoll {
    for entry in &mut roll.status.current {
        let Some(host) = hosts
            .get(&entry.host)
            .ok()
            .filter(|host| host.uid == entry.uid)
        else {
            continue;
        };
        let status = host.status;
        let problem = status.error.map(|error| error.problem.to_string());
        entry.state = Some(status.state);
        entry.waiting_for = problem.or(status.waiting_for);
    }
    roll.status.conditions = roll.status.conditions_of();
    roll
}
