//! HTTP clients that all BMCs share: one checks certificates, one does not. Each holds the
//! machine's authorities and a pool of connections, so one a host would cost a megabyte a host.
//!
//! No login is kept here: who we are at a BMC is its own `Wire`'s business.

use std::sync::OnceLock;
use std::time::Duration;

use super::wire::Patience;

/// Where Debian and most others keep the authorities that the machine trusts.
const SYSTEM_CAS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// The clients, made when they are first needed. Authorities are read then, and not again.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    checking: OnceLock<reqwest::Client>,
    trusting: OnceLock<reqwest::Client>,
}

impl Clients {
    /// The client for BMCs whose certificate is checked, or is not.
    pub(super) fn get(&self, insecure_tls: bool) -> Result<reqwest::Client, reqwest::Error> {
        let kept = if insecure_tls {
            &self.trusting
        } else {
            &self.checking
        };
        if let Some(client) = kept.get() {
            return Ok(client.clone());
        }
        let made = client(insecure_tls, Patience::default())?;
        Ok(kept.get_or_init(|| made).clone())
    }
}

/// A client of its own.
pub(super) fn client(
    insecure_tls: bool,
    patience: Patience,
) -> Result<reqwest::Client, reqwest::Error> {
    // Fails when it is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let authorities = if insecure_tls {
        Vec::new()
    } else {
        system_cas()
    };
    reqwest::Client::builder()
        .tls_certs_only(authorities)
        .tls_danger_accept_invalid_certs(insecure_tls)
        .no_proxy()
        .redirect(same_origin())
        .connect_timeout(patience.connect)
        .timeout(patience.read)
        // Long enough for the requests of one action, short enough that no BMC has closed a
        // connection that we are about to use.
        .pool_idle_timeout(Duration::from_secs(2))
        .build()
}

/// Follows a few redirects to the same machine (some BMCs move `/redfish/v1`); elsewhere our
/// token would leak.
fn same_origin() -> reqwest::redirect::Policy {
    reqwest::redirect::Policy::custom(|attempt| {
        let first = attempt.previous().first().map(reqwest::Url::origin);
        if attempt.previous().len() <= 3 && first == Some(attempt.url().origin()) {
            attempt.follow()
        } else {
            attempt.stop()
        }
    })
}

/// What the machine trusts; an administrator adds a company's authority there.
pub(crate) fn system_cas() -> Vec<reqwest::Certificate> {
    std::fs::read(SYSTEM_CAS)
        .ok()
        .and_then(|pem| reqwest::Certificate::from_pem_bundle(&pem).ok())
        .unwrap_or_default()
}
