//! Disk images of other forms, told by their first bytes: so that none is written to a disk as if
//! it were the disk's own bytes.

/// Magic numbers at a file's start, and whose they are.
const KNOWN: [(&[u8], &str); 8] = [
    (b"QFI\xfb", "qcow2"),
    (b"KDMV", "VMDK"),
    (b"COWD", "VMDK"),
    (b"# Disk DescriptorFile", "VMDK"),
    (b"vhdxfile", "VHDX"),
    // Of a dynamic one; a fixed one is raw but for its last sector.
    (b"conectix", "VHD"),
    (b"<<< Oracle VM VirtualBox Disk Image", "VDI"),
    (b"QED\0", "QED"),
];

/// The form of a file that is no raw image, by its first bytes.
pub fn foreign(first: &[u8]) -> Option<&'static str> {
    let mut known = KNOWN.iter();
    let (_, name) = known.find(|(magic, _)| first.starts_with(magic))?;
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_forms_are_told_by_name_and_disks_are_none() {
        assert_eq!(foreign(b"QFI\xfb\0\0\0\x03"), Some("qcow2"));
        assert_eq!(foreign(b"vhdxfile"), Some("VHDX"));
        let disk = [0xeb, 0x63, 0x90, 0x10];
        for raw in [&disk[..], b"", b"QFI", &[0; 512]] {
            assert_eq!(foreign(raw), None);
        }
    }
}
