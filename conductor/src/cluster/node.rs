//! A host's node: what the cluster says of it, and what we change of it.
//!
//! Not here: whether it is the host's; the lifecycle compares UUIDs and boots.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ferrite_proto::problem::{Code, Problem};
use jiff::Timestamp;
use reqwest::{Method, StatusCode};
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use super::Clusters;
use super::wire::{Wire, escaped, short};

/// The signer of kubelets' client certificates.
const SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const CSRS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
/// How long a list of requests is used again.
const REQUESTS_FRESH: Duration = Duration::from_secs(2);
/// How often a change is made anew because somebody else wrote in between.
const ATTEMPTS: usize = 5;

/// A node, as far as a join and a leave care.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    /// Its name.
    pub(crate) name: String,
    /// Another node of the same name has another.
    pub(crate) uid: String,
    /// When it was first there.
    pub(crate) created: Option<Timestamp>,
    /// `spec.providerID`.
    pub(crate) provider_id: Option<String>,
    /// Of the machine, as SMBIOS has it.
    pub(crate) system_uuid: String,
    /// Of the running kernel.
    pub(crate) boot_id: String,
    /// `v1.34.1`.
    pub(crate) kubelet_version: String,
    /// The condition Ready; absent until the kubelet first told.
    pub(crate) ready: Option<Ready>,
    /// When the kubelet last renewed its lease.
    pub(crate) lease_renewed: Option<Timestamp>,
    /// Its labels.
    pub(crate) labels: BTreeMap<String, String>,
    /// Its taints.
    pub(crate) taints: Vec<Taint>,
    /// Cordoned.
    pub(crate) unschedulable: bool,
}

/// The condition Ready of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ready {
    /// `True`, `False` or `Unknown`.
    pub(crate) status: String,
    /// A word for programs: `KubeletNotReady`.
    pub(crate) reason: String,
    /// Words for people.
    pub(crate) message: String,
    /// When the kubelet last told.
    pub(crate) heartbeat: Option<Timestamp>,
}

impl Ready {
    /// Nothing is missing but a network for pods, which is the cluster's to bring.
    pub(crate) fn waits_for_cni(&self) -> bool {
        let words = self.message.to_ascii_lowercase();
        self.status == "False" && (words.contains("cni") || words.contains("networkpluginnotready"))
    }
}

/// A taint of a node.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Taint {
    /// What it is known by, with its effect.
    pub(crate) key: String,
    /// Often empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) value: String,
    /// `NoSchedule`, `PreferNoSchedule`, `NoExecute`.
    pub(crate) effect: String,
}

/// How the request of a kubelet for its certificate stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CsrState {
    /// There is none.
    Absent,
    /// Nobody has approved it.
    Pending(String),
    /// It is approved, and the certificate is not there yet.
    Approved(String),
    /// Somebody has denied it, or it failed: with why.
    Denied(String, String),
    /// The certificate is issued.
    Issued(String),
}

/// Requests for certificates, as last listed.
#[derive(Debug, Default)]
pub(super) struct Requests {
    at: Option<Instant>,
    all: Vec<Request>,
}

/// Who makes a request.
#[derive(Debug, Clone, Copy)]
pub(crate) enum AskedBy<'a> {
    /// Who has the bootstrap token of this id.
    Token(&'a str),
    /// Anybody, since then.
    Anybody(Timestamp),
}

impl AskedBy<'_> {
    fn is(self, request: &Request) -> bool {
        match self {
            Self::Token(id) => request.by.strip_prefix("system:bootstrap:") == Some(id),
            // The API's times are whole seconds.
            Self::Anybody(since) => {
                let created = request.created;
                created.is_some_and(|created| created.as_second() >= since.as_second())
            }
        }
    }
}

/// A kubelet's request for its certificate.
#[derive(Debug)]
struct Request {
    /// For whom: `system:node:…`.
    node: String,
    /// Who made it: `system:bootstrap:…`.
    by: String,
    created: Option<Timestamp>,
    state: CsrState,
}

impl Request {
    fn read(csr: &Value) -> Option<Self> {
        Some(Self {
            node: common_name(csr)?,
            by: csr["spec"]["username"].as_str()?.to_owned(),
            created: time(&csr["metadata"]["creationTimestamp"]),
            state: state_of(csr),
        })
    }
}

impl Clusters {
    /// A node, with its lease.
    pub(crate) async fn node(&self, cluster: &str, name: &str) -> Result<Option<Node>, Problem> {
        let place = self.place(cluster).await?;
        let Some(object) = place.wire.get(&path_of(name)).await? else {
            return Ok(None);
        };
        let lease = format!(
            "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{}",
            escaped(name)
        );
        let lease = place.wire.get(&lease).await?;
        Ok(Some(read(&object, lease.as_ref())))
    }

    /// Whether a node is there and ready, as the cluster says.
    pub(crate) async fn is_ready(&self, cluster: &str, name: &str) -> Result<bool, Problem> {
        let place = self.place(cluster).await?;
        let object = place.wire.get(&path_of(name)).await?;
        let ready = object.as_ref().and_then(ready);
        Ok(ready.is_some_and(|ready| ready.status == "True"))
    }

    /// The newest request of a node's kubelet for its certificate. All hosts that join at the time
    /// share one list.
    pub(crate) async fn csr_of(
        &self,
        cluster: &str,
        node: &str,
        by: AskedBy<'_>,
    ) -> Result<CsrState, Problem> {
        let shared = self.requests(cluster);
        let mut known = shared.lock().await;
        if known.at.is_none_or(|at| at.elapsed() >= REQUESTS_FRESH) {
            let place = self.place(cluster).await?;
            let query = format!("fieldSelector=spec.signerName%3D{}", escaped(SIGNER));
            let all = place.wire.list(CSRS, &query).await?;
            known.all = all.iter().filter_map(Request::read).collect();
            known.at = Some(Instant::now());
        }
        let node = format!("system:node:{node}");
        let of_kubelet = known
            .all
            .iter()
            .filter(|one| one.node == node && by.is(one));
        let newest = of_kubelet.max_by_key(|one| one.created);
        Ok(newest.map_or(CsrState::Absent, |one| one.state.clone()))
    }

    /// Adds labels and taints; those that are there stay, or get the new value.
    pub(crate) async fn label_and_taint(
        &self,
        cluster: &str,
        node: &str,
        labels: &BTreeMap<String, String>,
        taints: &[Taint],
    ) -> Result<(), Problem> {
        let place = self.place(cluster).await?;
        change(&place.wire, cluster, node, |object| {
            let before = read(object, None);
            let is_same = |old: &Taint, new: &Taint| old.key == new.key && old.effect == new.effect;
            let mut all = before.taints;
            all.retain(|old| !taints.iter().any(|new| is_same(old, new)));
            all.extend(taints.iter().cloned());
            json!({"metadata": {"labels": labels}, "spec": {"taints": all}})
        })
        .await
    }

    /// No new pods come to the node.
    pub(crate) async fn cordon(&self, cluster: &str, node: &str) -> Result<(), Problem> {
        let place = self.place(cluster).await?;
        let cordoned = |_: &Value| json!({"spec": {"unschedulable": true}});
        change(&place.wire, cluster, node, cordoned).await
    }

    /// Names of the volumes that are attached to a node.
    pub(crate) async fn volume_attachments(
        &self,
        cluster: &str,
        node: &str,
    ) -> Result<Vec<String>, Problem> {
        const PATH: &str = "/apis/storage.k8s.io/v1/volumeattachments";
        let place = self.place(cluster).await?;
        let all = place.wire.list(PATH, "").await?;
        let of_node = all.iter().filter(|one| one["spec"]["nodeName"] == node);
        let names = of_node.filter_map(|one| one["metadata"]["name"].as_str());
        Ok(names.map(short).collect())
    }

    /// Removes a node, if it is still the one of this uid; its lease goes with it.
    pub(crate) async fn delete_node(
        &self,
        cluster: &str,
        node: &str,
        uid: Option<&str>,
    ) -> Result<(), Problem> {
        let place = self.place(cluster).await?;
        let only = uid.map(|uid| json!({"preconditions": {"uid": uid}}));
        let path = path_of(node);
        let answer = place
            .wire
            .call(&Method::DELETE, &path, only.as_ref())
            .await?;
        match answer.status {
            StatusCode::NOT_FOUND => Ok(()),
            StatusCode::CONFLICT => {
                let text = format!("cluster {cluster}: node {node} is another one by now");
                let advice = "another machine took the name: nothing was removed";
                Err(Problem::new(Code::Conflict, text, advice))
            }
            _ => place.wire.done(&Method::DELETE, &path, answer).map(|_| ()),
        }
    }
}

pub(super) fn path_of(node: &str) -> String {
    format!("/api/v1/nodes/{}", escaped(node))
}

/// Changes what was read, and reads anew when somebody else wrote in between.
async fn change(
    wire: &Wire,
    cluster: &str,
    node: &str,
    patch: impl Fn(&Value) -> Value,
) -> Result<(), Problem> {
    let path = path_of(node);
    for _ in 0..ATTEMPTS {
        let object = wire.get(&path).await?.ok_or_else(|| {
            let text = format!("cluster {cluster} has no node {node}");
            Problem::new(Code::NotFound, text, "it has not joined, or was removed")
        })?;
        let mut change = patch(&object);
        change["metadata"]["resourceVersion"] = object["metadata"]["resourceVersion"].clone();
        let answer = wire.call(&Method::PATCH, &path, Some(&change)).await?;
        if answer.status != StatusCode::CONFLICT {
            return wire.done(&Method::PATCH, &path, answer).map(|_| ());
        }
    }
    let text = format!("cluster {cluster}: node {node} is changed all the time");
    let advice = "look who writes it; it is tried again";
    Err(Problem::new(Code::ClusterProtocol, text, advice))
}

fn read(object: &Value, lease: Option<&Value>) -> Node {
    let text = |place: &str| {
        let found = object.pointer(place).and_then(Value::as_str);
        found.map(short).unwrap_or_default()
    };
    let labels = object["metadata"]["labels"].as_object();
    let labels = labels.into_iter().flatten();
    let taints = serde_json::from_value(object["spec"]["taints"].clone());
    Node {
        name: text("/metadata/name"),
        uid: text("/metadata/uid"),
        created: time(&object["metadata"]["creationTimestamp"]),
        provider_id: Some(text("/spec/providerID")).filter(|id| !id.is_empty()),
        system_uuid: text("/status/nodeInfo/systemUUID"),
        boot_id: text("/status/nodeInfo/bootID"),
        kubelet_version: text("/status/nodeInfo/kubeletVersion"),
        ready: ready(object),
        lease_renewed: lease.and_then(|lease| time(&lease["spec"]["renewTime"])),
        labels: labels
            .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
            .collect(),
        taints: taints.unwrap_or_default(),
        unschedulable: object["spec"]["unschedulable"].as_bool().unwrap_or(false),
    }
}

fn ready(object: &Value) -> Option<Ready> {
    let conditions = object["status"]["conditions"].as_array()?;
    let ready = conditions.iter().find(|one| one["type"] == "Ready")?;
    let text = |field: &str| ready[field].as_str().map(short).unwrap_or_default();
    Some(Ready {
        status: text("status"),
        reason: text("reason"),
        message: text("message"),
        heartbeat: time(&ready["lastHeartbeatTime"]),
    })
}

fn time(value: &Value) -> Option<Timestamp> {
    value.as_str()?.parse().ok()
}

/// Whom a request is for.
fn common_name(csr: &Value) -> Option<String> {
    let pem = BASE64_STANDARD
        .decode(csr["spec"]["request"].as_str()?)
        .ok()?;
    let der = CertificateSigningRequestDer::from_pem_slice(&pem).ok()?;
    let (_, request) = X509CertificationRequest::from_der(&der).ok()?;
    let subject = &request.certification_request_info.subject;
    let name = subject.iter_common_name().next()?;
    name.as_str().ok().map(str::to_owned)
}

fn state_of(csr: &Value) -> CsrState {
    let name = csr["metadata"]["name"]
        .as_str()
        .map(short)
        .unwrap_or_default();
    let conditions = csr["status"]["conditions"].as_array();
    let conditions = conditions.map(Vec::as_slice).unwrap_or_default();
    let has = |kind: &str| conditions.iter().find(|one| one["type"] == kind);
    if let Some(why) = has("Denied").or_else(|| has("Failed")) {
        let text = |field: &str| why[field].as_str().map(short).unwrap_or_default();
        return CsrState::Denied(name, format!("{}: {}", text("reason"), text("message")));
    }
    let issued = csr["status"]["certificate"].as_str();
    match (issued, has("Approved")) {
        (Some(certificate), _) if !certificate.is_empty() => CsrState::Issued(name),
        (_, Some(_)) => CsrState::Approved(name),
        (_, None) => CsrState::Pending(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_read_as_far_as_it_is_there() {
        let node = read(
            &json!({
                "metadata": {"name": "n", "uid": "u", "labels": {"a": "b", "c": 7},
                    "creationTimestamp": "2026-11-21T10:00:00Z"},
                "spec": {"providerID": "ferrite://n", "unschedulable": true,
                    "taints": [{"key": "k", "effect": "NoSchedule"}]},
                "status": {
                    "nodeInfo": {"systemUUID": "S", "bootID": "B", "kubeletVersion": "v1.34.1"},
                    "conditions": [{"type": "Ready", "status": "False", "reason": "KubeletNotReady",
                        "message": "container runtime network not ready: NetworkReady=false \
                                    reason:NetworkPluginNotReady message:Network plugin returns \
                                    error: cni plugin not initialized",
                        "lastHeartbeatTime": "2026-11-21T10:00:05Z"}],
                },
            }),
            Some(&json!({"spec": {"renewTime": "2026-11-21T10:00:09.123456Z"}})),
        );
        assert_eq!(
            (node.system_uuid.as_str(), node.boot_id.as_str()),
            ("S", "B")
        );
        assert_eq!(node.provider_id.as_deref(), Some("ferrite://n"));
        assert_eq!(node.labels.len(), 1);
        assert_eq!(node.taints[0].effect, "NoSchedule");
        assert!(node.unschedulable && node.ready.unwrap().waits_for_cni());
        assert!(node.lease_renewed > node.created);
        let bare = read(&json!([]), None);
        assert_eq!(
            (bare.ready, bare.provider_id, bare.labels.len()),
            (None, None, 0)
        );
    }

    #[test]
    fn a_request_is_told_apart_by_its_subject_and_conditions() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(rcgen::DnType::OrganizationName, "system:nodes");
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "system:node:n1");
        let pem = params.serialize_request(&key).unwrap().pem().unwrap();
        let request = BASE64_STANDARD.encode(pem);
        let csr = |status: Value| {
            let (metadata, spec) = (json!({"name": "csr-1"}), json!({"request": request}));
            json!({"metadata": metadata, "spec": spec, "status": status})
        };
        assert_eq!(
            common_name(&csr(json!({}))).as_deref(),
            Some("system:node:n1")
        );
        assert_eq!(common_name(&json!({"spec": {"request": "eA=="}})), None);
        let name = || "csr-1".to_owned();
        assert_eq!(state_of(&csr(json!({}))), CsrState::Pending(name()));
        let approved = json!([{"type": "Approved"}]);
        assert_eq!(
            state_of(&csr(json!({"conditions": approved}))),
            CsrState::Approved(name())
        );
        assert_eq!(
            state_of(&csr(json!({"conditions": approved, "certificate": "eA=="}))),
            CsrState::Issued(name())
        );
        let denied = json!([{"type": "Denied", "reason": "r", "message": "m"}]);
        assert_eq!(
            state_of(&csr(json!({"conditions": denied}))),
            CsrState::Denied(name(), "r: m".to_owned())
        );
    }
}
