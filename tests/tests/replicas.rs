//! Three real conductors on a real `PostgreSQL`, a swarm that is being deployed, and the conductor
//! that drives most hosts killed again and again; the database crashes once, and is replaced by the
//! server that follows it. Nothing may be lost or done twice, nobody helps, and each takeover is
//! measured.
//!
//! Short by default; `FERRITE_LONG=1` makes it 200 deployments and a kill every 30 s.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ferrite_tests::postgres::Postgres;
use ferrite_tests::swarm::{Operator, Pace, Served, Settings, Swarm, ferrite, free_port};

/// How long another conductor may take to drive a dead one's hosts.
const TAKEOVER: Duration = Duration::from_secs(10);
/// How long it may take until everything has ended well.
const PATIENCE: Duration = Duration::from_mins(5);

/// How much.
struct Size {
    hosts: u32,
    kills: usize,
    between: Duration,
    pace: Pace,
}

impl Size {
    fn chosen() -> Self {
        let long = std::env::var_os("FERRITE_LONG").is_some();
        let pace = |write_rate| Pace {
            post: Duration::from_secs(2),
            netboot: Duration::from_secs(1),
            write_rate,
            ..Pace::server()
        };
        if long {
            Self {
                hosts: 200,
                kills: 5,
                between: Duration::from_secs(30),
                pace: pace(16 << 20),
            }
        } else {
            Self {
                hosts: 60,
                kills: 2,
                between: Duration::from_secs(12),
                pace: pace(80 << 20),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deployments_survive_the_conductors_that_drive_them() -> Result<()> {
    let size = Size::chosen();
    ferrite_tests::swarm::raise_file_limit()?;
    let dir = tempfile::tempdir()?;
    let mut database = Postgres::start()?;
    let replicas = replicas(dir.path(), &database).await?;
    let swarm = Swarm::start(Settings {
        servers: replicas.iter().map(|r| r.url.clone()).collect(),
        netboot: replicas.iter().map(|r| r.netboot.clone()).collect(),
        pace: size.pace.clone(),
        ..Settings::of(&replicas[0], size.hosts)
    })
    .await?;
    let count = swarm.machines().len();
    let operator = replicas[1].operator()?;
    operator.add_all(&swarm, swarm.machines(), 8).await?;
    operator.until_state("available", count, PATIENCE).await?;
    say(&format!("{count} hosts are available"));
    operator.provision_all(swarm.machines(), 8).await?;
    for kill in 0..size.kills {
        tokio::time::sleep(size.between / 3).await;
        let killed = kill_busiest(&replicas, &database).await;
        killed.inspect_err(|_| replicas.iter().for_each(last_words))?;
        if kill == 0 {
            database.crash()?;
            tokio::time::sleep(Duration::from_secs(2)).await;
            database.launch()?;
            say("the database crashed and is back");
            database.follow()?;
        } else if kill == 1 {
            database.fail_over()?;
            say("the database is lost; the one that followed it took over");
        }
        tokio::time::sleep(size.between / 3).await;
    }
    let operator = any(&replicas).await?;
    operator.until_state("provisioned", count, PATIENCE).await?;
    once(&swarm)?;
    swarm.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conductor_waits_for_its_database() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut database = Postgres::start()?;
    database.crash()?;
    let key = dir.path().join("secrets.key");
    std::fs::write(&key, [7_u8; 32])?;
    set_private(&key)?;
    let extra = store(&database, &key);
    let served = Served::prepare(free_port()?, &ferrite()?, dir.path(), &extra)?;
    served.launch()?;
    let waits = || {
        let log = std::fs::read_to_string(served.log()).unwrap_or_default();
        log.contains("waiting for the database")
    };
    let started = Instant::now();
    while !waits() {
        ensure!(
            started.elapsed() < PATIENCE,
            "it does not say that it waits"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    database.launch()?;
    served.until_ready(PATIENCE).await?;
    Ok(())
}

fn store(database: &Postgres, key: &Path) -> String {
    let (url, key) = (database.url(), key.display().to_string());
    format!("[store]\nurl = {url:?}\nkey_file = {key:?}\n")
}

/// Three conductors with one address for hosts, one key and one database.
async fn replicas(dir: &Path, database: &Postgres) -> Result<Vec<Served>> {
    let key = dir.join("secrets.key");
    std::fs::write(&key, [7_u8; 32])?;
    set_private(&key)?;
    let first = free_port()?;
    let store = store(database, &key);
    let extra = format!("url = \"https://127.0.0.1:{first}\"\n{store}");
    let mut replicas = Vec::new();
    for number in 0..3 {
        let port = if number == 0 { first } else { free_port()? };
        let place = dir.join(format!("replica-{number}"));
        replicas.push(Served::start_at(port, &ferrite()?, &place, &extra).await?);
    }
    Ok(replicas)
}

fn set_private(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let private = std::fs::Permissions::from_mode(0o600);
    Ok(std::fs::set_permissions(path, private)?)
}

/// Kills the one that drives most hosts, waits until others drive them, and starts it again.
async fn kill_busiest(replicas: &[Served], database: &Postgres) -> Result<()> {
    let owners = owners(database)?;
    let (owner, hosts) = owners
        .iter()
        .max_by_key(|(_, hosts)| **hosts)
        .context("nobody drives anything")?;
    let busiest = replicas
        .iter()
        .find(|replica| id_of(replica).as_deref() == Some(owner.as_str()))
        .with_context(|| format!("no replica is {owner}"))?;
    let started = Instant::now();
    busiest.kill()?;
    loop {
        let left = self::owners(database)?;
        if !left.contains_key(owner) && !left.contains_key("") {
            break;
        }
        ensure!(
            started.elapsed() < TAKEOVER,
            "{:?} after the kill hosts are still without a driver: {left:?}",
            started.elapsed()
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let took = started.elapsed().as_secs_f64();
    say(&format!(
        "killed the driver of {hosts} hosts; others drive them after {took:.1} s"
    ));
    busiest.launch()?;
    Ok(())
}

/// The end of what a replica logged, for whoever asks why.
fn last_words(replica: &Served) {
    let log = std::fs::read_to_string(replica.log()).unwrap_or_default();
    let lines: Vec<_> = log.lines().collect();
    let at = replica.log().display().to_string();
    say(&format!(
        "{at}:\n{}",
        lines[lines.len().saturating_sub(40)..].join("\n")
    ));
}

/// How many hosts each replica drives.
fn owners(database: &Postgres) -> Result<BTreeMap<String, usize>> {
    let rows = database.query("SELECT owner, COUNT(*) FROM hosts GROUP BY owner")?;
    let row = |line: &str| {
        let (owner, hosts) = line.split_once('|').context("a row has two columns")?;
        Ok((owner.to_owned(), hosts.parse()?))
    };
    rows.lines().map(row).collect()
}

/// What a replica calls itself in this life, by its log.
fn id_of(replica: &Served) -> Option<String> {
    let log = std::fs::read_to_string(replica.log()).ok()?;
    let line = log.lines().rfind(|line| line.contains("one of several"))?;
    let (_, after) = line.split_once("replica=")?;
    let id = after.trim_start_matches('"');
    Some(
        id.chars()
            .take_while(|c| c.is_ascii_hexdigit() || *c == '-')
            .collect(),
    )
}

/// Somebody at a conductor that answers.
async fn any(replicas: &[Served]) -> Result<Operator> {
    let started = Instant::now();
    loop {
        for replica in replicas {
            let operator = replica.operator()?;
            if operator.is_served().await {
                return Ok(operator);
            }
        }
        ensure!(started.elapsed() < PATIENCE, "no conductor answers");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Every machine did everything once.
fn once(swarm: &Swarm) -> Result<()> {
    let doubled = swarm.doubled();
    ensure!(doubled.is_empty(), "{doubled:?}");
    for machine in swarm.machines() {
        let deeds = machine.deeds();
        let did = [
            deeds.erased,
            deeds.images_begun,
            deeds.images_written,
            deeds.config_drives,
        ];
        ensure!(did == [1; 4], "{}: {deeds:?}", machine.name);
        let booted = (deeds.firmware_boots, deeds.os_starts, deeds.enrolled);
        ensure!(booted == (1, 1, 1), "{}: {deeds:?}", machine.name);
    }
    Ok(())
}

fn say(what: &str) {
    let _ = writeln!(std::io::stderr(), "replicas: {what}");
}
