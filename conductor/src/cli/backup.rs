//! `ferrite backup`, `restore` and `key rotate`: work on the store, where the conductor runs.
//!
//! A backup may be made while the conductor runs; it reads one state of everything. A restore wants
//! the conductor stopped and the store empty, and reads the whole file before it writes anything.

use std::io::Read;
use std::path::Path;

use anyhow::Context;

use super::print;
use crate::config::Config;
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
    let (store, _) = open(&config).await?;
    let out = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)
        .with_context(|| format!("making {}", file.display()))?;
    let rows = backup::dump(store.pool(), &out).await?;
    out.sync_all()?;
    print(&format!(
        "{}: {rows} rows\nkeep the key apart from it: without the key its secrets are \
                    lost\n",
        file.display()
    ))
}

/// Brings a backup into an empty store.
pub(super) async fn restore(config: &Path, file: &Path) -> anyhow::Result<()> {
    let config = Config::read(config)?;
    let mut bytes = Vec::new();
    std::fs::File::open(file)
        .and_then(|mut file| file.read_to_end(&mut bytes))
        .with_context(|| format!("reading {}", file.display()))?;
    let sealer = serve::sealer(&config.store, false)?;
    let rows = backup::read(&bytes, &sealer)?;
    serve::make_state_dir(&config.state_dir)?;
    let _stopped = serve::lock_state_dir(&config.state_dir)?;
    let count = rows.len();
    let (store, _) = open(&config).await?;
    backup::restore(store.pool(), rows).await?;
    print(&format!("{count} rows restored\n"))
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
