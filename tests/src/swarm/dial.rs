//! How machines of a swarm call a conductor: the agent's words and its reading of answers, over an
//! asynchronous client, because ten thousand blocking ones do not fit into a process.
//!
//! Each machine has connections of its own, as it would have in a rack.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use ferrite_agent::protocol::{CallError, pinned, read_reply};
use ferrite_proto::boot::CaPin;
use ferrite_proto::secret::Secret;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest wait for the connection itself, as in the agent.
const CONNECT: Duration = Duration::from_secs(10);

/// What all dials share: the TLS settings of each CA.
#[derive(Debug, Default)]
pub(super) struct Exchange {
    settings: Mutex<HashMap<[u8; 32], rustls::ClientConfig>>,
}

impl Exchange {
    /// A client of a conductor at `url`, or at one of `others` when that does not answer. With
    /// several, the machine's number says which is tried first.
    pub(super) fn dial(
        &self,
        number: u32,
        url: &str,
        others: &[String],
        pin: CaPin,
    ) -> Result<Dial> {
        let mut settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        let tls = match settings.get(&pin.0) {
            Some(tls) => tls.clone(),
            None => settings.entry(pin.0).or_insert(pinned(pin)?).clone(),
        };
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .https_only(true)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .pool_max_idle_per_host(1)
            .connect_timeout(CONNECT)
            .build()
            .context("making a client")?;
        let first = url.trim_end_matches('/').to_owned();
        let others = others.iter().filter(|other| **other != first).cloned();
        let urls: Arc<[String]> = std::iter::once(first.clone()).chain(others).collect();
        Ok(Dial {
            client,
            at: usize::try_from(number)? % urls.len(),
            urls,
        })
    }
}

/// A machine's client.
#[derive(Debug)]
pub(super) struct Dial {
    client: reqwest::Client,
    urls: Arc<[String]>,
    at: usize,
}

impl Dial {
    /// Posts JSON and reads JSON. A conductor that fails is left for the next of the list.
    pub(super) async fn call<Q: Serialize + Sync, R: DeserializeOwned>(
        &mut self,
        path: &str,
        token: Option<&Secret<String>>,
        body: &Q,
        patience: Duration,
    ) -> Result<R, CallError> {
        let answer = self.post(path, token, body, patience).await;
        if matches!(
            &answer,
            Err(CallError::Unreachable { .. } | CallError::Status { status: 500.., .. })
        ) {
            self.at = (self.at + 1) % self.urls.len();
        }
        answer
    }

    async fn post<Q: Serialize + Sync, R: DeserializeOwned>(
        &self,
        path: &str,
        token: Option<&Secret<String>>,
        body: &Q,
        patience: Duration,
    ) -> Result<R, CallError> {
        let url = &self.urls[self.at];
        let malformed = |error: serde_json::Error| CallError::Malformed {
            url: url.clone(),
            why: error.to_string(),
        };
        let unreachable = |error: reqwest::Error| CallError::Unreachable {
            url: url.clone(),
            why: format!("{:#}", anyhow::Error::from(error)),
        };
        let mut request = self
            .client
            .post(format!("{url}{path}"))
            .timeout(patience)
            .header(CONTENT_TYPE, "application/json")
            .body(serde_json::to_vec(body).map_err(malformed)?);
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, format!("Bearer {}", token.expose()));
        }
        let response = request.send().await.map_err(unreachable)?;
        let status = response.status().as_u16();
        let bytes = response.bytes().await.map_err(unreachable)?;
        let bytes = read_reply(url, status, bytes.into())?;
        serde_json::from_slice(&bytes).map_err(malformed)
    }
}
