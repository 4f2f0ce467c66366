//! Whether bytes are all zero: a disk can make zeros itself.

/// Whether all bytes are zero; so are none. Looks at 64 at a time, and ends at the first that
/// are not.
pub fn is_zero(bytes: &[u8]) -> bool {
    let (lines, rest) = bytes.as_chunks::<64>();
    let any = |line: &[u8; 64]| {
        let (words, _) = line.as_chunks::<8>();
        words
            .iter()
            .fold(0, |sum, word| sum | u64::from_ne_bytes(*word))
    };
    lines.iter().all(|line| any(line) == 0) && rest.iter().all(|&byte| byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_anywhere_is_not_zero() {
        let mut bytes = vec![0; 64 * 3 + 5];
        assert!(is_zero(&bytes) && is_zero(&[]));
        for at in 0..bytes.len() {
            bytes[at] = 1;
            assert!(!is_zero(&bytes), "{at}");
            bytes[at] = 0;
        }
    }
}
