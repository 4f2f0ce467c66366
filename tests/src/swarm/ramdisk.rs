//! The agent in a simulated ramdisk: the real agent's session, driven as `poll.rs` of the agent
//! drives it, with tasks instead of threads.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ferrite_agent::protocol::{Answer, CallError, Deed, Departure, Session, backoff, departure_of};
use ferrite_proto::agent_api::{HELLO, Hello, HelloReply, Order, POLL};
use ferrite_proto::boot::BootParameters;
use ferrite_proto::inventory::BootMode;
use ferrite_proto::problem::Problem;
use ferrite_proto::secret::Secret;
use ferrite_proto::step::{Outcome, Progress};
use tokio::time::Instant;

use super::Shared;
use super::dial::Dial;
use super::machine::Machine;
use super::steps;

/// How often a running step is reported.
const REPORT: Duration = Duration::from_secs(1);
/// What a poll may take beyond the time that the conductor holds it open.
const SLACK: Duration = Duration::from_secs(20);
/// How long a hello may take.
const HELLO_PATIENCE: Duration = Duration::from_secs(20);

/// How far a step is, and whether it shall stop.
#[derive(Debug, Default)]
pub(super) struct Watch {
    progress: Mutex<Progress>,
    cancelled: AtomicBool,
}

impl Watch {
    pub(super) fn report(&self, progress: Progress) {
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner) = progress;
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

type Work<'a> = Pin<Box<dyn Future<Output = Result<Outcome, Problem>> + Send + 'a>>;

struct Running<'a> {
    started: Instant,
    watch: Arc<Watch>,
    work: Work<'a>,
}

/// Runs until the machine shall be left. An agent that is refused waits for ever, as the real one
/// does: only another boot helps.
pub(super) async fn run(machine: &Machine, shared: &Shared, words: &BootParameters) -> Departure {
    let dialled = shared.exchange.dial(
        machine.number,
        &words.url,
        &shared.settings.servers,
        words.ca,
    );
    let Ok(dial) = dialled else {
        return std::future::pending().await;
    };
    let mut agent = Agent {
        machine,
        shared,
        dial,
        failures: 0,
    };
    let Some(reply) = agent.hello(words).await else {
        return std::future::pending().await;
    };
    machine.note(|deeds| deeds.hellos += 1);
    let mut session = Session::new(0);
    session.log("kernel started 1.0 s ago; simulated agent");
    match agent.poll(&reply, &mut session).await {
        Some(departure) => departure,
        None => std::future::pending().await,
    }
}

struct Agent<'a> {
    machine: &'a Machine,
    shared: &'a Shared,
    dial: Dial,
    failures: u32,
}

impl<'a> Agent<'a> {
    /// Says hello until it is answered; `None` when it is refused.
    async fn hello(&mut self, words: &BootParameters) -> Option<HelloReply> {
        let hello = Hello {
            ticket: words.ticket.clone(),
            nonce: uuid::Uuid::new_v4().to_string(),
            identity: self.machine.identity(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: "6.12.0-swarm".to_owned(),
            uptime_seconds: self.shared.settings.pace.netboot.as_secs_f64(),
            boot_mode: BootMode::Uefi,
            memory_bytes: 64 << 30,
        };
        loop {
            let answer = self.dial.call(HELLO, None, &hello, HELLO_PATIENCE).await;
            match self.heard(answer) {
                Ok(reply) => return Some(reply),
                Err(CallError::Unauthorized { .. }) => return None,
                Err(_) => self.wait().await,
            }
        }
    }

    /// Counts an answer; some are lost on their way.
    fn heard<R>(&mut self, answer: Result<R, CallError>) -> Result<R, CallError> {
        let lost = self.machine.happens(self.shared.settings.rates.reply);
        let answer = answer.and_then(|reply| {
            if lost {
                let (url, why) = (String::new(), "lost by the swarm".to_owned());
                return Err(CallError::Unreachable { url, why });
            }
            Ok(reply)
        });
        self.shared.counts.call(self.machine, &answer);
        self.failures = match &answer {
            Ok(_) => 0,
            Err(_) => self.failures.saturating_add(1),
        };
        answer
    }

    async fn wait(&self) {
        tokio::time::sleep(backoff(self.failures)).await;
    }

    /// Polls until the agent shall leave; `None` when it is refused.
    async fn poll(&mut self, saved: &HelloReply, session: &mut Session) -> Option<Departure> {
        let patience = Duration::from_secs(saved.poll_seconds.into()) + SLACK;
        let mut running: Option<Running<'a>> = None;
        let mut departure = None;
        loop {
            if let Some(result) = look(&mut running, session).await {
                departure = result.0.as_ref().ok().and_then(departure_of);
                if departure.is_some() {
                    session.leave();
                }
                session.ended(result.0, result.1);
            }
            match self.poll_once(&saved.token, session, patience).await {
                Ok(deeds) => {
                    for deed in deeds {
                        match deed {
                            Deed::Start(order) => running = Some(self.start(*order)),
                            Deed::Cancel => running.iter().for_each(|running| {
                                running.watch.cancelled.store(true, Ordering::Relaxed);
                            }),
                        }
                    }
                }
                Err(CallError::Unauthorized { .. }) => return None,
                Err(_) => self.wait().await,
            }
            if let Some(how) = departure.filter(|_| session.all_delivered()) {
                return Some(how);
            }
        }
    }

    async fn poll_once(
        &mut self,
        token: &Secret<String>,
        session: &mut Session,
        patience: Duration,
    ) -> Result<Vec<Deed>, CallError> {
        let poll = session.poll();
        let answer = self.dial.call(POLL, Some(token), &poll, patience).await;
        let answer: Answer = self.heard(answer)?;
        Ok(session.answered(answer))
    }

    fn start(&self, order: Order) -> Running<'a> {
        let watch = Arc::<Watch>::default();
        self.machine.note(|deeds| deeds.orders.push(order.number));
        let (machine, shared, seen) = (self.machine, self.shared, Arc::clone(&watch));
        Running {
            started: Instant::now(),
            watch,
            work: Box::pin(async move { steps::run(machine, shared, &order.step, &seen).await }),
        }
    }
}

/// Waits a moment for the step to end; says how far it is when it has not.
async fn look(
    running: &mut Option<Running<'_>>,
    session: &mut Session,
) -> Option<(Result<Outcome, Problem>, f64)> {
    let step = running.as_mut()?;
    let Ok(result) = tokio::time::timeout(REPORT, &mut step.work).await else {
        let progress = step.watch.progress.lock();
        session.progress(progress.unwrap_or_else(PoisonError::into_inner).clone());
        return None;
    };
    let seconds = step.started.elapsed().as_secs_f64();
    *running = None;
    Some((result, seconds))
}
