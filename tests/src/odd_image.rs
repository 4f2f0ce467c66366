//! The demo's image with a `grub.cfg` that GRUB runs and Ferrite's parser refuses, so that the
//! fallback from kexec to the firmware is tested on real parts. Edited with Debian's own tools.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::command::run;

/// A loop that does nothing: legal for GRUB, and nothing that a parser of menu entries can follow.
const ODD: &str = "for word in one; do set odd=$word; done\n";
const GRUB_CFG: &str = "/boot/grub/grub.cfg";

/// Makes `image` from the raw image `from`, and gives its SHA-256 in hex.
pub fn make(from: &Path, image: &Path) -> Result<String> {
    run(&["cp", "--sparse=always", text(from)?, text(image)?])?;
    let table: Value = serde_json::from_str(&run(&["sfdisk", "--json", text(image)?])?)?;
    let partitions = table["partitiontable"]["partitions"].as_array();
    let root = partitions
        .and_then(|all| all.last())
        .context("the image has no partitions")?;
    let start = root["start"]
        .as_u64()
        .context("a partition without a start")?;
    let file_system = format!("{}?offset={}", text(image)?, start * 512);
    let edited = image.with_extension("grub.cfg");
    let old = run(&["debugfs", "-R", &format!("cat {GRUB_CFG}"), &file_system])?;
    fs::write(&edited, format!("{ODD}{old}"))?;
    run(&[
        "debugfs",
        "-w",
        "-R",
        &format!("rm {GRUB_CFG}"),
        &file_system,
    ])?;
    let write = format!("write {} {GRUB_CFG}", text(&edited)?);
    run(&["debugfs", "-w", "-R", &write, &file_system])?;
    fs::remove_file(&edited)?;
    sha256(image)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))
}

fn sha256(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        hash.update(&buffer[..count]);
    }
    Ok(ferrite_proto::digest::to_hex(&hash.finalize()))
}
