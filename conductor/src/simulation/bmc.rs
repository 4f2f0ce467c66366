//! BMCs: slow, unreachable, wrong, lying, late, and doing things twice.

use std::sync::Arc;
use std::time::Duration;

use ferrite_proto::host::Power;
use ferrite_proto::inventory::BootMode;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::checks;
use super::state::{self, Sim};
use crate::bmc::{Bmc, BmcError, BmcFuture, BmcIdentity, BootDevice, PowerAction, Said};

/// A client for one BMC, of one life of the conductor.
#[derive(Debug)]
pub(super) struct SimBmc {
    sim: Arc<Sim>,
    dead: CancellationToken,
    /// The machine behind it; none for one that is not ours.
    machine: Option<String>,
}

impl SimBmc {
    pub(super) fn new(sim: &Arc<Sim>, dead: &CancellationToken, address: &str) -> Self {
        let name = address.strip_prefix("redfish://").unwrap_or(address);
        let known = sim.lock().machines.contains_key(name);
        Self {
            sim: Arc::clone(sim),
            dead: dead.clone(),
            machine: known.then(|| name.to_owned()),
        }
    }

    /// A call goes out, and may come to nothing.
    async fn call(&self, what: &str) -> Result<&str, BmcError> {
        self.alive().await;
        let host = self.machine.as_deref().unwrap_or("?");
        if self.sim.mishap(3) {
            self.sim.say(host, "bmc", format!("{what}: no answer"));
            self.sim.pause(1_000, 30_000).await;
            self.alive().await;
            let bmc = host.to_owned();
            let reason = "timed out".to_owned();
            return Err(BmcError::Unreachable { bmc, reason });
        }
        self.sim.pause(5, 300).await;
        self.alive().await;
        if self.is_locked() {
            return Err(BmcError::Credentials {
                bmc: host.to_owned(),
                username: "u".to_owned(),
                status: 401,
                said: Said::default(),
            });
        }
        if self.sim.mishap(3) {
            self.sim.say(host, "bmc", format!("{what}: HTTP 500"));
            return Err(failed(host));
        }
        Ok(host)
    }

    fn is_locked(&self) -> bool {
        let Some(name) = &self.machine else {
            return false;
        };
        let until = self.sim.machine(name, |machine| machine.locked_until);
        until.is_some_and(|until| until > Instant::now())
    }

    /// The answer goes back, and may be lost though the call was obeyed.
    async fn answered(&self, what: &str) -> Result<(), BmcError> {
        self.sim.pause(5, 300).await;
        self.alive().await;
        let host = self.machine.as_deref().unwrap_or("?");
        if self.sim.mishap(3) {
            self.sim.say(
                host,
                "bmc",
                format!("{what}: obeyed, and the answer is lost"),
            );
            return Err(failed(host));
        }
        Ok(())
    }

    async fn alive(&self) {
        if self.dead.is_cancelled() {
            std::future::pending::<()>().await;
        }
    }

    /// A change of a machine: none that is not ours is ever to be changed.
    fn change(&self, what: &str) -> Option<&str> {
        if self.machine.is_none() {
            self.sim
                .violate(format!("{what} at the BMC of a machine that is not ours"));
        }
        self.machine.as_deref()
    }
}

fn failed(host: &str) -> BmcError {
    BmcError::Protocol {
        bmc: host.to_owned(),
        path: "/".to_owned(),
        reason: "HTTP 500".to_owned(),
    }
}

impl Bmc for SimBmc {
    fn identity(&self) -> BmcFuture<'_, BmcIdentity> {
        Box::pin(async move {
            self.call("identity").await?;
            let uuid = match &self.machine {
                Some(name) => self.sim.machine(name, |machine| machine.uuid.clone()),
                None => self.sim.lock().stranger.clone(),
            };
            Ok(BmcIdentity {
                uuid: Some(uuid),
                ..BmcIdentity::default()
            })
        })
    }

    fn power(&self) -> BmcFuture<'_, Power> {
        Box::pin(async move {
            self.call("power").await?;
            let Some(name) = &self.machine else {
                return Ok(Power::On);
            };
            Ok(self.sim.machine(name, |machine| {
                machine.power_told = Some(Instant::now());
                let lies = machine.tells_on_until.is_some_and(|at| at > Instant::now());
                if lies && !machine.power {
                    machine.bmc_lied = machine.power_told;
                }
                if machine.power || lies {
                    Power::On
                } else {
                    Power::Off
                }
            }))
        })
    }

    fn set_power(&self, action: PowerAction) -> BmcFuture<'_, ()> {
        Box::pin(async move {
            self.call("set power").await?;
            let Some(name) = self.change("power") else {
                return Ok(());
            };
            checks::switched(&self.sim, name, action);
            switch(&self.sim, name, action);
            self.answered("set power").await
        })
    }

    fn set_boot_once(&self, device: BootDevice, _: BootMode) -> BmcFuture<'_, ()> {
        Box::pin(async move {
            self.call("boot override").await?;
            if let Some(name) = self.change("boot override") {
                self.sim
                    .machine(name, |machine| machine.boot_once = Some(device));
            }
            self.answered("boot override").await
        })
    }

    fn clear_boot_override(&self) -> BmcFuture<'_, ()> {
        Box::pin(async move {
            self.call("clear the override").await?;
            if let Some(name) = self.change("clear the override") {
                self.sim.machine(name, |machine| machine.boot_once = None);
            }
            self.answered("clear the override").await
        })
    }

    fn insert_media<'a>(&'a self, url: &'a str) -> BmcFuture<'a, ()> {
        Box::pin(async move {
            self.call("insert").await?;
            if let Some(name) = self.change("insert") {
                let url = Some(url.to_owned());
                self.sim.machine(name, |machine| machine.drive = url);
            }
            self.answered("insert").await
        })
    }

    fn eject_media(&self) -> BmcFuture<'_, ()> {
        Box::pin(async move {
            self.call("eject").await?;
            if let Some(name) = self.change("eject") {
                self.sim.machine(name, |machine| machine.drive = None);
            }
            self.answered("eject").await
        })
    }
}

/// What comes of a request for power: mostly what was asked.
fn switch(sim: &Arc<Sim>, name: &str, action: PowerAction) {
    sim.say(name, "bmc", format!("asked for {action:?}"));
    let mood = if sim.mishap(15) { sim.below(3) } else { 9 };
    if mood < 3 {
        sim.machine(name, |machine| machine.bmc_lied = Some(Instant::now()));
    }
    match mood {
        0 => sim.say(name, "bmc", "accepts it and does nothing"),
        1 => {
            let late = sim.between(Duration::from_secs(1), Duration::from_secs(40));
            sim.say(name, "bmc", format!("will do it {late:?} late"));
            later(sim, name, action, late);
        }
        2 => {
            effect(sim, name, action);
            later(sim, name, action, Duration::from_secs(3));
        }
        _ => effect(sim, name, action),
    }
}

fn later(sim: &Arc<Sim>, name: &str, action: PowerAction, pause: Duration) {
    let (sim, name) = (Arc::clone(sim), name.to_owned());
    tokio::spawn(async move {
        tokio::time::sleep(pause).await;
        sim.machine(&name, |machine| machine.bmc_lied = Some(Instant::now()));
        effect(&sim, &name, action);
    });
}

fn effect(sim: &Arc<Sim>, name: &str, action: PowerAction) {
    let is_on = sim.machine(name, |machine| {
        machine.let_go |= action == PowerAction::ForceOff;
        machine.power
    });
    match (action, is_on) {
        (PowerAction::On, false) | (PowerAction::ForceRestart, true) => {
            state::firmware(sim, name);
        }
        (PowerAction::ForceOff, true) => state::off(sim, name),
        // As most BMCs do: nothing.
        (PowerAction::On, true) | (PowerAction::ForceRestart | PowerAction::ForceOff, false) => {}
    }
}
