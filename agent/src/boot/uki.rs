//! Unified kernel images: the sections `.linux`, `.initrd` and `.cmdline` of a PE file
//! (UAPI.5; PE/COFF rev. 8.3). Reads only the headers and those sections.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Most sections that are looked at.
const SECTIONS_LIMIT: u16 = 96;
/// Largest section that is taken.
const SECTION_LIMIT: u32 = 1 << 30;
/// Longest command line.
const LINE_LIMIT: u32 = 16 * 1024;

/// Where the parts lie in the file: offset and length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Uki {
    /// The kernel.
    pub(crate) linux: (u64, u64),
    /// The initial ramdisk, if there is one.
    pub(crate) initrd: Option<(u64, u64)>,
    /// The kernel's arguments.
    pub(crate) line: String,
}

/// Reads the headers. Files that are not UKIs are `InvalidData`.
pub(crate) fn read(file: &File) -> io::Result<Uki> {
    let mut dos = [0; 64];
    file.read_exact_at(&mut dos, 0)?;
    let pe = u64::from(u32::from_le_bytes([dos[60], dos[61], dos[62], dos[63]]));
    let mut coff = [0; 24];
    file.read_exact_at(&mut coff, pe)?;
    if dos[..2] != *b"MZ" || coff[..4] != *b"PE\0\0" {
        return Err(invalid("not a PE file"));
    }
    let sections = u16::from_le_bytes([coff[6], coff[7]]).min(SECTIONS_LIMIT);
    let optional = u64::from(u16::from_le_bytes([coff[20], coff[21]]));
    let (mut linux, mut initrd, mut line) = (None, None, String::new());
    for number in 0..u64::from(sections) {
        let mut header = [0; 40];
        file.read_exact_at(&mut header, pe + 24 + optional + number * 40)?;
        let (name, offset, length) = section(&header);
        match name {
            b".linux\0\0" if length > 0 => linux = Some(bounded(file, offset, length)?),
            b".initrd\0" if length > 0 => initrd = Some(bounded(file, offset, length)?),
            b".cmdline" => line = text(file, offset, length)?,
            _ => {}
        }
    }
    let linux = linux.ok_or_else(|| invalid("no .linux section"))?;
    Ok(Uki {
        linux,
        initrd,
        line,
    })
}

/// Name, file offset, and length: the smaller of what is in the file and what is loaded.
fn section(header: &[u8; 40]) -> (&[u8; 8], u32, u32) {
    let word = |at: usize| {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&header[at..at + 4]);
        u32::from_le_bytes(bytes)
    };
    let name = header.first_chunk().unwrap_or(&[0; 8]);
    (name, word(20), word(8).min(word(16)))
}

fn bounded(file: &File, offset: u32, length: u32) -> io::Result<(u64, u64)> {
    let end = u64::from(offset) + u64::from(length);
    if length > SECTION_LIMIT || end > file.metadata()?.len() {
        return Err(invalid("a section that reaches beyond the file"));
    }
    Ok((offset.into(), length.into()))
}

fn text(file: &File, offset: u32, length: u32) -> io::Result<String> {
    if length > LINE_LIMIT {
        return Err(invalid("a command line that is too long"));
    }
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
    file.read_exact_at(&mut bytes, offset.into())?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    Ok(text.trim_end_matches('\0').trim().to_owned())
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    fn image(sections: &[(&[u8; 8], u32, u32)], body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[..2].copy_from_slice(b"MZ");
        bytes[60] = 64;
        bytes.extend(b"PE\0\0");
        bytes.extend([0x64, 0x86]);
        bytes.extend(u16::try_from(sections.len()).unwrap().to_le_bytes());
        bytes.extend([0; 12]);
        bytes.extend(16_u16.to_le_bytes());
        bytes.extend([0; 2 + 16]);
        for (name, offset, length) in sections {
            bytes.extend(*name);
            bytes.extend(length.to_le_bytes());
            bytes.extend([0; 4]);
            bytes.extend((length + 100).to_le_bytes());
            bytes.extend(offset.to_le_bytes());
            bytes.extend([0; 16]);
        }
        bytes.resize(1024, 0);
        bytes.extend(body);
        bytes
    }

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn the_parts_are_found() {
        let sections: [(&[u8; 8], u32, u32); 3] = [
            (b".cmdline", 1024, 10),
            (b".linux\0\0", 1034, 4),
            (b".initrd\0", 1038, 3),
        ];
        let uki = read(&file(&image(&sections, b"root=x ro\0KERNini"))).unwrap();
        assert_eq!(uki.line, "root=x ro");
        assert_eq!(uki.linux, (1034, 4));
        assert_eq!(uki.initrd, Some((1038, 3)));
    }

    #[test]
    fn other_files_and_lies_are_refused() {
        assert!(read(&file(b"#!/bin/sh")).is_err());
        assert!(read(&file(&image(&[], b""))).is_err());
        let beyond: [(&[u8; 8], u32, u32); 1] = [(b".linux\0\0", 1024, u32::MAX - 200)];
        assert!(read(&file(&image(&beyond, b"x"))).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(at in 0_usize..400, value: u8) {
            let sections: [(&[u8; 8], u32, u32); 2] =
                [(b".cmdline", 1024, 4), (b".linux\0\0", 1028, 4)];
            let mut bytes = image(&sections, b"a\0\0\0KERN");
            bytes[at] = value;
            let _ = read(&file(&bytes));
        }
    }
}
