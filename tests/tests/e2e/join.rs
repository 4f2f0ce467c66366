//! A powered-off host becomes a Node of a cluster and leaves it: the image has a container runtime,
//! the real daemon has systemd run kubeadm, and the cluster is in the lab's network.
//!
//! With `KUBEBUILDER_ASSETS` and `FERRITE_KUBE_BIN` kubeadm, kubelet, etcd and the control plane
//! are Kubernetes' own; without them they are the tests'. What is asserted is the same.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ferrite_proto::host::{Host, HostState};
use ferrite_proto::join::JoinPhase;
use ferrite_tests::control_plane::ControlPlane;
use ferrite_tests::kube_api::KubeApi;
use ferrite_tests::lab::Lab;
use ferrite_tests::net::SERVER;
use reqwest::Method;
use serde_json::{Value, json};

use crate::Scenario;
use crate::world::{BOOT, DEPLOY, HOST, SOON, Site, World};

pub(crate) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "join",
    part: "join",
    short: false,
    run: join,
}];

/// From the written image to a ready Node, emulated: the OS, its runtime, kubeadm and the kubelet.
const JOIN: Duration = Duration::from_mins(12);
/// A worker needs more than a host that only boots.
const MEMORY_MIB: u32 = 2048;
const SECRETS: &str = "/api/v1/namespaces/kube-system/secrets";
const NODE: &str = "/api/v1/nodes/host-1";
const PODS: &str = "/api/v1/namespaces/default/pods";

fn join(world: &World) -> Result<()> {
    let site = world.site_with("join", Cow::Owned(world.node_image()?), |machine| {
        machine.memory_mib(MEMORY_MIB)
    })?;
    let api = Api::start(world, &site.lab)?;
    add_cluster(&site, &api)?;
    site.add(&[])?;
    site.provision(&[
        "--cluster",
        "prod",
        "--node-labels",
        "rack=r1",
        "--taints",
        "gpu=yes:NoSchedule",
    ])?;
    let tokens = RefCell::new(BTreeSet::new());
    let host = site.conductor.wait(HOST, JOIN, |host| {
        tokens.borrow_mut().extend(api.secrets(&site.lab));
        let phase = host.status.join.as_ref().map(|join| join.phase);
        host.status.state == HostState::Provisioned && phase == Some(JoinPhase::Joined)
    })?;
    is_this_machine(&site, &api, &host)?;
    tokens_go(&site.lab, &api)?;
    let tokens = tokens.into_inner();
    ensure!(!tokens.is_empty(), "no token was ever seen");
    ensure!(
        site.firmware_boots() == 1,
        "{} boots",
        site.firmware_boots()
    );
    people_are_told(&site, &tokens)?;
    leave(&site, &api)
}

fn add_cluster(site: &Site<'_>, api: &Api) -> Result<()> {
    let file = site.lab.dir().join("prod.kubeconfig");
    fs::write(&file, api.kubeconfig())?;
    let file = file.display().to_string();
    let add = ["cluster", "add", "prod", "--kubeconfig", &file];
    site.conductor.cli_ok(&add, "")?;
    site.conductor.cli_ok(&["cluster", "check", "prod"], "")?;
    Ok(())
}

/// The Node is the host: what its kubelet tells is what the firmware and the kernel tell.
fn is_this_machine(site: &Site<'_>, api: &Api, host: &Host) -> Result<()> {
    let node = api.get(&site.lab, NODE)?.context("no Node")?;
    let told = &node["status"]["nodeInfo"];
    let uuid = site.lab.host(1).machine().uuid();
    let daemon = host.status.daemon.as_ref().context("no daemon")?;
    ensure!(told["systemUUID"] == json!(uuid), "the machine: {told}");
    ensure!(told["bootID"] == json!(daemon.boot_id), "the boot: {told}");
    let provider_id = format!("ferrite://{}", host.uid);
    ensure!(node["spec"]["providerID"] == json!(provider_id), "{node}");
    ensure!(node["metadata"]["labels"]["rack"] == "r1", "{node}");
    let taints = node["spec"]["taints"].as_array();
    let gpu = |taint: &Value| taint["key"] == "gpu" && taint["effect"] == "NoSchedule";
    ensure!(taints.is_some_and(|all| all.iter().any(gpu)), "{node}");
    let conditions = node["status"]["conditions"].as_array();
    let ready = |it: &Value| it["type"] == "Ready" && it["status"] == "True";
    ensure!(
        conditions.is_some_and(|all| all.iter().any(ready)),
        "{node}"
    );
    let version = told["kubeletVersion"].as_str().unwrap_or_default();
    let timeline = site.conductor.timeline(HOST)?;
    let stage = timeline.stages().find(|stage| stage.name == "join");
    let seconds = stage.and_then(|stage| stage.seconds);
    let seconds = seconds.context("the join has no time")?;
    say(&format!(
        "kubelet {version}, Ready; the join took {seconds:.0} s"
    ))
}

/// No token outlives a join by more than a minute.
fn tokens_go(lab: &Lab, api: &Api) -> Result<()> {
    let deadline = Instant::now() + SOON;
    while !api.secrets(lab).is_empty() {
        ensure!(Instant::now() < deadline, "a token stays in the cluster");
        std::thread::sleep(Duration::from_millis(300));
    }
    Ok(())
}

/// What people read says what happened, and nothing that was secret.
fn people_are_told(site: &Site<'_>, tokens: &BTreeSet<String>) -> Result<()> {
    let thing = format!("host/{HOST}");
    let mut all = Vec::new();
    for (words, expected) in [
        (&["host", "explain", HOST][..], "is provisioned"),
        (&["describe", &thing], "joined"),
        (&["host", "events", HOST], "it has joined prod"),
        (&["logs", &thing], "This node has joined the cluster"),
    ] {
        let told = site.conductor.cli_ok(words, "")?;
        ensure!(told.contains(expected), "ferrite {words:?}: {told}");
        all.push(told);
    }
    all.push(site.conductor.log());
    all.push(site.lab.host(1).console());
    let is_told = |secret: &&String| all.iter().any(|text| text.contains(secret.as_str()));
    ensure!(
        !tokens.iter().any(|secret| is_told(&secret)),
        "a token is told"
    );
    Ok(())
}

/// A pod is asked to go, the Node is deleted, the host is free again.
fn leave(site: &Site<'_>, api: &Api) -> Result<()> {
    api.put_pod(&site.lab)?;
    site.conductor.cli_ok(&["host", "deprovision", HOST], "")?;
    site.wait_state(HostState::Available, DEPLOY + BOOT)?;
    ensure!(api.get(&site.lab, NODE)?.is_none(), "the Node is left");
    let pod = api.get(&site.lab, &format!("{PODS}/web"))?;
    ensure!(pod.is_none(), "the pod is left: {pod:?}");
    ensure!(api.secrets(&site.lab).is_empty(), "a token is left");
    Ok(())
}

/// Where the host joins.
enum Api {
    Real(Box<ControlPlane>),
    Double(KubeApi),
}

impl Api {
    fn start(world: &World, lab: &Lab) -> Result<Self> {
        if let Some(binaries) = &world.kubernetes {
            say("with a real kube-apiserver, kubeadm and kubelet")?;
            let plane = ControlPlane::start(lab, binaries)?;
            return Ok(Self::Real(Box::new(plane)));
        }
        say("with an API server, a kubeadm and a kubelet of the tests' own")?;
        let address = SERVER.parse()?;
        let api = lab.block_on(async move { KubeApi::start_at(address).await })??;
        Ok(Self::Double(api))
    }

    fn kubeconfig(&self) -> String {
        match self {
            Self::Real(plane) => plane.kubeconfig(),
            Self::Double(api) => api.kubeconfig(),
        }
    }

    fn get(&self, lab: &Lab, path: &str) -> Result<Option<Value>> {
        match self {
            Self::Double(api) => Ok(api.object(path)),
            Self::Real(plane) => match plane.call(lab, Method::GET, path, None)? {
                (200, object) => Ok(Some(object)),
                (404, _) => Ok(None),
                (status, answer) => bail!("GET {path}: {status} {answer}"),
            },
        }
    }

    fn post(&self, lab: &Lab, path: &str, name: &str, object: Value) -> Result<Value> {
        match self {
            Self::Double(api) => {
                let path = format!("{path}/{name}");
                api.put(&path, object);
                api.object(&path).context("it is not there")
            }
            Self::Real(plane) => {
                let (status, answer) = plane.call(lab, Method::POST, path, Some(&object))?;
                ensure!(status == 201, "POST {path}: {status} {answer}");
                Ok(answer)
            }
        }
    }

    /// The secret halves of the tokens that are there.
    fn secrets(&self, lab: &Lab) -> Vec<String> {
        let objects: Vec<Value> = match self {
            Self::Double(api) => {
                let paths = api.paths(&format!("{SECRETS}/bootstrap-token-"));
                paths.iter().filter_map(|path| api.object(path)).collect()
            }
            Self::Real(plane) => {
                let query = "fieldSelector=type%3Dbootstrap.kubernetes.io/token";
                let path = format!("{SECRETS}?{query}");
                let answer = plane.call(lab, Method::GET, &path, None);
                let items = answer.map(|(_, answer)| answer["items"].clone());
                items
                    .ok()
                    .and_then(|items| Some(items.as_array()?.clone()))
                    .unwrap_or_default()
            }
        };
        let secret = |object: &Value| {
            let text = object["data"]["token-secret"].as_str()?;
            String::from_utf8(BASE64_STANDARD.decode(text).ok()?).ok()
        };
        objects.iter().filter_map(secret).collect()
    }

    /// A pod on the host that somebody has made, and that a drain evicts. It never runs: no image
    /// can be had here.
    fn put_pod(&self, lab: &Lab) -> Result<()> {
        let owner = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "owner"}});
        let maps = "/api/v1/namespaces/default/configmaps";
        let owner = self.post(lab, maps, "owner", owner)?;
        let owner = json!([{
            "apiVersion": "v1", "kind": "ConfigMap", "name": "owner",
            "uid": owner["metadata"]["uid"], "controller": true,
        }]);
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "web", "ownerReferences": owner},
            "spec": {
                "nodeName": HOST, "terminationGracePeriodSeconds": 1,
                "containers": [{"name": "web", "image": "images.invalid/web:1"}],
            },
        });
        self.post(lab, PODS, "web", pod).map(drop)
    }
}

/// Into the middle of the harness' line.
fn say(text: &str) -> Result<()> {
    Ok(write!(std::io::stderr(), "{text} ... ")?)
}
