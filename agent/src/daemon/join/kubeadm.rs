//! One run of kubeadm: its files, its process, its lines, its end.
//!
//! kubeadm writes to half of the system and restarts the kubelet, which the daemon's own unit must
//! not do: systemd runs it as a unit of its own, and this daemon only listens. Its files lie where
//! no disk has them, and go when it ends.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ferrite_proto::join::{self, JoinEnd, JoinMaterial, LINE_CHARS};
use ferrite_proto::secret::Secret;

use super::super::keep;
use super::readiness;
use crate::root::Root;

/// The unit in which kubeadm runs.
const UNIT: &str = "ferrite-join";
/// Lines that are kept while the conductor does not take them.
const KEPT: usize = 1000;
/// How long a program may take to tell its version, or to undo a join.
const PATIENCE: Duration = Duration::from_mins(2);
/// Most bytes that are read of a version.
const VERSION_LIMIT: u64 = 4096;
/// What is put in the place of a token.
const HIDDEN: &str = "[token]";

/// How programs of the OS are run.
#[derive(Debug, Clone)]
pub(super) struct Programs {
    root: Root,
    /// Where the files of an attempt lie.
    folder: PathBuf,
    /// Words in front of a command that changes the system.
    before: Vec<String>,
    /// The command that ends one, if killing it is not enough.
    stop: Vec<String>,
}

impl Programs {
    /// Of the machine itself: under systemd.
    pub(super) fn system() -> Self {
        let words = |line: &str| line.split(' ').map(str::to_owned).collect();
        let run = format!("systemd-run --quiet --wait --pipe --collect --unit={UNIT}");
        Self {
            root: Root::system(),
            folder: PathBuf::from(join::FOLDER),
            before: words(&run),
            stop: words(&format!("systemctl stop {UNIT}.service")),
        }
    }

    /// Of a fixture: as children.
    #[cfg(test)]
    pub(super) fn at(root: &Root) -> Self {
        Self {
            root: root.clone(),
            folder: root.path(join::FOLDER),
            before: Vec::new(),
            stop: Vec::new(),
        }
    }

    /// A program of the image with these words, as a command.
    fn command(&self, name: &str, words: &[&OsStr], changes: bool) -> io::Result<Command> {
        let program = readiness::program(&self.root, name)
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no {name}")))?;
        let mut all: VecDeque<&OsStr> = words.iter().copied().collect();
        all.push_front(program.as_os_str());
        if changes {
            for word in self.before.iter().rev() {
                all.push_front(OsStr::new(word));
            }
        }
        let first = all.pop_front().unwrap_or_default();
        let mut command = Command::new(first);
        command
            .args(all)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Ok(command)
    }

    /// `v1.33.1`, as kubeadm and the kubelet tell.
    pub(super) fn version(&self, name: &str) -> Option<String> {
        let words: &[&str] = match name {
            "kubeadm" => &["version", "-o", "short"],
            _ => &["--version"],
        };
        let words: Vec<_> = words.iter().map(OsStr::new).collect();
        let mut child = self.command(name, &words, false).ok()?.spawn().ok()?;
        let said = child.stdout.take();
        let ended = wait(&mut child, PATIENCE);
        let mut text = String::new();
        said?.take(VERSION_LIMIT).read_to_string(&mut text).ok()?;
        let last = text.split_whitespace().last()?;
        (ended.is_ok() && is_version(last)).then(|| last.to_owned())
    }

    /// Ends whatever an earlier life of this daemon left running.
    pub(super) fn end_unit(&self) {
        let Some((program, words)) = self.stop.split_first() else {
            return;
        };
        let silent = Command::new(program)
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        // A unit that is not there is as good as one that was stopped.
        let stopped = silent.and_then(|mut child| wait(&mut child, PATIENCE));
        if let Err(error) = stopped
            && error.kind() != io::ErrorKind::Other
        {
            tracing::warn!(%error, "{UNIT}.service could not be stopped");
        }
    }

    /// `kubeadm reset`, after an attempt of ours that failed. It touches nothing of a host that
    /// never joined.
    pub(super) fn reset(&self) -> io::Result<()> {
        let words = ["reset", "--force"].map(OsStr::new);
        let mut child = self
            .command("kubeadm", &words, true)?
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        wait(&mut child, PATIENCE)
    }

    /// Starts kubeadm with its files in place.
    pub(super) fn join(&self, material: &JoinMaterial) -> io::Result<Running> {
        self.clear()?;
        let begun = self.put(material).and_then(|configuration| {
            let words: [&OsStr; 4] = [
                OsStr::new("join"),
                OsStr::new("--config"),
                configuration.as_os_str(),
                // Why discovery does not go on is told from here on, and nothing secret is.
                OsStr::new("-v=1"),
            ];
            self.command("kubeadm", &words, true)?.spawn()
        });
        let mut child = match begun {
            Ok(child) => child,
            Err(error) => {
                self.clear()?;
                return Err(error);
            }
        };
        let lines = Arc::new(Mutex::new(Lines::default()));
        let pipes: [Option<Box<dyn Read + Send>>; 2] = [
            child.stdout.take().map(|pipe| Box::new(pipe) as _),
            child.stderr.take().map(|pipe| Box::new(pipe) as _),
        ];
        let listening = pipes.into_iter().flatten().map(|pipe| {
            let (lines, token) = (Arc::clone(&lines), material.token.clone());
            std::thread::spawn(move || listen(pipe, &token, &lines))
        });
        Ok(Running {
            attempt: material.attempt,
            listening: listening.collect(),
            child,
            lines,
            ends_at: Instant::now() + Duration::from_secs(material.deadline_seconds.into()),
            programs: self.clone(),
        })
    }

    fn put(&self, material: &JoinMaterial) -> io::Result<PathBuf> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.folder)?;
        let patches = self.folder.join(join::PATCHES);
        fs::DirBuilder::new().mode(0o700).create(&patches)?;
        for (name, text) in &material.patches {
            let plain = |c: char| c.is_ascii_alphanumeric() || "+.-_".contains(c);
            if name.starts_with('.') || name.is_empty() || !name.chars().all(plain) {
                let what = format!("a patch cannot be called {name:?}");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
            }
            keep::write(&patches.join(name), text.as_bytes(), 0o600)?;
        }
        let configuration = self.folder.join(join::CONFIGURATION);
        let text = material.configuration.expose();
        keep::write(&configuration, text.as_bytes(), 0o600)?;
        Ok(configuration)
    }

    /// Takes the files of an attempt away.
    pub(super) fn clear(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

fn is_version(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "+.-".contains(c);
    text.len() < 64 && text.starts_with('v') && text.chars().all(plain)
}

fn wait(child: &mut Child, patience: Duration) -> io::Result<()> {
    let ends_at = Instant::now() + patience;
    loop {
        match child.try_wait()? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => return Err(io::Error::other(format!("it ended with {status}"))),
            None if Instant::now() >= ends_at => {
                child.kill()?;
                child.wait()?;
                return Err(io::Error::new(io::ErrorKind::TimedOut, "it did not end"));
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Lines that wait to be reported: the newest.
#[derive(Debug, Default)]
struct Lines {
    waiting: VecDeque<String>,
    lost: usize,
}

impl Lines {
    fn push(&mut self, line: String) {
        if self.waiting.len() == KEPT {
            self.waiting.pop_front();
            self.lost += 1;
        }
        self.waiting.push_back(line);
    }

    fn take(&mut self) -> Vec<String> {
        let mut taken = Vec::new();
        if self.lost > 0 {
            taken.push(format!("[{} lines were lost]", self.lost));
            self.lost = 0;
        }
        while taken.len() < join::LINES
            && let Some(line) = self.waiting.pop_front()
        {
            taken.push(line);
        }
        taken
    }
}

fn listen(pipe: Box<dyn Read + Send>, token: &Secret<String>, lines: &Mutex<Lines>) {
    let mut pipe = BufReader::new(pipe);
    loop {
        let mut bytes = Vec::new();
        // A line has no end in sight after so many bytes: what follows is another.
        let limit = 4 * LINE_CHARS as u64;
        match (&mut pipe).take(limit).read_until(b'\n', &mut bytes) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let line = without(&String::from_utf8_lossy(&bytes), token);
        let line: String = line.trim_end().chars().take(LINE_CHARS).collect();
        if !line.is_empty() {
            lines
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(line);
        }
    }
}

/// The line without the token, and without its secret half.
fn without(line: &str, token: &Secret<String>) -> String {
    let whole = token.expose();
    let half = whole.split_once('.').map_or("", |(_, secret)| secret);
    let mut line = line.to_owned();
    for secret in [whole.as_str(), half] {
        if !secret.is_empty() {
            line = line.replace(secret, HIDDEN);
        }
    }
    line
}

/// kubeadm at work.
#[derive(Debug)]
pub(super) struct Running {
    /// Which attempt it is.
    pub(super) attempt: u32,
    child: Child,
    lines: Arc<Mutex<Lines>>,
    listening: Vec<std::thread::JoinHandle<()>>,
    ends_at: Instant,
    programs: Programs,
}

impl Running {
    /// Lines since the last time, and its end once it has ended and every line was taken.
    pub(super) fn news(&mut self) -> (Vec<String>, Option<JoinEnd>) {
        let ended = self.end();
        if ended.is_some() {
            // Its pipes are closed: each listener comes to its end.
            for listener in self.listening.drain(..) {
                let _ = listener.join();
            }
        }
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = lines.take();
        let all = lines.waiting.is_empty();
        (taken, ended.filter(|_| all))
    }

    fn end(&mut self) -> Option<JoinEnd> {
        match self.child.try_wait() {
            Ok(Some(status)) if status.success() => Some(JoinEnd::Succeeded),
            Ok(Some(status)) => Some(JoinEnd::Failed {
                status: status.code(),
            }),
            Ok(None) if Instant::now() < self.ends_at => None,
            Ok(None) => {
                self.stop();
                Some(JoinEnd::Late)
            }
            Err(error) => Some(JoinEnd::NotRun {
                why: error.to_string(),
            }),
        }
    }

    /// Ends it now.
    pub(super) fn stop(&mut self) {
        self.programs.end_unit();
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(error) = self.programs.clear() {
            let folder = Path::display(&self.programs.folder);
            tracing::error!(%error, "the join's files in {folder} could not be removed");
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A root with a kubeadm and a kubelet that are these scripts.
    pub(in crate::daemon::join) fn fixture(kubeadm: &str) -> (tempfile::TempDir, Root) {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::at(folder.path());
        let kubelet = "echo Kubernetes v1.33.0";
        for (name, script) in [("kubeadm", kubeadm), ("kubelet", kubelet)] {
            let path = root.path("/usr/bin").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        }
        (folder, root)
    }

    pub(in crate::daemon::join) fn material() -> JoinMaterial {
        JoinMaterial {
            attempt: 1,
            configuration: Secret::new("token: abcdef.0123456789abcdef\n".into()),
            token: Secret::new("abcdef.0123456789abcdef".into()),
            patches: [("kubeletconfiguration0+merge.yaml".into(), "a: b\n".into())].into(),
            deadline_seconds: 30,
        }
    }

    fn to_the_end(running: &mut Running) -> (Vec<String>, JoinEnd) {
        let mut all = Vec::new();
        for _ in 0..2000 {
            let (lines, end) = running.news();
            all.extend(lines);
            if let Some(end) = end {
                return (all, end);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("it does not end: {all:?}");
    }

    #[test]
    fn kubeadm_finds_its_files_and_no_line_has_the_token() {
        let script = r#"stat -c %a "$3" "${3%/*}"; cat "$3"; cat "${3%/*}"/patches/*
            echo "secret 0123456789abcdef" >&2; printf 'no end'; exit 7"#;
        let (_folder, root) = fixture(script);
        let programs = Programs::at(&root);
        let mut running = programs.join(&material()).unwrap();
        let (mut lines, end) = to_the_end(&mut running);
        lines.sort();
        assert_eq!(
            lines,
            [
                "600",
                "700",
                "a: b",
                "no end",
                "secret [token]",
                "token: [token]"
            ]
        );
        assert_eq!(end, JoinEnd::Failed { status: Some(7) });
        drop(running);
        assert!(!root.path(join::FOLDER).exists(), "nothing is left");
    }

    #[test]
    fn whoever_does_not_end_is_ended() {
        let (_folder, root) = fixture("exec sleep 600");
        let mut material = material();
        material.deadline_seconds = 0;
        let mut running = Programs::at(&root).join(&material).unwrap();
        assert_eq!(to_the_end(&mut running), (Vec::new(), JoinEnd::Late));
    }

    #[test]
    fn a_flood_of_lines_is_cut_and_said_to_be() {
        let (_folder, root) = fixture("seq 1 5000; head -c 100000 /dev/zero | tr '\\0' x");
        let mut running = Programs::at(&root).join(&material()).unwrap();
        running.child.wait().unwrap();
        for listener in running.listening.drain(..) {
            listener.join().unwrap();
        }
        let (lines, end) = to_the_end(&mut running);
        assert_eq!(end, JoinEnd::Succeeded);
        assert_eq!(lines.len(), KEPT + 1);
        assert!(lines[0].ends_with("lines were lost]"), "{}", lines[0]);
        assert!(lines.iter().all(|line| line.len() <= LINE_CHARS));
    }

    #[test]
    fn a_patch_stays_in_its_folder() {
        let (_folder, root) = fixture("true");
        let mut material = material();
        material.patches = [("../../x".into(), String::new())].into();
        let refused = Programs::at(&root).join(&material).unwrap_err();
        assert!(refused.to_string().contains("../../x"), "{refused}");
        assert!(!root.path(join::FOLDER).exists());
    }

    #[test]
    fn versions_are_those_that_the_programs_tell() {
        let (_folder, root) = fixture(r#"[ "$1 $2 $3" = "version -o short" ] && echo v1.33.1"#);
        let programs = Programs::at(&root);
        assert_eq!(programs.version("kubeadm").as_deref(), Some("v1.33.1"));
        assert_eq!(programs.version("kubelet").as_deref(), Some("v1.33.0"));
        let (_folder, root) = fixture("echo nothing; exit 1");
        assert_eq!(Programs::at(&root).version("kubeadm"), None);
    }
}
