//! Bad input and faults: each gives an error that names the thing, ends where it can be retried,
//! and loses nothing. What fails before the first write leaves the disk as it was.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use ferrite_proto::host::{Host, HostState};
use ferrite_tests::bmc::PASSWORD;
use ferrite_tests::faults::{Effect, Fault};
use ferrite_tests::machine::DiskBus;
use sha2::{Digest, Sha256};

use crate::Scenario;
use crate::world::{BOOT, HOST, SOON, Site, World};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "bmc_faults",
        part: "faults",
        short: true,
        run: bmc_faults,
    },
    Scenario {
        name: "image_faults",
        part: "faults",
        short: true,
        run: image_faults,
    },
    Scenario {
        name: "no_disk",
        part: "faults",
        short: false,
        run: no_disk,
    },
];

/// Wrong password, then silence; both are named, and both go on once they are mended.
fn bmc_faults(world: &World) -> Result<()> {
    let site = world.site("bmc_faults", |machine| machine)?;
    site.add_with_password("wrong", &[])?;
    let host = site.wait_error("bmc-credentials-refused", SOON)?;
    ensure!(
        host.status.state == HostState::Registering,
        "it is {}",
        host.status.state
    );
    says(
        &host,
        &[&site.lab.host(1).bmc_url()["http://".len()..], "password"],
    )?;
    site.lab.host(1).bmc.faults.add(Fault::hangs_up());
    site.conductor
        .cli_ok(&["host", "set", HOST, "--password-file", "-"], PASSWORD)?;
    let host = site.wait_error("bmc-unreachable", SOON)?;
    let error = host.status.error.context("no error")?;
    ensure!(error.retry_at.is_some(), "it is not tried again: {error:?}");
    site.lab.host(1).bmc.faults.clear();
    site.wait_state(HostState::Inspecting, SOON)?;
    ensure!(
        site.firmware_boots() <= 1,
        "{} firmware boots",
        site.firmware_boots()
    );
    Ok(())
}

/// A host without a disk says so, and can be let go.
fn no_disk(world: &World) -> Result<()> {
    let site = world.site("no_disk", ferrite_tests::machine::Machine::without_disks)?;
    site.add(&["--cleaning", "disabled"])?;
    site.wait_state(HostState::Available, BOOT)?;
    site.provision(&[])?;
    site.wait_error("no-disk", SOON)?;
    site.conductor
        .cli_ok(&["host", "delete", HOST, "--wait"], "")
        .map(drop)
}

const MIB: usize = 1 << 20;
const GIB: u64 = 1 << 30;

/// All the ways an image can be wrong, on one ramdisk of 384 MiB that stays up through them; then
/// the power goes while the image is written.
fn image_faults(world: &World) -> Result<()> {
    let shape = |machine: ferrite_tests::machine::Machine| {
        machine.memory_mib(384).disk(DiskBus::Nvme, 4 * GIB)
    };
    let site = world.site("image_faults", shape)?;
    let disk = site.lab.host(1).disk(0);
    plant(&disk)?;
    site.add(&["--cleaning", "disabled"])?;
    site.wait_state(HostState::Available, BOOT)?;
    let inventory = site.conductor.inventory(HOST)?;
    let fixed = inventory.disks.iter().filter(|disk| !disk.removable);
    ensure!(
        fixed.count() == 2,
        "not two fixed disks: {:?}",
        inventory.disks
    );
    let before = fingerprint(&disk)?;
    what_fails_before_the_first_write(&site)?;
    ensure!(
        fingerprint(&disk)? == before,
        "a refused image changed the disk"
    );
    what_fails_while_writing(&site, &disk)?;
    ensure!(
        site.firmware_boots() == 1,
        "{} firmware boots",
        site.firmware_boots()
    );
    power_lost_while_writing(&site, &disk)
}

fn what_fails_before_the_first_write(site: &Site<'_>) -> Result<()> {
    let (file, digest) = site.image()?;
    site.provision(&[])?;
    says(
        &site.wait_error("several-disks-match", SOON)?,
        &["disk-1-a", "disk-1-b"],
    )?;
    site.provision(&["--root-device", "serial=nobody"])?;
    says(
        &site.wait_error("no-disk-matches", SOON)?,
        &["disk-1-a", "disk-1-b"],
    )?;
    let root = ["--root-device", "serial=disk-1-a"];
    site.provision_image("nothing-here.zst", &digest, &root)?;
    says(
        &site.wait_error("image-not-found", SOON)?,
        &["nothing-here.zst", "404"],
    )?;
    let huge = File::create(site_images(site).join("too-large.raw"))?;
    huge.set_len(9 * GIB)?;
    site.provision_image("too-large.raw", &digest, &root)?;
    says(
        &site.wait_error("image-too-large", SOON)?,
        &["9.00 GiB", "8.00 GiB"],
    )?;
    site.lab
        .images()
        .faults
        .add(Fault::new(&format!("/{file}"), Effect::Status(503)));
    site.provision(&root)?;
    says(&site.wait_error("image-unreachable", SOON)?, &["503"])?;
    site.lab.images().faults.clear();
    Ok(())
}

fn site_images<'a>(site: &'a Site<'_>) -> &'a Path {
    site.lab.images().dir()
}

fn what_fails_while_writing(site: &Site<'_>, disk: &Path) -> Result<()> {
    let (file, _) = site.image()?;
    let root = ["--root-device", "serial=disk-1-a"];
    let wrong = format!("sha256:{}", "ab".repeat(32));
    site.provision_image(&file, &wrong, &root)?;
    says(
        &site.wait_error("image-digest-mismatch", 4 * SOON)?,
        &["abab", &file],
    )?;
    not_bootable(disk)?;
    let faults = &site.lab.images().faults;
    faults.add(Fault::new(&format!("/{file}"), Effect::Truncate(20 << 20)));
    site.provision(&root)?;
    site.wait_error("image-truncated", 4 * SOON)?;
    not_bootable(disk)?;
    faults.clear();
    Ok(())
}

/// The write goes on slowly until the power is cut; after that by itself to the end.
fn power_lost_while_writing(site: &Site<'_>, disk: &Path) -> Result<()> {
    let (file, _) = site.image()?;
    let faults = &site.lab.images().faults;
    faults.add(Fault::new(&format!("/{file}"), Effect::Rate(4 << 20)));
    site.provision(&["--root-device", "serial=disk-1-a"])?;
    site.conductor.wait(HOST, SOON, |host| {
        host.status
            .step
            .as_ref()
            .is_some_and(|step| step.progress.bytes_done > 8 << 20)
    })?;
    site.lab.host(1).power_cut()?;
    not_bootable(disk)?;
    faults.clear();
    site.wait_error("agent-lost", 2 * SOON)?;
    site.wait_provisioned()?;
    ensure!(
        site.firmware_boots() == 2,
        "{} firmware boots",
        site.firmware_boots()
    );
    Ok(())
}

/// The error's message has each of the words.
fn says(host: &Host, words: &[&str]) -> Result<()> {
    let problem = &host.status.error.as_ref().context("no error")?.problem;
    for word in words {
        ensure!(
            problem.message.contains(word),
            "`{word}` is not in: {}",
            problem.message
        );
    }
    ensure!(
        !problem.advice.is_empty(),
        "no advice with: {}",
        problem.message
    );
    Ok(())
}

/// Data of a former owner, at the places that a premature write would hit first.
fn plant(disk: &Path) -> Result<()> {
    let file = File::options().write(true).open(disk)?;
    let pattern = [0x5a; 4096];
    for offset in [0, MIB as u64, GIB, 8 * GIB - 4096] {
        file.write_all_at(&pattern, offset)?;
    }
    Ok(file.sync_all()?)
}

/// A digest of the first 2 MiB, the middle and the last MiB.
fn fingerprint(disk: &Path) -> Result<Vec<u8>> {
    let mut file = File::open(disk)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 2 * MIB];
    for offset in [0, GIB - MIB as u64, 8 * GIB - 2 * MIB as u64] {
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(&mut buffer)?;
        hash.update(&buffer);
    }
    Ok(hash.finalize().to_vec())
}

/// Neither a boot sector nor a table, primary or backup.
fn not_bootable(disk: &Path) -> Result<()> {
    let file = File::open(disk)?;
    let mut buffer = vec![0; MIB];
    file.read_exact_at(&mut buffer, 0)?;
    ensure!(
        buffer.iter().all(|byte| *byte == 0),
        "the first MiB holds data before the end"
    );
    let mut tail = vec![0; 34 * 512];
    file.read_exact_at(&mut tail, 8 * GIB - 34 * 512)?;
    ensure!(
        !tail.windows(8).any(|bytes| bytes == b"EFI PART"),
        "a backup table before the end"
    );
    Ok(())
}
