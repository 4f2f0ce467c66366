//! Looks at each cluster from time to time: what is seen is kept as its status, and tokens whose
//! time is over are removed.
//!
//! With several conductors each of them looks: what has not changed is not written.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ferrite_proto::cluster::ClusterStatus;
use ferrite_proto::problem::{Code, Problem};
use futures_util::future::join_all;
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Clusters, FRESH, KIND, mint};
use crate::store::{Document, Expect, Revision};

/// Between rounds.
const ROUND: Duration = Duration::from_secs(5);
/// Clusters that are asked at once.
const AT_ONCE: usize = 16;

/// When a cluster was last looked at, and which revision it had afterwards.
type Looked = BTreeMap<String, (Instant, Revision)>;

impl Clusters {
    /// Looks until it is told to stop.
    pub(crate) async fn watch(self: Arc<Self>, stop: CancellationToken) {
        // Tokens do not wait for clusters that take long to answer.
        let sweeping = self.sweep();
        let looking = async {
            let mut looked = Looked::new();
            loop {
                tokio::time::sleep(ROUND).await;
                self.look_round(&mut looked).await;
            }
        };
        tokio::select! {
            () = sweeping => {}
            () = looking => {}
            () = stop.cancelled() => {}
        }
    }

    /// Removes tokens whose time is over, for ever.
    pub(crate) async fn sweep(&self) {
        loop {
            tokio::time::sleep(ROUND).await;
            self.sweep_tokens().await;
        }
    }

    async fn look_round(&self, looked: &mut Looked) {
        let all = self.documents.list(KIND);
        let due: Vec<_> = all
            .iter()
            .filter(|document| {
                let last = looked.get(&document.name);
                last.is_none_or(|(at, of)| at.elapsed() >= FRESH || *of != document.revision)
            })
            .collect();
        for some in due.chunks(AT_ONCE) {
            join_all(some.iter().map(|document| self.look(document))).await;
            for document in some {
                let now = self.documents.get(KIND, &document.name);
                let revision = now.map_or(0, |now| now.revision);
                looked.insert(document.name.clone(), (Instant::now(), revision));
            }
        }
        looked.retain(|name, _| all.iter().any(|document| document.name == *name));
    }

    async fn look(&self, document: &Document) {
        // One that was given no kubeconfig is a name for people.
        if document.secret.is_none() {
            return;
        }
        let seen = self.see(&document.name).await;
        if let Err(problem) = self.keep(document, &seen).await {
            tracing::warn!(cluster = %document.name, %problem, "what is seen is not kept");
        }
    }

    /// What is seen of a cluster now.
    pub(super) async fn see(&self, cluster: &str) -> ClusterStatus {
        let seen = async {
            let place = self.find(cluster).await?;
            let mut status = place.status();
            match mint::version(&place).await {
                Ok(version) => status.kubernetes_version = Some(version),
                Err(problem) => status.problem = status.problem.or(Some(problem)),
            }
            Ok(status)
        };
        let failed = |problem: Problem| ClusterStatus {
            problem: Some(problem),
            ..ClusterStatus::default()
        };
        seen.await.unwrap_or_else(failed)
    }

    async fn keep(&self, document: &Document, seen: &ClusterStatus) -> Result<(), Problem> {
        let before: ClusterStatus =
            serde_json::from_value(document.body["status"].clone()).unwrap_or_default();
        let seen = carried(&before, seen);
        if before == seen {
            return Ok(());
        }
        tell(&document.name, &before, &seen);
        let mut changed = document.clone();
        changed.body["status"] = json!(seen);
        let expect = Expect::Revision(document.revision);
        match self.documents.put(changed, expect, Vec::new()).await {
            // A person, or another conductor, was first.
            Err(problem) if matches!(problem.code, Code::Conflict | Code::NotFound) => Ok(()),
            put => put.map(|_| ()),
        }
    }
}

/// What was known before stands while a cluster cannot be asked.
fn carried(before: &ClusterStatus, seen: &ClusterStatus) -> ClusterStatus {
    let mut seen = seen.clone();
    if seen.problem.is_some() {
        seen.endpoint = seen.endpoint.or_else(|| before.endpoint.clone());
        let version = || before.kubernetes_version.clone();
        seen.kubernetes_version = seen.kubernetes_version.or_else(version);
        if seen.ca_hashes.is_empty() {
            seen.ca_hashes.clone_from(&before.ca_hashes);
        }
    }
    // Words differ from one try to the next; the code is what counts.
    if let (Some(old), Some(new)) = (&before.problem, &seen.problem)
        && old.code == new.code
    {
        seen.problem = Some(old.clone());
    }
    seen
}

fn tell(cluster: &str, before: &ClusterStatus, seen: &ClusterStatus) {
    let rotated = !before.ca_hashes.is_empty() && before.ca_hashes != seen.ca_hashes;
    if rotated {
        tracing::warn!(
            %cluster, old = ?before.ca_hashes, new = ?seen.ca_hashes,
            "its CA was rotated: nodes that joined before may have to join again"
        );
    }
    if let Some(problem) = &seen.problem {
        tracing::warn!(%cluster, %problem, "hosts cannot join it now");
    } else {
        tracing::info!(%cluster, endpoint = ?seen.endpoint, "hosts can join it");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_known_stands_while_nobody_answers() {
        let before = ClusterStatus {
            endpoint: Some("c:6443".to_owned()),
            kubernetes_version: Some("v1.34.1".to_owned()),
            ca_hashes: vec!["sha256:a".to_owned()],
            ..ClusterStatus::default()
        };
        let silent = |words: &str| ClusterStatus {
            problem: Some(Problem::new(Code::ClusterUnreachable, words, "")),
            ..ClusterStatus::default()
        };
        let once = carried(&before, &silent("a"));
        assert_eq!(once.endpoint, before.endpoint);
        assert_eq!(once.ca_hashes, before.ca_hashes);
        let again = carried(&once, &silent("b"));
        assert_eq!(again, once, "other words are no news");
        assert_eq!(carried(&again, &before), before);
    }
}
