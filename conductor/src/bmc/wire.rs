//! Redfish over HTTP: who we are, one request at a time, and what an answer means.
//!
//! It knows sessions, `ETag`s, tasks and patience; it knows no resource but the service root. Every
//! answer is bounded, and a BMC is never asked to log in more often than needed: many lock an
//! account after a few wrong passwords, and most have room for few sessions.

use std::time::Duration;

use ferrite_proto::host::BmcSpec;
use ferrite_proto::secret::Secret;
use reqwest::header::{ACCEPT_ENCODING, ETAG, HeaderMap, IF_MATCH, LOCATION, RETRY_AFTER};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::BmcError;
use super::error::Said;
use super::quirks;

const ROOT: &str = "/redfish/v1/";
const SESSIONS: &str = "/redfish/v1/SessionService/Sessions";
/// The largest answers seen (log collections) are well below.
const MAX_ANSWER: usize = 4 << 20;

/// How patient we are; tests are not.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// To connect.
    pub(super) connect: Duration,
    /// For an answer.
    pub(super) read: Duration,
    /// Between two tries.
    pub(super) pause: Duration,
    /// Tries of what may be tried again.
    pub(super) tries: u32,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            read: Duration::from_mins(1),
            pause: Duration::from_secs(3),
            tries: 4,
        }
    }
}

/// An answer with a status below 400.
#[derive(Debug)]
pub(super) struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    /// The document; null when there was none.
    pub(super) body: Value,
}

/// How requests are authorized.
#[derive(Debug)]
enum Login {
    /// Not yet tried.
    Unknown,
    /// By the token of a session.
    Session(Secret<String>),
    /// With name and password each time: the BMC has no working session service.
    Basic,
}

/// A BMC's Redfish service, and our login there.
#[derive(Debug)]
pub(super) struct Wire {
    client: reqwest::Client,
    base: String,
    username: String,
    password: Secret<String>,
    login: Mutex<Login>,
    pub(super) patience: Patience,
}

impl Wire {
    pub(super) fn new(
        client: reqwest::Client,
        base: &str,
        spec: &BmcSpec,
        password: &Secret<String>,
        patience: Patience,
    ) -> Self {
        Self {
            client,
            base: base.to_owned(),
            username: spec.username.clone(),
            password: password.clone(),
            login: Mutex::new(Login::Unknown),
            patience,
        }
    }

    /// The BMC's name in errors.
    pub(super) fn bmc(&self) -> String {
        self.base.clone()
    }

    /// The service root, which every BMC shows without a login.
    pub(super) async fn root(&self) -> Result<Value, BmcError> {
        Ok(self.get(ROOT).await?.body)
    }

    /// Reads a resource; tries again when the BMC is not itself.
    pub(super) async fn get(&self, path: &str) -> Result<Answer, BmcError> {
        let mut tried = 1;
        loop {
            let error = match self.request(&Method::GET, path, None, None).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let most = match &error {
                // Once more for a dropped packet; a BMC that is away is the lifecycle's business.
                BmcError::Unreachable { .. } => 2,
                BmcError::Status { status, said, .. }
                    if quirks::passes_by_itself(*status, said) =>
                {
                    self.patience.tries
                }
                _ => 1,
            };
            if tried >= most {
                return Err(error);
            }
            tracing::debug!(bmc = %self.base, %path, %error, tried, "asking again");
            tokio::time::sleep(self.patience.pause).await;
            tried += 1;
        }
    }

    /// Runs an action, to its end when the BMC makes a task of it. Tried again only when the BMC
    /// says that it did nothing yet.
    pub(super) async fn post(&self, path: &str, body: &Value) -> Result<Answer, BmcError> {
        let mut tried = 1;
        loop {
            match self.request(&Method::POST, path, Some(body), None).await {
                Ok(answer) => return self.finish(answer).await,
                Err(error) if is_busy(&error) && tried < self.patience.tries => {
                    tracing::debug!(bmc = %self.base, %path, %error, tried, "trying again");
                    tokio::time::sleep(self.patience.pause).await;
                    tried += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Changes a resource, with its `ETag` where it has one; see [`quirks::etags_to_try`].
    pub(super) async fn patch(&self, path: &str, body: &Value) -> Result<Answer, BmcError> {
        let current = self.get(path).await?;
        let etag = current.headers.get(ETAG).and_then(|v| v.to_str().ok());
        let mut tried = 1;
        let mut etags = quirks::etags_to_try(etag).into_iter();
        let mut etag = etags.next().flatten();
        loop {
            let sent = self
                .request(&Method::PATCH, path, Some(body), etag.as_deref())
                .await;
            match sent {
                Ok(answer) => return self.finish(answer).await,
                Err(BmcError::Status {
                    status: 412, said, ..
                }) => match etags.next() {
                    Some(next) => etag = next,
                    None => return Err(self.status("PATCH", path, 412, said)),
                },
                Err(error) if is_busy(&error) && tried < self.patience.tries => {
                    tokio::time::sleep(self.patience.pause).await;
                    tried += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// One request, logged in; once more after a new login when the session has ended.
    async fn request(
        &self,
        method: &Method,
        path: &str,
        body: Option<&Value>,
        etag: Option<&str>,
    ) -> Result<Answer, BmcError> {
        for last in [false, true] {
            let mut login = self.login.lock().await;
            if matches!(*login, Login::Unknown) {
                *login = self.log_in().await?;
            }
            let mut request = self.plain(method, path);
            let by_session = matches!(*login, Login::Session(_));
            request = match &*login {
                Login::Session(token) => request.header("X-Auth-Token", token.expose()),
                Login::Unknown | Login::Basic => {
                    request.basic_auth(&self.username, Some(self.password.expose()))
                }
            };
            drop(login);
            request = body.into_iter().fold(request, RequestBuilder::json);
            if let Some(etag) = etag {
                request = request.header(IF_MATCH, etag);
            }
            match self.send(request, method, path).await {
                Err(BmcError::Credentials { .. }) if by_session && !last => {
                    *self.login.lock().await = Login::Unknown;
                }
                other => return other,
            }
        }
        unreachable!("the second turn of the loop returns")
    }

    /// A session; without a session service, basic authorization. A refusal is final: trying the
    /// same password the other way too would only lock the account sooner.
    async fn log_in(&self) -> Result<Login, BmcError> {
        let body = json!({ "UserName": self.username, "Password": self.password.expose() });
        let request = self.plain(&Method::POST, SESSIONS).json(&body);
        match self.send(request, &Method::POST, SESSIONS).await {
            Ok(answer) => {
                let token = answer.headers.get("X-Auth-Token");
                Ok(match token.and_then(|t| t.to_str().ok()) {
                    Some(token) => Login::Session(Secret::new(token.to_owned())),
                    None => Login::Basic,
                })
            }
            // A BMC that is just starting says 5xx: no reason to do without sessions for good.
            Err(
                error @ BmcError::Status {
                    status: 500 | 502..=599,
                    ..
                },
            ) => Err(error),
            Err(error @ (BmcError::Status { .. } | BmcError::Protocol { .. })) => {
                tracing::info!(bmc = %self.base, %error, "no sessions here: basic authorization");
                Ok(Login::Basic)
            }
            Err(error) => Err(error),
        }
    }

    fn plain(&self, method: &Method, path: &str) -> RequestBuilder {
        self.client
            .request(method.clone(), format!("{}{path}", self.base))
            .header("OData-Version", "4.0")
            .header(ACCEPT_ENCODING, "identity")
    }

    async fn send(
        &self,
        request: RequestBuilder,
        method: &Method,
        path: &str,
    ) -> Result<Answer, BmcError> {
        let unreachable = |error: reqwest::Error| self.unreachable(&error);
        let mut response = request.send().await.map_err(unreachable)?;
        let (status, headers) = (response.status(), response.headers().clone());
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            if bytes.len() + chunk.len() > MAX_ANSWER {
                return Err(self.protocol(path, "the answer is longer than 4 MiB"));
            }
            bytes.extend_from_slice(&chunk);
        }
        let body = serde_json::from_slice(&bytes);
        if !status.is_success() {
            let said = Said::read(&body.unwrap_or_default());
            return Err(match status.as_u16() {
                status @ (401 | 403) => BmcError::Credentials {
                    bmc: self.bmc(),
                    username: self.username.clone(),
                    status,
                    said,
                },
                status => self.status(method_name(method), path, status, said),
            });
        }
        let body = match body {
            Ok(body) => body,
            Err(_) if *method != Method::GET => Value::Null,
            Err(error) => return Err(self.protocol(path, format!("not JSON: {error}"))),
        };
        Ok(Answer {
            status,
            headers,
            body,
        })
    }

    /// Waits for the end of a task when the answer is one (202 with its monitor).
    async fn finish(&self, mut answer: Answer) -> Result<Answer, BmcError> {
        let monitor = answer.headers.get(LOCATION).and_then(|v| v.to_str().ok());
        let Some(path) = monitor.and_then(|at| self.path_of(at)) else {
            return Ok(answer);
        };
        let mut polls = 0;
        while answer.status == StatusCode::ACCEPTED {
            if let Some(reason) = quirks::task_failed(&answer.body) {
                return Err(self.protocol(&path, reason));
            }
            polls += 1;
            if polls > 60 || quirks::task_ended(&answer.body) {
                return Ok(answer);
            }
            let asked = answer.headers.get(RETRY_AFTER);
            let asked = asked.and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
            let pause = Duration::from_secs(asked.unwrap_or(1).clamp(1, 10));
            tokio::time::sleep(pause.min(self.patience.pause)).await;
            answer = match self.get(&path).await {
                // The monitor is allowed to be gone once the task is over.
                Err(BmcError::Status {
                    status: 404 | 410, ..
                }) => return Ok(answer),
                other => other?,
            };
        }
        if let Some(reason) = quirks::task_failed(&answer.body) {
            return Err(self.protocol(&path, reason));
        }
        Ok(answer)
    }

    /// The path of a `Location` on this BMC; absolute ones of other machines are not followed.
    fn path_of(&self, location: &str) -> Option<String> {
        let path = location.strip_prefix(&self.base).unwrap_or(location);
        path.starts_with("/redfish/").then(|| path.to_owned())
    }

    pub(super) fn protocol(&self, path: &str, reason: impl Into<String>) -> BmcError {
        BmcError::Protocol {
            bmc: self.bmc(),
            path: path.to_owned(),
            reason: reason.into(),
        }
    }

    fn status(&self, method: &'static str, path: &str, status: u16, said: Said) -> BmcError {
        BmcError::Status {
            bmc: self.bmc(),
            method,
            path: path.to_owned(),
            status,
            said,
        }
    }

    fn unreachable(&self, error: &reqwest::Error) -> BmcError {
        let bmc = self.bmc();
        match certificate_error(error) {
            Some(reason) => BmcError::Certificate { bmc, reason },
            None if error.is_timeout() => BmcError::Unreachable {
                bmc,
                reason: format!("no answer within {} s", self.waited(error)),
            },
            None => BmcError::Unreachable {
                bmc,
                reason: deepest(error),
            },
        }
    }

    fn waited(&self, error: &reqwest::Error) -> u64 {
        if error.is_connect() {
            self.patience.connect.as_secs()
        } else {
            self.patience.read.as_secs()
        }
    }
}

fn is_busy(error: &BmcError) -> bool {
    matches!(error, BmcError::Status { status, said, .. } if quirks::is_busy(*status, said))
}

fn method_name(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "POST" => "POST",
        _ => "PATCH",
    }
}

pub(super) fn deepest(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// What rustls has against the certificate, if that is what an error is about.
fn certificate_error(error: &reqwest::Error) -> Option<String> {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        let inner = error.downcast_ref::<std::io::Error>();
        let inner = inner.and_then(std::io::Error::get_ref);
        let tls = inner.and_then(|e| e.downcast_ref::<rustls::Error>());
        if let Some(rustls::Error::InvalidCertificate(reason)) = tls {
            return Some(reason.to_string());
        }
        next = error.source();
    }
    None
}
