//! The lab itself on real firmware: power, boot order, virtual media, boot counting. No conductor,
//! no ramdisk.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};
use ferrite_tests::lab::Lab;
use ferrite_tests::machine::Firmware;
use ferrite_tests::vm::Power;
use serde_json::{Value, json};

const SYSTEM: &str = "/redfish/v1/Systems/1";
const RESET: &str = "/redfish/v1/Systems/1/Actions/ComputerSystem.Reset";
const SOON: Duration = Duration::from_mins(1);

fn act(lab: &Lab, path: &str, body: &Value) {
    let method = if path == SYSTEM { "PATCH" } else { "POST" };
    let (status, reply) = lab.redfish(1, method, path, body).expect("the BMC answers");
    assert_eq!(status, 204, "{method} {path} {body}: {reply}");
}

fn boot(lab: &Lab, target: &str) {
    let once = json!({ "BootSourceOverrideTarget": target, "BootSourceOverrideEnabled": "Once" });
    act(lab, SYSTEM, &json!({ "Boot": once }));
}

fn reset(lab: &Lab, kind: &str) {
    act(lab, RESET, &json!({ "ResetType": kind }));
}

#[test]
fn a_uefi_host_powers_on_boots_the_network_and_goes_off() -> Result<()> {
    let lab = Lab::builder().host(|machine| machine).up()?;
    let host = lab.host(1);
    assert_eq!((host.power(), host.firmware_boots()), (Power::Off, 0));
    boot(&lab, "Pxe");
    reset(&lab, "On");
    host.wait_console("Start PXE over IPv4", SOON)?;
    assert_eq!(host.firmware_boots(), 1);
    let (_, system) = lab.redfish(1, "GET", SYSTEM, &Value::Null)?;
    assert_eq!(
        system["Boot"]["BootSourceOverrideEnabled"], "Disabled",
        "once was not used up"
    );
    reset(&lab, "ForceRestart");
    host.vm.wait_firmware_boots(2, SOON)?;
    reset(&lab, "ForceOff");
    assert_eq!(host.power(), Power::Off);
    assert!(host.cost().qemu_cpu_seconds > 0.5, "{:?}", host.cost());
    assert!(host.cost().qemu_peak_kib > 20_000, "{:?}", host.cost());
    Ok(())
}

/// iPXE's own ISO, from the Debian package that the conductor's netboot needs as well.
const IPXE_ISO: &str = "/usr/lib/ipxe/ipxe.iso";

#[test]
fn a_bios_host_boots_virtual_media_once() -> Result<()> {
    let lab = Lab::builder()
        .host(|machine| machine.firmware(Firmware::Bios))
        .up()?;
    std::fs::copy(IPXE_ISO, lab.images().dir().join("ipxe.iso"))?;
    let host = lab.host(1);
    let insert = "/redfish/v1/Managers/1/VirtualMedia/Cd/Actions/VirtualMedia.InsertMedia";
    act(&lab, insert, &json!({ "Image": lab.image_url("ipxe.iso") }));
    assert_eq!(host.bmc.media_bytes(), lab.images().bytes());
    boot(&lab, "Cd");
    reset(&lab, "On");
    host.wait_console("Booting from DVD/CD", SOON)?;
    host.wait_console("iPXE initialising devices", SOON)?;
    reset(&lab, "ForceRestart");
    host.wait_console("Booting from Hard Disk", SOON)?;
    // The disk is blank, so the network card is next, and not the media that is still inserted.
    host.wait_console("iPXE (PCI", SOON)?;
    assert_eq!(host.firmware_boots(), 2);
    Ok(())
}

#[test]
fn a_bios_host_boots_the_network_when_its_bmc_says_so() -> Result<()> {
    let lab = Lab::builder()
        .host(|machine| machine.firmware(Firmware::Bios))
        .up()?;
    let host = lab.host(1);
    boot(&lab, "Pxe");
    reset(&lab, "On");
    host.wait_console("Configuring (net0", SOON)?;
    let console = host.console();
    assert!(!console.contains("Booting from Hard Disk"), "{console}");
    Ok(())
}

#[test]
fn an_address_of_the_ordinary_network_answers_inside_when_it_is_asked_for() -> Result<()> {
    let server = TcpListener::bind("127.0.0.9:0")?;
    let target = server.local_addr()?;
    let mut lab = Lab::builder().up()?;
    assert!(talk(&lab, target).is_err(), "the lab has a way out");
    lab.reach(target)?;
    let serving = std::thread::spawn(move || -> Result<()> {
        let (mut peer, _) = server.accept()?;
        Ok(peer.write_all(b"from outside")?)
    });
    assert_eq!(talk(&lab, target)?, "from outside");
    serving.join().ok().context("the server failed")?
}

/// What an address says to somebody inside.
fn talk(lab: &Lab, target: SocketAddr) -> Result<String> {
    lab.net().run_in(move || {
        let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(5))?;
        let mut said = String::new();
        stream.read_to_string(&mut said)?;
        Ok(said)
    })?
}
