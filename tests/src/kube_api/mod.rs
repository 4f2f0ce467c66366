//! An API server for tests: as much of Kubernetes as a join and a leave touch, over TLS with a CA
//! of its own, with the controllers that matter to them (bootstrapsigner, tokencleaner, the
//! approver and signer of kubelets' certificates) and faults to order.
//!
//! It behaves as written in the reference of `kubeadm join`, and is not Kubernetes: no validation,
//! no admission, RBAC by a short list. Real binaries are for `make test-kube`.

mod access;
mod objects;
mod pki;
mod serve;
mod signer;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use self::pki::Pki;

/// Where `cluster-info` is.
pub(crate) const CLUSTER_INFO: &str = "/api/v1/namespaces/kube-public/configmaps/cluster-info";
const CONFIG_MAPS: &str = "/api/v1/namespaces/kube-system/configmaps";

/// What goes wrong; all of it is fine at first.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// Nobody answers.
    pub is_down: bool,
    /// When bootstrapsigner signs.
    pub signing: Signing,
    /// What becomes of a kubelet's request for a certificate.
    pub approval: Approval,
    /// `cluster-info` is written anew before everybody who reads it.
    pub is_restless: bool,
    /// `cluster-info` names the CA of nobody, once it is written.
    pub names_another_ca: bool,
    /// By how much the server's clock is wrong.
    pub clock: SignedDuration,
    /// `METHOD path` that nobody may, however they are known.
    pub forbidden: BTreeSet<String>,
    /// Pods that a budget keeps: `namespace/name`.
    pub kept: BTreeSet<String>,
}

/// When bootstrapsigner signs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Signing {
    /// At once.
    #[default]
    Prompt,
    /// So long after the token was made.
    After(Duration),
    /// With another key.
    Wrong,
    /// It does not run.
    Never,
}

/// What becomes of a kubelet's request for a certificate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Approval {
    /// It is approved and signed at once.
    #[default]
    Prompt,
    /// Nobody looks at it.
    Pending,
    /// It is denied.
    Denied,
}

/// What the server knows.
#[derive(Debug)]
struct State {
    /// Objects by path.
    objects: BTreeMap<String, Value>,
    /// Grows with every change.
    version: u64,
    pki: Pki,
    faults: Faults,
    /// Who called what: `METHOD path as user`.
    calls: Vec<String>,
    /// `v1.34.1`.
    kubernetes_version: String,
}

/// A running API server. It ends when it is dropped.
#[derive(Debug)]
pub struct KubeApi {
    state: Arc<Mutex<State>>,
    address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
    changed: tokio::sync::watch::Sender<u64>,
}

impl Drop for KubeApi {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl KubeApi {
    /// Starts one on loopback, prepared as `kubeadm init` (or Kamaji) prepares a cluster.
    pub async fn start() -> Result<Self> {
        Self::start_at(Ipv4Addr::LOCALHOST.into()).await
    }

    /// The same at another address of this machine.
    pub async fn start_at(address: IpAddr) -> Result<Self> {
        let listener = tokio::net::TcpListener::bind((address, 0)).await?;
        let address = listener.local_addr()?;
        let state = Arc::new(Mutex::new(State {
            objects: BTreeMap::new(),
            version: 0,
            pki: Pki::new(&[address.ip()])?,
            faults: Faults::default(),
            calls: Vec::new(),
            kubernetes_version: "v1.34.1".to_owned(),
        }));
        let changed = tokio::sync::watch::Sender::new(0);
        let task = tokio::spawn(serve::serve(listener, Arc::clone(&state), changed.clone()));
        let api = Self {
            state,
            address,
            task,
            changed,
        };
        api.prepare();
        Ok(api)
    }

    /// Where it serves: `https://127.0.0.1:port`.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// `127.0.0.1:port`.
    pub fn host_port(&self) -> String {
        self.address.to_string()
    }

    /// Its CA, as PEM.
    pub fn ca(&self) -> String {
        self.lock().pki.ca_pem.clone()
    }

    /// The token of its administrator, who may everything.
    pub fn admin_token(&self) -> String {
        self.lock().pki.admin_token.clone()
    }

    /// A kubeconfig of its administrator.
    pub fn kubeconfig(&self) -> String {
        self.kubeconfig_of(&self.admin_token())
    }

    /// A kubeconfig with this token.
    pub fn kubeconfig_of(&self, token: &str) -> String {
        let ca = BASE64_STANDARD.encode(self.ca());
        let url = self.url();
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: admin@test\nclusters:\n- name: test\n  \
             cluster:\n    server: {url}\n    certificate-authority-data: {ca}\ncontexts:\n- name: \
             admin@test\n  context:\n    cluster: test\n    user: admin\nusers:\n- name: admin\n  \
             user:\n    token: {token}\n"
        )
    }

    /// Orders faults, or ends them.
    pub fn set(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.lock().faults);
        self.changed.send_modify(|changes| *changes += 1);
    }

    /// What is called the API server's version.
    pub fn set_version(&self, version: &str) {
        version.clone_into(&mut self.lock().kubernetes_version);
    }

    /// An object by its path, as it is stored.
    pub fn object(&self, path: &str) -> Option<Value> {
        self.lock().objects.get(path).cloned()
    }

    /// Paths of all objects that begin so.
    pub fn paths(&self, prefix: &str) -> Vec<String> {
        let state = self.lock();
        let all = state.objects.keys();
        all.filter(|path| path.starts_with(prefix))
            .cloned()
            .collect()
    }

    /// Puts an object where it belongs, whatever was there.
    pub fn put(&self, path: &str, object: Value) {
        let mut state = self.lock();
        objects::store(&mut state, path, object);
        drop(state);
        self.changed.send_modify(|changes| *changes += 1);
    }

    /// Takes an object away.
    pub fn remove(&self, path: &str) {
        self.lock().objects.remove(path);
    }

    /// Who called what so far: `METHOD path as user`.
    pub fn calls(&self) -> Vec<String> {
        self.lock().calls.clone()
    }

    /// Another CA: the server has a new certificate, `cluster-info` names the new CA, and who had
    /// a certificate of the old one is not known any more.
    pub fn rotate_ca(&self) -> Result<()> {
        let token = self.admin_token();
        let mut pki = Pki::new(&[self.address.ip()])?;
        pki.admin_token = token;
        self.lock().pki = pki;
        self.write_cluster_info();
        Ok(())
    }

    /// Writes a `TenantControlPlane` of Kamaji and its Secrets, for a tenant that is served there.
    pub fn put_tenant(&self, namespace: &str, name: &str, phase: &str, tenant: &Self) {
        let path = format!(
            "/apis/kamaji.clastix.io/v1alpha1/namespaces/{namespace}/tenantcontrolplanes/{name}"
        );
        let version = tenant.lock().kubernetes_version.clone();
        let status = json!({"version": {"version": version, "status": phase}});
        let object = json!({
            "apiVersion": "kamaji.clastix.io/v1alpha1", "kind": "TenantControlPlane",
            "spec": {"kubernetes": {"version": version}, "addons": {"konnectivity": {}}},
            "status": {"controlPlaneEndpoint": tenant.host_port(), "kubernetesResources": status},
        });
        self.put(&path, object);
        let secret = |suffix: &str, key: &str, text: &str| {
            let path = format!("/api/v1/namespaces/{namespace}/secrets/{name}-{suffix}");
            let data = json!({"data": {key: BASE64_STANDARD.encode(text)}});
            self.put(&path, data);
        };
        secret("admin-kubeconfig", "admin.conf", &tenant.kubeconfig());
        secret("ca", "ca.crt", &tenant.ca());
    }

    fn prepare(&self) {
        let config = |name: &str, key: &str, text: &str| {
            let data = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {key: text}});
            self.put(&format!("{CONFIG_MAPS}/{name}"), data);
        };
        config(
            "kubeadm-config",
            "ClusterConfiguration",
            "apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\n",
        );
        config(
            "kubelet-config",
            "kubelet",
            "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\ncgroupDriver: \
             systemd\nclusterDNS:\n- 10.96.0.10\nclusterDomain: cluster.local\n",
        );
        let cni = json!({"spec": {"template": {"spec": {"volumes": [
            {"name": "cni", "hostPath": {"path": "/etc/cni/net.d"}},
        ]}}}});
        self.put(
            "/apis/apps/v1/namespaces/kube-system/daemonsets/test-cni",
            cni,
        );
        self.write_cluster_info();
    }

    /// As Kamaji does: whole, without signatures until they are made anew.
    pub fn write_cluster_info(&self) {
        let names_another = self.lock().faults.names_another_ca;
        let another = names_another.then(|| Pki::new(&[]).ok()).flatten();
        let ca = another.map_or_else(|| self.ca(), |another| another.ca_pem);
        let ca = BASE64_STANDARD.encode(ca);
        let kubeconfig = format!(
            "apiVersion: v1\nclusters:\n- cluster:\n    certificate-authority-data: {ca}\n    \
             server: {}\n  name: \"\"\ncontexts: null\ncurrent-context: \"\"\nkind: Config\n\
             preferences: {{}}\nusers: null\n",
            self.url()
        );
        let data = json!({"kubeconfig": kubeconfig});
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": data});
        self.put(CLUSTER_INFO, object);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The time, as this server has it.
    fn now(&self) -> Timestamp {
        let now = Timestamp::now().checked_add(self.faults.clock);
        now.unwrap_or(Timestamp::MAX)
    }
}
