//! How often each may call: a bucket for each token, and for each address that sends none. One
//! that calls too often is told when to call again, and does not disturb the others.
//!
//! Not here: whether the token is any good; the door looks at that.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use ferrite_proto::problem::{Code, Problem};
use tokio::time::{Duration, Instant};

use super::ApiError;
use crate::token;

/// Callers that are remembered.
const CALLERS: usize = 65_536;

/// How often one may call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate {
    /// In the long run.
    pub(crate) calls_per_second: u32,
    /// At once, after a pause.
    pub(crate) calls_at_once: u32,
}

/// What each caller has left.
#[derive(Debug)]
pub(crate) struct Limiter {
    rate: Rate,
    buckets: Mutex<BTreeMap<String, Bucket>>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// Calls that are left.
    left: f64,
    /// At this time.
    at: Instant,
}

impl Limiter {
    /// Everybody has a full bucket.
    pub(crate) fn new(rate: Rate) -> Arc<Self> {
        Arc::new(Self {
            rate,
            buckets: Mutex::default(),
        })
    }

    /// Takes a call from a bucket, or says how long until there is one.
    fn take(&self, caller: &str, now: Instant) -> Result<(), Duration> {
        let (fill, most) = (
            f64::from(self.rate.calls_per_second),
            f64::from(self.rate.calls_at_once),
        );
        let filled = |bucket: &Bucket| {
            let passed = now.saturating_duration_since(bucket.at).as_secs_f64();
            (bucket.left + passed * fill).min(most)
        };
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= CALLERS {
            // Who has not called for a while has a full bucket, and is as good as unknown.
            buckets.retain(|_, bucket| filled(bucket) < most);
        }
        let left = buckets.get(caller).map_or(most, filled);
        if left < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - left) / fill.max(1.0)));
        }
        let bucket = Bucket {
            left: left - 1.0,
            at: now,
        };
        buckets.insert(caller.to_owned(), bucket);
        Ok(())
    }
}

/// Lets a call through, or says when to call again.
pub(crate) async fn limit(
    State(limiter): State<Arc<Limiter>>,
    request: Request,
    next: Next,
) -> Response {
    // A host fetches an image in thousands of parts; connections have bounds of their own.
    if request.uri().path().starts_with("/images/") {
        return next.run(request).await;
    }
    let given = request.headers().get(header::AUTHORIZATION);
    let caller = if let Some(token) = given.and_then(|value| value.to_str().ok()) {
        token::sha256(token)
    } else {
        let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
        peer.map_or_else(String::new, |ConnectInfo(peer)| peer.ip().to_string())
    };
    match limiter.take(&caller, Instant::now()) {
        Ok(()) => next.run(request).await,
        Err(wait) => too_many(wait),
    }
}

fn too_many(wait: Duration) -> Response {
    let seconds = wait.as_secs() + 1;
    let problem = Problem::new(
        Code::TooManyRequests,
        "too many calls in a short time",
        format!("call again in {seconds} s, and less often"),
    );
    let mut answer = ApiError(problem).into_response();
    let headers = answer.headers_mut();
    headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_empties_fills_again_and_is_ones_own() {
        let limiter = Limiter::new(Rate {
            calls_per_second: 10,
            calls_at_once: 3,
        });
        let now = Instant::now();
        for _ in 0..3 {
            limiter.take("a", now).unwrap();
        }
        let wait = limiter.take("a", now).unwrap_err();
        assert!(wait <= Duration::from_millis(100), "{wait:?}");
        limiter.take("b", now).unwrap();
        limiter.take("a", now + wait).unwrap();
        assert!(limiter.take("a", now + wait).is_err());
        // A clock that stands still gives nothing, a long pause no more than the burst.
        let later = now + Duration::from_hours(1);
        assert_eq!(
            (0..9).filter(|_| limiter.take("a", later).is_ok()).count(),
            3
        );
    }
}
