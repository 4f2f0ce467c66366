//! `Idempotency-Key`: a `POST` that is sent again, because its answer was lost, is answered the
//! same and done once.
//!
//! The answer is kept for a day, sealed, as it may hold a new token. What is promised ends where
//! the process dies between doing and keeping: then the second call is refused for what the first
//! one did (a name is taken), or does what doing twice does no harm.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ferrite_proto::digest::to_hex;
use ferrite_proto::problem::{Code, Problem};
use jiff::SignedDuration;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{ApiError, App};
use crate::access::caller::actor;
use crate::clock;
use crate::crash::{self, Moment, Work};
use crate::store::{Document, Expect};

const HEADER: &str = "idempotency-key";
/// Kind of the documents.
const KIND: &str = "IdempotencyKey";
/// Bytes of a body, and of an answer that is kept.
const BODY: usize = 1 << 20;
/// How long an answer is kept.
const KEPT: SignedDuration = SignedDuration::from_hours(24);
/// Says that an answer was given before.
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// What answers with keys need.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    app: Arc<App>,
    under_way: Arc<Mutex<BTreeSet<String>>>,
}

impl Keys {
    /// Nothing is under way.
    pub(crate) fn new(app: Arc<App>) -> Self {
        Self {
            app,
            under_way: Arc::default(),
        }
    }

    /// Holds a key until it is dropped; none when another call has it.
    fn hold(&self, name: &str) -> Option<Held<'_>> {
        let mut all = self
            .under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let name = name.to_owned();
        all.insert(name.clone())
            .then_some(Held { keys: self, name })
    }
}

struct Held<'a> {
    keys: &'a Keys,
    name: String,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let all = self.keys.under_way.lock();
        all.unwrap_or_else(PoisonError::into_inner)
            .remove(&self.name);
    }
}

/// Around every call of people.
pub(crate) async fn once(State(keys): State<Keys>, request: Request, next: Next) -> Response {
    let key = request.headers().get(HEADER).cloned();
    match key {
        Some(key) if request.method() == Method::POST => {
            let answered = keyed(&keys, &key, request, next).await;
            answered.unwrap_or_else(|problem| ApiError(problem).into_response())
        }
        _ => next.run(request).await,
    }
}

async fn keyed(
    keys: &Keys,
    key: &HeaderValue,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    if key.is_empty() || key.len() > 255 {
        let what = "Idempotency-Key has 1 to 255 characters";
        return Err(Problem::new(Code::QueryInvalid, what, "use a UUID"));
    }
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, BODY).await else {
        let problem = Problem::new(Code::RequestInvalid, "the body is too long", "send less");
        return Ok(ApiError(problem).with(StatusCode::PAYLOAD_TOO_LARGE));
    };
    let name = digest(&[actor().to_string().as_bytes(), key.as_bytes()]);
    let asked = asked(&parts, &body);
    let Some(_held) = keys.hold(&name) else {
        return Err(Problem::new(
            Code::Conflict,
            "a call with this Idempotency-Key is under way",
            "wait for its answer",
        ));
    };
    let documents = keys.app.hosts.documents();
    if let Some(known) = documents.get(KIND, &name) {
        return again(&known, &asked);
    }
    let answer = next.run(Request::from_parts(parts, Body::from(body))).await;
    keep(keys, name, asked, answer).await
}

fn digest(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    to_hex(&hash.finalize())
}

/// What was asked, in short.
fn asked(parts: &Parts, body: &Bytes) -> String {
    digest(&[parts.uri.to_string().as_bytes(), body])
}

/// The answer as it was given.
fn again(known: &Document, asked: &str) -> Result<Response, Problem> {
    let unreadable = || Problem::new(Code::Internal, "a kept answer cannot be read", "");
    if known.body["asked"] != *asked {
        return Err(Problem::new(
            Code::IdempotencyKeyReused,
            "this Idempotency-Key was used for another request",
            "use a new key for a new request",
        ));
    }
    let secret = known.secret.as_ref().ok_or_else(unreadable)?;
    let body = secret["body"].as_str().ok_or_else(unreadable)?;
    let body = BASE64_STANDARD.decode(body).map_err(|_| unreadable())?;
    let status = known.body["status"].as_u64().and_then(|status| {
        let status = u16::try_from(status).ok()?;
        StatusCode::from_u16(status).ok()
    });
    let mut answer = (status.ok_or_else(unreadable)?, body).into_response();
    let headers = answer.headers_mut();
    headers.remove(header::CONTENT_TYPE);
    for name in [header::CONTENT_TYPE, header::ETAG] {
        let value = known.body[name.as_str()].as_str();
        if let Some(value) = value.and_then(|value| HeaderValue::from_str(value).ok()) {
            headers.insert(name, value);
        }
    }
    headers.insert(REPLAYED, HeaderValue::from_static("true"));
    Ok(answer)
}

/// Keeps an answer, unless it says that nothing was decided.
async fn keep(
    keys: &Keys,
    name: String,
    asked: String,
    answer: Response,
) -> Result<Response, Problem> {
    let status = answer.status();
    let undecided = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
    if undecided {
        return Ok(answer);
    }
    let (parts, body) = answer.into_parts();
    let cut_off = |_| Problem::new(Code::Internal, "an answer was cut off", "");
    let bytes = to_bytes(body, BODY).await.map_err(cut_off)?;
    let header = |name: HeaderName| {
        let value = parts.headers.get(name);
        value.and_then(|value| value.to_str().ok().map(str::to_owned))
    };
    let now = clock::now();
    let document = Document {
        kind: KIND.to_owned(),
        name,
        project: String::new(),
        revision: 0,
        created: now,
        expires: now.checked_add(KEPT).ok(),
        body: json!({
            "asked": asked,
            "status": status.as_u16(),
            "content-type": header(header::CONTENT_TYPE),
            "etag": header(header::ETAG),
        }),
        secret: Some(json!({"body": BASE64_STANDARD.encode(&bytes)})),
    };
    let documents = keys.app.hosts.documents();
    let kept = documents.put(document, Expect::Absent, Vec::new());
    crash::point(Work::KeepAnswer, Moment::Before);
    let kept = kept.await;
    crash::point(Work::KeepAnswer, Moment::After);
    if let Err(problem) = kept {
        // It is done all the same: whoever asked must hear so.
        tracing::error!(%problem, "an answer with an Idempotency-Key is not kept");
    }
    Ok(Response::from_parts(parts, Body::from(bytes)))
}
