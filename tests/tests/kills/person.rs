//! A person, or their tool, who asks until it is taken: whatever was lost with a conductor that
//! died is looked for before it is asked again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ferrite_proto::api::{EventList, HostEvent};
use ferrite_proto::host::Host;
use ferrite_tests::swarm::Operator;
use jiff::Timestamp;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::Value;

/// How long anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);
/// Between looks.
const LOOK: Duration = Duration::from_millis(30);

/// An answer: its status and its JSON.
pub(crate) type Answer = (StatusCode, Value);

/// Somebody at a conductor that dies now and then.
#[derive(Debug, Clone)]
pub(crate) struct Person {
    operator: Operator,
}

/// What somebody asks of a host.
pub(crate) struct Wish<'a> {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) body: Option<&'a Value>,
    /// The host.
    pub(crate) host: &'a str,
    /// Kind and beginning of the line in the host's log that says it was taken.
    pub(crate) mark: (&'a str, &'a str),
}

impl Person {
    pub(crate) fn new(operator: Operator) -> Self {
        Self { operator }
    }

    /// One call; none when it came to no answer.
    pub(crate) async fn call(
        &self,
        method: &Method,
        path: &str,
        body: Option<&Value>,
    ) -> Option<Answer> {
        let request = self.operator.request(method.clone(), path);
        Self::send(request, body).await
    }

    async fn send(mut request: RequestBuilder, body: Option<&Value>) -> Option<Answer> {
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.timeout(Duration::from_secs(10)).send().await.ok()?;
        let status = answer.status();
        let text = answer.text().await.ok()?;
        Some((status, serde_json::from_str(&text).unwrap_or(Value::Null)))
    }

    /// The same, until it is answered, and not by a failure of the conductor's own.
    pub(crate) async fn insist(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer> {
        let call = || self.operator.request(method.clone(), path);
        insist(call, &format!("{method} {path}"), body).await
    }

    /// The same for a `POST` with an `Idempotency-Key`.
    pub(crate) async fn insist_with_key(
        &self,
        path: &str,
        key: &str,
        body: &Value,
    ) -> Result<Answer> {
        let call = || {
            let request = self.operator.request(Method::POST, path);
            request.header("idempotency-key", key)
        };
        insist(call, path, Some(body)).await
    }

    /// Gives a file, once. Whether it was taken shows elsewhere.
    pub(crate) async fn give(&self, path: &str, file: &'static str) {
        let request = self.operator.request(Method::PUT, path).body(file);
        let _ = request.timeout(Duration::from_secs(10)).send().await;
    }

    /// What a path shows; none when there is no such thing.
    pub(crate) async fn get(&self, path: &str) -> Result<Option<Value>> {
        let (status, json) = self.insist(Method::GET, path, None).await?;
        if status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        ensure!(status.is_success(), "GET {path}: {status}: {json}");
        Ok(Some(json))
    }

    /// A host, if it is there.
    pub(crate) async fn host(&self, name: &str) -> Result<Option<Host>> {
        let found = self.get(&format!("/v1/hosts/{name}")).await?;
        let read = |json| serde_json::from_value(json).context("reading a host");
        found.map(read).transpose()
    }

    /// What was told of a host since then.
    pub(crate) async fn events(&self, name: &str, since: Timestamp) -> Result<Vec<HostEvent>> {
        let path = format!("/v1/hosts/{name}/events?limit=400");
        let Some(json) = self.get(&path).await? else {
            return Ok(Vec::new());
        };
        let mut all: EventList = serde_json::from_value(json)?;
        all.events.retain(|event| event.at >= since);
        Ok(all.events)
    }

    /// Asks until it is taken, and sees to it that it is taken once.
    pub(crate) async fn ask(&self, wish: Wish<'_>) -> Result<()> {
        let (begun, started) = (Timestamp::now(), Instant::now());
        loop {
            let answer = self.call(&wish.method, &wish.path, wish.body).await;
            let taken = self.marks(&wish, begun).await?;
            ensure!(taken <= 1, "{}: {:?} {taken} times", wish.path, wish.mark);
            match answer {
                Some((status, _)) if status.is_success() => {
                    ensure!(taken == 1, "{} was acknowledged and is lost", wish.path);
                    return Ok(());
                }
                Some(_) | None if taken == 1 => return Ok(()),
                Some((status, json)) if !status.is_server_error() => {
                    bail!("{}: {status}: {json}", wish.path)
                }
                Some(_) | None => ensure!(
                    started.elapsed() < PATIENCE,
                    "{} is not taken: {answer:?}",
                    wish.path
                ),
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn marks(&self, wish: &Wish<'_>, since: Timestamp) -> Result<usize> {
        let (kind, text) = wish.mark;
        let events = self.events(wish.host, since).await?;
        let told = events
            .iter()
            .filter(|event| event.kind == kind && event.text.starts_with(text));
        Ok(told.count())
    }

    /// Waits until a host is as wanted.
    pub(crate) async fn until(
        &self,
        name: &str,
        what: &str,
        is_so: impl Fn(&Host) -> bool,
    ) -> Result<()> {
        let started = Instant::now();
        loop {
            let host = self.host(name).await?;
            if host.as_ref().is_some_and(&is_so) {
                return Ok(());
            }
            ensure!(
                started.elapsed() < PATIENCE,
                "{name} is not {what} after {PATIENCE:?}: {}",
                self.explained(name).await
            );
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn explained(&self, name: &str) -> String {
        let path = format!("/v1/hosts/{name}");
        let (host, events) = tokio::join!(
            self.call(&Method::GET, &path, None),
            self.events(name, Timestamp::UNIX_EPOCH)
        );
        let status = host.map(|(_, host)| host["status"].to_string());
        let mut events = events.unwrap_or_default();
        let last = events.split_off(events.len().saturating_sub(15));
        let last: Vec<_> = last
            .iter()
            .map(|e| format!("\n  {}: {}", e.kind, e.text))
            .collect();
        format!("{}{}", status.unwrap_or_default(), last.concat())
    }
}

async fn insist(
    call: impl Fn() -> RequestBuilder,
    what: &str,
    body: Option<&Value>,
) -> Result<Answer> {
    let started = Instant::now();
    loop {
        match Person::send(call(), body).await {
            Some((status, json)) if !status.is_server_error() => return Ok((status, json)),
            answer => ensure!(
                started.elapsed() < PATIENCE,
                "{what} is not answered: {answer:?}"
            ),
        }
        tokio::time::sleep(LOOK).await;
    }
}
