//! Images from a registry as others run it: Debian's `docker-registry` on loopback, with a login.
//! Artifacts are pushed by plain calls of the registry's API, and written by the agent's tool to a
//! file, by digest and by tag.
//!
//! A registry that lies on purpose is in the agent's own tests; here one file of the real
//! registry's store is changed behind its back.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use reqwest::blocking::{Client, RequestBuilder};
use reqwest::{StatusCode, header};
use serde_json::json;
use sha2::{Digest as _, Sha256};

const MIB: usize = 1 << 20;
const IMAGE: usize = 9 * MIB;
const NAME: &str = "me";
const PASSWORD: &str = "hunter2";
/// The password as `htpasswd -B` writes it, with the least work.
const HTPASSWD: &str = "me:$2b$04$dplI0hyabcmiWzcPqpoUxOmSv2a7hybwTXTOpRlBSqE/SFaBKSvQ.\n";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A registry on a folder of its own; gone when dropped.
struct Registry {
    dir: tempfile::TempDir,
    process: Child,
    at: String,
    client: Client,
}

impl Registry {
    fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let at = |name: &str| dir.path().join(name).display().to_string();
        fs::write(at("htpasswd"), HTPASSWD)?;
        fs::write(at("password"), PASSWORD)?;
        fs::write(at("wrong"), "letmein")?;
        let config = json!({
            "version": "0.1",
            "log": {"level": "info"},
            "storage": {"filesystem": {"rootdirectory": at("store")}},
            "http": {"addr": "127.0.0.1:0"},
            "auth": {"htpasswd": {"realm": "ours", "path": at("htpasswd")}},
        });
        // JSON is YAML as well.
        fs::write(at("config.yml"), config.to_string())?;
        let mut process = Command::new("docker-registry")
            .args(["serve", &at("config.yml")])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting docker-registry: `make deps` installs it")?;
        let log = process.stderr.take().context("a log")?;
        let at = listens_on(BufReader::new(log));
        let mut registry = Self {
            dir,
            process,
            at: String::new(),
            client: client()?,
        };
        registry.at = at?;
        Ok(registry)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn url(&self, rest: &str) -> String {
        format!("oci+http://{}/team/os{rest}", self.at)
    }

    /// Pushes an artifact with one layer, under a tag; its manifest's digest.
    fn push(&self, file: &[u8], tag: &str) -> Result<String> {
        let descriptor = |kind: &str, bytes: &[u8]| {
            let (digest, size) = (sha256(bytes), bytes.len());
            json!({"mediaType": kind, "digest": digest, "size": size})
        };
        let config = b"{}";
        self.push_blob(config)?;
        self.push_blob(file)?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor("application/vnd.oci.empty.v1+json", config),
            "layers": [descriptor("application/octet-stream", file)],
        });
        let text = manifest.to_string();
        let put = self
            .client
            .put(format!("http://{}/v2/team/os/manifests/{tag}", self.at));
        let put = put.header(header::CONTENT_TYPE, MANIFEST);
        Self::send(put.body(text.clone()), StatusCode::CREATED)?;
        Ok(sha256(text.as_bytes()))
    }

    fn push_blob(&self, bytes: &[u8]) -> Result<()> {
        let begin = format!("http://{}/v2/team/os/blobs/uploads/", self.at);
        let begun = Self::send(self.client.post(begin), StatusCode::ACCEPTED)?;
        let to = begun.headers()[header::LOCATION].to_str()?;
        let to = format!("{to}&digest={}", sha256(bytes));
        let put = self.client.put(to).body(bytes.to_vec());
        Self::send(put, StatusCode::CREATED).map(drop)
    }

    fn send(request: RequestBuilder, wanted: StatusCode) -> Result<reqwest::blocking::Response> {
        let answer = request.basic_auth(NAME, Some(PASSWORD)).send()?;
        let status = answer.status();
        ensure!(status == wanted, "{}: {status}", answer.url());
        Ok(answer)
    }

    /// Where the registry keeps what a digest names.
    fn stored(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        let blobs = "store/docker/registry/v2/blobs/sha256";
        self.file(&format!("{blobs}/{}/{hex}/data", &hex[..2]))
    }

    /// A disk full of something else, and the agent's answer when it is to be written.
    fn write(&self, url: &str, password: &str, more: &[&str]) -> (PathBuf, Output) {
        let disk = self.file("disk");
        fs::write(&disk, vec![0xa5; IMAGE]).expect("the folder is ours");
        let output = Command::new(program("ferrite-agent"))
            .args(["write-image", "--yes", "--source", url])
            .args(["--user", NAME, "--password-file"])
            .arg(self.file(password))
            .arg("--disk")
            .arg(&disk)
            .args(more)
            .output();
        (disk, output.expect("`make build` makes it"))
    }

    fn is_written(&self, url: &str, more: &[&str], image: &[u8]) -> Result<()> {
        let (disk, output) = self.write(url, "password", more);
        assert!(output.status.success(), "{url}: {}", said(&output));
        assert!(fs::read(disk)? == image, "{url}: other bytes");
        Ok(())
    }

    /// The answer names `words`, and the disk is as it was.
    fn is_refused(&self, url: &str, password: &str, words: &str) -> Result<()> {
        let (disk, output) = self.write(url, password, &[]);
        let told = said(&output);
        assert!(!output.status.success(), "{url} was written");
        assert!(told.contains(words), "{url}: {told}");
        assert!(!told.contains(PASSWORD), "{told}");
        let untouched = fs::read(disk)? == vec![0xa5; IMAGE];
        assert!(untouched, "{url}: the disk was touched");
        Ok(())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The address, as its log says it. Whatever it says later is read and dropped, so that it can
/// go on.
fn listens_on(log: BufReader<std::process::ChildStderr>) -> Result<String> {
    let mut lines = log.lines();
    let mut heard = String::new();
    for line in lines.by_ref() {
        let line = line?;
        if let Some((_, rest)) = line.split_once("listening on ") {
            let at = rest.split(['"', ',', ' ']).next().unwrap_or_default();
            let at = at.to_owned();
            std::thread::spawn(move || lines.for_each(drop));
            return Ok(at);
        }
        heard += &line;
        heard.push('\n');
    }
    anyhow::bail!("docker-registry ended: {heard}")
}

fn client() -> Result<Client> {
    // Already there when another test of this process was first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Ok(Client::builder().no_proxy().build()?)
}

fn sha256(bytes: &[u8]) -> String {
    let mut name = "sha256:".to_owned();
    for byte in Sha256::digest(bytes) {
        let _ = write!(name, "{byte:02x}");
    }
    name
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn program(name: &str) -> PathBuf {
    let ferrite = ferrite_tests::swarm::ferrite().expect("`make build` makes it");
    ferrite.with_file_name(name)
}

/// Without a partition table, a third of it zeros.
fn image() -> Vec<u8> {
    let mut image: Vec<u8> = (0_u32..)
        .flat_map(|at| at.wrapping_mul(0x9e37_79b9).rotate_left(9).to_le_bytes())
        .take(IMAGE)
        .collect();
    image[4 * MIB..7 * MIB].fill(0);
    image
}

/// Packs a file; the digest of its index.
fn pack(image: &[u8], dir: &Path) -> Result<(Vec<u8>, String)> {
    let (from, to) = (dir.join("os.raw"), dir.join("os.zst"));
    fs::write(&from, image)?;
    let run = |arguments: &[&str], path: &Path, more: &[&Path]| {
        let mut command = Command::new(program("ferrite-image"));
        command.args(arguments).arg(path).args(more).output()
    };
    let packed = run(&["pack"], &from, &[&to])?;
    ensure!(packed.status.success(), "{}", said(&packed));
    let info = run(&["info", "--json"], &to, &[])?;
    let info: serde_json::Value = serde_json::from_slice(&info.stdout)?;
    let digest = info["packed"]["digest"].as_str().context("a digest")?;
    Ok((fs::read(&to)?, digest.to_owned()))
}

#[test]
fn an_artifact_is_written_by_digest_and_by_tag() -> Result<()> {
    let registry = Registry::start()?;
    let image = image();
    let manifest = registry.push(&image, "12.8")?;
    registry.is_written(&registry.url(&format!("@{manifest}")), &[], &image)?;
    registry.is_written(&registry.url(&format!(":12.8@{manifest}")), &[], &image)?;
    // A tag says what is wanted and vouches for nothing.
    registry.is_refused(&registry.url(":12.8"), "password", "digest")?;
    let file = sha256(&image);
    registry.is_written(&registry.url(":12.8"), &["--digest", &file], &image)?;
    let (file, index) = pack(&image, registry.dir.path())?;
    let manifest = registry.push(&file, "packed")?;
    let url = registry.url(&format!(":packed@{manifest}"));
    let more = ["--format", "packed", "--digest", &index];
    registry.is_written(&url, &more, &image)?;
    Ok(())
}

#[test]
fn what_the_digest_does_not_vouch_for_touches_no_disk() -> Result<()> {
    let registry = Registry::start()?;
    let image = image();
    let manifest = registry.push(&image, "12.8")?;
    let other = sha256(b"another");
    registry.is_refused(&registry.url(&format!("@{other}")), "password", "404")?;
    let right = registry.url(&format!("@{manifest}"));
    registry.is_refused(&right, "wrong", "401")?;
    // A manifest that leads to another layer, under the first one's name.
    let stored = registry.stored(&manifest);
    let text = fs::read_to_string(&stored)?;
    fs::write(&stored, text.replace(&sha256(&image), &other))?;
    registry.is_refused(&right, "password", "the registry's manifest has the digest")?;
    Ok(())
}
