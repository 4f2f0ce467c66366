//! What a person who looks on has to bear meanwhile, and the memory that it costs.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use ferrite_tests::swarm::{Served, Usage};
use reqwest::Method;

/// What a person who looks on has to bear.
#[derive(Default)]
pub(super) struct Felt {
    took: Mutex<Vec<Duration>>,
    failed: Mutex<Vec<String>>,
}

impl Felt {
    /// Calls until it is told to stop.
    async fn look_on(&self, request: impl Fn() -> reqwest::RequestBuilder, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let started = Instant::now();
            let answer = request().timeout(Duration::from_secs(10)).send().await;
            let failure = match answer {
                Ok(answer) if answer.status().is_success() => {
                    answer.bytes().await.err().map(|error| format!("{error:?}"))
                }
                Ok(answer) => Some(answer.status().to_string()),
                Err(error) => Some(format!("{error:?}")),
            };
            match failure {
                Some(failure) => self
                    .failed
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(failure),
                None => self
                    .took
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(started.elapsed()),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// What went wrong.
    pub(super) fn failures(self) -> Vec<String> {
        self.failed
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// How many, p50 and p99.
    pub(super) fn figures(&self) -> (usize, Duration, Duration) {
        let mut took = self
            .took
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        took.sort();
        let at = |part: usize| took.get(took.len() * part / 100).copied();
        (
            took.len(),
            at(50).unwrap_or_default(),
            at(99).unwrap_or_default(),
        )
    }
}

/// Looks on while something is done: over a connection that stays, and over new ones.
pub(super) async fn felt<T>(
    served: &Served,
    state: &Path,
    done: impl Future<Output = T>,
) -> Result<(Felt, T)> {
    let (felt, stop) = (Felt::default(), AtomicBool::new(false));
    let operator = served.operator()?;
    let token = std::fs::read_to_string(state.join("admin.token"))?;
    let ca = std::fs::read(state.join("ca.pem"))?;
    let anew = reqwest::Client::builder()
        .tls_certs_only(reqwest::Certificate::from_pem_bundle(&ca)?)
        .no_proxy()
        .pool_max_idle_per_host(0)
        .build()?;
    let hosts = || operator.request(Method::GET, "/v1/hosts");
    let ready = || operator.request(Method::GET, "/readyz");
    let url = format!("{}/v1/hosts", served.url);
    let newly = || anew.get(&url).bearer_auth(token.trim());
    let done = async {
        let done = done.await;
        stop.store(true, Ordering::Relaxed);
        done
    };
    let ((), (), (), done) = tokio::join!(
        felt.look_on(hosts, &stop),
        felt.look_on(ready, &stop),
        felt.look_on(newly, &stop),
        done
    );
    Ok((felt, done))
}

/// The most memory a process has until it is told to stop.
pub(super) async fn peak(pid: u32, stop: &AtomicBool) -> Result<u64> {
    let mut most = 0;
    while !stop.load(Ordering::Relaxed) {
        most = most.max(Usage::of(pid)?.rss);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(most)
}
