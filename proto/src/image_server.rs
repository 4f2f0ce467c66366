//! What is known of a server of images beside a URL: its CA, the way to it, who we are to it.
//!
//! Never part of a host: it comes from a configuration, and travels with the step that needs it.

use serde::{Deserialize, Serialize};

use crate::secret::Secret;

/// How a server of images is talked to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct ImageServer {
    /// The URLs it is about: `https://images.example/private/`. Nothing below is used for others.
    pub prefix: String,
    /// Certificates in PEM that its own may be signed by, besides the public ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// `http://proxy:3128`: asked to fetch in our place. It may carry a name and a password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<Secret<String>>,
    /// How it knows us.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub login: Option<Login>,
}

/// What is shown to a server, and to no other that it may send us to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Login {
    /// RFC 7617.
    Basic {
        /// Without a colon.
        username: String,
        /// In clear.
        password: Secret<String>,
    },
    /// RFC 6750.
    Bearer(Secret<String>),
}

impl ImageServer {
    /// Whether a URL lies below the prefix: the same scheme, host and port, and whole parts of
    /// its path.
    pub fn covers(&self, url: &str) -> bool {
        let (Some(ours), Some(theirs)) = (parts(&self.prefix), parts(url)) else {
            return false;
        };
        let path = ours.1.trim_end_matches('/');
        let rest = theirs.1.strip_prefix(path);
        let below = rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '?', '#']));
        ours.0 == theirs.0 && below && !climbs(theirs.1)
    }
}

/// What is before the path, in lower case and without the port that goes without saying; and the
/// path with what follows.
fn parts(url: &str) -> Option<(String, &str)> {
    let (scheme, rest) = url.split_once("://")?;
    let at = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(at);
    let (scheme, authority) = (scheme.to_ascii_lowercase(), authority.to_ascii_lowercase());
    let usual = if scheme.ends_with("http") {
        ":80"
    } else {
        ":443"
    };
    let authority = authority.strip_suffix(usual).unwrap_or(&authority);
    let known = !authority.is_empty() && !authority.contains('@');
    known.then(|| (format!("{scheme}://{authority}"), path))
}

/// `a/../b` begins with `a` and does not lie in it.
fn climbs(path: &str) -> bool {
    let path = path.split(['?', '#']).next().unwrap_or(path);
    let plain = path.to_ascii_lowercase().replace("%2e", ".");
    plain.split(['/', '\\']).any(|part| part == "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn covers(prefix: &str, url: &str) -> bool {
        let prefix = prefix.to_owned();
        let server = ImageServer {
            prefix,
            ..ImageServer::default()
        };
        server.covers(url)
    }

    #[test]
    fn a_prefix_covers_what_lies_below_it() {
        for (prefix, url) in [
            ("https://h", "https://h/a"),
            ("https://h/", "https://h/a?b"),
            ("https://h/a", "https://h/a"),
            ("https://h/a/", "https://h/a/b.raw"),
            ("https://h:8443/a", "https://h:8443/a?x"),
            ("https://H/", "https://h/x"),
            ("https://h:443/", "https://h/x"),
            ("http://h/", "http://h:80/x"),
            ("oci://r/team", "oci://r/team/os@sha256:00"),
        ] {
            assert!(covers(prefix, url), "{prefix} {url}");
        }
    }

    #[test]
    fn it_covers_no_other_server_and_no_other_folder() {
        for (prefix, url) in [
            ("", "https://h/"),
            ("https://", "https:///x"),
            ("https://h", "https://h.evil/x"),
            ("https://h", "https://hh/x"),
            ("https://h", "https://h:8443/x"),
            ("https://h", "http://h/x"),
            ("https://h", "https://h@evil/x"),
            ("https://h/a", "https://h/ab"),
            ("https://h/a", "https://h/a/../b"),
            ("https://h/a", "https://h/a/%2E%2e/b"),
            ("https://h/a", "https://h/b?/a"),
        ] {
            assert!(!covers(prefix, url), "{prefix} {url}");
        }
    }
}
