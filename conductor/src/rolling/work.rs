//! Goes round the rolls: looks at their hosts, writes down what comes next, tells hosts to take the
//! image.
//!
//! Of several conductors one goes round, the first of those that are alive; the revision of the
//! document settles it while they do not agree who that is.

use std::sync::Arc;
use std::time::Duration;

use ferrite_proto::problem::{Class, Code, Problem};
use ferrite_proto::rolling::{ClusterRoll, RollFailure, RollPhase, RollStatus, RollingHost};
use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream;
use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::member::{self, Member};
use super::{all, rule};
use crate::actor::Actor;
use crate::clock;
use crate::cluster::{self, Clusters};
use crate::hosts::Hosts;
use crate::store::{Document, Expect};

/// Between rounds at least; a round that took long is followed by a longer pause.
const PAUSE: Duration = Duration::from_secs(2);
/// How much longer.
const REST: u32 = 5;
/// Nodes of a cluster that are asked for at once.
const AT_ONCE: usize = 16;

/// Begins to go round, until it is told to stop.
pub(crate) fn start(
    hosts: &Arc<Hosts>,
    clusters: &Arc<Clusters>,
    stop: &CancellationToken,
) -> JoinHandle<()> {
    let roller = Roller {
        hosts: Arc::clone(hosts),
        clusters: Arc::clone(clusters),
    };
    let stop = stop.clone();
    tokio::spawn(async move {
        // What is cut off in the middle is gone on with by whoever comes next.
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = roller.run() => {}
        }
    })
}

struct Roller {
    hosts: Arc<Hosts>,
    clusters: Arc<Clusters>,
}

impl Roller {
    async fn run(&self) {
        let mut pause = PAUSE;
        loop {
            tokio::time::sleep(pause).await;
            let began = Instant::now();
            if self.leads() {
                let rolls = all(&self.hosts.documents());
                let open = rolls.iter().filter(|(_, roll)| needs_a_look(&roll.status));
                join_all(open.map(|(document, roll)| self.look(document, roll))).await;
            }
            pause = PAUSE.max(began.elapsed() * REST);
        }
    }

    /// Whether it is for this conductor to go round.
    fn leads(&self) -> bool {
        let facts = self.hosts.ownership().facts();
        facts.is_none_or(|facts| facts.drives && facts.alive.iter().min() == Some(&facts.replica))
    }

    async fn look(&self, document: &Document, roll: &ClusterRoll) {
        let cluster = &roll.cluster;
        match self.go_on(document, roll).await {
            Ok(()) => {}
            // A person, or another conductor, was first.
            Err(problem) if matches!(problem.code, Code::Conflict | Code::NotFound) => {
                tracing::debug!(%cluster, %problem, "the roll is looked at again");
            }
            Err(problem) => tracing::warn!(%cluster, %problem, "the roll does not go on now"),
        }
    }

    async fn go_on(&self, document: &Document, roll: &ClusterRoll) -> Result<(), Problem> {
        let documents = self.hosts.documents();
        if documents.get(cluster::KIND, &roll.cluster).is_none() {
            let expect = Expect::Revision(document.revision);
            let (kind, name) = (&document.kind, &document.name);
            tracing::warn!(cluster = %name, "its roll is forgotten with the cluster");
            return documents
                .remove(kind, name, expect, Vec::new())
                .await
                .map(drop);
        }
        let (members, trouble) = self.members(roll).await;
        let status = rule::next(roll, &members, trouble.as_ref(), clock::now());
        let (document, roll) = self.keep(document, roll, status).await?;
        if roll.status.phase != RollPhase::Progressing {
            return Ok(());
        }
        let told = self.tell_all(&roll).await;
        self.keep(&document, &roll, told).await.map(drop)
    }

    /// The cluster's hosts; and why nobody knows which of them are ready.
    async fn members(&self, roll: &ClusterRoll) -> (Vec<Member>, Option<Problem>) {
        let (cluster, image) = (roll.cluster.as_str(), &roll.spec.image);
        let all = self.hosts.all();
        let members = all
            .iter()
            .filter_map(|stored| Member::of(&stored.record, cluster, image));
        let asked = stream::iter(members.collect::<Vec<_>>()).map(async |mut member: Member| {
            let ready = if member.has_settled {
                self.clusters.is_ready(cluster, &member.name).await
            } else {
                Ok(false)
            };
            member.is_ready = *ready.as_ref().unwrap_or(&false);
            (member, ready.err())
        });
        let asked: Vec<_> = asked.buffered(AT_ONCE).collect().await;
        let (members, troubles): (Vec<_>, Vec<_>) = asked.into_iter().unzip();
        (members, troubles.into_iter().flatten().next())
    }

    /// Writes down how the roll stands, if that is news. As it is stored then.
    async fn keep(
        &self,
        document: &Document,
        roll: &ClusterRoll,
        status: RollStatus,
    ) -> Result<(Document, ClusterRoll), Problem> {
        let (mut document, mut next) = (document.clone(), roll.clone());
        if status == roll.status {
            return Ok((document, next));
        }
        next.status = status;
        document.body = json!(next);
        let expect = Expect::Revision(document.revision);
        let documents = self.hosts.documents();
        document.revision = documents.put(document.clone(), expect, Vec::new()).await?;
        if next.status.phase != roll.status.phase {
            self.tell_people(&next).await;
        }
        Ok((document, next))
    }

    async fn tell_people(&self, roll: &ClusterRoll) {
        let (cluster, status) = (&roll.cluster, &roll.status);
        tracing::info!(%cluster, phase = %status.phase, message = status.message, "roll");
        let Some(failure) = status
            .failure
            .as_ref()
            .filter(|_| status.phase == RollPhase::Stopped)
        else {
            return;
        };
        let text = format!("the roll of cluster {cluster} stopped: {}", failure.problem);
        let noted = self
            .hosts
            .update(&failure.host, &Actor::Conductor, |change| {
                change.event("roll", text.clone());
                Ok(())
            });
        if let Err(problem) = noted.await {
            tracing::warn!(%cluster, %problem, "that the roll stopped is not in the host's log");
        }
    }

    /// Tells those that are begun. How the roll stands afterwards.
    async fn tell_all(&self, roll: &ClusterRoll) -> RollStatus {
        let mut status = roll.status.clone();
        for entry in status.current.iter_mut().filter(|entry| !entry.ordered) {
            match self.tell(roll, entry).await {
                Ok(told) => entry.ordered = told,
                Err(problem) if problem.class() == Class::Operator => {
                    status.failure = Some(RollFailure {
                        host: entry.host.clone(),
                        at: clock::now(),
                        problem,
                    });
                    break;
                }
                Err(problem) => {
                    tracing::warn!(host = entry.host, %problem, "it is told later");
                }
            }
        }
        if let Some(failure) = &status.failure {
            status.phase = RollPhase::Stopped;
            status.since = failure.at;
            status.message = format!("host {}: {}", failure.host, failure.problem);
            status.current.retain(|entry| entry.ordered);
        }
        status
    }

    /// Tells a host to take the image, unless it has it, or a person holds it by now. Whether it is
    /// told.
    async fn tell(&self, roll: &ClusterRoll, entry: &RollingHost) -> Result<bool, Problem> {
        let spec = &roll.spec;
        let updated = self.hosts.update(&entry.host, &Actor::Conductor, |change| {
            let record = &change.record;
            let joins = record.host.spec.join.as_ref();
            let ours = joins.is_some_and(|join| join.cluster == roll.cluster)
                && record.host.uid == entry.uid
                && record.run.deletion.is_none();
            if record.host.spec.image.as_ref() == Some(&spec.image) {
                return Ok(true);
            }
            if !ours || record.host.spec.image.is_none() || member::hold(record).is_some() {
                return Ok(false);
            }
            let (cluster, by) = (&roll.cluster, &roll.by);
            change.take_image(&spec.image, spec.image_name.as_deref())?;
            change.event(
                "roll",
                format!("rolled with cluster {cluster}, asked for by {by}"),
            );
            Ok(true)
        });
        match updated.await {
            Err(problem) if problem.code == Code::HostNotFound => Ok(false),
            updated => updated.map(|(_, told)| told),
        }
    }
}

fn needs_a_look(status: &RollStatus) -> bool {
    !status.phase.has_ended() || (status.phase == RollPhase::Aborted && !status.current.is_empty())
}
