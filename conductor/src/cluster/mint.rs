//! Bootstrap tokens: made for one host, proved to work, and gone when it has joined, or was not in
//! time.
//!
//! A token's id is written down before the cluster gets it, and struck out after the cluster has
//! lost it. The token itself is told once and kept nowhere.

use std::collections::BTreeSet;
use std::time::Duration;

use ferrite_proto::problem::{Code, Problem};
use ferrite_proto::secret::Secret;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::token::{self, SECRETS, Token};
use super::{Clusters, Place};
use crate::clock;
use crate::crash::{self, Moment, Work};
use crate::store::{Document, Expect};

/// The kind of the documents that tell which tokens are out.
pub(super) const MINTED: &str = "MintedToken";
/// How long a token is kept for a host that was not given it: a conductor may be killed in between.
const UNGIVEN: Duration = Duration::from_secs(45);
/// How long the cluster may take to sign.
const SIGNING: Duration = Duration::from_secs(12);
/// Between looks.
const PAUSE: Duration = Duration::from_millis(500);
const KUBELET_CONFIG: &str = "/api/v1/namespaces/kube-system/configmaps/kubelet-config";
const CLUSTER_INFO: &str = "/api/v1/namespaces/kube-public/configmaps/cluster-info";

/// For whom a token is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostRun {
    /// Its name.
    pub(crate) name: String,
    /// Its uid: a host that is enrolled anew under the same name is another.
    pub(crate) uid: String,
    /// Which of its deployments.
    pub(crate) run: String,
}

/// What a host needs to join.
#[derive(Debug, Clone)]
pub(crate) struct Material {
    /// `host:port`.
    pub(crate) endpoint: String,
    /// `id.secret`.
    pub(crate) token: Secret<String>,
    /// To revoke it by.
    pub(crate) token_id: String,
    /// When it ends.
    pub(crate) expires: Timestamp,
    /// Its pins: `sha256:…`.
    pub(crate) ca_hashes: Vec<String>,
    /// `v1.34.1`.
    pub(crate) kubernetes_version: String,
    /// The cluster's `KubeletConfiguration`, as far as the token may read it.
    pub(crate) kubelet_config: Value,
}

/// `cluster-info`, as anybody may read it.
pub(super) struct ClusterInfo {
    pub(super) kubeconfig: String,
    data: Value,
}

impl ClusterInfo {
    /// Whether there is a signature of this token, and whether it holds.
    fn signed(&self, token: &Token) -> Option<bool> {
        let signature = self.data[format!("jws-kubeconfig-{}", token.id)].as_str()?;
        Some(token.signed(&self.kubeconfig, signature))
    }
}

impl Clusters {
    /// Mints a token for a host; what it had before is revoked. Waits until the cluster has signed
    /// for it, so that whoever gets it can use it at once.
    pub(crate) async fn mint(
        &self,
        cluster: &str,
        host: &HostRun,
        ttl: Duration,
    ) -> Result<Material, Problem> {
        self.mint_kept(cluster, host, ttl, ttl).await
    }

    /// The same for a host that is given it right afterwards: unless that is said
    /// ([`Clusters::given`]) it is gone soon.
    pub(crate) async fn mint_to_give(
        &self,
        cluster: &str,
        host: &HostRun,
        ttl: Duration,
    ) -> Result<Material, Problem> {
        self.mint_kept(cluster, host, ttl, UNGIVEN).await
    }

    async fn mint_kept(
        &self,
        cluster: &str,
        host: &HostRun,
        ttl: Duration,
        kept: Duration,
    ) -> Result<Material, Problem> {
        let place = self.find(cluster).await?;
        place.obstacle()?;
        self.revoke_of(cluster, &host.uid).await?;
        let version = version(&place).await?;
        let token = Token::random();
        let ttl = SignedDuration::try_from(ttl).unwrap_or(SignedDuration::from_mins(15));
        let expires = clock::now().checked_add(ttl).unwrap_or(Timestamp::MAX);
        let description = format!("Ferrite: host {}, run {}", host.name, host.run);
        let kept = expires.min(clock::now() + kept);
        self.note(cluster, &token.id, Some(host), kept).await?;
        let made = prove(&place, &token, &description, expires).await;
        if let Err(problem) = made {
            self.let_go(cluster, &token.id).await;
            return Err(problem);
        }
        Ok(Material {
            endpoint: place.host_port(),
            kubelet_config: kubelet_config(&place, &token).await,
            token: token.whole(),
            expires,
            token_id: token.id,
            ca_hashes: token::pins(&place.ca),
            kubernetes_version: version,
        })
    }

    /// A host was given a token: it is kept until its time is over.
    pub(crate) async fn given(
        &self,
        cluster: &str,
        token_id: &str,
        expires: Timestamp,
    ) -> Result<(), Problem> {
        let name = document_name(cluster, token_id);
        let Some(noted) = self.documents.get(MINTED, &name) else {
            return Ok(());
        };
        let mut kept = noted.as_ref().clone();
        kept.body["revoke_after"] = json!(expires);
        let expect = Expect::Revision(noted.revision);
        self.documents
            .put(kept, expect, Vec::new())
            .await
            .map(|_| ())
    }

    /// Whether a cluster signs for a token, as its hosts see it.
    pub(crate) async fn signs_for(&self, cluster: &str, token_id: &str) -> Result<bool, Problem> {
        let place = self.place(cluster).await?;
        let info = cluster_info(&place).await?;
        Ok(info.data[format!("jws-kubeconfig-{token_id}")].is_string())
    }

    /// Writes down that nobody needs a token any more: from now on the sweep removes it, however
    /// long its cluster does not answer.
    pub(crate) async fn spend(&self, cluster: &str, token_id: &str) -> Result<(), Problem> {
        let name = document_name(cluster, token_id);
        let Some(noted) = self.documents.get(MINTED, &name) else {
            return Ok(());
        };
        let mut due = noted.as_ref().clone();
        due.body["revoke_after"] = json!(clock::now());
        let expect = Expect::Revision(noted.revision);
        let put = self.documents.put(due, expect, Vec::new());
        put.await.map(drop)
    }

    /// Removes a token. When the cluster does not answer it is removed later, and this is an error
    /// only for whoever wants to know.
    pub(crate) async fn revoke(&self, cluster: &str, token_id: &str) -> Result<(), Problem> {
        match self.spend(cluster, token_id).await {
            // Somebody else is at it.
            Err(problem) if problem.code == Code::Conflict => {}
            spent => spent?,
        }
        self.strike(cluster, token_id).await
    }

    /// Removes tokens whose time is over, or that could not be removed before.
    pub(super) async fn sweep_tokens(&self) {
        let now = clock::now();
        // One that does not answer is asked once in a round: others wait behind it.
        let mut silent = BTreeSet::new();
        for noted in self.documents.list(MINTED) {
            let due = noted.body["revoke_after"].as_str();
            let due = due.and_then(|due| due.parse::<Timestamp>().ok());
            if due.is_some_and(|due| due > now) {
                continue;
            }
            let (Some(cluster), Some(id)) =
                (noted.body["cluster"].as_str(), noted.body["token"].as_str())
            else {
                continue;
            };
            if silent.contains(cluster) {
                continue;
            }
            // A cluster that was removed keeps its tokens until they expire there.
            let gone = self.documents.get(super::KIND, cluster).is_none();
            let struck = if gone {
                self.forget(cluster, id).await
            } else {
                self.strike(cluster, id).await
            };
            if let Err(problem) = struck {
                tracing::warn!(%cluster, token = %id, %problem, "a token is not removed yet");
                silent.insert(cluster.to_owned());
            }
        }
    }

    async fn revoke_of(&self, cluster: &str, uid: &str) -> Result<(), Problem> {
        for noted in self.documents.list(MINTED) {
            let body = &noted.body;
            if body["cluster"] == cluster && body["host"] == uid {
                let id = body["token"].as_str().unwrap_or_default();
                self.revoke(cluster, id).await?;
            }
        }
        Ok(())
    }

    /// Writes down that a token is about to be out.
    pub(super) async fn note(
        &self,
        cluster: &str,
        id: &str,
        host: Option<&HostRun>,
        expires: Timestamp,
    ) -> Result<(), Problem> {
        let body = json!({
            "cluster": cluster,
            "token": id,
            "host": host.map(|host| &host.uid),
            "run": host.map(|host| &host.run),
            "revoke_after": expires,
        });
        let document = Document::new(MINTED, &document_name(cluster, id), clock::now(), body);
        crash::point(Work::NoteToken, Moment::Before);
        let put = self.documents.put(document, Expect::Absent, Vec::new());
        let put = put.await.map(|_| ());
        crash::point(Work::NoteToken, Moment::After);
        put
    }

    /// Removes a token that nobody was told; the sweep does it when this fails.
    pub(super) async fn let_go(&self, cluster: &str, id: &str) {
        if let Err(problem) = self.revoke(cluster, id).await {
            tracing::warn!(%cluster, token = %id, %problem, "a token is removed later");
        }
    }

    async fn strike(&self, cluster: &str, id: &str) -> Result<(), Problem> {
        let place = self.place(cluster).await?;
        let path = format!("{SECRETS}/{}", token::name_of(id));
        crash::point(Work::StrikeToken, Moment::Before);
        place.wire.remove(&path, None).await?;
        crash::point(Work::StrikeToken, Moment::Acted);
        tracing::info!(%cluster, token = %id, "bootstrap token removed");
        let forgotten = self.forget(cluster, id).await;
        crash::point(Work::StrikeToken, Moment::After);
        forgotten
    }

    async fn forget(&self, cluster: &str, id: &str) -> Result<(), Problem> {
        let name = document_name(cluster, id);
        let Some(noted) = self.documents.get(MINTED, &name) else {
            return Ok(());
        };
        let expect = Expect::Revision(noted.revision);
        match self
            .documents
            .remove(MINTED, &name, expect, Vec::new())
            .await
        {
            Err(problem) if matches!(problem.code, Code::Conflict | Code::NotFound) => Ok(()),
            removed => removed.map(|_| ()),
        }
    }
}

fn document_name(cluster: &str, id: &str) -> String {
    format!("{cluster}.{id}")
}

/// Gives the cluster a token, and waits until it vouches for itself with it.
pub(super) async fn prove(
    place: &Place,
    token: &Token,
    description: &str,
    expires: Timestamp,
) -> Result<ClusterInfo, Problem> {
    place
        .wire
        .create(SECRETS, &token.object(description, expires))
        .await?;
    let deadline = tokio::time::Instant::now() + SIGNING;
    loop {
        let info = cluster_info(place).await?;
        match info.signed(token) {
            Some(true) => {
                check_info(place, &info)?;
                return Ok(info);
            }
            // It is signed anew after each change.
            Some(false) | None if tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(PAUSE).await;
            }
            signed => return Err(unsigned(place, signed.is_some()).await),
        }
    }
}

/// What kubelets are configured with; null where it cannot be read, which the host finds out too.
async fn kubelet_config(place: &Place, token: &Token) -> Value {
    let host = place.open.with_token(token.whole().expose());
    match host.get(KUBELET_CONFIG).await {
        Ok(Some(object)) => {
            let text = object["data"]["kubelet"].as_str().unwrap_or_default();
            serde_saphyr::from_str(text).unwrap_or_default()
        }
        Ok(None) => Value::Null,
        Err(problem) => {
            tracing::info!(cluster = %place.cluster, %problem, "kubelet-config cannot be read");
            Value::Null
        }
    }
}

async fn unsigned(place: &Place, wrongly: bool) -> Problem {
    let who = format!("cluster {}", place.cluster);
    if wrongly {
        return Problem::new(
            Code::ClusterInfo,
            format!("{who}: the signature in cluster-info is not of the token that was made"),
            "look who writes kube-public/cluster-info; it is tried again",
        );
    }
    let wait = SIGNING.as_secs();
    let advice = match skew(place).await {
        Some(skew) if skew.unsigned_abs() >= Duration::from_mins(1) => format!(
            "the cluster's clock is {} s from the conductor's: a token may have expired before it \
             was made; set both clocks; it is tried again",
            skew.as_secs()
        ),
        _ => "bootstrapsigner must run in kube-controller-manager \
              (--controllers=*,bootstrapsigner,tokencleaner); it is tried again"
            .to_owned(),
    };
    let text =
        format!("{who}: no signature for a new bootstrap token in cluster-info after {wait} s");
    Problem::new(Code::ClusterTokenUnsigned, text, advice)
}

/// By how much the cluster's clock is ahead of ours.
pub(super) async fn skew(place: &Place) -> Option<SignedDuration> {
    let answer = place
        .wire
        .call(&reqwest::Method::GET, "/version", None)
        .await;
    Some(answer.ok()?.at?.duration_since(clock::now()))
}

/// `cluster-info`, asked for as a host would.
pub(super) async fn cluster_info(place: &Place) -> Result<ClusterInfo, Problem> {
    let wrong = |what: &str| {
        let text = format!("cluster {}: {what}", place.cluster);
        let advice = "`kubeadm init phase bootstrap-token` writes it; it is tried again";
        Problem::new(Code::ClusterInfo, text, advice)
    };
    let found = place.open.get(CLUSTER_INFO).await?;
    let mut found = found.ok_or_else(|| wrong("there is no kube-public/cluster-info"))?;
    let data = found["data"].take();
    let kubeconfig = data["kubeconfig"].as_str().map(str::to_owned);
    let kubeconfig = kubeconfig.ok_or_else(|| wrong("cluster-info has no kubeconfig"))?;
    Ok(ClusterInfo { kubeconfig, data })
}

/// Whether `cluster-info` names the CA that we pin: else every host would refuse to join.
pub(super) fn check_info(place: &Place, info: &ClusterInfo) -> Result<(), Problem> {
    let theirs = info.authorities();
    let ours = token::pins(&place.ca);
    if theirs.iter().any(|pin| ours.contains(pin)) {
        return Ok(());
    }
    let text = format!(
        "cluster {}: cluster-info names the CA {}, and we pin {}",
        place.cluster,
        theirs.first().map_or("of nobody", String::as_str),
        ours.join(", "),
    );
    let advice = "the CA was rotated, or this is another cluster: give a new kubeconfig, or let \
                  Kamaji end the rotation; it is tried again";
    Err(Problem::new(Code::ClusterInfo, text, advice))
}

impl ClusterInfo {
    /// Pins of the CA that it names.
    fn authorities(&self) -> Vec<String> {
        use base64::Engine;
        let read: Option<Value> = serde_saphyr::from_str(&self.kubeconfig).ok();
        let data = read.as_ref().and_then(|read| {
            read.pointer("/clusters/0/cluster/certificate-authority-data")?
                .as_str()
        });
        let pem = data.and_then(|data| base64::prelude::BASE64_STANDARD.decode(data).ok());
        let pem = pem.and_then(|pem| String::from_utf8(pem).ok());
        token::pins(&pem.unwrap_or_default())
    }

    /// The server that it names: kubeadm goes there after the discovery.
    pub(super) fn server(&self) -> Option<String> {
        let read: Option<Value> = serde_saphyr::from_str(&self.kubeconfig).ok();
        let server = read
            .as_ref()?
            .pointer("/clusters/0/cluster/server")?
            .as_str()?;
        super::origin(server)
    }
}

/// The version of the API server.
pub(super) async fn version(place: &Place) -> Result<String, Problem> {
    let found = place.wire.get("/version").await?.unwrap_or_default();
    let version = found["gitVersion"].as_str().map(super::wire::short);
    version.ok_or_else(|| {
        let text = format!("cluster {}: its API server tells no version", place.cluster);
        let advice = "look whether an API server is at its address; it is tried again";
        Problem::new(Code::ClusterProtocol, text, advice)
    })
}
