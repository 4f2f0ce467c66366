//! Hostile callers at a real `ferrite serve`, all at once, while machines are deployed and a person
//! looks on: heads and bodies that come by the drop, bodies of 1 GiB, JSON of a million levels,
//! heads of 1 MiB, thousands of connections that say nothing, noise instead of TLS, answers that
//! nobody reads. Each must be refused or closed in time, and disturb nobody; the figures are
//! printed.
//!
//! What is refused is not the subject here, but that it is, and what it costs. The limits are those
//! of a conductor that nobody configured.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ferrite_tests::swarm::{Served, Settings, Swarm, Usage, ferrite};
use futures_util::StreamExt;
use reqwest::Method;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const GIB: u64 = 1 << 30;
/// What the kernels of both sides hold, and TLS, beside what the conductor reads.
const UNREAD: u64 = 16 << 20;
/// How long a caller that goes on may be borne; the longest limit is the one of bodies.
const PATIENCE: Duration = Duration::from_secs(40);
/// Machines that are deployed meanwhile.
const HOSTS: u32 = 20;
/// Connections that say nothing; fewer where fewer files may be open.
const IDLE: usize = 10_000;
/// Memory that may be added: what ten thousand connections need, and little beside.
const GROWTH: u64 = 320 << 20;
/// What 99 of 100 answers to the person stay below.
const P99: Duration = Duration::from_secs(2);

/// Where the conductor is, for those who speak to it in bytes.
struct Target {
    at: SocketAddr,
    tls: TlsConnector,
    token: String,
    /// Connections that are opened and say nothing.
    idle: usize,
}

impl Target {
    fn of(served: &Served, state: &Path) -> Result<Self> {
        let ca = std::fs::read(state.join("ca.pem"))?;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&ca)?)?;
        let config = rustls::ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let at = served.url.strip_prefix("https://").context("an address")?;
        Ok(Self {
            at: at.parse()?,
            tls: TlsConnector::from(Arc::new(config)),
            idle: idle_connections()?,
            token: std::fs::read_to_string(state.join("admin.token"))?
                .trim()
                .to_owned(),
        })
    }

    async fn connect(&self) -> Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.at).await?;
        let name = ServerName::try_from("localhost")?;
        Ok(self.tls.connect(name, stream).await?)
    }

    /// The head of a call with JSON, with a token or without.
    fn head(&self, call: &str, with_token: bool, length: &str) -> String {
        let token = if with_token {
            format!("authorization: Bearer {}\r\n", self.token)
        } else {
            String::new()
        };
        let kind = "content-type: application/json";
        format!("{call} HTTP/1.1\r\nhost: x\r\n{token}{kind}\r\n{length}\r\n\r\n")
    }
}

/// As many as the conductor takes, and room for the others.
fn idle_connections() -> Result<usize> {
    let limits = std::fs::read_to_string("/proc/self/limits")?;
    let files = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))
        .and_then(|line| line.split_whitespace().nth(1))
        .context("reading how many files may be open")?;
    let files: usize = files.parse().unwrap_or(usize::MAX);
    Ok((files / 4 * 3).saturating_sub(2_500).clamp(100, IDLE))
}

/// What follows the first bytes.
#[derive(Clone, Copy)]
enum Then {
    Nothing,
    /// A byte each second.
    Drops,
    /// So many bytes, as fast as they are taken.
    Flood(u64),
    /// The same in chunks of HTTP.
    Chunks(u64),
}

/// How a connection went.
struct End {
    /// Status, `closed` or `open`.
    what: String,
    after: Duration,
    sent: u64,
}

/// Sends, and reads until there is an answer or an end.
async fn speak<S>(stream: S, first: &[u8], then: Then) -> End
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let started = Instant::now();
    let sent = AtomicU64::new(0);
    let (mut reader, mut writer) = tokio::io::split(stream);
    let talk = async {
        writer.write_all(first).await?;
        send(&mut writer, then, &sent).await
    };
    // Who cannot send any more may still be answered.
    let talk = async {
        let _ = talk.await;
        tokio::time::sleep(PATIENCE).await;
    };
    let what = tokio::select! {
        what = status(&mut reader) => what,
        () = talk => "open".to_owned(),
        () = tokio::time::sleep(PATIENCE) => "open".to_owned(),
    };
    End {
        what,
        after: started.elapsed(),
        sent: sent.into_inner(),
    }
}

async fn send<W: AsyncWriteExt + Unpin>(
    writer: &mut W,
    then: Then,
    sent: &AtomicU64,
) -> std::io::Result<()> {
    let block = vec![b'['; 64 << 10];
    match then {
        Then::Nothing => {}
        Then::Drops => loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            writer.write_all(b"a").await?;
            writer.flush().await?;
        },
        Then::Flood(bytes) | Then::Chunks(bytes) => {
            while sent.load(Ordering::Relaxed) < bytes {
                if matches!(then, Then::Chunks(_)) {
                    writer.write_all(b"10000\r\n").await?;
                }
                writer.write_all(&block).await?;
                if matches!(then, Then::Chunks(_)) {
                    writer.write_all(b"\r\n").await?;
                }
                sent.fetch_add(block.len() as u64, Ordering::Relaxed);
            }
        }
    }
    writer.flush().await
}

/// The status of the answer, or that there is none.
async fn status<R: AsyncReadExt + Unpin>(reader: &mut R) -> String {
    let mut answer = Vec::new();
    let mut block = [0; 512];
    while answer.len() < 12 {
        match reader.read(&mut block).await {
            Ok(0) | Err(_) => return "closed".to_owned(),
            Ok(read) => answer.extend_from_slice(&block[..read]),
        }
    }
    String::from_utf8_lossy(&answer[9..12]).into_owned()
}

/// What became of a kind of attack.
struct Report {
    name: &'static str,
    ends: Vec<End>,
    /// How it may end.
    fine: &'static [&'static str],
    /// When it must have ended.
    within: Duration,
}

impl Report {
    fn line(&self) -> String {
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

    fn check(&self) -> Result<()> {
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
struct Attack {
    name: &'static str,
    times: usize,
    first: Vec<u8>,
    then: Then,
    plain: bool,
    fine: &'static [&'static str],
    within: u64,
}

impl Attack {
    async fn run(self, target: Arc<Target>) -> Report {
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

fn failed(error: &anyhow::Error, started: Instant) -> End {
    End {
        what: format!("not connected: {error:#}"),
        after: started.elapsed(),
        sent: 0,
    }
}

/// Everything but the idle connections.
fn attacks(target: &Target) -> Vec<Attack> {
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
async fn idle(target: Arc<Target>) -> Report {
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
async fn never_reads(target: Arc<Target>) -> Report {
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

/// What a person who looks on has to bear.
#[derive(Default)]
struct Felt {
    took: Mutex<Vec<Duration>>,
    failed: Mutex<Vec<String>>,
}

impl Felt {
    /// Calls until it is told to stop.
    async fn look_on(&self, request: impl Fn() -> reqwest::RequestBuilder, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let started = Instant::now();
            let answer = request().timeout(Duration::from_secs(10)).send().await;
            let failure = match answer {
                Ok(answer) if answer.status().is_success() => {
                    answer.bytes().await.err().map(|error| format!("{error:?}"))
                }
                Ok(answer) => Some(answer.status().to_string()),
                Err(error) => Some(format!("{error:?}")),
            };
            match failure {
                Some(failure) => self
                    .failed
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(failure),
                None => self
                    .took
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(started.elapsed()),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// How many, p50 and p99.
    fn figures(&self) -> (usize, Duration, Duration) {
        let mut took = self
            .took
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        took.sort();
        let at = |part: usize| took.get(took.len() * part / 100).copied();
        (
            took.len(),
            at(50).unwrap_or_default(),
            at(99).unwrap_or_default(),
        )
    }
}

/// Looks on while something is done: over a connection that stays, and over new ones.
async fn felt<T>(
    served: &Served,
    state: &Path,
    done: impl Future<Output = T>,
) -> Result<(Felt, T)> {
    let (felt, stop) = (Felt::default(), AtomicBool::new(false));
    let operator = served.operator()?;
    let token = std::fs::read_to_string(state.join("admin.token"))?;
    let ca = std::fs::read(state.join("ca.pem"))?;
    let anew = reqwest::Client::builder()
        .tls_certs_only(reqwest::Certificate::from_pem_bundle(&ca)?)
        .no_proxy()
        .pool_max_idle_per_host(0)
        .build()?;
    let hosts = || operator.request(Method::GET, "/v1/hosts");
    let ready = || operator.request(Method::GET, "/readyz");
    let url = format!("{}/v1/hosts", served.url);
    let newly = || anew.get(&url).bearer_auth(token.trim());
    let done = async {
        let done = done.await;
        stop.store(true, Ordering::Relaxed);
        done
    };
    let ((), (), (), done) = tokio::join!(
        felt.look_on(hosts, &stop),
        felt.look_on(ready, &stop),
        felt.look_on(newly, &stop),
        done
    );
    Ok((felt, done))
}

/// The most memory a process has until it is told to stop.
async fn peak(pid: u32, stop: &AtomicBool) -> Result<u64> {
    let mut most = 0;
    while !stop.load(Ordering::Relaxed) {
        most = most.max(Usage::of(pid)?.rss);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(most)
}

fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// All of it at once, and twenty deployments. Told as it ends.
async fn attack(target: &Arc<Target>, served: &Served, swarm: &Swarm) -> Result<Vec<Report>> {
    let operator = served.operator()?;
    let mut running = tokio::task::JoinSet::new();
    for attack in attacks(target) {
        running.spawn(attack.run(Arc::clone(target)));
    }
    running.spawn(idle(Arc::clone(target)));
    running.spawn(never_reads(Arc::clone(target)));
    let deployed = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        operator.provision_all(swarm.machines(), 4).await?;
        let hosts = HOSTS as usize;
        operator.until_state("provisioned", hosts, PATIENCE).await
    };
    let ended = async {
        let mut reports = Vec::new();
        while let Some(report) = running.join_next().await {
            let report = report?;
            say(&report.line());
            reports.push(report);
        }
        Ok(reports)
    };
    let (deployed, reports) = tokio::join!(deployed, ended);
    deployed.context("deploying meanwhile")?;
    reports
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_callers_are_refused_and_disturb_nobody() -> Result<()> {
    ferrite_tests::swarm::raise_file_limit()?;
    let dir = tempfile::tempdir()?;
    let state = dir.path().join("state");
    let served = Served::start(&ferrite()?, dir.path(), "").await?;
    let swarm = Swarm::start(Settings::of(&served, HOSTS)).await?;
    let operator = served.operator()?;
    operator.add_all(&swarm, swarm.machines(), 4).await?;
    let hosts = HOSTS as usize;
    operator.until_state("available", hosts, PATIENCE).await?;

    let target = Arc::new(Target::of(&served, &state)?);
    let calm = tokio::time::sleep(Duration::from_secs(3));
    let (before, ()) = felt(&served, &state, calm).await?;
    let rss_before = served.usage()?.rss;
    let pid = served.pid().context("a process")?;
    let stop = AtomicBool::new(false);
    let started = Instant::now();
    let hostile = async {
        let ended = felt(&served, &state, attack(&target, &served, &swarm)).await;
        stop.store(true, Ordering::Relaxed);
        ended
    };
    let (rss_peak, hostile) = tokio::join!(peak(pid, &stop), hostile);
    let ((during, reports), rss_peak) = (hostile?, rss_peak?);
    let reports = reports?;

    let (calls_before, p50_before, p99_before) = before.figures();
    let (calls, p50, p99) = during.figures();
    let ratio = p99.as_secs_f64() / p99_before.as_secs_f64();
    say(&format!(
        "healthy calls: before {calls_before}, p50 {p50_before:?}, p99 {p99_before:?}; during \
         {calls}, p50 {p50:?}, p99 {p99:?} ({ratio:.1} times)"
    ));
    let mib = |bytes: u64| bytes >> 20;
    let after = served.usage()?;
    say(&format!(
        "memory: before {} MiB, most {} MiB, after {} MiB; processor {:?}; {:.0} s",
        mib(rss_before),
        mib(rss_peak),
        mib(after.rss),
        after.cpu,
        started.elapsed().as_secs_f64()
    ));
    for report in &reports {
        report.check()?;
    }
    for felt in [before, during] {
        let failed = felt
            .failed
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        ensure!(failed.is_empty(), "healthy calls failed: {failed:?}");
    }
    ensure!(p99 < P99, "healthy calls had to wait");
    let grown = rss_peak.saturating_sub(rss_before);
    ensure!(grown < GROWTH, "{} MiB more memory", mib(grown));
    ensure!(
        swarm.doubled().is_empty(),
        "done twice: {:?}",
        swarm.doubled()
    );
    swarm.stop().await;
    Ok(())
}
