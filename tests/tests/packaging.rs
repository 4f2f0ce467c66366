//! The service as it is packaged: the unit is sound and tight, and a conductor works with what the
//! unit leaves it: a user of its own, a system that it cannot write, two capabilities, no way to
//! more privileges. The filter of system calls needs systemd and is not tested here.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const UNIT: &str = include_str!("../../packaging/ferrite.service");
const NOBODY: u32 = 65534;
/// systemd's exposure level, from 0 (none) to 10; the unit's own is 1.7.
const EXPOSURE: f64 = 2.0;

fn ferrite() -> PathBuf {
    ferrite_tests::swarm::ferrite().expect("`make build` makes it")
}

fn analyze(args: &[&str], unit: &Path) -> String {
    let output = Command::new("systemd-analyze")
        .args(args)
        .arg(unit)
        .output();
    let output = output.expect("Debian's package systemd has it");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = said + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    said
}

#[test]
fn the_unit_is_sound_and_tight() {
    let dir = tempfile::tempdir().unwrap();
    let unit = dir.path().join("ferrite.service");
    let program = ferrite().display().to_string();
    fs::write(&unit, UNIT.replace("/usr/bin/ferrite", &program)).unwrap();
    let said = analyze(&["verify"], &unit);
    assert!(!said.contains("ferrite.service:"), "{said}");
    let said = analyze(&["security", "--offline=true"], &unit);
    let line = said
        .lines()
        .find(|line| line.contains("exposure level"))
        .unwrap();
    println!("{line}");
    let level = line
        .rsplit(": ")
        .next()
        .and_then(|rest| rest.split(' ').next());
    assert!(level.unwrap().parse::<f64>().unwrap() <= EXPOSURE, "{said}");
}

/// Starts the conductor as the unit does, as far as it can be done without systemd. In a thread,
/// because a mount namespace of the whole process would be that of other tests, too.
fn start(dir: &Path, config: &Path, notify: &Path) -> Child {
    let (dir, config, notify) = (dir.to_owned(), config.to_owned(), notify.to_owned());
    let started = std::thread::spawn(move || {
        let apart = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS;
        unshare(apart).expect("root may");
        let none = None::<&str>;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(none, "/", none, private, none).expect("root may");
        mount(Some(&dir), &dir, none, MsFlags::MS_BIND, none).expect("root may");
        let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
        mount(none, "/", none, read_only, none).expect("root may");
        assert!(fs::write("/ferrite-was-here", "x").is_err());
        let two = "+net_bind_service,+net_raw";
        Command::new("setpriv")
            .args(["--no-new-privs", "--clear-groups"])
            .args(["--reuid", "65534", "--regid", "65534"])
            .arg(format!("--inh-caps=-all,{two}"))
            .arg(format!("--ambient-caps=-all,{two}"))
            .arg(format!("--bounding-set=-all,{two}"))
            .arg(ferrite())
            .args(["serve", "--config"])
            .arg(config)
            .env("NOTIFY_SOCKET", notify)
            .env("WATCHDOG_USEC", "400000")
            .spawn()
            .expect("util-linux is there")
    });
    started.join().expect("the thread does not panic")
}

fn heard(socket: &UnixDatagram, wanted: &str) {
    let mut buffer = [0; 256];
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(30) {
        if let Ok(length) = socket.recv(&mut buffer)
            && String::from_utf8_lossy(&buffer[..length]).contains(wanted)
        {
            return;
        }
    }
    panic!("{wanted} was not heard");
}

#[test]
fn a_conductor_works_with_what_the_unit_leaves_it() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "run as root, as the rest of the lab"
    );
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    fs::create_dir(&state).unwrap();
    for path in [dir.path(), &state] {
        std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let config = dir.path().join("ferrite.toml");
    fs::write(
        &config,
        format!("state_dir = {state:?}\nlisten = \"{port}\"\n"),
    )
    .unwrap();
    let notify = dir.path().join("notify");
    let socket = UnixDatagram::bind(&notify).unwrap();
    std::os::unix::fs::chown(&notify, Some(NOBODY), Some(NOBODY)).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    let mut child = start(dir.path(), &config, &notify);
    heard(&socket, "READY=1");
    heard(&socket, "WATCHDOG=1");
    let list = Command::new(ferrite())
        .args(["host", "list"])
        .env("FERRITE_CLIENT", state.join("client.toml"))
        .output()
        .unwrap();
    assert!(
        list.status.success(),
        "{}",
        String::from_utf8_lossy(&list.stderr)
    );
    let pid = Pid::from_raw(child.id().cast_signed());
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    for line in ["NoNewPrivs:\t1", "CapBnd:\t0000000000002400", "Uid:\t65534"] {
        assert!(status.contains(line), "{status}");
    }
    kill(pid, Signal::SIGTERM).unwrap();
    heard(&socket, "STOPPING=1");
    assert!(child.wait().unwrap().success());
}
