//! `write-config-drive`: gives the deployed OS its cloud-init data and the host daemon.
//!
//! A FAT volume labelled `config-2` (OpenStack's ConfigDrive), in a partition of its own at the
//! disk's end. The other partitions keep their numbers and places; a partition of that name that
//! is there already is used again. The volume is made in memory, because it is small, and written
//! and read back as a whole.

use std::io::{Cursor, Read, Write};
use std::ops::Range;

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};
use ferrite_proto::inventory::Disk;
use ferrite_proto::problem::{Code, Problem};
use ferrite_proto::size::{ByteSize, MIB};
use ferrite_proto::step::{CONFIG_DRIVE_AGENT, CONFIG_DRIVE_LABEL, ConfigFile, Outcome, RootDisk};

use super::{Context, root_disk};
use crate::disk::aligned::Aligned;
use crate::disk::gpt::{self, BadTable, HEAD, Partition, Span, Table};
use crate::disk::{Device, mbr};
use crate::stream::write::Writer;

/// Room beyond the files: for FAT itself, and for what people add by hand.
const SPARE: u64 = 8 * MIB;
/// What the files other than the agent may need: the conductor takes no larger request.
const FILES: u64 = 2 * MIB;
/// Where the agent finds itself.
const OWN: &str = "/proc/self/exe";
/// Most that the files may need: what the conductor sends is far below it.
const LARGEST: u64 = 256 * MIB;
/// Longest path of a file.
const PATH: usize = 200;
/// The label as FAT has it: eleven bytes, padded.
const LABEL: [u8; 11] = *b"config-2   ";

/// Chooses the disk and writes the drive.
pub(super) fn run(
    root: &RootDisk,
    files: &[ConfigFile],
    context: &Context<'_>,
) -> Result<Outcome, Problem> {
    let disk = root_disk::find(context.root, root)?;
    write(&disk, files, context)
}

/// What a drive will need, for whoever fills the disk before.
pub(super) fn room(context: &Context<'_>) -> Result<u64, Problem> {
    let own = std::fs::metadata(context.root.path(OWN)).map_err(|error| unreadable(&error))?;
    Ok(drive_bytes(own.len() + FILES))
}

/// Size of a drive with files of so many bytes.
const fn drive_bytes(files: u64) -> u64 {
    (files + SPARE).next_multiple_of(MIB)
}

/// Writes the drive to a disk that somebody has chosen.
fn write(disk: &Disk, files: &[ConfigFile], context: &Context<'_>) -> Result<Outcome, Problem> {
    let contents = contents(files, context)?;
    let path = context.root.path(&disk.name);
    let device = Device::open(&path, &disk.name, context.kernel)?;
    let needed: u64 = contents.iter().map(|(_, bytes)| bytes.len() as u64).sum();
    let wanted = drive_bytes(needed);
    if wanted > LARGEST {
        let why = format!("its files need {}", ByteSize(needed));
        return Err(NoPlace::Space(why).on(&disk.name));
    }
    let mut head = Aligned::zeroed(HEAD);
    device.read_at(&mut head, 0)?;
    let place = Place::find(head, &device, wanted).map_err(|none| none.on(&disk.name))?;
    let start = place.bytes(&device).start;
    // A drive that is used again may be larger than what it needs now.
    let volume = volume(&contents, wanted, &device)?;
    let mut writer = Writer::new(&device, start);
    writer.push(&volume)?;
    writer.end()?;
    device.expect(&volume, start)?;
    place.commit(&device)?;
    let partition = partition_name(&disk.name, place.number);
    device.finish()?;
    if let Some(table) = &place.table {
        gpt::confirm(table, &path).map_err(|error| failed(&disk.name, &error.to_string()))?;
    }
    Ok(Outcome::ConfigDriveWritten {
        partition,
        bytes: volume.len() as u64,
    })
}

/// The files and the agent, checked.
fn contents(
    files: &[ConfigFile],
    context: &Context<'_>,
) -> Result<Vec<(String, Vec<u8>)>, Problem> {
    let mut contents = Vec::new();
    for file in files {
        if !is_plain(&file.path) || file.path == CONFIG_DRIVE_AGENT {
            let shown: String = file.path.chars().take(PATH).collect();
            return Err(Problem::new(
                Code::ConfigDrive,
                format!("{shown:?} is no path for a file of the config drive"),
                "use relative paths of letters, digits, dots, dashes and underscores",
            ));
        }
        contents.push((file.path.clone(), file.content.expose().as_bytes().to_vec()));
    }
    let mut binary = Vec::new();
    std::fs::File::open(context.root.path(OWN))
        .and_then(|file| file.take(LARGEST).read_to_end(&mut binary))
        .map_err(|error| unreadable(&error))?;
    contents.push((CONFIG_DRIVE_AGENT.to_owned(), binary));
    Ok(contents)
}

fn unreadable(error: &std::io::Error) -> Problem {
    Problem::new(
        Code::ConfigDrive,
        format!("the agent cannot read itself at {OWN}: {error}"),
        "retry; if it happens again, report it",
    )
}

/// Relative, of `[A-Za-z0-9._-]` parts, none of which climbs.
fn is_plain(path: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let part =
        |part: &str| !part.is_empty() && part.chars().all(plain) && part.chars().any(|c| c != '.');
    path.len() <= PATH && path.split('/').all(part)
}

/// A FAT volume with the files.
fn volume(
    contents: &[(String, Vec<u8>)],
    bytes: u64,
    device: &Device<'_>,
) -> Result<Aligned, Problem> {
    let failed = |what: &str, error: &std::io::Error| {
        let disk = device.name();
        Problem::new(
            Code::ConfigDrive,
            format!("the config drive of {disk} cannot be made: {what}: {error}"),
            "report this, with the host's log",
        )
    };
    let mut memory = Aligned::zeroed(usize::try_from(bytes).unwrap_or(0));
    let sector = u16::try_from(device.sector()).unwrap_or(4096);
    let options = FormatVolumeOptions::new()
        .bytes_per_sector(sector)
        .volume_label(LABEL)
        .volume_id(rand::random());
    fatfs::format_volume(Cursor::new(&mut memory[..]), options)
        .map_err(|error| failed("formatting", &error))?;
    {
        let volume = FileSystem::new(Cursor::new(&mut memory[..]), FsOptions::new())
            .map_err(|error| failed("opening", &error))?;
        for (path, content) in contents {
            put(&volume, path, content).map_err(|error| failed(path, &error))?;
        }
        volume
            .unmount()
            .map_err(|error| failed("closing", &error))?;
    }
    check(&mut memory, contents).map_err(|error| failed("reading back", &error))?;
    Ok(memory)
}

type Volume<'a> = FileSystem<Cursor<&'a mut [u8]>>;

fn put(volume: &Volume<'_>, path: &str, content: &[u8]) -> std::io::Result<()> {
    for (at, _) in path.match_indices('/') {
        volume.root_dir().create_dir(&path[..at])?;
    }
    let mut file = volume.root_dir().create_file(path)?;
    file.truncate()?;
    file.write_all(content)?;
    file.flush()
}

/// Opens the volume anew and compares every file.
fn check(memory: &mut [u8], contents: &[(String, Vec<u8>)]) -> std::io::Result<()> {
    let volume = FileSystem::new(Cursor::new(memory), FsOptions::new())?;
    for (path, content) in contents {
        let mut found = Vec::new();
        let file = volume.root_dir().open_file(path)?;
        file.take(content.len() as u64 + 1)
            .read_to_end(&mut found)?;
        if found != *content {
            return Err(std::io::Error::other(format!(
                "{path} reads back differently"
            )));
        }
    }
    Ok(())
}

/// Why a disk has no place for a drive.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoPlace {
    /// It would take a larger disk.
    #[error("{0}")]
    Space(String),
    /// The table takes no further partition.
    #[error("{0}")]
    Full(String),
    /// There is no table, or none that can be used.
    #[error("{0}")]
    Table(String),
}

impl NoPlace {
    /// Which problem it is.
    pub(crate) const fn code(&self) -> Code {
        match self {
            Self::Space(_) | Self::Full(_) => Code::ConfigDriveTooLarge,
            Self::Table(_) => Code::ConfigDrive,
        }
    }

    fn on(&self, disk: &str) -> Problem {
        match self {
            Self::Space(_) | Self::Full(_) => Problem::new(
                self.code(),
                format!("the config drive does not fit on {disk}: {self}"),
                "choose a larger disk, or make the user data or the image smaller",
            ),
            Self::Table(why) => failed(disk, why),
        }
    }
}

impl From<BadTable> for NoPlace {
    fn from(error: BadTable) -> Self {
        let why = error.to_string();
        match error {
            BadTable::NoSpace { .. } => Self::Space(why),
            BadTable::Full(_) => Self::Full(why),
            BadTable::Damaged(_) | BadTable::Beyond { .. } => Self::Table(why),
        }
    }
}

/// Where the drive goes, and what the disk's first MiB becomes.
pub(crate) struct Place {
    number: u32,
    span: Span,
    /// Bytes of the sectors that `span` counts.
    sector: u64,
    head: Aligned,
    table: Option<Table>,
    /// The partition was there before; nothing of the table changes.
    known: bool,
}

impl Place {
    /// A place of so many bytes on a disk that begins with `head`; changes nothing on it.
    pub(crate) fn find(head: Aligned, device: &Device<'_>, wanted: u64) -> Result<Self, NoPlace> {
        let place = match Table::read(&head, device.sector())? {
            Some(table) if table.sector() == device.sector() => Self::in_gpt(head, table, wanted)?,
            Some(_) => {
                let why = "its table is for other sectors than it has";
                return Err(NoPlace::Table(why.to_owned()));
            }
            None => Self::in_mbr(head, device, wanted)?,
        };
        let range = place.bytes(device);
        let bytes = range.end.saturating_sub(range.start);
        if bytes < wanted {
            let has = format!("partition {} has only {}", place.number, ByteSize(bytes));
            return Err(NoPlace::Space(has));
        }
        Ok(place)
    }

    fn in_gpt(head: Aligned, mut table: Table, wanted: u64) -> Result<Self, BadTable> {
        let present = table.partitions().find(|p| p.name == CONFIG_DRIVE_LABEL);
        let known = present.is_some();
        let guid = uuid::Uuid::new_v4().to_bytes_le();
        let partition = present.map_or_else(|| table.add(CONFIG_DRIVE_LABEL, wanted, guid), Ok)?;
        let Partition { number, span, .. } = partition;
        Ok(Self {
            number,
            span,
            sector: table.sector(),
            head,
            table: Some(table),
            known,
        })
    }

    /// At the end of a disk with a master boot record only.
    fn in_mbr(mut head: Aligned, device: &Device<'_>, wanted: u64) -> Result<Self, NoPlace> {
        let none = "it has no partition table to add a partition to";
        let used = mbr::read(&head).ok_or_else(|| NoPlace::Table(none.to_owned()))?;
        let sector = device.sector();
        let grain = MIB / sector;
        let end = (device.bytes() / sector).min(u64::from(u32::MAX)) / grain * grain;
        let first = end.saturating_sub(wanted / sector);
        let taken = used.iter().map(|entry| entry.span().last + 1).max();
        if first < taken.unwrap_or(0).max(grain) {
            let why = "there is no room behind its last partition";
            return Err(NoPlace::Space(why.to_owned()));
        }
        let narrow = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        let number = mbr::add(&mut head, narrow(first), narrow(end - first))
            .ok_or_else(|| NoPlace::Full("all four primary partitions are taken".to_owned()))?;
        Ok(Self {
            number,
            span: Span {
                first,
                last: end - 1,
            },
            sector,
            head,
            table: None,
            known: false,
        })
    }

    fn bytes(&self, device: &Device<'_>) -> Range<u64> {
        let Range { start, end } = self.span.bytes(self.sector);
        start..end.min(device.bytes())
    }

    fn commit(&self, device: &Device<'_>) -> Result<(), Problem> {
        match &self.table {
            _ if self.known => Ok(device.flush()?),
            Some(table) => Ok(gpt::commit(table, &self.head, device)?),
            None => Ok(gpt::write_head(&self.head, device)?),
        }
    }
}

/// `/dev/sda` and 2 is `/dev/sda2`; `/dev/nvme0n1` and 2 is `/dev/nvme0n1p2`.
fn partition_name(disk: &str, number: u32) -> String {
    let separator = if disk.ends_with(|c: char| c.is_ascii_digit()) {
        "p"
    } else {
        ""
    };
    format!("{disk}{separator}{number}")
}

fn failed(disk: &str, why: &str) -> Problem {
    Problem::new(
        Code::ConfigDrive,
        format!("the config drive cannot be added to {disk}: {why}"),
        "write the image again, then retry",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::fixture::{NoKernel, used_disk};
    use crate::disk::gpt::tests::{outside_opinion, table_of};
    use crate::root::Root;
    use ferrite_proto::secret::Secret;
    use std::process::Command;
    use std::sync::atomic::AtomicBool;

    const DISK: u64 = 64 * MIB;

    fn file(path: &str, content: &str) -> ConfigFile {
        ConfigFile {
            path: path.into(),
            content: Secret::new(content.into()),
        }
    }

    /// A machine whose disk begins with the given bytes.
    fn machine(head: &[u8], bytes: u64) -> (tempfile::TempDir, Root) {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::at(folder.path());
        crate::inspect::fixture::write(
            &root,
            &[("/proc/self/exe", b"\x7fELF agent"), ("/dev/x", b"")],
        );
        let disk = used_disk(&root.path("/dev/vda"), bytes);
        disk.clear_edges().unwrap();
        disk.write_at(head, 0).unwrap();
        (folder, root)
    }

    fn go(root: &Root, files: &[ConfigFile]) -> Result<Outcome, Problem> {
        let disk = Disk {
            name: "/dev/vda".into(),
            ..Disk::default()
        };
        let context = Context {
            root,
            kernel: &NoKernel,
            progress: &|_| {},
            cancelled: &AtomicBool::new(false),
        };
        write(&disk, files, &context)
    }

    fn gpt_machine(bytes: u64) -> (tempfile::TempDir, Root) {
        let (head, mut table) = table_of(512, 16 * MIB);
        table.fit(bytes).unwrap();
        let mut head = head;
        table.patch_head(&mut head);
        machine(&head, bytes)
    }

    fn head(root: &Root) -> Vec<u8> {
        let disk = std::fs::read(root.path("/dev/vda")).unwrap();
        disk[..HEAD].to_vec()
    }

    #[test]
    fn a_partition_is_added_and_its_files_are_there() {
        let (_folder, root) = gpt_machine(DISK);
        let before = Table::read(&head(&root), 512).unwrap().unwrap();
        let files = [
            file("openstack/latest/user_data", "#cloud-config\n"),
            file("a-b.c", "x"),
        ];
        let outcome = go(&root, &files).unwrap();
        let Outcome::ConfigDriveWritten { partition, bytes } = outcome else {
            panic!()
        };
        assert_eq!((partition.as_str(), bytes), ("/dev/vda2", 9 * MIB));
        let table = Table::read(&head(&root), 512).unwrap().unwrap();
        let added = table.partitions().find(|p| p.number == 2).unwrap();
        assert_eq!(added.name, "config-2");
        assert!(
            table
                .partitions()
                .filter(|p| p.number != 2)
                .eq(before.partitions())
        );
        let disk = std::fs::read(root.path("/dev/vda")).unwrap();
        let start = usize::try_from(added.span.first * 512).unwrap();
        let mut volume = disk[start..].to_vec();
        let volume = FileSystem::new(Cursor::new(&mut volume[..]), FsOptions::new()).unwrap();
        assert_eq!(volume.volume_label().trim(), "config-2");
        let mut text = String::new();
        let mut found = volume
            .root_dir()
            .open_file("openstack/latest/user_data")
            .unwrap();
        found.read_to_string(&mut text).unwrap();
        assert_eq!(text, "#cloud-config\n");
        assert!(volume.root_dir().open_file(CONFIG_DRIVE_AGENT).is_ok());
        if let Some(said) = outside_opinion(&root.path("/dev/vda")) {
            assert!(said.contains("No problems found"), "{said}");
        }
    }

    #[test]
    fn blkid_sees_the_label_that_cloud_init_looks_for() {
        let (_folder, root) = gpt_machine(DISK);
        go(&root, &[]).unwrap();
        let table = Table::read(&head(&root), 512).unwrap().unwrap();
        let start = table
            .partitions()
            .find(|p| p.number == 2)
            .unwrap()
            .span
            .first
            * 512;
        let output = Command::new("blkid")
            .args([
                "--probe",
                "--output",
                "export",
                "--offset",
                &start.to_string(),
            ])
            .arg(root.path("/dev/vda"))
            .output();
        let Ok(output) = output else {
            let _ = writeln!(
                std::io::stderr(),
                "skipped: blkid is not installed (util-linux)"
            );
            return;
        };
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            said.contains("LABEL=config-2\n") && said.contains("TYPE=vfat\n"),
            "{said}"
        );
    }

    #[test]
    fn a_second_time_uses_the_same_partition() {
        let (_folder, root) = gpt_machine(DISK);
        go(&root, &[file("one", "1")]).unwrap();
        let before = head(&root);
        go(&root, &[file("two", "2")]).unwrap();
        assert!(before == head(&root), "the table stays as it is");
        let huge = "x".repeat(12 << 20);
        let problem = go(&root, &[file("huge", &huge)]).unwrap_err();
        assert_eq!(problem.code, Code::ConfigDriveTooLarge, "{problem}");
    }

    #[test]
    fn a_disk_with_a_boot_record_only_gets_a_primary_partition() {
        let mut head_bytes = vec![0; HEAD];
        head_bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
        mbr::add(&mut head_bytes, 2048, 8192).unwrap();
        let (_folder, root) = machine(&head_bytes, DISK);
        go(&root, &[file("one", "1")]).unwrap();
        let entries = mbr::read(&head(&root)).unwrap();
        assert_eq!(entries.len(), 2);
        assert_eq!((entries[1].span().last + 1) * 512, DISK);
    }

    #[test]
    fn no_room_and_no_table_are_told() {
        let (_folder, root) = gpt_machine(16 * MIB);
        let problem = go(&root, &[]).unwrap_err();
        assert_eq!(problem.code, Code::ConfigDriveTooLarge, "{problem}");
        let (_folder, root) = machine(&[0; 512], DISK);
        let problem = go(&root, &[]).unwrap_err();
        assert_eq!(problem.code, Code::ConfigDrive, "{problem}");
    }

    #[test]
    fn paths_that_climb_or_need_quoting_are_refused() {
        for path in [
            "",
            "/etc/x",
            "../x",
            "a/../b",
            "a//b",
            "a b",
            "é",
            "a/",
            CONFIG_DRIVE_AGENT,
        ] {
            let (_folder, root) = gpt_machine(DISK);
            let problem = go(&root, &[file(path, "x")]).unwrap_err();
            assert_eq!(problem.code, Code::ConfigDrive, "{path:?}");
        }
        assert!(is_plain("openstack/latest/meta_data.json") && is_plain(".hidden"));
    }

    #[test]
    fn partitions_are_named_as_the_kernel_does() {
        assert_eq!(partition_name("/dev/sda", 2), "/dev/sda2");
        assert_eq!(partition_name("/dev/nvme0n1", 2), "/dev/nvme0n1p2");
    }
}
