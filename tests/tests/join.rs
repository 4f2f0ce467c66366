//! Hosts that join a cluster and leave it: a real conductor, machines of the swarm whose kubeadm
//! speaks to the tests' own API server over the wire, and what goes wrong on the way.
//!
//! No kubelet and no kubeadm of Kubernetes is here: that needs real binaries.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
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
        self.add_cluster_with(name, api, json!({})).await;
    }

    async fn add_cluster_with(&self, name: &str, api: &KubeApi, spec: Value) {
        let cluster = json!({
            "apiVersion": "ferrite/v1", "kind": "Cluster", "metadata": {"name": name},
            "spec": spec, "secrets": {"kubeconfig": api.kubeconfig()},
        });
        self.call(Method::POST, "/v1/clusters", &cluster).await;
    }

    /// Waits until the host was given so many times what it takes to join.
    async fn is_given(&self, machine: &Machine, times: u32) {
        let began = Instant::now();
        while machine.deeds().joins < times {
            assert!(began.elapsed() < PATIENCE, "{}: no material", machine.name);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The same call as its daemon makes, by somebody who has its key: the status, the answer.
    async fn ask_as_daemon(&self, machine: &Machine, attempt: u32) -> Result<(u16, Value)> {
        let host = self.operator.host(&machine.name).await?;
        let boot_id = host.status.daemon.map(|daemon| daemon.boot_id);
        let body = json!({
            "attempt": attempt, "boot_id": boot_id.unwrap_or_default(),
            "system_uuid": machine.uuid, "clock": jiff::Timestamp::now(),
            "kubeadm": "v1.34.1", "kubelet": "v1.34.1",
        });
        let ca = std::fs::read(self.dir.path().join("state/ca.pem"))?;
        let client = reqwest::Client::builder()
            .tls_certs_only([reqwest::Certificate::from_pem(&ca)?])
            .build()?;
        let key = machine.stolen_daemon_key().context("it has no key")?;
        let url = format!("{}{}", self.served.url, ferrite_proto::join::JOIN);
        let asked = client.post(url).bearer_auth(key.expose()).json(&body);
        let answer = asked.send().await?;
        let status = answer.status().as_u16();
        Ok((status, answer.json().await.unwrap_or_default()))
    }

    async fn back_to_available(&self, machine: &Machine) {
        let path = format!("/v1/hosts/{}/deprovision", machine.name);
        self.operator
            .call(Method::POST, &path, None)
            .await
            .expect("the site works");
        self.comes_to(machine, HostState::Available).await;
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

/// The secret half of the token, as soon as there is one.
async fn secret_once_made(api: &KubeApi) -> String {
    let began = Instant::now();
    loop {
        if let Some(secret) = secret_of(api) {
            return secret;
        }
        assert!(began.elapsed() < PATIENCE, "no token was made");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
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
    let secret = secret_once_made(&api).await;
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
    let secret = secret_once_made(&api).await;
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
    breaks: Act,
    mends: Act,
}

type Act = fn(&KubeApi, &Machine);

const fn case(code: &'static str, breaks: Act, mends: Act) -> Case {
    Case {
        code,
        breaks,
        mends,
    }
}

fn at_the_cluster() -> Vec<Case> {
    vec![
        case(
            "cluster-unreachable",
            |api, _| api.set(|faults| faults.is_down = true),
            |api, _| api.set(|faults| faults.is_down = false),
        ),
        case(
            "cluster-info",
            |api, _| {
                api.set(|faults| faults.names_another_ca = true);
                api.write_cluster_info();
            },
            |api, _| {
                api.set(|faults| faults.names_another_ca = false);
                api.write_cluster_info();
            },
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
    ]
}

fn at_the_host() -> Vec<Case> {
    vec![
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
    let mut cases = at_the_cluster();
    cases.extend(at_the_host());
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

/// What goes wrong after the host was given what it takes to join.
#[derive(Debug, Clone, Copy)]
enum Middle {
    WrongPin,
    TokenGone,
    Unsigned,
    ApiDown,
    InfoRewritten,
    CaRotated,
    TenantCaRotated,
    ClockJumps,
    ClusterClockJumps,
    NameTaken,
}

/// One that goes wrong in the middle.
struct Scene<'a> {
    site: &'a Site,
    machine: &'a Machine,
    cluster: String,
    api: KubeApi,
    /// Where a tenant is looked up.
    management: Option<KubeApi>,
}

impl Middle {
    const ALL: [Self; 10] = [
        Self::WrongPin,
        Self::TokenGone,
        Self::Unsigned,
        Self::ApiDown,
        Self::InfoRewritten,
        Self::CaRotated,
        Self::TenantCaRotated,
        Self::ClockJumps,
        Self::ClusterClockJumps,
        Self::NameTaken,
    ];

    /// What is told.
    const fn code(self) -> &'static str {
        match self {
            Self::WrongPin => "[join-ca-mismatch]",
            Self::TokenGone | Self::Unsigned | Self::ClusterClockJumps => "[join-token-refused]",
            Self::ApiDown => "[cluster-unreachable]",
            Self::InfoRewritten => "[cluster-info]",
            Self::CaRotated | Self::TenantCaRotated => "[cluster-certificate]",
            Self::ClockJumps => "[join-clock]",
            Self::NameTaken => "[join-node-exists]",
        }
    }

    fn breaks(self, scene: &Scene<'_>) {
        let (api, machine) = (&scene.api, scene.machine);
        match self {
            Self::WrongPin => {
                api.set(|faults| faults.names_another_ca = true);
                api.write_cluster_info();
            }
            Self::TokenGone => {
                for path in api.paths(TOKENS) {
                    api.remove(&path);
                }
            }
            Self::Unsigned => api.set(|faults| faults.signing = Signing::Never),
            Self::ApiDown => api.set(|faults| faults.is_down = true),
            Self::InfoRewritten => api.set(|faults| faults.is_restless = true),
            Self::CaRotated | Self::TenantCaRotated => api.rotate_ca().expect("the site works"),
            Self::ClockJumps => machine.set_clock(SignedDuration::from_hours(1)),
            Self::ClusterClockJumps => {
                api.set(|faults| faults.clock = SignedDuration::from_hours(1));
            }
            Self::NameTaken => {
                let ready = json!([{"type": "Ready", "status": "True"}]);
                let node = json!({
                    "spec": {"providerID": "other://1"}, "status": {"conditions": ready},
                });
                api.put(&format!("/api/v1/nodes/{}", machine.name), node);
            }
        }
    }

    async fn mends(self, scene: &Scene<'_>) {
        let (api, machine) = (&scene.api, scene.machine);
        match self {
            Self::WrongPin => {
                api.set(|faults| faults.names_another_ca = false);
                api.write_cluster_info();
            }
            // It is gone for good: another is made.
            Self::TokenGone => {}
            Self::Unsigned => api.set(|faults| faults.signing = Signing::Prompt),
            Self::ApiDown => {
                tokio::time::sleep(Duration::from_secs(45)).await;
                api.set(|faults| faults.is_down = false);
            }
            Self::InfoRewritten => api.set(|faults| faults.is_restless = false),
            Self::CaRotated => {
                let path = format!("/v1/clusters/{}", scene.cluster);
                let patch = json!({"secrets": {"kubeconfig": api.kubeconfig()}});
                scene.site.call(Method::PATCH, &path, &patch).await;
            }
            Self::TenantCaRotated => {
                let management = scene.management.as_ref().expect("the site works");
                management.put_tenant("tenants", "t1", "Ready", api);
            }
            Self::ClockJumps => machine.set_clock(SignedDuration::ZERO),
            Self::ClusterClockJumps => {
                scene.site.explains(machine, "the cluster's clock is").await;
                api.set(|faults| faults.clock = SignedDuration::ZERO);
            }
            Self::NameTaken => api.remove(&format!("/api/v1/nodes/{}", machine.name)),
        }
    }

    /// From the fault to what is told of it, and from its end to the join.
    async fn goes(self, site: &Site, number: usize) -> (Duration, Duration) {
        let machine = &site.swarm.machines()[number];
        let (cluster, api) = (
            format!("m{number}"),
            KubeApi::start().await.expect("the site works"),
        );
        let mut management = None;
        if matches!(self, Self::TenantCaRotated) {
            let kamaji = KubeApi::start().await.expect("the site works");
            kamaji.put_tenant("tenants", "t1", "Ready", &api);
            let spec = json!({"tenant": {"namespace": "tenants", "name": "t1"}});
            site.add_cluster_with(&cluster, &kamaji, spec).await;
            management = Some(kamaji);
        } else {
            site.add_cluster(&cluster, &api).await;
        }
        let scene = Scene {
            site,
            machine,
            cluster,
            api,
            management,
        };
        machine.hold_kubeadm(true);
        site.provision(machine, &json!({"cluster": scene.cluster}))
            .await;
        site.is_given(machine, 1).await;
        self.breaks(&scene);
        machine.hold_kubeadm(false);
        let told = site.explains(machine, self.code()).await;
        self.mends(&scene).await;
        let joined = site.comes_to(machine, HostState::Provisioned).await;
        tokens_go(&scene.api).await;
        assert_eq!(machine.deeds().images_written, 1, "{self:?}");
        let nodes = scene.api.paths("/api/v1/nodes/");
        assert_eq!(nodes, [format!("/api/v1/nodes/{}", machine.name)]);
        (told, joined)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_goes_wrong_in_the_middle_of_a_join_is_told_and_it_goes_on_by_itself() {
    let site = Arc::new(Site::start(Middle::ALL.len().try_into().unwrap()).await);
    let mut running = tokio::task::JoinSet::new();
    for (number, middle) in Middle::ALL.into_iter().enumerate() {
        let site = Arc::clone(&site);
        running.spawn(async move { (middle, middle.goes(&site, number).await) });
    }
    while let Some(ended) = running.join_next().await {
        let (middle, (told, joined)) = ended.unwrap();
        let (name, code) = (format!("{middle:?}"), middle.code());
        let (told_in, joined_in) = (told.as_secs_f64(), joined.as_secs_f64());
        eprintln!("{name:18} {code:22} told after {told_in:4.1} s, joined {joined_in:4.1} s after");
        assert!(told < TOLD, "{middle:?}: {told:?}");
        assert!(joined < PATIENCE, "{middle:?}: {joined:?}");
    }
}

/// What a thief gets who has the key of a host's daemon, and what is left for one who has the
/// conductor's files.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_told_once_for_one_join_and_kept_nowhere() {
    let site = Site::start(1).await;
    let machine = &site.swarm.machines()[0];
    let api = KubeApi::start().await.unwrap();
    site.add_cluster("prod", &api).await;
    site.provision(machine, &Value::Null).await;
    site.comes_to(machine, HostState::Provisioned).await;
    let (status, told) = site.ask_as_daemon(machine, 1).await.unwrap();
    assert_eq!(status, 409, "it is to join nothing: {told}");
    site.back_to_available(machine).await;

    machine.hold_kubeadm(true);
    site.provision(machine, &json!({"cluster": "prod"})).await;
    site.is_given(machine, 1).await;
    let first = secret_of(&api).unwrap();
    let (status, told) = site.ask_as_daemon(machine, 7).await.unwrap();
    assert_eq!(status, 409, "no such attempt: {told}");
    let (status, told) = site.ask_as_daemon(machine, 1).await.unwrap();
    assert_eq!(status, 200, "an answer may be lost: {told}");
    assert_eq!(api.paths(TOKENS).len(), 1, "the one of before is gone");
    let second = secret_of(&api).unwrap();
    assert_ne!(first, second);

    // Nobody is left who knows of it but the cluster.
    site.served.kill().unwrap();
    machine.hold_kubeadm(false);
    tokio::time::sleep(Duration::from_secs(2)).await;
    site.served.launch().unwrap();
    site.served.until_ready(PATIENCE).await.unwrap();
    site.comes_to(machine, HostState::Provisioned).await;
    tokens_go(&api).await;
    let (status, told) = site.ask_as_daemon(machine, 1).await.unwrap();
    assert_eq!(status, 409, "it has joined: {told}");

    let mut seen = String::new();
    for path in ["", "/events?limit=400", "/explain"] {
        let path = format!("/v1/hosts/{}{path}", machine.name);
        let told = site.operator.call(Method::GET, &path, None).await.unwrap();
        seen += &told.to_string();
    }
    for secret in [&first, &second] {
        assert!(!seen.contains(secret), "the API tells a token");
        assert!(
            !holds(site.dir.path(), secret),
            "a token is stored or logged"
        );
    }
}

/// Whether the host is wanted or not when the conductor is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conductor_that_is_killed_while_a_token_is_out_takes_it_back() {
    let site = Site::start(2).await;
    let api = KubeApi::start().await.unwrap();
    site.add_cluster("prod", &api).await;
    api.set(|faults| faults.approval = Approval::Pending);
    for machine in site.swarm.machines() {
        site.provision(machine, &json!({"cluster": "prod"})).await;
    }
    for machine in site.swarm.machines() {
        site.is_given(machine, 1).await;
    }
    assert_eq!(api.paths(TOKENS).len(), 2);
    site.served.kill().unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    site.served.launch().unwrap();
    site.served.until_ready(PATIENCE).await.unwrap();
    let [stays, leaves] = site.swarm.machines() else {
        panic!("two machines were asked for")
    };
    let path = format!("/v1/hosts/{}/deprovision", leaves.name);
    site.operator.call(Method::POST, &path, None).await.unwrap();
    api.set(|faults| faults.approval = Approval::Prompt);
    site.comes_to(stays, HostState::Provisioned).await;
    site.comes_to(leaves, HostState::Available).await;
    tokens_go(&api).await;
    let nodes = api.paths("/api/v1/nodes/");
    assert_eq!(nodes, [format!("/api/v1/nodes/{}", stays.name)]);
}
