//! What of a body nobody read: a call that is refused before its body came is answered only then,
//! within bounds. A server that answers and hangs up instead resets the connection under the
//! answer, and the caller hears of a broken connection where it should hear of its wrong token.
//!
//! Not here: how much of a body a call may read.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::extract::Request;
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use futures_util::{StreamExt, future, stream};

/// Bytes that are taken from a caller who was refused.
const MOST: usize = 256 << 10;
/// For how long.
const PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 2 });

/// A body that two may read, one after the other.
#[derive(Debug, Clone)]
struct Shared(Arc<Mutex<BodyDataStream>>);

impl Shared {
    fn next(&self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, axum::Error>>> {
        let mut body = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        body.poll_next_unpin(context)
    }

    fn into_body(self) -> Body {
        Body::from_stream(stream::poll_fn(move |context| self.next(context)))
    }

    /// Reads what is left.
    async fn drain(self) {
        let mut taken = 0;
        while let Some(Ok(bytes)) = future::poll_fn(|context| self.next(context)).await {
            taken += bytes.len();
            if taken > MOST {
                return;
            }
        }
    }
}

/// Whoever waits to be told to go on sends nothing when it is not; the others send in any case.
/// What says that it is too much is not begun with.
fn sends_unasked(headers: &HeaderMap) -> bool {
    let length = headers.get(header::CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    let fits = length.map_or(headers.contains_key(header::TRANSFER_ENCODING), |length| {
        (1..=MOST).contains(&length)
    });
    fits && !headers.contains_key(header::EXPECT)
}

/// Answers once the body is read, if the answer is a refusal.
pub(crate) async fn rest(request: Request, next: Next) -> Response {
    if !sends_unasked(request.headers()) {
        return next.run(request).await;
    }
    let (parts, body) = request.into_parts();
    let body = Shared(Arc::new(Mutex::new(body.into_data_stream())));
    let lent = body.clone().into_body();
    let answer = next.run(Request::from_parts(parts, lent)).await;
    if answer.status().is_client_error() {
        // What comes too late or is too much is not read, and the connection closed.
        let _ = tokio::time::timeout(PATIENCE, body.drain()).await;
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::Router;
    use axum::http::StatusCode;
    use axum::routing::post;
    use tower::ServiceExt;

    /// How many pieces of a body of so many are read when the call is refused unread.
    async fn read(pieces: usize, headers: &[(&str, &str)]) -> usize {
        let taken = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&taken);
        let body = stream::iter(0..pieces).map(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
            Ok::<_, Infallible>(Bytes::from(vec![b' '; 1024]))
        });
        let request = headers.iter().fold(Request::post("/"), |request, header| {
            request.header(header.0, header.1)
        });
        let request = request.body(Body::from_stream(body)).unwrap();
        let refuse = Router::new().route("/", post(|| async { StatusCode::UNAUTHORIZED }));
        let app = refuse.layer(axum::middleware::from_fn(rest));
        let answer = app.oneshot(request).await.unwrap();
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
        taken.load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn what_a_refused_call_sends_is_read_within_bounds() {
        assert_eq!(read(3, &[("content-length", "3072")]).await, 3);
        let asks_first = [("content-length", "3072"), ("expect", "100-continue")];
        assert_eq!(read(3, &asks_first).await, 0);
        assert_eq!(read(10_000, &[("content-length", "10240000")]).await, 0);
        let some = read(10_000, &[("transfer-encoding", "chunked")]).await;
        assert!((1..1000).contains(&some), "{some}");
    }

    #[tokio::test]
    async fn a_body_that_does_not_come_holds_nobody_up() {
        let body = Body::from_stream(stream::pending::<Result<Bytes, Infallible>>());
        let request = Request::post("/").header(header::CONTENT_LENGTH, 9);
        let refuse = Router::new().route("/", post(|| async { StatusCode::UNAUTHORIZED }));
        let app = refuse.layer(axum::middleware::from_fn(rest));
        let answer = app.oneshot(request.body(body).unwrap());
        let answer = tokio::time::timeout(PATIENCE * 3, answer).await.unwrap();
        assert_eq!(answer.unwrap().status(), StatusCode::UNAUTHORIZED);
    }

    #[tokio::test]
    async fn a_call_that_reads_gets_its_body() {
        let echo = Router::new().route("/", post(|text: String| async { text }));
        let app = echo.layer(axum::middleware::from_fn(rest));
        let request = Request::post("/").header(header::CONTENT_LENGTH, 5);
        let answer = app.oneshot(request.body(Body::from("hello")).unwrap());
        let body = axum::body::to_bytes(answer.await.unwrap().into_body(), 99).await;
        assert_eq!(body.unwrap(), "hello");
    }
}
