//! From a token and a pin to a CA that can be trusted, and what may be read with the token, in
//! kubeadm's order and in its words.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use reqwest::Client;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::wire::{Authority, CALL, get};

const CLUSTER_INFO: &str = "/api/v1/namespaces/kube-public/configmaps/cluster-info";
const CONFIG_MAPS: &str = "/api/v1/namespaces/kube-system/configmaps";
const PAUSE: Duration = Duration::from_millis(200);

/// Which cluster, and how to know it.
#[derive(Debug)]
pub struct Sought<'a> {
    /// `https://host:port`.
    pub server: &'a str,
    /// `id.secret`.
    pub token: &'a str,
    /// `caCertHashes`, as they are configured.
    pub pins: &'a Value,
    /// How long it is looked for.
    pub patience: Duration,
}

/// Finds the cluster, and reads what kubeadm reads: its CA, and the kubelet's configuration.
pub async fn discover(sought: &Sought<'_>) -> Result<(Authority, String)> {
    let info = signed_info(sought).await.context(UNKNOWN)?;
    let ca = pinned(&info, sought.pins).context(UNKNOWN)?;
    let client = ca.client(None)?;
    let (server, token) = (sought.server, sought.token);
    let again = get(&client, &format!("{server}{CLUSTER_INFO}"), None).await?;
    ensure!(
        again["data"]["kubeconfig"] == info["data"]["kubeconfig"],
        "cluster-info differs"
    );
    let read = async |name: &str| {
        let url = format!("{server}{CONFIG_MAPS}/{name}");
        let found = get(&client, &url, Some(token)).await;
        found.with_context(|| format!("unable to fetch the {name} ConfigMap"))
    };
    read("kubeadm-config").await?;
    let found = read("kubelet-config").await?;
    let kubelet = found["data"]["kubelet"].as_str();
    let kubelet = kubelet
        .context("kubelet-config has no `kubelet`")?
        .to_owned();
    Ok((ca, kubelet))
}

const UNKNOWN: &str = "couldn't validate the identity of the API Server";

/// `cluster-info` of a server that nobody vouches for yet, once it is signed with the token.
async fn signed_info(sought: &Sought<'_>) -> Result<Value> {
    let anybody = Client::builder()
        .tls_danger_accept_invalid_certs(true)
        .timeout(sought.patience.min(CALL))
        .build()?;
    let (id, secret) = sought.token.split_once('.').context("no token")?;
    let url = format!("{}{CLUSTER_INFO}", sought.server);
    let deadline = tokio::time::Instant::now() + sought.patience;
    loop {
        let found = get(&anybody, &url, None).await;
        let signature = found
            .as_ref()
            .ok()
            .and_then(|info| info["data"][format!("jws-kubeconfig-{id}")].as_str());
        match (&found, signature) {
            (Ok(info), Some(signature)) => {
                let kubeconfig = info["data"]["kubeconfig"].as_str().unwrap_or_default();
                ensure!(
                    signed(id, secret, kubeconfig) == signature,
                    "failed to verify JWS signature of received cluster info object, can't trust \
                     this API Server"
                );
                return found;
            }
            _ if tokio::time::Instant::now() < deadline => tokio::time::sleep(PAUSE).await,
            (Ok(_), None) => bail!(
                "could not find a JWS signature in the cluster-info ConfigMap for token ID {id:?}"
            ),
            (Err(error), _) => {
                bail!("failed to request the cluster-info ConfigMap: {error:#}: connection refused")
            }
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
fn pinned(info: &Value, pins: &Value) -> Result<Authority> {
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
    let is_pinned = pins
        .as_array()
        .is_some_and(|pins| pins.contains(&json!(hash)));
    ensure!(
        is_pinned,
        "cluster CA found in cluster-info ConfigMap is invalid: none of the public keys {hash:?} \
         are pinned"
    );
    Ok(Authority { pem })
}
