//! A password's hash in the form of crypt(5), as the rescue ramdisk's login wants it: `$6$`,
//! Drepper's SHA-512 with 5,000 rounds.
//!
//! Only for passwords that we made ourselves, at random; not a store of people's passwords.

use sha2::{Digest, Sha512};

const ALPHABET: &[u8; 64] = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const ROUNDS: usize = 5000;
/// The longest salt that counts.
const SALT: usize = 16;

/// The hash of a password. The salt is any text; what crypt(5) does not know of it is replaced.
pub(crate) fn sha512(password: &str, salt: &str) -> String {
    let known = |c: char| if c.is_ascii_alphanumeric() { c } else { '.' };
    let salt: String = salt.chars().map(known).take(SALT).collect();
    let digest = rounds(password.as_bytes(), salt.as_bytes());
    format!("$6${salt}${}", encode(&digest))
}

/// As much of the repeated digest as `len` bytes.
fn stretched(digest: &[u8], len: usize) -> Vec<u8> {
    digest.iter().copied().cycle().take(len).collect()
}

fn first(password: &[u8], salt: &[u8]) -> Vec<u8> {
    let other = Sha512::new()
        .chain_update(password)
        .chain_update(salt)
        .chain_update(password)
        .finalize();
    let mut sum = Sha512::new()
        .chain_update(password)
        .chain_update(salt)
        .chain_update(stretched(&other, password.len()));
    let mut bits = password.len();
    while bits > 0 {
        if bits & 1 == 1 {
            sum.update(other);
        } else {
            sum.update(password);
        }
        bits >>= 1;
    }
    sum.finalize().to_vec()
}

fn rounds(password: &[u8], salt: &[u8]) -> Vec<u8> {
    let mut sum = first(password, salt);
    let of_password = Sha512::digest(password.repeat(password.len()));
    let p = stretched(&of_password, password.len());
    let of_salt = Sha512::digest(salt.repeat(16 + usize::from(sum[0])));
    let s = stretched(&of_salt, salt.len());
    for round in 0..ROUNDS {
        let odd = round % 2 == 1;
        let mut next = Sha512::new();
        next.update(if odd { &p } else { &sum });
        if round % 3 != 0 {
            next.update(&s);
        }
        if round % 7 != 0 {
            next.update(&p);
        }
        next.update(if odd { &sum } else { &p });
        sum = next.finalize().to_vec();
    }
    sum
}

/// Crypt's own base64, of bytes in crypt's own order.
fn encode(digest: &[u8]) -> String {
    let mut text = String::new();
    let mut put = |bytes: [u8; 3], digits: u32| {
        let [high, middle, low] = bytes.map(u32::from);
        let word = high << 16 | middle << 8 | low;
        for digit in 0..digits {
            let index = (word >> (6 * digit)) & 63;
            let index = usize::try_from(index).unwrap_or_default();
            text.push(char::from(ALPHABET[index]));
        }
    };
    let (mut a, mut b, mut c) = (0, 21, 42);
    for _ in 0..21 {
        put([digest[a], digest[b], digest[c]], 4);
        (a, b, c) = (b + 1, c + 1, a + 1);
    }
    put([0, 0, digest[63]], 2);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `openssl passwd -6` says of the same; the first is Drepper's own example.
    #[test]
    fn hashes_are_those_of_other_programs() {
        assert_eq!(
            sha512("Hello world!", "saltstring"),
            "$6$saltstring$svn8UoSVapNtMuq1ukKS4tPQd8iKwSMHWjl/O817G3uBnI\
             FNjnQJuesI68u4OTLiBFdcbYEdFCoEOfaS35inz1"
        );
        let long = "a-password_of-more-than-sixty-four-bytes-is-stretched-by-repeating-the-digest";
        assert_eq!(
            sha512(long, "0123456789abcdef"),
            "$6$0123456789abcdef$9TxbYR6/xBI6K4BA.as7Jlv7z6o05Yx8240uzb2M\
             SEfJnvSmCydF5Mu8fHvKIanNIxub7F.e18VPP279IiWzp1"
        );
    }
}
