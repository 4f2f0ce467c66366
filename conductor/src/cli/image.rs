//! `ferrite image`: gives images names. Short ways to the resources that `apply`, `get` and
//! `delete` know.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use ferrite_proto::catalog::{Image, ImageKind};
use ferrite_proto::digest::Digest;
use ferrite_proto::image::ImageRef;
use ferrite_proto::resource::{ApiVersion, Metadata};
use reqwest::Method;

use super::args::{ImageFormat, Output};
use super::client::Client;
use super::get::{self, Get, Selection};
use super::kind::Kind;
use super::{print, print_value};

/// What to do with images.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Give an image a name. Hosts say it in `spec.image_name`.
    Add(Box<Add>),
    /// List images.
    List,
    /// Show an image.
    Show {
        /// Its name.
        name: String,
    },
    /// Forget an image's name. Hosts that were given it keep what it stood for.
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
    /// Where hosts fetch it.
    url: String,
    /// Digest of the file as fetched: `sha256:…`, `sha512:…` or `blake3:…`. Of a packed image,
    /// what `ferrite-image info` prints.
    #[arg(long)]
    digest: Option<Digest>,
    /// What the file holds once decompressed.
    #[arg(long, value_enum, default_value_t)]
    format: ImageFormat,
    /// Who must have signed a packed image: minisign's public key, the line that begins with RW.
    #[arg(long, value_name = "KEY")]
    signed_by: Option<String>,
    /// Hosts shall write it although nothing vouches for it.
    #[arg(long, conflicts_with_all = ["digest", "signed_by"])]
    allow_unverified: bool,
}

impl Add {
    fn image(self) -> anyhow::Result<Image> {
        let spec = ImageRef {
            url: self.url,
            mirrors: Vec::new(),
            digest: self.digest,
            digest_url: None,
            raw_digest: None,
            signed_by: self.signed_by,
            format: self.format.into(),
            compression: None,
            allow_unverified: self.allow_unverified,
        };
        spec.validate()?;
        Ok(Image {
            api_version: ApiVersion::V1,
            kind: ImageKind::Image,
            metadata: Metadata::named(self.name),
            spec,
        })
    }
}

/// Does what the arguments say.
pub(crate) async fn run(
    client: &Client,
    command: ImageCommand,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let what = match command {
        ImageCommand::Add(add) => {
            let image = add.image()?;
            let path = Kind::Image.collection();
            let image: Image = client.send(Method::POST, &path, &image).await?;
            match output {
                Output::Json | Output::Yaml => print_value(&image, output)?,
                Output::Table | Output::Wide => print(&format!("{} added\n", named(&image)))?,
                Output::Name => print(&format!("{}\n", named(&image)))?,
            }
            return Ok(ExitCode::SUCCESS);
        }
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
    use ferrite_proto::image::Format;

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
            ("/tmp/x.raw --allow-unverified", "none of http://"),
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
