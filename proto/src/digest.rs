//! Digests as people give them: `sha256:<hex>`, `sha512:<hex>` or `blake3:<hex>`.
//!
//! MD5 and SHA-1 are refused by name: a digest that can be forged proves nothing.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The algorithms that count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// SHA-256, 32 bytes.
    Sha256,
    /// SHA-512, 64 bytes.
    Sha512,
    /// BLAKE3, 32 bytes.
    Blake3,
}

impl Algorithm {
    /// The name as written before the colon.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
            Self::Blake3 => "blake3",
        }
    }

    /// Bytes of a digest.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Sha256 | Self::Blake3 => 32,
            Self::Sha512 => 64,
        }
    }
}

/// A digest: for a file as fetched, what `sha256sum`, `sha512sum` or `b3sum` prints for it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest {
    algorithm: Algorithm,
    bytes: Vec<u8>,
}

impl Digest {
    /// A digest from an algorithm and its output.
    ///
    /// # Errors
    /// When the length is not the algorithm's.
    pub fn new(algorithm: Algorithm, bytes: Vec<u8>) -> Result<Self, InvalidDigest> {
        if bytes.len() == algorithm.bytes() {
            Ok(Self { algorithm, bytes })
        } else {
            Err(InvalidDigest::Length {
                algorithm: algorithm.name(),
                wanted: algorithm.bytes() * 2,
            })
        }
    }

    /// How it was computed.
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The digest's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Text that is not a digest that counts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDigest {
    /// No `algorithm:` in front.
    #[error("a digest is written sha256:<hex>, sha512:<hex> or blake3:<hex>")]
    Form,
    /// MD5, SHA-1 or something unheard of.
    #[error("digest algorithm {0:?} is not accepted: use sha256, sha512 or blake3")]
    Algorithm(String),
    /// Too short or too long.
    #[error("a {algorithm} digest has {wanted} hex digits")]
    Length {
        /// The algorithm named.
        algorithm: &'static str,
        /// Hex digits that it has.
        wanted: usize,
    },
    /// Something that is not hex.
    #[error("a digest is written in hex digits")]
    Hex,
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, hex) = text.split_once(':').ok_or(InvalidDigest::Form)?;
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            "blake3" => Algorithm::Blake3,
            other => return Err(InvalidDigest::Algorithm(other.chars().take(20).collect())),
        };
        Self::new(algorithm, from_hex(hex).ok_or(InvalidDigest::Hex)?)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), to_hex(&self.bytes))
    }
}

impl TryFrom<String> for Digest {
    type Error = InvalidDigest;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

/// Lower-case hex.
pub fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|byte| {
            [
                DIGITS[usize::from(byte >> 4)],
                DIGITS[usize::from(byte & 15)],
            ]
        })
        .map(char::from)
        .collect()
}

/// Bytes of hex digits in either case; `None` for anything else.
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text
        .chars()
        .map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok()))
        .collect::<Option<_>>()?;
    let pairs = digits.chunks_exact(2);
    pairs
        .remainder()
        .is_empty()
        .then(|| pairs.map(|pair| pair[0] << 4 | pair[1]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_round_trips_in_lower_case() {
        for (name, bytes) in [("sha256", 32), ("sha512", 64), ("blake3", 32)] {
            let text = format!("{name}:{}", "aB".repeat(bytes));
            let digest: Digest = text.parse().unwrap();
            assert_eq!(digest.to_string(), text.to_lowercase());
        }
    }

    #[test]
    fn weak_or_malformed_digests_are_refused_by_name() {
        assert_eq!("ab".repeat(16).parse::<Digest>(), Err(InvalidDigest::Form));
        assert!(matches!(
            "md5:ab".parse::<Digest>(),
            Err(InvalidDigest::Algorithm(_))
        ));
        assert!(matches!(
            "sha256:ab".parse::<Digest>(),
            Err(InvalidDigest::Length { .. })
        ));
        let not_hex = format!("sha256:{}", "zz".repeat(32));
        assert_eq!(not_hex.parse::<Digest>(), Err(InvalidDigest::Hex));
    }
}
