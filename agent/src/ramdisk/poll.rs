//! The poll loop: asks the conductor for work, runs one step at a time on a thread of its own,
//! and reports until the conductor has heard everything.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Scope;
use std::time::{Duration, Instant};

use ferrite_proto::agent_api::{Order, POLL};
use ferrite_proto::problem::{Code, Problem};
use ferrite_proto::step::{BootMethod, Outcome, Progress, Step};

use super::message::{self, say};
use super::session::{Deed, Saved, Session};
use crate::conductor::{CallError, Conductor};
pub use crate::kernel::Departure;

/// How often a running step is reported.
const REPORT: Duration = Duration::from_secs(1);
/// How often its progress is shown on the consoles.
const SHOW: Duration = Duration::from_secs(5);
/// What a poll may take beyond the time that the conductor holds it open.
const SLACK: Duration = Duration::from_secs(20);
/// Longest wait before the conductor is tried again.
const LONGEST_WAIT: Duration = Duration::from_secs(15);

/// Runs a step: gets the step, where to report progress, and the flag that stops it.
pub(crate) type RunStep<'a> =
    dyn Fn(&Step, &(dyn Fn(Progress) + Sync), &AtomicBool) -> Result<Outcome, Problem> + Sync + 'a;

/// How the loop ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The conductor knows that the agent leaves.
    Depart(Departure),
    /// The token is refused.
    Refused(String),
}

/// The loop's surroundings.
pub(crate) struct Polling<'a> {
    /// Who is asked.
    pub(crate) conductor: &'a Conductor,
    /// How.
    pub(crate) saved: Saved,
    /// What runs steps.
    pub(crate) run_step: &'a RunStep<'a>,
    /// Told to PID 1 whenever it changes.
    pub(crate) save: &'a dyn Fn(&Saved),
}

/// A step under way.
struct Running {
    name: &'static str,
    started: Instant,
    shown: Instant,
    progress: Arc<Mutex<Progress>>,
    cancelled: Arc<AtomicBool>,
    result: Receiver<Result<Outcome, Problem>>,
}

impl Polling<'_> {
    /// Polls until the agent shall leave or is refused.
    pub(crate) fn run(&mut self, session: &mut Session) -> End {
        let run_step = self.run_step;
        std::thread::scope(|scope| {
            let mut running: Option<Running> = None;
            let mut departure = None;
            let mut failures = 0;
            loop {
                if let Some(result) = running.as_mut().and_then(|step| step.look(session)) {
                    departure = result.as_ref().ok().and_then(departure_of);
                    if departure.is_some() {
                        session.leave();
                    }
                    let seconds = running
                        .take()
                        .map_or(0.0, |r| r.started.elapsed().as_secs_f64());
                    session.ended(result, seconds);
                }
                match self.poll_once(session) {
                    Ok(deeds) => {
                        failures = 0;
                        for deed in deeds {
                            match deed {
                                Deed::Start(order) => {
                                    running = Some(start(scope, run_step, *order));
                                }
                                Deed::Cancel => running.iter().for_each(Running::cancel),
                            }
                        }
                    }
                    Err(CallError::Unauthorized { url, detail }) => {
                        running.iter().for_each(Running::cancel);
                        return End::Refused(format!("{url}: {detail}"));
                    }
                    Err(error) => {
                        failures += 1;
                        wait_after(&error, failures);
                    }
                }
                self.remember(session);
                if let Some(how) = departure.filter(|_| session.all_delivered()) {
                    return End::Depart(how);
                }
            }
        })
    }

    fn poll_once(&self, session: &mut Session) -> Result<Vec<Deed>, CallError> {
        let poll = session.poll();
        let patience = Duration::from_secs(self.saved.poll_seconds.into()) + SLACK;
        let answer = self
            .conductor
            .call(POLL, Some(&self.saved.token), &poll, patience)?;
        Ok(session.answered(answer))
    }

    /// Tells PID 1 which order is taken, when that has changed.
    fn remember(&mut self, session: &Session) {
        if self.saved.taken != session.taken() {
            self.saved.taken = session.taken();
            (self.save)(&self.saved);
        }
    }
}

fn start<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    run_step: &'env RunStep<'env>,
    order: Order,
) -> Running {
    say(&format!("step {}: starting", order.step.name()));
    let (send, result) = mpsc::channel();
    let now = Instant::now();
    let (progress, cancelled) = (
        Arc::<Mutex<Progress>>::default(),
        Arc::<AtomicBool>::default(),
    );
    let running = Running {
        name: order.step.name(),
        started: now,
        shown: now,
        progress: Arc::clone(&progress),
        cancelled: Arc::clone(&cancelled),
        result,
    };
    scope.spawn(move || {
        let report = |now: Progress| {
            *progress.lock().unwrap_or_else(PoisonError::into_inner) = now;
        };
        let _ = send.send(run_step(&order.step, &report, &cancelled));
    });
    running
}

impl Running {
    fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Waits a moment for the step to end; says how far it is when it has not.
    fn look(&mut self, session: &mut Session) -> Option<Result<Outcome, Problem>> {
        let result = match self.result.recv_timeout(REPORT) {
            Ok(result) => result,
            Err(RecvTimeoutError::Disconnected) => {
                let message = format!("step {} ended without a word", self.name);
                Err(Problem::new(
                    Code::Internal,
                    message,
                    "report this with the host's log",
                ))
            }
            Err(RecvTimeoutError::Timeout) => {
                let progress = self
                    .progress
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .clone();
                if self.shown.elapsed() >= SHOW {
                    self.shown = Instant::now();
                    say(&message::progress(self.name, &progress));
                }
                session.progress(progress);
                return None;
            }
        };
        let seconds = self.started.elapsed().as_secs_f64();
        match &result {
            Ok(_) => say(&format!("step {}: done after {seconds:.1} s", self.name)),
            Err(problem) => say(&format!(
                "step {}: FAILED: {problem}. {}",
                self.name, problem.advice
            )),
        }
        Some(result)
    }
}

/// Whether an outcome means that the agent leaves once it is delivered, and how.
pub fn departure_of(outcome: &Outcome) -> Option<Departure> {
    match outcome {
        Outcome::Booting {
            method: BootMethod::Kexec,
            ..
        } => Some(Departure::Kexec),
        Outcome::Booting {
            method: BootMethod::Reboot,
            ..
        } => Some(Departure::Reboot),
        Outcome::PoweringOff => Some(Departure::PowerOff),
        _ => None,
    }
}

fn wait_after(error: &CallError, failures: u32) {
    let wait = backoff(failures);
    say(&format!("{error}; asking again in {} s", wait.as_secs()));
    std::thread::sleep(wait);
}

/// 1, 2, 4, 8 and then 15 seconds.
pub fn backoff(failures: u32) -> Duration {
    let seconds = 1_u64
        .checked_shl(failures.saturating_sub(1))
        .unwrap_or(u64::MAX);
    Duration::from_secs(seconds).min(LONGEST_WAIT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conductor::fixture::{Answer, serve};
    use ferrite_proto::secret::Secret;
    use serde_json::{Value, json};
    use std::sync::atomic::AtomicU32;

    fn saved() -> Saved {
        Saved {
            token: Secret::new("t".into()),
            host: "h".into(),
            poll_seconds: 1,
            taken: None,
        }
    }

    /// A conductor that orders `inspect` (7) and then `power-off` (8), sends every order until it
    /// hears that it is accepted, and loses every third reply after it has acted on the request.
    fn forgetful_conductor(seen: Arc<Mutex<Vec<Value>>>) -> Conductor {
        let (mut calls, mut last, mut next) = (0, 0, 7);
        serve(move |path, authorization, poll| {
            assert_eq!((path, authorization), (POLL, "Bearer t"));
            calls += 1;
            let sequence = poll["sequence"].as_u64().unwrap();
            assert!(
                sequence == last || sequence == last + 1,
                "{last} then {sequence}"
            );
            if sequence == last + 1 {
                for report in poll["reports"].as_array().unwrap() {
                    if report["report"] == "done" {
                        next += 1;
                    }
                    seen.lock().unwrap().push(report.clone());
                }
                last = sequence;
            }
            if calls % 3 == 0 {
                return Answer::Lose;
            }
            let step = if next == 7 { "inspect" } else { "power-off" };
            Answer::Reply(
                200,
                json!({"order": {"number": next, "step": {"step": step}}}),
            )
        })
    }

    #[test]
    fn lost_replies_and_repeated_orders_run_each_step_once() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let conductor = forgetful_conductor(Arc::clone(&seen));
        let runs = AtomicU32::new(0);
        let run_step: &RunStep<'_> = &|step, _, _| {
            runs.fetch_add(1, Ordering::Relaxed);
            Ok(if *step == Step::PowerOff {
                Outcome::PoweringOff
            } else {
                Outcome::Unknown
            })
        };
        let kept = Mutex::new(Vec::new());
        let save = |saved: &Saved| kept.lock().unwrap().push(saved.taken);
        let mut polling = Polling {
            conductor: &conductor,
            saved: saved(),
            run_step,
            save: &save,
        };
        let end = polling.run(&mut Session::new(0));
        assert_eq!(end, End::Depart(Departure::PowerOff));
        assert_eq!(runs.load(Ordering::Relaxed), 2);
        let seen = seen.lock().unwrap();
        let told: Vec<_> = seen
            .iter()
            .map(|r| (r["report"].as_str().unwrap(), &r["order"]))
            .collect();
        let wanted = [("accepted", 7), ("done", 7), ("accepted", 8), ("done", 8)];
        assert_eq!(
            told,
            wanted.map(|(report, order)| (report, &*Box::leak(Box::new(json!(order)))))
        );
        assert_eq!(*kept.lock().unwrap(), [Some(7), Some(8), None]);
    }

    #[test]
    fn progress_goes_out_while_a_step_runs_and_a_cancel_stops_it() {
        let progressed = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&progressed);
        let conductor = serve(move |_, _, poll| {
            let reports = poll["reports"].as_array().unwrap();
            if reports.iter().any(|r| r["report"] == "progress") {
                flag.store(true, Ordering::Relaxed);
                return Answer::Reply(200, json!({"cancel": 1}));
            }
            if reports.iter().any(|r| r["report"] == "failed") {
                return Answer::Reply(401, json!({}));
            }
            Answer::Reply(
                200,
                json!({"order": {"number": 1, "step": {"step": "inspect"}}}),
            )
        });
        let run_step: &RunStep<'_> = &|_, progress, cancelled| {
            while !cancelled.load(Ordering::Relaxed) {
                progress(Progress {
                    bytes_done: 1,
                    ..Progress::default()
                });
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(Problem::new(Code::StepCancelled, "", ""))
        };
        let mut polling = Polling {
            conductor: &conductor,
            saved: saved(),
            run_step,
            save: &|_| {},
        };
        assert!(matches!(polling.run(&mut Session::new(0)), End::Refused(_)));
        assert!(progressed.load(Ordering::Relaxed));
    }

    #[test]
    fn waits_grow_to_a_limit() {
        let waits: Vec<_> = (1..=7).map(|n| backoff(n).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 15, 15, 15]);
    }
}
