//! Does at a cluster what was decided, then notes in the record what came of it. It makes no
//! choices, as `execute.rs` does not; each action may be done again.

use ferrite_proto::join::{JoinBy, JoinPhase, JoinSpec, JoinStatus};
use ferrite_proto::problem::{Code, Problem};

use super::StepName;
use super::change::Change;
use super::execute::World;
use super::joining::{
    Csr, Draining, JOINING, JoinAction, JoinFiles, Joining, Look, PROVIDER, SeenNode, provider_id,
};
use super::plan::Action;
use super::proofs::FRESH_LEASE;
use super::record::{Limits, Record};
use crate::clock;
use crate::cluster::{AskedBy, Clusters, CsrState, HostRun, Node, Taint};
use crate::crash::{self, Moment, Work};
use crate::guard::{self, Guard};
use crate::joining::configuration::{self, Facts, Version};
use crate::store::Stored;

/// What was learned.
#[derive(Debug)]
pub(super) enum Told {
    /// It is done.
    Nothing,
    /// What the cluster says of the host.
    Look(Look),
    /// A token was made, and goes onto the config drive.
    Minted(String, JoinFiles),
    /// How far the pods are.
    Drained(Draining),
}

/// Performs an action, and notes it.
pub(super) async fn act(world: &World, stored: &Stored, action: JoinAction) -> Result<(), Problem> {
    let record = &stored.record;
    let work = Work::doing(Action::Join(action));
    let limits = &world.limits;
    crash::passing(work, Moment::Before);
    if action == JoinAction::Revoke {
        // Until this is written nothing else removes the token before its time is over.
        spend(&world.clusters, record).await?;
    }
    let effect = effect(&world.clusters, record, action, limits).await;
    crash::passing(work, Moment::Acted);
    let noted = world
        .hosts
        .update_as_owner(&record.host.name, |change| {
            match &effect {
                Ok(told) => note(change, action, told, limits),
                Err(problem) => change.fail(problem.clone(), limits),
            }
            Ok(())
        })
        .await;
    crash::passing(work, Moment::After);
    noted.map(|_| ())
}

/// Notes what came of an action.
pub(super) fn note(change: &mut Change, action: JoinAction, told: &Told, limits: &Limits) {
    match (action, told) {
        (JoinAction::Check, _) => {
            change.clear_error_of(Code::concerns_joining);
            change.own_step_done(StepName::CheckCluster);
        }
        (JoinAction::Begin, _) => change.begin_joining(),
        (JoinAction::Look, Told::Look(look)) => change.looked(look, limits),
        (JoinAction::Settle, _) => change.joined(),
        (JoinAction::Revoke, _) => change.revoked(),
        (JoinAction::Drain, Told::Drained(draining)) => change.drained(draining),
        (JoinAction::DeleteNode, _) => change.left_cluster(),
        (JoinAction::Mint, Told::Minted(token, files)) => change.minted(token, files),
        // Joining by cloud-init is wanted no longer.
        (JoinAction::Mint, _) => change.own_step_done(StepName::MintToken),
        (JoinAction::Look | JoinAction::Drain, _) => {}
    }
}

async fn effect(
    clusters: &Clusters,
    record: &Record,
    action: JoinAction,
    limits: &Limits,
) -> Result<Told, Problem> {
    if action == JoinAction::Check {
        let Some(spec) = &record.host.spec.join else {
            return Ok(Told::Nothing);
        };
        return check(clusters, record, spec).await;
    }
    if action == JoinAction::Mint {
        let spec = record.host.spec.join.as_ref();
        let Some(spec) = spec.filter(|spec| spec.by == JoinBy::CloudInit) else {
            return Ok(Told::Nothing);
        };
        return mint(clusters, record, spec, limits).await;
    }
    let (Some(joining), Some(status)) = (&record.run.joining, &record.host.status.join) else {
        return Ok(Told::Nothing);
    };
    let (cluster, node) = (status.cluster.as_str(), status.node.as_str());
    match action {
        JoinAction::Check | JoinAction::Mint | JoinAction::Begin => {}
        JoinAction::Look => return look(clusters, joining, status).await.map(Told::Look),
        JoinAction::Settle => {
            let taints: Vec<_> = joining.spec.node_taints.iter().map(taint).collect();
            let labels = &joining.spec.node_labels;
            clusters
                .label_and_taint(cluster, node, labels, &taints)
                .await?;
        }
        JoinAction::Revoke => revoke(clusters, cluster, joining).await,
        JoinAction::Drain => return drain(clusters, cluster, node).await.map(Told::Drained),
        JoinAction::DeleteNode => delete(clusters, cluster, node, record).await?,
    }
    Ok(Told::Nothing)
}

/// Before anything is written: the cluster takes joins, and nobody else has the name. A Node that
/// this host left behind is in the way of its next one.
async fn check(clusters: &Clusters, record: &Record, spec: &JoinSpec) -> Result<Told, Problem> {
    let (cluster, name) = (spec.cluster.as_str(), record.host.name.as_str());
    clusters.can_join(cluster).await.map_err(missing)?;
    if clusters.node(cluster, name).await?.is_some() {
        delete(clusters, cluster, name, record).await?;
    }
    Ok(Told::Nothing)
}

/// A token which lives until the slowest of boots would have joined.
async fn mint(
    clusters: &Clusters,
    record: &Record,
    spec: &JoinSpec,
    limits: &Limits,
) -> Result<Told, Problem> {
    let host = HostRun {
        name: record.host.name.clone(),
        uid: record.host.uid.clone(),
        run: format!("{}.1", record.run.request),
    };
    let life = limits.boot + limits.daemon + JOINING;
    let minted = clusters.mint(&spec.cluster, &host, life).await?;
    let file = |minor| {
        configuration::render(&Facts {
            kubeadm: Version { major: 1, minor },
            endpoint: &minted.endpoint,
            token: &minted.token,
            ca_hashes: &minted.ca_hashes,
            node: &record.host.name,
            provider_id: &provider_id(record),
            cri_socket: None,
            spec,
            patched: false,
        })
    };
    let files = JoinFiles {
        v1beta3: file(30),
        v1beta4: file(31),
    };
    Ok(Told::Minted(minted.token_id, files))
}

/// A cluster that is not there yet may be added any time.
fn missing(problem: Problem) -> Problem {
    match problem.code {
        Code::NotFound => Problem {
            code: Code::ClusterNotJoinable,
            advice: "`ferrite cluster add` adds it; the host goes on by itself then".to_owned(),
            ..problem
        },
        _ => problem,
    }
}

async fn look(
    clusters: &Clusters,
    joining: &Joining,
    status: &JoinStatus,
) -> Result<Look, Problem> {
    let (cluster, node) = (status.cluster.as_str(), status.node.as_str());
    let mut look = Look {
        ca_hashes: clusters.ca_hashes(cluster).await?,
        ..Look::default()
    };
    if status.phase == JoinPhase::Certificate {
        // Who joins with a token that is not ours is known by when it asks.
        let by = joining.token.as_deref().map_or_else(
            || AskedBy::Anybody(joining.given_at.unwrap_or(joining.ordered_at)),
            AskedBy::Token,
        );
        look.csr = match clusters.csr_of(cluster, node, by).await? {
            CsrState::Absent => Csr::Absent,
            CsrState::Pending(_) | CsrState::Approved(_) => Csr::Pending,
            CsrState::Denied(_, why) => Csr::Denied(why),
            CsrState::Issued(_) => Csr::Issued,
        };
        if let (Csr::Absent, Some(token)) = (&look.csr, &joining.token) {
            look.is_unsigned = !clusters.signs_for(cluster, token).await?;
        }
        if look.csr != Csr::Issued {
            return Ok(look);
        }
    }
    look.node = clusters.node(cluster, node).await?.map(seen);
    Ok(look)
}

fn seen(node: Node) -> SeenNode {
    let ready = node.ready.as_ref();
    SeenNode {
        uid: node.uid,
        provider_id: node.provider_id,
        system_uuid: node.system_uuid,
        boot_id: node.boot_id,
        ready: ready.is_some_and(|ready| ready.status == "True"),
        waits_for_cni: ready.is_some_and(crate::cluster::Ready::waits_for_cni),
        message: ready.map_or_else(
            || "its kubelet has not told how it is".to_owned(),
            |ready| ready.message.clone(),
        ),
        lease_renewed: node.lease_renewed,
    }
}

fn taint(taint: &ferrite_proto::join::NodeTaint) -> Taint {
    Taint {
        key: taint.key.clone(),
        value: taint.value.clone(),
        effect: taint.effect.as_str().to_owned(),
    }
}

async fn spend(clusters: &Clusters, record: &Record) -> Result<(), Problem> {
    let (joining, status) = (&record.run.joining, &record.host.status.join);
    let token = joining.as_ref().and_then(|joining| joining.token.as_ref());
    match (token, status) {
        (Some(token), Some(status)) => clusters.spend(&status.cluster, token).await,
        _ => Ok(()),
    }
}

/// What cannot be removed now is removed later, by who keeps account of tokens.
async fn revoke(clusters: &Clusters, cluster: &str, joining: &Joining) {
    let Some(token) = &joining.token else { return };
    if let Err(problem) = clusters.revoke(cluster, token).await {
        tracing::warn!(%cluster, token, %problem, "a bootstrap token is removed later");
    }
}

/// One round: whoever can go is asked to.
async fn drain(clusters: &Clusters, cluster: &str, node: &str) -> Result<Draining, Problem> {
    if clusters.node(cluster, node).await?.is_none() {
        return Ok(Draining::Done);
    }
    clusters.cordon(cluster, node).await?;
    let round = std::time::Duration::ZERO;
    match clusters.evict_all(cluster, node, round, false).await {
        Ok(_) => {}
        Err(problem) if problem.code == Code::DrainBlocked => {
            return Ok(Draining::Left(vec![problem.message]));
        }
        Err(problem) => return Err(problem),
    }
    let volumes = clusters.volume_attachments(cluster, node).await?;
    if volumes.is_empty() {
        return Ok(Draining::Done);
    }
    let named = volumes.into_iter().map(|name| format!("volume {name}"));
    Ok(Draining::Left(named.collect()))
}

/// Whether this machine left the Node when it was enrolled before, under another uid: the Node has
/// its UUID, and nothing keeps it alive.
fn was_left_before(node: &Node, record: &Record) -> bool {
    let uuid = record.run.system_uuid.as_ref();
    let same = uuid.is_some_and(|uuid| uuid.eq_ignore_ascii_case(&node.system_uuid));
    let enrolled = node.provider_id.as_ref();
    let enrolled = enrolled.is_some_and(|id| id.starts_with(PROVIDER));
    let renewed = node.lease_renewed;
    let alive = renewed.is_some_and(|at| at + FRESH_LEASE > clock::now());
    same && enrolled && !alive
}

/// Removes the host's Node. One that is another machine's stays.
async fn delete(
    clusters: &Clusters,
    cluster: &str,
    name: &str,
    record: &Record,
) -> Result<(), Problem> {
    let node = match clusters.node(cluster, name).await {
        Ok(Some(node)) => node,
        Ok(None) => return Ok(()),
        // The cluster was removed here: nobody knows it any more.
        Err(problem) if problem.code == Code::NotFound => return Ok(()),
        Err(problem) => return Err(problem),
    };
    let ours = provider_id(record);
    let is_ours = node.provider_id.as_ref() == Some(&ours);
    let known = record.run.joining.as_ref();
    let known = known.and_then(|joining| joining.node_uid.as_ref());
    let is_its = is_ours || known == Some(&node.uid) || was_left_before(&node, record);
    if !guard::holds(Guard::NodeOfAnotherStays, is_its) {
        let who = node.provider_id.as_deref().unwrap_or("none");
        return Err(Problem::new(
            Code::JoinNodeExists,
            format!(
                "cluster {cluster} has a Node {name} that is not this host (provider ID {who}, \
                 UUID {})",
                node.system_uuid
            ),
            format!(
                "delete it if it is of the past (`kubectl delete node {name}`), or enrol this \
                     host under another name"
            ),
        ));
    }
    clusters.delete_node(cluster, name, Some(&node.uid)).await
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use jiff::SignedDuration;

    use super::super::bench::{Bench, spec};
    use super::*;

    fn dead() -> Node {
        Node {
            name: "n".to_owned(),
            uid: "1".to_owned(),
            created: None,
            provider_id: Some("ferrite://an-earlier-uid".to_owned()),
            system_uuid: "uuid-1".to_owned(),
            boot_id: String::new(),
            kubelet_version: String::new(),
            ready: None,
            lease_renewed: Some(clock::now() - SignedDuration::from_mins(2)),
            labels: BTreeMap::new(),
            taints: Vec::new(),
            unschedulable: false,
        }
    }

    #[test]
    fn only_a_dead_node_of_this_machine_was_left_before() {
        let mut record = Bench::available(spec()).record;
        record.run.system_uuid = Some("UUID-1".to_owned());
        assert!(was_left_before(&dead(), &record));
        let others: [fn(&mut Node); 4] = [
            |node| node.lease_renewed = Some(clock::now()),
            |node| node.system_uuid = "uuid-2".to_owned(),
            |node| node.provider_id = Some("metal3://an-earlier-uid".to_owned()),
            |node| node.provider_id = None,
        ];
        for change in others {
            let mut node = dead();
            change(&mut node);
            assert!(!was_left_before(&node, &record), "{node:?}");
        }
        record.run.system_uuid = None;
        assert!(!was_left_before(&dead(), &record));
    }
}
