//! Where the conductor is, for those who speak to it in bytes. What they say is in `attacks`.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use ferrite_tests::swarm::Served;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Connections that say nothing; fewer where fewer files may be open.
const IDLE: usize = 10_000;

/// Where the conductor is, for those who speak to it in bytes.
pub(super) struct Target {
    pub(super) at: SocketAddr,
    tls: TlsConnector,
    token: String,
    /// Connections that are opened and say nothing.
    pub(super) idle: usize,
}

impl Target {
    pub(super) fn of(served: &Served, state: &Path) -> Result<Self> {
        let ca = std::fs::read(state.join("ca.pem"))?;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&ca)?)?;
        let config = rustls::ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let at = served.url.strip_prefix("https://").context("an address")?;
        Ok(Self {
            at: at.parse()?,
            tls: TlsConnector::from(Arc::new(config)),
            idle: idle_connections()?,
            token: std::fs::read_to_string(state.join("admin.token"))?
                .trim()
                .to_owned(),
        })
    }

    pub(super) async fn connect(&self) -> Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.at).await?;
        let name = ServerName::try_from("localhost")?;
        Ok(self.tls.connect(name, stream).await?)
    }

    /// The head of a call with JSON, with a token or without.
    pub(super) fn head(&self, call: &str, with_token: bool, length: &str) -> String {
        let token = if with_token {
            format!("authorization: Bearer {}\r\n", self.token)
        } else {
            String::new()
        };
        let kind = "content-type: application/json";
        format!("{call} HTTP/1.1\r\nhost: x\r\n{token}{kind}\r\n{length}\r\n\r\n")
    }
}

/// As many as the conductor takes, and room for the others.
fn idle_connections() -> Result<usize> {
    let limits = std::fs::read_to_string("/proc/self/limits")?;
    let files = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))
        .and_then(|line| line.split_whitespace().nth(1))
        .context("reading how many files may be open")?;
    let files: usize = files.parse().unwrap_or(usize::MAX);
    Ok((files / 4 * 3).saturating_sub(2_500).clamp(100, IDLE))
}
