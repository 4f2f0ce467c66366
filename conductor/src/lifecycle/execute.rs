//! Does what was decided. It makes no choices: each action is one effect and one change.

use std::fmt;
use std::sync::Arc;

use ferrite_proto::host::{BmcSpec, BootVia};
use ferrite_proto::problem::{Code, Problem};
use ferrite_proto::secret::Secret;
use jiff::Timestamp;

use super::StepName;
use super::change::{Change, NewTicket};
use super::image::Wanted;
use super::joining::JoinAction;
use super::order::{self, Reach};
use super::plan::Action;
use super::record::{BootPhase, Limits};
use crate::actor::Actor;
use crate::bmc::{Bmc, BmcError, BootDevice, PowerAction};
use crate::clock;
use crate::cluster::Clusters;
use crate::crash::{self, Moment, Work};
use crate::hosts::Hosts;
use crate::seeing::measured::Measured;
use crate::store::Stored;
use crate::token;

/// Opens a client for a BMC.
pub(crate) type Connect =
    Box<dyn Fn(&BmcSpec, &Secret<String>) -> Result<Box<dyn Bmc>, BmcError> + Send + Sync>;

/// Where a BMC finds the ISO behind a token, if there is one.
pub(crate) type IsoUrl = Box<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// What effects need.
pub(crate) struct World {
    /// The hosts.
    pub(crate) hosts: Arc<Hosts>,
    /// Time limits.
    pub(crate) limits: Limits,
    /// How hosts reach us.
    pub(crate) reach: Reach,
    /// Where a BMC finds the ISO behind a token.
    pub(crate) iso_url: IsoUrl,
    /// Opens BMCs.
    pub(crate) connect: Connect,
    /// The clusters that hosts join.
    pub(crate) clusters: Arc<Clusters>,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("World")
    }
}

/// A host's BMC, opened once for as long as address and password stay.
#[derive(Debug, Default)]
pub(crate) struct BmcClient {
    open: Option<(BmcSpec, Secret<String>, Box<dyn Bmc>)>,
}

impl BmcClient {
    fn get(&mut self, world: &World, stored: &Stored) -> Result<&dyn Bmc, Problem> {
        let spec = &stored.record.host.spec.bmc;
        let password = stored.kept.host.bmc_password.clone();
        let password = password.unwrap_or_else(|| Secret::new(String::new()));
        let same =
            |open: &(BmcSpec, Secret<String>, Box<dyn Bmc>)| open.0 == *spec && open.1 == password;
        let open = if let Some(open) = self.open.take().filter(same) {
            open
        } else {
            let client = (world.connect)(spec, &password)?;
            let client = Measured::of(client, Arc::clone(world.hosts.seeing()));
            (spec.clone(), password, client)
        };
        Ok(self.open.insert(open).2.as_ref())
    }
}

/// Changes of the record alone; they are made in the transaction of the decision itself. False
/// when the action needs more than that.
pub(crate) fn in_place(change: &mut Change, action: Action, world: &World) -> bool {
    let limits = &world.limits;
    match action {
        Action::Arm => change.armed(new_ticket(), limits),
        Action::OpenDeployment => open_deployment(change, world),
        Action::BeginSteps(kind) => change.begin_steps(kind),
        Action::Order(name) => {
            if name == StepName::WriteImage && change.kept.credential.is_none() {
                let credential = token::random();
                let sha256 = token::sha256(credential.expose());
                change.renew_credential(credential, sha256);
            }
            let made = order::step(name, &change.record, &change.kept, &world.reach);
            match made {
                Ok(_) => change.order(name),
                Err(problem) => change.fail(problem, limits),
            }
        }
        Action::Cancel => change.cancel(),
        Action::ForgetAgent => change.drop_agent("it went away while the host was available"),
        Action::OsIsUp => change.os_is_up(),
        Action::Admit(work) => change.admit(work),
        Action::Yield => change.yield_turn(),
        Action::Propose(step) => change.propose(step),
        Action::Rest => change.rest(limits),
        Action::EndOperation => change.end_operation(),
        Action::Join(JoinAction::Begin) => change.begin_joining(),
        Action::Join(_)
        | Action::Identify
        | Action::ReadPower
        | Action::InsertMedia
        | Action::SetBootOnce
        | Action::PowerOn
        | Action::ForceRestart
        | Action::PowerOff
        | Action::ReleaseBoot
        | Action::Remove => return false,
    }
    true
}

fn open_deployment(change: &mut Change, world: &World) {
    let kept = match world.hosts.wanted_image(&change.record) {
        Wanted::AsItIs => None,
        Wanted::Kept(kept) => Some(*kept),
        // It was taken back in this instant: the next turn waits for it.
        Wanted::NotYet(_) => return,
    };
    let credential = token::random();
    let sha256 = token::sha256(credential.expose());
    change.open_deployment(kept, credential, sha256);
}

fn new_ticket() -> NewTicket {
    let ticket = token::random();
    NewTicket {
        sha256: token::sha256(ticket.expose()),
        ticket,
        iso_token: token::random(),
    }
}

/// Performs an action outside, then notes in the record what came of it.
pub(crate) async fn outside(
    world: &World,
    bmc: &mut BmcClient,
    stored: &Stored,
    action: Action,
) -> Result<(), Problem> {
    let name = &stored.record.host.name;
    let work = Work::doing(action);
    crash::passing(work, Moment::Before);
    if action == Action::Remove {
        world.hosts.remove(name, &Actor::Conductor).await?;
        crash::passing(work, Moment::After);
        return Ok(());
    }
    let asked = clock::now();
    let effect = match bmc.get(world, stored) {
        Ok(client) => act(client, world, stored, action).await,
        Err(problem) => Err(problem),
    };
    crash::passing(work, Moment::Acted);
    let limits = &world.limits;
    let noted = world
        .hosts
        .update_as_owner(name, |change| {
            match &effect {
                Ok(told) => note(change, action, told, asked, limits),
                Err(problem) => change.fail(problem.clone(), limits),
            }
            Ok(())
        })
        .await;
    crash::passing(work, Moment::After);
    noted.map(|_| ())
}

/// What a BMC told.
#[derive(Debug)]
struct Told {
    uuid: Option<String>,
    power: Option<ferrite_proto::host::Power>,
}

const NOTHING: Told = Told {
    uuid: None,
    power: None,
};

async fn act(
    bmc: &dyn Bmc,
    world: &World,
    stored: &Stored,
    action: Action,
) -> Result<Told, Problem> {
    let spec = &stored.record.host.spec;
    match action {
        Action::Identify => {
            let identity = bmc.identity().await?;
            let power = Some(bmc.power().await?);
            let uuid = identity.uuid;
            return Ok(Told { uuid, power });
        }
        Action::ReadPower => {
            let power = Some(bmc.power().await?);
            return Ok(Told { uuid: None, power });
        }
        Action::InsertMedia => bmc.insert_media(&iso_url(world, stored)?).await?,
        Action::SetBootOnce => {
            let device = match spec.boot_via {
                BootVia::Pxe => BootDevice::Pxe,
                BootVia::VirtualMedia => BootDevice::Cd,
            };
            bmc.set_boot_once(device, spec.boot_mode).await?;
        }
        Action::PowerOn => bmc.set_power(PowerAction::On).await?,
        Action::ForceRestart => bmc.set_power(PowerAction::ForceRestart).await?,
        Action::PowerOff => bmc.set_power(PowerAction::ForceOff).await?,
        Action::ReleaseBoot => {
            if spec.boot_via == BootVia::VirtualMedia {
                bmc.eject_media().await?;
            }
            bmc.clear_boot_override().await?;
        }
        Action::Arm
        | Action::OpenDeployment
        | Action::BeginSteps(_)
        | Action::Order(_)
        | Action::Cancel
        | Action::ForgetAgent
        | Action::OsIsUp
        | Action::Admit(_)
        | Action::Yield
        | Action::Propose(_)
        | Action::Rest
        | Action::EndOperation
        | Action::Join(_)
        | Action::Remove => {}
    }
    Ok(NOTHING)
}

fn iso_url(world: &World, stored: &Stored) -> Result<String, Problem> {
    let token = stored.kept.iso_token.as_ref().ok_or_else(|| {
        Problem::new(
            Code::Internal,
            "no ISO is armed for this host",
            "report this; `ferrite host retry` arms one",
        )
    })?;
    (world.iso_url)(token.expose()).ok_or_else(|| {
        Problem::new(
            Code::RequestInvalid,
            "this conductor has no ISO to boot from virtual media",
            "build one with `ferrite-image iso`, then start the conductor again",
        )
    })
}

fn note(change: &mut Change, action: Action, told: &Told, asked: Timestamp, limits: &Limits) {
    match (action, told.power) {
        (Action::Identify, Some(power)) => change.identified(told.uuid.as_deref(), power, limits),
        (Action::ReadPower, Some(power)) => change.power_read(power),
        (Action::InsertMedia, _) => change.boot_phase(BootPhase::MediaIn),
        (Action::SetBootOnce, _) => change.boot_phase(BootPhase::OverrideSet),
        (Action::PowerOn | Action::ForceRestart, _) => change.power_asked(asked),
        (Action::PowerOff, _) => change.powered_off(),
        (Action::ReleaseBoot, _) => change.released(),
        (_, _) => {}
    }
}
