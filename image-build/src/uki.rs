//! A unified kernel image: systemd's EFI stub with command line, kernel and initramfs as PE
//! sections of its own. Only appends sections and fixes the headers; the stub's code is not
//! touched, and nothing is signed here.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use object::LittleEndian as LE;
use object::pe;
use object::read::pe::{ImageNtHeaders as _, ImageOptionalHeader as _, PeFile64};

/// Debian's package `systemd-boot-efi` has it.
pub(crate) const STUB: &str = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub";

const SECTION_HEADER: usize = size_of::<pe::ImageSectionHeader>();
/// Pages, so that the firmware could map the sections with different rights.
const MEMORY_ALIGN: u32 = 4096;

/// Offsets of the header fields that change, from the start of the file.
struct Headers {
    section_count: usize,
    symbol_table: usize,
    initialized_data: usize,
    image_size: usize,
    checksum: usize,
    section_table: usize,
    header_end: usize,
    file_align: u32,
    /// First free byte of the file and of the memory image.
    file_end: usize,
    memory_end: u32,
    sections: u16,
    data_bytes: u32,
}

/// What the image is made of.
#[derive(Debug)]
pub(crate) struct Parts<'a> {
    pub(crate) stub: &'a [u8],
    pub(crate) kernel: &'a [u8],
    pub(crate) initramfs: &'a [u8],
    pub(crate) command_line: &'a str,
    pub(crate) kernel_release: &'a str,
}

/// Reads the stub that Debian ships.
pub(crate) fn read_stub() -> Result<Vec<u8>> {
    std::fs::read(Path::new(STUB))
        .with_context(|| format!("reading {STUB} (package systemd-boot-efi)"))
}

/// Builds the image and checks it by reading it back.
pub(crate) fn build(parts: &Parts<'_>) -> Result<Vec<u8>> {
    let os_release = format!(
        "ID=ferrite\nNAME=Ferrite\nPRETTY_NAME=\"Ferrite ramdisk\"\nVERSION_ID={}\n",
        parts.kernel_release
    );
    let sections: [(&str, &[u8]); 5] = [
        (".osrel", os_release.as_bytes()),
        (".cmdline", parts.command_line.as_bytes()),
        (".uname", parts.kernel_release.as_bytes()),
        (".linux", parts.kernel),
        (".initrd", parts.initramfs),
    ];
    let image = append(parts.stub, &sections).context("adding sections to the EFI stub")?;
    verify(&image, &sections).context("reading the new UKI back")?;
    Ok(image)
}

fn append(stub: &[u8], sections: &[(&str, &[u8])]) -> Result<Vec<u8>> {
    let mut at = Headers::read(stub)?;
    let table_end = at.section_table + (usize::from(at.sections) + sections.len()) * SECTION_HEADER;
    ensure!(
        table_end <= at.header_end,
        "the stub's headers have no room for more sections"
    );
    // What follows the last section is a symbol table that nobody reads.
    let mut out = stub[..at.file_end].to_vec();
    let mut data_bytes = at.data_bytes;
    for (name, bytes) in sections {
        let size = u32::try_from(bytes.len()).with_context(|| format!("{name} is too large"))?;
        let start = out.len().next_multiple_of(at.file_align as usize);
        let raw = size.next_multiple_of(at.file_align);
        let address = at.memory_end.next_multiple_of(MEMORY_ALIGN);
        let offset = u32::try_from(start).context("the UKI is too large")?;
        out.resize(start, 0);
        out.extend_from_slice(bytes);
        out.resize(start + raw as usize, 0);
        let header = section_header(name, [size, address, raw, offset]);
        let slot = at.section_table + usize::from(at.sections) * SECTION_HEADER;
        out[slot..slot + SECTION_HEADER].copy_from_slice(&header);
        at.sections += 1;
        at.memory_end = address.checked_add(size).context("the UKI is too large")?;
        data_bytes = data_bytes
            .checked_add(raw)
            .context("the UKI is too large")?;
    }
    let image_size = at.memory_end.next_multiple_of(MEMORY_ALIGN);
    put(&mut out, at.section_count, &at.sections.to_le_bytes());
    put(&mut out, at.symbol_table, &[0; 8]);
    put(&mut out, at.initialized_data, &data_bytes.to_le_bytes());
    put(&mut out, at.image_size, &image_size.to_le_bytes());
    // Firmware does not check it for applications; a wrong one would be worse than none.
    put(&mut out, at.checksum, &[0; 4]);
    Ok(out)
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    out[at..at + bytes.len()].copy_from_slice(bytes);
}

fn section_header(name: &str, [size, address, raw, offset]: [u32; 4]) -> [u8; SECTION_HEADER] {
    let mut header = [0; SECTION_HEADER];
    header[..name.len()].copy_from_slice(name.as_bytes());
    put(&mut header, 8, &size.to_le_bytes());
    put(&mut header, 12, &address.to_le_bytes());
    put(&mut header, 16, &raw.to_le_bytes());
    put(&mut header, 20, &offset.to_le_bytes());
    let flags = pe::IMAGE_SCN_CNT_INITIALIZED_DATA.0 | pe::IMAGE_SCN_MEM_READ.0;
    put(&mut header, 36, &flags.to_le_bytes());
    header
}

impl Headers {
    /// Finds the fields in a stub; `object` has checked the headers before any offset is used.
    fn read(stub: &[u8]) -> Result<Self> {
        let file = PeFile64::parse(stub).context("parsing the stub as PE")?;
        let nt = file.nt_headers();
        let (coff, optional) = (nt.file_header(), nt.optional_header());
        let nt_offset = file.dos_header().nt_headers_offset() as usize;
        let coff_offset = nt_offset + 4;
        let optional_offset = coff_offset + size_of::<pe::ImageFileHeader>();
        let optional_size = usize::from(coff.size_of_optional_header.get(LE));
        let sections = file.section_table();
        let ends = sections.iter().map(|s| {
            let (offset, raw) = (s.pointer_to_raw_data.get(LE), s.size_of_raw_data.get(LE));
            let (address, size) = (s.virtual_address.get(LE), s.virtual_size.get(LE));
            (offset.saturating_add(raw), address.saturating_add(size))
        });
        let (file_end, memory_end) = ends.fold((0, 0), |(file, memory), (f, m)| {
            (file.max(f), memory.max(m))
        });
        ensure!(file_end as usize <= stub.len(), "the stub is cut short");
        Ok(Self {
            section_count: coff_offset + 2,
            symbol_table: coff_offset + 8,
            initialized_data: optional_offset + 8,
            image_size: optional_offset + 56,
            checksum: optional_offset + 64,
            section_table: optional_offset + optional_size,
            header_end: optional.size_of_headers() as usize,
            file_align: optional.file_alignment().clamp(512, 65536),
            file_end: file_end as usize,
            memory_end,
            sections: coff.number_of_sections.get(LE),
            data_bytes: optional.size_of_initialized_data(),
        })
    }
}

fn verify(image: &[u8], wanted: &[(&str, &[u8])]) -> Result<()> {
    use object::{Object as _, ObjectSection as _};
    let file = PeFile64::parse(image)?;
    for (name, bytes) in wanted {
        let section = file
            .section_by_name(name)
            .with_context(|| format!("{name} is not there"))?;
        let data = section.data().with_context(|| format!("reading {name}"))?;
        ensure!(
            data.starts_with(bytes),
            "{name} has other bytes than were put in"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use object::{Object as _, ObjectSection as _};

    /// A PE file with one section and room for more: enough of a stub to append to.
    fn stub() -> Vec<u8> {
        let mut file = vec![0; 1536];
        put(&mut file, 0, b"MZ");
        put(&mut file, 60, &128_u32.to_le_bytes());
        put(&mut file, 128, b"PE\0\0\x64\x86\x01\0");
        put(&mut file, 140, &[9; 8]); // symbol table
        put(&mut file, 148, &240_u16.to_le_bytes());
        let optional = 152;
        put(&mut file, optional, &0x20b_u16.to_le_bytes());
        put(&mut file, optional + 32, &512_u32.to_le_bytes());
        put(&mut file, optional + 36, &512_u32.to_le_bytes());
        put(&mut file, optional + 56, &8192_u32.to_le_bytes());
        put(&mut file, optional + 60, &1024_u32.to_le_bytes());
        put(&mut file, optional + 108, &16_u32.to_le_bytes());
        let header = section_header(".text", [100, 4096, 512, 1024]);
        put(&mut file, optional + 240, &header);
        file.extend(b"symbols");
        file
    }

    #[test]
    fn sections_are_appended_in_order_and_do_not_overlap() {
        let stub = stub();
        let kernel = vec![3; 5000];
        let parts = Parts {
            stub: &stub,
            kernel: &kernel,
            initramfs: b"cpio",
            command_line: "console=ttyS0",
            kernel_release: "6.1",
        };
        let image = build(&parts).unwrap();
        let file = PeFile64::parse(&*image).unwrap();
        let names: Vec<_> = file
            .sections()
            .map(|s| s.name().unwrap().to_owned())
            .collect();
        assert_eq!(
            names,
            [".text", ".osrel", ".cmdline", ".uname", ".linux", ".initrd"]
        );
        let mut end = 0;
        for section in file.sections() {
            assert!(
                section.address() >= end,
                "{} overlaps",
                section.name().unwrap()
            );
            end = section.address() + section.size();
        }
        let size = u64::from(file.nt_headers().optional_header().size_of_image());
        assert!(size >= end && size.is_multiple_of(4096));
        assert_eq!(image[140..148], [0; 8], "no symbol table");
        assert!(!image.windows(7).any(|w| w == b"symbols"));
    }

    #[test]
    fn a_file_that_is_no_stub_or_has_no_room_is_refused() {
        let refused = |stub: &[u8]| append(stub, &[(".a", b"x")]).is_err();
        assert!(refused(b"MZ"));
        let mut full = stub();
        put(&mut full, 152 + 60, &440_u32.to_le_bytes());
        assert!(refused(&full));
    }
}
