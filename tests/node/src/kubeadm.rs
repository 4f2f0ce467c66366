//! `kubeadm join` of a worker, and `kubeadm reset`: the phases, their files and their words.
//!
//! The kubelet is a unit of systemd and does its part itself.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ferrite_tests_node::discovery::{Sought, discover};
use serde_json::{Value, json};

use crate::files::{self, Files};
use crate::say;

/// kubeadm's own, where the configuration says nothing.
const PATIENCE: Duration = Duration::from_mins(5);
const PAUSE: Duration = Duration::from_millis(500);

/// Joins, as far as it can be known here: the kubelet has its certificate.
pub(crate) async fn join(files: &Files, configuration: &Path) -> Result<()> {
    let text = files::read(configuration)?;
    let told: Value = serde_json::from_str(&text)
        .context("this is no kubeadm: it reads a JoinConfiguration in JSON alone")?;
    prepare(files, &told)
        .await
        .context("error execution phase preflight")?;
    start_kubelet(files).context("error execution phase kubelet-start")?;
    wait(files, patience(&told["timeouts"]["tlsBootstrap"]))
        .await
        .context("error execution phase kubelet-wait-bootstrap")?;
    files.remove(files::BOOTSTRAP)?;
    say("\nThis node has joined the cluster:")?;
    say("* Certificate signing request was sent to apiserver and a response was received.")?;
    say("* The Kubelet was informed of the new secure connection details.\n")?;
    say("Run 'kubectl get nodes' on the control-plane to see this node join the cluster.\n")
}

/// The phases until the kubelet can be started.
async fn prepare(files: &Files, told: &Value) -> Result<()> {
    say("[preflight] Running pre-flight checks")?;
    let errors = preflight(files);
    for error in &errors {
        say(&format!("\t[ERROR {error}"))?;
    }
    ensure!(errors.is_empty(), "preflight checks failed");
    let discovery = &told["discovery"]["bootstrapToken"];
    let server = format!("https://{}", text(&discovery["apiServerEndpoint"]));
    let token = text(&discovery["token"]);
    let (ca, kubelet) = discover(&Sought {
        server: &server,
        token: &token,
        pins: &discovery["caCertHashes"],
        patience: patience(&told["timeouts"]["discovery"]),
    })
    .await?;
    say(
        "[preflight] Reading configuration from the \"kubeadm-config\" ConfigMap in namespace \
         \"kube-system\"...",
    )?;
    files.write(files::CA, &ca.pem)?;
    let bootstrap = kubeconfig(&server, &ca.pem, &json!({"token": token}));
    files.write(files::BOOTSTRAP, bootstrap.as_bytes())?;
    say("[kubelet-start] Writing kubelet configuration to file \"/var/lib/kubelet/config.yaml\"")?;
    files.write(files::CONFIGURATION, kubelet.as_bytes())?;
    say(
        "[kubelet-start] Writing kubelet environment file with flags to file \
         \"/var/lib/kubelet/kubeadm-flags.env\"",
    )?;
    let flags = flags(&told["nodeRegistration"]);
    files.write(files::FLAGS, flags.as_bytes())
}

/// The checks that a second join, or an image without forwarding, fails.
fn preflight(files: &Files) -> Vec<String> {
    let left: Vec<_> = [files::KUBELET, files::CA]
        .into_iter()
        .filter(|file| files.is_there(file))
        .collect();
    let mut errors: Vec<String> = left
        .into_iter()
        .map(|file| {
            let name = file.replace('/', "-");
            format!("FileAvailable--{name}]: /{file} already exists")
        })
        .collect();
    let forwards = files.read("proc/sys/net/ipv4/ip_forward");
    if !forwards.is_ok_and(|text| text.trim() == "1") {
        let what = "FileContent--proc-sys-net-ipv4-ip_forward]: /proc/sys/net/ipv4/ip_forward \
                    contents are not set to 1";
        errors.push(what.to_owned());
    }
    errors
}

/// A kubeconfig of one cluster and one user; JSON is YAML.
pub(crate) fn kubeconfig(server: &str, ca: &[u8], user: &Value) -> String {
    let ca = BASE64_STANDARD.encode(ca);
    let cluster = json!({"server": server, "certificate-authority-data": ca});
    let whole = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "default",
        "clusters": [{"name": "default", "cluster": cluster}],
        "contexts": [{"name": "default", "context": {"cluster": "default", "user": "default"}}],
        "users": [{"name": "default", "user": user}],
    });
    format!("{whole:#}\n")
}

/// As a unit's `EnvironmentFile`.
fn flags(registration: &Value) -> String {
    let name = text(&registration["name"]);
    let mut words = vec![format!("--hostname-override={name}")];
    for extra in registration["kubeletExtraArgs"]
        .as_array()
        .into_iter()
        .flatten()
    {
        words.push(format!(
            "--{}={}",
            text(&extra["name"]),
            text(&extra["value"])
        ));
    }
    let taints = registration["taints"].as_array().into_iter().flatten();
    let taints: Vec<_> = taints
        .map(|taint| {
            let [key, value, effect] = ["key", "value", "effect"].map(|part| text(&taint[part]));
            format!("{key}={value}:{effect}")
        })
        .collect();
    if !taints.is_empty() {
        words.push(format!("--register-with-taints={}", taints.join(",")));
    }
    format!("KUBELET_KUBEADM_ARGS=\"{}\"\n", words.join(" "))
}

fn start_kubelet(files: &Files) -> Result<()> {
    ensure!(files.is_there(files::CONFIGURATION), "no configuration");
    say("[kubelet-start] Starting the kubelet")?;
    systemctl(&["restart", "kubelet"])
}

async fn wait(files: &Files, patience: Duration) -> Result<()> {
    say("[kubelet-start] Waiting for the kubelet to perform the TLS Bootstrap")?;
    let deadline = tokio::time::Instant::now() + patience;
    while !files.is_there(files::KUBELET) {
        ensure!(
            tokio::time::Instant::now() < deadline,
            "failed while waiting for TLS bootstrap: context deadline exceeded"
        );
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

/// Undoes a join.
pub(crate) fn reset(files: &Files) -> Result<()> {
    say("[reset] Stopping the kubelet service")?;
    systemctl(&["stop", "kubelet"])?;
    files::ALL.into_iter().try_for_each(|file| {
        say(&format!("[reset] Deleting files: [/{file}]"))?;
        files.remove(file)
    })
}

fn systemctl(words: &[&str]) -> Result<()> {
    let shown = format!("systemctl {}", words.join(" "));
    let ended = Command::new("systemctl").args(words).status();
    let ended = ended.with_context(|| format!("starting `{shown}`"))?;
    ensure!(ended.success(), "`{shown}` ended with {ended}");
    Ok(())
}

pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// `2m0s`, as Go writes it.
fn patience(told: &Value) -> Duration {
    let parsed = told.as_str().and_then(|text| {
        let (minutes, seconds) = text.strip_suffix('s')?.split_once('m')?;
        let minutes: u64 = minutes.parse().ok()?;
        let seconds: u64 = seconds.parse().ok()?;
        Some(Duration::from_secs(60 * minutes + seconds))
    });
    parsed.unwrap_or(PATIENCE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_registered_as_it_is_configured() {
        let registration = json!({
            "name": "w1",
            "taints": [{"key": "gpu", "value": "yes", "effect": "NoSchedule"}],
            "kubeletExtraArgs": [{"name": "provider-id", "value": "ferrite://u"}],
        });
        assert_eq!(
            flags(&registration),
            "KUBELET_KUBEADM_ARGS=\"--hostname-override=w1 --provider-id=ferrite://u \
             --register-with-taints=gpu=yes:NoSchedule\"\n"
        );
        assert_eq!(patience(&json!("2m5s")), Duration::from_secs(125));
        assert_eq!(patience(&Value::Null), PATIENCE);
    }

    #[test]
    fn what_an_earlier_join_left_is_in_the_way() {
        let root = tempfile::tempdir().unwrap();
        let files = Files::at(root.path());
        files.write("proc/sys/net/ipv4/ip_forward", b"1\n").unwrap();
        assert_eq!(preflight(&files), Vec::<String>::new());
        files.write(files::CA, b"").unwrap();
        files.write("proc/sys/net/ipv4/ip_forward", b"0\n").unwrap();
        let errors = preflight(&files);
        assert_eq!(errors.len(), 2);
        let left = "FileAvailable--etc-kubernetes-pki-ca.crt]: /etc/kubernetes/pki/ca.crt already \
                    exists";
        assert_eq!(errors[0], left);
    }
}
