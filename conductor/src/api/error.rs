//! Errors as RFC 9457 wants them: `application/problem+json` with a stable code.

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use ferrite_proto::api::ErrorBody;
use ferrite_proto::problem::{Code, Problem};

use super::body::Refused;
use crate::seeing::calls;

/// A problem as an answer; its code says with which status.
#[derive(Debug)]
pub(crate) struct ApiError(pub(crate) Problem);

impl ApiError {
    /// Answered with this status.
    pub(crate) fn with(self, status: StatusCode) -> Response {
        self.with_field(status, None)
    }

    /// Answered with this status, about this place of the request.
    pub(crate) fn with_field(self, status: StatusCode, field: Option<String>) -> Response {
        let code = self.0.code;
        let body = ErrorBody {
            kind: format!("urn:ferrite:problem:{code}"),
            title: title(code),
            status: status.as_u16(),
            code,
            detail: self.0.message,
            advice: (!self.0.advice.is_empty()).then_some(self.0.advice),
            field,
            request_id: calls::current(),
        };
        let kind = [(header::CONTENT_TYPE, "application/problem+json")];
        (status, kind, Json(body).into_response().into_body()).into_response()
    }
}

/// The code in words: `host-not-found` is "Host not found".
fn title(code: Code) -> String {
    let words = code.as_str().replace('-', " ");
    let mut letters = words.chars();
    let first = letters.next().map(|c| c.to_ascii_uppercase());
    first.into_iter().chain(letters).collect()
}

impl From<Problem> for ApiError {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

/// The status that a code is answered with.
pub(crate) const fn status_of(code: Code) -> StatusCode {
    match code {
        Code::QueryInvalid | Code::NameMismatch => StatusCode::BAD_REQUEST,
        Code::Unauthorized => StatusCode::UNAUTHORIZED,
        Code::AgentTicketRefused | Code::Forbidden => StatusCode::FORBIDDEN,
        Code::HostNotFound | Code::NotFound => StatusCode::NOT_FOUND,
        Code::HostExists
        | Code::AlreadyExists
        | Code::Conflict
        | Code::ReferenceMissing
        | Code::Protected
        | Code::PlanChanged
        | Code::RollUnderWay => StatusCode::CONFLICT,
        Code::RevisionGone => StatusCode::GONE,
        Code::PreconditionFailed => StatusCode::PRECONDITION_FAILED,
        Code::RequestInvalid | Code::IdempotencyKeyReused | Code::ImageInvalid => {
            StatusCode::UNPROCESSABLE_ENTITY
        }
        Code::BodyTooLong => StatusCode::PAYLOAD_TOO_LARGE,
        Code::BodyTooSlow => StatusCode::REQUEST_TIMEOUT,
        Code::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
        Code::StoreUnavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::StoreFull | Code::ImageStoreFull => StatusCode::INSUFFICIENT_STORAGE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = status_of(self.0.code);
        if status.is_server_error() {
            tracing::error!(problem = %self.0, "a call failed");
        }
        self.with(status)
    }
}

/// Why a call was not answered as asked: a problem, or a body that does not fit.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A problem.
    Problem(ApiError),
    /// The body.
    Body(Refused),
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self::Problem(ApiError(problem))
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self::Problem(error)
    }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        Self::Body(refused)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        match self {
            Self::Problem(error) => error.into_response(),
            Self::Body(refused) => refused.answer(),
        }
    }
}

/// What most handlers answer.
pub(crate) type Answered = Result<Response, Failure>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_title_is_the_code_in_words() {
        assert_eq!(title(Code::HostNotFound), "Host not found");
    }
}
