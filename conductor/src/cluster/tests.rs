//! Clusters against the API server of the tests' own: tokens, nodes, drains, and each fault by its
//! code. With real binaries: `make test-kube`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use ferrite_proto::address::Policy;
use ferrite_proto::boot::CaPin;
use ferrite_proto::cluster::{ClusterReport, Verdict};
use ferrite_proto::problem::{Code, Problem};
use jiff::SignedDuration;
use serde_json::{Value, json};

use super::mint::MINTED;
use super::{AskedBy, Clusters, CsrState, HostRun, KIND, Material, Taint};
use crate::boots::Boots;
use crate::clock;
use crate::hosts::Hosts;
use crate::lifecycle::order::Reach;
use crate::seal::Sealer;
use crate::store::database::Database;
use crate::store::{Document, Expect};

#[path = "../../../tests/src/kube_api/mod.rs"]
#[expect(
    unreachable_pub,
    reason = "it is the tests crate's, which nothing may depend on"
)]
mod kube_api;

use kube_api::{Approval, KubeApi, Signing};

const TOKENS: &str = "/api/v1/namespaces/kube-system/secrets/bootstrap-token-";
const TTL: Duration = Duration::from_mins(15);

struct Site {
    clusters: Arc<Clusters>,
    api: KubeApi,
    dir: tempfile::TempDir,
}

impl Site {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let reach = Reach {
            url: "https://c:1".to_owned(),
            ca: CaPin([0; 32]),
            ca_pem: "".into(),
            servers: Vec::new().into(),
        };
        let sealer = Sealer::load_or_create(&dir.path().join("key")).unwrap();
        let store = Database::sqlite(&dir.path().join("db"), sealer)
            .await
            .unwrap();
        let (boots, _) = Boots::new(reach);
        let hosts = Hosts::load(Arc::new(store), Arc::new(boots)).await.unwrap();
        let policy = Policy::OthersAndLoopback;
        let clusters = Arc::new(Clusters::new(hosts.documents(), policy));
        let api = KubeApi::start().await.unwrap();
        let site = Self { clusters, api, dir };
        site.add("c", &json!({}), &site.api.kubeconfig()).await;
        site
    }

    async fn add(&self, name: &str, spec: &Value, kubeconfig: &str) {
        let mut document = Document::new(KIND, name, clock::now(), json!({"spec": spec}));
        document.secret = Some(json!({"kubeconfig": kubeconfig}));
        let before = self.clusters.documents.get(KIND, name);
        let expect = before.map_or(Expect::Absent, |before| Expect::Revision(before.revision));
        let put = self.clusters.documents.put(document, expect, Vec::new());
        put.await.unwrap();
    }

    async fn mint(&self) -> Result<Material, Problem> {
        self.clusters.mint("c", &host("u1"), TTL).await
    }

    fn out(&self) -> usize {
        assert_eq!(
            self.clusters.documents.list(MINTED).len(),
            self.api.paths(TOKENS).len()
        );
        self.api.paths(TOKENS).len()
    }

    async fn checked(&self, name: &str) -> ClusterReport {
        self.clusters.check(name, None).await.unwrap()
    }
}

fn host(uid: &str) -> HostRun {
    HostRun {
        name: "r1-n4".to_owned(),
        uid: uid.to_owned(),
        run: "run-7".to_owned(),
    }
}

fn finding(report: &ClusterReport, code: &str) -> (Verdict, String) {
    let found = report.findings.iter().find(|found| found.code == code);
    let found = found.unwrap_or_else(|| panic!("no {code} in {report:#?}"));
    assert_eq!(
        found.verdict >= Verdict::Warning,
        !found.fix.is_empty() && !found.reason.is_empty() && found.verdict != Verdict::Skipped
    );
    (found.verdict, found.reason.clone())
}

#[tokio::test]
async fn a_token_is_of_one_host_and_goes() {
    let site = Site::start().await;
    let first = site.mint().await.unwrap();
    assert_eq!(first.endpoint, site.api.host_port());
    assert_eq!(first.kubernetes_version, "v1.34.1");
    assert_eq!(first.ca_hashes.len(), 1);
    assert!(!format!("{first:?}").contains(first.token.expose()));
    assert_eq!(site.out(), 1);
    let kept = site
        .api
        .object(&format!("{TOKENS}{}", first.token_id))
        .unwrap();
    let said = kept["data"]["description"].as_str().unwrap();
    let said = base64::prelude::BASE64_STANDARD.decode(said).unwrap();
    assert_eq!(said, b"Ferrite: host r1-n4, run run-7");

    let second = site.mint().await.unwrap();
    assert_ne!(first.token_id, second.token_id);
    assert_eq!(site.out(), 1, "a host has one");
    site.clusters.mint("c", &host("u2"), TTL).await.unwrap();
    assert_eq!(site.out(), 2);
    site.clusters.revoke("c", &second.token_id).await.unwrap();
    assert_eq!(site.out(), 1);
    site.clusters.revoke("c", "abcdef").await.unwrap();
    drop(site.clusters);
    let (_, secret) = second.token.expose().split_once('.').unwrap();
    for file in std::fs::read_dir(site.dir.path()).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        let has = |needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
        assert!(!has(secret.as_bytes()) && !has(site.api.admin_token().as_bytes()));
    }
}

#[tokio::test]
async fn a_token_that_could_not_be_removed_is_removed_later() {
    let site = Site::start().await;
    let minted = site.mint().await.unwrap();
    site.api.set(|faults| faults.is_down = true);
    let refused = site
        .clusters
        .revoke("c", &minted.token_id)
        .await
        .unwrap_err();
    assert_eq!(refused.code, Code::ClusterUnreachable);
    site.clusters.sweep_tokens().await;
    assert_eq!(site.out(), 1);
    site.api.set(|faults| faults.is_down = false);
    site.clusters.sweep_tokens().await;
    assert_eq!(site.out(), 0);
}

#[tokio::test]
async fn an_expired_token_is_swept() {
    let site = Site::start().await;
    let short = Duration::from_secs(1);
    site.clusters.mint("c", &host("u"), short).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    site.clusters.sweep_tokens().await;
    assert_eq!(site.out(), 0);
}

#[tokio::test]
async fn a_signature_may_be_late() {
    let site = Site::start().await;
    site.api
        .set(|faults| faults.signing = Signing::After(Duration::from_secs(2)));
    site.mint().await.unwrap();
}

#[tokio::test]
async fn what_is_wrong_has_its_code_and_nothing_is_left() {
    let site = Site::start().await;
    let code = async || {
        let refused = site.mint().await.unwrap_err();
        eprintln!("{refused}");
        refused.code
    };
    site.api.set(|faults| faults.is_down = true);
    assert_eq!(code().await, Code::ClusterUnreachable);
    site.api.set(|faults| faults.is_down = false);
    let info = "GET /api/v1/namespaces/kube-public/configmaps/cluster-info";
    site.api
        .set(|faults| _ = faults.forbidden.insert(info.to_owned()));
    assert_eq!(code().await, Code::ClusterForbidden);
    site.api.set(|faults| faults.forbidden.clear());
    site.api.remove(&info[4..]);
    assert_eq!(code().await, Code::ClusterInfo);
    site.api.write_cluster_info();
    site.api.set_version("");
    site.mint().await.unwrap();
    site.api.rotate_ca().unwrap();
    assert_eq!(code().await, Code::ClusterCertificate);
    site.add("c", &json!({}), &site.api.kubeconfig()).await;
    site.mint().await.unwrap();
    assert_eq!(site.out(), 1);
    site.add("c", &json!({}), &site.api.kubeconfig_of("expired"))
        .await;
    assert_eq!(code().await, Code::ClusterCredentialsRefused);
    let none = site.clusters.mint("d", &host("u"), TTL).await.unwrap_err();
    assert_eq!(none.code, Code::NotFound);
}

#[tokio::test]
async fn another_ca_in_cluster_info_is_told_before_any_host_sees_it() {
    let site = Site::start().await;
    let other = KubeApi::start().await.unwrap();
    let path = "/api/v1/namespaces/kube-public/configmaps/cluster-info";
    site.api.put(path, other.object(path).unwrap());
    let refused = site.mint().await.unwrap_err();
    assert_eq!(refused.code, Code::ClusterInfo);
    assert!(refused.message.contains("sha256:"), "{refused}");
    assert_eq!(site.out(), 0);
}

/// Both wait for as long as a signature may take.
#[tokio::test]
async fn signatures_that_do_not_come_or_do_not_hold_are_told_apart() {
    let (absent, wrong) = tokio::join!(
        async {
            let site = Site::start().await;
            site.api.set(|faults| {
                faults.signing = Signing::Never;
                faults.clock = SignedDuration::from_mins(-30);
            });
            let refused = site.mint().await.unwrap_err();
            assert_eq!(site.out(), 0);
            refused
        },
        async {
            let site = Site::start().await;
            site.api.set(|faults| faults.signing = Signing::Wrong);
            site.mint().await.unwrap_err()
        }
    );
    assert_eq!(absent.code, Code::ClusterTokenUnsigned);
    assert!(absent.advice.contains("clock"), "{}", absent.advice);
    assert_eq!(wrong.code, Code::ClusterInfo);
}

#[tokio::test]
async fn a_check_of_a_good_cluster_finds_nothing() {
    let site = Site::start().await;
    let report = site.checked("c").await;
    assert!(report.can_join, "{report:#?}");
    for found in &report.findings {
        assert_eq!(found.verdict, Verdict::Ok, "{found:?}");
    }
    for code in [
        "credentials",
        "endpoint",
        "certificate",
        "clock",
        "cluster-info",
        "ca-pin",
        "token",
        "rbac",
        "kubelet-config",
        "own-rbac",
        "cni",
        "version",
    ] {
        finding(&report, code);
    }
    assert_eq!(site.out(), 0, "what the check made is gone");
    assert_eq!(site.clusters.report("c"), Some(report));
    let newer = site.clusters.check("c", Some("v1.35.0")).await.unwrap();
    assert_eq!(finding(&newer, "version").0, Verdict::Error);
    assert!(!newer.can_join);
}

#[tokio::test]
async fn a_check_names_what_is_wrong() {
    let site = Site::start().await;
    let check = async |code: &str| finding(&site.checked("c").await, code);
    site.api
        .set(|faults| faults.clock = SignedDuration::from_hours(1));
    assert_eq!(check("clock").await.0, Verdict::Warning);
    site.api.set(|faults| faults.clock = SignedDuration::ZERO);

    for (call, code, told) in [
        (
            "POST /api/v1/namespaces/kube-system/secrets",
            "token",
            "cannot",
        ),
        (
            "GET /api/v1/namespaces/kube-system/configmaps/kubeadm-config",
            "rbac",
            "kubeadm-config",
        ),
        (
            "POST /apis/certificates.k8s.io/v1/certificatesigningrequests",
            "rbac",
            "signing",
        ),
        (
            "POST /apis/certificates.k8s.io/v1/certificatesigningrequests/nodeclient",
            "rbac",
            "nodeclient",
        ),
        ("DELETE /api/v1/nodes", "own-rbac", "delete nodes"),
    ] {
        site.api
            .set(|faults| _ = faults.forbidden.insert(call.to_owned()));
        let (verdict, reason) = check(code).await;
        assert_eq!(verdict, Verdict::Error, "{call}");
        assert!(reason.contains(told), "{reason}");
        site.api.set(|faults| faults.forbidden.clear());
    }
    let cni = "/apis/apps/v1/namespaces/kube-system/daemonsets/test-cni";
    site.api.remove(cni);
    assert_eq!(check("cni").await.0, Verdict::Warning);
    site.api
        .remove("/api/v1/namespaces/kube-system/configmaps/kubelet-config");
    assert_eq!(check("kubelet-config").await.0, Verdict::Error);
    assert_eq!(site.out(), 0);

    site.api.rotate_ca().unwrap();
    let report = site.checked("c").await;
    assert_eq!(finding(&report, "certificate").0, Verdict::Error);
    assert_eq!(finding(&report, "token").0, Verdict::Skipped);
    site.api.set(|faults| faults.is_down = true);
    assert_eq!(check("endpoint").await.0, Verdict::Error);
}

#[tokio::test]
async fn a_tenant_of_kamaji_is_followed() {
    let site = Site::start().await;
    let management = KubeApi::start().await.unwrap();
    let spec = json!({"tenant": {"namespace": "tenants", "name": "t1"}});
    site.add("c", &spec, &management.kubeconfig()).await;
    let gone = site.mint().await.unwrap_err();
    assert_eq!(gone.code, Code::ClusterNotJoinable);
    for phase in ["Sleeping", "WriteLimited", "Migrating"] {
        management.put_tenant("tenants", "t1", phase, &site.api);
        let refused = site.mint().await.unwrap_err();
        assert_eq!(refused.code, Code::ClusterNotJoinable);
        assert!(refused.message.contains(phase), "{refused}");
    }
    management.put_tenant("tenants", "t1", "Ready", &site.api);
    let before = site.mint().await.unwrap();
    assert_eq!(before.endpoint, site.api.host_port());
    let status = site.clusters.see("c").await;
    assert_eq!(status.phase.as_deref(), Some("Ready"));
    assert_eq!(status.kubernetes_version.as_deref(), Some("v1.34.1"));
    assert_eq!(
        finding(&site.checked("c").await, "konnectivity").0,
        Verdict::Warning
    );

    // The CA is rotated: Kamaji's Secrets say so, and the next token pins the new one.
    site.api.rotate_ca().unwrap();
    management.put_tenant("tenants", "t1", "Ready", &site.api);
    let after = site.mint().await.unwrap();
    assert_ne!(before.ca_hashes, after.ca_hashes);
    // It moves: so does what hosts are told.
    let moved = KubeApi::start().await.unwrap();
    management.put_tenant("tenants", "t1", "Ready", &moved);
    let there = site.clusters.mint("c", &host("u9"), TTL).await.unwrap();
    assert_eq!(there.endpoint, moved.host_port());
}

fn node(name: &str) -> String {
    format!("/api/v1/nodes/{name}")
}

#[tokio::test]
async fn a_node_is_seen_labelled_cordoned_and_removed() {
    let site = Site::start().await;
    let clusters = &site.clusters;
    assert_eq!(clusters.node("c", "n1").await.unwrap(), None);
    let taint = |key: &str, value: &str| Taint {
        key: key.to_owned(),
        value: value.to_owned(),
        effect: "NoSchedule".to_owned(),
    };
    let object = json!({
        "metadata": {"labels": {"kept": "1"}},
        "spec": {"taints": [taint("old", "1"), taint("kept", "1")]},
        "status": {"nodeInfo": {"systemUUID": "S", "bootID": "B"}},
    });
    site.api.put(&node("n1"), object);
    let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1";
    let renewed = json!({"spec": {"renewTime": "2026-11-21T10:00:09.000000Z"}});
    site.api.put(lease, renewed);
    let labels = BTreeMap::from([("rack".to_owned(), "r1".to_owned())]);
    let taints = [taint("old", "2"), taint("new", "")];
    clusters
        .label_and_taint("c", "n1", &labels, &taints)
        .await
        .unwrap();
    clusters.cordon("c", "n1").await.unwrap();
    let seen = clusters.node("c", "n1").await.unwrap().unwrap();
    assert_eq!(
        (seen.system_uuid.as_str(), seen.boot_id.as_str()),
        ("S", "B")
    );
    assert_eq!(seen.labels.len(), 2);
    assert_eq!(
        seen.taints,
        [taint("kept", "1"), taint("old", "2"), taint("new", "")]
    );
    assert!(seen.unschedulable && seen.lease_renewed.is_some() && seen.ready.is_none());

    let other = clusters
        .delete_node("c", "n1", Some("another"))
        .await
        .unwrap_err();
    assert_eq!(other.code, Code::Conflict);
    clusters
        .delete_node("c", "n1", Some(&seen.uid))
        .await
        .unwrap();
    clusters
        .delete_node("c", "n1", Some(&seen.uid))
        .await
        .unwrap();
    assert_eq!(
        clusters.cordon("c", "n1").await.unwrap_err().code,
        Code::NotFound
    );
}

fn request_of(name: &str) -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    let subject = &mut params.distinguished_name;
    subject.push(rcgen::DnType::OrganizationName, "system:nodes");
    subject.push(rcgen::DnType::CommonName, name);
    params.serialize_request(&key).unwrap().pem().unwrap()
}

#[tokio::test]
async fn a_kubelets_request_is_followed() {
    const CSRS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let site = Site::start().await;
    let minted = site.mint().await.unwrap();
    let (id, token) = (minted.token_id, minted.token);
    let state = async || {
        // What was listed lately is used again.
        tokio::time::sleep(Duration::from_millis(2100)).await;
        site.clusters
            .csr_of("c", "n1", AskedBy::Token(&id))
            .await
            .unwrap()
    };
    assert_eq!(state().await, CsrState::Absent);
    assert!(site.clusters.signs_for("c", &id).await.unwrap());
    assert!(!site.clusters.signs_for("c", "abcdef").await.unwrap());
    let pem = request_of("system:node:n1");
    let request = base64::prelude::BASE64_STANDARD.encode(pem);
    let post = async |name: &str| {
        let place = site.clusters.place("c").await.unwrap();
        let csr = json!({"metadata": {"name": name}, "spec": {
            "signerName": "kubernetes.io/kube-apiserver-client-kubelet", "request": request}});
        place
            .open
            .with_token(token.expose())
            .create(CSRS, &csr)
            .await
            .unwrap();
    };
    site.api.set(|faults| faults.approval = Approval::Denied);
    post("csr-1").await;
    let denied = state().await;
    let CsrState::Denied(name, why) = denied else {
        panic!("{denied:?}")
    };
    assert_eq!(name, "csr-1");
    assert!(why.contains("TestDenies"), "{why}");
    site.api.remove(&format!("{CSRS}/csr-1"));
    site.api.set(|faults| faults.approval = Approval::Pending);
    post("csr-2").await;
    assert_eq!(state().await, CsrState::Pending("csr-2".to_owned()));
    site.api.set(|faults| faults.approval = Approval::Prompt);
    assert_eq!(state().await, CsrState::Issued("csr-2".to_owned()));
    let none = site
        .clusters
        .csr_of("c", "n1", AskedBy::Token("abcdef"))
        .await
        .unwrap();
    assert_eq!(none, CsrState::Absent, "by another token it is another's");
    let since = |at| site.clusters.csr_of("c", "n1", AskedBy::Anybody(at));
    let later = crate::clock::now() + SignedDuration::from_mins(1);
    let none = since(later).await.unwrap();
    assert_eq!(none, CsrState::Absent, "that of a former run is none");
    let found = since(jiff::Timestamp::UNIX_EPOCH).await.unwrap();
    assert_eq!(found, CsrState::Issued("csr-2".to_owned()));
    let lists = |calls: Vec<String>| {
        calls
            .iter()
            .filter(|call| call.contains("GET /apis/cert"))
            .count()
    };
    let before = lists(site.api.calls());
    for node in ["n1", "n2", "n3"] {
        site.clusters
            .csr_of("c", node, AskedBy::Token(&id))
            .await
            .unwrap();
    }
    assert!(lists(site.api.calls()) <= before + 1, "one list serves all");
}

fn pod(owner: Option<&str>) -> Value {
    let owners = owner.map(|kind| json!([{"kind": kind, "controller": true}]));
    json!({"metadata": {"ownerReferences": owners}, "spec": {"nodeName": "n1"},
        "status": {"phase": "Running"}})
}

#[tokio::test]
async fn a_drain_honours_budgets_and_leaves_what_stays() {
    let site = Site::start().await;
    let put = |name: &str, owner| {
        site.api
            .put(&format!("/api/v1/namespaces/d/pods/{name}"), pod(owner));
    };
    put("web-1", Some("ReplicaSet"));
    put("web-2", Some("ReplicaSet"));
    put("proxy", Some("DaemonSet"));
    let mut elsewhere = pod(Some("ReplicaSet"));
    elsewhere["spec"]["nodeName"] = json!("n2");
    site.api.put("/api/v1/namespaces/d/pods/other", elsewhere);
    site.api
        .set(|faults| _ = faults.kept.insert("d/web-2".to_owned()));
    let drain = async |seconds, force| {
        let limit = Duration::from_secs(seconds);
        site.clusters.evict_all("c", "n1", limit, force).await
    };
    let blocked = drain(1, false).await.unwrap_err();
    assert_eq!(blocked.code, Code::DrainBlocked);
    assert!(blocked.message.contains("d/web-2"), "{blocked}");
    assert!(blocked.message.contains("disruption budget"), "{blocked}");
    assert!(!blocked.message.contains("d/web-1"), "{blocked}");

    let freed = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        site.api.set(|faults| faults.kept.clear());
    };
    let (drained, ()) = tokio::join!(drain(30, false), freed);
    let drained = drained.unwrap();
    assert_eq!((drained.evicted, drained.skipped), (1, 1));
    let left = site.api.paths("/api/v1/namespaces/d/pods/");
    assert_eq!(
        left,
        [
            "/api/v1/namespaces/d/pods/other",
            "/api/v1/namespaces/d/pods/proxy"
        ]
    );

    put("alone", None);
    put("kept", Some("ReplicaSet"));
    site.api
        .set(|faults| _ = faults.kept.insert("d/kept".to_owned()));
    let lost = drain(1, false).await.unwrap_err();
    assert!(lost.message.contains("d/alone"), "{lost}");
    let forced = drain(1, true).await.unwrap();
    assert_eq!((forced.evicted, forced.skipped), (2, 1));

    let attached = "/apis/storage.k8s.io/v1/volumeattachments/csi-1";
    site.api.put(attached, json!({"spec": {"nodeName": "n1"}}));
    let volumes = site.clusters.volume_attachments("c", "n1").await.unwrap();
    assert_eq!(volumes, ["csi-1"]);
}

#[tokio::test]
async fn an_address_of_the_machine_itself_wants_an_allowance() {
    let site = Site::start().await;
    let documents = site.clusters.documents.clone();
    let strict = Clusters::new(documents, Policy::Others);
    let refused = strict.mint("c", &host("u"), TTL).await.unwrap_err();
    assert_eq!(refused.code, Code::ClusterCredentials);
    assert!(refused.message.contains("the machine itself"), "{refused}");
    assert!(site.api.calls().is_empty(), "nothing was called");
}
