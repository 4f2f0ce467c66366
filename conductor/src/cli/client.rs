//! A thin client of the conductor's API: it trusts the conductor's own CA and nobody else.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use ferrite_proto::api::ErrorBody;
use ferrite_proto::problem::{Code, Problem};
use reqwest::{Method, StatusCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::args::Connection;

const CONNECT: Duration = Duration::from_secs(10);
/// Above the longest that a reader may wait for a change.
const WHOLE: Duration = Duration::from_secs(90);

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
    token: String,
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

impl Client {
    /// By arguments, then the environment, then the file.
    pub(crate) fn open(connection: &Connection) -> anyhow::Result<Self> {
        let given = (
            connection.server.clone(),
            connection.token_file.clone(),
            connection.ca_file.clone(),
        );
        let file = if let (Some(server), Some(token_file), Some(ca_file)) = given {
            ClientFile {
                server,
                token_file,
                ca_file,
            }
        } else {
            let file = &connection.client;
            let text = read(file).context(
                "which conductor? give --server, --token-file and --ca-file, or --client with \
                 the client.toml from its state folder",
            )?;
            let file: ClientFile = toml::from_str(&text)
                .with_context(|| format!("{} is no client file", file.display()))?;
            ClientFile {
                server: connection.server.clone().unwrap_or(file.server),
                token_file: connection.token_file.clone().unwrap_or(file.token_file),
                ca_file: connection.ca_file.clone().unwrap_or(file.ca_file),
            }
        };
        Self::with(&file)
    }

    fn with(file: &ClientFile) -> anyhow::Result<Self> {
        let ca = reqwest::Certificate::from_pem(read(&file.ca_file)?.as_bytes())
            .with_context(|| format!("{} is no certificate", file.ca_file.display()))?;
        let http = reqwest::Client::builder()
            .tls_certs_only([ca])
            .https_only(true)
            .no_proxy()
            .connect_timeout(CONNECT)
            .timeout(WHOLE)
            .build()
            .context("making an HTTPS client")?;
        Ok(Self {
            http,
            server: file.server.trim_end_matches('/').to_owned(),
            token: read(&file.token_file)?.trim().to_owned(),
        })
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
        let url = format!("{}{path}", self.server);
        let mut request = self.http.request(method, &url).bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(body);
        }
        let reply = request.send().await.map_err(|error| self.silent(&error))?;
        if reply.status().is_success() {
            return Ok(reply);
        }
        let status = reply.status();
        let text = reply.bytes().await.unwrap_or_default();
        Err(refused(status, &text).into())
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
