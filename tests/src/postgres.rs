//! A real `PostgreSQL` for a test: in a folder of its own, on a free port of loopback, crashed and
//! started again or replaced by a second one on demand, gone with the test. Debian's programs are
//! used as they are.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, chown, geteuid};

use crate::swarm::free_port;

/// How long it may take to answer.
const START: Duration = Duration::from_secs(30);

/// A server.
#[derive(Debug)]
pub struct Postgres {
    dir: tempfile::TempDir,
    port: u16,
    /// Its data, within the folder.
    data: &'static str,
    child: Option<Child>,
    follower: Option<Child>,
}

impl Postgres {
    /// Makes one with an empty database `ferrite`, and starts it.
    pub fn start() -> Result<Self> {
        let mut server = Self {
            dir: tempfile::tempdir()?,
            port: free_port()?,
            data: "data",
            child: None,
            follower: None,
        };
        let mut init = server.program("initdb")?;
        init.args(["-A", "trust", "-U", "ferrite", "-E", "UTF8", "-D"])
            .arg(server.dir.path().join("data"));
        finish(init)?;
        server.launch()?;
        let mut create = server.program("createdb")?;
        create.args(server.address("ferrite"));
        finish(create)?;
        Ok(server)
    }

    /// Starts it again after [`Self::crash`], and waits until it answers.
    pub fn launch(&mut self) -> Result<()> {
        self.child = Some(self.serve(self.data, self.port)?);
        let started = Instant::now();
        while self.query_in("postgres", "SELECT 1").is_err() {
            let log = self.dir.path().join(format!("log-{}", self.data));
            ensure!(
                started.elapsed() < START,
                "PostgreSQL does not answer: {}",
                std::fs::read_to_string(log).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Ends it without a goodbye, as a crash would: what was committed is in its log.
    pub fn crash(&mut self) -> Result<()> {
        self.child.take().map_or(Ok(()), end)
    }

    fn serve(&self, data: &str, port: u16) -> Result<Child> {
        let log = File::create(self.dir.path().join(format!("log-{data}")))?;
        let mut command = self.program("postgres")?;
        command
            .arg("-D")
            .arg(self.dir.path().join(data))
            .arg("-k")
            .arg(self.dir.path())
            .args(["-p", &port.to_string()])
            .args(["-c", "listen_addresses=127.0.0.1"])
            .stdout(Stdio::null())
            .stderr(log);
        command.spawn().context("starting PostgreSQL")
    }

    /// Starts a second server that has every commit before it is answered.
    pub fn follow(&mut self) -> Result<()> {
        let name = "follower";
        let from = format!(
            "host=127.0.0.1 port={} user=ferrite application_name={name}",
            self.port
        );
        let mut copy = self.program("pg_basebackup")?;
        copy.args(["-R", "-X", "stream", "-c", "fast", "-d", &from, "-D"])
            .arg(self.dir.path().join(name));
        finish(copy)?;
        self.follower = Some(self.serve(name, free_port()?)?);
        let wait = format!("ALTER SYSTEM SET synchronous_standby_names = '{name}'");
        self.query_in("postgres", &wait)?;
        self.query_in("postgres", "SELECT pg_reload_conf()")?;
        let started = Instant::now();
        let state = "SELECT sync_state FROM pg_stat_replication";
        while self.query_in("postgres", state)? != "sync" {
            ensure!(started.elapsed() < START, "nobody follows");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// The server is lost for good; the one that followed gets its address and takes over.
    pub fn fail_over(&mut self) -> Result<()> {
        self.crash()?;
        let follower = self.follower.take().context("nobody follows")?;
        end(follower)?;
        self.data = "follower";
        self.launch()?;
        self.query_in("postgres", "SELECT pg_promote()")?;
        Ok(())
    }

    /// Where conductors find it.
    pub fn url(&self) -> String {
        format!("postgres://ferrite@127.0.0.1:{}/ferrite", self.port)
    }

    /// What a query gives, a line a row, columns joined by `|`.
    pub fn query(&self, sql: &str) -> Result<String> {
        self.query_in("ferrite", sql)
    }

    fn query_in(&self, database: &str, sql: &str) -> Result<String> {
        let mut psql = self.program("psql")?;
        psql.args(["-At", "-c", sql]).args(self.address(database));
        finish(psql)
    }

    fn address(&self, database: &str) -> Vec<String> {
        let port = self.port.to_string();
        let words = ["-h", "127.0.0.1", "-U", "ferrite", "-p", &port];
        let words = words.map(str::to_owned).into_iter();
        words.chain([database.to_owned()]).collect()
    }

    /// One of its programs, as somebody who is not root: the server refuses to be.
    fn program(&self, name: &str) -> Result<Command> {
        let mut command = Command::new(find(name));
        command.current_dir(self.dir.path()).stdin(Stdio::null());
        if geteuid().is_root() {
            let user = ["postgres", "nobody"].iter();
            let mut users = user.filter_map(|name| User::from_name(name).ok().flatten());
            let user = users.next().context("no user postgres or nobody")?;
            chown(self.dir.path(), Some(user.uid), Some(user.gid))?;
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        Ok(command)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let ended = self.follower.take().map_or(Ok(()), end);
        if let Err(error) = self.crash().and(ended) {
            tracing::warn!(%error, "PostgreSQL is not ended");
        }
    }
}

fn end(mut child: Child) -> Result<()> {
    kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGQUIT)?;
    child.wait()?;
    Ok(())
}

/// Debian puts them beside the PATH, by version.
fn find(name: &str) -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten();
    let mut found: Vec<_> = versions
        .filter_map(|version| Some(version.ok()?.path().join("bin").join(name)))
        .filter(|path| path.exists())
        .collect();
    found.sort();
    found.pop().unwrap_or_else(|| Path::new(name).to_owned())
}

fn finish(mut command: Command) -> Result<String> {
    let what = format!("running {}", command.get_program().display());
    let output = command.output().with_context(|| what.clone())?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{what}: {said}");
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
