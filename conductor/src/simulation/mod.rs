//! A whole conductor in a simulated world, from one seed.
//!
//! The core, the driver, the hosts and the API are the real ones; BMCs, firmware, agents, host
//! daemons, disks, the network, the store, the clock and people are simulated, and fail. The same
//! seed gives the same run, line by line: nothing here asks the system for time or chance.
//!
//! Not here: TLS, sockets, SQL, the real agent. Those have their own tests.

mod agent;
mod bmc;
mod checks;
mod cluster;
mod conductor;
mod kubelet;
mod network;
mod os;
mod people;
mod state;
mod store;
mod tests;
mod thieves;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::crash::{self, Moment, Work};
use crate::guard::{Guard, taken_away};
use crate::{clock, token};
use state::Sim;

/// When every run begins.
const BEGIN: i64 = 1_795_000_000;
/// How long things go wrong.
const TROUBLE: Duration = Duration::from_mins(50);
/// How long a host may take to end as wanted, once nothing goes wrong any more.
const PATIENCE: Duration = Duration::from_hours(6);

/// What is run.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Plan {
    seed: u64,
    /// A guard that is taken away.
    without: Option<Guard>,
    /// The conductor is killed at the first pass of this point, and at no other.
    kill_at: Option<(Work, Moment)>,
    /// Nothing goes wrong but what the plan says.
    calm: bool,
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Run {
    transcript: Vec<String>,
    /// What must never happen, and did.
    violation: Option<String>,
    /// Points that were passed.
    points: BTreeSet<String>,
    /// Simulated time.
    passed: Duration,
    hosts: u32,
}

/// Runs a seed.
pub(super) fn run(plan: Plan) -> Run {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O needs nothing of the system");
    taken_away::set(plan.without);
    panics::clear();
    let run = runtime.block_on(live(plan));
    taken_away::set(None);
    crash::armed::watch(None);
    run
}

async fn live(plan: Plan) -> Run {
    token::simulated::seed(plan.seed);
    let begin = jiff::Timestamp::from_second(BEGIN).expect("a time of this century");
    clock::simulated::set(begin);
    let began = tokio::time::Instant::now();
    let sim = Arc::new(Sim::new(plan));
    let watcher = Arc::clone(&sim);
    crash::armed::watch(Some(Box::new(move |work, moment| {
        conductor::passed(&watcher, work, moment);
    })));
    conductor::start(&sim).await;
    people::enrol_all(&sim).await;
    if sim.joins() {
        people::add_cluster(&sim).await;
        tokio::spawn(cluster::watch_tokens(Arc::clone(&sim)));
    }
    if !plan.calm {
        trouble(&sim).await;
    }
    sim.calm_down();
    people::settle(&sim, PATIENCE).await;
    thieves::try_everything(&sim).await;
    if let Some(panic) = panics::taken() {
        sim.violate(format!("a panic: {panic}"));
    }
    sim.ended(began.elapsed())
}

/// The time in which everything goes wrong.
async fn trouble(sim: &Arc<Sim>) {
    let mut work = vec![
        tokio::spawn(people::want(Arc::clone(sim))),
        tokio::spawn(people::accidents(Arc::clone(sim))),
    ];
    if sim.joins() {
        work.push(tokio::spawn(cluster::accidents(Arc::clone(sim))));
    }
    let until = tokio::time::Instant::now() + TROUBLE;
    while tokio::time::Instant::now() < until && !sim.is_violated() {
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    for task in work {
        task.abort();
        let _ = task.await;
    }
}

/// Panics of any task, which a runtime would keep to itself.
mod panics {
    use std::cell::RefCell;
    use std::sync::Once;

    thread_local! {
        static LAST: RefCell<Option<String>> = const { RefCell::new(None) };
    }
    static HOOK: Once = Once::new();

    /// Forgets those of before, and sees to it that new ones are noted.
    pub(super) fn clear() {
        LAST.set(None);
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                LAST.set(Some(panic.to_string()));
                before(panic);
            }));
        });
    }

    /// The last panic of this thread.
    pub(super) fn taken() -> Option<String> {
        LAST.take()
    }
}
