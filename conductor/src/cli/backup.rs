//! `ferrite backup`, `restore` and `key rotate`: work on the store, where the conductor runs.
//!
//! A backup may be made while the conductor runs; it reads one state of everything. A restore wants
//! the conductor stopped and the store empty, and reads the whole file before it writes anything.

use std::io::Read;
use std::path::Path;

use anyhow::Context;

use super::print;
use crate::config::{Config, KeySource};
use crate::replicas;
use crate::seal::Sealer;
use crate::serve;
use crate::store::backup;
use crate::store::database::Database;

/// The store that a configuration names, and its keys.
async fn open(config: &Config) -> anyhow::Result<(Database, Sealer)> {
    let sealer = || serve::sealer(&config.store, false);
    Ok((serve::database(config, sealer()?).await?, sealer()?))
}

/// Writes one state of everything into a file that is not there yet.
pub(super) async fn write(config: &Path, file: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let config = Config::read(config)?;
    let (store, sealer) = open(&config).await?;
    // On a server that several share, the identity is in the database.
    let identity = if config.store.url.is_none() {
        let identity = replicas::identity(&config.state_dir)?;
        vec![backup::row_of(&identity, &sealer)?]
    } else {
        Vec::new()
    };
    let out = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)
        .with_context(|| format!("making {}", file.display()))?;
    let dumped = backup::dump(store.pool(), &identity, &out).await;
    let rows = dumped.map_err(anyhow::Error::from).and_then(|rows| {
        out.sync_all()?;
        Ok(rows)
    });
    if rows.is_err() {
        // Half a backup is none, and would be in the way of the next attempt.
        std::fs::remove_file(file).with_context(|| format!("removing {}", file.display()))?;
    }
    print(&format!(
        "{}: {} rows, with the CA and the admin token\nKeep the key apart from it ({}): without \
         the key it cannot be restored.\n",
        file.display(),
        rows?,
        key_place(&config.store.key),
    ))
}

/// Where the key is, for people.
fn key_place(key: &KeySource) -> String {
    match key {
        KeySource::File(path) => path.display().to_string(),
        KeySource::Command(command) => command.join(" "),
    }
}

/// Brings a backup into an empty store.
pub(super) async fn restore(config: &Path, file: &Path) -> anyhow::Result<()> {
    let config = Config::read(config)?;
    let dir = &config.state_dir;
    let mut bytes = Vec::new();
    std::fs::File::open(file)
        .and_then(|mut file| file.read_to_end(&mut bytes))
        .with_context(|| format!("reading {}", file.display()))?;
    let sealer = serve::sealer(&config.store, false)
        .context("put the key that the backup was made under in its place first")?;
    let rows = backup::read(&bytes, &sealer)?;
    serve::make_state_dir(dir)?;
    let _stopped = serve::lock_state_dir(dir)?;
    let count = rows.len();
    let (store, _) = open(&config).await?;
    backup::restore(store.pool(), rows).await?;
    let what = if config.store.url.is_some() || replicas::take_identity(&store, dir).await? {
        "hosts and people find the CA and the admin token that they know"
    } else {
        "it has no CA and no admin token: put tls/ and admin.token of that time into the state \
         folder, or hosts will not trust this conductor"
    };
    print(&format!("{count} rows restored; {what}\n"))
}

/// Seals everything anew under the configured key.
pub(super) async fn rotate(config: &Path) -> anyhow::Result<()> {
    let config = Config::read(config)?;
    let (store, sealer) = open(&config).await?;
    let count = backup::reseal(store.pool(), &sealer).await?;
    print(&format!(
        "{count} secrets are sealed under the present key; store.old_key_files can go\n"
    ))
}
