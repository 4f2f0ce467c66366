//! Calls of those who look on: figures, and whether the conductor is well.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::{ApiError, App};
use crate::access::caller::Visible;
use crate::clock;
use crate::seeing::metrics;

/// `GET /metrics`
pub(crate) async fn figures(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let hosts = app.hosts.list(&Visible::all());
    let text = app
        .hosts
        .seeing()
        .metrics
        .text(&hosts, &app.world.limits, clock::now());
    Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}

/// `GET /healthz`: the process answers.
pub(crate) async fn alive() -> &'static str {
    "ok\n"
}

/// `GET /readyz`: the store answers, and the conductor is not on its way out.
pub(crate) async fn ready(State(app): State<Arc<App>>) -> (StatusCode, &'static str) {
    let stopping = app.stop.is_cancelled();
    // Whoever asks is not known: no more is told than yes or no.
    match app.hosts.answers().await {
        Ok(()) if !stopping => (StatusCode::OK, "ok\n"),
        Ok(()) => (StatusCode::SERVICE_UNAVAILABLE, "stopping\n"),
        Err(problem) => {
            tracing::error!(%problem, "not ready");
            (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
        }
    }
}
