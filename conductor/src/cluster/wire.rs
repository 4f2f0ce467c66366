//! One API server over HTTPS: a bounded request at a time, and what an answer means.
//!
//! It trusts the CA that it is given and no other, follows nobody elsewhere, and connects only to
//! addresses that the policy allows, after names were resolved. Not here: what is asked.

use std::error::Error as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ferrite_proto::address::Policy;
use ferrite_proto::problem::{Code, Problem};
use jiff::Timestamp;
use jiff::fmt::rfc2822;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{CONTENT_TYPE, DATE};
use reqwest::tls::TlsInfo;
use reqwest::{Method, StatusCode};
use serde_json::Value;

use super::kubeconfig::Login;

const CONNECT: Duration = Duration::from_secs(5);
const WHOLE: Duration = Duration::from_secs(15);
/// A page of 500 pods is well below.
const MAX_ANSWER: usize = 16 << 20;
/// Of a server's words, in ours.
const MAX_WORDS: usize = 400;

/// An API server, and who we are there.
#[derive(Debug, Clone)]
pub(crate) struct Wire {
    http: reqwest::Client,
    server: String,
    token: Option<ferrite_proto::secret::Secret<String>>,
    /// Its name in errors.
    cluster: String,
    /// Answers in the server's place.
    #[cfg(test)]
    simulated: Option<Arc<dyn Simulated>>,
}

/// An answer on its way: a status and an object, or none.
#[cfg(test)]
pub(crate) type Answering<'a> =
    std::pin::Pin<Box<dyn Future<Output = Option<(u16, Value)>> + Send + 'a>>;

/// An API server of the simulation.
#[cfg(test)]
pub(crate) trait Simulated: std::fmt::Debug + Send + Sync {
    /// Answers a call of somebody with this token; or does not.
    fn answer<'a>(
        &'a self,
        method: &'a Method,
        path: &'a str,
        token: Option<&'a str>,
        body: Option<&'a Value>,
    ) -> Answering<'a>;
}

/// An answer that whoever asked may want to look at: done, not there, a conflict, or not now.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    /// The object; null when there was none.
    pub(crate) body: Value,
    /// What the server's clock said.
    pub(crate) at: Option<Timestamp>,
    /// The server's certificate.
    pub(crate) certificate: Option<Vec<u8>>,
}

impl Answer {
    /// Whether it was done.
    pub(crate) fn is_done(&self) -> bool {
        self.status.is_success()
    }

    /// What a refusal says.
    pub(crate) fn words(&self) -> String {
        short(self.body["message"].as_str().unwrap_or_default())
    }
}

/// Resolves names, and gives only addresses that may be called.
#[derive(Debug)]
struct Guarded(Policy);

impl Resolve for Guarded {
    fn resolve(&self, name: Name) -> Resolving {
        let policy = self.0;
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let mut allowed = Vec::<SocketAddr>::new();
            let mut refused = None;
            for address in found {
                match policy.check(address.ip()) {
                    Ok(()) => allowed.push(address),
                    Err(error) => refused = Some(error),
                }
            }
            match refused {
                Some(refused) if allowed.is_empty() => Err(refused.into()),
                _ => Ok(Box::new(allowed.into_iter()) as Addrs),
            }
        })
    }
}

impl Wire {
    /// To a server that one of the authorities vouches for.
    pub(crate) fn new(
        cluster: &str,
        server: &str,
        ca: &str,
        login: &Login,
        policy: Policy,
    ) -> Result<Self, Problem> {
        let unusable = |what: String| {
            let text = format!("cluster {cluster}: {what}");
            Problem::new(Code::ClusterCredentials, text, super::GIVE_ANEW)
        };
        let host = reqwest::Url::parse(server).ok();
        let host = host.as_ref().and_then(reqwest::Url::host_str);
        let host = host.ok_or_else(|| unusable("its server is no URL".to_owned()))?;
        policy.check_host(host).map_err(|refused| {
            let text = format!(
                "cluster {cluster}: {}",
                refused
                    .to_string()
                    .replace("which is never fetched from", "which is never called",)
            );
            let advice = "give an address of another machine; `clusters.allow_loopback` in the \
                          configuration lets clusters run on the conductor's own";
            Problem::new(Code::ClusterCredentials, text, advice)
        })?;
        // Fails when it is installed already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let authorities = reqwest::Certificate::from_pem_bundle(ca.as_bytes())
            .map_err(|_| unusable("its CA cannot be used".to_owned()))?;
        let mut http = reqwest::Client::builder()
            .tls_certs_only(authorities)
            .tls_info(true)
            .https_only(true)
            .no_proxy()
            .dns_resolver(Arc::new(Guarded(policy)))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT)
            .timeout(WHOLE);
        let mut token = None;
        match login {
            Login::Nobody => {}
            Login::Token(given) => token = Some(given.clone()),
            Login::Certificate(pem) => {
                let identity = reqwest::Identity::from_pem(pem.expose().as_bytes());
                let wrong = "its client certificate and key do not belong together";
                http = http.identity(identity.map_err(|_| unusable(wrong.to_owned()))?);
            }
        }
        let http = http.build();
        let http = http.map_err(|_| unusable("its certificates cannot be used".to_owned()))?;
        Ok(Self {
            http,
            server: server.trim_end_matches('/').to_owned(),
            token,
            cluster: cluster.to_owned(),
            #[cfg(test)]
            simulated: None,
        })
    }

    /// To one of the simulation.
    #[cfg(test)]
    pub(crate) fn simulated(cluster: &str, server: &str, api: &Arc<dyn Simulated>) -> Self {
        static HTTP: std::sync::LazyLock<reqwest::Client> = std::sync::LazyLock::new(|| {
            let _ = rustls::crypto::ring::default_provider().install_default();
            reqwest::Client::new()
        });
        Self {
            http: HTTP.clone(),
            server: server.to_owned(),
            token: None,
            cluster: cluster.to_owned(),
            simulated: Some(Arc::clone(api)),
        }
    }

    /// The same server, asked by somebody else. A client certificate stays.
    pub(crate) fn with_token(&self, token: &str) -> Self {
        let mut other = self.clone();
        other.token = Some(ferrite_proto::secret::Secret::new(token.to_owned()));
        other
    }

    /// Reads an object; none when it is not there.
    pub(crate) async fn get(&self, path: &str) -> Result<Option<Value>, Problem> {
        let answer = self.call(&Method::GET, path, None).await?;
        match answer.status {
            StatusCode::NOT_FOUND => Ok(None),
            _ => self.done(&Method::GET, path, answer).map(Some),
        }
    }

    /// Reads a list whole, page by page.
    pub(crate) async fn list(&self, path: &str, query: &str) -> Result<Vec<Value>, Problem> {
        const PAGES: usize = 100;
        let mut items = Vec::new();
        let mut next = String::new();
        for _ in 0..PAGES {
            let path = format!("{path}?limit=500&{query}{next}");
            let mut page = self.get(&path).await?.unwrap_or_default();
            if let Value::Array(more) = page["items"].take() {
                items.extend(more);
            }
            match page["metadata"]["continue"].as_str() {
                Some(place) if !place.is_empty() => next = format!("&continue={}", escaped(place)),
                _ => return Ok(items),
            }
        }
        Err(self.odd(path, "a list without an end"))
    }

    /// Makes an object.
    pub(crate) async fn create(&self, path: &str, body: &Value) -> Result<Value, Problem> {
        let answer = self.call(&Method::POST, path, Some(body)).await?;
        self.done(&Method::POST, path, answer)
    }

    /// Removes an object; it is well if it is not there.
    pub(crate) async fn remove(&self, path: &str, body: Option<&Value>) -> Result<(), Problem> {
        let answer = self.call(&Method::DELETE, path, body).await?;
        match answer.status {
            StatusCode::NOT_FOUND => Ok(()),
            _ => self.done(&Method::DELETE, path, answer).map(|_| ()),
        }
    }

    /// What was done, or that it was not.
    pub(crate) fn done(
        &self,
        method: &Method,
        path: &str,
        answer: Answer,
    ) -> Result<Value, Problem> {
        if answer.is_done() {
            return Ok(answer.body);
        }
        let (status, words) = (answer.status, answer.words());
        Err(self.odd(path, &format!("{method}: {status} {words}")))
    }

    async fn exchange(
        &self,
        method: &Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer, Problem> {
        #[cfg(test)]
        if let Some(api) = &self.simulated {
            let token = self.token.as_ref().map(|token| token.expose().as_str());
            let answer = api.answer(method, path, token, body).await;
            let (status, body) = answer.ok_or_else(|| {
                let text = format!("{} does not answer: simulated", self.who());
                Problem::new(Code::ClusterUnreachable, text, "wait")
            })?;
            return Ok(Answer {
                status: StatusCode::from_u16(status).expect("a status of our own"),
                body,
                at: None,
                certificate: None,
            });
        }
        let url = format!("{}{path}", self.server);
        let mut request = self.http.request(method.clone(), url);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token.expose());
        }
        if let Some(body) = body {
            let kind = match *method {
                Method::PATCH => "application/merge-patch+json",
                _ => "application/json",
            };
            request = request.header(CONTENT_TYPE, kind).body(body.to_string());
        }
        let reply = request.send().await.map_err(|error| self.silent(&error))?;
        self.read(path, reply).await
    }

    /// One request. What only a person or time can cure is a problem; the rest is an answer.
    pub(crate) async fn call(
        &self,
        method: &Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer, Problem> {
        let answer = self.exchange(method, path, body).await?;
        match answer.status {
            StatusCode::UNAUTHORIZED => Err(self.refused()),
            StatusCode::FORBIDDEN => Err(self.forbidden(&answer)),
            status if status.is_server_error() => Err(Problem::new(
                Code::ClusterUnreachable,
                format!("{}: {path}: {status} {}", self.who(), answer.words()),
                "look at the API server's log; it is asked again",
            )),
            _ => Ok(answer),
        }
    }

    async fn read(&self, path: &str, mut reply: reqwest::Response) -> Result<Answer, Problem> {
        let date = reply.headers().get(DATE);
        let date = date.and_then(|date| date.to_str().ok());
        let at = date.and_then(|date| rfc2822::DateTimeParser::new().parse_timestamp(date).ok());
        let certificate = reply.extensions().get::<TlsInfo>();
        let certificate = certificate.and_then(TlsInfo::peer_certificate);
        let certificate = certificate.map(<[u8]>::to_vec);
        let status = reply.status();
        let mut bytes = Vec::new();
        while let Some(piece) = reply.chunk().await.map_err(|error| self.silent(&error))? {
            bytes.extend_from_slice(&piece);
            if bytes.len() > MAX_ANSWER {
                return Err(self.odd(path, "more than 16 MiB"));
            }
        }
        let body = match serde_json::from_slice(&bytes) {
            Ok(body) => body,
            Err(_) if bytes.is_empty() || !status.is_success() || path == "/readyz" => Value::Null,
            Err(_) => return Err(self.odd(path, "what is no JSON")),
        };
        Ok(Answer {
            status,
            body,
            at,
            certificate,
        })
    }

    fn who(&self) -> String {
        format!("cluster {} at {}", self.cluster, self.server)
    }

    fn refused(&self) -> Problem {
        let text = format!("{} does not know us: 401 Unauthorized", self.who());
        let advice = "its token or client certificate has expired or was revoked, or its CA was \
                      rotated: give a new kubeconfig with `ferrite cluster set-credentials`; it \
                      is tried again";
        Problem::new(Code::ClusterCredentialsRefused, text, advice)
    }

    fn forbidden(&self, answer: &Answer) -> Problem {
        let text = format!("{}: 403 {}", self.who(), answer.words());
        let advice = "apply what `ferrite cluster rbac` prints; it is tried again";
        Problem::new(Code::ClusterForbidden, text, advice)
    }

    fn odd(&self, path: &str, what: &str) -> Problem {
        let text = format!("{} answered {path} with {what}", self.who());
        let advice = "look whether an API server is at that address; it is asked again";
        Problem::new(Code::ClusterProtocol, text, advice)
    }

    fn silent(&self, error: &reqwest::Error) -> Problem {
        let chain = chain(error);
        if let Some(what) = certificate_error(error) {
            return Problem::new(
                Code::ClusterCertificate,
                format!("{}: its certificate does not hold: {what}", self.who()),
                "compare the server's certificate with the cluster's CA and its name with the \
                 endpoint (certSANs), and the clocks of both; it is asked again",
            );
        }
        Problem::new(
            Code::ClusterUnreachable,
            format!("{} does not answer: {chain}", self.who()),
            "look at the API server, its load balancer and the firewalls between; it is asked \
             again",
        )
    }
}

/// The words of an error and of what it comes from, without the URL.
fn chain(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "it took too long".to_owned();
    }
    let mut last = String::new();
    let mut source = error.source();
    while let Some(deeper) = source {
        last = deeper.to_string();
        source = deeper.source();
    }
    if last.is_empty() {
        last = error.to_string();
    }
    short(&last)
}

/// What is wrong with the server's certificate, if that is why. An I/O error hides what it holds
/// from `source`, and may hold another.
fn certificate_error(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    if let Some(rustls::Error::InvalidCertificate(why)) = error.downcast_ref() {
        return Some(short(&why.to_string()));
    }
    let held = error.downcast_ref::<std::io::Error>();
    if let Some(held) = held.and_then(std::io::Error::get_ref) {
        return certificate_error(held);
    }
    certificate_error(error.source()?)
}

/// A stranger's words, as they may stand in ours.
pub(super) fn short(words: &str) -> String {
    let shown = words.chars().filter(|c| !c.is_control());
    shown.take(MAX_WORDS).collect()
}

/// As part of a path or a query.
pub(super) fn escaped(text: &str) -> String {
    crate::cli::kind::escaped(text)
}
