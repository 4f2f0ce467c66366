//! A person at the conductor's API: enrols machines of a swarm, deploys them, looks at them. Over
//! HTTP as everybody, with its own client for as many connections as are wanted.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ferrite_proto::api::Provision;
use ferrite_proto::host::{Host, HostManifest, HostSecrets, HostSpec};
use ferrite_proto::image::ImageRef;
use ferrite_proto::secret::Secret;
use futures_util::StreamExt;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{Machine, PASSWORD, Swarm, USER};

/// Somebody with a token.
#[derive(Debug, Clone)]
pub struct Operator {
    client: reqwest::Client,
    url: String,
    token: String,
}

impl Operator {
    /// Of a conductor at `url`, with the files that it made for people at its first start.
    pub fn new(url: &str, token_file: &Path, ca_file: &Path) -> Result<Self> {
        drop(rustls::crypto::ring::default_provider().install_default());
        let token = std::fs::read_to_string(token_file)
            .with_context(|| format!("reading {}", token_file.display()))?;
        let ca =
            std::fs::read(ca_file).with_context(|| format!("reading {}", ca_file.display()))?;
        let client = reqwest::Client::builder()
            .tls_certs_only(reqwest::Certificate::from_pem_bundle(&ca)?)
            .no_proxy()
            .timeout(Duration::from_mins(2))
            .build()?;
        Ok(Self {
            client,
            url: url.to_owned(),
            token: token.trim().to_owned(),
        })
    }

    /// The same person at another conductor.
    #[must_use]
    pub fn at(&self, url: &str) -> Self {
        Self {
            url: url.to_owned(),
            ..self.clone()
        }
    }

    /// A call, as it was answered.
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.client
            .request(method, format!("{}{path}", self.url))
            .bearer_auth(&self.token)
    }

    /// Sends a call that was made by hand.
    pub async fn send(&self, request: reqwest::Request) -> Result<reqwest::Response> {
        self.client
            .execute(request)
            .await
            .context("calling the conductor")
    }

    /// A call of a host's daemon, over this person's connection.
    pub fn as_daemon(&self, path: &str, key: &str) -> reqwest::RequestBuilder {
        let url = format!("{}{path}", self.url);
        self.client.post(url).bearer_auth(key)
    }

    /// A call that must be answered well.
    pub async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let mut request = self.request(method, path);
        if let Some(body) = body {
            request = request.json(body);
        }
        let context = || format!("asking {}{path}", self.url);
        let response = request.send().await.with_context(context)?;
        let status = response.status();
        let text = response.text().await.with_context(context)?;
        if !status.is_success() {
            bail!("{} {path}: {status}: {text}", self.url);
        }
        if text.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&text).with_context(context)
    }

    /// Whether the conductor answers.
    pub async fn is_served(&self) -> bool {
        self.is_served_within(Duration::from_secs(2)).await
    }

    /// Whether the conductor answers within a time.
    pub async fn is_served_within(&self, patience: Duration) -> bool {
        let request = self.request(Method::GET, "/v1/version");
        let answer = request.timeout(patience).send().await;
        answer.is_ok_and(|answer| answer.status() == StatusCode::OK)
    }

    /// Enrols a machine.
    pub async fn add(&self, swarm: &Swarm, machine: &Machine) -> Result<()> {
        self.enrol(swarm, machine, false).await
    }

    /// Enrols a machine that is only stored: nothing is done with it until somebody lets it go on.
    pub async fn add_paused(&self, swarm: &Swarm, machine: &Machine) -> Result<()> {
        self.enrol(swarm, machine, true).await
    }

    async fn enrol(&self, swarm: &Swarm, machine: &Machine, paused: bool) -> Result<()> {
        let spec: HostSpec = serde_json::from_value(json!({
            "bmc": {"address": swarm.bmc_address(machine), "username": USER},
            "boot_mac": machine.mac,
            "paused": paused,
        }))?;
        let secrets = HostSecrets {
            bmc_password: Some(Secret::new(PASSWORD.to_owned())),
            ..HostSecrets::default()
        };
        let add = HostManifest::new(machine.name.as_str(), spec, secrets);
        let body = serde_json::to_value(add)?;
        self.call(Method::POST, "/v1/hosts", Some(&body)).await?;
        Ok(())
    }

    /// Enrols machines, `at_once` calls at a time. Returns how long each call took.
    pub async fn add_all(
        &self,
        swarm: &Swarm,
        machines: &[std::sync::Arc<Machine>],
        at_once: usize,
    ) -> Result<Vec<Duration>> {
        let calls = machines.iter().map(|machine| async move {
            let started = Instant::now();
            self.add(swarm, machine).await.map(|()| started.elapsed())
        });
        let mut calls = futures_util::stream::iter(calls).buffer_unordered(at_once);
        let mut took = Vec::with_capacity(machines.len());
        while let Some(call) = calls.next().await {
            took.push(call?);
        }
        Ok(took)
    }

    /// Has machines deployed, `at_once` calls at a time.
    pub async fn provision_all(
        &self,
        machines: &[std::sync::Arc<Machine>],
        at_once: usize,
    ) -> Result<()> {
        let image: ImageRef = serde_json::from_value(json!({
            "url": "http://192.0.2.1/images/debian.raw.zst",
            "digest": format!("sha256:{}", "5a".repeat(32)),
        }))?;
        let provision = Provision {
            image,
            secrets: HostSecrets::default(),
            root_device_hints: None,
            boot_method: None,
            verify_image: None,
            join: None,
        };
        let body = &serde_json::to_value(provision)?;
        let calls = machines.iter().map(|machine| async move {
            let path = format!("/v1/hosts/{}/provision", machine.name);
            self.call(Method::POST, &path, Some(body)).await
        });
        let mut calls = futures_util::stream::iter(calls).buffer_unordered(at_once);
        while let Some(call) = calls.next().await {
            call?;
        }
        Ok(())
    }

    /// A host as it is shown.
    pub async fn host(&self, name: &str) -> Result<Host> {
        let path = format!("/v1/hosts/{name}");
        let host = self.call(Method::GET, &path, None).await?;
        serde_json::from_value(host).with_context(|| format!("reading {name}"))
    }

    /// How many hosts there are of each state, as `/metrics` counts them: to list ten thousand
    /// hosts twice a second would be most of what is measured meanwhile.
    pub async fn states(&self) -> Result<BTreeMap<String, usize>> {
        let request = self.request(Method::GET, "/metrics");
        let context = || format!("asking {}/metrics", self.url);
        let response = request.send().await.with_context(context)?;
        let response = response.error_for_status().with_context(context)?;
        Ok(states_in(&response.text().await.with_context(context)?))
    }

    /// Waits until so many hosts are in a state.
    pub async fn until_state(
        &self,
        state: &str,
        count: usize,
        patience: Duration,
    ) -> Result<Duration> {
        let started = Instant::now();
        loop {
            let states = self.states().await?;
            if states.get(state).copied().unwrap_or(0) >= count {
                return Ok(started.elapsed());
            }
            if started.elapsed() > patience {
                bail!("waited {patience:?} for {count} hosts to be {state}: {states:?}");
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}

/// Of `ferrite_hosts{state="available",health="ok"} 12`, without those of which there are none.
fn states_in(figures: &str) -> BTreeMap<String, usize> {
    let mut states = BTreeMap::new();
    for line in figures.lines() {
        let found = line.strip_prefix("ferrite_hosts{state=\"");
        let Some((state, rest)) = found.and_then(|rest| rest.split_once('"')) else {
            continue;
        };
        let count = rest.rsplit_once(' ').and_then(|(_, n)| n.parse().ok());
        if let Some(count @ 1..) = count {
            *states.entry(state.to_owned()).or_default() += count;
        }
    }
    states
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_a_state_are_summed_whatever_their_health() {
        let figures = "# TYPE ferrite_hosts gauge\n\
                       ferrite_hosts{state=\"available\",health=\"ok\"} 12\n\
                       ferrite_hosts{state=\"available\",health=\"waiting\"} 1\n\
                       ferrite_hosts{state=\"deleting\",health=\"ok\"} 0\n\
                       ferrite_hosts_in_error{code=\"x\"} 1\n";
        let states: Vec<_> = states_in(figures).into_iter().collect();
        assert_eq!(states, [("available".to_owned(), 13)]);
    }
}
