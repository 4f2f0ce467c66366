//! `kubeadm join` and the kubelet's first words, as a machine of the swarm says them: discovery
//! with the token's signature and the CA's pin, a certificate by request, a Node and a lease by
//! that certificate. All of it over the wire; nothing is asked of the conductor.
//!
//! It says what kubeadm says (`-v=1`) when it fails, and gives up sooner.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use ferrite_proto::join::{JoinEnd, JoinMaterial};
use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use rcgen::{CertificateParams, DnType, KeyPair};
use reqwest::{Certificate, Client, Identity};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

const CLUSTER_INFO: &str = "/api/v1/namespaces/kube-public/configmaps/cluster-info";
const CSRS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
/// How long each stage is tried; kubeadm takes minutes.
const PATIENCE: Duration = Duration::from_secs(4);
const PAUSE: Duration = Duration::from_millis(200);

/// Which machine it is, in which boot.
#[derive(Debug, Clone)]
pub(super) struct Machine {
    pub(super) uuid: String,
    pub(super) boot_id: String,
}

/// Runs it to its end. The lines that it says, and how it ended.
pub(super) async fn join(material: &JoinMaterial, machine: &Machine) -> (Vec<String>, JoinEnd) {
    match try_to(material, machine).await {
        Ok(()) => {
            let lines = vec!["This node has joined the cluster:".to_owned()];
            (lines, JoinEnd::Succeeded)
        }
        Err(error) => (
            vec![format!("error: error execution phase preflight: {error:#}")],
            JoinEnd::Failed { status: Some(1) },
        ),
    }
}

async fn try_to(material: &JoinMaterial, machine: &Machine) -> Result<()> {
    let configuration: Value = serde_json::from_str(material.configuration.expose())?;
    let told = &configuration["discovery"]["bootstrapToken"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let token = text(&told["token"]);
    let server = format!("https://{}", text(&told["apiServerEndpoint"]));
    let pins = &told["caCertHashes"];
    let info = discover(&server, &token).await?;
    let ca = trusted(&info, pins)?;
    let bootstrap = client(&ca, None)?;
    let again = get(&bootstrap, &format!("{server}{CLUSTER_INFO}"), None).await?;
    ensure!(
        again["data"]["kubeconfig"] == info["data"]["kubeconfig"],
        "cluster-info differs"
    );
    for name in ["kubeadm-config", "kubelet-config"] {
        let path = format!("{server}/api/v1/namespaces/kube-system/configmaps/{name}");
        let found = get(&bootstrap, &path, Some(&token)).await;
        found.with_context(|| format!("unable to fetch the {name} ConfigMap"))?;
    }
    let node = &configuration["nodeRegistration"];
    let name = text(&node["name"]);
    let identity = certificate(&bootstrap, &server, &token, &name).await?;
    let kubelet = client(&ca, Some(identity))?;
    let provider_id = text(&node["kubeletExtraArgs"][0]["value"]);
    register(
        &kubelet,
        &server,
        &name,
        &provider_id,
        &node["taints"],
        machine,
    )
    .await
}

fn client(ca: &Certificate, identity: Option<Identity>) -> Result<Client> {
    let mut builder = Client::builder()
        .tls_certs_only([ca.clone()])
        .timeout(PATIENCE);
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
async fn discover(server: &str, token: &str) -> Result<Value> {
    let anybody = Client::builder()
        .tls_danger_accept_invalid_certs(true)
        .timeout(PATIENCE)
        .build()?;
    let (id, secret) = token.split_once('.').context("no token")?;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let found = get(&anybody, &format!("{server}{CLUSTER_INFO}"), None).await;
        let signature = found
            .as_ref()
            .ok()
            .and_then(|info| info["data"][format!("jws-kubeconfig-{id}")].as_str());
        match (&found, signature) {
            (Ok(info), Some(signature)) => {
                let kubeconfig = info["data"]["kubeconfig"].as_str().unwrap_or_default();
                let vouched = signed(id, secret, kubeconfig) == signature;
                ensure!(
                    vouched,
                    "couldn't validate the identity of the API Server: failed to verify JWS \
                     signature of received cluster info object, can't trust this API Server"
                );
                return found;
            }
            _ if tokio::time::Instant::now() < deadline => tokio::time::sleep(PAUSE).await,
            (Ok(_), None) => bail!(
                "couldn't validate the identity of the API Server: could not find a JWS signature \
                 in the cluster-info ConfigMap for token ID {id:?}"
            ),
            (Err(error), _) => bail!(
                "couldn't validate the identity of the API Server: failed to request the \
                 cluster-info ConfigMap: {error:#}: connection refused"
            ),
        }
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
async fn certificate(client: &Client, server: &str, token: &str, node: &str) -> Result<Identity> {
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
    post(client, &format!("{server}{CSRS}"), Some(token), &csr).await?;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let seen = get(client, &format!("{server}{CSRS}/{name}"), Some(token)).await?;
        if let Some(issued) = seen["status"]["certificate"].as_str() {
            let mut pem = BASE64_STANDARD.decode(issued)?;
            pem.extend_from_slice(key.serialize_pem().as_bytes());
            return Ok(Identity::from_pem(&pem)?);
        }
        ensure!(
            tokio::time::Instant::now() < deadline,
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
    machine: &Machine,
) -> Result<()> {
    let now = Timestamp::now().to_string();
    let node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name},
        "spec": {"providerID": provider_id, "taints": taints},
        "status": {
            "nodeInfo": {
                "systemUUID": machine.uuid,
                "bootID": machine.boot_id,
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
