//! What people do with a store at three in the morning, with the program itself: a backup while
//! the conductor serves and is written to, a restore into a new place (also into another kind of
//! database), a new key for the secrets, a support bundle.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferrite_proto::host::{HostManifest, HostSecrets, HostSpec};
use ferrite_proto::secret::Secret;
use ferrite_tests::postgres::Postgres;
use ferrite_tests::swarm::{Operator, Served, ferrite};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::Notify;

const PASSWORD: &str = "a password of a BMC";

/// A place for a conductor: its folder, and what its configuration says beside the usual.
struct Place {
    dir: tempfile::TempDir,
    store: String,
}

impl Place {
    fn new(store: &str) -> Result<Self> {
        Ok(Self {
            dir: tempfile::tempdir()?,
            store: store.to_owned(),
        })
    }

    fn state(&self, file: &str) -> PathBuf {
        self.dir.path().join("state").join(file)
    }

    fn key(&self) -> PathBuf {
        self.state("secrets.key")
    }

    /// The key of a place, before there is anything else.
    fn put_key(&self, key: &[u8]) -> Result<()> {
        std::fs::create_dir_all(self.state(""))?;
        Ok(std::fs::write(self.key(), key)?)
    }

    async fn serve(&self) -> Result<Served> {
        Served::start(&ferrite()?, self.dir.path(), &self.store).await
    }

    /// A command about the store, with a configuration as the conductor's.
    fn run(&self, command: &str, file: Option<&Path>) -> Result<Output> {
        let config = self.dir.path().join("store.toml");
        let state = self.state("").display().to_string();
        let text = format!("state_dir = {state:?}\nurl = \"https://c\"\n{}", self.store);
        std::fs::write(&config, text)?;
        let output = Command::new(ferrite()?)
            .args(command.split(' '))
            .args(file)
            .arg("--config")
            .arg(config)
            .output()?;
        Ok(output)
    }

    fn does(&self, command: &str, file: Option<&Path>) -> Result<String> {
        let output = self.run(command, file)?;
        ensure!(output.status.success(), "{command}: {output:?}");
        Ok(String::from_utf8(output.stdout)?)
    }

    fn refuses(&self, command: &str, file: &Path, why: &str) -> Result<()> {
        let output = self.run(command, Some(file))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success(), "{command} succeeded");
        ensure!(said.contains(why), "{command}: no {why:?} in {said}");
        Ok(())
    }
}

fn say(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{line}");
}

async fn add(operator: &Operator, number: usize) -> Result<()> {
    let spec: HostSpec = serde_json::from_value(json!({
        "bmc": {
            "address": format!("redfish+http://127.0.0.1:1/redfish/v1/Systems/{number}"),
            "username": "root",
        },
        "boot_mac": format!("52:54:00:00:{:02x}:{:02x}", number >> 8, number & 255),
    }))?;
    let secrets = HostSecrets {
        bmc_password: Some(Secret::new(PASSWORD.to_owned())),
        ..HostSecrets::default()
    };
    let host = HostManifest::new(format!("n{number}"), spec, secrets);
    let host = serde_json::to_value(host)?;
    operator
        .call(Method::POST, "/v1/hosts", Some(&host))
        .await?;
    Ok(())
}

/// Names of all hosts.
async fn names(operator: &Operator) -> Result<Vec<String>> {
    let all = operator
        .call(Method::GET, "/v1/hosts?limit=1000", None)
        .await?;
    let all = all["items"].as_array().context("items")?;
    let name = |host: &Value| host["metadata"]["name"].as_str().map(str::to_owned);
    all.iter()
        .map(|host| name(host).context("a name"))
        .collect()
}

/// Makes a backup while hosts are added; gives how many were there for certain, and how many then.
async fn backup_under_writes(
    place: &Place,
    served: &Served,
    file: &Path,
) -> Result<(usize, usize)> {
    let operator = served.operator()?;
    let added = Mutex::new(0);
    let (told, stop) = (Notify::new(), AtomicBool::new(false));
    let adding = async {
        for number in 0.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            add(&operator, number).await?;
            *added.lock().unwrap_or_else(PoisonError::into_inner) = number + 1;
            if number == 30 {
                told.notify_one();
            }
        }
        anyhow::Ok(())
    };
    let backing = async {
        told.notified().await;
        let sure = *added.lock().unwrap_or_else(PoisonError::into_inner);
        let said = tokio::task::block_in_place(|| place.does("backup", Some(file)));
        // A few more, so that the backup is of a state in the middle.
        tokio::time::sleep(Duration::from_millis(300)).await;
        stop.store(true, Ordering::Relaxed);
        anyhow::Ok((sure, said?))
    };
    let ((), (sure, said)) = tokio::try_join!(adding, backing)?;
    ensure!(said.contains("without the key"), "{said}");
    let all = *added.lock().unwrap_or_else(PoisonError::into_inner);
    Ok((sure, all))
}

/// People with the files of the first place find all hosts at another one, and can add one.
async fn is_the_same(
    first: &Place,
    served: &Served,
    (sure, all): (usize, usize),
    new: usize,
) -> Result<()> {
    let (token, ca) = (first.state("admin.token"), first.state("ca.pem"));
    let operator = Operator::new(&served.url, &token, &ca)?;
    let names = names(&operator).await?;
    ensure!(
        (sure..=all).contains(&names.len()),
        "{} of {sure} to {all}",
        names.len()
    );
    for number in 0..sure {
        let name = format!("n{number}");
        ensure!(names.contains(&name), "{name} is lost");
    }
    // It is written to, too: numbers of lines and revisions go on.
    add(&operator, new).await?;
    let verified = operator.call(Method::GET, "/v1/audit?limit=1", None).await;
    verified.context("the audit log")?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_under_writes_is_restored_elsewhere_and_the_key_changes() -> Result<()> {
    let first = Place::new("")?;
    let served = first.serve().await?;
    let file = first.dir.path().join("backup");
    let (sure, all) = backup_under_writes(&first, &served, &file).await?;
    say(&format!("a backup with {sure} to {all} hosts"));
    let text = std::fs::read_to_string(&file)?;
    let token = std::fs::read_to_string(first.state("admin.token"))?;
    ensure!(!text.contains(PASSWORD) && !text.contains(token.trim()));
    first.refuses("backup", &file, "exists")?;
    first.refuses("restore", &file, "another conductor is running")?;
    drop(served);
    first.refuses("restore", &file, "not empty")?;

    let second = Place::new("")?;
    second.refuses("restore", &file, "put the key")?;
    second.put_key(&[7; 32])?;
    second.refuses("restore", &file, "another key")?;
    std::fs::copy(first.key(), second.key())?;
    second.does("restore", Some(&file))?;
    second.refuses("restore", &file, "not empty")?;
    let served = second.serve().await?;
    is_the_same(&first, &served, (sure, all), 5000).await?;
    drop(served);
    new_key(second, &first, (sure, all + 1)).await
}

/// The key is changed as the documentation says.
async fn new_key(mut place: Place, first: &Place, hosts: (usize, usize)) -> Result<()> {
    let old = place.dir.path().join("old.key");
    std::fs::rename(place.key(), &old)?;
    place.put_key(&[8; 32])?;
    place.store = format!(
        "[store]\nold_key_files = [{:?}]\n",
        old.display().to_string()
    );
    let served = place.serve().await?;
    let said = place.does("key rotate", None)?;
    let sealed: usize = said.split(' ').next().unwrap_or_default().parse()?;
    ensure!(sealed > hosts.0, "only {said}");
    drop(served);
    place.store = String::new();
    let served = place.serve().await?;
    is_the_same(first, &served, hosts, 5001).await?;
    let file = place.dir.path().join("later");
    place.does("backup", Some(&file))?;
    drop(served);
    // The old key opens nothing of it, the new one everything.
    let third = Place::new("")?;
    third.put_key(&std::fs::read(&old)?)?;
    third.refuses("restore", &file, "another key")?;
    third.put_key(&[8; 32])?;
    third.does("restore", Some(&file))?;
    std::fs::copy(&old, place.key())?;
    let failed = place.serve().await.err().context("the old key was taken")?;
    ensure!(format!("{failed:#}").contains("ended"), "{failed:#}");
    let log = std::fs::read_to_string(place.dir.path().join("log"))?;
    ensure!(log.contains("sealed under another key"), "{log}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_moves_to_postgresql_and_back() -> Result<()> {
    let first = Place::new("")?;
    let served = first.serve().await?;
    let operator = served.operator()?;
    for number in 0..5 {
        add(&operator, number).await?;
    }
    let file = first.dir.path().join("backup");
    first.does("backup", Some(&file))?;
    drop(served);

    let database = Postgres::start()?;
    let store = format!("[store]\nurl = \"{}\"\n", database.url());
    let second = Place::new(&store)?;
    second.put_key(&std::fs::read(first.key())?)?;
    second.does("restore", Some(&file))?;
    let served = second.serve().await?;
    is_the_same(&first, &served, (5, 5), 5000).await?;
    let back = second.dir.path().join("back");
    second.does("backup", Some(&back))?;
    drop(served);

    let third = Place::new("")?;
    third.put_key(&std::fs::read(first.key())?)?;
    third.does("restore", Some(&back))?;
    let served = third.serve().await?;
    let operator = Operator::new(
        &served.url,
        &first.state("admin.token"),
        &first.state("ca.pem"),
    )?;
    ensure!(names(&operator).await?.len() == 6);
    Ok(())
}
