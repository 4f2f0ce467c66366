//! What comes next in a roll: which hosts are begun, and whether it stops or is over. Pure.
//!
//! A host is unavailable while it is rolled, and whenever its Node is not ready, whoever made it
//! so. What costs more than may be unavailable is not begun.

use ferrite_proto::problem::{Code, Problem};
use ferrite_proto::rolling::{
    ClusterRoll, RollFailure, RollPhase, RollStatus, RollingHost, SkippedHost,
};
use jiff::Timestamp;

use super::member::Member;

/// Names in a sentence.
const NAMED: usize = 5;

/// How the roll stands now. Hosts that are begun are among the current ones, not ordered yet.
/// `trouble` is why nobody knows which hosts are ready.
pub(super) fn next(
    roll: &ClusterRoll,
    members: &[Member],
    trouble: Option<&Problem>,
    now: Timestamp,
) -> RollStatus {
    let mut round = Round {
        roll,
        members,
        now,
        status: roll.status.clone(),
    };
    let failure = round.settle();
    round.status.skipped = round.skipped();
    if !roll.status.phase.has_ended() {
        round.adopt();
    }
    if roll.status.phase == RollPhase::Progressing {
        round.go_on(failure, trouble);
    }
    if trouble.is_none() {
        round.count();
    }
    round.status.message = round.message(trouble);
    round.status
}

/// One look at all hosts.
struct Round<'a> {
    roll: &'a ClusterRoll,
    members: &'a [Member],
    now: Timestamp,
    status: RollStatus,
}

impl Round<'_> {
    /// Lets go of those that are done or gone. What the first of those that failed lacks.
    fn settle(&mut self) -> Option<RollFailure> {
        let is_open = self.roll.status.phase == RollPhase::Progressing;
        let mut failure = None;
        let mut kept = Vec::new();
        for entry in &self.roll.status.current {
            let Some(member) = self.member(entry) else {
                continue;
            };
            match fate(entry, member, is_open) {
                Fate::Over => {}
                Fate::Goes => kept.push(entry.clone()),
                Fate::Fails(problem, stays) => {
                    failure = failure.or(Some(self.failure(member, problem)));
                    kept.extend(stays.then(|| entry.clone()));
                }
            }
        }
        self.status.current = kept;
        failure
    }

    fn member(&self, entry: &RollingHost) -> Option<&Member> {
        self.members.iter().find(|member| member.uid == entry.uid)
    }

    fn failure(&self, member: &Member, problem: Problem) -> RollFailure {
        RollFailure {
            host: member.name.clone(),
            at: self.now,
            problem,
        }
    }

    fn is_current(&self, member: &Member) -> bool {
        let current = &self.status.current;
        current.iter().any(|entry| entry.uid == member.uid)
    }

    fn skipped(&self) -> Vec<SkippedHost> {
        let left = self.members.iter().filter(|member| !member.is_updated());
        let left = left.filter(|member| !self.is_current(member));
        let skipped = left.filter_map(|member| {
            Some(SkippedHost {
                host: member.name.clone(),
                reason: member.hold.clone()?,
            })
        });
        skipped.collect()
    }

    fn go_on(&mut self, failure: Option<RollFailure>, trouble: Option<&Problem>) {
        let adopted = || {
            let mut current = self.members.iter().filter(|member| self.is_current(member));
            current.find_map(|member| Some(self.failure(member, member.failure.clone()?)))
        };
        if let Some(failure) = failure.or_else(adopted) {
            self.status.failure = Some(failure);
            self.status.current.retain(|entry| entry.ordered);
            self.enter(RollPhase::Stopped);
        } else if trouble.is_none() {
            self.begin();
            let done = |member: &Member| member.is_updated() || member.hold.is_some();
            if self.status.current.is_empty() && self.members.iter().all(done) {
                self.enter(RollPhase::Complete);
            }
        }
    }

    fn enter(&mut self, phase: RollPhase) {
        self.status.phase = phase;
        self.status.since = self.now;
    }

    /// Those that were told already, by a person or by the roll before, are watched as if this roll
    /// had told them.
    fn adopt(&mut self) {
        let coming =
            |member: &&Member| member.is_told && !member.has_settled && member.hold.is_none();
        let coming = self.members.iter().filter(coming);
        let adopted = coming.filter(|member| !self.is_current(member));
        let adopted: Vec<_> = adopted.map(|member| self.entry(member, true)).collect();
        self.status.current.extend(adopted);
    }

    fn entry(&self, member: &Member, ordered: bool) -> RollingHost {
        RollingHost {
            host: member.name.clone(),
            uid: member.uid.clone(),
            since: self.now,
            ordered,
            state: None,
            waiting_for: None,
        }
    }

    fn begin(&mut self) {
        let allowed = self.roll.spec.max_unavailable.of(self.members.len());
        let unavailable = self.unavailable();
        let limit = self.canaries_left().unwrap_or(usize::MAX);
        let old = self
            .members
            .iter()
            .filter(|member| !member.is_told && member.hold.is_none() && !self.is_current(member));
        let (ready, unready): (Vec<_>, Vec<_>) = old.partition(|member| member.is_available());
        let slots = allowed.saturating_sub(unavailable).min(limit);
        let mut begun: Vec<_> = ready.into_iter().take(slots).collect();
        // One that is not ready costs nothing; it is tried when none that is can be, since it may
        // well be that which stops the roll.
        if begun.is_empty() && self.status.current.is_empty() && unavailable <= allowed {
            begun = unready.into_iter().take(allowed.min(limit)).collect();
        }
        let begun: Vec<_> = begun
            .into_iter()
            .map(|member| self.entry(member, false))
            .collect();
        self.status.current.extend(begun);
    }

    /// How many canaries may still be begun; `None` once all are ready.
    fn canaries_left(&self) -> Option<usize> {
        let free = self.members.iter().filter(|member| member.hold.is_none());
        let asked = usize::try_from(self.roll.spec.canary).unwrap_or(usize::MAX);
        let wanted = asked.min(free.count());
        let ready = self.updated();
        (ready < wanted).then(|| wanted.saturating_sub(ready + self.status.current.len()))
    }

    fn updated(&self) -> usize {
        let updated = self.members.iter().filter(|member| member.is_updated());
        updated.filter(|member| !self.is_current(member)).count()
    }

    fn unavailable(&self) -> usize {
        self.out_of_use().count()
    }

    fn out_of_use(&self) -> impl Iterator<Item = &Member> {
        let out = |member: &&Member| self.is_current(member) || !member.is_available();
        self.members.iter().filter(out)
    }

    fn count(&mut self) {
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        self.status.total = count(self.members.len());
        self.status.updated = count(self.updated());
        self.status.unavailable = count(self.unavailable());
    }

    fn message(&self, trouble: Option<&Problem>) -> String {
        let current = &self.status.current;
        let rolling = named(current.iter().map(|entry| entry.host.as_str()));
        let left = match current.len() {
            0 => String::new(),
            _ => format!("; {rolling} will be let finish"),
        };
        match (self.status.phase, &self.status.failure) {
            (RollPhase::Paused, _) => format!("paused{left}"),
            (RollPhase::Aborted, _) => format!("aborted{left}"),
            (RollPhase::Stopped, Some(failure)) => {
                format!("host {}: {}", failure.host, failure.problem)
            }
            (RollPhase::Stopped, None) => "stopped".to_owned(),
            (RollPhase::Complete, _) => self.outcome(),
            (RollPhase::Progressing, _) => match trouble {
                Some(problem) => format!("nothing is begun until the cluster answers: {problem}"),
                None if current.is_empty() => self.obstacle(),
                None if self.canaries_left().is_some() => format!("rolling the canaries {rolling}"),
                None => format!("rolling {rolling}"),
            },
        }
    }

    fn outcome(&self) -> String {
        let (updated, total) = (self.updated(), self.members.len());
        let skipped = &self.status.skipped;
        let left = skipped.iter().map(|one| one.host.as_str());
        match skipped.len() {
            0 => format!("all {total} hosts have the image and are ready"),
            _ => format!(
                "{updated} of {total} hosts have the image; left out: {}",
                named(left)
            ),
        }
    }

    fn obstacle(&self) -> String {
        let most = self.roll.spec.max_unavailable.of(self.members.len());
        let out = named(self.out_of_use().map(|member| member.name.as_str()));
        format!("waits for hosts to be ready, at most {most} may be unavailable: {out}")
    }
}

/// What becomes of a host that is being rolled.
enum Fate {
    /// It is done, or will not be begun.
    Over,
    /// It goes on.
    Goes,
    /// It needs a person; whether it is still on its way.
    Fails(Problem, bool),
}

fn fate(entry: &RollingHost, member: &Member, is_open: bool) -> Fate {
    if member.is_updated() {
        return Fate::Over;
    }
    if !entry.ordered && !member.is_told {
        let wanted = is_open && member.hold.is_none();
        return if wanted { Fate::Goes } else { Fate::Over };
    }
    if !member.is_told {
        let text = format!(
            "host {} was given another image by somebody else",
            member.name
        );
        let advice = "`ferrite cluster roll resume` has it take the roll's image after all";
        return Fate::Fails(Problem::new(Code::Conflict, text, advice), false);
    }
    match &member.failure {
        Some(problem) => Fate::Fails(problem.clone(), true),
        None => Fate::Goes,
    }
}

/// Some names, as people read them.
fn named<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<_> = names.collect();
    let some = names.iter().take(NAMED).copied().collect::<Vec<_>>();
    match names.len().saturating_sub(NAMED) {
        0 => some.join(", "),
        more => format!("{} and {more} more", some.join(", ")),
    }
}
