//! Every call of the API has a number that its log lines, its reply and its error carry, and is
//! timed by what was called.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use tracing::Instrument;

use super::Seeing;

/// Carries the number, both ways.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Characters of a number that a caller made.
const LONGEST: usize = 64;

tokio::task_local! {
    static CURRENT: String;
}

/// The number of the call that is being answered.
pub(crate) fn current() -> Option<String> {
    CURRENT.try_with(Clone::clone).ok()
}

/// Around every call.
pub(crate) async fn observe(
    State(seeing): State<Arc<Seeing>>,
    request: Request,
    next: Next,
) -> Response {
    let id = accepted(request.headers().get(REQUEST_ID)).unwrap_or_else(made);
    let method = request.method().clone();
    let path = request.extensions().get::<MatchedPath>();
    // What was matched, not what was asked for: paths of callers have no end.
    let path = path.map_or_else(|| "none".to_owned(), |path| path.as_str().to_owned());
    let span = tracing::info_span!("call", request_id = %id, %method, path);
    let started = Instant::now();
    let answer = async {
        let mut response = next.run(request).await;
        let status = response.status().as_u16();
        let took = started.elapsed();
        tracing::debug!(status, ?took, "answered");
        seeing
            .metrics
            .api_call(method.as_str(), &path, status, took);
        if let Ok(id) = HeaderValue::from_str(&CURRENT.get()) {
            response.headers_mut().insert(REQUEST_ID, id);
        }
        response
    };
    CURRENT.scope(id, answer.instrument(span)).await
}

/// A caller's own number, if it can stand in a log.
fn accepted(header: Option<&HeaderValue>) -> Option<String> {
    let text = header?.to_str().ok()?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let fits = !text.is_empty() && text.len() <= LONGEST && text.chars().all(plain);
    fits.then(|| text.to_owned())
}

fn made() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callers_number_is_taken_when_a_log_can_carry_it() {
        let of = |text: &'static str| accepted(Some(&HeaderValue::from_static(text)));
        assert_eq!(of("ci-42_a.b").as_deref(), Some("ci-42_a.b"));
        assert_eq!(of("two words"), None);
        assert_eq!(of("\"quoted\""), None);
        assert_eq!(of(""), None);
        let long = HeaderValue::from_str(&"a".repeat(LONGEST + 1)).unwrap();
        assert_eq!(accepted(Some(&long)), None);
        assert_eq!(accepted(None), None);
        assert_ne!(made(), made());
    }
}
