//! A real control plane of Kubernetes in the lab's network: etcd, kube-apiserver and
//! kube-controller-manager, started from programs that somebody has, and prepared as Kamaji and
//! `kubeadm init` do it.
//!
//! The programs are given by `KUBEBUILDER_ASSETS` (as controller-runtime's envtest has it) and
//! `FERRITE_KUBE_BIN`. None is fetched or built here.

mod binaries;
mod pki;
mod prepared;

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use reqwest::{Certificate, Client, Identity, Method};
use serde_json::Value;

pub use self::binaries::{Binaries, node_programs};
use self::pki::Pki;
use crate::lab::Lab;
use crate::net::SERVER;

/// Where etcd listens; nothing else is on that loopback.
const ETCD: &str = "http://127.0.0.1:2379";
const ETCD_PEERS: &str = "http://127.0.0.1:2380";
/// Three programs that start on two emulating cores.
const START: Duration = Duration::from_mins(4);
const GLANCE: Duration = Duration::from_millis(300);

/// A running control plane. It ends with the lab.
#[derive(Debug)]
pub struct ControlPlane {
    dir: PathBuf,
    pki: Pki,
    client: Client,
    children: Vec<(&'static str, Child)>,
}

impl ControlPlane {
    /// Starts one, and waits until hosts can join it.
    pub fn start(lab: &Lab, binaries: &Binaries) -> Result<Self> {
        // An error says that it is installed already.
        drop(rustls::crypto::ring::default_provider().install_default());
        let dir = lab.dir().join("control-plane");
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        let pki = Pki::new(SERVER)?;
        let client = Client::builder()
            .tls_certs_only([Certificate::from_pem(pki.ca.as_bytes())?])
            .identity(Identity::from_pem(pki.admin.pem().as_bytes())?)
            .timeout(Duration::from_secs(20))
            .build()?;
        let mut plane = Self {
            dir,
            pki,
            client,
            children: Vec::new(),
        };
        plane.write_files()?;
        plane.spawn(lab, "etcd", &binaries.etcd, plane.etcd_words())?;
        let words = plane.apiserver_words();
        plane.spawn(lab, "kube-apiserver", &binaries.apiserver, words)?;
        plane.wait_ready(lab)?;
        let words = plane.controllers_words();
        plane.spawn(
            lab,
            "kube-controller-manager",
            &binaries.controller_manager,
            words,
        )?;
        plane.prepare(lab)?;
        Ok(plane)
    }

    /// Where it serves.
    pub fn url() -> String {
        format!("https://{SERVER}:{}", pki::PORT)
    }

    /// A kubeconfig of its administrator.
    pub fn kubeconfig(&self) -> String {
        self.pki.kubeconfig(&Self::url(), &self.pki.admin)
    }

    /// A call by its administrator: the status, and what is answered.
    pub fn call(
        &self,
        lab: &Lab,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(u16, Value)> {
        let url = format!("{}{path}", Self::url());
        let mut request = self.client.request(method, &url);
        if let Some(body) = body {
            request = request.json(body);
        }
        lab.block_on(async move {
            let reply = request
                .send()
                .await
                .with_context(|| format!("asking {url}"))?;
            let status = reply.status().as_u16();
            let text = reply.text().await?;
            Ok((status, serde_json::from_str(&text).unwrap_or(Value::Null)))
        })?
    }

    fn file(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    fn write_files(&self) -> Result<()> {
        let controllers = self.pki.kubeconfig(&Self::url(), &self.pki.controllers);
        for (name, text) in [
            ("ca.crt", &self.pki.ca),
            ("ca.key", &self.pki.ca_key),
            ("server.crt", &self.pki.server.certificate),
            ("server.key", &self.pki.server.key),
            ("accounts.pub", &self.pki.accounts_public),
            ("accounts.key", &self.pki.accounts_key),
            ("controllers.conf", &controllers),
            ("admin.conf", &self.kubeconfig()),
        ] {
            write_secret(&self.dir.join(name), text)?;
        }
        Ok(())
    }

    fn etcd_words(&self) -> Vec<String> {
        vec![
            format!("--data-dir={}", self.file("etcd")),
            format!("--listen-client-urls={ETCD}"),
            format!("--advertise-client-urls={ETCD}"),
            format!("--listen-peer-urls={ETCD_PEERS}"),
            format!("--initial-advertise-peer-urls={ETCD_PEERS}"),
            format!("--initial-cluster=default={ETCD_PEERS}"),
        ]
    }

    fn apiserver_words(&self) -> Vec<String> {
        vec![
            format!("--etcd-servers={ETCD}"),
            format!("--advertise-address={SERVER}"),
            format!("--secure-port={}", pki::PORT),
            format!("--tls-cert-file={}", self.file("server.crt")),
            format!("--tls-private-key-file={}", self.file("server.key")),
            format!("--client-ca-file={}", self.file("ca.crt")),
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local".into(),
            format!("--service-account-key-file={}", self.file("accounts.pub")),
            format!(
                "--service-account-signing-key-file={}",
                self.file("accounts.key")
            ),
            "--service-cluster-ip-range=10.96.0.0/16".into(),
            "--authorization-mode=Node,RBAC".into(),
            "--enable-bootstrap-token-auth=true".into(),
            "--allow-privileged=true".into(),
            "--endpoint-reconciler-type=none".into(),
        ]
    }

    fn controllers_words(&self) -> Vec<String> {
        vec![
            format!("--kubeconfig={}", self.file("controllers.conf")),
            "--bind-address=127.0.0.1".into(),
            "--leader-elect=false".into(),
            // The two are off unless they are named.
            "--controllers=*,bootstrapsigner,tokencleaner".into(),
            "--use-service-account-credentials=true".into(),
            format!(
                "--service-account-private-key-file={}",
                self.file("accounts.key")
            ),
            format!("--root-ca-file={}", self.file("ca.crt")),
            format!("--cluster-signing-cert-file={}", self.file("ca.crt")),
            format!("--cluster-signing-key-file={}", self.file("ca.key")),
        ]
    }

    fn spawn(
        &mut self,
        lab: &Lab,
        name: &'static str,
        program: &Path,
        words: Vec<String>,
    ) -> Result<()> {
        let log = File::create(self.dir.join(format!("{name}.log")))?;
        let second = log.try_clone()?;
        let argv =
            std::iter::once(OsString::from(program)).chain(words.into_iter().map(Into::into));
        let child = lab.net().spawn(argv.collect(), move |command| {
            command
                .stdin(Stdio::null())
                .stdout(Stdio::from(log))
                .stderr(Stdio::from(second));
        })?;
        self.children.push((name, child));
        Ok(())
    }

    fn wait_ready(&mut self, lab: &Lab) -> Result<()> {
        self.wait("to be ready", |plane| {
            let answer = plane.call(lab, Method::GET, "/readyz", None);
            Ok(answer.is_ok_and(|(status, _)| status == 200))
        })
    }

    /// Writes what hosts read when they join, and lets tokens do what they must.
    fn prepare(&mut self, lab: &Lab) -> Result<()> {
        let (_, version) = self.call(lab, Method::GET, "/version", None)?;
        let version = version["gitVersion"].as_str().context("no version")?;
        for (path, object) in prepared::objects(&Self::url(), &self.pki.ca, version) {
            // Namespaces come a moment after the API server is ready.
            self.wait(&format!("for {path}"), |plane| {
                let (status, answer) = plane.call(lab, Method::POST, &path, Some(&object))?;
                let is_early = status == 404 || status == 403 || status >= 500;
                ensure!(is_early || status == 201 || status == 409, "{answer}");
                Ok(!is_early)
            })?;
        }
        Ok(())
    }

    /// Looks until something holds; a program that ended does not let it wait.
    fn wait(&mut self, what: &str, holds: impl Fn(&Self) -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + START;
        while !holds(self)? {
            for (name, child) in &mut self.children {
                if let Some(ended) = child.try_wait()? {
                    let log = self.dir.join(format!("{name}.log"));
                    bail!("{name} ended with {ended}: {}", tail(&log));
                }
            }
            ensure!(
                Instant::now() < deadline,
                "waited {START:?} {what}; see the logs in {}",
                self.dir.display()
            );
            std::thread::sleep(GLANCE);
        }
        Ok(())
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        for (name, child) in self.children.iter_mut().rev() {
            if let Err(error) = child.kill().and_then(|()| child.wait().map(drop)) {
                tracing::warn!(name, %error, "it was not ended; it ends with the lab");
            }
        }
    }
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(5)..].join("\n")
}

/// Keys are in them.
fn write_secret(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = fs::OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600);
    let file = file.open(path);
    let mut file = file.with_context(|| format!("creating {}", path.display()))?;
    let written = file.write_all(text.as_bytes());
    written.with_context(|| format!("writing {}", path.display()))
}
