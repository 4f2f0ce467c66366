//! Calls of an API server, and the CA that vouches for it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reqwest::{Certificate, Client, Identity, RequestBuilder};
use serde_json::Value;

/// How long a call may take.
pub(crate) const CALL: Duration = Duration::from_secs(10);

/// A CA that was pinned.
#[derive(Debug, Clone)]
pub struct Authority {
    /// Its certificate.
    pub pem: Vec<u8>,
}

impl Authority {
    /// A client that trusts this CA alone; with a certificate and its key (PEM) it shows them.
    pub fn client(&self, identity: Option<&[u8]>) -> Result<Client> {
        let ca = Certificate::from_pem(&self.pem).context("reading the cluster's CA")?;
        let mut builder = Client::builder().tls_certs_only([ca]).timeout(CALL);
        if let Some(pem) = identity {
            builder = builder.identity(Identity::from_pem(pem)?);
        }
        Ok(builder.build()?)
    }
}

/// `GET`, by a token or by what the client shows. A refusal is told in the server's words.
pub(crate) async fn get(client: &Client, url: &str, token: Option<&str>) -> Result<Value> {
    send(client.get(url), token).await
}

pub(crate) async fn post(
    client: &Client,
    url: &str,
    token: Option<&str>,
    body: &Value,
) -> Result<Value> {
    send(client.post(url).json(body), token).await
}

pub(crate) async fn put(client: &Client, url: &str, body: &Value) -> Result<Value> {
    send(client.put(url).json(body), None).await
}

/// A merge patch.
pub(crate) async fn patch(client: &Client, url: &str, body: &Value) -> Result<Value> {
    let kind = "application/merge-patch+json";
    let request = client.patch(url).header("content-type", kind).json(body);
    send(request, None).await
}

async fn send(mut request: RequestBuilder, token: Option<&str>) -> Result<Value> {
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    let answer = request.send().await?;
    let status = answer.status();
    let body: Value = answer.json().await.unwrap_or_default();
    let message = body["message"].as_str().unwrap_or("no message");
    ensure!(status.is_success(), "{message}");
    Ok(body)
}
