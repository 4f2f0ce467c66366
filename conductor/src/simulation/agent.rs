//! The ramdisk's agent: says hello, polls, runs steps on a simulated disk.

use std::sync::Arc;
use std::time::Duration;

use ferrite_proto::agent_api::{HELLO, HelloReply, Order, POLL, PollReply, Report};
use ferrite_proto::boot::BootParameters;
use ferrite_proto::inventory::Inventory;
use ferrite_proto::problem::{Code, Problem};
use ferrite_proto::step::{BootMethod, CONFIG_DRIVE_DAEMON, ImageWritten, Outcome, Progress, Step};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::network::{self, Call};
use super::state::{self, ConfigDrive, Disk, LootKind, Running, Sim};
use super::{checks, people};

/// Between reports of progress.
const PROGRESS: Duration = Duration::from_secs(10);

struct Agent {
    sim: Arc<Sim>,
    name: String,
    token: String,
    sequence: u64,
    /// What is not told yet.
    reports: Vec<Report>,
    /// The order that is taken, and whether the conductor knows.
    work: Option<Work>,
    /// The last order taken: none up to it is run again.
    last: u64,
}

struct Work {
    order: Order,
    /// When it ends; none while the conductor does not know that it was taken.
    ends: Option<Instant>,
    cancelled: bool,
}

/// Runs until the machine goes on to something else.
pub(super) async fn run(sim: &Arc<Sim>, name: &str, boot: BootParameters) {
    let nonce = state::fresh();
    let Some(token) = hello(sim, name, &boot, &nonce).await else {
        sim.say(name, "agent", "is not let in, and waits for a reset");
        return;
    };
    sim.copied(name, LootKind::AgentToken, &token);
    let agent = Agent {
        sim: Arc::clone(sim),
        name: name.to_owned(),
        token,
        sequence: 0,
        reports: Vec::new(),
        work: None,
        last: 0,
    };
    agent.live().await;
}

/// The words of a hello, as the machine would say them.
pub(super) fn hello_body(sim: &Sim, name: &str, ticket: &str, nonce: &str) -> Value {
    let (uuid, mac) = sim.machine(name, |machine| (machine.uuid.clone(), machine.mac));
    json!({
        "ticket": ticket, "nonce": nonce, "identity": {"uuid": uuid, "macs": [mac]},
        "agent_version": "0", "kernel": "6", "uptime_seconds": 5.0, "boot_mode": "uefi",
        "memory_bytes": 1,
    })
}

async fn hello(sim: &Arc<Sim>, name: &str, boot: &BootParameters, nonce: &str) -> Option<String> {
    let body = hello_body(sim, name, boot.ticket.expose(), nonce);
    if sim.mishap(4) {
        people::given_up(sim, name, 0, 1_000);
        sim.pause(0, 5_000).await;
    }
    loop {
        let call = Call::post(name, HELLO, "", body.clone());
        match network::call(sim, call).await {
            Some((200, reply)) => {
                sim.say(name, "agent", "is let in");
                let reply: HelloReply = serde_json::from_value(reply).ok()?;
                return Some(reply.token.into_inner());
            }
            Some((401 | 403, _)) => return None,
            Some(_) | None => sim.pause(1_000, 5_000).await,
        }
    }
}

impl Agent {
    async fn live(mut self) {
        loop {
            self.work_on();
            self.sequence += 1;
            let Some(reply) = self.poll().await else {
                self.sim.say(&self.name, "agent", "has no word any more");
                return;
            };
            if self.leaves() {
                return self.boot().await;
            }
            self.answered(reply);
            if self.work.is_some() && self.reports.is_empty() {
                let pause = self.until_news();
                tokio::time::sleep(pause).await;
            }
        }
    }

    /// How long there is nothing to tell.
    fn until_news(&self) -> Duration {
        let ends = self.work.as_ref().and_then(|work| work.ends);
        ends.map_or(Duration::ZERO, |at| {
            at.saturating_duration_since(Instant::now())
        })
        .min(PROGRESS)
    }

    /// One poll, sent again unchanged until it is answered; `None` when the token is void.
    async fn poll(&mut self) -> Option<PollReply> {
        let body = json!({"sequence": self.sequence, "reports": self.reports});
        for _ in 0..1000 {
            let call = Call::post(&self.name, POLL, &self.token, body.clone());
            match network::call(&self.sim, call).await {
                Some((200, reply)) => return serde_json::from_value(reply).ok(),
                Some((401 | 403, _)) => return None,
                Some(_) | None => self.sim.pause(1_000, 3_000).await,
            }
            if self.leaves() && self.sim.chance(10) {
                // It was told often enough.
                return Some(PollReply::default());
            }
        }
        None
    }

    /// What was told is known now. An order that was called off on the way does not begin.
    fn answered(&mut self, reply: PollReply) {
        let told = std::mem::take(&mut self.reports);
        if let Some(number) = reply.cancel {
            self.cancel(number);
        }
        for report in told {
            match report {
                Report::Accepted { .. } => self.begin(),
                Report::Done { order, outcome, .. } => {
                    checks::done_is_known(&self.sim, &self.name, order, &outcome);
                }
                _ => {}
            }
        }
        if let Some(order) = reply.order {
            self.take(order);
        }
    }

    fn cancel(&mut self, number: u64) {
        let Some(work) = &mut self.work else { return };
        if work.order.number != number {
            return;
        }
        work.cancelled = true;
        if work.ends.is_none() {
            self.work = None;
            let problem = Problem::new(Code::StepCancelled, "not begun", "");
            self.reports.push(Report::Failed {
                order: number,
                problem,
            });
        }
    }

    fn take(&mut self, order: Order) {
        if self
            .work
            .as_ref()
            .is_some_and(|work| work.order.number == order.number)
        {
            return;
        }
        if let Some(work) = &self.work {
            let (one, other) = (work.order.number, order.number);
            let said = format!("{}: order {other} while it is at {one}", self.name);
            return self.sim.violate(format!("two writers for a disk: {said}"));
        }
        if order.number <= self.last {
            let said = format!("{}: order {} is given out again", self.name, order.number);
            return self.sim.violate(said);
        }
        self.last = order.number;
        let number = order.number;
        self.reports.push(Report::Accepted { order: number });
        self.work = Some(Work {
            order,
            ends: None,
            cancelled: false,
        });
    }

    /// The conductor knows that the order was taken: it begins.
    fn begin(&mut self) {
        let Some(work) = &mut self.work else { return };
        if work.ends.is_some() {
            return;
        }
        let most = match work.order.step {
            Step::WriteImage { .. } | Step::Erase { .. } => 180,
            _ => 20,
        };
        let takes = self
            .sim
            .between(Duration::from_secs(1), Duration::from_secs(most));
        work.ends = Some(Instant::now() + takes);
        let (number, step) = (work.order.number, &work.order.step);
        self.sim.say(
            &self.name,
            "agent",
            format!("begins order {number}: {}", step.name()),
        );
        checks::begins(&self.sim, &self.name, number, step);
        self.sim.machine(&self.name, |machine| {
            machine.at_work = Some((number, step.name()));
            match step {
                Step::WriteImage { .. } => {
                    machine.disk = Disk {
                        broken: true,
                        ..Disk::default()
                    };
                }
                Step::Erase { .. } => machine.disk.broken = true,
                _ => {}
            }
        });
    }

    /// Goes on with what it is at, and has something to tell when it ended.
    fn work_on(&mut self) {
        let Some(work) = &self.work else { return };
        let Some(ends) = work.ends else { return };
        let order = work.order.number;
        if work.cancelled && self.sim.chance(50) {
            self.stop();
            let problem = Problem::new(Code::StepCancelled, "stopped", "");
            self.reports.push(Report::Failed { order, problem });
        } else if ends <= Instant::now() {
            self.end();
        } else if self.reports.is_empty() {
            let progress = Progress::default();
            self.reports.push(Report::Progress { order, progress });
        }
    }

    /// Leaves the disk as it is.
    fn stop(&mut self) {
        self.work = None;
        self.sim.machine(&self.name, |machine| {
            if let Some((_, "write-config-drive")) = machine.at_work.take() {
                machine.disk.broken = true;
            }
            machine.disturbed();
        });
    }

    fn end(&mut self) {
        let Some(work) = self.work.take() else { return };
        let order = work.order.number;
        if self.sim.mishap(4) {
            let code = match self.sim.below(4) {
                0 => Code::ImageNotFound,
                1 => Code::DiskIo,
                _ => Code::ImageUnreachable,
            };
            self.sim
                .say(&self.name, "agent", format!("order {order} fails: {code}"));
            self.stop();
            let problem = Problem::new(code, "it failed", "");
            return self.reports.push(Report::Failed { order, problem });
        }
        let outcome = self.effect(&work.order.step);
        self.sim
            .machine(&self.name, |machine| machine.at_work = None);
        self.reports.push(Report::Done {
            order,
            outcome,
            seconds: 1.0,
        });
    }

    /// What a step that ends well leaves.
    fn effect(&self, step: &Step) -> Outcome {
        match step {
            Step::Inspect => {
                let mut inventory = Box::<Inventory>::default();
                let uuid = self.sim.machine(&self.name, |machine| machine.uuid.clone());
                inventory.system.uuid = Some(uuid);
                Outcome::Inspected { inventory }
            }
            Step::Erase { .. } => {
                self.sim
                    .machine(&self.name, |machine| machine.disk = Disk::default());
                Outcome::Erased { disks: Vec::new() }
            }
            Step::WriteImage { image, .. } => {
                self.sim.machine(&self.name, |machine| {
                    machine.disk = Disk {
                        image: Some(image.url.clone()),
                        ..Disk::default()
                    };
                });
                Outcome::ImageWritten(ImageWritten::default())
            }
            Step::WriteConfigDrive { files, .. } => {
                let drive = config_drive(files);
                if let Some(drive) = &drive {
                    self.sim
                        .copied(&self.name, LootKind::Credential, &drive.credential);
                }
                self.sim
                    .machine(&self.name, |machine| machine.disk.drive = drive);
                let partition = "p".to_owned();
                Outcome::ConfigDriveWritten {
                    partition,
                    bytes: 1,
                }
            }
            Step::SetBootEntry { .. } => Outcome::BootEntrySet { detail: "b".into() },
            Step::Boot { .. } => {
                // It is on its way: nobody counts on it any more.
                self.sim
                    .machine(&self.name, |machine| machine.running = Running::Firmware);
                let reboot = self.sim.chance(30);
                Outcome::Booting {
                    method: if reboot {
                        BootMethod::Reboot
                    } else {
                        BootMethod::Kexec
                    },
                    detail: "k".into(),
                }
            }
            Step::Rescue { .. } => Outcome::RescueReady {
                addresses: Vec::new(),
                host_keys: Vec::new(),
            },
            Step::PowerOff => Outcome::PoweringOff,
        }
    }

    /// Whether it has said that it starts the OS.
    fn leaves(&self) -> bool {
        self.booting().is_some()
    }

    fn booting(&self) -> Option<BootMethod> {
        self.reports.iter().find_map(|report| match report {
            Report::Done {
                outcome: Outcome::Booting { method, .. },
                ..
            } => Some(*method),
            _ => None,
        })
    }

    async fn boot(self) {
        self.sim.say(&self.name, "agent", "starts the OS");
        if self.booting() == Some(BootMethod::Reboot) {
            // Ends this very task.
            return state::firmware(&self.sim, &self.name);
        }
        self.sim.pause(2_000, 10_000).await;
        super::os::run(&self.sim, &self.name).await;
    }
}

fn config_drive(files: &[ferrite_proto::step::ConfigFile]) -> Option<ConfigDrive> {
    let of = |what: &str| files.iter().find(|file| file.path.ends_with(what));
    let daemon = of(CONFIG_DRIVE_DAEMON)?;
    let daemon: Value = serde_json::from_str(daemon.content.expose()).ok()?;
    Some(ConfigDrive {
        credential: daemon["credential"].as_str()?.to_owned(),
        user_data: of("user_data").map(|file| file.content.expose().clone()),
    })
}
