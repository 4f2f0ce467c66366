//! Goes round for every host: decide, act, wait for something to happen. One task a host.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ferrite_proto::operation::Work;
use ferrite_proto::problem::{Code, Problem};
use jiff::Timestamp;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::at_cluster;
use super::change::Change;
use super::execute::{self, BmcClient, World};
use super::joining::JoinAction;
use super::plan::{Action, Decision, plan};
use super::turns::{Answer, Demand, Switching};
use crate::clock;
use crate::crash::{self, Moment, Work as Point};
use crate::store::Stored;

/// Turns without a wait after which a pause is made: a plan that goes in circles must not take
/// the whole machine with it.
const TURNS_AT_ONCE: u32 = 200;
const PAUSE: Duration = Duration::from_secs(1);
/// How long to wait when the store fails.
const STORE_PAUSE: Duration = Duration::from_secs(5);
/// Look again at least this often: clocks step.
const LONGEST_WAIT: Duration = Duration::from_mins(1);

/// Between looks for hosts that nobody drives: one that was added though the store's answer was
/// lost, one of the name of another that was just leaving.
const ROUND: Duration = Duration::from_secs(5);

/// BMCs that are looked at at once. After a start all of ten thousand are due: each has an open
/// file and buffers. Not what switches: it was decided for now.
const LOOKS: usize = 512;

/// The tasks of all hosts.
#[derive(Debug, Clone)]
pub(crate) struct Driver {
    world: Arc<World>,
    looks: Arc<Semaphore>,
    tasks: Arc<Mutex<Tasks>>,
    stop: CancellationToken,
}

#[derive(Debug, Default)]
struct Tasks {
    /// Each gives its host's name when it ends.
    all: JoinSet<String>,
    driven: BTreeMap<String, Reins>,
}

impl Tasks {
    /// Forgets those that ended, and looks at no others: of ten thousand hosts one is begun after
    /// the other.
    fn tidy(&mut self) {
        while let Some(ended) = self.all.try_join_next() {
            let Ok(name) = ended else { continue };
            // It may have been begun again meanwhile.
            if self.driven.get(&name).is_some_and(Reins::has_ended) {
                self.driven.remove(&name);
            }
        }
    }
}

/// Ends one host's task.
#[derive(Debug, Clone)]
struct Reins {
    stop: CancellationToken,
    ended: CancellationToken,
}

impl Reins {
    fn has_ended(&self) -> bool {
        self.ended.is_cancelled()
    }

    /// Whether it drives, and shall.
    fn hold(&self) -> bool {
        !self.stop.is_cancelled() && !self.has_ended()
    }
}

impl Driver {
    /// Begins with every host that is known; as one of several, with none until it is held.
    pub(crate) fn start(world: Arc<World>, stop: CancellationToken) -> Self {
        let names = world.hosts.names();
        let driver = Self {
            world,
            looks: Arc::new(Semaphore::new(LOOKS)),
            tasks: Arc::default(),
            stop,
        };
        if !driver.world.hosts.ownership().is_shared() {
            driver.only(names);
            tokio::spawn(driver.clone().find_the_undriven());
        }
        driver
    }

    async fn find_the_undriven(self) {
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(ROUND) => {}
            }
            if let Err(problem) = self.world.hosts.be_sure().await {
                tracing::warn!(%problem, "whether all hosts are driven is not known");
                continue;
            }
            let names = self.world.hosts.names();
            let mut tasks = self.tasks();
            tasks.tidy();
            for name in names {
                self.begin(&mut tasks, name);
            }
        }
    }

    fn tasks(&self) -> MutexGuard<'_, Tasks> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins with a new host, here or wherever it comes to be held.
    pub(crate) fn drive(&self, name: String) {
        if self.world.hosts.ownership().is_shared() {
            self.world.hosts.ownership().wake();
        } else {
            let mut tasks = self.tasks();
            tasks.tidy();
            self.begin(&mut tasks, name);
        }
    }

    /// Drives these hosts from here on, and no others.
    pub(crate) fn only(&self, names: Vec<String>) {
        let mut tasks = self.tasks();
        for (name, reins) in &tasks.driven {
            if names.binary_search(name).is_err() {
                reins.stop.cancel();
            }
        }
        tasks.tidy();
        for name in names {
            self.begin(&mut tasks, name);
        }
    }

    fn begin(&self, tasks: &mut Tasks, name: String) {
        if tasks.driven.get(&name).is_some_and(Reins::hold) {
            return;
        }
        let reins = Reins {
            stop: self.stop.child_token(),
            ended: CancellationToken::new(),
        };
        tasks.driven.insert(name.clone(), reins.clone());
        let (world, looks) = (Arc::clone(&self.world), Arc::clone(&self.looks));
        tasks.all.spawn(async move {
            let _ended = reins.ended.drop_guard();
            keep_driving(world, looks, &name, reins.stop).await;
            name
        });
    }

    /// Whether a host is driven here.
    pub(crate) fn drives(&self, name: &str) -> bool {
        let tasks = self.tasks();
        let reins = tasks.driven.get(name);
        reins.is_some_and(Reins::hold)
    }

    /// Ends a host's task, after its present action.
    pub(crate) async fn stop_driving(&self, name: &str) {
        let reins = self.tasks().driven.get(name).cloned();
        if let Some(reins) = reins {
            reins.stop.cancel();
            reins.ended.cancelled().await;
        }
    }

    /// Ends every task.
    pub(crate) fn stop_all(&self) {
        for reins in self.tasks().driven.values() {
            reins.stop.cancel();
        }
    }

    /// Waits for every task; they end once they are told to stop, each after its present action.
    pub(crate) async fn join(&self) {
        let mut tasks = std::mem::take(&mut *self.tasks());
        while tasks.all.join_next().await.is_some() {}
    }
}

/// Drives a host until it is gone. A panic is a bug; that host must not be left alone for it.
async fn keep_driving(
    world: Arc<World>,
    looks: Arc<Semaphore>,
    name: &str,
    stop: CancellationToken,
) {
    loop {
        let task = HostTask {
            world: Arc::clone(&world),
            looks: Arc::clone(&looks),
            bmc: BmcClient::default(),
            name: name.to_owned(),
        };
        let Err(panic) = tokio::spawn(task.run(stop.clone())).await else {
            return;
        };
        tracing::error!(host = name, %panic, "driving the host broke off; beginning again");
        tokio::select! {
            biased;
            () = tokio::time::sleep(STORE_PAUSE) => {}
            () = stop.cancelled() => return,
        }
    }
}

struct HostTask {
    world: Arc<World>,
    looks: Arc<Semaphore>,
    bmc: BmcClient,
    name: String,
}

/// What a turn came to.
enum Turn {
    Again,
    Wait(Option<Timestamp>),
    Gone,
}

impl HostTask {
    async fn run(mut self, stop: CancellationToken) {
        let mut turns = 0;
        while let Some(live) = self.world.hosts.live(&self.name) {
            let turn = tokio::select! {
                // An action is not cut off at a stop unless it takes long: it can be done again.
                // In a box, which a host at rest does without: ten thousand are at rest.
                biased;
                turn = Box::pin(self.turn()) => turn,
                () = after(&stop, PAUSE) => return,
            };
            let pause = match turn {
                Ok(Turn::Gone) => return,
                Ok(Turn::Again) if turns < TURNS_AT_ONCE => {
                    turns += 1;
                    continue;
                }
                Ok(Turn::Again) => {
                    tracing::error!(host = %self.name, turns, "goes in circles; pausing");
                    PAUSE
                }
                Ok(Turn::Wait(until)) => until.map_or(LONGEST_WAIT, time_to),
                Err(problem) if problem.code == Code::NotOwner => {
                    tracing::info!(host = %self.name, "another replica drives it now");
                    return;
                }
                Err(problem) => {
                    tracing::error!(host = %self.name, %problem, "cannot go on; trying again");
                    STORE_PAUSE
                }
            };
            turns = 0;
            tokio::select! {
                biased;
                () = live.wake.notified() => {}
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    async fn turn(&mut self) -> Result<Turn, Problem> {
        let world = Arc::clone(&self.world);
        let decided = world
            .hosts
            .update_as_owner(&self.name, |change| Ok(decide(change, &world)))
            .await;
        let (stored, next) = match decided {
            Ok(decided) => decided,
            Err(problem) if world.hosts.live(&self.name).is_none() => {
                tracing::debug!(host = %self.name, %problem, "gone");
                return Ok(Turn::Gone);
            }
            Err(problem) => return Err(problem),
        };
        let switching = match &next {
            Next::Outside(Action::PowerOn | Action::ForceRestart) => {
                let host = &stored.record.host;
                match switching(&world, Demand::of(host, Work::Power, clock::now())) {
                    Some(switching) => Some(switching),
                    None => return Ok(Turn::Wait(None)),
                }
            }
            Next::Outside(_) | Next::AtCluster(_) | Next::Turn(..) => {
                wake(&world, &world.hosts.turns().power_done(&self.name));
                None
            }
        };
        let turn = self.take(&stored, next).await;
        drop(switching);
        turn
    }

    async fn take(&mut self, stored: &Stored, next: Next) -> Result<Turn, Problem> {
        match next {
            Next::Turn(turn, done) => {
                crash::passing(done, Moment::After);
                Ok(turn)
            }
            Next::Outside(action) => self.act(stored, action).await,
            Next::AtCluster(action) => {
                at_cluster::act(&self.world, stored, action).await?;
                Ok(Turn::Again)
            }
        }
    }

    async fn act(&mut self, stored: &Stored, action: Action) -> Result<Turn, Problem> {
        let _look = match action {
            Action::Identify | Action::ReadPower => self.looks.acquire().await.ok(),
            _ => None,
        };
        let started = std::time::Instant::now();
        execute::outside(&self.world, &mut self.bmc, stored, action).await?;
        tracing::debug!(host = %self.name, ?action, elapsed = ?started.elapsed(), "acted");
        Ok(if action == Action::Remove {
            Turn::Gone
        } else {
            Turn::Again
        })
    }
}

/// What follows a decision.
enum Next {
    Turn(Turn, Option<Point>),
    Outside(Action),
    AtCluster(JoinAction),
}

/// Something is changed, and about to be stored.
fn again(done: Option<Point>) -> Next {
    crash::passing(done, Moment::Before);
    Next::Turn(Turn::Again, done)
}

/// Decides on the record of this very transaction, and changes it where that is all there is to do.
fn decide(change: &mut Change, world: &World) -> Next {
    let name = change.record.host.name.clone();
    let mut seen = world.hosts.observed(&name, &world.limits);
    seen.image = world.hosts.wanted_image(&change.record);
    match plan(&change.record, &seen, change.now) {
        Decision::Wait { reason, until } => {
            let host = &mut change.record.host;
            let status = &mut host.status;
            // Whatever was wanted up to here has been acted on as far as it can be.
            status.observed_generation = host.generation;
            if status.waiting_for.as_ref() != Some(&reason) {
                status.waiting_for = Some(reason);
            }
            Next::Turn(Turn::Wait(until), None)
        }
        Decision::Go(state) => {
            change.enter(state);
            again(Point::entering(state))
        }
        Decision::Fail(problem) => {
            change.fail(problem, &world.limits);
            again(Some(Point::Fail))
        }
        Decision::Do(Action::Admit(work)) => ask_for_turn(change, world, work),
        Decision::Do(action) if execute::in_place(change, action, world) => {
            again(Point::doing(action))
        }
        Decision::Do(Action::Join(action)) => Next::AtCluster(action),
        Decision::Do(action) => Next::Outside(action),
    }
}

/// The host's turn is reserved in memory, then stored with it.
fn ask_for_turn(change: &mut Change, world: &World, work: Work) -> Next {
    let host = &change.record.host;
    let demand = Demand::of(host, work, change.now);
    match world.hosts.turns().ask(&demand) {
        Answer::Admitted => {
            change.admit(work);
            again(Some(Point::Admit))
        }
        Answer::Waits => {
            let at_once = world.hosts.turns().at_once(&demand.group, work);
            let reason = format!(
                "its turn to {} in group {} ({at_once} at once)",
                work.as_str(),
                demand.group
            );
            change.queued(work);
            let host = &mut change.record.host;
            host.status.observed_generation = host.generation;
            host.status.waiting_for = Some(reason);
            Next::Turn(Turn::Wait(None), None)
        }
    }
}

/// Switching is asked for at the last moment, and by this conductor alone.
fn switching(world: &Arc<World>, demand: Demand) -> Option<Switching> {
    let turns = world.hosts.turns();
    match turns.ask(&demand) {
        Answer::Waits => None,
        Answer::Admitted => {
            let hosts = Arc::clone(&world.hosts);
            let wake = move |name: &str| {
                if let Some(live) = hosts.live(name) {
                    live.wake.notify_one();
                }
            };
            Some(Switching::new(
                Arc::clone(turns),
                demand.host,
                Box::new(wake),
            ))
        }
    }
}

fn wake(world: &World, names: &[String]) {
    for live in names.iter().filter_map(|name| world.hosts.live(name)) {
        live.wake.notify_one();
    }
}

fn time_to(at: Timestamp) -> Duration {
    let left = at.duration_since(clock::now());
    Duration::try_from(left)
        .unwrap_or_default()
        .clamp(Duration::from_millis(10), LONGEST_WAIT)
}

async fn after(stop: &CancellationToken, pause: Duration) {
    stop.cancelled().await;
    tokio::time::sleep(pause).await;
}
