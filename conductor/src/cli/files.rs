//! Reading what a person named on the command line, with a limit.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, bail};

/// The text of a file; `-` is standard input.
pub(crate) fn read(path: &Path, what: &str, limit: u64) -> anyhow::Result<String> {
    let context = || format!("reading {what} from {}", path.display());
    let mut text = String::new();
    let read = if path == Path::new("-") {
        let input = std::io::stdin().lock();
        input.take(limit + 1).read_to_string(&mut text)
    } else {
        let file = std::fs::File::open(path).with_context(context)?;
        file.take(limit + 1).read_to_string(&mut text)
    };
    read.with_context(context)?;
    if text.len() as u64 > limit {
        bail!("{} is longer than {limit} bytes", path.display());
    }
    Ok(text)
}
