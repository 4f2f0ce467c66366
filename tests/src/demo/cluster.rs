//! The demo with a cluster: somebody's kubeconfig, what the lab needs to reach its server, and the
//! commands that a person would type. The Node is taken back at the end, unless the lab stays.

use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::{Ferrite, HOST, say};

/// The cluster's name in the demo's conductor.
pub(super) const NAME: &str = "demo";
/// Of a host that becomes a worker.
const MEMORY_MIB: &str = "2048";
const MINIFY: &str = "`kubectl config view --raw --flatten --minify` prints a kubeconfig of one";

/// A cluster that somebody has.
#[derive(Debug)]
pub(super) struct Cluster {
    kubeconfig: PathBuf,
    server: SocketAddr,
}

impl Cluster {
    /// Reads where its server is.
    pub(super) fn read(kubeconfig: &Path) -> Result<Self> {
        let shown = kubeconfig.display();
        let text = fs::read_to_string(kubeconfig).with_context(|| format!("reading {shown}"))?;
        Ok(Self {
            kubeconfig: std::path::absolute(kubeconfig)?,
            server: server(&text).with_context(|| format!("reading {shown}"))?,
        })
    }

    /// More words for `ferrite-lab up`.
    pub(super) fn lab_words(&self) -> [OsString; 4] {
        let server = self.server.to_string();
        ["--memory", MEMORY_MIB, "--reach", &server].map(OsString::from)
    }

    /// Takes it in, and proves that hosts can join.
    pub(super) fn add(&self, ferrite: &Ferrite<'_>) -> Result<()> {
        let kubeconfig = self.kubeconfig.display().to_string();
        let words = ["cluster", "add", NAME, "--kubeconfig", &kubeconfig];
        ferrite.run(&[&words])?;
        ferrite.run(&[&["cluster", "check", NAME]])
    }

    /// Says how to look at the Node; unless it stays, the host leaves: a Node whose machine is gone
    /// would stay in the cluster.
    pub(super) fn show(&self, ferrite: &Ferrite<'_>, stays: bool) -> Result<()> {
        let (kubeconfig, server) = (self.kubeconfig.display(), self.server);
        say(&format!(
            "the Node: kubectl --kubeconfig {kubeconfig} get node {HOST} -o wide\n   pods run \
             there only with images that the host has: the lab has no way out but to {server}"
        ))?;
        if stays {
            return Ok(());
        }
        say(&format!(
            "{HOST} leaves {server} again (KEEP=1 lets it stay)"
        ))?;
        ferrite.run(&[&["host", "deprovision", HOST, "--wait"]])
    }
}

/// `server:` of a kubeconfig, as an address that a lab can stand in for.
fn server(text: &str) -> Result<SocketAddr> {
    let mut servers = text.lines().filter_map(|line| {
        let line = line.trim().trim_start_matches("- ");
        Some(
            line.strip_prefix("server:")?
                .trim()
                .trim_matches(['"', '\'']),
        )
    });
    let server = servers.next().context("it has no `server:`")?;
    ensure!(
        servers.next().is_none(),
        "it has several clusters; {MINIFY}"
    );
    let url = reqwest::Url::parse(server).with_context(|| format!("{server:?} is no URL"))?;
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let Ok(address) = host.parse::<std::net::IpAddr>() else {
        bail!("{server} is a name, and the lab has no DNS; the demo takes an IP address");
    };
    ensure!(
        !address.is_loopback(),
        "{server} is this machine's own loopback, which no host reaches; let the API server listen \
         on another address of this machine, and name that in its certificate and in cluster-info"
    );
    let port = url.port_or_known_default().context("no port")?;
    Ok(SocketAddr::new(address, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_an_address_that_a_host_reaches() {
        let of = |url: &str| server(&format!("clusters:\n- cluster:\n    server: {url}\n"));
        assert_eq!(
            of("https://192.0.2.1:6443").unwrap().to_string(),
            "192.0.2.1:6443"
        );
        assert_eq!(of("\"https://192.0.2.1\"").unwrap().port(), 443);
        assert_eq!(of("https://[2001:db8::1]:6443").unwrap().port(), 6443);
        for (url, why) in [
            ("https://api.example:6443", "no DNS"),
            ("https://127.0.0.1:6443", "loopback"),
            ("nothing", "no URL"),
        ] {
            let told = format!("{:#}", of(url).unwrap_err());
            assert!(told.contains(why), "{told}");
        }
        let two = server("server: https://192.0.2.1\nserver: https://192.0.2.2\n");
        assert!(two.unwrap_err().to_string().contains("--minify"));
    }
}
