//! Where an image comes from, as a person says it at a shell: the options of `write-image` that are
//! about servers. What they do is the data path's business.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use ferrite_proto::digest::Digest;
use ferrite_proto::image::{Format, ImageRef};
use ferrite_proto::image_server::{ImageServer, Login};
use ferrite_proto::secret::Secret;
use reqwest::Url;

use crate::stream::terms::Terms;

/// Longest file of a certificate or a secret.
const LONGEST: u64 = 1 << 20;

/// Where the image is, what vouches for it, and how its servers are talked to.
#[derive(Debug, Args)]
pub(crate) struct SourceArgs {
    /// Where the image is: http://, https://, `oci://registry/repo@sha256:…`, or a file of this
    /// machine.
    #[arg(long, value_name = "URL|FILE")]
    source: String,
    /// Another place of the same file, asked when those before do not answer, break off or have
    /// a file of another length. Several can be given.
    #[arg(long, value_name = "URL")]
    mirror: Vec<String>,
    /// Digest of the file as published: sha256:…, sha512:… or blake3:…. Of a packed image, what
    /// `ferrite-image info` prints.
    #[arg(long)]
    digest: Option<Digest>,
    /// Where its digest stands: a file as sha256sum or sha512sum write it.
    #[arg(long, value_name = "URL", conflicts_with = "digest")]
    digest_url: Option<String>,
    /// Who must have signed a packed image: minisign's public key, the line that begins with RW.
    #[arg(long, value_name = "KEY")]
    signed_by: Option<String>,
    /// Digest of what the file holds, besides: of the disk's bytes before any is moved.
    #[arg(long, value_name = "DIGEST")]
    raw_digest: Option<Digest>,
    /// Write without a digest: nothing vouches for the bytes.
    #[arg(long, conflicts_with_all = ["digest", "digest_url", "signed_by"])]
    allow_unverified: bool,
    /// Who we are to the server of --source. No other server is told, nor one that it leads to.
    #[arg(long, value_name = "NAME", requires = "password_file")]
    user: Option<String>,
    /// File with the password that goes with --user.
    #[arg(long, value_name = "FILE", requires = "user")]
    password_file: Option<PathBuf>,
    /// File with a token for the server of --source, in place of --user.
    #[arg(long, value_name = "FILE", conflicts_with = "user")]
    bearer_file: Option<PathBuf>,
    /// File of PEM certificates that those of the servers may be signed by, besides the public
    /// ones.
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Asked to fetch in our place: `http://proxy:3128`. The environment's proxies are not used.
    #[arg(long, value_name = "URL")]
    proxy: Option<String>,
    /// A host that is fetched from without --proxy, with those below it. Several, by commas.
    #[arg(long, value_name = "HOST", value_delimiter = ',', requires = "proxy")]
    no_proxy: Vec<String>,
}

impl SourceArgs {
    /// The image's part of it, and the terms on which it is fetched.
    pub(crate) fn read(&self) -> anyhow::Result<(ImageRef, Terms)> {
        let url = url_of(&self.source)?;
        let image = ImageRef {
            url,
            mirrors: self.mirror.clone(),
            digest: self.digest.clone(),
            digest_url: self.digest_url.clone(),
            raw_digest: self.raw_digest.clone(),
            signed_by: self.signed_by.clone(),
            format: Format::Raw,
            compression: None,
            allow_unverified: self.allow_unverified,
        };
        let terms = Terms {
            servers: self.servers(&image)?,
            ..Terms::at_a_shell()
        };
        Ok((image, terms))
    }

    /// What is said of each server that may be asked.
    fn servers(&self, image: &ImageRef) -> anyhow::Result<Vec<ImageServer>> {
        let ca = self.ca_file.as_deref().map(read_text).transpose()?;
        let login = self.login()?;
        if image.url.starts_with("file://") {
            ensure!(login.is_none(), "{} needs no login", image.url);
        }
        let mut servers: Vec<ImageServer> = Vec::new();
        for (at, url) in image.urls().enumerate() {
            if url.starts_with("file://") || servers.iter().any(|server| server.covers(url)) {
                continue;
            }
            let parsed = Url::parse(url).with_context(|| format!("reading {url}"))?;
            let host = parsed.host_str().unwrap_or_default();
            let port = parsed
                .port()
                .map_or(String::new(), |port| format!(":{port}"));
            let proxied = !self.no_proxy.iter().any(|name| is_below(host, name));
            servers.push(ImageServer {
                prefix: format!("{}://{host}{port}/", parsed.scheme()),
                ca: ca.clone(),
                proxy: self.proxy.clone().filter(|_| proxied).map(Secret::new),
                login: login.clone().filter(|_| at == 0),
            });
        }
        Ok(servers)
    }

    fn login(&self) -> anyhow::Result<Option<Login>> {
        if let (Some(name), Some(file)) = (&self.user, &self.password_file) {
            if name.contains(':') {
                bail!("--user has a colon, which no server could tell from its end");
            }
            return Ok(Some(Login::Basic {
                username: name.clone(),
                password: read_secret(file)?,
            }));
        }
        let bearer = self.bearer_file.as_deref().map(read_secret).transpose()?;
        Ok(bearer.map(Login::Bearer))
    }
}

/// What a person names: a URL as it is, else a file, by its full path.
fn url_of(named: &str) -> anyhow::Result<String> {
    if named.contains("://") && !named.starts_with("file://") {
        return Ok(named.to_owned());
    }
    let path = named.strip_prefix("file://").unwrap_or(named);
    let path = std::fs::canonicalize(path).with_context(|| format!("finding {path}"))?;
    let path = path.to_str().context("the file's path is not UTF-8")?;
    Ok(format!("file://{path}"))
}

/// Whether a host is a name, or one below it.
fn is_below(host: &str, name: &str) -> bool {
    let name = name.trim().trim_start_matches('.');
    let rest = host.to_ascii_lowercase();
    let rest = rest.strip_suffix(&name.to_ascii_lowercase());
    !name.is_empty() && rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

fn read_text(path: &Path) -> anyhow::Result<String> {
    let reading = || format!("reading {}", path.display());
    let length = std::fs::metadata(path).with_context(reading)?.len();
    ensure!(length <= LONGEST, "{} is longer than 1 MiB", path.display());
    std::fs::read_to_string(path).with_context(reading)
}

fn read_secret(path: &Path) -> anyhow::Result<Secret<String>> {
    let text = read_text(path)?;
    let text = text.trim_end_matches(['\r', '\n']);
    ensure!(!text.is_empty(), "{} is empty", path.display());
    Ok(Secret::new(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        source: SourceArgs,
    }

    fn read(words: &[&str]) -> anyhow::Result<(ImageRef, Terms)> {
        let words = ["x"].iter().chain(words);
        Line::try_parse_from(words)?.source.read()
    }

    #[test]
    fn a_login_is_for_the_sources_own_server() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        std::fs::write(&file, "hunter2\n").unwrap();
        let file = file.to_str().unwrap();
        let words = [
            "--source=https://a/os.raw",
            "--mirror=https://b/os.raw",
            "--mirror=https://a/other/os.raw",
            "--digest-url=http://a/SHA256SUMS",
            "--user=me",
            "--password-file",
            file,
            "--proxy=http://p:3128",
            "--no-proxy=x,b",
        ];
        let (image, terms) = read(&words).unwrap();
        assert_eq!(image.mirrors.len(), 2);
        let said: Vec<_> = terms
            .servers
            .iter()
            .map(|s| (s.prefix.as_str(), s.login.is_some(), s.proxy.is_some()))
            .collect();
        let wanted = [
            ("https://a/", true, true),
            ("https://b/", false, false),
            ("http://a/", false, true),
        ];
        assert_eq!(said, wanted);
        assert!(!format!("{terms:?}").contains("hunter2"));
        std::fs::write(file, "").unwrap();
        assert!(read(&words).is_err());
    }

    #[test]
    fn a_path_is_a_file_and_a_url_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a file.raw");
        std::fs::write(&file, "x").unwrap();
        for named in [
            file.display().to_string(),
            format!("file://{}", file.display()),
        ] {
            let (image, _) = read(&["--source", &named, "--allow-unverified"]).unwrap();
            assert!(image.url.ends_with("/a file.raw"), "{}", image.url);
            assert!(image.url.starts_with("file:///"), "{}", image.url);
        }
        assert!(read(&["--source=/nonexistent"]).is_err());
        let (image, _) = read(&["--source=https://h/x"]).unwrap();
        assert_eq!(image.url, "https://h/x");
    }

    #[test]
    fn no_proxy_is_of_whole_names() {
        for (host, name, below) in [
            ("a.example", "a.example", true),
            ("x.a.example", "a.example", true),
            ("x.a.example", ".A.example", true),
            ("xa.example", "a.example", false),
            ("10.0.0.1", "10.0.0.1", true),
            ("a.example", "", false),
        ] {
            assert_eq!(is_below(host, name), below, "{host} {name}");
        }
    }
}
