//! `kubeadm join` and the kubelet's first words, as a machine of the swarm says them: discovery
//! with the token's signature and the CA's pin, a certificate by request, a Node and a lease by
//! that certificate. All of it over the wire; nothing is asked of the conductor.
//!
//! It says what kubeadm says (`-v=1`) while it tries and when it fails, and tries as long as the
//! configuration has it.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use ferrite_proto::join::{JoinEnd, JoinMaterial};
use hmac::{Hmac, KeyInit, Mac};
use jiff::{SignedDuration, Timestamp};
use rcgen::{CertificateParams, DnType, KeyPair};
use reqwest::{Certificate, Client, Identity};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::time::Instant;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::machine::Machine;

const CLUSTER_INFO: &str = "/api/v1/namespaces/kube-public/configmaps/cluster-info";
const CSRS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
/// How long a request may take.
const REQUEST: Duration = Duration::from_secs(10);
/// How long the API may be away between discovery and the kubelet: kubeadm's `kubernetesAPICall`.
const AWAY: Duration = Duration::from_mins(1);
/// Between tries; kubeadm's are 5 s.
const PAUSE: Duration = Duration::from_millis(500);
/// Certificates are back-dated by so much, and a clock may be behind by it.
const BACKDATED: SignedDuration = SignedDuration::from_mins(5);

/// A run of it: which machine, in which boot, and where its lines go.
#[derive(Debug)]
pub(super) struct Run<'a> {
    pub(super) machine: &'a Machine,
    pub(super) boot_id: String,
    pub(super) lines: mpsc::UnboundedSender<String>,
}

impl Run<'_> {
    fn say(&self, line: String) {
        // Whoever stopped listening has stopped it.
        drop(self.lines.send(line));
    }
}

/// Runs it to its end.
pub(super) async fn join(material: &JoinMaterial, run: &Run<'_>) -> JoinEnd {
    while run.machine.kubeadm_is_held() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    match try_to(material, run).await {
        Ok(()) => {
            run.say("This node has joined the cluster:".to_owned());
            JoinEnd::Succeeded
        }
        Err(error) => {
            run.say(format!("error: error execution phase preflight: {error:#}"));
            JoinEnd::Failed { status: Some(1) }
        }
    }
}

async fn try_to(material: &JoinMaterial, run: &Run<'_>) -> Result<()> {
    let configuration: Value = serde_json::from_str(material.configuration.expose())?;
    let told = &configuration["discovery"]["bootstrapToken"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let token = text(&told["token"]);
    let server = format!("https://{}", text(&told["apiServerEndpoint"]));
    let timeouts = &configuration["timeouts"];
    let discovery = Instant::now() + minutes(&timeouts["discovery"])?;
    let info = discover(run, &server, &token, discovery).await?;
    let ca = trusted(&info, &told["caCertHashes"])?;
    let bootstrap = client(&ca, None)?;
    verified(run, &bootstrap, &server, &info, discovery).await?;
    run.say("[preflight] Reading configuration from the cluster...".to_owned());
    for name in ["kubeadm-config", "kubelet-config"] {
        let path = format!("{server}/api/v1/namespaces/kube-system/configmaps/{name}");
        let found = insist(&bootstrap, &path, &token).await;
        found.with_context(|| format!("unable to fetch the {name} ConfigMap"))?;
    }
    let node = &configuration["nodeRegistration"];
    let name = text(&node["name"]);
    is_free(&bootstrap, &server, &token, &name).await?;
    let bootstrap_ends = Instant::now() + minutes(&timeouts["tlsBootstrap"])?;
    let identity = certificate(&bootstrap, &server, &token, &name, bootstrap_ends).await?;
    let kubelet = client(&ca, Some(identity))?;
    let provider_id = text(&node["kubeletExtraArgs"][0]["value"]);
    register(&kubelet, &server, &name, &provider_id, &node["taints"], run).await
}

/// Reads `2m0s`.
fn minutes(value: &Value) -> Result<Duration> {
    let text = value.as_str().context("a time limit is missing")?;
    let span: jiff::Span = text.parse().with_context(|| format!("reading {text:?}"))?;
    Ok(SignedDuration::try_from(span)?.try_into()?)
}

/// `cluster-info` once more, from a server that is vouched for: it must be the same.
async fn verified(
    run: &Run<'_>,
    client: &Client,
    server: &str,
    info: &Value,
    deadline: Instant,
) -> Result<()> {
    loop {
        let wrong_by = run.machine.clock_is_wrong_by();
        let again = if wrong_by.abs() > BACKDATED {
            let now = Timestamp::now() + wrong_by;
            Err(anyhow::anyhow!(
                "Get \"{server}{CLUSTER_INFO}?timeout=10s\": tls: failed to verify certificate: \
                 x509: certificate has expired or is not yet valid: current time {now}"
            ))
        } else {
            get(client, &format!("{server}{CLUSTER_INFO}"), None).await
        };
        match again {
            Ok(again) => {
                ensure!(
                    again["data"]["kubeconfig"] == info["data"]["kubeconfig"],
                    "couldn't validate the identity of the API Server: the second kubeconfig from \
                     the cluster-info ConfigMap (using validated TLS) was different from the first"
                );
                return Ok(());
            }
            Err(error) if Instant::now() > deadline => {
                bail!("couldn't validate the identity of the API Server: {error:#}")
            }
            Err(error) => run.say(format!(
                "I1121 00:00:00.000000 1 token.go:230] [discovery] Failed to request \
                 cluster-info, will try again: {error:#}"
            )),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// What a token may read; asked again while nobody answers.
async fn insist(client: &Client, url: &str, token: &str) -> Result<Value> {
    let deadline = Instant::now() + AWAY;
    loop {
        match get(client, url, Some(token)).await {
            Err(error) if is_away(&error) && Instant::now() < deadline => {
                tokio::time::sleep(PAUSE).await;
            }
            answer => return answer,
        }
    }
}

/// No answer, rather than a refusal.
fn is_away(error: &anyhow::Error) -> bool {
    error.is::<reqwest::Error>() || error.to_string() == "no message"
}

/// A Node of that name that is ready is somebody else's.
async fn is_free(client: &Client, server: &str, token: &str, name: &str) -> Result<()> {
    let Ok(node) = get(
        client,
        &format!("{server}/api/v1/nodes/{name}"),
        Some(token),
    )
    .await
    else {
        return Ok(());
    };
    let conditions = node["status"]["conditions"].as_array();
    let is_ready =
        |condition: &Value| condition["type"] == "Ready" && condition["status"] == "True";
    ensure!(
        !conditions.is_some_and(|all| all.iter().any(is_ready)),
        "a Node with name {name:?} and status \"Ready\" already exists in the cluster. You must \
         delete the existing Node or change the name of this new joining Node"
    );
    Ok(())
}

fn client(ca: &Certificate, identity: Option<Identity>) -> Result<Client> {
    let mut builder = Client::builder()
        .tls_certs_only([ca.clone()])
        .timeout(REQUEST);
    if let Some(identity) = identity {
        builder = builder.identity(identity);
    }
    Ok(builder.build()?)
}

async fn get(client: &Client, url: &str, token: Option<&str>) -> Result<Value> {
    let mut request = client.get(url);
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    let answer = request.send().await?;
    let status = answer.status();
    let body: Value = answer.json().await.unwrap_or_default();
    if !status.is_success() {
        bail!("{}", body["message"].as_str().unwrap_or("no message"));
    }
    Ok(body)
}

async fn post(client: &Client, url: &str, token: Option<&str>, body: &Value) -> Result<Value> {
    let mut request = client.post(url).json(body);
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    let answer = request.send().await?;
    let status = answer.status();
    let body: Value = answer.json().await.unwrap_or_default();
    ensure!(status.is_success(), "{status}: {}", body["message"]);
    Ok(body)
}

/// `cluster-info` of a server that nobody vouches for yet, once it is signed with the token.
async fn discover(run: &Run<'_>, server: &str, token: &str, deadline: Instant) -> Result<Value> {
    let anybody = Client::builder()
        .tls_danger_accept_invalid_certs(true)
        .timeout(REQUEST)
        .build()?;
    let (id, secret) = token.split_once('.').context("no token")?;
    loop {
        let found = get(&anybody, &format!("{server}{CLUSTER_INFO}"), None).await;
        let signature = found
            .as_ref()
            .ok()
            .and_then(|info| info["data"][format!("jws-kubeconfig-{id}")].as_str());
        if let (Ok(info), Some(signature)) = (&found, signature) {
            let kubeconfig = info["data"]["kubeconfig"].as_str().unwrap_or_default();
            ensure!(
                signed(id, secret, kubeconfig) == signature,
                "couldn't validate the identity of the API Server: failed to verify JWS signature \
                 of received cluster info object, can't trust this API Server"
            );
            return found;
        }
        let late = Instant::now() > deadline;
        match found {
            Ok(_) if late => bail!(
                "couldn't validate the identity of the API Server: could not find a JWS signature \
                 in the cluster-info ConfigMap for token ID {id:?}"
            ),
            Err(error) if late => bail!(
                "couldn't validate the identity of the API Server: failed to request the \
                 cluster-info ConfigMap: {error:#}: connection refused"
            ),
            Ok(_) => run.say(format!(
                "I1121 00:00:00.000000 1 token.go:120] [discovery] The cluster-info ConfigMap does \
                 not yet contain a JWS signature for token ID {id:?}, will try again"
            )),
            Err(error) => run.say(format!(
                "I1121 00:00:00.000000 1 token.go:230] [discovery] Failed to request \
                 cluster-info, will try again: {error:#}: connection refused"
            )),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn signed(id: &str, secret: &str, text: &str) -> String {
    let header = BASE64_URL_SAFE_NO_PAD.encode(json!({"alg": "HS256", "kid": id}).to_string());
    let payload = BASE64_URL_SAFE_NO_PAD.encode(text);
    let mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes());
    let mut mac = mac.expect("HMAC takes a key of any length");
    mac.update(format!("{header}.{payload}").as_bytes());
    let mac = BASE64_URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes());
    format!("{header}..{mac}")
}

/// The CA in `cluster-info`, if it is one of those that were pinned.
fn trusted(info: &Value, pins: &Value) -> Result<Certificate> {
    let kubeconfig = info["data"]["kubeconfig"].as_str().unwrap_or_default();
    let data = kubeconfig
        .lines()
        .find_map(|line| line.trim().strip_prefix("certificate-authority-data: "))
        .context("cluster-info has no CA")?;
    let pem = BASE64_STANDARD.decode(data.trim())?;
    let (_, der) = x509_parser::pem::parse_x509_pem(&pem)?;
    let (_, parsed) = X509Certificate::from_der(&der.contents)?;
    let hash = ferrite_proto::digest::to_hex(&Sha256::digest(parsed.public_key().raw));
    let hash = format!("sha256:{hash}");
    let pinned = pins
        .as_array()
        .is_some_and(|pins| pins.contains(&json!(hash)));
    ensure!(
        pinned,
        "couldn't validate the identity of the API Server: cluster CA found in cluster-info \
         ConfigMap is invalid: none of the public keys {hash:?} are pinned"
    );
    Ok(Certificate::from_pem(&pem)?)
}

/// The kubelet's certificate, once somebody has approved and signed it.
async fn certificate(
    client: &Client,
    server: &str,
    token: &str,
    node: &str,
    deadline: Instant,
) -> Result<Identity> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::new())?;
    let subject = &mut params.distinguished_name;
    subject.push(DnType::OrganizationName, "system:nodes");
    subject.push(DnType::CommonName, format!("system:node:{node}"));
    let request = BASE64_STANDARD.encode(params.serialize_request(&key)?.pem()?);
    let name = format!("node-csr-{}", uuid::Uuid::new_v4().simple());
    let csr = json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
        "metadata": {"name": name},
        "spec": {
            "request": request,
            "signerName": "kubernetes.io/kube-apiserver-client-kubelet",
            "usages": ["digital signature", "client auth"],
        },
    });
    let mut is_made = false;
    loop {
        if !is_made {
            let made = post(client, &format!("{server}{CSRS}"), Some(token), &csr).await;
            is_made = made.is_ok();
        }
        let seen = get(client, &format!("{server}{CSRS}/{name}"), Some(token)).await;
        let issued = seen.as_ref().ok();
        let issued = issued.and_then(|seen| seen["status"]["certificate"].as_str());
        if let Some(issued) = issued {
            let mut pem = BASE64_STANDARD.decode(issued)?;
            pem.extend_from_slice(key.serialize_pem().as_bytes());
            return Ok(Identity::from_pem(&pem)?);
        }
        ensure!(
            Instant::now() < deadline,
            "failed while waiting for TLS bootstrap: context deadline exceeded"
        );
        tokio::time::sleep(PAUSE).await;
    }
}

/// What a kubelet tells of its machine when it starts.
async fn register(
    kubelet: &Client,
    server: &str,
    name: &str,
    provider_id: &str,
    taints: &Value,
    run: &Run<'_>,
) -> Result<()> {
    let now = Timestamp::now().to_string();
    let node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name},
        "spec": {"providerID": provider_id, "taints": taints},
        "status": {
            "nodeInfo": {
                "systemUUID": run.machine.uuid,
                "bootID": run.boot_id,
                "kubeletVersion": "v1.34.1",
            },
            "conditions": [{
                "type": "Ready", "status": "True", "reason": "KubeletReady",
                "message": "kubelet is posting ready status", "lastHeartbeatTime": now,
            }],
        },
    });
    post(kubelet, &format!("{server}/api/v1/nodes"), None, &node).await?;
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": name, "namespace": "kube-node-lease"},
        "spec": {"holderIdentity": name, "renewTime": now},
    });
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    let path = format!("{server}{leases}");
    // That of an earlier life of the name goes with its Node only after a while.
    let made = post(kubelet, &path, None, &lease).await;
    if made.is_err() {
        let renewed = kubelet
            .put(format!("{path}/{name}"))
            .json(&lease)
            .send()
            .await?;
        ensure!(
            renewed.status().is_success(),
            "the lease: {}",
            renewed.status()
        );
    }
    Ok(())
}
