//! The part of the configuration that says who looks on: where figures are served, traces and
//! events are sent. Secrets are read from files, at start.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ferrite_proto::secret::Secret;
use serde::Deserialize;

/// Who looks on.
#[derive(Debug, Clone, Default)]
pub(crate) struct SeeingConfig {
    /// Where figures are served to anybody; nowhere when absent.
    pub(crate) metrics: Option<SocketAddr>,
    /// Where traces go.
    pub(crate) traces: Option<TracesConfig>,
    /// Where events go.
    pub(crate) webhooks: Vec<WebhookConfig>,
}

/// Where traces go.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TracesConfig {
    /// `https://collector:4318/v1/traces`
    pub(crate) endpoint: String,
    /// A file of `Name: value` lines that go with every call: they may hold a token.
    pub(crate) headers_file: Option<PathBuf>,
    /// The only authorities that are trusted; those of the system when absent.
    pub(crate) ca_file: Option<PathBuf>,
}

/// Where events go.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WebhookConfig {
    /// In figures and in the log; what was delivered is remembered by it.
    pub(crate) name: String,
    /// `https://…`
    pub(crate) url: String,
    /// What calls are signed with.
    pub(crate) secret_file: PathBuf,
    /// Kinds of events; all when empty.
    #[serde(default)]
    pub(crate) kinds: Vec<String>,
    /// The only authorities that are trusted; those of the system when absent.
    pub(crate) ca_file: Option<PathBuf>,
}

/// As it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawMetrics {
    listen: Option<SocketAddr>,
}

/// As it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawTraces {
    endpoint: Option<String>,
    headers_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
}

impl SeeingConfig {
    /// Checks what was written; what is wrong is told by its path.
    pub(crate) fn check(
        metrics: &RawMetrics,
        traces: RawTraces,
        webhooks: Vec<WebhookConfig>,
    ) -> Result<Self, (String, String)> {
        let traces = match traces.endpoint {
            Some(endpoint) => {
                check_url(&endpoint).map_err(|what| ("traces.endpoint".to_owned(), what))?;
                Some(TracesConfig {
                    endpoint,
                    headers_file: traces.headers_file,
                    ca_file: traces.ca_file,
                })
            }
            None => None,
        };
        for (at, hook) in webhooks.iter().enumerate() {
            let path = |key: &str| format!("webhooks[{at}].{key}");
            check_url(&hook.url).map_err(|what| (path("url"), what))?;
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            if hook.name.is_empty() || hook.name.len() > 40 || !hook.name.chars().all(plain) {
                let what = "is 1 to 40 of a-z, 0-9 and -".to_owned();
                return Err((path("name"), what));
            }
            if webhooks[..at].iter().any(|other| other.name == hook.name) {
                return Err((path("name"), format!("{:?} is taken", hook.name)));
            }
        }
        Ok(Self {
            metrics: metrics.listen,
            traces,
            webhooks,
        })
    }
}

/// A URL that may stand in a log: no user, no password.
fn check_url(text: &str) -> Result<(), String> {
    let url = reqwest::Url::parse(text).map_err(|error| format!("is no URL: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err("is not http:// or https://".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("has a user or a password in it, which logs would show".to_owned());
    }
    Ok(())
}

/// Why a file of a webhook or of traces cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    /// It cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It says something else.
    #[error("{}: {what}", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// What about it.
        what: &'static str,
    },
}

fn read(path: &Path) -> Result<String, FileError> {
    std::fs::read_to_string(path).map_err(|source| FileError::Read {
        path: path.to_owned(),
        source,
    })
}

/// The key of a webhook: `whsec_` and base64, as Standard Webhooks write it, or any text.
pub(crate) fn webhook_key(path: &Path) -> Result<Secret<Vec<u8>>, FileError> {
    let wrong = |what| FileError::Content {
        path: path.to_owned(),
        what,
    };
    let text = read(path)?;
    let text = text.trim();
    let key = match text.strip_prefix("whsec_") {
        Some(encoded) => BASE64_STANDARD
            .decode(encoded)
            .map_err(|_| wrong("what follows whsec_ is not base64"))?,
        None => text.as_bytes().to_vec(),
    };
    if key.len() < 16 {
        return Err(wrong("a key has at least 16 bytes"));
    }
    Ok(Secret::new(key))
}

/// `Name: value` lines; empty ones and those that begin with `#` are left out.
pub(crate) fn headers(path: &Path) -> Result<Vec<(String, Secret<String>)>, FileError> {
    let text = read(path)?;
    let lines = text.lines().map(str::trim);
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    let parsed = lines.map(|line| {
        let (name, value) = line.split_once(':')?;
        Some((name.trim().to_owned(), Secret::new(value.trim().to_owned())))
    });
    parsed
        .collect::<Option<_>>()
        .ok_or_else(|| FileError::Content {
            path: path.to_owned(),
            what: "has a line that is not `Name: value`",
        })
}

/// A client that trusts these authorities and follows nobody elsewhere.
pub(crate) fn client(
    ca_file: Option<&Path>,
    patience: std::time::Duration,
) -> Result<reqwest::Client, FileError> {
    const SYSTEM: &str = "/etc/ssl/certs/ca-certificates.crt";
    let path = ca_file.unwrap_or(Path::new(SYSTEM));
    let wrong = |what| FileError::Content {
        path: path.to_owned(),
        what,
    };
    let pem = match (std::fs::read(path), ca_file) {
        (Ok(pem), _) => pem,
        // A machine without authorities still reaches plain HTTP.
        (Err(_), None) => Vec::new(),
        (Err(source), Some(_)) => {
            let path = path.to_owned();
            return Err(FileError::Read { path, source });
        }
    };
    let authorities = reqwest::Certificate::from_pem_bundle(&pem)
        .map_err(|_| wrong("is not a file of certificates"))?;
    // Fails when it is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .tls_certs_only(authorities)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(patience)
        .build()
        .map_err(|_| wrong("its certificates cannot be used"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_standard_webhooks_write_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        for (text, key) in [
            ("whsec_MTIzNDU2Nzg5MDEyMzQ1Ng==\n", Some("1234567890123456")),
            ("  a plain text key 123\n", Some("a plain text key 123")),
            ("short", None),
            ("whsec_???", None),
        ] {
            std::fs::write(&path, text).unwrap();
            let read = webhook_key(&path).ok();
            let read = read.map(|key| String::from_utf8(key.expose().clone()).unwrap());
            assert_eq!(read.as_deref(), key, "{text}");
        }
        std::fs::write(&path, "# ours\nAuthorization: Bearer x: y\n").unwrap();
        let read = headers(&path).unwrap();
        assert_eq!(read[0].0, "Authorization");
        assert_eq!(read[0].1.expose(), "Bearer x: y");
        assert!(!format!("{read:?}").contains("Bearer x"));
    }

    #[test]
    fn addresses_carry_no_password() {
        let hook = |name: &str, url: &str| WebhookConfig {
            name: name.to_owned(),
            url: url.to_owned(),
            secret_file: PathBuf::new(),
            kinds: Vec::new(),
            ca_file: None,
        };
        let check =
            |hooks| SeeingConfig::check(&RawMetrics::default(), RawTraces::default(), hooks);
        let fine = hook("ops", "https://hooks.example/x");
        assert!(check(vec![fine.clone()]).is_ok());
        for (hooks, path) in [
            (
                vec![hook("ops", "https://u:p@hooks.example/")],
                "webhooks[0].url",
            ),
            (vec![hook("ops", "file:///etc/passwd")], "webhooks[0].url"),
            (vec![hook("Ops!", "https://x/")], "webhooks[0].name"),
            (vec![fine.clone(), fine], "webhooks[1].name"),
        ] {
            assert_eq!(check(hooks).unwrap_err().0, path);
        }
    }
}
