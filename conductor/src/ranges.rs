//! Which bytes of a file a caller asks for (RFC 9110, 14). What is done about it is the caller's.

use std::ops::Range;

/// What a `Range` header asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// All of it: also for what we do not understand, as RFC 9110 wants.
    Whole,
    /// Some of it.
    Part(Range<u64>),
    /// What lies behind its end.
    Beyond,
}

/// Reads `bytes=A-B`, `bytes=A-` and `bytes=-N`. Several ranges at once are answered whole.
pub(crate) fn parse_range(text: &str, length: u64) -> Asked {
    let spec = text
        .trim()
        .strip_prefix("bytes=")
        .and_then(|s| s.split_once('-'));
    let Some((first, last)) = spec else {
        return Asked::Whole;
    };
    let number = |text: &str| text.trim().parse::<u64>();
    let range = match (number(first), number(last)) {
        (Ok(first), Ok(last)) if first > last => return Asked::Whole,
        (Ok(first), Ok(last)) => first..last.saturating_add(1).min(length),
        (Ok(first), Err(_)) if last.trim().is_empty() => first..length,
        (Err(_), Ok(count)) if first.trim().is_empty() => length.saturating_sub(count)..length,
        _ => return Asked::Whole,
    };
    if range.is_empty() {
        Asked::Beyond
    } else {
        Asked::Part(range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_rfc_9110_says() {
        assert_eq!(parse_range("bytes=0-0", 10), Asked::Part(0..1));
        assert_eq!(parse_range("bytes=5-", 10), Asked::Part(5..10));
        assert_eq!(parse_range("bytes=-3", 10), Asked::Part(7..10));
        assert_eq!(parse_range("bytes=-30", 10), Asked::Part(0..10));
        assert_eq!(parse_range("bytes=8-100", 10), Asked::Part(8..10));
        assert_eq!(
            parse_range("bytes=0-18446744073709551615", 10),
            Asked::Part(0..10)
        );
        assert_eq!(parse_range("bytes=10-", 10), Asked::Beyond);
        assert_eq!(parse_range("bytes=-0", 10), Asked::Beyond);
        for odd in [
            "",
            "bytes=",
            "lines=1-2",
            "bytes=1-2,4-5",
            "bytes=5-2",
            "bytes=a-b",
        ] {
            assert_eq!(parse_range(odd, 10), Asked::Whole, "{odd}");
        }
    }
}
