//! Files of digests, as `sha256sum` and its kin write them: GNU's form `<hex>  <name>` and BSD's
//! `SHA256 (<name>) = <hex>`. Pure: which digest is that of which file.

use ferrite_proto::digest::{Algorithm, Digest, from_hex};

/// Lines that are looked at.
const LINES: usize = 20_000;

/// Why a file of digests vouches for nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadSums {
    #[error("it is no text")]
    NoText,
    #[error("it has no digest")]
    Empty,
    #[error("it has digests of other files, and none of {0:?}")]
    Missing(String),
    #[error("it has several digests of {0:?} that differ")]
    Several(String),
    #[error("its digest is MD5 or SHA-1, which can be forged: publish SHA-256 or SHA-512")]
    Weak,
    #[error("its line {0} is no digest")]
    Line(usize),
}

/// One line.
#[derive(Debug, PartialEq, Eq)]
struct Sum<'a> {
    /// Nothing when the line is a digest alone.
    name: Option<&'a str>,
    digest: Result<Digest, BadSums>,
}

/// The digest of the file called `name`; without such a line, that of the only one.
pub(super) fn digest_of(name: &str, sums: &[u8]) -> Result<Digest, BadSums> {
    let text = std::str::from_utf8(sums).map_err(|_| BadSums::NoText)?;
    // A signature within the file is for people: nobody here has the keys of all publishers.
    let text = text
        .split("-----BEGIN PGP SIGNATURE")
        .next()
        .unwrap_or(text);
    let beside = |line: &str| line.starts_with(['#', '-']) || line.starts_with("Hash: ");
    let sums: Vec<Sum<'_>> = text
        .lines()
        .enumerate()
        .take(LINES)
        .filter(|(_, line)| !line.trim().is_empty() && !beside(line))
        .map(|(at, line)| sum(line.trim_end()).ok_or(BadSums::Line(at + 1)))
        .collect::<Result<_, _>>()?;
    let named = |sum: &&Sum<'_>| sum.name.is_some_and(|found| is_same(found, name));
    let mut fitting: Vec<&Sum<'_>> = sums.iter().filter(named).collect();
    if fitting.is_empty() {
        match sums.as_slice() {
            [] => return Err(BadSums::Empty),
            [only] => fitting.push(only),
            _ => return Err(BadSums::Missing(name.to_owned())),
        }
    }
    // A file may have each digest in several strengths: the strong ones count.
    let strong = fitting.iter().find(|sum| sum.digest.is_ok());
    let chosen = strong.unwrap_or(&fitting[0]).digest.clone()?;
    let differs = |sum: &&Sum<'_>| match &sum.digest {
        Ok(digest) => digest.algorithm() == chosen.algorithm() && *digest != chosen,
        Err(_) => false,
    };
    if fitting.iter().any(differs) {
        return Err(BadSums::Several(name.to_owned()));
    }
    Ok(chosen)
}

/// `./os.raw` and `images/os.raw` are the file os.raw, too.
fn is_same(found: &str, name: &str) -> bool {
    found.rsplit('/').next() == Some(name)
}

fn sum(line: &str) -> Option<Sum<'_>> {
    bsd(line).or_else(|| gnu(line))
}

/// `SHA256 (os.raw) = 0123…`
fn bsd(line: &str) -> Option<Sum<'_>> {
    let (kind, rest) = line.split_once(" (")?;
    let (name, hex) = rest.rsplit_once(") = ")?;
    let kind = kind.to_ascii_lowercase().replace('-', "");
    let algorithm = match kind.as_str() {
        "sha256" => Algorithm::Sha256,
        "sha512" => Algorithm::Sha512,
        "blake3" => Algorithm::Blake3,
        "md5" | "sha1" => {
            let name = Some(name);
            let digest = Err(BadSums::Weak);
            return Some(Sum { name, digest });
        }
        _ => return None,
    };
    let digest = Digest::new(algorithm, from_hex(hex)?).ok()?;
    Some(Sum {
        name: Some(name),
        digest: Ok(digest),
    })
}

/// `0123…  os.raw`, `0123… *os.raw`, or `0123…` alone. Its length tells what it is.
fn gnu(line: &str) -> Option<Sum<'_>> {
    let (hex, name) = match line.split_once([' ', '\t']) {
        Some((hex, name)) => (hex, Some(name.trim_start_matches([' ', '\t']))),
        None => (line, None),
    };
    let name = name.map(|name| name.strip_prefix('*').unwrap_or(name));
    let bytes = from_hex(hex)?;
    let digest = match bytes.len() {
        16 | 20 => Err(BadSums::Weak),
        32 => Ok(Algorithm::Sha256),
        64 => Ok(Algorithm::Sha512),
        _ => return None,
    };
    let digest = digest.map(|algorithm| Digest::new(algorithm, bytes));
    Some(Sum {
        name,
        digest: match digest {
            Ok(digest) => Ok(digest.ok()?),
            Err(weak) => Err(weak),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(byte: &str, bytes: usize) -> String {
        byte.repeat(bytes)
    }

    fn of(name: &str, sums: &str) -> Result<String, BadSums> {
        digest_of(name, sums.as_bytes()).map(|digest| digest.to_string())
    }

    #[test]
    fn both_forms_are_read() {
        let (a, b) = (hex("aa", 32), hex("bb", 64));
        let sha256 = Ok(format!("sha256:{a}"));
        for line in [
            format!("{a}  os.raw"),
            format!("{a} *os.raw"),
            format!("{a}  ./os.raw"),
            format!("{a}\tos.raw"),
            format!("{}  os.raw\r", a.to_uppercase()),
            format!("SHA256 (os.raw) = {a}"),
            a.clone(),
            format!("{a}  under-another-name.raw"),
            format!("# a comment\n\n{a}  os.raw"),
            format!(
                "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512\n\n{a}  os.raw\n\
                     -----BEGIN PGP SIGNATURE-----\n\niQIzBAEBCgAdFiEE\n=abcd\n"
            ),
        ] {
            assert_eq!(of("os.raw", &line), sha256, "{line}");
        }
        assert_eq!(of("x", &format!("{b}  x")), Ok(format!("sha512:{b}")));
        let blake3 = format!("BLAKE3 (x) = {a}");
        assert_eq!(of("x", &blake3), Ok(format!("blake3:{a}")));
    }

    #[test]
    fn the_line_of_the_file_counts() {
        let (a, b) = (hex("aa", 32), hex("bb", 32));
        let sums = format!("{a}  one.raw\n{b}  two.raw\n");
        assert_eq!(of("two.raw", &sums), Ok(format!("sha256:{b}")));
        let missing = Err(BadSums::Missing("three.raw".into()));
        assert_eq!(of("three.raw", &sums), missing);
        let twice = format!("{a}  one.raw\n{b}  one.raw\n");
        assert_eq!(
            of("one.raw", &twice),
            Err(BadSums::Several("one.raw".into()))
        );
        let mixed = format!("MD5 (x) = {}\nSHA256 (x) = {a}\n", hex("00", 16));
        assert_eq!(of("x", &mixed), Ok(format!("sha256:{a}")));
    }

    #[test]
    fn weak_digests_and_other_files_vouch_for_nothing() {
        for weak in [hex("aa", 16), hex("aa", 20)] {
            assert_eq!(of("x", &format!("{weak}  x")), Err(BadSums::Weak));
        }
        let sha1 = format!("SHA1 (x) = {}", hex("aa", 20));
        assert_eq!(of("x", &sha1), Err(BadSums::Weak));
        assert_eq!(of("x", ""), Err(BadSums::Empty));
        assert_eq!(of("x", "<html>\n"), Err(BadSums::Line(1)));
        assert_eq!(digest_of("x", &[0xff, 0xfe]), Err(BadSums::NoText));
        assert_eq!(
            of("x", &format!("{}  x", hex("aa", 31))),
            Err(BadSums::Line(1))
        );
    }
}
