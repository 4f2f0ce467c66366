//! `ferrite image`: gives images names. Short ways to the resources that `apply`, `get` and
//! `delete` know.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use clap::{Args, Subcommand};
use ferrite_proto::catalog::{Image, ImageKind};
use ferrite_proto::digest::Digest;
use ferrite_proto::image::Format;
use ferrite_proto::named_image::{ImagePhase, ImageSpec, ImageStatus};
use ferrite_proto::resource::{ApiVersion, Metadata};
use ferrite_proto::size::ByteSize;
use reqwest::Method;
use tokio::fs::File;

use super::args::{ImageFormat, Output};
use super::client::Client;
use super::get::{self, Get, Selection};
use super::kind::Kind;
use super::{print, print_value, wait};

/// Between looks how far an image is.
const LOOK: Duration = Duration::from_secs(1);

/// What to do with images.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Give an image a name, which hosts say in `spec.image_name`. The conductor fetches it once,
    /// packs it and serves it to hosts.
    Add(Box<Add>),
    /// List images.
    List,
    /// Show an image.
    Show {
        /// Its name.
        name: String,
    },
    /// Forget an image's name. Hosts that were given it keep what it stood for; the packed file
    /// goes when none does.
    Remove {
        /// Its name.
        name: String,
    },
}

/// An image and its name.
#[derive(Debug, Args)]
pub(crate) struct Add {
    /// What to call it.
    name: String,
    /// Where it is fetched from: http://, https:// or oci://. Or a file on this machine, which is
    /// given to the conductor.
    #[arg(value_name = "URL|FILE")]
    from: String,
    /// Another place of the same file, asked when the first does not answer. Several can be given.
    #[arg(long, value_name = "URL")]
    mirror: Vec<String>,
    /// Digest of the file as fetched: `sha256:…`, `sha512:…` or `blake3:…`. Of a packed image,
    /// what `ferrite-image info` prints.
    #[arg(long)]
    digest: Option<Digest>,
    /// Digest of the disk's bytes that the file holds, besides.
    #[arg(long, value_name = "DIGEST")]
    raw_digest: Option<Digest>,
    /// What the file holds once decompressed.
    #[arg(long, value_enum, default_value_t)]
    format: ImageFormat,
    /// Who must have signed a packed image: minisign's public key, the line that begins with RW.
    #[arg(long, value_name = "KEY")]
    signed_by: Option<String>,
    /// Take it although nothing vouches for it.
    #[arg(long, conflicts_with_all = ["digest", "signed_by"])]
    allow_unverified: bool,
    /// Only name it: each host fetches the file itself. So it is for images that are packed already
    /// and for artifacts of a registry, anyway.
    #[arg(long)]
    no_pack: bool,
    /// Wait until hosts can have it. Exits with 1 when they cannot.
    #[arg(long)]
    wait: bool,
    /// How long to wait: `90s`, `10m`, `2h`.
    #[arg(long, default_value = "1h", value_parser = wait::duration, requires = "wait")]
    timeout: Duration,
}

impl Add {
    /// The file on this machine, if that is what was named.
    fn file(&self) -> Option<PathBuf> {
        (!self.from.contains("://")).then(|| PathBuf::from(&self.from))
    }

    fn image(&self) -> anyhow::Result<Image> {
        let format = self.format.into();
        let url = match self.file() {
            Some(_) => format!("upload://{}", self.name),
            None => self.from.clone(),
        };
        let needless = format == Format::Packed || url.starts_with("oci");
        let spec = ImageSpec {
            url,
            mirrors: self.mirror.clone(),
            digest: self.digest.clone(),
            digest_url: None,
            raw_digest: self.raw_digest.clone(),
            signed_by: self.signed_by.clone(),
            format,
            compression: None,
            allow_unverified: self.allow_unverified,
            pack: !self.no_pack && (self.file().is_some() || !needless),
        };
        spec.validate()?;
        Ok(Image {
            api_version: ApiVersion::V1,
            kind: ImageKind::Image,
            metadata: Metadata::named(&self.name),
            spec,
            status: None,
        })
    }
}

async fn add(client: &Client, add: &Add, output: Output) -> anyhow::Result<ExitCode> {
    let image = add.image()?;
    let file = match add.file() {
        Some(path) => Some(open(&path).await?),
        None => None,
    };
    let path = Kind::Image.collection();
    let mut image: Image = client.send(Method::POST, &path, &image).await?;
    if let Some((file, bytes)) = file {
        let path = format!("{}/content", Kind::Image.item(&add.name));
        image = client.give(&path, file, bytes).await?;
    }
    if add.wait && image.spec.pack {
        image = until_ready(client, &add.name, add.timeout).await?;
    }
    match output {
        Output::Json | Output::Yaml => print_value(&image, output)?,
        Output::Table | Output::Wide => print(&format!("{} {}\n", named(&image), done(&image)))?,
        Output::Name => print(&format!("{}\n", named(&image)))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A plain file, and how long it is.
async fn open(path: &Path) -> anyhow::Result<(File, u64)> {
    let reading = || format!("reading {} (a URL has :// in it)", path.display());
    let file = File::open(path).await.with_context(reading)?;
    let metadata = file.metadata().await.with_context(reading)?;
    ensure!(metadata.is_file(), "{} is no plain file", path.display());
    Ok((file, metadata.len()))
}

/// Waits until hosts can have it, and tells how far it is.
async fn until_ready(client: &Client, name: &str, timeout: Duration) -> anyhow::Result<Image> {
    let (begun, mut said) = (Instant::now(), String::new());
    loop {
        let image: Image = client.get(&Kind::Image.item(name)).await?;
        let status = image.status.as_ref();
        let words = status.map_or_else(String::new, ImageStatus::words);
        match status.map(|status| (status.phase, &status.problem, status.retry_at)) {
            Some((ImagePhase::Ready, ..)) => return Ok(image),
            Some((ImagePhase::Failed, Some(problem), None)) => return Err(problem.clone().into()),
            _ if begun.elapsed() >= timeout => {
                let problem = status.and_then(|status| status.problem.as_ref());
                let why = problem.map_or_else(String::new, |problem| format!(": {problem}"));
                bail!("image/{name} was not in time: {words}{why}");
            }
            _ => {}
        }
        if words != said {
            let line = format!("image/{name}: {words}\n");
            std::io::stderr().lock().write_all(line.as_bytes())?;
            said = words;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What became of it.
fn done(image: &Image) -> String {
    match image.status.as_ref() {
        Some(status) if status.phase == ImagePhase::Ready => {
            let size = |bytes: Option<u64>| ByteSize(bytes.unwrap_or_default());
            let (whole, packed) = (size(status.image_bytes), size(status.packed_bytes));
            format!("ready: {whole} packed into {packed}")
        }
        Some(_) => "added; the conductor packs it now (`ferrite get images` shows how far it is)"
            .to_owned(),
        None => "added".to_owned(),
    }
}

/// Does what the arguments say.
pub(crate) async fn run(
    client: &Client,
    command: ImageCommand,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let what = match command {
        ImageCommand::Add(words) => return add(client, &words, output).await,
        ImageCommand::Remove { name } => {
            let path = Kind::Image.item(&name);
            client.exchange(Method::DELETE, &path, None).await?;
            print(&format!("image/{name} removed\n"))?;
            return Ok(ExitCode::SUCCESS);
        }
        ImageCommand::List => "images".to_owned(),
        ImageCommand::Show { name } => format!("image/{name}"),
    };
    let asked = Get {
        what: vec![what],
        selection: Selection::default(),
        watch: false,
        all_projects: false,
    };
    get::run(client, asked, output).await
}

fn named(image: &Image) -> String {
    format!("image/{}", image.metadata.name)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(subcommand)]
        command: ImageCommand,
    }

    fn added(arguments: &str) -> anyhow::Result<Image> {
        let words = format!("image add debian {arguments}");
        match Line::try_parse_from(words.split_whitespace())?.command {
            ImageCommand::Add(add) => add.image(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_image_is_what_the_words_say() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let image = added(&format!(
            "https://h/x.zst --digest {digest} --format packed"
        ))
        .unwrap();
        assert_eq!(named(&image), "image/debian");
        assert_eq!(image.spec.url, "https://h/x.zst");
        assert_eq!(image.spec.format, Format::Packed);
        assert_eq!(image.spec.digest.unwrap().to_string(), digest);
        assert!(!image.spec.pack, "it is packed");
        let packed = added(&format!(
            "https://h/x.qcow2 --digest {digest} --format qcow2"
        ));
        assert!(packed.unwrap().spec.pack);
        let only_named = added(&format!("https://h/x.raw --digest {digest} --no-pack"));
        assert!(!only_named.unwrap().spec.pack);
        let file = added("./debian.raw.zst").unwrap();
        assert_eq!(file.spec.url, "upload://debian");
        assert!(file.spec.pack && file.spec.digest.is_none());
        let key = format!("RW{}", "x".repeat(54));
        let signed = added(&format!(
            "https://h/x.zst --signed-by {key} --format packed"
        ))
        .unwrap();
        assert_eq!(signed.spec.signed_by, Some(key));
    }

    #[test]
    fn what_cannot_be_an_image_is_refused_before_it_is_sent() {
        for (words, expected) in [
            ("https://h/x.zst", "no digest"),
            ("ftp://h/x.raw --allow-unverified", "none of http://"),
            ("/tmp/x.raw --no-pack", "pack: true"),
            ("/tmp/x.zst --format packed", "format: raw"),
            ("https://h/x.zst --signed-by RWx", "format packed"),
            (
                "https://h/x.zst --signed-by RWx --format packed",
                "minisign",
            ),
            (
                "https://h/x --allow-unverified --signed-by RWx",
                "cannot be used with",
            ),
        ] {
            let error = added(words).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
