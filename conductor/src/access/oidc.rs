//! People who come in by an OIDC provider: its keys, fetched, kept, and fetched anew when a token
//! names one that is not known. What a token says is read in [`super::jwt`].
//!
//! The issuer is named in the configuration, so its address is trusted; what it answers is bounded.

use std::path::PathBuf;
use std::time::Duration;

use ferrite_proto::problem::{Code, Problem};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::jwt::{self, Expected, Keys, Refusal, User};
use crate::clock;
use crate::seeing::config;

/// For one answer of the issuer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of one answer.
const MOST: usize = 256 << 10;
/// Keys older than this are fetched anew: the issuer may have withdrawn one.
const KEEP: Duration = Duration::from_hours(1);
/// Between fetches, whatever callers send.
const PAUSE: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 30 });

/// `[oidc]` of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OidcConfig {
    /// `https://…`, exactly as its tokens name it.
    pub(crate) issuer: String,
    /// For whom tokens must be.
    pub(crate) audience: String,
    /// Where the user's name is.
    #[serde(default = "subject")]
    pub(crate) username_claim: String,
    /// Where the user's groups are.
    #[serde(default = "groups")]
    pub(crate) groups_claim: String,
    /// The issuer's authorities; those of the system without.
    pub(crate) ca_file: Option<PathBuf>,
}

fn subject() -> String {
    "sub".to_owned()
}

fn groups() -> String {
    "groups".to_owned()
}

/// An OIDC provider.
#[derive(Debug)]
pub(crate) struct Oidc {
    expected: Expected,
    client: reqwest::Client,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    keys: Keys,
    fetched: Option<Instant>,
    tried: Option<Instant>,
}

#[derive(Debug, Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

impl Oidc {
    /// Nothing is fetched before the first token comes.
    pub(crate) fn new(config: &OidcConfig) -> anyhow::Result<Self> {
        anyhow::ensure!(
            config.issuer.starts_with("https://"),
            "oidc.issuer: {:?} is not https://…",
            config.issuer
        );
        Ok(Self {
            expected: Expected {
                issuer: config.issuer.clone(),
                audience: config.audience.clone(),
                username_claim: config.username_claim.clone(),
                groups_claim: config.groups_claim.clone(),
            },
            client: config::client(config.ca_file.as_deref(), PATIENCE)?,
            known: Mutex::default(),
        })
    }

    /// Whose token this is.
    pub(crate) async fn user(&self, token: &str) -> Result<User, Problem> {
        let now = clock::now().as_second();
        // One at a time: a hundred tokens with a new key fetch it once.
        let mut known = self.known.lock().await;
        if known.fetched.is_none_or(|at| at.elapsed() > KEEP) {
            self.refresh(&mut known).await?;
        }
        let mut read = jwt::verify(token, &known.keys, &self.expected, now);
        if read == Err(Refusal::Key) && known.tried.is_none_or(|at| at.elapsed() >= PAUSE) {
            self.refresh(&mut known).await?;
            read = jwt::verify(token, &known.keys, &self.expected, now);
        }
        read.map_err(|why| {
            let what = format!("the token of {} is refused: {why}", self.expected.issuer);
            Problem::new(Code::Unauthorized, what, "log in again there")
        })
    }

    async fn refresh(&self, known: &mut Known) -> Result<(), Problem> {
        let waits = known.tried.is_some_and(|at| at.elapsed() < PAUSE);
        if !waits {
            known.tried = Some(Instant::now());
            match self.fetch().await {
                Ok(keys) => {
                    known.keys = keys;
                    known.fetched = known.tried;
                    return Ok(());
                }
                Err(why) => {
                    tracing::warn!(issuer = self.expected.issuer, why, "no keys are fetched");
                }
            }
        }
        // What was fetched before goes on counting while the issuer is away.
        if known.fetched.is_some() {
            return Ok(());
        }
        Err(Problem::new(
            Code::Unauthorized,
            format!("the keys of {} cannot be fetched now", self.expected.issuer),
            "try again in a minute, or come with a token of the conductor",
        ))
    }

    async fn fetch(&self) -> Result<Keys, String> {
        let base = self.expected.issuer.trim_end_matches('/');
        let found: Discovery = self
            .get(&format!("{base}/.well-known/openid-configuration"))
            .await?;
        if found.issuer != self.expected.issuer {
            return Err(format!("it calls itself {:?}", found.issuer));
        }
        if !found.jwks_uri.starts_with("https://") {
            return Err("its keys are not at https://…".to_owned());
        }
        self.get(&found.jwks_uri).await
    }

    async fn get<T: DeserializeOwned>(&self, url: &str) -> Result<T, String> {
        let sent = self.client.get(url).send().await;
        let mut reply = sent.map_err(|error| error.to_string())?;
        if !reply.status().is_success() {
            return Err(format!("{url} answers {}", reply.status()));
        }
        let mut body = Vec::new();
        while let Some(bytes) = reply.chunk().await.map_err(|error| error.to_string())? {
            body.extend_from_slice(&bytes);
            if body.len() > MOST {
                return Err(format!("{url} answers with more than {MOST} bytes"));
            }
        }
        serde_json::from_slice(&body).map_err(|error| format!("{url}: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::jwt::tests::Issuer;
    use super::*;
    use crate::tls;
    use axum::routing::get;
    use serde_json::{Value, json};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};

    struct Provider {
        url: String,
        keys: Arc<Mutex<Value>>,
        fetches: Arc<AtomicUsize>,
        dir: tempfile::TempDir,
    }

    impl Provider {
        fn start(issuer: &Issuer) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let identity = tls::load_or_create(dir.path(), &[]).unwrap();
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.set_nonblocking(true).unwrap();
            let url = format!("https://{}", listener.local_addr().unwrap());
            let keys = Arc::new(Mutex::new(issuer.keys()));
            let fetches = Arc::<AtomicUsize>::default();
            let (shown, count) = (Arc::clone(&keys), Arc::clone(&fetches));
            let discovery = json!({"issuer": url, "jwks_uri": format!("{url}/keys")});
            let router = axum::Router::new()
                .route(
                    "/.well-known/openid-configuration",
                    get(move || async move { axum::Json(discovery) }),
                )
                .route(
                    "/keys",
                    get(move || async move {
                        count.fetch_add(1, Ordering::Relaxed);
                        axum::Json(shown.lock().unwrap().clone())
                    }),
                );
            let config = axum_server::tls_rustls::RustlsConfig::from_config(identity.server);
            let server = axum_server::from_tcp_rustls(listener, config).unwrap();
            tokio::spawn(server.serve(router.into_make_service()));
            Self {
                url,
                keys,
                fetches,
                dir,
            }
        }

        fn oidc(&self) -> Oidc {
            let _ = rustls::crypto::ring::default_provider().install_default();
            let config = OidcConfig {
                issuer: self.url.clone(),
                audience: "ferrite".into(),
                username_claim: "email".into(),
                groups_claim: "groups".into(),
                ca_file: Some(self.dir.path().join("ca.pem")),
            };
            Oidc::new(&config).unwrap()
        }

        fn token(&self, issuer: &Issuer, kid: &str) -> String {
            let now = clock::now().as_second();
            let claims = json!({"iss": self.url, "aud": "ferrite", "email": "a@b",
                                "groups": ["ops"], "exp": now + 300});
            issuer.sign(&json!({"alg": "ES256", "kid": kid}), &claims)
        }
    }

    #[tokio::test]
    async fn keys_are_fetched_once_and_again_for_a_new_one_but_not_for_anybody() {
        let issuer = Issuer::new();
        let provider = Provider::start(&issuer);
        let oidc = provider.oidc();
        let good = provider.token(&issuer, "e");
        for _ in 0..3 {
            let user = oidc.user(&good).await.unwrap();
            assert_eq!(
                (user.name.as_str(), user.groups),
                ("a@b", vec!["ops".to_owned()])
            );
        }
        let fetches = || provider.fetches.load(Ordering::Relaxed);
        assert_eq!(fetches(), 1);
        // Whoever sends unknown keys makes nobody fetch all the time.
        for number in 0..20 {
            let unknown = provider.token(&issuer, &format!("x{number}"));
            assert!(oidc.user(&unknown).await.is_err());
        }
        assert_eq!(fetches(), 1);
        // The issuer changes its keys.
        let next = Issuer::new();
        let text = next.keys().to_string().replace("\"e\"}", "\"e2\"}");
        let mut keys: Value = serde_json::from_str(&text).unwrap();
        keys["keys"][1]["kid"] = json!("e2");
        *provider.keys.lock().unwrap() = keys;
        tokio::time::sleep(PAUSE + Duration::from_millis(50)).await;
        let renewed = provider.token(&next, "e2");
        assert!(oidc.user(&renewed).await.is_ok());
        assert!(oidc.user(&good).await.is_err(), "the old key was withdrawn");
        assert_eq!(fetches(), 2);
    }

    #[tokio::test]
    async fn an_issuer_that_calls_itself_otherwise_is_not_believed() {
        let issuer = Issuer::new();
        let provider = Provider::start(&issuer);
        let mut oidc = provider.oidc();
        oidc.expected.issuer = format!("{}/", provider.url);
        let refused = oidc.user(&provider.token(&issuer, "e")).await.unwrap_err();
        assert_eq!(refused.code, Code::Unauthorized);
    }
}
