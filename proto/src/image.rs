//! What is written to a disk: where it is, and what vouches for it.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::address::{Policy, Refused};
use crate::digest::Digest;
use crate::oci::OciRef;

/// An image, as a person names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ImageRef {
    /// `http://` or `https://`; the host fetches it itself. Or an artifact of a registry,
    /// `oci://registry/repository[:tag]@sha256:…`, whose one layer is the file.
    pub url: String,
    /// Other places of the same file: asked when the ones before do not answer, break off, or
    /// have a file of another length.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mirrors: Vec<String>,
    /// Digest of the file as fetched; of a packed image that of its index, as `ferrite-image
    /// pack` and `info` print it. Required unless `allow_unverified`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// A URL of a file of digests, as `sha256sum` or `sha512sum` write them (GNU's or BSD's form):
    /// the one of the image's file name counts, or the only one. In place of `digest`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest_url: Option<String>,
    /// Digest of the disk's bytes that the file holds, besides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw_digest: Option<Digest>,
    /// Who vouches for a packed image instead of, or besides, a digest: minisign's public key, the
    /// line that begins with `RW`. The signature is in the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed_by: Option<String>,
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
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// The bytes of the disk, one after the other.
    #[default]
    Raw,
    /// QEMU's copy-on-write image, version 2 or 3.
    Qcow2,
    /// What `ferrite-image pack` writes: zstd frames that can be fetched each for itself, and an
    /// index that vouches for them.
    Packed,
}

/// How an image file is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
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
    /// bzip2, several streams allowed.
    Bzip2,
    /// The lz4 frame format, several frames allowed.
    Lz4,
}

impl Compression {
    /// What the first bytes of a file say. At least six bytes are needed to be sure.
    pub fn of(first: &[u8]) -> Self {
        match first {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, ..]
            | [b'B', b'Z', b'h', b'1'..=b'9', 0x17, 0x72, ..] => Self::Bzip2,
            [0x04, 0x22, 0x4d, 0x18, ..] => Self::Lz4,
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
    /// Not `http`, `https` or `oci`.
    #[error("image URL {0:?} is none of http://, https:// and oci://")]
    Scheme(String),
    /// Credentials inside the URL end up in logs.
    #[error("image URL carries a user name or password: remove it")]
    UserInfo,
    /// A host that readers of URLs do not all read alike, or none.
    #[error("image URL {url:?}: {what}")]
    Host {
        /// The URL.
        url: String,
        /// What about it.
        what: &'static str,
    },
    /// Nobody is sent there.
    #[error("image URL {url:?}: {why}")]
    Address {
        /// The URL.
        url: String,
        /// Why.
        why: Refused,
    },
    /// Other files have no signature in them.
    #[error("signed_by is for images of format packed; for others give a digest")]
    NotSigned,
    /// No public key that could have signed anything.
    #[error("signed_by is no minisign public key: give the line of 56 characters that begins RW")]
    Key,
    /// Nothing vouches for the bytes.
    #[error(
        "image {0:?} has no digest: give sha256:…, sha512:… or blake3:…, or allow it unverified"
    )]
    NoDigest(String),
    /// Two things vouch for the bytes, and might disagree.
    #[error("image {0:?} has a digest and a URL of one: give only one of them")]
    TwoDigests(String),
    /// The index of a packed image stands in no file of digests.
    #[error("packed image {0:?} has no digest of its index: `ferrite-image info` prints it")]
    NoIndexDigest(String),
    /// The conductor cannot pack it.
    #[error("the conductor does not pack this image: {0}")]
    NotPacked(&'static str),
    /// More than anybody would try.
    #[error("image {0:?} has more than 8 mirrors")]
    Mirrors(String),
}

/// Characters of a URL.
const LONGEST: usize = 2048;
/// Most mirrors.
const MIRRORS: usize = 8;

impl ImageRef {
    /// Checks the form: all that can be checked without knowing who fetches. A host that one
    /// reader of URLs takes for a name and another for an address does not pass.
    pub fn validate(&self) -> Result<(), InvalidImage> {
        for url in self.urls().skip(usize::from(self.uploaded().is_some())) {
            host(url)?;
        }
        if self.mirrors.len() > MIRRORS {
            return Err(InvalidImage::Mirrors(shown(&self.url)));
        }
        if let Some(artifact) = self.urls().skip(1).find(|url| OciRef::is(url)) {
            return Err(InvalidImage::Scheme(shown(artifact)));
        }
        self.check_vouched()
    }

    /// Checks that something vouches for the bytes, or that nothing has to.
    pub fn check_vouched(&self) -> Result<(), InvalidImage> {
        if self.signed_by.is_some() && self.format != Format::Packed {
            return Err(InvalidImage::NotSigned);
        }
        if self.signed_by.as_deref().is_some_and(|key| !is_key(key)) {
            return Err(InvalidImage::Key);
        }
        if self.digest.is_some() && self.digest_url.is_some() {
            return Err(InvalidImage::TwoDigests(shown(&self.url)));
        }
        let by_file = self.digest_url.is_some();
        if by_file && self.format == Format::Packed {
            return Err(InvalidImage::NoIndexDigest(shown(&self.url)));
        }
        let by_index = self.digest.is_some() || self.signed_by.is_some();
        let by_name = OciRef::parse(&self.url).is_ok_and(|named| named.digest.is_some());
        // Whoever may give the file is who vouches for it; its packed form has a digest.
        let by_giver = self.uploaded().is_some();
        match self.format {
            _ if by_index || by_file || self.allow_unverified => Ok(()),
            Format::Raw | Format::Qcow2 if by_name || by_giver => Ok(()),
            Format::Packed if by_name => Err(InvalidImage::NoIndexDigest(shown(&self.url))),
            _ => Err(InvalidImage::NoDigest(shown(&self.url))),
        }
    }

    /// Checks that the URLs do not name a place that nobody is sent to. What their names resolve
    /// to is checked by whoever fetches.
    pub fn check_address(&self, policy: Policy) -> Result<(), InvalidImage> {
        for url in self.urls().skip(usize::from(self.uploaded().is_some())) {
            let checked = policy.check_host(host(url)?);
            checked.map_err(|why| InvalidImage::Address {
                url: shown(url),
                why,
            })?;
        }
        Ok(())
    }

    /// The named image whose file people give to the conductor: `upload://NAME`.
    pub fn uploaded(&self) -> Option<&str> {
        let name = self.url.strip_prefix("upload://")?;
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let ends = |byte: Option<u8>| byte.is_some_and(plain);
        let good = name.len() <= 63
            && ends(name.bytes().next())
            && ends(name.bytes().next_back())
            && name
                .bytes()
                .all(|byte| plain(byte) || b".-".contains(&byte));
        good.then_some(name)
    }

    /// Everything that the host is sent to.
    pub fn urls(&self) -> impl Iterator<Item = &str> {
        let others = self.mirrors.iter().chain(&self.digest_url);
        std::iter::once(&self.url).chain(others).map(String::as_str)
    }
}

/// Whether a text has the form of minisign's public key: 42 bytes in Base64, the first two `Ed`.
fn is_key(text: &str) -> bool {
    let base64 = |byte: u8| byte.is_ascii_alphanumeric() || b"+/".contains(&byte);
    text.len() == 56 && text.starts_with("RW") && text.bytes().all(base64)
}

fn shown(url: &str) -> String {
    url.chars().take(200).collect()
}

/// The host that a URL names.
fn host(url: &str) -> Result<&str, InvalidImage> {
    let wrong = |what| InvalidImage::Host {
        url: shown(url),
        what,
    };
    let schemes = ["http://", "https://", "oci://", "oci+http://"];
    let rest = schemes
        .iter()
        .find_map(|scheme| url.strip_prefix(scheme))
        .filter(|rest| !rest.is_empty())
        .ok_or_else(|| InvalidImage::Scheme(shown(url)))?;
    if url.len() > LONGEST {
        return Err(wrong("it is longer than 2048 characters"));
    }
    let odd = |c: char| c == '\\' || c.is_whitespace() || c.is_control();
    if url.chars().any(odd) {
        return Err(wrong("it has a space, a backslash or a control character"));
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    if authority.contains('@') {
        return Err(InvalidImage::UserInfo);
    }
    let (host, port) = split(authority).map_err(wrong)?;
    check_port(port).map_err(wrong)?;
    check_name(host).map_err(wrong)?;
    if OciRef::is(url) {
        OciRef::parse(url).map_err(wrong)?;
    }
    Ok(host)
}

/// Host and port of an authority.
fn split(authority: &str) -> Result<(&str, Option<&str>), &'static str> {
    let Some(after) = authority.strip_prefix('[') else {
        return Ok(match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        });
    };
    let (address, port) = after.split_once(']').ok_or("its `[` is not closed")?;
    address
        .parse::<Ipv6Addr>()
        .map_err(|_| "what stands in `[…]` is no IPv6 address")?;
    let port = match port {
        "" => None,
        port => Some(port.strip_prefix(':').ok_or("something follows its `]`")?),
    };
    Ok((&authority[..address.len() + 2], port))
}

fn check_port(port: Option<&str>) -> Result<(), &'static str> {
    let Some(port) = port else { return Ok(()) };
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    match port.parse::<u16>() {
        Ok(number) if digits && number > 0 => Ok(()),
        _ => Err("its port is not a number from 1 to 65535"),
    }
}

/// A name of letters, digits, `-`, `_` and dots; or an IPv4 address in its one usual form.
fn check_name(host: &str) -> Result<(), &'static str> {
    if host.starts_with('[') {
        return Ok(());
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    let name = host.strip_suffix('.').unwrap_or(host);
    if name.is_empty() || host.len() > 253 {
        return Err("it names no host");
    }
    if !host.chars().all(plain) {
        return Err("its host has characters other than A-Z, a-z, 0-9, `-`, `_` and `.`");
    }
    if name
        .split('.')
        .any(|label| label.is_empty() || label.len() > 63)
    {
        return Err("a part of its host's name is empty or longer than 63 characters");
    }
    // 2130706433, 0177.1 and 0x7f.0.0.1 are addresses to some: what ends like a number is one.
    let last = name.rsplit('.').next().unwrap_or(name);
    let number = last.starts_with(|c: char| c.is_ascii_digit())
        && (last.bytes().all(|byte| byte.is_ascii_digit()) || is_hex(last));
    if number && (host != name || name.parse::<Ipv4Addr>().is_err()) {
        return Err("its host looks like an IPv4 address, and is not four numbers up to 255");
    }
    Ok(())
}

fn is_hex(label: &str) -> bool {
    let digits = label
        .strip_prefix("0x")
        .or_else(|| label.strip_prefix("0X"));
    digits.is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(url: &str) -> ImageRef {
        ImageRef {
            url: url.into(),
            mirrors: Vec::new(),
            digest: None,
            digest_url: None,
            raw_digest: None,
            signed_by: None,
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
        let signed = ImageRef {
            signed_by: Some(format!("RW{}", "a".repeat(54))),
            ..unvouched
        };
        assert_eq!(signed.validate(), Err(InvalidImage::NotSigned));
        let packed = ImageRef {
            format: Format::Packed,
            ..signed
        };
        assert_eq!(packed.validate(), Ok(()));
        for key in ["", "RW", &"a".repeat(56), &format!("RW{}", "=".repeat(54))] {
            let signed_by = Some(key.to_owned());
            let signed = ImageRef {
                signed_by,
                ..packed.clone()
            };
            assert_eq!(signed.validate(), Err(InvalidImage::Key), "{key}");
        }
    }

    #[test]
    fn something_vouches_for_the_bytes() {
        let sums = ImageRef {
            digest_url: Some("https://h/SHA256SUMS".into()),
            allow_unverified: false,
            ..image("http://h/x")
        };
        assert_eq!(sums.validate(), Ok(()));
        let both = ImageRef {
            digest: Some(format!("sha256:{}", "ab".repeat(32)).parse().unwrap()),
            ..sums.clone()
        };
        let both = both.validate();
        assert!(matches!(both, Err(InvalidImage::TwoDigests(_))));
        let packed = ImageRef {
            format: Format::Packed,
            ..sums.clone()
        };
        let packed = packed.validate();
        assert!(matches!(packed, Err(InvalidImage::NoIndexDigest(_))));
        let named = format!("oci://r/os@sha256:{}", "ab".repeat(32));
        for (url, vouched) in [(named.as_str(), true), ("oci://r/os:1", false)] {
            let artifact = ImageRef {
                allow_unverified: false,
                ..image(url)
            };
            assert_eq!(artifact.validate().is_ok(), vouched, "{url}");
        }
    }

    #[test]
    fn every_place_is_checked() {
        let mut mirrored = image("http://h/x");
        mirrored.mirrors = vec!["http://m/x".into(), "file:///x".into()];
        assert!(mirrored.validate().is_err());
        mirrored.mirrors = vec!["http://169.254.169.254/x".into()];
        assert!(mirrored.check_address(Policy::Others).is_err());
        mirrored.mirrors = vec!["http://m/x".into(); 9];
        assert!(matches!(mirrored.validate(), Err(InvalidImage::Mirrors(_))));
        mirrored.mirrors.clear();
        mirrored.digest_url = Some("http://127.0.0.1/".into());
        assert!(mirrored.check_address(Policy::Others).is_err());
    }

    /// One a line; each is refused, and would be fetched from by a reader less strict.
    const HOSTILE: &str = include_str!("../testdata/hostile-urls.txt");

    #[test]
    fn hostile_urls_are_refused() {
        let hostile: Vec<String> = HOSTILE
            .lines()
            .filter(|line| !line.starts_with("# "))
            .map(|line| line.replace("\\t", "\t").replace("\\n", "\n"))
            .chain([format!("http://{}/", "a".repeat(64)), String::new()])
            .chain([format!("http://h/{}", "a".repeat(2048))])
            .collect();
        assert!(hostile.len() >= 60, "{}", hostile.len());
        for url in hostile {
            let image = image(&url);
            let checked = image
                .validate()
                .and_then(|()| image.check_address(Policy::Others));
            assert!(checked.is_err(), "{url}");
        }
    }

    #[test]
    fn ordinary_urls_pass() {
        for url in [
            "http://10.77.0.1:8080/image.raw.zst",
            "https://cloud.debian.org/images/x.raw?a=b@c#d",
            "http://images/x",
            "http://images.lan.:80/x",
            "http://[fd00::1]:8080/x",
            "http://[2001:db8::1]/x",
            "http://my_host-1.example/a%20b",
            "http://1password.example/",
            "http://0xcafe.example/",
        ] {
            let image = image(url);
            assert_eq!(image.validate(), Ok(()), "{url}");
            assert_eq!(image.check_address(Policy::Others), Ok(()), "{url}");
        }
    }
}
