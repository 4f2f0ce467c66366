//! The cluster that hosts join: an API server that is away at times, a signer and an approver that
//! take their time, and Nodes that kubelets register, whoever they are.
//!
//! Not here: TLS, and what a real API server checks. That is the tests' own API server's.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use reqwest::Method;
use serde_json::{Value, json};
use sha2::Sha256;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::state::{Running, Sim, State, fresh};
use crate::clock;
use crate::cluster::wire::{Answering, Simulated};
use crate::lifecycle::record::Record;

/// Its name.
pub(super) const NAME: &str = "sim";
const TOKENS: &str = "/api/v1/namespaces/kube-system/secrets";
const CLUSTER_INFO: &str = "/api/v1/namespaces/kube-public/configmaps/cluster-info";
const CSRS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const NODES: &str = "/api/v1/nodes/";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/";
/// How long a token may outlive its join while cluster and conductor are up.
const OUTLIVES: Duration = Duration::from_mins(1);
/// A kubelet whose lease is older is not Ready.
const GRACE: Duration = Duration::from_secs(50);

/// What it knows.
#[derive(Debug, Default)]
pub(super) struct Cluster {
    tokens: BTreeMap<String, Token>,
    requests: Vec<Request>,
    pub(super) nodes: BTreeMap<String, Node>,
    /// Nobody answers until then.
    pub(super) down_until: Option<Instant>,
    /// Nobody approves or signs until then.
    pub(super) slow_until: Option<Instant>,
}

#[derive(Debug)]
struct Token {
    secret: String,
    expires: Timestamp,
    signed_from: Instant,
    /// How long nobody has needed it, while it could be removed.
    idle: Duration,
}

#[derive(Debug)]
struct Request {
    name: String,
    node: String,
    by: String,
    made: Timestamp,
    approved_from: Instant,
}

/// A Node.
#[derive(Debug)]
pub(super) struct Node {
    uid: String,
    provider_id: String,
    pub(super) system_uuid: String,
    pub(super) boot_id: String,
    /// All boots that it was registered in.
    boots: BTreeSet<String>,
    ready_from: Instant,
    renewed: (Instant, Timestamp),
    version: u64,
}

impl Cluster {
    pub(super) fn is_up(&self) -> bool {
        self.down_until.is_none_or(|until| until <= Instant::now())
    }

    fn is_slow(&self) -> bool {
        self.slow_until.is_some_and(|until| until > Instant::now())
    }

    /// Whether a token opens anything.
    pub(super) fn knows(&mut self, id: &str, secret: &str) -> bool {
        self.expire();
        let token = self.tokens.get(id);
        token.is_some_and(|token| token.secret == secret)
    }

    /// Whether `cluster-info` is signed with a token.
    pub(super) fn signs_for(&mut self, id: &str) -> bool {
        self.expire();
        let (now, slow) = (Instant::now(), self.is_slow());
        let token = self.tokens.get(id);
        token.is_some_and(|token| token.signed_from <= now && !slow)
    }

    fn expire(&mut self) {
        let now = clock::now();
        self.tokens.retain(|_, token| token.expires > now);
    }

    /// Somebody removes all tokens.
    pub(super) fn lose_tokens(&mut self) {
        self.tokens.clear();
    }

    /// Whether a Node of that name is Ready: kubeadm refuses to be another.
    pub(super) fn is_taken(&self, name: &str) -> bool {
        let node = self.nodes.get(name);
        node.is_some_and(|node| node.renewed.0.elapsed() < GRACE)
    }

    /// A kubelet asks for a certificate.
    pub(super) fn request(&mut self, name: &str, node: &str, token_id: &str, wait: Duration) {
        self.requests.push(Request {
            name: name.to_owned(),
            node: node.to_owned(),
            by: format!("system:bootstrap:{token_id}"),
            made: clock::now(),
            approved_from: Instant::now() + wait,
        });
    }

    /// Whether it has one.
    pub(super) fn is_issued(&self, name: &str) -> bool {
        let request = self.requests.iter().find(|request| request.name == name);
        request.is_some_and(|request| self.is_approved(request))
    }

    fn is_approved(&self, request: &Request) -> bool {
        request.approved_from <= Instant::now() && !self.is_slow()
    }

    /// A kubelet registers its Node, or takes over what is there under its name.
    pub(super) fn register(&mut self, name: &str, who: &Kubelet, ready_in: Duration) {
        let now = (Instant::now(), clock::now());
        let node = self.nodes.entry(name.to_owned()).or_insert_with(|| Node {
            uid: who.uid.clone(),
            provider_id: who.provider_id.clone(),
            system_uuid: String::new(),
            boot_id: String::new(),
            boots: BTreeSet::new(),
            ready_from: now.0,
            renewed: now,
            version: 0,
        });
        node.system_uuid.clone_from(&who.system_uuid);
        node.boot_id.clone_from(&who.boot_id);
        node.boots.insert(who.boot_id.clone());
        node.ready_from = now.0 + ready_in;
        node.renewed = now;
        node.version += 1;
    }

    fn signed_info(&mut self) -> Value {
        self.expire();
        let kubeconfig = kubeconfig("");
        let mut data = json!({"kubeconfig": kubeconfig});
        let ids: Vec<_> = self.tokens.keys().cloned().collect();
        for id in ids {
            if self.signs_for(&id) {
                let secret = &self.tokens[&id].secret;
                data[format!("jws-kubeconfig-{id}")] = json!(jws(&id, secret, &kubeconfig));
            }
        }
        json!({"data": data})
    }

    fn listed(&self) -> Value {
        let items = self.requests.iter().map(|request| {
            let status = if self.is_approved(request) {
                json!({"conditions": [{"type": "Approved"}], "certificate": "eA=="})
            } else {
                json!({})
            };
            json!({
                "metadata": {"name": request.name, "creationTimestamp": request.made.to_string()},
                "spec": {"username": request.by, "request": pem(&request.node)},
                "status": status,
            })
        });
        json!({"metadata": {}, "items": items.collect::<Vec<_>>()})
    }
}

impl Node {
    fn shown(&self, name: &str) -> Value {
        let fresh = self.renewed.0.elapsed() < GRACE;
        let ready = match (fresh, self.ready_from <= Instant::now()) {
            (false, _) => "Unknown",
            (true, false) => "False",
            (true, true) => "True",
        };
        let version = self.version.to_string();
        json!({
            "metadata": {"name": name, "uid": self.uid, "resourceVersion": version},
            "spec": {"providerID": self.provider_id},
            "status": {
                "nodeInfo": {"systemUUID": self.system_uuid, "bootID": self.boot_id},
                "conditions": [{"type": "Ready", "status": ready, "message": "simulated"}],
            },
        })
    }
}

/// Who registers a Node.
#[derive(Debug)]
pub(super) struct Kubelet {
    pub(super) uid: String,
    pub(super) provider_id: String,
    pub(super) system_uuid: String,
    pub(super) boot_id: String,
}

/// Its API server, as one life of the conductor sees it.
#[derive(Debug)]
pub(super) struct SimApi {
    sim: Arc<Sim>,
    dead: CancellationToken,
}

impl SimApi {
    pub(super) fn new(sim: &Arc<Sim>, dead: &CancellationToken) -> Self {
        let (sim, dead) = (Arc::clone(sim), dead.clone());
        Self { sim, dead }
    }

    /// What a killed conductor asks never gets here.
    async fn alive(&self) {
        if self.dead.is_cancelled() {
            std::future::pending::<()>().await;
        }
    }

    async fn asked(
        &self,
        method: &Method,
        path: &str,
        body: Option<&Value>,
    ) -> Option<(u16, Value)> {
        self.alive().await;
        let most = if self.sim.mishap(2) { 4_000 } else { 50 };
        self.sim.pause(1, most).await;
        self.alive().await;
        if !self.sim.lock().cluster.is_up() || self.sim.mishap(1) {
            self.sim.pause(100, 5_000).await;
            return None;
        }
        let answer = self.act(method, path, body);
        if self.sim.mishap(1) {
            self.sim.pause(100, 5_000).await;
            return None;
        }
        self.alive().await;
        Some(answer)
    }

    fn act(&self, method: &Method, path: &str, body: Option<&Value>) -> (u16, Value) {
        let path = path.split('?').next().unwrap_or_default();
        let signed_in = self.sim.between(Duration::ZERO, Duration::from_secs(4));
        let mut state = self.sim.lock();
        renew(&mut state);
        let cluster = &mut state.cluster;
        match (method.as_str(), path) {
            ("GET", "/version") => (200, json!({"gitVersion": "v1.34.1"})),
            ("GET", CLUSTER_INFO) => (200, cluster.signed_info()),
            ("GET", CSRS) => (200, cluster.listed()),
            ("POST", TOKENS) => {
                cluster.keep(body.unwrap_or(&Value::Null), signed_in);
                (201, json!({}))
            }
            ("DELETE", path) if path.starts_with(TOKENS) => {
                let id = path.rsplit('-').next().unwrap_or_default();
                let gone = cluster.tokens.remove(id).is_some();
                (if gone { 200 } else { 404 }, json!({}))
            }
            (_, path) if path.starts_with(NODES) => {
                of_node(&mut state, method, &path[NODES.len()..], body)
            }
            ("GET", path) if path.starts_with(LEASES) => {
                let node = cluster.nodes.get(&path[LEASES.len()..]);
                node.map_or((404, json!({})), |node| {
                    (
                        200,
                        json!({"spec": {"renewTime": node.renewed.1.to_string()}}),
                    )
                })
            }
            ("GET", path) if path.ends_with("/pods") || path.ends_with("/volumeattachments") => {
                (200, json!({"metadata": {}, "items": []}))
            }
            _ => (404, json!({})),
        }
    }
}

impl Cluster {
    fn keep(&mut self, secret: &Value, signed_in: Duration) {
        let text = |field: &str| {
            let text = secret["stringData"][field].as_str();
            text.unwrap_or_default().to_owned()
        };
        let token = Token {
            secret: text("token-secret"),
            expires: text("expiration").parse().unwrap_or(Timestamp::MAX),
            signed_from: Instant::now() + signed_in,
            idle: Duration::ZERO,
        };
        self.tokens.insert(text("token-id"), token);
    }
}

fn of_node(state: &mut State, method: &Method, name: &str, body: Option<&Value>) -> (u16, Value) {
    let Some(node) = state.cluster.nodes.get_mut(name) else {
        return (404, json!({}));
    };
    match *method {
        Method::PATCH => {
            node.version += 1;
            (200, node.shown(name))
        }
        Method::DELETE => {
            let wanted = body.and_then(|body| body["preconditions"]["uid"].as_str());
            if wanted.is_some_and(|wanted| wanted != node.uid) {
                return (409, json!({}));
            }
            let foreign = !node.provider_id.starts_with("ferrite://");
            state.cluster.nodes.remove(name);
            state.say(name, "cluster", "its Node is deleted");
            if foreign {
                state.violate(format!("{name}: the Node of another machine is deleted"));
            }
            comes_back(state, name);
            (200, json!({}))
        }
        _ => (200, node.shown(name)),
    }
}

/// A Node that was deleted is registered again by a kubelet that still runs.
fn comes_back(state: &mut State, name: &str) {
    let Some(machine) = state.machines.get(name) else {
        return;
    };
    let runs = machine.running == Running::Os && machine.disk.kubelet.is_some();
    // Somebody was told that it is off, or has switched it on since.
    let excused = machine.lied_lately() || machine.let_go || state.gave_up(name);
    if runs && !excused {
        state.violate(format!(
            "{name}: its Node is deleted while its kubelet runs"
        ));
    }
}

/// Kubelets that run renew their leases.
fn renew(state: &mut State) {
    let now = (Instant::now(), clock::now());
    for (name, node) in &mut state.cluster.nodes {
        let machine = state.machines.get(name);
        let runs = machine.is_some_and(|machine| {
            machine.running == Running::Os
                && machine.disk.kubelet.is_some()
                && machine.boot_id == node.boot_id
        });
        let foreign = !node.provider_id.starts_with("ferrite://");
        if runs || foreign {
            node.renewed = now;
        }
    }
}

impl Simulated for SimApi {
    fn answer<'a>(
        &'a self,
        method: &'a Method,
        path: &'a str,
        _: Option<&'a str>,
        body: Option<&'a Value>,
    ) -> Answering<'a> {
        Box::pin(self.asked(method, path, body))
    }
}

/// Looks for tokens that nobody needs, for as long as the world stands.
pub(super) async fn watch_tokens(sim: Arc<Sim>) {
    const LOOK: Duration = Duration::from_secs(5);
    loop {
        tokio::time::sleep(LOOK).await;
        let mut state = sim.lock();
        let state = &mut *state;
        renew(state);
        let could = state.cluster.is_up() && state.conductor.is_some();
        let needed: BTreeSet<_> = state.stored.values().filter_map(needs).collect();
        state.cluster.expire();
        let mut outlived = None;
        for (id, token) in &mut state.cluster.tokens {
            if needed.contains(id) {
                token.idle = Duration::ZERO;
            } else if could {
                token.idle += LOOK;
            }
            if token.idle > OUTLIVES {
                outlived = Some(id.clone());
            }
        }
        if let Some(id) = outlived {
            state.violate(format!("token {id} outlives its join"));
        }
    }
}

/// The token that a host joins with now.
fn needs(stored: &crate::store::Stored) -> Option<String> {
    let record: &Record = &stored.record;
    let attempt = record.host.status.join.as_ref()?.attempt;
    let token = record.run.joining.as_ref()?.token.clone()?;
    record.is_joining(attempt).then_some(token)
}

/// Why what a transaction says of a join is not true; the world is as it is just before it.
pub(super) fn not_true(state: &State, before: &Record, after: &Record) -> Option<String> {
    let token = |record: &Record| {
        record
            .run
            .joining
            .as_ref()
            .and_then(|join| join.token.clone())
    };
    let attempt = after
        .host
        .status
        .join
        .as_ref()
        .map_or(0, |join| join.attempt);
    if token(after).is_some() && token(after) != token(before) && !before.is_joining(attempt) {
        return Some("it is given a token, and is not to join".to_owned());
    }
    let proved = |record: &Record| {
        let joining = record.run.joining.as_ref();
        joining.and_then(|join| join.node_uid.clone())
    };
    let uid = proved(after).filter(|uid| proved(before).as_ref() != Some(uid))?;
    let node = state.cluster.nodes.get(&after.host.name)?;
    let boot = &after.host.status.daemon.as_ref()?.boot_id;
    let other = node.uid == uid && !node.boots.contains(boot);
    other.then(|| format!("its Node is proved, and was never registered in boot {boot}"))
}

/// A kubeconfig; its CA is one for all runs, and of nobody.
pub(super) fn kubeconfig(user: &str) -> String {
    static CA: OnceLock<String> = OnceLock::new();
    let ca = CA.get_or_init(|| {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let made = params.self_signed(&key).expect("a certificate");
        BASE64_STANDARD.encode(made.pem())
    });
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters:\n- name: c\n  cluster:\n    \
         server: https://192.0.2.10:6443\n    certificate-authority-data: {ca}\ncontexts:\n- \
         name: c\n  context: {{cluster: c, user: u}}\nusers:\n- name: u\n  user: {{token: \
         {user}x}}\n"
    )
}

fn jws(id: &str, secret: &str, text: &str) -> String {
    let header = BASE64_URL_SAFE_NO_PAD.encode(json!({"alg": "HS256", "kid": id}).to_string());
    let payload = BASE64_URL_SAFE_NO_PAD.encode(text);
    let mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes());
    let mut mac = mac.expect("HMAC takes a key of any length");
    mac.update(format!("{header}.{payload}").as_bytes());
    let mac = BASE64_URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes());
    format!("{header}..{mac}")
}

/// A request for a node's certificate, in base64 of PEM. Its key is nobody's, and one for all runs.
fn pem(node: &str) -> String {
    static MADE: Mutex<BTreeMap<String, String>> = Mutex::new(BTreeMap::new());
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    let make = || {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name = rcgen::DistinguishedName::new();
        let name = format!("system:node:{node}");
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        let request = params.serialize_request(&key).expect("a request");
        BASE64_STANDARD.encode(request.pem().expect("as PEM"))
    };
    made.entry(node.to_owned()).or_insert_with(make).clone()
}

/// What happens to the cluster.
pub(super) async fn accidents(sim: Arc<Sim>) {
    loop {
        sim.pause(20_000, 240_000).await;
        let until = Instant::now() + sim.between(Duration::from_secs(5), Duration::from_mins(8));
        let name = super::people::any_machine(&sim);
        let (what, uid) = (sim.below(8), fresh());
        let mut state = sim.lock();
        match what {
            0..=1 => {
                state.say("", "cluster", "is away");
                state.cluster.down_until = Some(until);
            }
            2..=3 => {
                state.say("", "cluster", "neither signs nor approves");
                state.cluster.slow_until = Some(until);
            }
            4 => {
                state.say("", "cluster", "loses all tokens");
                state.cluster.lose_tokens();
            }
            _ => stranger(&mut state, &name, uid),
        }
    }
}

/// Somebody else's machine takes a name that is free.
fn stranger(state: &mut State, name: &str, uid: String) {
    if state.cluster.nodes.contains_key(name) {
        return;
    }
    state.say(name, "cluster", "a Node of another machine takes its name");
    let kubelet = Kubelet {
        uid,
        provider_id: "other://1".to_owned(),
        system_uuid: "other".to_owned(),
        boot_id: "other".to_owned(),
    };
    state.cluster.register(name, &kubelet, Duration::ZERO);
}

/// Somebody sees to it that the name is free again.
pub(super) fn stranger_leaves(sim: &Sim, name: &str) {
    let mut state = sim.lock();
    let nodes = &mut state.cluster.nodes;
    let foreign = |node: &Node| !node.provider_id.starts_with("ferrite://");
    if nodes.get(name).is_some_and(foreign) {
        nodes.remove(name);
        state.say(name, "person", "removes the Node of another machine");
    }
}
