//! A receiver of webhooks. It is told everything at least once, in order but for what is repeated.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;

use crate::person::PATIENCE;

type Told = Arc<Mutex<Vec<u64>>>;

/// The receiver.
pub(crate) struct Hook {
    pub(crate) url: String,
    told: Told,
}

impl Hook {
    pub(crate) async fn start() -> Result<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/hook", listener.local_addr()?);
        let told = Told::default();
        let router = axum::Router::new()
            .route("/hook", post(take))
            .with_state(Arc::clone(&told));
        // It ends with the test's runtime.
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Self { url, told })
    }

    fn told(&self) -> Vec<u64> {
        let told = self.told.lock();
        told.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until nothing more comes, then looks at what came: a repeat begins where a cursor
    /// was stored, and goes on from there without a gap.
    pub(crate) async fn until_quiet(&self) -> Result<()> {
        let started = Instant::now();
        let mut known = 0;
        loop {
            tokio::time::sleep(Duration::from_millis(700)).await;
            let count = self.told().len();
            if count == known && count > 0 {
                break;
            }
            known = count;
            ensure!(started.elapsed() < PATIENCE, "the webhook is never quiet");
        }
        let told = self.told();
        let mut seen: Vec<u64> = Vec::new();
        for id in told {
            let is_new = seen.last().is_none_or(|last| id > *last);
            if is_new {
                seen.push(id);
            } else {
                ensure!(seen.contains(&id), "event {id} came out of order");
            }
        }
        Ok(())
    }
}

async fn take(State(told): State<Told>, headers: HeaderMap) -> StatusCode {
    let id = headers.get("webhook-id").and_then(|id| id.to_str().ok());
    let id = id.and_then(|id| id.strip_prefix("evt_")?.parse().ok());
    let Some(id) = id else {
        return StatusCode::BAD_REQUEST;
    };
    told.lock().unwrap_or_else(PoisonError::into_inner).push(id);
    StatusCode::NO_CONTENT
}
