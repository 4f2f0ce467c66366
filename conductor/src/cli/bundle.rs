//! `ferrite support-bundle`: what help needs, in one file that only its owner reads.

use std::path::PathBuf;

use anyhow::Context;

use super::client::Client;
use super::print;
use crate::token;

/// Fetches the bundle and writes it.
pub(crate) async fn run(client: &Client, file: Option<PathBuf>) -> anyhow::Result<()> {
    let reply = client.stream("/v1/support-bundle", None).await?;
    let named = reply.headers().get("content-disposition");
    let named = named
        .and_then(|named| named.to_str().ok())
        .and_then(named_file);
    let bytes = reply.bytes().await.context("reading the bundle")?;
    let file = file.unwrap_or_else(|| named.unwrap_or_else(|| "ferrite-support.tar.gz".into()));
    token::write_private(&file, &bytes).with_context(|| format!("writing {}", file.display()))?;
    let (file, bytes) = (file.display(), bytes.len());
    let what = "Secrets are not in it; names, addresses and events of your hosts are.";
    print(&format!("{file}: {bytes} bytes. {what}\n"))
}

/// The name that the conductor gave it: a name, never a path.
fn named_file(disposition: &str) -> Option<PathBuf> {
    let name = disposition.split_once("filename=\"")?.1.strip_suffix('"')?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "-.".contains(c);
    let fits = !name.is_empty() && !name.starts_with('.') && name.chars().all(plain);
    fits.then(|| PathBuf::from(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_no_path() {
        let name = "attachment; filename=\"ferrite-support-1.tar.gz\"";
        assert_eq!(named_file(name), Some("ferrite-support-1.tar.gz".into()));
        for wrong in ["../x", "/etc/passwd", ".bashrc", "a b", ""] {
            assert_eq!(named_file(&format!("attachment; filename={wrong:?}")), None);
        }
    }
}
