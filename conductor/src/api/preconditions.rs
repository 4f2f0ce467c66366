//! `If-Match` and `If-None-Match`: a change of what the caller has seen, or none; and the `ETag`
//! that they compare with, which is the `resourceVersion`.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use ferrite_proto::problem::{Code, Problem};

use super::ApiError;

/// What must hold of what is stored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Preconditions {
    /// `If-Match`: one of these versions, or, for `*`, any.
    matches: Option<Vec<String>>,
    /// `If-None-Match: *`: there is none.
    absent: bool,
}

impl<S: Sync> FromRequestParts<S> for Preconditions {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        Self::read(&parts.headers).map_err(ApiError)
    }
}

impl Preconditions {
    fn read(headers: &HeaderMap) -> Result<Self, Problem> {
        let text = |name: HeaderName| {
            let all: Vec<_> = headers
                .get_all(name)
                .iter()
                .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
                .collect();
            (!all.is_empty()).then(|| all.join(","))
        };
        let tags = |text: String| {
            let tags = text.split(',').map(|tag| tag.trim().trim_matches('"'));
            tags.map(str::to_owned).collect()
        };
        let none = text(header::IF_NONE_MATCH);
        if let Some(other) = none.as_deref().filter(|text| text.trim() != "*") {
            let shown: String = other.chars().take(80).collect();
            return Err(Problem::new(
                Code::QueryInvalid,
                format!("If-None-Match is {shown:?}"),
                "give `*`, which means: only when there is none yet",
            ));
        }
        Ok(Self {
            matches: text(header::IF_MATCH).map(tags),
            absent: none.is_some(),
        })
    }

    /// Whether they hold of what is there, by its version.
    pub(crate) fn check(&self, there: Option<u64>) -> Result<(), Problem> {
        let refused = |what: String| {
            Err(Problem::new(
                Code::PreconditionFailed,
                what,
                "read it again and repeat the change",
            ))
        };
        match (there, &self.matches) {
            (Some(_), _) if self.absent => refused("If-None-Match: it is there already".into()),
            (None, Some(_)) => refused("If-Match: there is none of this name".into()),
            (Some(version), Some(tags)) => {
                let text = version.to_string();
                if tags.iter().any(|tag| tag == "*" || *tag == text) {
                    return Ok(());
                }
                refused(format!("If-Match: its resourceVersion is {version}"))
            }
            (_, None) => Ok(()),
        }
    }
}

/// The header that says which version was sent.
pub(crate) fn etag(version: u64) -> [(HeaderName, HeaderValue); 1] {
    let value = HeaderValue::from_str(&format!("\"{version}\""));
    [(header::ETAG, value.unwrap_or(HeaderValue::from_static("")))]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(name: &'static str, value: &'static str, there: Option<u64>) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_static(value));
        Preconditions::read(&headers).unwrap().check(there).is_ok()
    }

    #[test]
    fn a_change_is_of_what_was_seen_or_refused() {
        assert!(holds("if-match", "\"7\"", Some(7)));
        assert!(holds("if-match", "\"6\", \"7\"", Some(7)));
        assert!(holds("if-match", "*", Some(7)));
        assert!(!holds("if-match", "\"6\"", Some(7)));
        assert!(!holds("if-match", "nonsense", Some(7)));
        assert!(!holds("if-match", "*", None));
        assert!(holds("if-none-match", "*", None));
        assert!(!holds("if-none-match", "*", Some(7)));
        assert!(Preconditions::default().check(None).is_ok());
    }
}
