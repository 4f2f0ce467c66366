//! Digests of the kinds that people give, taken as the bytes pass.

use std::io::{self, BufRead, Read};

use ferrite_proto::digest::{Algorithm, Digest};
use sha2::Digest as _;

/// Takes a digest of all bytes that it is given.
#[derive(Debug, Clone)]
pub struct Hasher {
    algorithm: Algorithm,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    Sha256(sha2::Sha256),
    Sha512(Box<sha2::Sha512>),
    Blake3(Box<blake3::Hasher>),
}

impl Hasher {
    /// Of no bytes yet.
    pub fn new(algorithm: Algorithm) -> Self {
        let kind = match algorithm {
            Algorithm::Sha256 => Kind::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => Kind::Sha512(Box::new(sha2::Sha512::new())),
            Algorithm::Blake3 => Kind::Blake3(Box::new(blake3::Hasher::new())),
        };
        Self { algorithm, kind }
    }

    /// The digest of some bytes.
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Digest {
        let mut hasher = Self::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    /// The next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.kind {
            Kind::Sha256(hasher) => hasher.update(bytes),
            Kind::Sha512(hasher) => hasher.update(bytes),
            Kind::Blake3(hasher) => {
                hasher.update(bytes);
            }
        }
    }

    /// The digest of all of them.
    ///
    /// # Panics
    /// Never: each algorithm makes as many bytes as it says.
    pub fn finish(self) -> Digest {
        let bytes = match self.kind {
            Kind::Sha256(hasher) => hasher.finalize().to_vec(),
            Kind::Sha512(hasher) => hasher.finalize().to_vec(),
            Kind::Blake3(hasher) => hasher.finalize().as_bytes().to_vec(),
        };
        Digest::new(self.algorithm, bytes).expect("a digest has its algorithm's length")
    }
}

/// A reader whose bytes are counted, and hashed if wanted.
#[derive(Debug)]
pub struct Digested<R> {
    inner: R,
    hasher: Option<Hasher>,
    count: u64,
}

impl<R: BufRead> Digested<R> {
    /// Hashes what will be read.
    pub fn new(inner: R, algorithm: Option<Algorithm>) -> Self {
        let hasher = algorithm.map(Hasher::new);
        Self {
            inner,
            hasher,
            count: 0,
        }
    }

    /// Reads what is left: a decoder may stop before its file's end. How many bytes there were in
    /// all, and their digest.
    ///
    /// # Errors
    /// When the rest cannot be read.
    pub fn finish(mut self) -> io::Result<(u64, Option<Digest>)> {
        loop {
            let length = self.fill_buf()?.len();
            if length == 0 {
                return Ok((self.count, self.hasher.map(Hasher::finish)));
            }
            self.consume(length);
        }
    }
}

impl<R: BufRead> BufRead for Digested<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    /// Hashes here, where bytes count as read.
    fn consume(&mut self, amount: usize) {
        // What was filled is there still: no reading happens, and no error.
        if let (Some(hasher), Ok(bytes)) = (&mut self.hasher, self.inner.fill_buf()) {
            hasher.update(bytes.get(..amount).unwrap_or(bytes));
        }
        self.count += amount as u64;
        self.inner.consume(amount);
    }
}

impl<R: BufRead> Read for Digested<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `printf abc | sha256sum`, `sha512sum` and `b3sum` print, their first digits.
    #[test]
    fn digests_are_those_of_the_usual_tools() {
        for (algorithm, expected) in [
            (Algorithm::Sha256, "sha256:ba7816bf8f01cfea"),
            (Algorithm::Sha512, "sha512:ddaf35a193617aba"),
            (Algorithm::Blake3, "blake3:6437b3ac38465133"),
        ] {
            let source = io::BufReader::with_capacity(2, &b"abc"[..]);
            let mut digested = Digested::new(source, Some(algorithm));
            digested.read_exact(&mut [0]).unwrap();
            let (count, digest) = digested.finish().unwrap();
            let digest = digest.unwrap();
            assert_eq!(count, 3);
            assert_eq!(digest, Hasher::of(algorithm, b"abc"));
            assert!(digest.to_string().starts_with(expected), "{digest}");
        }
    }
}
