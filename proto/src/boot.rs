//! What a boot medium tells the ramdisk: typed values, never glued strings.
//!
//! The same words stand on the kernel command line (iPXE) and, one a line, in the `BOOT.CFG` of a
//! virtual-media ISO. Values are of a character set that needs no quoting anywhere, checked when
//! they are made and when they are read.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::digest::{from_hex, to_hex};
use crate::secret::Secret;

/// First line of an ISO's `BOOT.CFG`.
pub const BOOT_CFG_MAGIC: &str = "# ferrite boot configuration v1";
/// Bytes reserved for `BOOT.CFG` on an ISO.
pub const BOOT_CFG_BYTES: usize = 4096;

/// SHA-256 of the DER of the CA certificate that must have issued the conductor's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CaPin(pub [u8; 32]);

impl fmt::Display for CaPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", to_hex(&self.0))
    }
}

impl FromStr for CaPin {
    type Err = InvalidBoot;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.strip_prefix("sha256:")
            .and_then(from_hex)
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self)
            .ok_or(InvalidBoot::Value {
                word: "ferrite.ca",
                wanted: "sha256:<64 hex digits>",
            })
    }
}

impl TryFrom<String> for CaPin {
    type Error = InvalidBoot;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<CaPin> for String {
    fn from(pin: CaPin) -> Self {
        pin.to_string()
    }
}

/// What the ramdisk must know to say hello.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootParameters {
    /// `https://host:port` of the conductor, no path.
    pub url: String,
    /// What its certificate chain must contain.
    pub ca: CaPin,
    /// Random, for this boot only.
    pub ticket: Secret<String>,
    /// Seconds since 1970 when the medium was made: the clock is set forward to it at least, so
    /// that certificates are valid on a machine whose battery is flat.
    pub time: Option<i64>,
}

/// Boot words that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidBoot {
    /// A word is not there.
    #[error("the boot medium does not say {0}")]
    Missing(&'static str),
    /// A word's value is malformed.
    #[error("the boot medium's {word} is malformed: wanted {wanted}")]
    Value {
        /// The word.
        word: &'static str,
        /// The form that is read.
        wanted: &'static str,
    },
}

impl BootParameters {
    /// Reads the words out of a kernel command line or a `BOOT.CFG`. Other words are ignored; the
    /// last of several same words counts, as for the kernel.
    pub fn parse(text: &str) -> Result<Self, InvalidBoot> {
        let find = |word: &'static str| {
            let words = text
                .lines()
                .filter(|line| !line.starts_with('#'))
                .flat_map(str::split_whitespace);
            let value = words
                .filter_map(|w| w.strip_prefix(word)?.strip_prefix('='))
                .next_back();
            value.ok_or(InvalidBoot::Missing(word))
        };
        let time = match find("ferrite.time") {
            Ok(text) => Some(text.parse().map_err(|_| InvalidBoot::Value {
                word: "ferrite.time",
                wanted: "seconds since 1970",
            })?),
            Err(_) => None,
        };
        let parameters = Self {
            url: find("ferrite.url")?.to_owned(),
            ca: find("ferrite.ca")?.parse()?,
            ticket: Secret::new(find("ferrite.ticket")?.to_owned()),
            time,
        };
        parameters.validate()?;
        Ok(parameters)
    }

    /// Refuses values that would need quoting on a kernel command line or in an iPXE script.
    pub fn validate(&self) -> Result<(), InvalidBoot> {
        let plain = |text: &str, extra: &str| {
            text.chars()
                .all(|c| c.is_ascii_alphanumeric() || extra.contains(c))
        };
        let authority = self.url.strip_prefix("https://").unwrap_or("");
        if authority.is_empty() || self.url.len() > 255 || !plain(authority, ".:-[]") {
            return Err(InvalidBoot::Value {
                word: "ferrite.url",
                wanted: "https://host:port",
            });
        }
        let ticket = self.ticket.expose();
        if !(16..=128).contains(&ticket.len()) || !plain(ticket, "-_") {
            return Err(InvalidBoot::Value {
                word: "ferrite.ticket",
                wanted: "16 to 128 of A-Za-z0-9-_",
            });
        }
        Ok(())
    }

    /// The words, as `name=value`, in a fixed order. Contains the ticket in clear.
    pub fn words(&self) -> Vec<String> {
        let mut words = vec![
            format!("ferrite.url={}", self.url),
            format!("ferrite.ca={}", self.ca),
            format!("ferrite.ticket={}", self.ticket.expose()),
        ];
        words.extend(self.time.map(|time| format!("ferrite.time={time}")));
        words
    }

    /// The reserved extent of an ISO: the magic line, a word a line, padded with newlines.
    pub fn boot_cfg(&self) -> [u8; BOOT_CFG_BYTES] {
        let text = format!("{BOOT_CFG_MAGIC}\n{}\n", self.words().join("\n"));
        let mut extent = [b'\n'; BOOT_CFG_BYTES];
        let taken = text.len().min(BOOT_CFG_BYTES);
        extent[..taken].copy_from_slice(&text.as_bytes()[..taken]);
        extent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters() -> BootParameters {
        BootParameters {
            url: "https://10.77.0.1:7443".into(),
            ca: CaPin([7; 32]),
            ticket: Secret::new("abcdefghijklmnop-_".into()),
            time: Some(1_795_000_000),
        }
    }

    #[test]
    fn the_command_line_and_boot_cfg_say_the_same() {
        let given = parameters();
        let line = format!("initrd=x console=ttyS0 {} quiet", given.words().join(" "));
        assert_eq!(BootParameters::parse(&line), Ok(given.clone()));
        let extent = given.boot_cfg();
        assert_eq!(
            BootParameters::parse(std::str::from_utf8(&extent).unwrap()),
            Ok(given)
        );
    }

    #[test]
    fn what_would_need_quoting_is_refused() {
        for url in [
            "http://a",
            "https://",
            "https://a b",
            "https://a/\"",
            "https://${x}",
        ] {
            let bad = BootParameters {
                url: url.into(),
                ..parameters()
            };
            assert!(bad.validate().is_err(), "{url}");
        }
        let bad = BootParameters {
            ticket: Secret::new("short".into()),
            ..parameters()
        };
        assert!(bad.validate().is_err());
    }

    #[test]
    fn a_missing_word_is_named() {
        assert_eq!(
            BootParameters::parse("quiet"),
            Err(InvalidBoot::Missing("ferrite.url"))
        );
    }
}
