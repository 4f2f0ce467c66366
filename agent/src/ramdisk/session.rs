//! The agent's side of the poll protocol as a pure machine: which poll to send, what an answer
//! means, and that no order is run twice. `poll.rs` has the network and the threads.

use ferrite_proto::agent_api::{Order, Poll, Report};
use ferrite_proto::problem::{Code, Problem};
use ferrite_proto::secret::Secret;
use ferrite_proto::step::{Outcome, Progress, Step};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Longest line of a log report.
const LOG_CHARS: usize = 1000;
/// Most reports that wait while the conductor is away.
const WAITING_LIMIT: usize = 200;

/// What outlives a child: kept by PID 1, who does not look inside.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Saved {
    /// For `Authorization: Bearer`.
    pub token: Secret<String>,
    /// The host's name in Ferrite.
    pub host: String,
    /// How long a poll may be held open.
    pub poll_seconds: u32,
    /// The order that was taken and is not yet reported as ended.
    pub taken: Option<u64>,
}

/// A poll's answer with the step not yet understood, so that an order of a newer conductor can be
/// refused by its number.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Answer {
    order: Option<RawOrder>,
    cancel: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct RawOrder {
    number: u64,
    step: Value,
}

/// What an answer means.
#[derive(Debug, PartialEq)]
pub enum Deed {
    /// Start this step now.
    Start(Box<Order>),
    /// Tell the running step to stop.
    Cancel,
}

/// The machine.
#[derive(Debug)]
pub struct Session {
    sequence: u64,
    in_flight: Option<Poll>,
    waiting: Vec<Report>,
    /// The highest order that was taken or refused.
    highest: u64,
    accepted: Option<Order>,
    running: Option<u64>,
    /// An order that has ended, which the conductor has not heard yet.
    ended: Option<u64>,
    /// The agent leaves when everything is delivered: it takes nothing new.
    leaving: bool,
}

impl Session {
    /// A session of the `restarts`-th child. Its polls are numbered above all earlier ones.
    pub fn new(restarts: u32) -> Self {
        Self {
            sequence: u64::from(restarts) << 32,
            in_flight: None,
            waiting: Vec::new(),
            highest: 0,
            accepted: None,
            running: None,
            ended: None,
            leaving: false,
        }
    }

    /// Says that an earlier child was cut off in this order.
    pub fn interrupted(&mut self, order: u64, why: &str) {
        self.highest = order;
        let message = format!("the agent was restarted in the middle of the step ({why})");
        let advice = "the step starts again from its beginning";
        let problem = Problem::new(Code::StepInterrupted, message, advice);
        self.waiting.push(Report::Failed { order, problem });
    }

    /// The order that must not be lost when this child dies.
    pub fn taken(&self) -> Option<u64> {
        self.accepted
            .as_ref()
            .map(|order| order.number)
            .or(self.running)
            .or(self.ended)
    }

    /// A line for the host's log.
    pub fn log(&mut self, line: &str) {
        if self.waiting.len() < WAITING_LIMIT {
            let line = line.chars().take(LOG_CHARS).collect();
            self.waiting.push(Report::Log { line });
        }
    }

    /// How far the running step is; only the newest waits.
    pub fn progress(&mut self, progress: Progress) {
        let Some(order) = self.running else { return };
        self.waiting
            .retain(|report| !matches!(report, Report::Progress { .. }));
        self.waiting.push(Report::Progress { order, progress });
    }

    /// The running step has ended.
    pub fn ended(&mut self, result: Result<Outcome, Problem>, seconds: f64) {
        let Some(order) = self.running.take() else {
            return;
        };
        self.ended = Some(order);
        self.waiting
            .retain(|report| !matches!(report, Report::Progress { .. }));
        self.waiting.push(match result {
            Ok(outcome) => Report::Done {
                order,
                outcome,
                seconds,
            },
            Err(problem) => Report::Failed { order, problem },
        });
    }

    /// Takes no order any more.
    pub fn leave(&mut self) {
        self.leaving = true;
    }

    /// Whether everything reported so far has reached the conductor.
    pub fn all_delivered(&self) -> bool {
        self.in_flight.is_none() && self.waiting.is_empty()
    }

    /// The poll to send: the unanswered one unchanged, else a new one with all that waits.
    pub fn poll(&mut self) -> Poll {
        let next = || {
            self.sequence += 1;
            Poll {
                sequence: self.sequence,
                reports: std::mem::take(&mut self.waiting),
            }
        };
        self.in_flight.get_or_insert_with(next).clone()
    }

    /// Takes the answer to the poll in flight.
    pub fn answered(&mut self, answer: Answer) -> Vec<Deed> {
        let Some(poll) = self.in_flight.take() else {
            return Vec::new();
        };
        let mut deeds = Vec::new();
        let ends = |number: u64| {
            poll.reports.iter().any(|report| match report {
                Report::Done { order, .. } | Report::Failed { order, .. } => *order == number,
                _ => false,
            })
        };
        self.ended = self.ended.filter(|&number| !ends(number));
        let told = |order: &Order| {
            poll.reports.contains(&Report::Accepted {
                order: order.number,
            })
        };
        // Before anything starts: an order that was called off on the way must not begin.
        if let Some(number) = answer.cancel {
            deeds.extend(self.cancel(number));
        }
        if let Some(order) = self.accepted.take_if(|order| told(order)) {
            self.running = Some(order.number);
            deeds.push(Deed::Start(Box::new(order)));
        }
        if let Some(order) = answer.order {
            self.offered(order);
        }
        deeds
    }

    fn cancel(&mut self, number: u64) -> Option<Deed> {
        if self
            .accepted
            .take_if(|order| order.number == number)
            .is_some()
        {
            let problem = Problem::new(Code::StepCancelled, "cancelled before it started", "");
            self.waiting.push(Report::Failed {
                order: number,
                problem,
            });
        }
        (self.running == Some(number)).then_some(Deed::Cancel)
    }

    /// Takes a new order when idle; one that comes again, or too early, is left alone: it is sent
    /// again until it is accepted.
    fn offered(&mut self, raw: RawOrder) {
        let busy = self.accepted.is_some() || self.running.is_some();
        if busy || self.leaving || raw.number <= self.highest {
            return;
        }
        self.highest = raw.number;
        let order = raw.number;
        match serde_json::from_value::<Step>(raw.step) {
            Ok(step) => {
                self.accepted = Some(Order {
                    number: order,
                    step,
                });
                self.waiting.push(Report::Accepted { order });
            }
            Err(error) => {
                let message = format!("this agent does not know what is asked ({error})");
                let advice = "use a ramdisk of the same version as the conductor";
                let problem = Problem::new(Code::StepUnknown, message, advice);
                self.waiting.push(Report::Failed { order, problem });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn answer(value: Value) -> Answer {
        serde_json::from_value(value).unwrap()
    }

    fn order(number: u64) -> Answer {
        answer(json!({"order": {"number": number, "step": {"step": "inspect"}}}))
    }

    #[test]
    fn an_order_is_accepted_before_it_starts_and_reported_when_done() {
        let mut session = Session::new(0);
        assert_eq!(session.poll().sequence, 1);
        assert!(session.answered(order(7)).is_empty());
        assert_eq!(session.taken(), Some(7));
        assert_eq!(session.poll().reports, [Report::Accepted { order: 7 }]);
        let step = Step::Inspect;
        let deeds = session.answered(Answer::default());
        assert_eq!(deeds, [Deed::Start(Box::new(Order { number: 7, step }))]);
        session.ended(Ok(Outcome::PoweringOff), 1.5);
        assert_eq!(session.taken(), Some(7));
        let reports = session.poll().reports;
        assert!(matches!(reports[..], [Report::Done { order: 7, .. }]));
        assert!(!session.all_delivered());
        session.answered(Answer::default());
        assert!(session.all_delivered());
        assert_eq!(session.taken(), None);
    }

    #[test]
    fn a_lost_reply_is_asked_for_again_unchanged() {
        let mut session = Session::new(2);
        session.log("first");
        let sent = session.poll();
        assert_eq!(sent.sequence, (2 << 32) + 1);
        session.log("second");
        let again = session.poll();
        assert_eq!(
            (again.sequence, &again.reports),
            (sent.sequence, &sent.reports)
        );
        session.answered(Answer::default());
        let next = session.poll();
        assert_eq!(next.sequence, sent.sequence + 1);
        assert_eq!(
            next.reports,
            [Report::Log {
                line: "second".into()
            }]
        );
    }

    #[test]
    fn an_order_sent_twice_starts_once_and_others_wait() {
        let mut session = Session::new(0);
        session.poll();
        session.answered(order(7));
        session.poll();
        assert_eq!(session.answered(order(7)).len(), 1);
        session.poll();
        assert!(session.answered(order(8)).is_empty(), "busy");
        session.ended(Err(Problem::new(Code::Inspect, "", "")), 0.0);
        session.poll();
        assert!(session.answered(order(7)).is_empty(), "old");
        assert!(session.poll().reports.is_empty());
        session.answered(order(8));
        assert_eq!(session.poll().reports, [Report::Accepted { order: 8 }]);
    }

    #[test]
    fn an_unknown_step_is_refused_by_its_number() {
        let mut session = Session::new(0);
        session.poll();
        let deeds = session.answered(answer(
            json!({"order": {"number": 3, "step": {"step": "flash-bios"}}}),
        ));
        assert!(deeds.is_empty());
        let reports = session.poll().reports;
        let [Report::Failed { order: 3, problem }] = &reports[..] else {
            panic!("{reports:?}")
        };
        assert_eq!(problem.code, Code::StepUnknown);
    }

    #[test]
    fn a_cancel_reaches_the_step_or_stops_it_before_it_starts() {
        let mut session = Session::new(0);
        session.poll();
        session.answered(order(1));
        session.poll();
        session.answered(Answer::default());
        session.poll();
        assert_eq!(
            session.answered(answer(json!({"cancel": 1}))),
            [Deed::Cancel]
        );
        session.poll();
        assert!(session.answered(answer(json!({"cancel": 9}))).is_empty());
    }

    #[test]
    fn a_successor_reports_the_interrupted_order_and_does_not_take_it_again() {
        let mut session = Session::new(1);
        session.interrupted(4, "killed by SIGKILL");
        let reports = session.poll().reports;
        let [Report::Failed { order: 4, problem }] = &reports[..] else {
            panic!("{reports:?}")
        };
        assert_eq!(problem.code, Code::StepInterrupted);
        session.answered(order(4));
        assert!(session.poll().reports.is_empty());
    }

    #[test]
    fn only_the_newest_progress_waits() {
        let mut session = Session::new(0);
        session.poll();
        session.answered(order(1));
        session.poll();
        session.answered(Answer::default());
        for bytes_done in 0..5 {
            session.progress(Progress {
                bytes_done,
                ..Progress::default()
            });
        }
        let reports = session.poll().reports;
        assert!(
            matches!(&reports[..], [Report::Progress { progress, .. }] if progress.bytes_done == 4)
        );
    }
}
