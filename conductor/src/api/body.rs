//! What a call carries: JSON that is not too deep, read into a type, with a refusal that names the
//! place and, for an unknown field, the nearest known one.
//!
//! Not here: what the values mean.

use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use ferrite_proto::problem::{Code, Problem};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::ApiError;

/// Objects and lists within each other.
const DEPTH: usize = 25;

/// Up to here every integer is a number of its own: 2^53.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// A JSON body; what cannot be read is answered like every other error.
#[derive(Debug)]
pub(crate) struct Body<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        let kind = request.headers().get(header::CONTENT_TYPE);
        if !kind
            .and_then(|kind| kind.to_str().ok())
            .is_some_and(is_json)
        {
            let what = "the body is not JSON by its Content-Type";
            let problem = invalid(what.to_owned(), "send `Content-Type: application/json`");
            return Err(ApiError(problem).with(StatusCode::UNSUPPORTED_MEDIA_TYPE));
        }
        let bytes = Bytes::from_request(request, state)
            .await
            .map_err(|rejection| {
                let text = rejection.body_text();
                let problem = invalid(format!("the body cannot be read: {text}"), "send less");
                ApiError(problem).with(rejection.status())
            })?;
        read(&bytes).map(Self).map_err(Refused::answer)
    }
}

fn is_json(kind: &str) -> bool {
    let kind = kind.split(';').next().unwrap_or_default().trim();
    let kind = kind.to_ascii_lowercase();
    kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json"))
}

/// Why JSON was not taken.
#[derive(Debug)]
pub(crate) struct Refused {
    status: StatusCode,
    field: Option<String>,
    problem: Problem,
}

impl Refused {
    /// As an answer.
    pub(crate) fn answer(self) -> Response {
        ApiError(self.problem).with_field(self.status, self.field)
    }
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        refused.problem
    }
}

/// Reads JSON text.
pub(crate) fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refused> {
    let unreadable = |what: String| Refused {
        status: StatusCode::BAD_REQUEST,
        field: None,
        problem: invalid(what, "send JSON"),
    };
    if is_too_deep(bytes) {
        let what = format!("the body nests more than {DEPTH} objects and lists");
        return Err(unreadable(what));
    }
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = match serde_path_to_error::deserialize(&mut reader) {
        Ok(value) => value,
        Err(error) => {
            let path = error.path().to_string();
            let inner = error.into_inner();
            if !inner.is_data() {
                return Err(unreadable(format!("the body is not JSON: {inner}")));
            }
            let value = serde_json::from_slice(bytes).ok();
            let refused = || misfit(&path, &inner.to_string());
            return value.and_then(read_whole).ok_or_else(refused);
        }
    };
    let rest = reader.end();
    rest.map_err(|error| unreadable(format!("the body is not JSON: {error}")))?;
    Ok(value)
}

/// Reads a JSON value into a type.
pub(crate) fn read_value<T: DeserializeOwned>(value: Value) -> Result<T, Refused> {
    serde_path_to_error::deserialize(&value).or_else(|error: serde_path_to_error::Error<_>| {
        let refused = misfit(&error.path().to_string(), &error.inner().to_string());
        read_whole(value).ok_or(refused)
    })
}

/// Reads what was refused once more with `1.0` as the `1` that it is, to people and in JSON Schema,
/// if there is any such number in it.
fn read_whole<T: DeserializeOwned>(mut value: Value) -> Option<T> {
    make_whole(&mut value).then(|| serde_json::from_value(value).ok())?
}

fn make_whole(value: &mut Value) -> bool {
    match value {
        Value::Number(number) => {
            let whole = number.as_f64().filter(|_| number.is_f64());
            let whole = whole.filter(|whole| whole.fract() == 0.0 && whole.abs() < EXACT);
            // Without a fraction it is written as an integer is.
            let whole = whole.and_then(|whole| format!("{whole:.0}").parse::<i64>().ok());
            let Some(whole) = whole else { return false };
            *number = whole.into();
            true
        }
        // Each one: `any` would stop at the first.
        Value::Array(all) => all.iter_mut().map(make_whole).fold(false, |a, b| a | b),
        Value::Object(all) => all.values_mut().map(make_whole).fold(false, |a, b| a | b),
        Value::Null | Value::Bool(_) | Value::String(_) => false,
    }
}

fn misfit(path: &str, what: &str) -> Refused {
    let field = (path != ".").then(|| path.to_owned());
    let place = field.as_deref().unwrap_or("the body");
    let advice = suggestion(what).unwrap_or_else(|| "/openapi.json describes the call".to_owned());
    Refused {
        status: StatusCode::UNPROCESSABLE_ENTITY,
        problem: invalid(format!("{place}: {}", first_words(&unquoted(what))), advice),
        field,
    }
}

fn invalid(what: String, advice: impl Into<String>) -> Problem {
    Problem::new(Code::RequestInvalid, what, advice)
}

/// What serde says, without the text that it found where it should not be: it may be a password.
pub(crate) fn unquoted(text: &str) -> String {
    const BEFORE: &str = ": string \"";
    const AFTER: &str = "\", expected";
    let cut = |text: &str| {
        let (before, found) = text.split_once(BEFORE)?;
        let (_, after) = found.rsplit_once(AFTER)?;
        Some(format!("{before}: a string, expected{after}"))
    };
    cut(text).unwrap_or_else(|| text.to_owned())
}

/// A list of all known fields is no help.
fn first_words(what: &str) -> &str {
    let end = what.find(", expected one of").unwrap_or(what.len());
    &what[..end]
}

/// "unknown field `bot_mac`, expected one of `boot_mac`, …" says enough to guess.
fn suggestion(what: &str) -> Option<String> {
    if !what.contains("unknown field") && !what.contains("unknown variant") {
        return None;
    }
    let (unknown, known) = what.split_once(", expected")?;
    let unknown = unknown.split('`').nth(1)?;
    let known = known.split('`').skip(1).step_by(2);
    let nearest = known
        .map(|name| (distance(unknown, name), name))
        .min()
        .filter(|(far, name)| *far <= 1 + name.len() / 3)?;
    Some(format!("did you mean `{}`?", nearest.1))
}

/// Letters to change, add or drop (Levenshtein).
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (at, a) in one.chars().take(64).enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], at + 1);
        for (column, b) in other.iter().enumerate() {
            let change = diagonal + usize::from(a != *b);
            diagonal = row[column + 1];
            row[column + 1] = change.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

/// Looked at before anything is built of it.
fn is_too_deep(bytes: &[u8]) -> bool {
    let (mut depth, mut in_text, mut escaped) = (0_usize, false, false);
    for byte in bytes {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            b'[' | b'{' if !in_text => depth += 1,
            b']' | b'}' if !in_text => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEPTH {
            return true;
        }
    }
    false
}

/// What stands behind the `?`.
#[derive(Debug)]
pub(crate) struct Query<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let read = axum::extract::Query::from_request_parts(parts, state).await;
        read.map(|axum::extract::Query(value)| Self(value))
            .map_err(|rejection| {
                let words = rejection.body_text();
                let advice = suggestion(&words);
                let text = format!("the query cannot be used: {}", first_words(&words));
                let advice = advice.unwrap_or_else(|| "/openapi.json describes the call".into());
                ApiError(Problem::new(Code::QueryInvalid, text, advice))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferrite_proto::host::HostManifest;
    use serde_json::json;

    fn refusal<T: DeserializeOwned>(text: &str) -> Refused {
        read::<T>(text.as_bytes()).err().unwrap()
    }

    #[test]
    fn an_unknown_field_is_refused_with_its_place_and_the_nearest_name() {
        let manifest = json!({
            "apiVersion": "ferrite/v1", "kind": "Host", "metadata": {"name": "n"},
            "spec": {"bmc": {"address": "a", "username": "u"}, "bot_mac": "x"},
        });
        let refused = refusal::<HostManifest>(&manifest.to_string());
        assert_eq!(refused.status, 422);
        assert_eq!(refused.field.as_deref(), Some("spec.bot_mac"));
        assert_eq!(refused.problem.advice, "did you mean `boot_mac`?");
        assert_eq!(
            refused.problem.message,
            "spec.bot_mac: unknown field `bot_mac`"
        );
    }

    #[test]
    fn an_integer_may_be_written_with_a_point() {
        let read_one = |text: &str| read::<Vec<i32>>(text.as_bytes());
        assert_eq!(read_one("[1.0, -2e0, 3]").unwrap(), [1, -2, 3]);
        assert_eq!(read_value::<Vec<u8>>(json!([1.0])).unwrap(), [1]);
        assert_eq!(read::<Vec<f64>>(b"[1.0, 1]").unwrap(), [1.0, 1.0]);
        for bad in ["[1.5]", "[1e300]", "[1.0, \"1\"]"] {
            assert_eq!(read_one(bad).unwrap_err().status, 422, "{bad}");
        }
    }

    #[test]
    fn what_is_like_nothing_gets_no_guess() {
        let what = "unknown field `colour`, expected one of `name`, `uid`";
        assert_eq!(suggestion(what), None);
        let what = "unknown field `nmae`, expected `name` or `uid`";
        assert_eq!(suggestion(what).as_deref(), Some("did you mean `name`?"));
        assert_eq!(distance("kitten", "sitting"), 3);
    }

    #[test]
    fn depth_is_looked_at_before_anything_else() {
        let deep = "[".repeat(100_000);
        assert_eq!(refusal::<Value>(&deep).status, 400);
        let fits = format!("{}{}", "[".repeat(DEPTH), "]".repeat(DEPTH));
        assert!(read::<Value>(fits.as_bytes()).is_ok());
        let text = format!("\"{}\\\"{}\"", "[".repeat(50), "{".repeat(50));
        assert!(read::<Value>(text.as_bytes()).is_ok());
    }

    #[test]
    fn what_is_no_json_is_another_refusal_than_what_does_not_fit() {
        for bad in ["", "{", "nothing", "{} {}", "\u{0}"] {
            assert_eq!(refusal::<Value>(bad).status, 400, "{bad:?}");
        }
        assert_eq!(refusal::<HostManifest>("[]").status, 422);
    }
}
