//! The support bundle: what people send when they want help. A `tar.gz` of text files in which
//! nothing is secret: what is sealed is never opened for it, and what could carry a password in
//! its address is cut.

use std::io::{self, Write};

use flate2::Compression;
use flate2::write::GzEncoder;
use jiff::Timestamp;
use serde_json::Value;

/// What stands where something was cut.
const CUT: &str = "(cut)";
/// Bytes of a block of tar.
const BLOCK: usize = 512;

/// A bundle in the making.
#[derive(Debug)]
pub(crate) struct Bundle {
    out: GzEncoder<Vec<u8>>,
    at: Timestamp,
    folder: String,
}

impl Bundle {
    /// An empty one.
    pub(crate) fn new(at: Timestamp) -> Self {
        let folder = at.strftime("ferrite-support-%Y%m%d-%H%M%S").to_string();
        Self {
            out: GzEncoder::new(Vec::new(), Compression::fast()),
            at,
            folder,
        }
    }

    /// What it should be called.
    pub(crate) fn file_name(&self) -> String {
        format!("{}.tar.gz", self.folder)
    }

    /// Adds a file of this name, at most 60 characters.
    pub(crate) fn text(&mut self, name: &str, text: &[u8]) -> io::Result<()> {
        let path = format!("{}/{name}", self.folder);
        let size = text.len();
        self.out.write_all(&header(&path, size, self.at)?)?;
        self.out.write_all(text)?;
        let padding = size.next_multiple_of(BLOCK) - size;
        self.out.write_all(&[0; BLOCK][..padding])
    }

    /// Adds something as JSON, in lines that people can read.
    pub(crate) fn json(&mut self, name: &str, value: Value) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(&redacted(value))?;
        self.text(name, &text)
    }

    /// Adds values as JSON, one in a line.
    pub(crate) fn lines(
        &mut self,
        name: &str,
        values: impl IntoIterator<Item = Value>,
    ) -> io::Result<()> {
        let mut text = Vec::new();
        for value in values {
            serde_json::to_writer(&mut text, &redacted(value))?;
            text.push(b'\n');
        }
        self.text(name, &text)
    }

    /// The whole file.
    pub(crate) fn finish(mut self) -> io::Result<Vec<u8>> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.finish()
    }
}

/// The head of a file, as POSIX writes it (ustar).
fn header(path: &str, size: usize, at: Timestamp) -> io::Result<[u8; BLOCK]> {
    let mut head = [0; BLOCK];
    if path.len() > 100 {
        return Err(io::Error::other(format!("{path:?} is too long for tar")));
    }
    let mut put = |at: usize, text: &str| {
        head[at..at + text.len()].copy_from_slice(text.as_bytes());
    };
    put(0, path);
    put(100, "0000600\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{size:011o}\0"));
    put(136, &format!("{:011o}\0", at.as_second().max(0)));
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    put(265, "root");
    put(297, "root");
    let sum: u32 = head.iter().map(|byte| u32::from(*byte)).sum();
    head[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Ok(head)
}

/// Cuts what an address may carry, and whatever is named like a secret.
pub(crate) fn redacted(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(plain_address(text)),
        Value::Array(values) => values.into_iter().map(redacted).collect(),
        Value::Object(fields) => fields
            .into_iter()
            .map(|(name, value)| {
                let value = match &value {
                    Value::String(_) if is_secret(&name) => CUT.into(),
                    _ => redacted(value),
                };
                (name, value)
            })
            .collect(),
        value => value,
    }
}

/// A file that holds a secret may be named; a secret may not.
fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let like = ["password", "secret", "token", "credential", "private_key"];
    like.iter().any(|word| name.contains(word)) && !name.ends_with("_file")
}

/// An address without user, password and query.
fn plain_address(text: String) -> String {
    let Some((scheme, rest)) = text.split_once("://") else {
        return text;
    };
    let scheme_like = |c: char| c.is_ascii_alphanumeric() || "+.-".contains(c);
    if scheme.is_empty() || !scheme.chars().all(scheme_like) {
        return text;
    }
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    let (user, host) = authority
        .rsplit_once('@')
        .map_or(("", authority), |(_, host)| ("(cut)@", host));
    let (path, query) = tail
        .find(['?', '#'])
        .map_or((tail, ""), |at| (&tail[..at], "?(cut)"));
    format!("{scheme}://{user}{host}{path}{query}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn addresses_and_secrets_are_cut_and_the_rest_stays() {
        let before = json!({
            "url": "https://user:pass@images.example:8443/a.raw?X-Sig=abc#f",
            "plain": "https://images.example/a.raw",
            "text": "see https://x/y?z for more",
            "database": "postgres://ferrite:pw@db/ferrite?sslmode=require",
            "bmc_password": "hunter2", "secret_file": "/etc/key",
            "list": [{"token": "abc"}, 7, null],
        });
        let after = json!({
            "url": "https://(cut)@images.example:8443/a.raw?(cut)",
            "plain": "https://images.example/a.raw",
            "text": "see https://x/y?z for more",
            "database": "postgres://(cut)@db/ferrite?(cut)",
            "bmc_password": "(cut)", "secret_file": "/etc/key",
            "list": [{"token": "(cut)"}, 7, null],
        });
        assert_eq!(redacted(before), after);
    }

    #[test]
    fn tar_and_gzip_read_what_was_written() {
        let at: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        let mut bundle = Bundle::new(at);
        assert_eq!(bundle.file_name(), "ferrite-support-20261121-120000.tar.gz");
        bundle.text("log.jsonl", &b"x".repeat(1000)).unwrap();
        bundle.json("version.json", json!({"version": 1})).unwrap();
        bundle.lines("hosts.jsonl", [json!(1), json!(2)]).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("b.tar.gz");
        std::fs::write(&file, bundle.finish().unwrap()).unwrap();
        let read = std::process::Command::new("tar")
            .args(["-tvzf", &file.to_string_lossy()])
            .output()
            .unwrap();
        let listed = String::from_utf8(read.stdout).unwrap();
        assert!(read.status.success(), "{listed}");
        let lines: Vec<_> = listed.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[0].starts_with("-rw------- root/root") && lines[0].contains(" 1000 "));
        assert!(lines[2].ends_with("ferrite-support-20261121-120000/hosts.jsonl"));
        assert!(Bundle::new(at).text(&"n".repeat(99), b"").is_err());
    }
}
