//! Sizes as people write them (`100GiB`, `500GB`, `4096`) and as the wire carries them (bytes).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// 2^20 bytes.
pub const MIB: u64 = 1 << 20;
/// 2^30 bytes.
pub const GIB: u64 = 1 << 30;

/// A number of bytes. Read from a JSON number, or from text with a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "Written", into = "u64")]
pub struct ByteSize(pub u64);

/// Text that is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a size: write bytes, or a number with KiB, MiB, GiB, TiB, kB, MB, GB or TB")]
pub struct InvalidSize(String);

#[derive(Deserialize)]
#[serde(try_from = "Raw")]
struct Written(u64);

#[derive(Deserialize)]
#[serde(untagged)]
enum Raw {
    Bytes(u64),
    Text(String),
}

impl TryFrom<Raw> for Written {
    type Error = InvalidSize;
    fn try_from(raw: Raw) -> Result<Self, Self::Error> {
        match raw {
            Raw::Bytes(bytes) => Ok(Self(bytes)),
            Raw::Text(text) => text.parse::<ByteSize>().map(|size| Self(size.0)),
        }
    }
}

impl From<Written> for ByteSize {
    fn from(written: Written) -> Self {
        Self(written.0)
    }
}

impl From<ByteSize> for u64 {
    fn from(size: ByteSize) -> Self {
        size.0
    }
}

const UNITS: [(&str, u64); 9] = [
    ("kib", 1 << 10),
    ("mib", MIB),
    ("gib", GIB),
    ("tib", 1 << 40),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("b", 1),
];

impl FromStr for ByteSize {
    type Err = InvalidSize;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidSize(text.chars().take(40).collect());
        let lower = text.trim().to_ascii_lowercase();
        let (number, unit) = UNITS
            .iter()
            .find_map(|(suffix, unit)| Some((lower.strip_suffix(suffix)?, *unit)))
            .unwrap_or((lower.as_str(), 1));
        let number: u64 = number.trim().parse().map_err(|_| invalid())?;
        number.checked_mul(unit).map(Self).ok_or_else(invalid)
    }
}

impl fmt::Display for ByteSize {
    /// Three significant places at most, in binary units: `2.44 GiB`, `512 B`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, name) = match self.0 {
            0..1_024 => return write!(f, "{} B", self.0),
            1_024..MIB => (1 << 10, "KiB"),
            MIB..GIB => (MIB, "MiB"),
            GIB..0x100_0000_0000 => (GIB, "GiB"),
            _ => (1 << 40, "TiB"),
        };
        let (whole, rest) = (self.0 / unit, self.0 % unit);
        let hundredths = rest * 100 / unit;
        match whole {
            100.. => write!(f, "{whole} {name}"),
            10..100 => write!(f, "{whole}.{} {name}", hundredths / 10),
            _ => write!(f, "{whole}.{hundredths:02} {name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_binary_or_decimal_as_written() {
        assert_eq!("4 GiB".parse(), Ok(ByteSize(4 * GIB)));
        assert_eq!("500GB".parse(), Ok(ByteSize(500_000_000_000)));
        assert_eq!("4096".parse(), Ok(ByteSize(4096)));
        assert!("4.5GiB".parse::<ByteSize>().is_err());
        assert!("99999999999TiB".parse::<ByteSize>().is_err());
    }

    #[test]
    fn both_json_forms_are_read_and_a_number_is_written() {
        assert_eq!(
            serde_json::from_str::<ByteSize>("\"1MiB\"").unwrap(),
            ByteSize(MIB)
        );
        assert_eq!(serde_json::to_string(&ByteSize(7)).unwrap(), "7");
        assert!(serde_json::from_str::<ByteSize>("\"much\"").is_err());
    }

    #[test]
    fn people_see_three_places() {
        assert_eq!(ByteSize(512).to_string(), "512 B");
        assert_eq!(ByteSize(2_620_000_000).to_string(), "2.44 GiB");
        assert_eq!(ByteSize(25 * MIB + MIB / 2).to_string(), "25.5 MiB");
    }
}
