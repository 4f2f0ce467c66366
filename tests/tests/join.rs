//! Hosts that join a cluster and leave it: a real conductor, machines of the swarm whose kubeadm
//! speaks to the tests' own API server over the wire, and what goes wrong on the way.
//!
//! No kubelet and no kubeadm of Kubernetes is here: that needs real binaries.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ferrite_proto::host::HostState;
use ferrite_proto::join::HostFinding;
use ferrite_tests::kube_api::{Approval, KubeApi, Signing};
use ferrite_tests::swarm::{Machine, Operator, Served, Settings, Swarm};
use jiff::SignedDuration;
use reqwest::Method;
use serde_json::{Value, json};

/// For a host to get somewhere, on a machine that others use too.
const PATIENCE: Duration = Duration::from_mins(2);
/// Within which a cause is told.
const TOLD: Duration = Duration::from_secs(30);
const TOKENS: &str = "/api/v1/namespaces/kube-system/secrets/bootstrap-token-";

struct Site {
    served: Served,
    swarm: Swarm,
    operator: Operator,
    dir: tempfile::TempDir,
}

impl Site {
    /// A conductor, and so many machines that are available.
    async fn start(hosts: u32) -> Self {
        eprintln!("with the tests' own API server and a kubeadm of the tests' own");
        let dir = tempfile::tempdir().expect("the site works");
        let binary = ferrite_tests::swarm::ferrite().expect("`make build` makes it");
        let extra = "clusters = {allow_loopback = true}";
        let served = Served::start(&binary, dir.path(), extra)
            .await
            .expect("the site works");
        let swarm = Swarm::start(Settings::of(&served, hosts))
            .await
            .expect("the site works");
        let operator = served.operator().expect("the site works");
        operator
            .add_all(&swarm, swarm.machines(), 4)
            .await
            .expect("the site works");
        let all = hosts.try_into().expect("the site works");
        operator
            .until_state("available", all, PATIENCE)
            .await
            .expect("the site works");
        Self {
            served,
            swarm,
            operator,
            dir,
        }
    }

    async fn call(&self, method: Method, path: &str, body: &Value) -> Value {
        self.operator
            .call(method, path, Some(body))
            .await
            .expect("the site works")
    }

    async fn add_cluster(&self, name: &str, api: &KubeApi) {
        let cluster = json!({
            "apiVersion": "ferrite/v1", "kind": "Cluster", "metadata": {"name": name},
            "spec": {}, "secrets": {"kubeconfig": api.kubeconfig()},
        });
        self.call(Method::POST, "/v1/clusters", &cluster).await;
    }

    async fn provision(&self, machine: &Machine, join: &Value) {
        let body = json!({
            "image": {
                "url": "http://192.0.2.1/images/debian.raw.zst",
                "digest": format!("sha256:{}", "5a".repeat(32)),
            },
            "join": join,
        });
        let path = format!("/v1/hosts/{}/provision", machine.name);
        self.call(Method::POST, &path, &body).await;
    }

    /// Waits until the host is in a state. How long that took.
    async fn comes_to(&self, machine: &Machine, state: HostState) -> Duration {
        let began = Instant::now();
        loop {
            let host = self
                .operator
                .host(&machine.name)
                .await
                .expect("the site works");
            if host.status.state == state {
                return began.elapsed();
            }
            let status = serde_json::to_string(&host.status).expect("the site works");
            assert!(began.elapsed() < PATIENCE, "{}: {status}", machine.name);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Waits until `ferrite host explain` has these words. How long that took.
    async fn explains(&self, machine: &Machine, words: &str) -> Duration {
        let began = Instant::now();
        let path = format!("/v1/hosts/{}/explain", machine.name);
        loop {
            let told = self
                .operator
                .call(Method::GET, &path, None)
                .await
                .expect("the site works");
            if told.to_string().contains(words) {
                return began.elapsed();
            }
            assert!(began.elapsed() < PATIENCE, "no {words:?} in {told}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

/// Waits until no token is left.
async fn tokens_go(api: &KubeApi) {
    let began = Instant::now();
    while !api.paths(TOKENS).is_empty() {
        assert!(began.elapsed() < Duration::from_mins(1), "a token stays");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Whether a file in a folder holds the bytes.
fn holds(folder: &Path, needle: &str) -> bool {
    std::fs::read_dir(folder)
        .expect("the site works")
        .any(|entry| {
            let path = entry.expect("the site works").path();
            if path.is_dir() {
                return holds(&path, needle);
            }
            let bytes = std::fs::read(&path).unwrap_or_default();
            bytes
                .windows(needle.len())
                .any(|window| window == needle.as_bytes())
        })
}

/// The secret halves of all tokens that the cluster was ever given.
fn secret_of(api: &KubeApi) -> Option<String> {
    use base64::Engine as _;
    let path = api.paths(TOKENS).pop()?;
    let object = api.object(&path)?;
    let text = object["data"]["token-secret"].as_str()?;
    let bytes = base64::prelude::BASE64_STANDARD.decode(text).ok()?;
    String::from_utf8(bytes).ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_becomes_a_node_and_leaves_in_order() {
    let site = Site::start(1).await;
    let machine = &site.swarm.machines()[0];
    let api = KubeApi::start().await.unwrap();
    site.add_cluster("prod", &api).await;
    // Held back for a moment, so that the token can be seen while it is out.
    api.set(|faults| faults.approval = Approval::Pending);
    let join = json!({
        "cluster": "prod",
        "node_labels": {"rack": "r1"},
        "node_taints": [{"key": "gpu", "value": "yes", "effect": "NoSchedule"}],
    });
    site.provision(machine, &join).await;
    let began = Instant::now();
    let secret = loop {
        if let Some(secret) = secret_of(&api) {
            break secret;
        }
        assert!(began.elapsed() < PATIENCE, "no token was made");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    api.set(|faults| faults.approval = Approval::Prompt);
    site.comes_to(machine, HostState::Provisioned).await;
    let path = format!("/api/v1/nodes/{}", machine.name);
    let node = api.object(&path).unwrap();
    assert_eq!(node["metadata"]["labels"]["rack"], "r1");
    assert_eq!(node["spec"]["taints"][0]["key"], "gpu");
    let host = site.operator.host(&machine.name).await.unwrap();
    let provider_id = format!("ferrite://{}", host.uid);
    assert_eq!(node["spec"]["providerID"], json!(provider_id));
    assert_eq!(machine.deeds().images_written, 1);
    tokens_go(&api).await;
    assert!(
        !holds(site.dir.path(), &secret),
        "the token is stored or logged"
    );

    let pod = format!("/api/v1/namespaces/default/pods/web-{}", machine.number);
    let web = json!({
        "metadata": {"ownerReferences": [{"kind": "ReplicaSet", "controller": true}]},
        "spec": {"nodeName": machine.name}, "status": {"phase": "Running"},
    });
    api.put(&pod, web);
    let kept = format!("default/web-{}", machine.number);
    api.set(|faults| faults.kept = [kept.clone()].into());
    let deprovision = format!("/v1/hosts/{}/deprovision", machine.name);
    site.operator
        .call(Method::POST, &deprovision, None)
        .await
        .unwrap();
    site.explains(machine, &kept).await;
    assert_eq!(machine.deeds().erased, 1, "nothing is wiped under a pod");
    assert_eq!(api.object(&path).unwrap()["spec"]["unschedulable"], true);
    api.set(|faults| faults.kept.clear());
    site.comes_to(machine, HostState::Available).await;
    assert_eq!(api.object(&path), None, "its Node is gone");
    assert_eq!(machine.deeds().erased, 2);
    assert!(machine.deeds().orders.is_sorted());
    site.swarm.stop().await;
    drop(site.served);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn by_cloud_init_a_host_joins_with_a_token_that_is_gone_once_its_node_is_there() {
    let site = Site::start(1).await;
    let machine = &site.swarm.machines()[0];
    let api = KubeApi::start().await.unwrap();
    site.add_cluster("prod", &api).await;
    api.set(|faults| faults.approval = Approval::Pending);
    let join = json!({"cluster": "prod", "by": "cloud-init", "node_labels": {"rack": "r1"}});
    site.provision(machine, &join).await;
    let began = Instant::now();
    let secret = loop {
        if let Some(secret) = secret_of(&api) {
            break secret;
        }
        assert!(began.elapsed() < PATIENCE, "no token was made");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    api.set(|faults| faults.approval = Approval::Prompt);
    site.comes_to(machine, HostState::Provisioned).await;
    let node = api.object(&format!("/api/v1/nodes/{}", machine.name));
    assert_eq!(node.unwrap()["metadata"]["labels"]["rack"], "r1");
    assert_eq!(machine.deeds().joins, 1, "cloud-init alone joins");
    tokens_go(&api).await;
    assert!(
        !holds(site.dir.path(), &secret),
        "the token is stored in clear or logged"
    );
    let deprovision = format!("/v1/hosts/{}/deprovision", machine.name);
    site.operator
        .call(Method::POST, &deprovision, None)
        .await
        .unwrap();
    site.comes_to(machine, HostState::Available).await;
    assert_eq!(api.object(&format!("/api/v1/nodes/{}", machine.name)), None);
    site.swarm.stop().await;
    drop(site.served);
}

/// What goes wrong, what is told of it, and how it is mended.
struct Case {
    code: &'static str,
    breaks: fn(&KubeApi, &Machine),
    mends: fn(&KubeApi, &Machine),
}

fn cases() -> Vec<Case> {
    let case = |code, breaks, mends| Case {
        code,
        breaks,
        mends,
    };
    vec![
        case(
            "cluster-unreachable",
            |api, _| api.set(|faults| faults.is_down = true),
            |api, _| api.set(|faults| faults.is_down = false),
        ),
        case(
            "cluster-token-unsigned",
            |api, _| api.set(|faults| faults.signing = Signing::Never),
            |api, _| api.set(|faults| faults.signing = Signing::After(Duration::from_secs(2))),
        ),
        case(
            "join-csr-pending",
            |api, _| api.set(|faults| faults.approval = Approval::Pending),
            |api, _| api.set(|faults| faults.approval = Approval::Prompt),
        ),
        case(
            "join-csr-denied",
            |api, _| api.set(|faults| faults.approval = Approval::Denied),
            |api, _| api.set(|faults| faults.approval = Approval::Prompt),
        ),
        case(
            "join-forbidden",
            |api, _| {
                let call = "GET /api/v1/namespaces/kube-system/configmaps/kubelet-config";
                api.set(|faults| faults.forbidden = [call.to_owned()].into());
            },
            |api, _| api.set(|faults| faults.forbidden.clear()),
        ),
        case(
            "join-clock",
            |_, machine| machine.set_clock(SignedDuration::from_hours(-1)),
            |_, machine| machine.set_clock(SignedDuration::ZERO),
        ),
        case(
            "join-prerequisites",
            |_, machine| {
                machine.lacks(vec![HostFinding {
                    code: "swap-on".to_owned(),
                    fatal: true,
                    what: "swap is on: /dev/sda3".to_owned(),
                    fix: "take it out of /etc/fstab".to_owned(),
                }]);
            },
            |_, machine| machine.lacks(Vec::new()),
        ),
        case(
            "join-node-exists",
            |api, machine| {
                let path = format!("/api/v1/nodes/{}", machine.name);
                api.put(&path, json!({"spec": {"providerID": "other://1"}}));
            },
            |api, machine| api.remove(&format!("/api/v1/nodes/{}", machine.name)),
        ),
        case(
            "join-version-skew",
            |api, _| api.set_version("v1.33.9"),
            |api, _| api.set_version("v1.35.0"),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_cause_is_told_and_the_join_goes_on_by_itself_once_it_is_gone() {
    let cases = cases();
    let site = Arc::new(Site::start(cases.len().try_into().unwrap()).await);
    let mut running = tokio::task::JoinSet::new();
    for (number, case) in cases.into_iter().enumerate() {
        let site = Arc::clone(&site);
        running.spawn(async move {
            let machine = Arc::clone(&site.swarm.machines()[number]);
            let api = KubeApi::start().await.unwrap();
            let cluster = format!("c{number}");
            site.add_cluster(&cluster, &api).await;
            (case.breaks)(&api, &machine);
            site.provision(&machine, &json!({"cluster": cluster})).await;
            let code = format!("[{}]", case.code);
            let told = site.explains(&machine, &code).await;
            (case.mends)(&api, &machine);
            let joined = site.comes_to(&machine, HostState::Provisioned).await;
            tokens_go(&api).await;
            assert_eq!(machine.deeds().images_written, 1, "{}", case.code);
            (case.code, told, joined)
        });
    }
    while let Some(ended) = running.join_next().await {
        let (code, told, joined) = ended.unwrap();
        let (told_in, joined_in) = (told.as_secs_f64(), joined.as_secs_f64());
        eprintln!(
            "{code:24} told after {told_in:4.1} s, joined {joined_in:4.1} s after it was gone"
        );
        assert!(told < TOLD, "{code}: {told:?}");
        assert!(joined < PATIENCE, "{code}: {joined:?}");
    }
}
