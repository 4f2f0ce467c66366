//! Whose turn it is: how much of each kind of work is done at once in a group of hosts.
//!
//! Work is queued, never refused. Whoever waited longest goes first, and each point of priority
//! counts as a minute of waiting: so nobody waits for ever. The lines are in memory, made from
//! what is stored with the hosts (`status.turn`), and cost a logarithm of their length for each
//! step. Not here: what a host wants; only switching power is known here alone.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ferrite_proto::host::Host;
use ferrite_proto::operation::Work;
use jiff::Timestamp;
use serde::Deserialize;

/// Seconds of waiting that a point of priority is worth.
const PRIORITY_SECONDS: i64 = 60;

/// How much is done at once in a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct GroupLimits {
    /// Deployments and services.
    pub(crate) deploy: u32,
    /// Erasures.
    pub(crate) clean: u32,
    /// Inspections.
    pub(crate) inspect: u32,
    /// Requests to switch on or to reset.
    pub(crate) power: u32,
}

impl Default for GroupLimits {
    fn default() -> Self {
        Self {
            deploy: 500,
            clean: 500,
            inspect: 500,
            power: 50,
        }
    }
}

impl GroupLimits {
    /// Of this kind of work.
    pub(crate) const fn of(&self, work: Work) -> u32 {
        match work {
            Work::Deploy => self.deploy,
            Work::Clean => self.clean,
            Work::Inspect => self.inspect,
            Work::Power => self.power,
        }
    }
}

/// A host's wish for a turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Demand {
    /// Who.
    pub(crate) host: String,
    /// Among whom.
    pub(crate) group: String,
    /// What for.
    pub(crate) work: Work,
    /// −1000 to 1000.
    pub(crate) priority: i32,
    /// Since when it waits.
    pub(crate) since: Timestamp,
}

impl Demand {
    /// The host's wish, as it is or as it would be from now on.
    pub(crate) fn of(host: &Host, work: Work, now: Timestamp) -> Self {
        let turn = host.status.turn.as_ref();
        let waits = turn.filter(|turn| turn.work == work && !turn.admitted);
        Self {
            host: host.name.clone(),
            group: host.spec.group.clone(),
            work,
            priority: host.spec.priority,
            since: waits.map_or(now, |turn| turn.since),
        }
    }

    fn key(&self) -> Key {
        (self.group.clone(), self.work)
    }

    fn rank(&self) -> Rank {
        let head_start = i64::from(self.priority) * PRIORITY_SECONDS;
        (self.since.as_second() - head_start, self.host.clone())
    }
}

/// What came of asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It is its turn.
    Admitted,
    /// Not yet.
    Waits,
}

/// Where a host stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// The first is 1.
    pub(crate) rank: usize,
    /// How many wait.
    pub(crate) of: usize,
    /// How many have their turn at once.
    pub(crate) at_once: u32,
}

impl Place {
    /// What the host waits for.
    pub(crate) fn reason(&self, group: &str, work: Work) -> String {
        let Self { rank, of, at_once } = self;
        format!(
            "its turn to {}: {rank}. of {of} in group {group} ({at_once} at once)",
            work.as_str()
        )
    }
}

type Key = (String, Work);
type Rank = (i64, String);

#[derive(Debug, Default)]
struct Line {
    running: BTreeSet<String>,
    waiting: BTreeSet<Rank>,
}

impl Line {
    fn free(&self, at_once: u32) -> usize {
        let at_once = usize::try_from(at_once).unwrap_or(usize::MAX);
        at_once.saturating_sub(self.running.len())
    }

    /// Whoever may go now.
    fn next(&self, at_once: u32) -> impl Iterator<Item = &String> {
        let free = self.free(at_once);
        self.waiting.iter().take(free).map(|(_, host)| host)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Standing {
    Waiting(Key, Rank),
    Running(Key),
}

#[derive(Debug, Default)]
struct Lines {
    default: GroupLimits,
    groups: BTreeMap<String, GroupLimits>,
    by_key: BTreeMap<Key, Line>,
    /// By host; power apart, since it is asked for in the middle of other work.
    standing: HashMap<(String, bool), Standing>,
}

impl Lines {
    fn at_once(&self, key: &Key) -> u32 {
        self.groups.get(&key.0).unwrap_or(&self.default).of(key.1)
    }

    /// Puts a host where it stands; answers who may go since.
    fn set(&mut self, host: &str, is_power: bool, new: Option<Standing>) -> Vec<String> {
        let who = (host.to_owned(), is_power);
        let old = self.standing.get(&who).cloned();
        if old == new {
            return Vec::new();
        }
        let mut touched = Vec::new();
        if let Some(old) = old {
            let (Standing::Waiting(key, _) | Standing::Running(key)) = &old;
            let line = self.by_key.entry(key.clone()).or_default();
            match &old {
                Standing::Waiting(_, rank) => line.waiting.remove(rank),
                Standing::Running(_) => line.running.remove(host),
            };
            touched.push(key.clone());
        }
        match new {
            Some(new) => {
                let (Standing::Waiting(key, _) | Standing::Running(key)) = &new;
                let line = self.by_key.entry(key.clone()).or_default();
                match &new {
                    Standing::Waiting(_, rank) => line.waiting.insert(rank.clone()),
                    Standing::Running(_) => line.running.insert(host.to_owned()),
                };
                touched.push(key.clone());
                self.standing.insert(who, new);
            }
            None => {
                self.standing.remove(&who);
            }
        }
        self.may_go(&touched)
    }

    fn may_go(&self, keys: &[Key]) -> Vec<String> {
        let lines = keys.iter().filter_map(|key| {
            let line = self.by_key.get(key)?;
            Some(line.next(self.at_once(key)).cloned())
        });
        lines.flatten().collect()
    }

    fn ask(&mut self, demand: &Demand) -> Answer {
        let (key, is_power) = (demand.key(), demand.work == Work::Power);
        let running = Some(Standing::Running(key.clone()));
        let who = (demand.host.clone(), is_power);
        if self.standing.get(&who) == running.as_ref() {
            return Answer::Admitted;
        }
        // Whoever asks again keeps its place. A turn for power is stored nowhere, so that its
        // demand is always of now: behind all others each time, it would be nobody's turn any more.
        let known = match self.standing.get(&who) {
            Some(Standing::Waiting(known, rank)) if *known == key => Some(rank.clone()),
            Some(_) | None => None,
        };
        let rank = known.map_or(demand.rank(), |known| known.min(demand.rank()));
        let waiting = Standing::Waiting(key.clone(), rank);
        self.set(&demand.host, is_power, Some(waiting));
        let at_once = self.at_once(&key);
        let line = self.by_key.entry(key).or_default();
        if !line.next(at_once).any(|host| *host == demand.host) {
            return Answer::Waits;
        }
        self.set(&demand.host, is_power, running);
        Answer::Admitted
    }
}

/// The lines of all groups.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    lines: Mutex<Lines>,
}

impl Turns {
    fn lines(&self) -> MutexGuard<'_, Lines> {
        // A panic elsewhere leaves the lines as they were before or after a step.
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the configuration says; the group `default` is also for groups that it does not name.
    pub(crate) fn set_limits(&self, groups: BTreeMap<String, GroupLimits>) {
        let mut lines = self.lines();
        lines.default = groups.get("default").copied().unwrap_or_default();
        lines.groups = groups;
    }

    /// Asks for a turn, or waits in line for it.
    pub(crate) fn ask(&self, demand: &Demand) -> Answer {
        self.lines().ask(demand)
    }

    /// How many have their turn at once in a group.
    pub(crate) fn at_once(&self, group: &str, work: Work) -> u32 {
        self.lines().at_once(&(group.to_owned(), work))
    }

    /// Takes over what is stored of a host; answers who may go since.
    pub(crate) fn refresh(&self, host: &Host) -> Vec<String> {
        let standing = host.status.turn.as_ref().map(|turn| {
            let demand = Demand::of(host, turn.work, turn.since);
            if turn.admitted {
                Standing::Running(demand.key())
            } else {
                Standing::Waiting(demand.key(), demand.rank())
            }
        });
        self.lines().set(&host.name, false, standing)
    }

    /// The host is gone; answers who may go since.
    pub(crate) fn forget(&self, host: &str) -> Vec<String> {
        let mut lines = self.lines();
        let mut next = lines.set(host, false, None);
        next.extend(lines.set(host, true, None));
        next
    }

    /// The host no longer waits to be switched, or has been; answers who may go since.
    pub(crate) fn power_done(&self, host: &str) -> Vec<String> {
        self.lines().set(host, true, None)
    }

    /// Where a host waits, if it does.
    pub(crate) fn place(&self, host: &str) -> Option<Place> {
        let lines = self.lines();
        let Some(Standing::Waiting(key, rank)) = lines.standing.get(&(host.to_owned(), false))
        else {
            return None;
        };
        let line = lines.by_key.get(key)?;
        Some(Place {
            rank: line.waiting.range(..=rank.clone()).count(),
            of: line.waiting.len(),
            at_once: lines.at_once(key),
        })
    }

    /// How many wait, by group and kind of work; lines that are empty now are among them.
    pub(crate) fn waiting(&self) -> Vec<(String, Work, usize)> {
        let lines = self.lines();
        let all = lines.by_key.iter();
        all.map(|((group, work), line)| (group.clone(), *work, line.waiting.len()))
            .collect()
    }

    /// How many run and wait, by kind of work.
    #[cfg(test)]
    pub(crate) fn depths(&self) -> BTreeMap<Work, (usize, usize)> {
        let mut depths: BTreeMap<_, (usize, usize)> = BTreeMap::new();
        for (key, line) in &self.lines().by_key {
            let depth = depths.entry(key.1).or_default();
            depth.0 += line.running.len();
            depth.1 += line.waiting.len();
        }
        depths
    }
}

/// A request for power under way; when it is dropped the next may go.
pub(crate) struct Switching {
    turns: Arc<Turns>,
    host: String,
    wake: Box<dyn Fn(&str) + Send + Sync>,
}

impl std::fmt::Debug for Switching {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Switching {}", self.host)
    }
}

impl Switching {
    /// The host that was admitted.
    pub(crate) fn new(
        turns: Arc<Turns>,
        host: String,
        wake: Box<dyn Fn(&str) + Send + Sync>,
    ) -> Self {
        Self { turns, host, wake }
    }
}

impl Drop for Switching {
    fn drop(&mut self) {
        for host in self.turns.power_done(&self.host) {
            (self.wake)(&host);
        }
    }
}

/// Who goes first, of all that wait: the rule itself, without lines. Tests compare both.
#[cfg(test)]
fn turn(waiting: &[Demand], running: usize, at_once: u32) -> Vec<String> {
    let mut order: Vec<_> = waiting.iter().collect();
    order.sort_by_key(|demand| demand.rank());
    let free = usize::try_from(at_once)
        .unwrap_or(usize::MAX)
        .saturating_sub(running);
    let first = order.into_iter().take(free);
    first.map(|demand| demand.host.clone()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn demand(host: usize, priority: i32, second: i64) -> Demand {
        Demand {
            host: format!("h{host:03}"),
            group: "rack-1".to_owned(),
            work: Work::Deploy,
            priority,
            since: Timestamp::from_second(second).unwrap(),
        }
    }

    fn turns(at_once: u32) -> Turns {
        let turns = Turns::default();
        let limits = GroupLimits {
            deploy: at_once,
            ..GroupLimits::default()
        };
        turns.set_limits([("rack-1".to_owned(), limits)].into());
        turns
    }

    fn end(turns: &Turns, host: &str) -> Vec<String> {
        turns.lines().set(host, false, None)
    }

    #[test]
    fn a_place_is_told_and_moves_up() {
        let turns = turns(1);
        assert_eq!(turns.ask(&demand(0, 0, 0)), Answer::Admitted);
        assert_eq!(turns.ask(&demand(1, 0, 1)), Answer::Waits);
        assert_eq!(turns.ask(&demand(2, 0, 2)), Answer::Waits);
        assert_eq!(turns.ask(&demand(3, 1, 3)), Answer::Waits);
        let place = |host| turns.place(host).map(|place| (place.rank, place.of));
        assert_eq!(place("h003"), Some((1, 3)), "a minute ahead");
        assert_eq!(place("h002"), Some((3, 3)));
        assert_eq!(place("h000"), None);
        assert_eq!(end(&turns, "h000"), ["h003"]);
        assert_eq!(turns.ask(&demand(1, 0, 1)), Answer::Waits, "not its turn");
        assert_eq!(turns.ask(&demand(3, 1, 3)), Answer::Admitted);
        assert_eq!(turns.ask(&demand(3, 1, 3)), Answer::Admitted, "asked again");
        assert_eq!(place("h002"), Some((2, 2)));
        assert_eq!(turns.depths()[&Work::Deploy], (1, 2));
        let group = demand(0, 0, 0).group;
        assert_eq!(turns.waiting(), [(group, Work::Deploy, 2)]);
    }

    #[test]
    fn whoever_asks_again_keeps_its_place() {
        let turns = turns(1);
        let power = |host, second| Demand {
            work: Work::Power,
            ..demand(host, 0, second)
        };
        let limits = GroupLimits {
            power: 2,
            ..GroupLimits::default()
        };
        turns.set_limits([("rack-1".to_owned(), limits)].into());
        let mut admitted = 0;
        for host in 0..10 {
            admitted += usize::from(turns.ask(&power(host, 0)) == Answer::Admitted);
        }
        assert_eq!(admitted, 2);
        // Each that is done wakes the next, which asks for power as of then.
        let (mut running, mut second) = (vec!["h000".to_owned(), "h001".to_owned()], 1);
        while let Some(done) = running.pop() {
            for next in turns.power_done(&done) {
                second += 1;
                let number = next[1..].parse().unwrap();
                assert_eq!(
                    turns.ask(&power(number, second)),
                    Answer::Admitted,
                    "{next}"
                );
                running.push(next);
                admitted += 1;
            }
        }
        assert_eq!(
            admitted, 10,
            "somebody was woken in vain, and the others not at all"
        );
    }

    #[test]
    fn other_groups_and_other_work_do_not_wait() {
        let turns = turns(1);
        assert_eq!(turns.ask(&demand(0, 0, 0)), Answer::Admitted);
        let other = Demand {
            group: "rack-2".to_owned(),
            ..demand(1, 0, 0)
        };
        assert_eq!(turns.ask(&other), Answer::Admitted);
        let clean = Demand {
            work: Work::Clean,
            ..demand(2, 0, 0)
        };
        assert_eq!(turns.ask(&clean), Answer::Admitted);
    }

    proptest! {
        /// Hosts come and go in any order; whoever comes later is newer.
        #[test]
        fn the_limit_holds_the_rule_is_kept_and_nobody_starves(
            at_once in 1_u32..5,
            script in prop::collection::vec((0_usize..30, -3_i32..4, any::<bool>()), 1..200),
        ) {
            let turns = turns(at_once);
            let mut waiting: BTreeMap<String, Demand> = BTreeMap::new();
            let mut running: BTreeSet<String> = BTreeSet::new();
            for (second, (host, priority, ends)) in script.into_iter().enumerate() {
                let second = i64::try_from(second).unwrap();
                let new = demand(host, priority, second);
                let known = running.contains(&new.host) || waiting.contains_key(&new.host);
                let mut go = if !ends && !known {
                    waiting.insert(new.host.clone(), new.clone());
                    vec![new.host.clone()]
                } else if running.remove(&new.host) {
                    end(&turns, &new.host)
                } else {
                    Vec::new()
                };
                go.retain(|host| waiting.contains_key(host));
                let all: Vec<_> = waiting.values().cloned().collect();
                let rule = turn(&all, running.len(), at_once);
                for host in go {
                    let admitted = turns.ask(&waiting[&host]) == Answer::Admitted;
                    prop_assert_eq!(admitted, rule.contains(&host), "{}", host);
                    if admitted {
                        waiting.remove(&host);
                        running.insert(host);
                    }
                }
                prop_assert!(running.len() <= usize::try_from(at_once).unwrap());
                let idle = running.len() < usize::try_from(at_once).unwrap();
                prop_assert!(!idle || waiting.is_empty(), "somebody waits for nothing");
            }
            // Everybody gets there: as many ends as there are hosts empty the line.
            for _ in 0..60 {
                let Some(host) = running.pop_first() else { break };
                for next in end(&turns, &host) {
                    prop_assert_eq!(turns.ask(&waiting[&next]), Answer::Admitted);
                    waiting.remove(&next);
                    running.insert(next);
                }
            }
            prop_assert!(waiting.is_empty(), "{:?} starve", waiting.keys());
        }
    }
}
