//! The kubelet, as far as a cluster sees one without pods: a certificate, a Node, a lease.

use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ferrite_tests_node::Authority;
use ferrite_tests_node::registration::{self, Node};
use serde_json::{Value, json};

use crate::files::{self, Files};
use crate::kubeadm::{kubeconfig, text};
use crate::say;

/// How long it waits for somebody to sign its certificate.
const PATIENCE: Duration = Duration::from_mins(10);
/// How often a kubelet renews its lease.
const RENEWAL: Duration = Duration::from_secs(10);
/// `/sys/class/dmi/id/product_uuid`, below the root.
const SYSTEM_UUID: &str = "sys/class/dmi/id/product_uuid";
const BOOT_ID: &str = "proc/sys/kernel/random/boot_id";

/// Runs until it fails; systemd starts it again.
pub(crate) async fn run(files: &Files, words: &[&str]) -> Result<()> {
    let node = node(files, words)?;
    if !files.is_there(files::KUBELET) {
        bootstrap(files, &node.name).await?;
    }
    let (server, ca, _) = cluster(files, files::KUBELET)?;
    let identity = files.read(files::IDENTITY)?;
    let client = ca.client(Some(identity.as_bytes()))?;
    node.announce(&client, &server).await?;
    say(&format!("{} is ready", node.name))?;
    loop {
        tokio::time::sleep(RENEWAL).await;
        // A cluster that is away for a while comes back.
        if let Err(error) = node.renew(&client, &server).await {
            say(&format!("the lease was not renewed: {error:#}"))?;
        }
    }
}

/// Turns the token into a certificate.
async fn bootstrap(files: &Files, name: &str) -> Result<()> {
    let (server, ca, user) = cluster(files, files::BOOTSTRAP)?;
    let client = ca.client(None)?;
    let token = text(&user["token"]);
    let identity = registration::certificate(&client, &server, &token, name, PATIENCE).await?;
    files.write(files::IDENTITY, &identity)?;
    let path = format!("/{}", files::IDENTITY);
    let user = json!({"client-certificate": path, "client-key": path});
    let whole = kubeconfig(&server, &ca.pem, &user);
    files.write(files::KUBELET, whole.as_bytes())
}

/// The server, its CA and the user of a kubeconfig that kubeadm or this program wrote.
fn cluster(files: &Files, file: &str) -> Result<(String, Authority, Value)> {
    let whole: Value = serde_json::from_str(&files.read(file)?)
        .with_context(|| format!("reading /{file}: not of this program"))?;
    let cluster = &whole["clusters"][0]["cluster"];
    let pem = BASE64_STANDARD.decode(text(&cluster["certificate-authority-data"]))?;
    let user = whole["users"][0]["user"].clone();
    Ok((text(&cluster["server"]), Authority { pem }, user))
}

/// What is told of this machine.
fn node(files: &Files, words: &[&str]) -> Result<Node> {
    let told = |flag: &str| {
        let begin = format!("--{flag}=");
        words.iter().find_map(|word| word.strip_prefix(&begin))
    };
    Ok(Node {
        name: told("hostname-override")
            .context("no --hostname-override")?
            .to_owned(),
        provider_id: told("provider-id").unwrap_or_default().to_owned(),
        taints: taints(told("register-with-taints").unwrap_or_default()),
        system_uuid: files.read(SYSTEM_UUID)?.trim().to_owned(),
        boot_id: files.read(BOOT_ID)?.trim().to_owned(),
    })
}

/// `key=value:Effect`, with commas between.
fn taints(told: &str) -> Value {
    let all = told.split(',').filter_map(|taint| {
        let (pair, effect) = taint.rsplit_once(':')?;
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        Some(json!({"key": key, "value": value, "effect": effect}))
    });
    all.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_tells_of_its_machine_and_of_its_arguments() {
        let root = tempfile::tempdir().unwrap();
        let files = Files::at(root.path());
        files.write(SYSTEM_UUID, b"u-1\n").unwrap();
        files.write(BOOT_ID, b"b-1\n").unwrap();
        let words = [
            "--kubeconfig=/x",
            "--hostname-override=w1",
            "--provider-id=ferrite://u",
            "--register-with-taints=gpu=yes:NoSchedule,old=:NoExecute",
        ];
        let seen = node(&files, &words).unwrap();
        assert_eq!(
            (seen.name.as_str(), seen.system_uuid.as_str()),
            ("w1", "u-1")
        );
        assert_eq!(seen.provider_id, "ferrite://u");
        assert_eq!(seen.taints[0]["value"], "yes");
        assert_eq!(seen.taints[1]["effect"], "NoExecute");
        assert!(node(&files, &words[..1]).is_err());
    }

    #[test]
    fn what_kubeadm_writes_the_kubelet_reads() {
        let root = tempfile::tempdir().unwrap();
        let files = Files::at(root.path());
        let written = kubeconfig("https://192.0.2.1:6443", b"pem", &json!({"token": "a.b"}));
        files.write(files::BOOTSTRAP, written.as_bytes()).unwrap();
        let (server, ca, user) = cluster(&files, files::BOOTSTRAP).unwrap();
        assert_eq!(
            (server.as_str(), ca.pem.as_slice()),
            ("https://192.0.2.1:6443", &b"pem"[..])
        );
        assert_eq!(user["token"], "a.b");
    }
}
