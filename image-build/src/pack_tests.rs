//! Images packed on several threads, from every form, and what a reader makes of them.

use std::io::Write as _;
use std::process::Command;

use ferrite_imaging::Hasher;
use ferrite_imaging::packed::{PublicKey, SigningKey};
use ferrite_proto::digest::{Algorithm, Digest};

use super::*;
use crate::info::info;
use crate::source::Format;

/// As `openssl genpkey -algorithm ed25519` writes a key: its bytes are all 9.
const PEM: &str = "-----BEGIN PRIVATE KEY-----\n\
                   MC4CAQAwBQYDK2VwBCIEIAkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJ\n\
                   -----END PRIVATE KEY-----\n";

/// Seven chunks and a bit: text, noise and zeros.
fn image() -> Vec<u8> {
    let mut image = Vec::new();
    let mut number = 1_u64;
    while image.len() < 5 << 20 {
        number = number
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let noise = number.to_be_bytes();
        image.extend_from_slice(if image.len() < 3 << 20 {
            b"all alike"
        } else {
            &noise
        });
    }
    image.resize(14 << 20, 0);
    image.extend_from_slice(b"end");
    image
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn pack(&self, from: &Path, digest: Option<&Digest>, threads: usize) -> Result<PathBuf> {
        let out = self.0.path().join("out.zst");
        let request = Request {
            source: Source {
                path: from,
                format: Format::Raw,
                digest,
            },
            out: &out,
            level: 1,
            threads,
            key: None,
        };
        pack(&request).map(|_| out)
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path()).unwrap();
        let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name();
        let mut names: Vec<_> = entries
            .map(|entry| name(entry).into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn sha256(bytes: &[u8]) -> Digest {
    Hasher::of(Algorithm::Sha256, bytes)
}

/// What the issue promises: Debian's zstd gives the image back, byte for byte.
#[test]
fn debians_zstd_unpacks_it() {
    let (folder, image) = (Folder::new(), image());
    let raw = folder.file("image.raw", &image);
    for threads in [1, 3] {
        let out = folder.pack(&raw, Some(&sha256(&image)), threads).unwrap();
        let zstd = Command::new("zstd").args(["-dcq"]).arg(&out).output();
        let zstd = zstd.expect("zstd is installed, as the Makefile wants it");
        assert!(zstd.status.success(), "{zstd:?}");
        assert!(zstd.stdout == image);
        let listed = Command::new("zstd").arg("-l").arg(&out).output().unwrap();
        assert!(listed.status.success(), "{listed:?}");
    }
    assert_eq!(folder.names(), ["image.raw", "out.zst"]);
}

#[test]
fn whatever_the_compression_the_packed_file_is_the_same() {
    let (folder, image) = (Folder::new(), image());
    let raw = folder.pack(&folder.file("a", &image), None, 2).unwrap();
    let expected = std::fs::read(raw).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&image).unwrap();
    for file in [
        gzip.finish().unwrap(),
        zstd::stream::encode_all(&image[..], 1).unwrap(),
        expected.clone(),
    ] {
        let digest = sha256(&file);
        let from = folder.file("b", &file);
        let out = folder.pack(&from, Some(&digest), 2).unwrap();
        assert!(std::fs::read(out).unwrap() == expected);
    }
}

#[test]
fn what_cannot_be_packed_leaves_nothing_and_says_why() {
    let (folder, image) = (Folder::new(), image());
    let packed = zstd::stream::encode_all(&image[..], 1).unwrap();
    let (mut damaged, middle) = (packed.clone(), packed.len() / 2);
    damaged[middle] ^= 1;
    damaged[middle + 9] ^= 0x55;
    for (bytes, digest, expected) in [
        (&packed[..middle], None, "(Zstd)"),
        (b"", None, "empty"),
        (b"QFI\xfb\0\0\0\x03", None, "--format qcow2"),
        (&image, Some(sha256(b"other")), "was demanded"),
        (&packed, Some(sha256(&image)), "was demanded"),
    ] {
        let from = folder.file("in", bytes);
        let error = folder.pack(&from, digest.as_ref(), 2).unwrap_err();
        let said = format!("{error:#}");
        assert!(said.contains(expected), "{said}");
        assert_eq!(folder.names(), ["in"], "{said}");
    }
    // No checksum of its own: the damage may decompress. The digest of the file tells.
    let from = folder.file("in", &damaged);
    assert!(folder.pack(&from, Some(&sha256(&packed)), 2).is_err());
}

#[test]
fn info_says_what_to_give_as_digest_and_verifies() {
    let (folder, image) = (Folder::new(), image());
    let out = folder.pack(&folder.file("a", &image), None, 2).unwrap();
    let mut file = std::fs::read(&out).unwrap();
    let said = info(&out, true, None).unwrap().to_string();
    assert!(
        said.contains("chunks     8 of 2.00 MiB, 4 of them zeros"),
        "{said}"
    );
    let opened = ferrite_imaging::packed::Opened::open(&&file[..]).unwrap();
    assert!(said.contains(&sha256(&opened.frame).to_string()), "{said}");
    assert!(said.contains("verified   every chunk"), "{said}");

    let at = usize::try_from(opened.index.chunks[1].offset).unwrap() + 100;
    file[at] ^= 1;
    let damaged = folder.file("damaged", &file);
    assert!(info(&damaged, false, None).is_ok());
    let said = format!("{:#}", info(&damaged, true, None).unwrap_err());
    assert!(said.contains("chunk 1, at byte"), "{said}");

    let raw = info(&folder.file("raw", &image), false, None).unwrap();
    assert!(
        raw.to_string()
            .starts_with("format     raw\nimage      14.0 MiB"),
        "{raw}"
    );
    assert!(info(&folder.file("raw", &image), true, None).is_err());
}

#[test]
fn a_signed_image_is_checked_with_its_public_key() {
    let (folder, image) = (Folder::new(), image());
    let from = folder.file("a", &image);
    let unsigned = folder.pack(&from, None, 2).unwrap();
    let key = SigningKey::parse(PEM).unwrap();
    let public: PublicKey = key.public().parse().unwrap();
    let said = info(&unsigned, false, Some(&public)).unwrap_err();
    assert!(format!("{said:#}").contains("no signature"), "{said:#}");

    let out = folder.0.path().join("signed.zst");
    let request = Request {
        source: Source {
            path: &from,
            format: Format::Raw,
            digest: None,
        },
        out: &out,
        level: 1,
        threads: 2,
        key: Some(&key),
    };
    pack(&request).unwrap();
    let said = info(&out, true, Some(&public)).unwrap().to_string();
    assert!(said.contains("signed     file:signed.zst"), "{said}");
    let other = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";
    assert!(info(&out, false, Some(&other.parse().unwrap())).is_err());
}
