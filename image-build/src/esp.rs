//! FAT file systems for EFI system partitions, made in memory and the same each time.

use std::fmt;
use std::io::{Cursor, Write as _};

use anyhow::{Context, Result};
use fatfs::{Date, DateTime, FileSystem, FormatVolumeOptions, FsOptions, Time, TimeProvider};

/// FAT has no time before 1980; a fixed one keeps images the same.
#[derive(Debug)]
struct NoTime;

static NO_TIME: NoTime = NoTime;

impl TimeProvider for NoTime {
    fn get_current_date(&self) -> Date {
        Date {
            year: 1980,
            month: 1,
            day: 1,
        }
    }

    fn get_current_date_time(&self) -> DateTime {
        DateTime {
            date: self.get_current_date(),
            time: Time {
                hour: 0,
                min: 0,
                sec: 0,
                millis: 0,
            },
        }
    }
}

/// A file of the ESP: its path with `/`, and its bytes.
pub(crate) struct EspFile<'a> {
    pub(crate) path: &'a str,
    pub(crate) bytes: &'a [u8],
}

impl fmt::Debug for EspFile<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} bytes)", self.path, self.bytes.len())
    }
}

/// Formats `size` bytes and puts the files in.
pub(crate) fn image(size: usize, label: &str, id: u32, files: &[EspFile<'_>]) -> Result<Vec<u8>> {
    let mut volume_label = [b' '; 11];
    for (to, from) in volume_label.iter_mut().zip(label.bytes()) {
        *to = from;
    }
    let mut disk = Cursor::new(vec![0; size]);
    let options = FormatVolumeOptions::new()
        .volume_id(id)
        .volume_label(volume_label);
    fatfs::format_volume(&mut disk, options).context("formatting the ESP")?;
    disk.set_position(0);
    let options = FsOptions::new()
        .time_provider(&NO_TIME)
        .update_accessed_date(false);
    let fs = FileSystem::new(&mut disk, options).context("opening the fresh ESP")?;
    for file in files {
        put(&fs, file).with_context(|| format!("writing {file:?} to an ESP of {size} bytes"))?;
    }
    fs.unmount().context("closing the ESP")?;
    Ok(disk.into_inner())
}

fn put<T: fatfs::ReadWriteSeek>(fs: &FileSystem<T>, file: &EspFile<'_>) -> Result<()> {
    let mut dir = fs.root_dir();
    let mut parts = file.path.split('/').peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_some() {
            dir = dir.create_dir(part)?;
        } else {
            let mut out = dir.create_file(part)?;
            out.write_all(file.bytes)?;
            out.flush()?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    #[test]
    fn files_are_there_and_the_bytes_are_the_same_each_time() {
        let content = vec![42; 100_000];
        let files = [EspFile {
            path: "EFI/BOOT/BOOTX64.EFI",
            bytes: &content,
        }];
        let one = image(4 << 20, "FERRITE", 7, &files).unwrap();
        assert_eq!(one, image(4 << 20, "FERRITE", 7, &files).unwrap());
        let fs = FileSystem::new(Cursor::new(one), FsOptions::new()).unwrap();
        assert_eq!(fs.volume_label(), "FERRITE");
        let mut read = Vec::new();
        let mut file = fs.root_dir().open_file("efi/boot/bootx64.efi").unwrap();
        file.read_to_end(&mut read).unwrap();
        assert_eq!(read, content);
    }

    #[test]
    fn what_does_not_fit_is_an_error_that_names_the_file() {
        let content = vec![1; 2 << 20];
        let files = [EspFile {
            path: "BIG.EFI",
            bytes: &content,
        }];
        let error = image(1 << 20, "X", 1, &files).unwrap_err();
        assert!(error.to_string().contains("BIG.EFI"), "{error}");
    }
}
