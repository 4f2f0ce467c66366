//! Each way from power-on to a provisioned host: PXE under OVMF and SeaBIOS, virtual media, kexec
//! and the reboot that it falls back to.

use std::fs;

use anyhow::{Context, Result, ensure};
use ferrite_proto::catalog::Image;
use ferrite_proto::host::HostState;
use ferrite_tests::lab::wait_until;
use ferrite_tests::machine::Firmware;
use ferrite_tests::odd_image;
use ferrite_tests::vm::Power;
use serde_json::json;

use crate::Scenario;
use crate::world::{BOOT, DEPLOY, HOST, SOON, Site, World};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "uefi_pxe_kexec",
        part: "boot",
        short: true,
        run: uefi_pxe_kexec,
    },
    Scenario {
        name: "virtual_media_fallback",
        part: "boot",
        short: true,
        run: virtual_media_fallback,
    },
    Scenario {
        name: "bios_pxe_own_disk",
        part: "boot",
        short: true,
        run: bios_pxe_own_disk,
    },
    Scenario {
        name: "packed_by_name",
        part: "redeploy",
        short: false,
        run: packed_by_name,
    },
    Scenario {
        name: "redeploy",
        part: "redeploy",
        short: false,
        run: redeploy,
    },
];

/// User data that would crowd out a daemon started by the usual keys.
const BUSY_USER_DATA: &str = "\
#cloud-config
hostname: busy
bootcmd:
  - echo USER-BOOTCMD-RAN > /dev/console
write_files:
  - path: /etc/ferrite-test
    content: written
runcmd:
  - [sh, -c, 'echo USER-RUNCMD-RAN-$(cat /etc/ferrite-test)-$(hostname) > /dev/console']
";

/// One firmware boot, and the host daemon starts whatever the user's own user data does.
fn uefi_pxe_kexec(world: &World) -> Result<()> {
    let site = world.site("uefi_pxe_kexec", |machine| machine)?;
    let user_data = site.lab.dir().join("user-data");
    fs::write(&user_data, BUSY_USER_DATA)?;
    site.add(&[])?;
    site.provision(&["--user-data", &user_data.display().to_string()])?;
    let host = site.wait_provisioned()?;
    boots(&site, 1)?;
    let booted_by = host
        .status
        .booted_by
        .context("no word of how it was booted")?;
    ensure!(booted_by.contains("kexec"), "booted by {booted_by}");
    site.lab.host(1).wait_console("USER-BOOTCMD-RAN", SOON)?;
    site.lab
        .host(1)
        .wait_console("USER-RUNCMD-RAN-written-busy", SOON)?;
    the_daemon_outlives_a_conductor(&site)
}

fn the_daemon_outlives_a_conductor(site: &Site<'_>) -> Result<()> {
    restart(site)?;
    let started = jiff::Timestamp::now();
    site.conductor.wait(HOST, SOON, |host| {
        host.status
            .daemon
            .as_ref()
            .is_some_and(|daemon| daemon.seen_at > started)
    })?;
    site.wait_state(HostState::Provisioned, SOON).map(drop)
}

/// No DHCP for the firmware, an ISO of this host's own, and a boot loader that Ferrite does not
/// understand: the OS is started through the firmware, and the reason is kept.
fn virtual_media_fallback(world: &World) -> Result<()> {
    let site = world.site("virtual_media_fallback", |machine| machine)?;
    let images = site.lab.images().dir();
    let odd = odd_image::make(&images.join("os.raw"), &images.join("odd.raw"))?;
    site.add(&["--boot-via", "virtual-media"])?;
    site.provision_image("odd.raw", &format!("sha256:{odd}"), &[])?;
    let host = site.wait_provisioned()?;
    boots(&site, 2)?;
    let booted_by = host.status.booted_by.unwrap_or_default();
    ensure!(
        booted_by.contains("reboot") && booted_by.contains("grub.cfg"),
        "booted by {booted_by}"
    );
    ensure!(
        site.lab.host(1).bmc.media_url().is_none(),
        "the ISO is still in the drive"
    );
    Ok(fs::remove_file(images.join("odd.raw"))?)
}

fn boots(site: &Site<'_>, wanted: u64) -> Result<()> {
    let count = site.firmware_boots();
    ensure!(count == wanted, "{count} firmware boots, not {wanted}");
    Ok(())
}

/// Legacy BIOS; and a provisioned host that boots from the network ends on its own disk.
fn bios_pxe_own_disk(world: &World) -> Result<()> {
    let site = world.site("bios_pxe_own_disk", |machine| {
        machine.firmware(Firmware::Bios)
    })?;
    site.add(&["--boot-mode", "bios"])?;
    site.provision(&[])?;
    let host = site.wait_provisioned()?;
    boots(&site, 1)?;
    let first_boot = host.status.daemon.context("no daemon")?.boot_id;
    let once = json!({ "BootSourceOverrideTarget": "Pxe", "BootSourceOverrideEnabled": "Once" });
    let system = "/redfish/v1/Systems/1";
    site.lab
        .redfish(1, "PATCH", system, &json!({ "Boot": once }))?;
    let reset = format!("{system}/Actions/ComputerSystem.Reset");
    site.lab
        .redfish(1, "POST", &reset, &json!({ "ResetType": "ForceRestart" }))?;
    let again = site.conductor.wait(HOST, DEPLOY, |host| {
        host.status
            .daemon
            .as_ref()
            .is_some_and(|daemon| daemon.boot_id != first_boot)
    })?;
    boots(&site, 2)?;
    ensure!(
        again.status.state == HostState::Provisioned,
        "it is {}",
        again.status.state
    );
    Ok(())
}

/// The conductor fetches an image, packs it and hands it to a host that asked for it by name; the
/// host reads all of it back before it boots from it.
fn packed_by_name(world: &World) -> Result<()> {
    let site = world.site("packed_by_name", |machine| machine)?;
    site.add(&[])?;
    let (file, digest) = site.image()?;
    let url = site.lab.image_url(&file);
    let add = ["image", "add", "debian", &url, "--digest", &digest];
    let wait = ["--wait", "--timeout", "10m"];
    site.conductor.cli_ok(&[&add[..], &wait].concat(), "")?;
    let shown = site
        .conductor
        .cli_ok(&["image", "show", "debian", "-o", "json"], "")?;
    let image: Image = serde_json::from_str(&shown)?;
    let packed = image.status.context("an image without a status")?;
    site.wait_state(HostState::Available, BOOT)?;
    let provision = [
        "host",
        "provision",
        HOST,
        "--image-name",
        "debian",
        "--verify",
    ];
    site.conductor.cli_ok(&provision, "")?;
    let host = site.wait_provisioned()?;
    let written = host.status.image_written.context("nothing was written")?;
    ensure!(
        written.digest == packed.digest.map(|digest| digest.to_string()),
        "the host was not given the packed form: {written:?}"
    );
    ensure!(written.verified, "it was not read back: {written:?}");
    ensure!(
        Some(written.bytes_image) == packed.image_bytes && written.bytes_zeroed > 0,
        "not all of it was written: {written:?}"
    );
    boots(&site, 1)
}

/// Deprovision, and provision again: the ramdisk stays up between the two, and a conductor that is
/// killed on the way goes on.
fn redeploy(world: &World) -> Result<()> {
    let site = world.site("redeploy", |machine| machine)?;
    site.add(&[])?;
    site.provision(&[])?;
    let first = site
        .wait_provisioned()?
        .status
        .daemon
        .context("no daemon")?
        .boot_id;
    site.conductor.cli_ok(&["host", "deprovision", HOST], "")?;
    site.conductor.wait(HOST, SOON, |host| {
        host.status.state == HostState::Deprovisioning
    })?;
    restart(&site)?;
    site.wait_state(HostState::Available, BOOT)?;
    boots(&site, 2)?;
    site.provision(&[])?;
    let second = site
        .wait_provisioned()?
        .status
        .daemon
        .context("no daemon")?
        .boot_id;
    ensure!(first != second, "the same OS run twice");
    boots(&site, 2)?;
    site.conductor.cli_ok(&["host", "delete", HOST], "")?;
    restart(&site)?;
    wait_until(SOON, || site.conductor.host(HOST).is_err()).context("a deleted host stays")?;
    ensure!(
        site.lab.host(1).power() == Power::Off,
        "a deleted host is on"
    );
    Ok(())
}

fn restart(site: &Site<'_>) -> Result<()> {
    site.conductor.kill()?;
    site.conductor.launch()
}
