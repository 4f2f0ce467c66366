//! The client that images are fetched with. It goes where `ferrite_proto::address` allows: checked
//! for the URL, for each redirect, and for what a name resolves to at the moment of connecting, so
//! that a name that changes its mind gains nothing. The agent's is `agent/src/stream/reach.rs`.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ferrite_proto::address::{Policy, Refused};
use ferrite_proto::image_server::{ImageServer, Login};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::{self, Attempt};
use reqwest::{Certificate, Client, Proxy, RequestBuilder, Url};

use crate::bmc::system_cas;

/// For a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// Without a byte.
const SILENCE: Duration = Duration::from_secs(30);

/// A client for one server.
pub(super) fn client(policy: Policy, server: Option<&ImageServer>) -> Result<Client, String> {
    // Fails when it is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut authorities = system_cas();
    if let Some(pem) = server.and_then(|server| server.ca.as_deref()) {
        let own = Certificate::from_pem_bundle(pem.as_bytes());
        authorities.extend(own.map_err(|error| format!("its CA: {}", chain(&error)))?);
    }
    let mut client = Client::builder()
        .tls_certs_only(authorities)
        .no_proxy()
        .referer(false)
        .redirect(redirect::Policy::custom(move |hop| follow(policy, hop)))
        .dns_resolver(Arc::new(Resolver(policy)))
        .connect_timeout(CONNECT)
        .read_timeout(SILENCE)
        .user_agent(concat!("ferrite/", env!("CARGO_PKG_VERSION")));
    if let Some(proxy) = server.and_then(|server| server.proxy.as_ref()) {
        let proxy = Proxy::all(proxy.expose());
        client = client.proxy(proxy.map_err(|error| format!("its proxy: {}", chain(&error)))?);
    }
    client.build().map_err(|error| chain(&error))
}

/// Shows who we are.
pub(super) fn log_in(request: RequestBuilder, server: Option<&ImageServer>) -> RequestBuilder {
    match server.and_then(|server| server.login.as_ref()) {
        Some(Login::Basic { username, password }) => {
            request.basic_auth(username, Some(password.expose()))
        }
        Some(Login::Bearer(token)) => request.bearer_auth(token.expose()),
        None => request,
    }
}

/// Checks a URL whose host is an address. Names are checked when they are resolved.
pub(super) fn check(policy: Policy, url: &Url) -> Result<(), Refused> {
    policy.check_host(url.host_str().unwrap_or_default())
}

fn follow(policy: Policy, hop: Attempt<'_>) -> redirect::Action {
    let host = hop.url().host_str().unwrap_or_default();
    match policy.check_redirect(hop.previous().len(), host) {
        Ok(()) => hop.follow(),
        Err(why) => hop.error(why),
    }
}

struct Resolver(Policy);

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let policy = self.0;
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let found: Vec<SocketAddr> = found.collect();
            let allowed = policy.allowed(&found)?;
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

/// An error and what caused it, in one line. The URL is said elsewhere.
pub(super) fn chain(error: &dyn Error) -> String {
    let causes = std::iter::successors(error.source(), |&error| error.source());
    let mut text = error.to_string();
    for cause in causes.take(8) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_is_judged_by_what_it_resolves_to() {
        let client = client(Policy::Others, None).unwrap();
        // This name resolves to loopback wherever there is /etc/hosts.
        let error = client.get("http://localhost:9/").send().await.unwrap_err();
        assert!(Refused::behind(&error).is_some(), "{error:?}");
    }
}
