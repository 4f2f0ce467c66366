//! What a real conductor does when its disk is full, when somebody else holds its database, and
//! when its clock jumps by a day: it says so, loses nothing, does nothing twice, and goes on by
//! itself.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ferrite_proto::host::{Host, HostState};
use ferrite_tests::swarm::{Machine, Operator, Served, Settings, Swarm, ferrite};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_mins(1);
/// Room for the database of a few hosts, and little more.
const ROOM: &str = "size=6m,mode=0700";
const CONFIG: &str = "[lifecycle]\nboot_seconds = 60\nagent_silence_seconds = 10\n\
    poll_seconds = 2\ndaemon_silence_seconds = 20\ncheck_in_seconds = 2\n\
    power_interval_seconds = 5\nretry_first_seconds = 1\nretry_max_seconds = 4\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_told_and_loses_nothing() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let disk = SmallDisk::at(&dir.path().join("state"))?;
    let world = World::start(dir.path()).await?;
    let mut kept = vec![world.put("before").await?];
    world.begin_slow_write(0, Duration::from_secs(4)).await?;
    disk.fill()?;
    let refused = loop {
        ensure!(kept.len() < 5000, "the disk is never full");
        match world.try_put(&format!("image-{}", kept.len())).await? {
            (StatusCode::CREATED, image) => kept.push(name_of(&image)?),
            refused => break refused,
        }
    };
    ensure!(refused.0 == StatusCode::INSUFFICIENT_STORAGE, "{refused:?}");
    ensure!(refused.1["code"] == "store-full", "{}", refused.1);
    let advice = refused.1["advice"].as_str().unwrap_or_default();
    ensure!(advice.contains("free space"), "{advice}");
    // What the refused write took of the log's file is room for smaller ones.
    let told = loop {
        ensure!(kept.len() < 5000, "it is ready in spite of all");
        let told = world.ready().await?;
        if told.0 == 503 {
            break told;
        }
        let name = format!("small-{}", kept.len());
        match world.try_put_with(&name, 1).await? {
            (StatusCode::CREATED, image) => kept.push(name_of(&image)?),
            (status, problem) => ensure!(problem["code"] == "store-full", "{status}: {problem}"),
        }
    };
    ensure!(told.1 == "store-full\n", "{told:?}");
    ensure!(
        world.operator.states().await?.len() >= 2,
        "hosts are shown meanwhile"
    );
    // Longer than the write: what the agent has to tell cannot be stored.
    tokio::time::sleep(Duration::from_secs(6)).await;
    ensure!(world.ready().await?.0 == 503, "it is full still");
    disk.free()?;
    world.until_ready().await?;
    world.until_provisioned(0).await?;
    kept.push(world.put("after").await?);
    world.served.kill()?;
    world.served.launch()?;
    world.served.until_ready(PATIENCE).await?;
    world.nothing_lost(&kept).await?;
    world.once(0)?;
    world.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_and_a_slow_store_are_waited_for() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let world = World::start(dir.path()).await?;
    let mut kept = vec![world.put("before").await?];
    world.begin_slow_write(0, Duration::from_secs(3)).await?;
    // Shorter than the conductor waits for a lock: it takes longer, and is done.
    let lock = world.lock("c.execute('BEGIN EXCLUSIVE'); time.sleep(3)")?;
    let asked = Instant::now();
    kept.push(world.put("during-a-short-lock").await?);
    ensure!(
        asked.elapsed() > Duration::from_secs(1),
        "it was not locked"
    );
    drop(lock);
    // Longer: whoever asks is told, and so is whoever looks after the conductor.
    let lock = world.lock("c.execute('BEGIN EXCLUSIVE'); time.sleep(60)")?;
    let (status, problem) = world.try_put("during-a-long-lock").await?;
    ensure!(
        status == StatusCode::SERVICE_UNAVAILABLE,
        "{status}: {problem}"
    );
    ensure!(problem["code"] == "store-unavailable", "{problem}");
    let told = world.ready().await?;
    ensure!(told == (503, "store-unavailable\n".to_owned()), "{told:?}");
    drop(lock);
    world.until_ready().await?;
    world.until_provisioned(0).await?;
    let slow = "while True:\n  c.execute('BEGIN EXCLUSIVE'); time.sleep(.25)\n  \
                c.execute('ROLLBACK'); time.sleep(.1)";
    let lock = world.lock(slow)?;
    world.provision(1).await?;
    world.until_provisioned(1).await?;
    kept.push(world.put("on-a-slow-store").await?);
    drop(lock);
    world.nothing_lost(&kept).await?;
    world.once(0)?;
    world.once(1)?;
    world.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_more_or_less_fails_no_host() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let world = World::start(dir.path()).await?;
    let clock = dir.path().join("clock");
    fs::write(&clock, "0")?;
    world.served.kill()?;
    let path = clock.display().to_string();
    world.served.launch_with(&[("FERRITE_CLOCK", &path)])?;
    world.served.until_ready(PATIENCE).await?;
    let half_a_day = json!({
        "name": "short", "grants": [{"role": "viewer"}], "expires_seconds": 43_200,
    });
    let created = world
        .call(Method::POST, "/v1/tokens", Some(&half_a_day))
        .await?;
    let token = created.1["secret"].as_str().context("no token")?.to_owned();
    ensure!(world.comes_in(&token).await?, "a new token is good");
    world.provision(1).await?;
    world.until_provisioned(1).await?;
    world.begin_slow_write(0, Duration::from_secs(12)).await?;
    for (seconds, token_holds) in [("86400", false), ("0", true), ("-86400", true)] {
        fs::write(&clock, seconds)?;
        let holds = world.comes_in(&token).await?;
        ensure!(
            holds == token_holds,
            "the clock at {seconds} s, and the token: {holds}"
        );
        world.no_host_fails(Duration::from_secs(3), seconds).await?;
    }
    world.until_provisioned(0).await?;
    world.provision(2).await?;
    world.until_provisioned(2).await?;
    fs::write(&clock, "0")?;
    world
        .no_host_fails(Duration::from_secs(3), "right again")
        .await?;
    for number in 0..3 {
        world.once(number)?;
    }
    world.nothing_lost(&[]).await?;
    world.stop().await;
    Ok(())
}

/// A conductor and three hosts that are available.
struct World {
    served: Served,
    swarm: Swarm,
    operator: Operator,
    state: PathBuf,
}

impl World {
    async fn start(dir: &Path) -> Result<Self> {
        let served = Served::start(&ferrite()?, dir, CONFIG).await?;
        let swarm = Swarm::start(Settings::of(&served, 3)).await?;
        let operator = served.operator()?;
        operator.add_all(&swarm, swarm.machines(), 3).await?;
        operator.until_state("available", 3, PATIENCE).await?;
        let state = dir.join("state");
        Ok(Self {
            served,
            swarm,
            operator,
            state,
        })
    }

    fn machine(&self, number: usize) -> &Machine {
        &self.swarm.machines()[number]
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(StatusCode, Value)> {
        let mut request = self.operator.request(method, path);
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.timeout(PATIENCE).send().await?;
        let status = answer.status();
        Ok((status, answer.json().await.unwrap_or_default()))
    }

    async fn try_put(&self, name: &str) -> Result<(StatusCode, Value)> {
        self.try_put_with(name, 8000).await
    }

    async fn try_put_with(&self, name: &str, bytes: usize) -> Result<(StatusCode, Value)> {
        let image = json!({
            "apiVersion": "ferrite/v1",
            "kind": "Image",
            "metadata": {"name": name, "annotations": {"why": "x".repeat(bytes)}},
            "spec": {
                "url": "http://192.0.2.1/images/a.raw",
                "digest": format!("sha256:{}", "a".repeat(64)),
            },
        });
        self.call(Method::POST, "/v1/images", Some(&image)).await
    }

    /// Something that is acknowledged; its name.
    async fn put(&self, name: &str) -> Result<String> {
        let (status, image) = self.try_put(name).await?;
        ensure!(status == StatusCode::CREATED, "{name}: {status}: {image}");
        name_of(&image)
    }

    async fn ready(&self) -> Result<(u16, String)> {
        let answer = self.operator.request(Method::GET, "/readyz").send().await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    }

    /// Nobody writes anything meanwhile.
    async fn until_ready(&self) -> Result<()> {
        let started = Instant::now();
        loop {
            let told = self.ready().await?;
            if told.0 == 200 {
                return Ok(());
            }
            ensure!(started.elapsed() < PATIENCE, "still not ready: {told:?}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn comes_in(&self, token: &str) -> Result<bool> {
        let request = self.operator.request(Method::GET, "/v1/version");
        let mut request = request.build()?;
        let bearer = format!("Bearer {token}").parse()?;
        request.headers_mut().insert("authorization", bearer);
        let answer = self.operator.send(request).await?;
        Ok(answer.status() == StatusCode::OK)
    }

    async fn provision(&self, number: usize) -> Result<()> {
        let machines = &self.swarm.machines()[number..=number];
        self.operator.provision_all(machines, 1).await
    }

    /// A deployment that is in the middle of its write.
    async fn begin_slow_write(&self, number: usize, took: Duration) -> Result<()> {
        let name = self.machine(number).name.clone();
        self.machine(number).write_next_in(took);
        self.provision(number).await?;
        let writes = |machine: &Machine| machine.name == name && machine.deeds().images_begun == 1;
        self.swarm.until("write", 1, PATIENCE, writes).await?;
        Ok(())
    }

    async fn host(&self, number: usize) -> Result<Host> {
        self.operator.host(&self.machine(number).name).await
    }

    async fn until_provisioned(&self, number: usize) -> Result<()> {
        let started = Instant::now();
        loop {
            let host = self.host(number).await?;
            if host.status.state == HostState::Provisioned && host.status.error.is_none() {
                return Ok(());
            }
            let status = serde_json::to_string(&host.status)?;
            ensure!(started.elapsed() < PATIENCE, "not provisioned: {status}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// For some time no host has an error.
    async fn no_host_fails(&self, time: Duration, when: &str) -> Result<()> {
        let started = Instant::now();
        while started.elapsed() < time {
            for number in 0..self.swarm.machines().len() {
                let status = self.host(number).await?.status;
                let error = status.error;
                ensure!(error.is_none(), "clock {when}: host {number}: {error:?}");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// It was erased when it was enrolled, and written once.
    fn once(&self, number: usize) -> Result<()> {
        let deeds = self.machine(number).deeds();
        let did = [
            deeds.erased,
            deeds.images_begun,
            deeds.images_written,
            deeds.config_drives,
            deeds.enrolled,
            deeds.firmware_boots,
        ];
        ensure!(did == [1; 6], "host {number}: {deeds:?}");
        let doubled = self.swarm.doubled();
        ensure!(doubled.is_empty(), "{doubled:?}");
        Ok(())
    }

    /// All images that were acknowledged are there, and the audit log is whole.
    async fn nothing_lost(&self, kept: &[String]) -> Result<()> {
        for name in kept {
            let path = format!("/v1/images/{name}");
            let (status, _) = self.call(Method::GET, &path, None).await?;
            ensure!(
                status == StatusCode::OK,
                "{name} was acknowledged, and is lost"
            );
        }
        let verified = Command::new(ferrite()?)
            .args(["audit", "verify"])
            .env("FERRITE_CLIENT", self.state.join("client.toml"))
            .output()?;
        let said = String::from_utf8_lossy(&verified.stderr);
        ensure!(verified.status.success(), "ferrite audit verify: {said}");
        Ok(())
    }

    /// Another process with the database open; the lock is there when this returns.
    fn lock(&self, how: &str) -> Result<Locker> {
        let held = self.state.join("held");
        let script = format!(
            "import sqlite3, time\nc = sqlite3.connect({:?}, isolation_level=None, timeout=9)\n\
             c.execute('BEGIN EXCLUSIVE'); open({:?}, 'w').close(); c.execute('ROLLBACK')\n{how}\n",
            self.state.join("ferrite.db").display().to_string(),
            held.display().to_string(),
        );
        let child = Command::new("python3").args(["-c", &script]).spawn();
        let locker = Locker(child.context("starting python3")?);
        let started = Instant::now();
        while !held.exists() {
            ensure!(started.elapsed() < PATIENCE, "nobody locks the database");
            std::thread::sleep(Duration::from_millis(10));
        }
        fs::remove_file(held)?;
        std::thread::sleep(Duration::from_millis(300));
        Ok(locker)
    }

    async fn stop(self) {
        self.swarm.stop().await;
    }
}

fn name_of(image: &Value) -> Result<String> {
    let name = image["metadata"]["name"].as_str();
    Ok(name.context("an image has a name")?.to_owned())
}

/// Somebody else at the database, until this is dropped.
struct Locker(Child);

impl Drop for Locker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A small disk in memory. To mount it one must be root.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn at(path: &Path) -> Result<Self> {
        fs::create_dir(path)?;
        let none: Option<&str> = None;
        mount(none, path, Some("tmpfs"), MsFlags::empty(), Some(ROOM))
            .context("mounting a tmpfs: is this test run as root?")?;
        Ok(Self(path.to_owned()))
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }

    /// Writes until nothing more fits.
    fn fill(&self) -> Result<()> {
        let mut file = File::create(self.filler())?;
        for size in [1 << 16, 1 << 12, 1] {
            while file.write_all(&vec![1; size]).is_ok() {}
        }
        Ok(())
    }

    fn free(&self) -> Result<()> {
        Ok(fs::remove_file(self.filler())?)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}
