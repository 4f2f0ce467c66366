//! EFI variables and load options, byte for byte (UEFI 2.10: 3.1.3 load options, 10.3 device
//! paths), over efivarfs. Only what booting from a disk needs.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::PathBuf;

use uuid::Uuid;

use crate::kernel::Kernel;
use crate::root::Root;

/// Where the kernel shows variables as files.
const FOLDER: &str = "/sys/firmware/efi/efivars";
/// `EFI_GLOBAL_VARIABLE`.
const GLOBAL: &str = "8be4df61-93ca-11d2-aa0d-00e098032b8c";
/// Non-volatile, for boot services and at run time.
const ATTRIBUTES: u32 = 7;
/// `LOAD_OPTION_ACTIVE`.
const ACTIVE: u32 = 1;
/// Largest variable that is read.
const LIMIT: u64 = 64 * 1024;

/// A `Boot####` variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LoadOption {
    /// `LOAD_OPTION_ACTIVE` and its like.
    pub(crate) attributes: u32,
    /// What the firmware's menu shows.
    pub(crate) description: String,
    /// The device path, packed, as it stands in the variable.
    pub(crate) path: Vec<u8>,
    /// What follows it.
    pub(crate) optional: Vec<u8>,
}

/// A partition of a GPT disk, as a device path names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GptPartition {
    /// From 1.
    pub(crate) number: u32,
    /// First logical block.
    pub(crate) first: u64,
    /// Logical blocks.
    pub(crate) blocks: u64,
    /// Its unique GUID.
    pub(crate) guid: Uuid,
}

impl LoadOption {
    /// An option that starts a file (`\EFI\BOOT\BOOTX64.EFI`) on a partition.
    pub(crate) fn of_file(description: &str, partition: &GptPartition, file: &str) -> Self {
        Self {
            attributes: ACTIVE,
            description: description.to_owned(),
            path: [hard_drive(partition), file_path(file), END.to_vec()].concat(),
            optional: Vec::new(),
        }
    }

    /// The variable's value.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let length = u16::try_from(self.path.len()).unwrap_or(u16::MAX);
        let mut bytes = self.attributes.to_le_bytes().to_vec();
        bytes.extend(length.to_le_bytes());
        bytes.extend(utf16(&self.description));
        bytes.extend(&self.path);
        bytes.extend(&self.optional);
        bytes
    }

    /// Reads a variable's value; nothing for what is none.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let attributes = u32::from_le_bytes(*bytes.first_chunk()?);
        let length = usize::from(u16::from_le_bytes([*bytes.get(4)?, *bytes.get(5)?]));
        let units: Vec<u16> = bytes
            .get(6..)?
            .chunks_exact(2)
            .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
            .take_while(|&unit| unit != 0)
            .collect();
        let start = 6 + (units.len() + 1) * 2;
        let path = bytes.get(start..start + length)?.to_vec();
        let optional = bytes.get(start + length..)?.to_vec();
        Some(Self {
            attributes,
            description: String::from_utf16_lossy(&units),
            path,
            optional,
        })
    }
}

const END: [u8; 4] = [0x7F, 0xFF, 4, 0];

/// `HD(number,GPT,guid,first,blocks)`: type 4, sub-type 1.
fn hard_drive(partition: &GptPartition) -> Vec<u8> {
    let mut node = vec![4, 1, 42, 0];
    node.extend(partition.number.to_le_bytes());
    node.extend(partition.first.to_le_bytes());
    node.extend(partition.blocks.to_le_bytes());
    // A GUID's first three fields are little-endian on disk and here.
    node.extend(partition.guid.to_bytes_le());
    // Partition format GPT, signature type GUID.
    node.extend([2, 2]);
    node
}

/// `File(path)`: type 4, sub-type 4.
fn file_path(file: &str) -> Vec<u8> {
    let name = utf16(file);
    let length = u16::try_from(name.len() + 4).unwrap_or(u16::MAX);
    let mut node = vec![4, 4];
    node.extend(length.to_le_bytes());
    node.extend(name);
    node
}

/// UCS-2 with its NUL.
fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16()
        .chain([0])
        .flat_map(u16::to_le_bytes)
        .collect()
}

/// The firmware's boot variables.
pub(crate) struct BootVariables<'a> {
    root: &'a Root,
    kernel: &'a dyn Kernel,
}

impl<'a> BootVariables<'a> {
    /// Those of a machine; none under BIOS or when efivarfs is not mounted.
    pub(crate) fn open(root: &'a Root, kernel: &'a dyn Kernel) -> Option<Self> {
        let has_any = root.names(FOLDER).is_ok_and(|names| !names.is_empty());
        has_any.then_some(Self { root, kernel })
    }

    /// All `Boot####`, by number.
    pub(crate) fn options(&self) -> Vec<(u16, LoadOption)> {
        let names = self.root.names(FOLDER).unwrap_or_default();
        let numbers = names.iter().filter_map(|name| {
            let number = name
                .strip_prefix("Boot")?
                .strip_suffix(GLOBAL)?
                .strip_suffix('-')?;
            (number.len() == 4).then(|| u16::from_str_radix(number, 16).ok())?
        });
        let read = |number| Some((number, LoadOption::decode(&self.read(&boot(number)).ok()?)?));
        numbers.filter_map(read).collect()
    }

    /// One of them.
    pub(crate) fn option(&self, number: u16) -> io::Result<LoadOption> {
        let bytes = self.read(&boot(number))?;
        LoadOption::decode(&bytes).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Writes one.
    pub(crate) fn set_option(&self, number: u16, option: &LoadOption) -> io::Result<()> {
        self.write(&boot(number), &option.encode())
    }

    /// Removes one.
    pub(crate) fn remove(&self, number: u16) -> io::Result<()> {
        let path = self.path(&boot(number));
        self.kernel.allow_changes(&File::open(&path)?)?;
        std::fs::remove_file(path)
    }

    /// `BootOrder`; empty when it is not set.
    pub(crate) fn order(&self) -> io::Result<Vec<u16>> {
        match self.read("BootOrder") {
            Ok(bytes) => {
                let pairs = bytes.chunks_exact(2);
                Ok(pairs
                    .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
                    .collect())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Sets `BootOrder`.
    pub(crate) fn set_order(&self, order: &[u16]) -> io::Result<()> {
        let bytes: Vec<u8> = order
            .iter()
            .flat_map(|number| number.to_le_bytes())
            .collect();
        self.write("BootOrder", &bytes)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path(FOLDER).join(format!("{name}-{GLOBAL}"))
    }

    /// The value, without the attributes that efivarfs puts in front.
    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(self.path(name))?
            .take(LIMIT)
            .read_to_end(&mut bytes)?;
        bytes
            .get(4..)
            .map(<[u8]>::to_vec)
            .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn write(&self, name: &str, value: &[u8]) -> io::Result<()> {
        let path = self.path(name);
        match File::open(&path) {
            Ok(file) => self.kernel.allow_changes(&file)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        // A variable is written by exactly one write.
        let bytes = [&ATTRIBUTES.to_le_bytes(), value].concat();
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        if file.write(&bytes)? == bytes.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::WriteZero.into())
        }
    }
}

fn boot(number: u16) -> String {
    format!("Boot{number:04X}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn esp() -> GptPartition {
        GptPartition {
            number: 15,
            first: 0x800,
            blocks: 0x3_F800,
            guid: "01234567-89ab-cdef-0123-456789abcdef".parse().unwrap(),
        }
    }

    /// As OVMF itself writes it.
    #[rustfmt::skip]
    const BYTES: &[u8] = &[
        1, 0, 0, 0, // active
        0x5E, 0, // length of the device path: 42 + 48 + 4 = 94
        b'o', 0, b's', 0, 0, 0, // description
        4, 1, 42, 0, // hard drive
        15, 0, 0, 0,
        0, 8, 0, 0, 0, 0, 0, 0,
        0, 0xF8, 3, 0, 0, 0, 0, 0,
        0x67, 0x45, 0x23, 0x01, 0xAB, 0x89, 0xEF, 0xCD,
        0x01, 0x23, 0x45, 0x67, 0x89, 0xAB, 0xCD, 0xEF,
        2, 2,
        4, 4, 48, 0, // file
        b'\\', 0, b'E', 0, b'F', 0, b'I', 0, b'\\', 0, b'B', 0, b'O', 0, b'O', 0, b'T', 0, b'\\', 0,
        b'B', 0, b'O', 0, b'O', 0, b'T', 0, b'X', 0, b'6', 0, b'4', 0, b'.', 0,
        b'E', 0, b'F', 0, b'I', 0, 0, 0,
        0x7F, 0xFF, 4, 0, // end
    ];

    #[test]
    fn a_load_option_is_the_specifications_bytes() {
        let option = LoadOption::of_file("os", &esp(), "\\EFI\\BOOT\\BOOTX64.EFI");
        assert_eq!(option.encode(), BYTES);
        assert_eq!(LoadOption::decode(&option.encode()), Some(option));
    }

    #[test]
    fn what_follows_the_path_is_kept() {
        let mut option = LoadOption::of_file("os", &esp(), "\\a");
        option.optional = vec![1, 2, 3];
        assert_eq!(LoadOption::decode(&option.encode()), Some(option));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = LoadOption::decode(&bytes);
        }
    }
}
