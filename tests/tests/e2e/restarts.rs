//! The conductor is killed with `kill -9` in each state; nothing is lost and nothing is repeated.

use anyhow::{Context, Result, ensure};
use ferrite_proto::host::{Host, HostState};

use crate::Scenario;
use crate::world::{BOOT, DEPLOY, HOST, Site, World};

pub(crate) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "killed_in_each_state",
    part: "restarts",
    short: true,
    run,
}];

/// A moment at which the conductor is killed.
struct Moment {
    name: &'static str,
    is_now: fn(&Host) -> bool,
}

fn runs(host: &Host, step: &str) -> bool {
    host.status
        .step
        .as_ref()
        .is_some_and(|running| running.name == step)
}

const BEFORE_AVAILABLE: &[Moment] = &[
    Moment {
        name: "registering",
        is_now: |_| true,
    },
    Moment {
        name: "inspecting",
        is_now: |host| host.status.state >= HostState::Inspecting,
    },
    Moment {
        name: "power on",
        is_now: |host| host.status.power.is_some() && past_power_on(host),
    },
    Moment {
        name: "inspect",
        is_now: |host| runs(host, "inspect") || host.status.agent.is_some(),
    },
    Moment {
        name: "preparing",
        is_now: |host| host.status.state >= HostState::Preparing,
    },
    Moment {
        name: "available",
        is_now: |host| host.status.state == HostState::Available,
    },
];

const AFTER_PROVISION: &[Moment] = &[
    Moment {
        name: "provisioning",
        is_now: |host| host.status.state >= HostState::Provisioning,
    },
    Moment {
        name: "write-image",
        is_now: |host| runs(host, "write-image") && moved(host),
    },
    Moment {
        name: "booted",
        is_now: |host| host.status.booted_by.is_some(),
    },
    Moment {
        name: "daemon",
        is_now: |host| host.status.daemon.is_some(),
    },
];

fn past_power_on(host: &Host) -> bool {
    host.status.power == Some(ferrite_proto::host::Power::On)
}

fn moved(host: &Host) -> bool {
    host.status
        .step
        .as_ref()
        .is_some_and(|step| step.progress.bytes_done > 0)
}

fn run(world: &World) -> Result<()> {
    let site = world.site("killed_in_each_state", |machine| machine)?;
    site.add(&[])?;
    kill_at(&site, BEFORE_AVAILABLE)?;
    site.wait_state(HostState::Available, BOOT)?;
    site.provision(&[])?;
    kill_at(&site, AFTER_PROVISION)?;
    site.wait_provisioned()?;
    ensure!(
        site.firmware_boots() == 1,
        "{} firmware boots",
        site.firmware_boots()
    );
    let timeline = site.conductor.timeline(HOST)?;
    let writes = timeline
        .stages()
        .filter(|stage| stage.name == "write-image")
        .count();
    ensure!(writes == 1, "the image was written {writes} times");
    site.conductor.kill()?;
    site.conductor.launch()?;
    site.wait_provisioned().map(drop)
}

fn kill_at(site: &Site<'_>, moments: &[Moment]) -> Result<()> {
    for moment in moments {
        site.conductor
            .wait(HOST, DEPLOY, moment.is_now)
            .and_then(|_| site.conductor.kill())
            .and_then(|()| site.conductor.launch())
            .with_context(|| format!("killing the conductor at {}", moment.name))?;
    }
    Ok(())
}
