//! What is written to a disk: where it is, and what vouches for it.

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// An image, as a person names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageRef {
    /// `http://` or `https://`; the host fetches it itself.
    pub url: String,
    /// Digest of the file as fetched. Required unless `allow_unverified`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// What the file holds once decompressed.
    #[serde(default)]
    pub format: Format,
    /// How it is compressed; told from the first bytes when not said. If said and the bytes
    /// disagree, nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
    /// Write it without a digest. A person has to say so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_unverified: bool,
}

/// What an image file holds. Never guessed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// The bytes of the disk, one after the other.
    #[default]
    Raw,
}

/// How an image file is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compression {
    /// Not at all.
    None,
    /// RFC 1952, several members allowed.
    Gzip,
    /// RFC 8878, several frames allowed.
    Zstd,
    /// The .xz container.
    Xz,
}

impl Compression {
    /// What the first bytes of a file say. At least six bytes are needed to be sure.
    pub fn of(first: &[u8]) -> Self {
        match first {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // A zstd file may begin with a skippable frame (RFC 8878, 3.1.2).
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            _ => Self::None,
        }
    }
}

/// Why an [`ImageRef`] cannot be used, before anybody touches a host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidImage {
    /// Not `http` or `https`.
    #[error("image URL {0:?} is neither http:// nor https://")]
    Scheme(String),
    /// Credentials inside the URL end up in logs.
    #[error("image URL carries a user name or password: remove it")]
    UserInfo,
    /// Nothing vouches for the bytes.
    #[error("image {0:?} has no digest: give sha256:… or sha512:…, or allow it unverified")]
    NoDigest(String),
}

impl ImageRef {
    /// Checks all that can be checked without fetching.
    pub fn validate(&self) -> Result<(), InvalidImage> {
        let shown = || self.url.chars().take(200).collect::<String>();
        let rest = self
            .url
            .strip_prefix("http://")
            .or_else(|| self.url.strip_prefix("https://"));
        let rest = rest
            .filter(|rest| !rest.is_empty())
            .ok_or_else(|| InvalidImage::Scheme(shown()))?;
        let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
        if authority.contains('@') {
            return Err(InvalidImage::UserInfo);
        }
        if self.digest.is_none() && !self.allow_unverified {
            return Err(InvalidImage::NoDigest(shown()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(url: &str) -> ImageRef {
        ImageRef {
            url: url.into(),
            digest: None,
            format: Format::Raw,
            compression: None,
            allow_unverified: true,
        }
    }

    #[test]
    fn compression_is_told_by_content() {
        assert_eq!(
            Compression::of(&[0x1f, 0x8b, 8, 0, 0, 0]),
            Compression::Gzip
        );
        assert_eq!(
            Compression::of(&[0x28, 0xb5, 0x2f, 0xfd, 0, 0]),
            Compression::Zstd
        );
        assert_eq!(
            Compression::of(&[0xfd, b'7', b'z', b'X', b'Z', 0]),
            Compression::Xz
        );
        assert_eq!(
            Compression::of(&[0xeb, 0x63, 0x90, 0, 0, 0]),
            Compression::None
        );
        assert_eq!(Compression::of(&[]), Compression::None);
    }

    #[test]
    fn only_fetchable_vouched_for_images_pass() {
        assert_eq!(image("http://h/x.raw").validate(), Ok(()));
        assert!(matches!(
            image("file:///etc/passwd").validate(),
            Err(InvalidImage::Scheme(_))
        ));
        assert!(matches!(
            image("http://").validate(),
            Err(InvalidImage::Scheme(_))
        ));
        assert_eq!(
            image("https://u:p@h/x").validate(),
            Err(InvalidImage::UserInfo)
        );
        let unvouched = ImageRef {
            allow_unverified: false,
            ..image("http://h/x")
        };
        assert!(matches!(
            unvouched.validate(),
            Err(InvalidImage::NoDigest(_))
        ));
    }
}
