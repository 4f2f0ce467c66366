//! A real `PostgreSQL` for a test: started in a folder of its own, gone with the test.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sqlx::postgres::PgConnectOptions;

/// A server.
pub(crate) struct Server {
    dir: tempfile::TempDir,
    port: u16,
    child: Option<Child>,
}

/// Where Debian puts it, when it is not in the PATH.
fn program(name: &str) -> PathBuf {
    let installed = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten();
    let mut found: Vec<_> = installed
        .filter_map(|entry| Some(entry.ok()?.path().join("bin").join(name)))
        .filter(|path| path.exists())
        .collect();
    found.sort();
    found.pop().unwrap_or_else(|| name.into())
}

/// The server refuses to run as root.
fn as_somebody(command: &mut Command, dir: &Path) {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let users = ["postgres", "nobody"];
    let user = users
        .iter()
        .find_map(|name| nix::unistd::User::from_name(name).unwrap());
    let user = user.expect("there is a user postgres or nobody");
    nix::unistd::chown(dir, Some(user.uid), Some(user.gid)).unwrap();
    command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
}

impl Server {
    /// Makes and starts one.
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut init = Command::new(program("initdb"));
        init.args([
            "-A",
            "trust",
            "-U",
            "ferrite",
            "-E",
            "UTF8",
            "--no-sync",
            "-D",
        ])
        .arg(dir.path().join("data"))
        .current_dir(dir.path());
        as_somebody(&mut init, dir.path());
        let made = init.output().expect("PostgreSQL is installed: make deps");
        assert!(
            made.status.success(),
            "{}",
            String::from_utf8_lossy(&made.stderr)
        );
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let mut server = Self {
            dir,
            port,
            child: None,
        };
        server.launch().await;
        server
    }

    /// Starts it again after [`Self::stop`].
    pub(crate) async fn launch(&mut self) {
        let mut command = Command::new(program("postgres"));
        command
            .arg("-D")
            .arg(self.dir.path().join("data"))
            .arg("-k")
            .arg(self.dir.path())
            .args([
                "-p",
                &self.port.to_string(),
                "-c",
                "listen_addresses=127.0.0.1",
            ])
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(self.dir.path().join("log")).unwrap());
        as_somebody(&mut command, self.dir.path());
        self.child = Some(command.spawn().unwrap());
        let began = Instant::now();
        while let Err(error) = sqlx::PgPool::connect_with(self.options("postgres")).await {
            let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap();
            assert!(began.elapsed() < Duration::from_secs(30), "{error}\n{log}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Stops it as a crash would: at once.
    pub(crate) fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGQUIT).unwrap();
            child.wait().unwrap();
        }
    }

    /// How to reach a database.
    pub(crate) fn options(&self, database: &str) -> PgConnectOptions {
        PgConnectOptions::new()
            .host("127.0.0.1")
            .port(self.port)
            .username("ferrite")
            .database(database)
    }

    /// A database of its own.
    pub(crate) async fn database(&self, name: &str) -> PgConnectOptions {
        let pool = sqlx::PgPool::connect_with(self.options("postgres"))
            .await
            .unwrap();
        let sql = sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"));
        sqlx::raw_sql(sql).execute(&pool).await.unwrap();
        pool.close().await;
        self.options(name)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}
