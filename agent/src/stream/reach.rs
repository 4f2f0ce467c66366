//! Where a fetch may lead: checked for the URL itself, for each redirect, and for what a name
//! resolves to at the moment of connecting, so that a name that changes its mind gains nothing.
//!
//! What is refused is decided in `ferrite_proto::address`.

use std::net::{SocketAddr, ToSocketAddrs};

use ferrite_proto::address::{Policy, Refused};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::{self, Attempt};
use reqwest::{ClientBuilder, Url};

/// A client that goes nowhere else.
pub(super) fn bounded(client: ClientBuilder, policy: Policy) -> ClientBuilder {
    client
        .redirect(redirect::Policy::custom(move |hop| follow(policy, hop)))
        .dns_resolver(std::sync::Arc::new(Resolver(policy)))
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
            let host = name.as_str().to_owned();
            let found = tokio::task::spawn_blocking(move || (host, 0).to_socket_addrs());
            let found: Vec<SocketAddr> = found.await??.collect();
            let allowed = policy.allowed(&found)?;
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferrite_proto::address::REDIRECTS;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    /// A server that sends everybody elsewhere.
    fn redirecting(to: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let _ = stream.read(&mut [0; 4096]);
                let reply = format!(
                    "HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\n\
                     connection: close\r\n\r\n"
                );
                let _ = stream.write_all(reply.as_bytes());
            }
        });
        url
    }

    fn get(policy: Policy, url: &str) -> reqwest::Result<reqwest::Response> {
        let roots = rustls::RootCertStore::empty();
        let tls = rustls::ClientConfig::builder_with_provider(crate::tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .no_proxy();
        let client = bounded(client, policy).build().unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(client.get(url).send())
    }

    #[test]
    fn a_redirect_leads_nowhere_else() {
        for to in [
            "http://169.254.169.254/latest/meta-data/",
            "http://0251.0376.0251.0376/",
            "http://[::ffff:169.254.169.254]/",
            "http://2852039166/",
        ] {
            let error = get(Policy::OthersAndLoopback, &redirecting(to)).unwrap_err();
            assert!(Refused::behind(&error).is_some(), "{to}: {error:?}");
        }
        for to in ["file:///etc/passwd", "gopher://10.0.0.1/"] {
            // Not followed: an error, or the redirect itself, which is no image.
            let reply = get(Policy::OthersAndLoopback, &redirecting(to));
            assert!(reply.is_err() || reply.unwrap().status() == 302, "{to}");
        }
    }

    #[test]
    fn redirects_end() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let asked = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let count = std::sync::Arc::clone(&asked);
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let _ = stream.read(&mut [0; 4096]);
                count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let reply = b"HTTP/1.1 302 Found\r\nlocation: /\r\ncontent-length: 0\r\n\
                              connection: close\r\n\r\n";
                let _ = stream.write_all(reply);
            }
        });
        let error = get(Policy::OthersAndLoopback, &format!("http://{at}/")).unwrap_err();
        assert!(error.is_redirect(), "{error:?}");
        assert_eq!(
            asked.load(std::sync::atomic::Ordering::Relaxed),
            REDIRECTS + 1
        );
    }

    #[test]
    fn a_name_is_judged_by_what_it_resolves_to() {
        // This name resolves to loopback wherever there is /etc/hosts.
        let error = get(Policy::Others, "http://localhost:9/").unwrap_err();
        assert!(Refused::behind(&error).is_some(), "{error:?}");
    }
}
