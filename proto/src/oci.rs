//! Artifacts of an OCI registry, as an image's URL names them:
//! `oci://registry/repository[:tag]@sha256:…`. Pure; the talking is the agent's.

use std::fmt;

use crate::digest::Digest;

/// Characters of a repository's name (OCI distribution spec 1.1).
const LONGEST_NAME: usize = 255;

/// What such a URL says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OciRef {
    /// Without TLS: written `oci+http://`.
    pub plain: bool,
    /// `registry.example:5000`.
    pub registry: String,
    /// `team/os`.
    pub repository: String,
    /// `12.8`.
    pub tag: Option<String>,
    /// Of the manifest, or of the index that leads to it.
    pub digest: Option<Digest>,
}

impl OciRef {
    /// Whether a URL is meant to be one.
    pub fn is(url: &str) -> bool {
        url.starts_with("oci://") || url.starts_with("oci+http://")
    }

    /// Reads a URL; else what about it is wrong. The registry's name is not looked at.
    pub fn parse(url: &str) -> Result<Self, &'static str> {
        let (scheme, rest) = url.split_once("://").ok_or("it is no URL")?;
        let plain = match scheme {
            "oci" => false,
            "oci+http" => true,
            _ => return Err("its scheme is neither oci nor oci+http"),
        };
        let (registry, rest) = rest.split_once('/').ok_or("it names no repository")?;
        let (rest, digest) = match rest.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (rest, None),
        };
        let digest = digest.map(str::parse::<Digest>).transpose();
        let digest = digest.map_err(|_| "what follows its `@` is no sha256:… or sha512:…")?;
        let (repository, tag) = match rest.split_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (rest, None),
        };
        if !is_repository(repository) {
            return Err("its repository is not in lower-case parts joined by `/`");
        }
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err("its tag has characters other than A-Z, a-z, 0-9, `_`, `.` and `-`");
        }
        if tag.is_none() && digest.is_none() {
            return Err("it has neither a tag nor a digest: add @sha256:…");
        }
        Ok(Self {
            plain,
            registry: registry.to_owned(),
            repository: repository.to_owned(),
            tag: tag.map(str::to_owned),
            digest,
        })
    }

    /// The manifest's URL in the registry's API.
    pub fn manifest(&self) -> String {
        let named = match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        };
        self.at("manifests", &named)
    }

    /// The URL of another manifest, or of a blob, in the registry's API.
    pub fn at(&self, kind: &str, named: &str) -> String {
        let scheme = if self.plain { "http" } else { "https" };
        // Its API has another name than the one that everybody writes.
        let host = match self.registry.as_str() {
            "docker.io" => "registry-1.docker.io",
            other => other,
        };
        format!("{scheme}://{host}/v2/{}/{kind}/{named}", self.repository)
    }
}

impl fmt::Display for OciRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.plain { "oci+http" } else { "oci" };
        write!(f, "{scheme}://{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

fn is_repository(name: &str) -> bool {
    let part = |part: &str| {
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
        let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        part.starts_with(edge) && part.ends_with(edge) && part.chars().all(inner)
    };
    name.len() <= LONGEST_NAME && !name.contains("..") && name.split('/').all(part)
}

fn is_tag(tag: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    let first = |c: char| c.is_ascii_alphanumeric() || c == '_';
    tag.len() <= 128 && tag.starts_with(first) && tag.chars().all(inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_round_trips_and_says_where_to_ask() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let url = format!("oci://r.example:5000/team/os:12.8@{digest}");
        let named = OciRef::parse(&url).unwrap();
        assert_eq!(named.to_string(), url);
        assert_eq!(named.tag.as_deref(), Some("12.8"));
        let manifest = format!("https://r.example:5000/v2/team/os/manifests/{digest}");
        assert_eq!(named.manifest(), manifest);
        let named = OciRef::parse("oci+http://docker.io/library/os:9").unwrap();
        assert_eq!(
            named.at("blobs", "x"),
            "http://registry-1.docker.io/v2/library/os/blobs/x"
        );
        assert!(named.manifest().ends_with("/manifests/9"));
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        for bad in [
            "https://r/a:1",
            "oci://r",
            "oci://r/",
            "oci://r/os",
            "oci://r/OS:1",
            "oci://r/a//b:1",
            "oci://r/../b:1",
            "oci://r/a/..:1",
            "oci://r/a:",
            "oci://r/a:b/c",
            "oci://r/a:1?x",
            "oci://r/a@md5:00",
            "oci://r/a@sha256:00",
            "oci://r/a:1@",
        ] {
            assert!(OciRef::parse(bad).is_err(), "{bad}");
        }
    }
}
