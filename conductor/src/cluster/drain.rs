//! Takes the pods off a node, as `kubectl drain --ignore-daemonsets --delete-emptydir-data` does:
//! each is evicted, budgets (PDBs) are honoured, and it is over when all are gone.

use std::time::Duration;

use ferrite_proto::problem::{Code, Problem};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::Clusters;
use super::wire::{Wire, escaped, short};

/// Between two tries of what a budget forbids, and looks at what is going.
const PAUSE: Duration = Duration::from_secs(2);
/// How long pods may take to go once they were deleted by force.
const FORCED: Duration = Duration::from_mins(2);
/// Pods that an error names.
const NAMED: usize = 5;

/// What a drain did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Drained {
    /// Pods that were there and are gone.
    pub(crate) evicted: usize,
    /// Pods of `DaemonSet`s, static and finished ones: they stay.
    pub(crate) skipped: usize,
}

/// A pod, as far as a drain cares.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pod {
    namespace: String,
    name: String,
    uid: String,
    /// It goes already.
    is_going: bool,
    /// Somebody makes another elsewhere.
    is_managed: bool,
}

impl Pod {
    fn title(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    fn path(&self) -> String {
        let (namespace, name) = (escaped(&self.namespace), escaped(&self.name));
        format!("/api/v1/namespaces/{namespace}/pods/{name}")
    }
}

impl Clusters {
    /// Evicts every pod of a node that a drain evicts, and waits until they are gone. With `force`
    /// pods that nobody makes anew go, too, and what a budget keeps beyond `limit` is deleted.
    pub(crate) async fn evict_all(
        &self,
        cluster: &str,
        node: &str,
        limit: Duration,
        force: bool,
    ) -> Result<Drained, Problem> {
        let place = self.place(cluster).await?;
        let mut deadline = Instant::now() + limit;
        let (mut first, mut may_force) = (None, force);
        loop {
            let (pods, skipped) = pods(&place.wire, node).await?;
            let before = *first.get_or_insert(pods.len());
            if pods.is_empty() {
                let evicted = before;
                return Ok(Drained { evicted, skipped });
            }
            refuse_unmanaged(cluster, node, &pods, force)?;
            let kept = evict(&place.wire, &pods).await?;
            if Instant::now() >= deadline {
                match kept.as_slice() {
                    [] => return Err(slow(cluster, node, &pods, limit)),
                    kept if may_force => {
                        delete(&place.wire, kept).await?;
                        deadline = Instant::now() + FORCED;
                        may_force = false;
                    }
                    kept => return Err(blocked(cluster, node, kept, limit)),
                }
            }
            tokio::time::sleep(PAUSE.min(limit)).await;
        }
    }
}

/// The pods that are evicted, and how many others there are.
async fn pods(wire: &Wire, node: &str) -> Result<(Vec<Pod>, usize), Problem> {
    let query = format!("fieldSelector=spec.nodeName%3D{}", escaped(node));
    let all = wire.list("/api/v1/pods", &query).await?;
    let on_node = all.iter().filter(|pod| pod["spec"]["nodeName"] == node);
    let (evicted, skipped): (Vec<_>, Vec<_>) = on_node.partition(|pod| is_evicted(pod));
    Ok((evicted.into_iter().map(read).collect(), skipped.len()))
}

fn read(pod: &Value) -> Pod {
    let text = |field: &str| {
        pod["metadata"][field]
            .as_str()
            .map(short)
            .unwrap_or_default()
    };
    Pod {
        namespace: text("namespace"),
        name: text("name"),
        uid: text("uid"),
        is_going: pod["metadata"]["deletionTimestamp"].is_string(),
        is_managed: controller(pod).is_some(),
    }
}

fn controller(pod: &Value) -> Option<&Value> {
    let owners = pod["metadata"]["ownerReferences"].as_array()?;
    owners.iter().find(|owner| owner["controller"] == true)
}

fn is_evicted(pod: &Value) -> bool {
    let of_daemon_set = controller(pod).is_some_and(|owner| owner["kind"] == "DaemonSet");
    let is_static = pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_string();
    let phase = pod["status"]["phase"].as_str().unwrap_or_default();
    !of_daemon_set && !is_static && !matches!(phase, "Succeeded" | "Failed")
}

fn refuse_unmanaged(cluster: &str, node: &str, pods: &[Pod], force: bool) -> Result<(), Problem> {
    let lost: Vec<_> = pods
        .iter()
        .filter(|pod| !pod.is_managed && !pod.is_going)
        .collect();
    if force || lost.is_empty() {
        return Ok(());
    }
    let names = named(lost.into_iter());
    let text = format!("cluster {cluster}: nobody would make these pods of {node} anew: {names}");
    let advice = "move or delete them, or drain with --force, which deletes them";
    Err(Problem::new(Code::DrainBlocked, text, advice))
}

/// Asks for the eviction of each; gives those that a budget keeps, with why.
async fn evict(wire: &Wire, pods: &[Pod]) -> Result<Vec<(Pod, String)>, Problem> {
    let mut kept = Vec::new();
    for pod in pods.iter().filter(|pod| !pod.is_going) {
        let path = format!("{}/eviction", pod.path());
        let eviction = json!({
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": pod.name, "namespace": pod.namespace},
            // Another pod of the same name is not meant.
            "deleteOptions": {"preconditions": {"uid": pod.uid}},
        });
        let answer = wire.call(&Method::POST, &path, Some(&eviction)).await?;
        match answer.status {
            StatusCode::NOT_FOUND | StatusCode::CONFLICT => {}
            StatusCode::TOO_MANY_REQUESTS => kept.push((pod.clone(), answer.words())),
            _ => drop(wire.done(&Method::POST, &path, answer)?),
        }
    }
    Ok(kept)
}

async fn delete(wire: &Wire, pods: &[(Pod, String)]) -> Result<(), Problem> {
    for (pod, _) in pods {
        let only = json!({"preconditions": {"uid": pod.uid}});
        let path = pod.path();
        let answer = wire.call(&Method::DELETE, &path, Some(&only)).await?;
        if !matches!(answer.status, StatusCode::NOT_FOUND | StatusCode::CONFLICT) {
            wire.done(&Method::DELETE, &path, answer)?;
        }
    }
    Ok(())
}

fn named<'a>(pods: impl Iterator<Item = &'a Pod>) -> String {
    let mut names: Vec<_> = pods.map(Pod::title).collect();
    let more = names.len().saturating_sub(NAMED);
    names.truncate(NAMED);
    if more > 0 {
        names.push(format!("and {more} more"));
    }
    names.join(", ")
}

fn blocked(cluster: &str, node: &str, kept: &[(Pod, String)], limit: Duration) -> Problem {
    let names = named(kept.iter().map(|(pod, _)| pod));
    let why = kept.first().map_or("", |(_, why)| why.as_str());
    let text = format!(
        "cluster {cluster}: after {} s budgets still keep pods on {node}: {names} ({why})",
        limit.as_secs()
    );
    let advice = "start more replicas elsewhere, widen the PodDisruptionBudget, or drain with \
                  --force, which deletes them";
    Problem::new(Code::DrainBlocked, text, advice)
}

fn slow(cluster: &str, node: &str, pods: &[Pod], limit: Duration) -> Problem {
    let names = named(pods.iter());
    let text = format!(
        "cluster {cluster}: after {} s pods that were evicted are still on {node}: {names}",
        limit.as_secs()
    );
    let advice = "look what keeps them: a finalizer, a long grace period, a kubelet that is gone; \
                  a longer limit may do";
    Problem::new(Code::DrainBlocked, text, advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, more: &Value) -> Value {
        let mut pod = json!({
            "metadata": {"namespace": "d", "name": name, "uid": name},
            "spec": {"nodeName": "n"}, "status": {"phase": "Running"},
        });
        ferrite_proto::merge::apply(&mut pod, more);
        pod
    }

    fn owned(kind: &str) -> Value {
        json!({"metadata": {"ownerReferences": [{"kind": kind, "controller": true}]}})
    }

    #[test]
    fn what_would_come_back_at_once_or_is_over_is_left() {
        assert!(is_evicted(&pod("a", &owned("ReplicaSet"))));
        assert!(is_evicted(&pod("a", &json!({}))));
        assert!(!is_evicted(&pod("a", &owned("DaemonSet"))));
        let mirror = json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}}});
        assert!(!is_evicted(&pod("a", &mirror)));
        assert!(!is_evicted(&pod(
            "a",
            &json!({"status": {"phase": "Succeeded"}})
        )));
    }

    #[test]
    fn pods_that_nobody_makes_anew_are_named() {
        let alone: Vec<_> = (0..7)
            .map(|n| read(&pod(&format!("p{n}"), &json!({}))))
            .collect();
        let refused = refuse_unmanaged("c", "n", &alone, false).unwrap_err();
        assert_eq!(refused.code, Code::DrainBlocked);
        assert!(refused.message.contains("d/p0, d/p1"), "{refused}");
        assert!(refused.message.contains("and 2 more"), "{refused}");
        assert!(refuse_unmanaged("c", "n", &alone, true).is_ok());
        let kept = [read(&pod("p", &owned("ReplicaSet")))];
        assert!(refuse_unmanaged("c", "n", &kept, false).is_ok());
    }
}
