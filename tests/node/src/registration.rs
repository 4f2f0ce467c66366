//! A kubelet's first words: a certificate by request, its Node, its lease.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use rcgen::{CertificateParams, DnType, KeyPair};
use reqwest::Client;
use serde_json::{Value, json};

use crate::VERSION;
use crate::wire::{get, patch, post, put};

const CSRS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
const PAUSE: Duration = Duration::from_millis(200);

/// A certificate for this node and its key, as PEM, once somebody has approved and signed it.
pub async fn certificate(
    client: &Client,
    server: &str,
    token: &str,
    node: &str,
    patience: Duration,
) -> Result<Vec<u8>> {
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
    let deadline = tokio::time::Instant::now() + patience;
    loop {
        let seen = get(client, &format!("{server}{CSRS}/{name}"), Some(token)).await?;
        if let Some(issued) = seen["status"]["certificate"].as_str() {
            let mut pem = BASE64_STANDARD.decode(issued)?;
            pem.extend_from_slice(key.serialize_pem().as_bytes());
            return Ok(pem);
        }
        ensure!(
            tokio::time::Instant::now() < deadline,
            "failed while waiting for TLS bootstrap: context deadline exceeded"
        );
        tokio::time::sleep(PAUSE).await;
    }
}

/// What a kubelet tells of its machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// As it is called in the cluster.
    pub name: String,
    /// `--provider-id`.
    pub provider_id: String,
    /// Those that it is registered with.
    pub taints: Value,
    /// SMBIOS system UUID.
    pub system_uuid: String,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
}

impl Node {
    /// Makes the Node, or tells it of this boot when an earlier start has made it.
    pub async fn announce(&self, client: &Client, server: &str) -> Result<()> {
        let url = format!("{server}/api/v1/nodes/{}", self.name);
        if get(client, &url, None).await.is_err() {
            return self.register(client, server).await;
        }
        let boot = json!({"status": {"nodeInfo": {"bootID": self.boot_id}}});
        patch(client, &format!("{url}/status"), &boot).await?;
        self.renew(client, server).await
    }

    /// Makes the Node, ready, and its lease.
    pub async fn register(&self, client: &Client, server: &str) -> Result<()> {
        let now = Timestamp::now().to_string();
        let node = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": self.name},
            "spec": {"providerID": self.provider_id, "taints": self.taints},
            "status": {
                "nodeInfo": {
                    "systemUUID": self.system_uuid,
                    "bootID": self.boot_id,
                    "kubeletVersion": VERSION,
                },
                "conditions": [{
                    "type": "Ready", "status": "True", "reason": "KubeletReady",
                    "message": "kubelet is posting ready status", "lastHeartbeatTime": now,
                }],
            },
        });
        let nodes = format!("{server}/api/v1/nodes");
        post(client, &nodes, None, &node).await?;
        self.renew(client, server).await
    }

    /// Renews the lease; makes it if need be. That of an earlier life of the name goes with its
    /// Node only after a while.
    pub async fn renew(&self, client: &Client, server: &str) -> Result<()> {
        let now = Timestamp::now().to_string();
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": self.name, "namespace": "kube-node-lease"},
            "spec": {
                "holderIdentity": self.name, "leaseDurationSeconds": 40, "renewTime": now,
            },
        });
        let url = format!("{server}{LEASES}");
        if post(client, &url, None, &lease).await.is_ok() {
            return Ok(());
        }
        let renewed = put(client, &format!("{url}/{}", self.name), &lease).await;
        renewed.map(drop).context("the lease")
    }
}
