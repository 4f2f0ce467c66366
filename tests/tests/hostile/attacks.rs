//! What hostile callers say, in how many connections, and how each must end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures_util::StreamExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::talk::{End, PATIENCE, Then, failed, speak};
use crate::target::Target;

const GIB: u64 = 1 << 30;
/// What the kernels of both sides hold, and TLS, beside what the conductor reads.
const UNREAD: u64 = 16 << 20;

/// What became of a kind of attack.
pub(super) struct Report {
    name: &'static str,
    ends: Vec<End>,
    /// How it may end.
    fine: &'static [&'static str],
    /// When it must have ended.
    within: Duration,
}

impl Report {
    pub(super) fn line(&self) -> String {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for end in &self.ends {
            *counts.entry(&end.what).or_default() += 1;
        }
        let slowest = self.ends.iter().map(|end| end.after).max();
        let most = self.ends.iter().map(|end| end.sent).max();
        format!(
            "{:<34} {counts:?}, the last after {:.1} s, at most {} KiB taken",
            self.name,
            slowest.unwrap_or_default().as_secs_f64(),
            most.unwrap_or_default() >> 10,
        )
    }

    pub(super) fn check(&self) -> Result<()> {
        ensure!(!self.ends.is_empty(), "{}: nothing was done", self.name);
        for end in &self.ends {
            ensure!(
                self.fine.contains(&end.what.as_str()),
                "{}: {} after {:?}, not one of {:?}",
                self.name,
                end.what,
                end.after,
                self.fine
            );
            ensure!(
                end.after <= self.within,
                "{}: {} only after {:?}",
                self.name,
                end.what,
                end.after
            );
            ensure!(
                end.sent <= UNREAD,
                "{}: {} bytes were taken",
                self.name,
                end.sent
            );
        }
        Ok(())
    }
}

/// An attack: what is said in how many connections, and how it must end.
pub(super) struct Attack {
    name: &'static str,
    times: usize,
    first: Vec<u8>,
    then: Then,
    plain: bool,
    fine: &'static [&'static str],
    within: u64,
}

impl Attack {
    pub(super) async fn run(self, target: Arc<Target>) -> Report {
        let calls = (0..self.times).map(|_| async {
            let started = Instant::now();
            if self.plain {
                let stream = TcpStream::connect(target.at).await;
                match stream {
                    Ok(stream) => return speak(stream, &self.first, self.then).await,
                    Err(error) => return failed(&error.into(), started),
                }
            }
            match target.connect().await {
                Ok(stream) => speak(stream, &self.first, self.then).await,
                Err(error) => failed(&error, started),
            }
        });
        Report {
            name: self.name,
            ends: futures_util::future::join_all(calls).await,
            fine: self.fine,
            within: Duration::from_secs(self.within),
        }
    }
}

/// Everything but the idle connections.
pub(super) fn attacks(target: &Target) -> Vec<Attack> {
    let mut all = slow(target);
    all.extend(too_much(target));
    all.extend(odd(target));
    all.extend(noise());
    all
}

fn slow(target: &Target) -> Vec<Attack> {
    let length = "content-length: 10000";
    let drops = |name, times, first: String, fine, within| Attack {
        name,
        times,
        first: first.into_bytes(),
        then: Then::Drops,
        plain: false,
        fine,
        within,
    };
    let post = |path: &str, with_token| target.head(&format!("POST {path}"), with_token, length);
    vec![
        drops(
            "heads by the drop",
            300,
            "GET /readyz HTTP/1.1\r\nx-".to_owned(),
            &["closed"],
            30,
        ),
        drops(
            "bodies by the drop, with a token",
            100,
            post("/v1/hosts", true),
            &["408"],
            36,
        ),
        drops(
            "bodies by the drop, Idempotency-Key",
            20,
            post("/v1/hosts", true).replacen("host: x", "host: x\r\nidempotency-key: k", 1),
            &["408"],
            36,
        ),
        drops(
            "bodies by the drop, of strangers",
            100,
            post("/v1/agent/hello", false),
            &["408"],
            16,
        ),
        drops(
            "bodies by the drop, a wrong token",
            100,
            post("/v1/agent/poll", false),
            &["401"],
            16,
        ),
        drops(
            "bodies by the drop, of GET",
            50,
            target.head("GET /v1/hosts", true, length),
            &["200", "408"],
            36,
        ),
    ]
}

fn too_much(target: &Target) -> Vec<Attack> {
    let declared = format!("content-length: {GIB}");
    let chunked = "transfer-encoding: chunked".to_owned();
    let mut all = Vec::new();
    for (length, then) in [(declared, Then::Flood(GIB)), (chunked, Then::Chunks(GIB))] {
        let calls: [(&str, &str, bool, &[&str]); 4] = [
            ("1 GiB, with a token", "POST /v1/hosts", true, &["413"]),
            (
                "1 GiB, as a merge",
                "PATCH /v1/hosts/x",
                true,
                &["413", "415"],
            ),
            (
                "1 GiB, of strangers",
                "POST /v1/agent/hello",
                false,
                &["413"],
            ),
            ("1 GiB, no token", "POST /v1/agent/poll", false, &["401"]),
        ];
        for (name, call, with_token, fine) in calls {
            all.push(Attack {
                name,
                times: 8,
                first: target.head(call, with_token, &length).into_bytes(),
                then,
                plain: false,
                fine,
                within: 20,
            });
        }
    }
    all
}

fn odd(target: &Target) -> Vec<Attack> {
    let deep = |levels: usize| {
        let length = format!("content-length: {levels}");
        let head = target.head("POST /v1/hosts", true, &length);
        [head.into_bytes(), vec![b'['; levels]].concat()
    };
    let long = |head: String| head.into_bytes();
    let heads = [
        ("JSON of a million levels", deep(1_000_000), &["400"][..]),
        (
            "HTTP/2 without asking",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".repeat(9),
            &["400", "closed"],
        ),
        (
            "a head of 1 MiB",
            long(format!(
                "GET / HTTP/1.1\r\nx: {}\r\n\r\n",
                "y".repeat(1 << 20)
            )),
            &["431"],
        ),
        (
            "a target of 1 MiB",
            long(format!("GET /{} HTTP/1.1\r\n\r\n", "y".repeat(1 << 20))),
            &["414", "431"],
        ),
        (
            "ten thousand headers",
            long(format!(
                "GET / HTTP/1.1\r\n{}\r\n",
                "x: y\r\n".repeat(10_000)
            )),
            &["431"],
        ),
    ];
    let attack = |(name, first, fine)| Attack {
        name,
        times: 16,
        first,
        then: Then::Nothing,
        plain: false,
        fine,
        within: 20,
    };
    heads.map(attack).into()
}

fn noise() -> Vec<Attack> {
    let noise: Vec<u8> = (0..64_000_u32).map(|at| (at * 97 % 251) as u8).collect();
    // The head of a record with a hello that never comes whole.
    let hello = [&[22, 3, 1, 2, 0, 1, 0, 1, 252][..], &[3; 40]].concat();
    let plain = |name, times, first: Vec<u8>, then, within| Attack {
        name,
        times,
        first,
        then,
        plain: true,
        fine: &["closed"],
        within,
    };
    let http = b"GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n".to_vec();
    vec![
        plain("HTTP without TLS", 100, http, Then::Nothing, 16),
        plain("noise instead of TLS", 100, noise, Then::Flood(GIB), 16),
        plain("half a hello", 200, hello.clone(), Then::Nothing, 16),
        plain("a hello by the drop", 200, hello, Then::Drops, 16),
        plain("nothing, without TLS", 300, Vec::new(), Then::Nothing, 16),
    ]
}

/// Connections that say nothing until they are closed; a few hundred are opened at a time.
pub(super) async fn idle(target: Arc<Target>) -> Report {
    let opened = futures_util::stream::iter(0..target.idle).map(|_| target.connect());
    let mut opened = opened.buffer_unordered(128);
    let mut waiting = tokio::task::JoinSet::new();
    while let Some(stream) = opened.next().await {
        match stream {
            Ok(stream) => waiting.spawn(async { speak(stream, b"", Then::Nothing).await }),
            Err(error) => waiting.spawn(async move { failed(&error, Instant::now()) }),
        };
    }
    Report {
        name: "connections that say nothing",
        ends: waiting.join_all().await,
        fine: &["closed"],
        within: Duration::from_secs(30),
    }
}

/// Asks for the API's description again and again, and reads none of it.
pub(super) async fn never_reads(target: Arc<Target>) -> Report {
    let ask = target.head("GET /openapi.json", true, "content-length: 0");
    let calls = (0..50).map(|_| async {
        let started = Instant::now();
        let mut stream = match target.connect().await {
            Ok(stream) => stream,
            Err(error) => return failed(&error, started),
        };
        let asking = async {
            loop {
                stream.write_all(ask.as_bytes()).await?;
                stream.flush().await?;
            }
        };
        let asked: Result<std::io::Result<()>, _> = tokio::time::timeout(PATIENCE, asking).await;
        End {
            what: if asked.is_ok() { "closed" } else { "open" }.to_owned(),
            after: started.elapsed(),
            sent: 0,
        }
    });
    Report {
        name: "answers that nobody reads",
        ends: futures_util::future::join_all(calls).await,
        fine: &["closed"],
        within: Duration::from_secs(38),
    }
}
