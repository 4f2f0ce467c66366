//! The conductor in its world: started from what is stored, killed at any point, started again.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use ferrite_proto::boot::CaPin;
use tokio_util::sync::CancellationToken;

use super::bmc::SimBmc;
use super::cluster::SimApi;
use super::state::Sim;
use super::store::SimStore;
use crate::api::{self, App};
use crate::boots::Boots;
use crate::cluster::Clusters;
use crate::crash::{self, Moment, Work};
use crate::hosts::Hosts;
use crate::lifecycle::driver::Driver;
use crate::lifecycle::execute::World;
use crate::lifecycle::order::Reach;
use crate::lifecycle::record::Limits;
use crate::tls::{self, Authority};
use crate::token;

/// The operators' token.
pub(super) const ADMIN: &str = "the-operators-token-of-the-simulation";
/// How long a poll is held.
const POLL_SECONDS: u32 = 30;
/// Between check-ins of a daemon at rest.
const CHECK_IN_SECONDS: u32 = 100;

/// One life of the conductor.
#[derive(Debug)]
pub(super) struct Incarnation {
    /// It was killed: nothing of it gets out any more.
    pub(super) dead: CancellationToken,
    stop: CancellationToken,
    pub(super) router: Router,
    pub(super) boots: Arc<Boots>,
    pub(super) hosts: Arc<Hosts>,
}

/// Time limits, shorter than in production where that only saves time.
pub(super) fn limits() -> Limits {
    Limits {
        boot: Duration::from_mins(10),
        step: Duration::from_mins(30),
        daemon: Duration::from_mins(15),
        power_interval: Duration::from_mins(5),
        retry_max: Duration::from_mins(2),
        max_attempts: 5,
        ..Limits::default()
    }
}

/// One authority for all runs: nothing of it reaches what they do.
fn authority() -> Arc<Authority> {
    static MADE: OnceLock<Arc<Authority>> = OnceLock::new();
    let make = || {
        let dir = tempfile::tempdir().expect("a folder for temporary files");
        let made = tls::load_or_create(dir.path(), &[]);
        made.expect("an authority of our own").authority
    };
    // On a thread of its own: the points that it passes are none of this run's, and no other run
    // passes them.
    Arc::clone(MADE.get_or_init(|| std::thread::spawn(make).join().expect("it does not panic")))
}

/// Starts a conductor on what is stored.
pub(super) async fn start(sim: &Arc<Sim>) {
    let dead = CancellationToken::new();
    {
        let mut state = sim.lock();
        state.incarnations += 1;
        let said = format!("starts ({})", state.incarnations);
        state.say("", "conductor", &said);
    }
    let reach = Reach {
        url: "https://c:7443".into(),
        ca: CaPin([7; 32]),
        ca_pem: "".into(),
        servers: [].into(),
    };
    let (boots, _sightings) = Boots::new(reach.clone());
    let boots = Arc::new(boots);
    let store = Arc::new(SimStore::new(sim, &dead));
    let loaded = Hosts::load(store, Arc::clone(&boots)).await;
    let hosts = match loaded {
        Ok(hosts) => Arc::new(hosts),
        Err(error) => {
            sim.say("", "conductor", format!("cannot start: {error}"));
            return restart_later(sim, Duration::from_secs(5));
        }
    };
    let bmcs = (Arc::clone(sim), dead.clone());
    let clusters = Clusters::new(hosts.documents(), ferrite_proto::address::Policy::Others);
    let clusters = Arc::new(clusters.simulated(Arc::new(SimApi::new(sim, &dead))));
    if sim.joins() {
        let (clusters, dead) = (Arc::clone(&clusters), dead.clone());
        tokio::spawn(async move { dead.run_until_cancelled(clusters.sweep()).await });
    }
    let world = Arc::new(World {
        hosts: Arc::clone(&hosts),
        limits: limits(),
        reach,
        iso_url: Box::new(|token| Some(format!("http://c/iso/{token}"))),
        clusters: Arc::clone(&clusters),
        connect: Box::new(move |spec, _| {
            Ok(Box::new(SimBmc::new(&bmcs.0, &bmcs.1, &spec.address)))
        }),
    });
    let stop = CancellationToken::new();
    let driver = Arc::new(Driver::start(Arc::clone(&world), stop.clone()));
    let app = Arc::new(App {
        hosts: Arc::clone(&hosts),
        images: crate::images::Images::for_tests(),
        boots: Arc::clone(&boots),
        world,
        driver,
        admin_sha256: token::sha256(ADMIN),
        authority: authority(),
        oidc: None,
        refusals: crate::access::refusals::Refusals::default(),
        poll_seconds: POLL_SECONDS,
        check_in_seconds: CHECK_IN_SECONDS,
        stop: stop.clone(),
    });
    let incarnation = Incarnation {
        dead,
        stop,
        router: api::router(app),
        boots,
        hosts,
    };
    sim.lock().conductor = Some(Arc::new(incarnation));
}

/// Kills the conductor that runs, and starts another later.
pub(super) fn kill(sim: &Arc<Sim>, why: &str) {
    let Some(killed) = sim.lock().conductor.take() else {
        return;
    };
    killed.dead.cancel();
    killed.stop.cancel();
    sim.say("", "conductor", format!("is killed {why}"));
    let most = if sim.mishap(5) { 2400 } else { 20 };
    let pause = sim.between(Duration::from_millis(500), Duration::from_secs(most));
    restart_later(sim, pause);
}

fn restart_later(sim: &Arc<Sim>, pause: Duration) {
    let sim = Arc::clone(sim);
    tokio::spawn(async move {
        tokio::time::sleep(pause).await;
        Box::pin(start(&sim)).await;
    });
}

/// The conductor passes a point: the plan, or chance, has it killed there.
pub(super) fn passed(sim: &Arc<Sim>, work: Work, moment: Moment) {
    let name = crash::name(work, moment);
    let planned = {
        let mut state = sim.lock();
        let planned = sim.plan.kill_at == Some((work, moment)) && !state.killed;
        state.killed |= planned;
        state.points.insert(name.clone());
        planned
    };
    if planned || (sim.mishap(1) && sim.chance(30)) {
        kill(sim, &format!("at {name}"));
    }
}
