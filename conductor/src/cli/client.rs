//! A thin client of the conductor's API: it trusts the conductor's own CA and nobody else.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use ferrite_proto::api::ErrorBody;
use ferrite_proto::problem::{Code, Problem};
use reqwest::{Method, StatusCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::args::Connection;
use super::contexts::{self, Place};

const CONNECT: Duration = Duration::from_secs(10);
/// Above the longest that a reader may wait for a change.
const WHOLE: Duration = Duration::from_secs(90);
/// Bytes of a file in memory, while it is given.
const FILE_BUFFER: usize = 256 << 10;
/// Of an answer that goes on.
const FOREVER: Duration = Duration::from_hours(24 * 365);
/// In every answer: the conductor's version.
pub(crate) const VERSION_HEADER: &str = "ferrite-version";

/// What `ferrite serve` writes for people on the same machine.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClientFile {
    /// `https://host:port`.
    pub(crate) server: String,
    /// The operators' token.
    pub(crate) token_file: PathBuf,
    /// The conductor's CA.
    pub(crate) ca_file: PathBuf,
}

/// A connection to a conductor.
#[derive(Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    server: String,
    token: Option<String>,
    project: Option<String>,
    skew_told: AtomicBool,
}

fn certificate(cert: &Path, key: &Path) -> anyhow::Result<reqwest::Identity> {
    let pem = format!("{}\n{}", read(cert)?, read(key)?);
    reqwest::Identity::from_pem(pem.as_bytes()).with_context(|| {
        let (cert, key) = (cert.display(), key.display());
        format!("{cert} and {key} are no certificate with its key")
    })
}

/// What is said when the minor versions differ.
fn skew(ours: &str, theirs: &str) -> Option<String> {
    let minor = |version: &str| {
        version
            .split('.')
            .take(2)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    (minor(ours) != minor(theirs)).then(|| {
        let theirs: String = theirs
            .chars()
            .take(40)
            .filter(|c| !c.is_control())
            .collect();
        format!(
            "this is ferrite {ours}, the conductor is {theirs}: what is new in one of them may be \
             refused by the other"
        )
    })
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

impl Client {
    /// To the conductor that the arguments, the environment or a file name.
    pub(crate) fn open(connection: &Connection) -> anyhow::Result<Self> {
        Self::to(contexts::resolve(connection)?)
    }

    fn to(place: Place) -> anyhow::Result<Self> {
        // `resolve` gives whole places only.
        let ca_file = place.ca_file.unwrap_or_default();
        let ca = reqwest::Certificate::from_pem(read(&ca_file)?.as_bytes())
            .with_context(|| format!("{} is no certificate", ca_file.display()))?;
        let mut http = reqwest::Client::builder()
            .tls_certs_only([ca])
            .https_only(true)
            .no_proxy()
            .connect_timeout(CONNECT);
        if let (Some(cert), Some(key)) = (&place.cert_file, &place.key_file) {
            http = http.identity(certificate(cert, key)?);
        }
        let token = place.token_file.as_deref().map(read).transpose()?;
        Ok(Self {
            http: http.build().context("making an HTTPS client")?,
            server: place
                .server
                .unwrap_or_default()
                .trim_end_matches('/')
                .to_owned(),
            token: token.map(|token| token.trim().to_owned()),
            project: place.project,
            skew_told: AtomicBool::new(false),
        })
    }

    /// The project that was chosen.
    pub(crate) fn project(&self) -> Option<&str> {
        self.project.as_deref()
    }

    /// A call with its status: 201 tells that something is new.
    pub(crate) async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<(StatusCode, Value)> {
        let reply = self.call(method, path, body).await?;
        let status = reply.status();
        if reply.content_length() == Some(0) {
            return Ok((status, Value::Null));
        }
        Ok((status, self.read(path, reply).await?))
    }

    /// A call whose answer goes on; it starts after `last`, the last event that was read.
    pub(crate) async fn stream(
        &self,
        path: &str,
        last: Option<&str>,
    ) -> anyhow::Result<reqwest::Response> {
        let mut request = self.request(Method::GET, path).timeout(FOREVER);
        request = request.header("Accept", "text/event-stream");
        if let Some(last) = last {
            request = request.header("Last-Event-ID", last);
        }
        self.answered(request).await
    }

    /// A call without a body.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let reply = self.call(Method::GET, path, None::<&()>).await?;
        self.read(path, reply).await
    }

    /// A call with a body.
    pub(crate) async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<T> {
        let reply = self.call(method, path, Some(body)).await?;
        self.read(path, reply).await
    }

    /// Gives a file, as long as that takes.
    pub(crate) async fn give<T: DeserializeOwned>(
        &self,
        path: &str,
        file: tokio::fs::File,
        bytes: u64,
    ) -> anyhow::Result<T> {
        let parts = tokio_util::io::ReaderStream::with_capacity(file, FILE_BUFFER);
        let request = self
            .request(Method::PUT, path)
            .timeout(FOREVER)
            .header("Content-Type", "application/octet-stream")
            .header("Content-Length", bytes)
            .body(reqwest::Body::wrap_stream(parts));
        let reply = self.answered(request).await?;
        self.read(path, reply).await
    }

    /// A call whose answer has no body.
    pub(crate) async fn order(&self, method: Method, path: &str) -> anyhow::Result<()> {
        self.call(method, path, None::<&()>).await.map(|_| ())
    }

    async fn read<T: DeserializeOwned>(
        &self,
        path: &str,
        reply: reqwest::Response,
    ) -> anyhow::Result<T> {
        let body = reply.bytes().await;
        let body = body.map_err(|error| self.silent(&error))?;
        serde_json::from_slice(&body)
            .with_context(|| format!("{} answered {path} with something else", self.server))
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> anyhow::Result<reqwest::Response> {
        let mut request = self.request(method, path).timeout(WHOLE);
        if let Some(body) = body {
            request = request.json(body);
        }
        self.answered(request).await
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.server));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    async fn answered(
        &self,
        request: reqwest::RequestBuilder,
    ) -> anyhow::Result<reqwest::Response> {
        let reply = request.send().await.map_err(|error| self.silent(&error))?;
        self.compare_versions(&reply);
        if reply.status().is_success() {
            return Ok(reply);
        }
        let status = reply.status();
        let text = reply.bytes().await.unwrap_or_default();
        Err(refused(status, &text).into())
    }

    /// Another version understands most, but perhaps not all: that is said, once.
    fn compare_versions(&self, reply: &reqwest::Response) {
        let theirs = reply.headers().get(VERSION_HEADER);
        let Some(theirs) = theirs.and_then(|version| version.to_str().ok()) else {
            return;
        };
        if let Some(warning) = skew(env!("CARGO_PKG_VERSION"), theirs)
            && !self.skew_told.swap(true, Ordering::Relaxed)
        {
            let _ = writeln!(std::io::stderr().lock(), "warning: {warning}");
        }
    }

    fn silent(&self, error: &reqwest::Error) -> Silent {
        let mut why = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(deeper) = source {
            why = format!("{why}: {deeper}");
            source = deeper.source();
        }
        Silent {
            server: self.server.clone(),
            why,
        }
    }
}

/// Nobody answered, or not to the end.
#[derive(Debug, thiserror::Error)]
#[error("the conductor at {server} does not answer: {why}")]
pub(crate) struct Silent {
    server: String,
    why: String,
}

impl Silent {
    /// What a person can do.
    pub(crate) const ADVICE: &str =
        "is `ferrite serve` running there, and is --ca-file its ca.pem?";
}

fn refused(status: StatusCode, body: &[u8]) -> Problem {
    match serde_json::from_slice::<ErrorBody>(body) {
        Ok(body) => Problem::new(body.code, body.detail, body.advice.unwrap_or_default()),
        Err(_) => Problem::new(
            Code::Internal,
            format!("the conductor answered {status} without saying why"),
            "look at its log",
        ),
    }
}

/// Whether an error is that there is no such host.
pub(crate) fn is_gone(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<Problem>()
        .is_some_and(|problem| problem.code == Code::HostNotFound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_minor_version_is_told() {
        assert_eq!(skew("0.1.0", "0.1.7"), None);
        let told = skew("0.1.0", "0.2.0\u{1b}[31m").unwrap();
        assert!(told.contains("the conductor is 0.2.0[31m:"), "{told}");
    }
}
