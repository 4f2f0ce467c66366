//! Client certificates over real TLS: who is let in, and who is no longer.

use std::sync::Arc;

use axum_server::tls_rustls::RustlsConfig;
use ferrite_proto::access::{Certificate, WhoAmI};
use serde_json::{Value, json};

use super::router;
use super::tests::{ADMIN, Conductor};
use crate::access::peer::Introduced;
use crate::{listen, tls};

struct Served {
    conductor: Conductor,
    url: String,
    ca: String,
    dir: tempfile::TempDir,
    serving: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Served {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let conductor = Conductor::start(dir.path()).await;
        // The same CA as the conductor's: it lies in the same folder.
        let identity = tls::load_or_create(&dir.path().join("tls"), &[]).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let config = RustlsConfig::from_config(identity.server);
        let door = axum_server::from_tcp_rustls(listener, config).unwrap();
        let door = listen::bounded(door.map(Introduced), listen::Bounds::of(16));
        let app = router(Arc::clone(&conductor.app));
        let service = app.into_make_service_with_connect_info::<std::net::SocketAddr>();
        let serving = tokio::spawn(door.serve(service));
        Self {
            conductor,
            url,
            ca: identity.ca_pem,
            dir,
            serving,
        }
    }

    fn client(&self, certificate: Option<&str>) -> reqwest::Client {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let ca = reqwest::Certificate::from_pem(self.ca.as_bytes()).unwrap();
        let mut client = reqwest::Client::builder().tls_certs_only([ca]).no_proxy();
        if let Some(pem) = certificate {
            client = client.identity(reqwest::Identity::from_pem(pem.as_bytes()).unwrap());
        }
        client.build().unwrap()
    }

    async fn who(&self, client: &reqwest::Client, token: Option<&str>) -> reqwest::Result<Value> {
        let mut call = client.get(format!("{}/v1/whoami", self.url));
        if let Some(token) = token {
            call = call.bearer_auth(token);
        }
        call.send().await?.json().await
    }

    /// A certificate and its key, as `ferrite certificate create` makes them.
    async fn issue(&self, name: &str) -> (Certificate, String) {
        let (key, csr) = tls::client_request().unwrap();
        let asked = json!({"name": name, "csr": csr, "days": 2,
            "grants": [{"role": "operator", "project": "default"}]});
        let made = self
            .conductor
            .admin("POST", "/v1/certificates", asked)
            .await;
        let made: Certificate = serde_json::from_value(made).unwrap();
        let both = format!("{}{key}", made.pem);
        (made, both)
    }
}

#[tokio::test]
async fn a_certificate_of_ours_lets_in_until_it_is_revoked() {
    let served = Served::start().await;
    let (made, pem) = served.issue("alice").await;
    let alice = served.client(Some(&pem));
    let who: WhoAmI = serde_json::from_value(served.who(&alice, None).await.unwrap()).unwrap();
    assert_eq!(
        (who.name.as_str(), who.via.as_str()),
        ("alice", "certificate")
    );
    assert_eq!(who.grants, made.grants);
    // A wrong token is not made good by it, and a right one counts.
    let wrong = served.who(&alice, Some("frt_alice_wrong")).await.unwrap();
    assert_eq!(wrong["code"], "unauthorized");
    let admin = served.who(&alice, Some(ADMIN)).await.unwrap();
    assert_eq!(admin["name"], "admin");
    // What it does is in the audit log under its name, and from where.
    let call = alice.get(format!("{}/v1/tokens", served.url)).send();
    assert_eq!(call.await.unwrap().status(), 403);
    let path = "/v1/certificates/alice";
    served.conductor.admin("DELETE", path, Value::Null).await;
    // At once: the connection is still open.
    let gone = served.who(&alice, None).await.unwrap();
    assert_eq!(gone["code"], "unauthorized");
    // The name's next certificate does not bring the old one back.
    let (_, second) = served.issue("alice").await;
    assert_eq!(
        served.who(&alice, None).await.unwrap()["code"],
        "unauthorized"
    );
    let again = served.client(Some(&second));
    assert_eq!(served.who(&again, None).await.unwrap()["name"], "alice");
}

#[tokio::test]
async fn certificates_of_others_are_refused_before_any_call() {
    let served = Served::start().await;
    let nobody = served.client(None);
    assert_eq!(
        served.who(&nobody, None).await.unwrap()["code"],
        "unauthorized"
    );
    assert_eq!(
        served.who(&nobody, Some(ADMIN)).await.unwrap()["name"],
        "admin"
    );
    // Another CA that calls itself the same.
    let other = tempfile::tempdir().unwrap();
    let other = tls::load_or_create(other.path(), &[]).unwrap();
    let (key, csr) = tls::client_request().unwrap();
    let forged = other.authority.issue_client("admin", &csr, 2).unwrap();
    let forged = served.client(Some(&format!("{}{key}", forged.pem)));
    assert!(served.who(&forged, None).await.is_err());
    // The server's own certificate is for serving only.
    let own = |file: &str| std::fs::read_to_string(served.dir.path().join("tls").join(file));
    let pem = own("server.pem").unwrap() + &own("server.key").unwrap();
    let as_server = served.client(Some(&pem));
    assert!(served.who(&as_server, None).await.is_err());
    // Ours, but never noted: nobody knows it.
    let unknown = served.conductor.app.authority.issue_client("eve", &csr, 2);
    let unknown = served.client(Some(&format!("{}{key}", unknown.unwrap().pem)));
    let refused = served.who(&unknown, None).await.unwrap();
    assert_eq!(refused["code"], "unauthorized");
    // A request that its sender cannot sign for.
    let broken = csr.replacen('A', "B", 8);
    let asked = json!({"name": "eve", "csr": broken, "grants": [{"role": "admin"}]});
    let refused = served
        .conductor
        .call("POST", "/v1/certificates", ADMIN, &asked);
    assert_eq!(refused.await.0, 422);
}
