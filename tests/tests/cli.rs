//! The command line as people use it, against a real conductor: manifests, bulk import, waiting,
//! editing, and the exit codes that scripts stand on.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Instant;

use ferrite_tests::swarm::{Served, ferrite};

/// Where a conductor serves and its client file is.
struct Site {
    served: Served,
    dir: tempfile::TempDir,
}

impl Site {
    async fn start() -> Self {
        let dir = tempfile::tempdir().expect("/tmp can be written");
        let binary = ferrite().expect("`make build` makes it");
        let served = Served::start(&binary, dir.path(), "").await;
        let served = served.expect("a conductor starts on a folder of its own");
        Self { served, dir }
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).expect("the folder is ours");
        path
    }

    fn run(&self, line: &str) -> Output {
        run(self.dir.path(), "client.toml", line)
    }

    /// What it prints, when it ends as it should.
    fn says(&self, line: &str, code: i32) -> String {
        let output = self.run(line);
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{line}\n{out}{err}");
        out + &err
    }
}

fn run(dir: &Path, client: &str, line: &str) -> Output {
    let args = line.split(' ');
    Command::new(ferrite().expect("`make build` makes it"))
        .args(args)
        .current_dir(dir)
        .env("FERRITE_CLIENT", dir.join("state").join(client))
        .env("FERRITE_CONFIG", dir.join("config.toml"))
        .env("EDITOR", "sed -i s/rack:.r1/rack:\\ r2/")
        .env_remove("VISUAL")
        .output()
        .expect("it can be started")
}

const HOST: &str = "\
apiVersion: ferrite/v1
kind: Host
metadata:
  name: a
  labels: {rack: r1}
spec:
  bmc:
    address: redfish+http://127.0.0.1:1
    username: root
  boot_mac: 52:54:00:00:00:01
secrets:
  bmc_password: {valueFrom: {file: pw}}
";

#[tokio::test]
async fn a_manifest_is_applied_compared_edited_and_deleted() {
    let site = Site::start().await;
    site.write("pw", "hunter2\n");
    site.write("a.yaml", HOST);
    assert!(site.says("diff -f a.yaml", 1).contains("+  boot_mac: "));
    let tried = site.says("apply -f a.yaml --dry-run=server", 0);
    assert_eq!(tried, "host/a created (dry run)\n");
    assert!(site.says("get host/a", 4).contains("[host-not-found]"));
    assert_eq!(site.says("apply -f a.yaml", 0), "host/a created\n");
    assert_eq!(site.says("apply -f a.yaml", 0), "host/a unchanged\n");
    assert_eq!(site.says("diff -f a.yaml", 0), "");

    assert_eq!(site.says("get hosts -l rack=r1 -o name", 0), "host/a\n");
    assert_eq!(site.says("get hosts -l rack=r9", 0), "no hosts\n");
    let shown = site.says("describe host/a", 0);
    assert!(shown.contains("Label:        rack=r1"), "{shown}");

    assert_eq!(site.says("edit host/a", 0), "host/a edited\n");
    assert_eq!(site.says("get hosts -l rack=r2 -o name", 0), "host/a\n");
    let told = site.says("diff -f a.yaml", 1);
    assert!(told.contains("-    rack: r2\n+    rack: r1\n"), "{told}");

    let told = site.says("wait --for=state=available --timeout 1s host/a", 1);
    assert!(
        told.contains("error: host/a was not in time: registering"),
        "{told}"
    );
    assert_eq!(
        site.says("wait --for=status.state=registering host/a", 0),
        "host/a condition met\n"
    );
    site.write("b.yaml", &HOST.replace("boot_mac", "bot_mac"));
    let told = site.says("apply -f b.yaml", 2);
    assert!(
        told.contains("b.yaml:10:3: unknown field `bot_mac`, did you mean `boot_mac`?"),
        "{told}"
    );
    site.says("delete host/a --wait", 0);
    site.says("delete host/a", 4);
    site.says("delete host/a --ignore-not-found", 0);

    site.says("--client state/client.toml context set site", 0);
    assert!(
        site.says("context list", 0)
            .contains("*  site  https://127.0.0.1:")
    );
    site.served.kill().unwrap();
    assert!(
        site.says("get hosts", 3)
            .contains("[conductor-unreachable]")
    );
}

#[tokio::test]
async fn a_thousand_hosts_are_imported_and_again_nothing_changes() {
    let site = Site::start().await;
    let mut csv = "name,bmc_address,username,password,boot_mac,label.rack\n".to_owned();
    for n in 0..1000 {
        let (a, b) = (n / 256, n % 256);
        writeln!(
            csv,
            "n{n},redfish+http://127.1.{a}.{b}:1,root,p,52:54:00:00:{a:02x}:{b:02x},r{}",
            n / 40
        )
        .unwrap();
    }
    site.write("h.csv", &format!("{csv}BAD,redfish://x,root,p,,\n"));
    let told = site.says("host import h.csv", 2);
    assert!(told.contains("h.csv:1002: host/BAD"), "{told}");
    assert_eq!(site.says("get hosts", 0), "no hosts\n");
    site.write("h.csv", &csv);
    for (line, told) in [
        (
            "host import h.csv --dry-run",
            "1000 hosts can be imported (dry run)\n",
        ),
        (
            "host import h.csv",
            "1000 hosts: 1000 created, 0 configured, 0 unchanged\n",
        ),
        (
            "host import h.csv",
            "1000 hosts: 0 created, 0 configured, 1000 unchanged\n",
        ),
    ] {
        let begun = Instant::now();
        assert_eq!(site.says(line, 0), told);
        println!("{line}: {:.1} s", begun.elapsed().as_secs_f64());
    }
    let names = site.says("get hosts -o name", 0);
    assert_eq!(names.lines().count(), 1000);
}

#[tokio::test]
async fn a_shell_completes_names_quickly_and_silently() {
    let site = Site::start().await;
    site.write("pw", "hunter2\n");
    site.write("a.yaml", &HOST.replace("name: a", "name: alpha"));
    site.says("apply -f a.yaml", 0);
    let complete = |words: &[&str]| {
        let output = Command::new(ferrite().unwrap())
            .env("COMPLETE", "fish")
            .env("FERRITE_CLIENT", site.dir.path().join("state/client.toml"))
            .env("FERRITE_CONFIG", site.dir.path().join("config.toml"))
            .arg("--")
            .args(words)
            .output()
            .unwrap();
        assert!(output.stderr.is_empty());
        String::from_utf8(output.stdout).unwrap()
    };
    let begun = Instant::now();
    assert!(complete(&["ferrite", "get", "host/al"]).contains("host/alpha"));
    println!("a completion: {:.3} s", begun.elapsed().as_secs_f64());
    assert!(complete(&["ferrite", "host", "show", "a"]).contains("alpha"));
    site.served.kill().unwrap();
    let begun = Instant::now();
    assert_eq!(complete(&["ferrite", "get", "host/al"]).trim(), "");
    println!(
        "without a conductor: {:.3} s",
        begun.elapsed().as_secs_f64()
    );
}
