//! `rescue`: a person may log in over SSH, with a password that is made for this one rescue.
//!
//! The programs come with the rescue ramdisk; on any other the step is refused. The agent stays in
//! touch meanwhile, and leaving is a reboot like any other: nothing of this outlives the ramdisk.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ferrite_proto::problem::{Code, Problem};
use ferrite_proto::step::Outcome;
use nix::mount::MsFlags;

use super::Context;
use crate::inspect;
use crate::kernel::Mount;
use crate::listeners;
use crate::ramdisk::modules::Modules;
use crate::root::Root;

const SERVER: &str = "/usr/sbin/dropbear";
const KEY_TOOL: &str = "/usr/bin/dropbearkey";
const HOST_KEY: &str = "/etc/dropbear/dropbear_ed25519_host_key";
const PORT: u16 = 22;
/// What disks of hosts are made with.
const DRIVERS: &[&str] = &[
    "ext4",
    "xfs",
    "btrfs",
    "nls_cp437",
    "nls_ascii",
    "nls_iso8859_1",
    "nls_utf8",
    "vfat",
    "isofs",
    "loop",
    "md_mod",
    "raid0",
    "raid1",
    "raid10",
    "dm_mod",
];
/// How long the server may take until it listens.
const PATIENCE: Duration = Duration::from_secs(10);
/// Public keys that are taken, and how long one may be.
const MOST_KEYS: usize = 32;
const LONGEST_KEY: usize = 16 << 10;

/// Lets root log in, and starts the server unless it runs already.
pub(crate) fn run(
    password_hash: &str,
    authorized_keys: &[String],
    context: &Context<'_>,
) -> Result<Outcome, Problem> {
    let root = context.root;
    if !root.path(SERVER).is_file() {
        return Err(Problem::new(
            Code::RescueAbsent,
            format!("this ramdisk has no {SERVER}: it is not the one for rescue"),
            "build the boot files with rescue (`ferrite-image ramdisk`), start the conductor \
             again, and ask for the rescue again",
        ));
    }
    check(password_hash, authorized_keys)?;
    let failed = |what: &str, error: &io::Error| {
        let text = format!("the rescue cannot be set up: {what}: {error}");
        Problem::new(Code::RescueFailed, text, "ask for the rescue again")
    };
    accounts(root, password_hash, authorized_keys).map_err(|e| failed("accounts", &e))?;
    terminals(context).map_err(|e| failed("terminals", &e))?;
    file_systems(context);
    let host_keys = host_key().map_err(|e| failed("host key", &e))?;
    if !listeners::on(root, PORT) {
        serve(root).map_err(|e| failed(SERVER, &e))?;
    }
    let nics = inspect::inspect(root).nics;
    Ok(Outcome::RescueReady {
        addresses: nics.into_iter().flat_map(|nic| nic.addresses).collect(),
        host_keys,
    })
}

/// What goes into files with a line for each thing must be one line.
fn check(password_hash: &str, authorized_keys: &[String]) -> Result<(), Problem> {
    let hash = |c: char| c.is_ascii_alphanumeric() || "$./=,-".contains(c);
    let hash_fits = password_hash.starts_with('$')
        && password_hash.len() <= 256
        && password_hash.chars().all(hash);
    let key_fits = |key: &String| key.len() <= LONGEST_KEY && !key.contains(char::is_control);
    if hash_fits && authorized_keys.len() <= MOST_KEYS && authorized_keys.iter().all(key_fits) {
        return Ok(());
    }
    Err(Problem::new(
        Code::RequestInvalid,
        "the password's hash or a public key cannot stand in a file of accounts",
        "give public keys as they stand in authorized_keys, one a line, at most 32",
    ))
}

fn accounts(root: &Root, password_hash: &str, authorized_keys: &[String]) -> io::Result<()> {
    fs::create_dir_all(root.path("/etc"))?;
    write(root, "/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")?;
    write(root, "/etc/group", "root:x:0:\n")?;
    write(root, "/etc/shells", "/bin/sh\n")?;
    write(
        root,
        "/etc/shadow",
        &format!("root:{password_hash}:20000:0:99999:7:::\n"),
    )?;
    let mut folder = fs::DirBuilder::new();
    folder.recursive(true).mode(0o700);
    folder.create(root.path("/root/.ssh"))?;
    let mut keys = authorized_keys.join("\n");
    keys.push('\n');
    write(root, "/root/.ssh/authorized_keys", &keys)
}

/// Whole, and for root alone.
fn write(root: &Root, path: &str, text: &str) -> io::Result<()> {
    let path = root.path(path);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())
}

/// Whoever mounts a disk should not have to know that the kernel cannot ask for drivers here.
fn file_systems(context: &Context<'_>) {
    match Modules::open(context.root, context.kernel) {
        Ok(modules) => DRIVERS.iter().for_each(|name| modules.load(name)),
        Err(error) => tracing::warn!(%error, "no drivers of file systems are loaded"),
    }
}

/// A login needs a terminal of its own.
fn terminals(context: &Context<'_>) -> io::Result<()> {
    let target = context.root.path("/dev/pts");
    if target.join("ptmx").exists() {
        return Ok(());
    }
    fs::create_dir_all(&target)?;
    context.kernel.mount(&Mount {
        source: Path::new("devpts"),
        target: &target,
        kind: "devpts",
        flags: MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
        data: "mode=0620,ptmxmode=0666",
    })
}

/// Makes the host key of this boot; its fingerprint, as `ssh` shows it.
fn host_key() -> io::Result<Vec<String>> {
    let mut tool = Command::new(KEY_TOOL);
    if Path::new(HOST_KEY).exists() {
        tool.args(["-y", "-f", HOST_KEY]);
    } else {
        tool.args(["-t", "ed25519", "-f", HOST_KEY]);
    }
    let made = tool.stdin(Stdio::null()).output()?;
    if !made.status.success() {
        let said = String::from_utf8_lossy(&made.stderr);
        return Err(io::Error::other(format!("{KEY_TOOL}: {}", said.trim())));
    }
    Ok(fingerprints(&String::from_utf8_lossy(&made.stdout)))
}

fn fingerprints(said: &str) -> Vec<String> {
    let lines = said.lines();
    lines
        .filter_map(|line| line.strip_prefix("Fingerprint: "))
        .map(|print| print.trim().to_owned())
        .collect()
}

fn serve(root: &Root) -> io::Result<()> {
    let port = PORT.to_string();
    // In the foreground, so that what it says goes to the consoles, where the agent's words go.
    let mut server = Command::new(SERVER)
        .args(["-F", "-E", "-m", "-p", &port, "-r", HOST_KEY])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()?;
    let started = Instant::now();
    while !listeners::on(root, PORT) {
        if let Some(status) = server.try_wait()? {
            return Err(io::Error::other(format!("it ended with {status}")));
        }
        if started.elapsed() > PATIENCE {
            let _ = server.kill();
            return Err(io::Error::other(format!(
                "port {PORT} is closed after {PATIENCE:?}"
            )));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    // It outlives this step, and the worker: PID 1 reaps it.
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Kernel;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::atomic::AtomicBool;

    #[derive(Debug)]
    struct Nothing;
    impl Kernel for Nothing {}

    #[test]
    fn an_ordinary_ramdisk_refuses() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::at(folder.path());
        let context = Context {
            root: &root,
            kernel: &Nothing,
            progress: &|_| {},
            cancelled: &AtomicBool::new(false),
        };
        let refused = run("$6$salt$hash", &[], &context).unwrap_err();
        assert_eq!(refused.code, Code::RescueAbsent);
        assert!(!folder.path().join("etc/shadow").exists());
    }

    #[test]
    fn the_hash_and_the_keys_are_roots_alone() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::at(folder.path());
        let keys = ["ssh-ed25519 AAAA me".to_owned(), "ssh-rsa BBBB".to_owned()];
        accounts(&root, "$6$salt$hash", &keys).unwrap();
        let read = |path: &str| fs::read_to_string(root.path(path)).unwrap();
        assert_eq!(
            read("/etc/shadow"),
            "root:$6$salt$hash:20000:0:99999:7:::\n"
        );
        assert_eq!(
            read("/root/.ssh/authorized_keys"),
            "ssh-ed25519 AAAA me\nssh-rsa BBBB\n"
        );
        for path in ["/etc/shadow", "/root/.ssh/authorized_keys"] {
            let mode = fs::metadata(root.path(path)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{path}");
        }
    }

    #[test]
    fn what_would_be_another_line_is_refused() {
        assert!(check("$6$a$b", &["ssh-rsa A c".into()]).is_ok());
        assert!(check("", &[]).is_err());
        assert!(check("$6$a:0:0\nx::0:0", &[]).is_err());
        assert!(check("$6$a$b", &["a\nb".into()]).is_err());
        assert!(check("$6$a$b", &vec!["k".to_owned(); 33]).is_err());
    }

    #[test]
    fn fingerprints_are_read_from_what_the_tool_says() {
        let said = "Public key portion is:\nssh-ed25519 AAAA root@x\nFingerprint: SHA256:abc\n";
        assert_eq!(fingerprints(said), ["SHA256:abc"]);
    }
}
