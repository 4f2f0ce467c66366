//! Operations on a host that runs an OS: service and rescue boot it into a ramdisk and back, and
//! its disk is what it was.

use anyhow::{Context, Result, ensure};
use ferrite_proto::host::{Host, HostState};
use ferrite_proto::operation::RescueAccess;
use serde_json::Value;

use crate::Scenario;
use crate::world::{BOOT, DEPLOY, HOST, SOON, Site, World};

pub(crate) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "service_and_rescue",
    part: "operations",
    short: true,
    run: service_and_rescue,
}];

fn service_and_rescue(world: &World) -> Result<()> {
    let site = world.site("service_and_rescue", |machine| machine)?;
    site.add(&[])?;
    site.provision(&[])?;
    let first = boot_id(&site.wait_provisioned()?)?;
    let second = service(&site, &first)?;
    let (password, access) = rescue(&site)?;
    a_person_logs_in(&site, &password, &access)?;
    unrescue(&site, &second)?;
    let refused = log_in(&site, &password, &access, "true")?;
    ensure!(!refused.status.success(), "SSH goes on after the rescue");
    Ok(())
}

/// The boot that the daemon last reported of.
fn boot_id(host: &Host) -> Result<String> {
    let daemon = host.status.daemon.as_ref();
    Ok(daemon.context("no host daemon")?.boot_id.clone())
}

fn service(site: &Site<'_>, before: &str) -> Result<String> {
    let words = ["host", "service", HOST, "--steps", "inspect,set-boot-entry"];
    site.conductor.cli_ok(&words, "")?;
    let host = back_in_its_os(site, before)?;
    let cloud_init = &host.status.daemon.as_ref().context("no daemon")?.cloud_init;
    ensure!(
        host.status.image.is_some() && cloud_init.errors.is_empty(),
        "not the OS of before: {cloud_init:?}"
    );
    boot_id(&host)
}

/// The same deployment, started once more.
fn back_in_its_os(site: &Site<'_>, before: &str) -> Result<Host> {
    let host = site.conductor.wait(HOST, DEPLOY, |host| {
        let again = boot_id(host).is_ok_and(|id| id != before);
        again && host.status.operation.is_none()
    })?;
    ensure!(
        host.status.state == HostState::Provisioned && host.status.error.is_none(),
        "{} with {:?}",
        host.status.state,
        host.status.error
    );
    Ok(host)
}

fn rescue(site: &Site<'_>) -> Result<(String, RescueAccess)> {
    let told = site
        .conductor
        .cli_ok(&["--output", "json", "host", "rescue", HOST], "")?;
    let told: Value = serde_json::from_str(&told).context("what `host rescue` says")?;
    let password = told["password"].as_str().context("no password")?;
    let access = |host: &Host| host.status.operation.as_ref()?.access.clone();
    let host = site
        .conductor
        .wait(HOST, BOOT, |host| access(host).is_some())?;
    let access = access(&host).context("no way in")?;
    ensure!(
        access
            .host_keys
            .iter()
            .all(|key| key.starts_with("SHA256:"))
            && !access.host_keys.is_empty(),
        "{access:?}"
    );
    Ok((password.to_owned(), access))
}

/// Debian's dbclient, as a person would from a machine of that network.
fn log_in(
    site: &Site<'_>,
    password: &str,
    access: &RescueAccess,
    command: &str,
) -> Result<std::process::Output> {
    let is_v4 = |address: &&String| !address.contains(':');
    let address = access.addresses.iter().find(is_v4).context("no address")?;
    let address = address.split('/').next().unwrap_or_default();
    let there = format!("root@{address}");
    let argv = ["timeout", "60", "dbclient", "-y", "-y", &there, command];
    site.lab.run(&argv, &[("DROPBEAR_PASSWORD", password)])
}

fn a_person_logs_in(site: &Site<'_>, password: &str, access: &RescueAccess) -> Result<()> {
    let wrong = log_in(site, "not-the-password", access, "id -u")?;
    ensure!(!wrong.status.success(), "any password will do");
    // What a rescue is for: the OS's own files, read with the tools of the ramdisk. The third
    // partition is the root of the image that is deployed here.
    let look = "e2fsck -V; for part in /dev/vda3 /dev/sda3 /dev/nvme0n1p3; do \
                test -b $part && mount -o ro $part /mnt; done; cat /mnt/etc/debian_version; \
                umount /mnt; id -u";
    let there = log_in(site, password, access, look)?;
    let said = String::from_utf8_lossy(&there.stdout);
    let lines: Vec<_> = said.lines().collect();
    ensure!(
        there.status.success() && lines.len() >= 2 && lines.last() == Some(&"0"),
        "it says {said}{}",
        String::from_utf8_lossy(&there.stderr)
    );
    let version = lines[lines.len() - 2];
    ensure!(version.starts_with("12"), "Debian {version}");
    // Nothing of the password is in what the conductor tells or logs.
    ensure!(
        !site.conductor.log().contains(password),
        "the password is in the log"
    );
    let events = site.conductor.cli_ok(&["host", "events", HOST], "")?;
    ensure!(!events.contains(password), "the password is in the events");
    Ok(())
}

fn unrescue(site: &Site<'_>, before: &str) -> Result<()> {
    site.conductor.cli_ok(&["host", "unrescue", HOST], "")?;
    back_in_its_os(site, before)?;
    site.wait_state(HostState::Provisioned, SOON).map(drop)
}
