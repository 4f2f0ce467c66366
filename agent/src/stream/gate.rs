//! How a registry lets us in (OCI distribution spec, and the token flow that all registries share):
//! it answers 401 and says where tokens are given; we go there, with a login if we have one.
//!
//! The login goes to that place alone, and never in clear when the registry itself is not.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use ferrite_proto::address::{Policy, Refused};
use ferrite_proto::image_server::Login;
use ferrite_proto::secret::Secret;
use reqwest::header::{AUTHORIZATION, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Client, Response, Url};
use serde::Deserialize;

use super::http::{authorization, chain};
use super::reach;
use super::source::FetchError;

/// Longest challenge, and longest answer with a token.
const CHALLENGE: usize = 4 << 10;
const ANSWER: usize = 64 << 10;

/// A registry's gate.
#[derive(Debug)]
pub(super) struct Gate {
    login: Option<Login>,
    /// Whether the registry speaks TLS.
    secure: bool,
    policy: Policy,
    /// What opens it at present.
    token: Mutex<Option<HeaderValue>>,
}

/// Why it does not open.
#[derive(Debug)]
pub(super) enum Closed {
    /// The registry's word on it makes no sense, or it does not want us.
    Refused(String),
    /// It leads where nobody is sent.
    Forbidden(Refused),
    /// Perhaps later.
    Silent(String),
}

impl Closed {
    pub(super) fn about(self, url: &str) -> FetchError {
        let url = url.to_owned();
        match self {
            Self::Refused(why) => FetchError::Setup { url, why },
            Self::Forbidden(why) => FetchError::Forbidden { url, why },
            Self::Silent(why) => FetchError::Unreachable { url, why },
        }
    }
}

#[derive(Deserialize)]
struct Answer {
    token: Option<Secret<String>>,
    access_token: Option<Secret<String>>,
}

impl Gate {
    pub(super) fn new(url: &str, login: Option<Login>, policy: Policy) -> Result<Self, String> {
        let known = match &login {
            Some(login @ Login::Bearer(_)) => Some(authorization(login)?),
            // Shown when asked for, to whom the registry says.
            _ => None,
        };
        Ok(Self {
            login,
            secure: url.starts_with("https://"),
            policy,
            token: Mutex::new(known),
        })
    }

    /// What to show.
    pub(super) fn token(&self) -> Option<HeaderValue> {
        let token = self.token.lock();
        token.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Does what the registry asks for in its refusal.
    pub(super) async fn pass(&self, client: &Client, refusal: &Response) -> Result<(), Closed> {
        let challenges = refusal.headers().get_all(WWW_AUTHENTICATE);
        let mut challenges = challenges.iter().filter_map(|value| value.to_str().ok());
        let known = |text: &&str| text.len() <= CHALLENGE;
        let token =
            match challenges.find_map(|text| Challenge::parse(known(&text).then_some(text)?)) {
                Some(Challenge::Basic) => match &self.login {
                    Some(login @ Login::Basic { .. }) => {
                        authorization(login).map_err(Closed::Refused)?
                    }
                    _ => return Err(refused("its registry wants a user name and a password")),
                },
                Some(Challenge::Bearer(parameters)) => {
                    self.fetch(client, self.realm(parameters)?).await?
                }
                None => {
                    return Err(refused(
                        "its registry refuses us, and does not say what it wants",
                    ));
                }
            };
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = Some(token);
        Ok(())
    }

    /// The place of tokens, with what is to be said there.
    fn realm(&self, mut parameters: HashMap<String, String>) -> Result<Url, Closed> {
        let realm = parameters.remove("realm").unwrap_or_default();
        let mut realm = Url::parse(&realm)
            .map_err(|_| refused("its registry names no place that gives tokens"))?;
        let plain = realm.scheme() == "http" && !self.secure;
        if realm.scheme() != "https" && !plain {
            return Err(refused("its registry sends us for a token without TLS"));
        }
        if !realm.username().is_empty() || realm.password().is_some() {
            return Err(refused(
                "its registry names a place of tokens with a password",
            ));
        }
        reach::check(self.policy, &realm).map_err(Closed::Forbidden)?;
        for name in ["service", "scope"] {
            if let Some(value) = parameters.get(name) {
                realm.query_pairs_mut().append_pair(name, value);
            }
        }
        Ok(realm)
    }

    async fn fetch(&self, client: &Client, realm: Url) -> Result<HeaderValue, Closed> {
        let silent = |error: reqwest::Error| match Refused::behind(&error) {
            Some(why) => Closed::Forbidden(why.clone()),
            None => Closed::Silent(chain(&error.without_url())),
        };
        let mut request = client.get(realm);
        if let Some(login @ Login::Basic { .. }) = &self.login {
            let shown = authorization(login).map_err(Closed::Refused)?;
            request = request.header(AUTHORIZATION, shown);
        }
        let mut answer = request.send().await.map_err(silent)?;
        let status = answer.status();
        if status.is_server_error() {
            return Err(Closed::Silent(format!("no token is given: {status}")));
        }
        if !status.is_success() {
            return Err(refused(&format!("no token is given: {status}")));
        }
        let mut text = Vec::new();
        while let Some(part) = answer.chunk().await.map_err(silent)? {
            if text.len() + part.len() > ANSWER {
                return Err(refused("the answer with a token is too long"));
            }
            text.extend_from_slice(&part);
        }
        let answer: Answer = serde_json::from_slice(&text)
            .map_err(|_| refused("the answer with a token is none"))?;
        let token = answer.token.or(answer.access_token);
        let token = token.ok_or_else(|| refused("the answer has no token"))?;
        authorization(&Login::Bearer(token)).map_err(Closed::Refused)
    }
}

fn refused(why: &str) -> Closed {
    Closed::Refused(why.to_owned())
}

/// What a registry asks for.
#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer(HashMap<String, String>),
}

impl Challenge {
    /// `Bearer realm="https://…",service="…",scope="repository:a:pull,push"`.
    fn parse(text: &str) -> Option<Self> {
        let (scheme, mut rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let mut parameters = HashMap::new();
        while let Some((name, after)) = rest.split_once('=') {
            let (value, after) = match after.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"')?,
                None => after.split_at(after.find(',').unwrap_or(after.len())),
            };
            let name = name.trim_matches([' ', ',']).to_ascii_lowercase();
            parameters.insert(name, value.to_owned());
            rest = after;
        }
        Some(Self::Bearer(parameters))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_is_read_as_registries_write_it() {
        let text = "Bearer realm=\"https://a/token\",service=\"a.io\", \
                    scope=\"repository:team/os:pull,push\"";
        let Some(Challenge::Bearer(parameters)) = Challenge::parse(text) else {
            panic!("no challenge")
        };
        assert_eq!(parameters["realm"], "https://a/token");
        assert_eq!(parameters["service"], "a.io");
        assert_eq!(parameters["scope"], "repository:team/os:pull,push");
        let basic = Challenge::parse("basic realm=\"x\"");
        assert_eq!(basic, Some(Challenge::Basic));
        assert_eq!(Challenge::parse("Negotiate"), None);
        assert_eq!(Challenge::parse("Bearer realm=\"open"), None);
    }

    #[test]
    fn tokens_are_fetched_where_it_is_safe() {
        let gate = |url| Gate::new(url, None, Policy::Others).unwrap();
        let realm = |gate: &Gate, realm: &str| {
            let realm = ("realm".to_owned(), realm.to_owned());
            gate.realm(HashMap::from([realm]))
        };
        let secure = gate("https://r/v2/");
        assert!(realm(&secure, "https://auth.r/token").is_ok());
        for bad in [
            "http://auth.r/token",
            "file:///etc/passwd",
            "https://u:p@auth.r/",
            "https://169.254.169.254/token",
            "https://localhost/token",
            "",
        ] {
            assert!(realm(&secure, bad).is_err(), "{bad}");
        }
        assert!(realm(&gate("http://r/v2/"), "http://r/token").is_ok());
    }
}
