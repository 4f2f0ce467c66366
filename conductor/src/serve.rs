//! Starts everything, joins everything, stops everything.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::middleware;
use ferrite_proto::problem::Code;
use sd_notify::NotifyState;
use sqlx::PgPool;
use sqlx::postgres::PgConnectOptions;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::access::oidc::Oidc;
use crate::access::peer::Introduced;
use crate::access::refusals::Refusals;
use crate::access::registry::{FIRST_ADMIN, PREFIX};
use crate::actor::Actor;
use crate::api::limits::{self, Limiter};
use crate::api::{self, App};
use crate::boots::{Boots, Sighting};
use crate::cluster::Clusters;
use crate::config::{Config, LogConfig, LogFormat, StoreConfig};
use crate::crash::{self, Moment, Work};
use crate::documents::Documents;
use crate::hosts::Hosts;
use crate::images::{self, Images};
use crate::lifecycle::driver::Driver;
use crate::lifecycle::execute::{IsoUrl, World};
use crate::lifecycle::order::Reach;
use crate::listen::Bounds;
use crate::netboot::Netboot;
use crate::ownership::Ownership;
use crate::replicas::{self, Replica};
use crate::seal::Sealer;
use crate::seeing::gather::Place;
use crate::seeing::logs::OwnLines;
use crate::seeing::outlets;
use crate::store::StoreError;
use crate::store::database::Database;
use crate::store::leases::InDatabase;
use crate::store::sql::Pool;
use crate::{bmc, image_servers, listen, netboot, rolling, systemd, tls, token};

/// Between looks at the certificate.
const RENEWAL: Duration = Duration::from_hours(24);
/// Between two looks whether the database serves again.
const DATABASE_PAUSE: Duration = Duration::from_secs(1);
/// Between removals of what has expired.
const SWEEP: Duration = Duration::from_mins(1);
/// How long nothing of an answer may be taken.
const STALL: Duration = Duration::from_secs(20);
/// How long open calls have to end at a stop.
const GRACE: Duration = Duration::from_secs(5);

/// Sets up logs, on standard error; the last lines are kept in memory, too.
pub(crate) fn start_logs(log: &LogConfig) -> anyhow::Result<OwnLines> {
    use tracing_subscriber::prelude::*;
    use tracing_subscriber::{EnvFilter, fmt};
    let filter = EnvFilter::try_from_default_env()
        .or_else(|_| EnvFilter::try_new(&log.filter))
        .context("log.filter cannot be used")?;
    let own = OwnLines::default();
    let kept = fmt::layer().json().with_writer(own.clone());
    let shown = fmt::layer()
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    let shown = match log.format {
        LogFormat::Text => shown.boxed(),
        LogFormat::Json => shown.json().boxed(),
    };
    let logs = tracing_subscriber::registry().with(filter);
    logs.with(shown).with(kept).init();
    Ok(own)
}

/// Runs until it is told to stop by SIGTERM or SIGINT.
pub(crate) async fn run(config: Config, own_lines: OwnLines) -> anyhow::Result<()> {
    let dir = &config.state_dir;
    make_state_dir(dir)?;
    let _ours_alone = lock_state_dir(dir)?;
    // Before anything is done to any host: a start that fails must have done nothing.
    let listening = listen_on(&config)?;
    let store = Arc::new(patiently(&config, || open_store(&config)).await?);
    let identity = tls::load_or_create(&dir.join("tls"), &config.names)?;
    let admin_sha256 = client_files(&config, &identity.ca_pem)?;
    let reach = reach(&config, &identity)?;
    let images = Arc::new(Images::open(&config.images, Arc::clone(&reach.servers))?);
    let (boots, sightings) = Boots::new(reach.clone());
    let boots = Arc::new(boots);
    let several = store.pool().as_postgres().cloned();
    let hosts = patiently(&config, || load(&store, &boots)).await?;
    hosts.turns().set_limits(config.groups.clone());
    let hosts = Arc::new(hosts);
    hosts.seeing().own_lines_are_in(own_lines);
    hosts.seeing().place_is(Place {
        config: config.written.clone(),
        state_dir: dir.clone(),
    });
    let netboot = start_netboot(&config, &boots).await?;
    let stop = CancellationToken::new();
    let outlets = outlets::start(config.seeing.clone(), &hosts, &config.limits, &stop)?;
    let world = Arc::new(World {
        hosts: Arc::clone(&hosts),
        limits: config.limits.clone(),
        reach,
        iso_url: iso_urls(netboot.as_ref()),
        connect: connect_bmcs(),
        clusters: Arc::new(Clusters::new(hosts.documents(), config.clusters)),
    });
    let driver = Arc::new(Driver::start(Arc::clone(&world), stop.clone()));
    let replicas = several.map(|pool| start_replica(pool, &hosts, &driver, &stop));
    let beside = start_beside(&world, &images, sightings, &stop);
    let app = Arc::new(App {
        hosts,
        images,
        boots,
        world,
        driver: Arc::clone(&driver),
        admin_sha256,
        oidc: config.oidc.as_ref().map(Oidc::new).transpose()?,
        refusals: Refusals::default(),
        authority: Arc::clone(&identity.authority),
        poll_seconds: config.poll_seconds,
        check_in_seconds: config.check_in_seconds,
        stop: stop.clone(),
    });
    let served = serve_https(&config, listening, identity, app, stop.clone()).await;
    stop.cancel();
    if let Some(replicas) = replicas {
        replicas.await.context("leaving the other replicas")?;
    }
    driver.join().await;
    for (what, task) in beside {
        task.await.context(what)?;
    }
    outlets.join_all().await;
    if let Some(netboot) = netboot {
        netboot.stop().await;
    }
    tracing::info!("stopped");
    served
}

/// What goes on beside the hosts' driver, each with what it is.
fn start_beside(
    world: &World,
    images: &Arc<Images>,
    sightings: mpsc::Receiver<Sighting>,
    stop: &CancellationToken,
) -> [(&'static str, JoinHandle<()>); 5] {
    let (hosts, clusters) = (&world.hosts, &world.clusters);
    let seen = note_sightings(Arc::clone(hosts), sightings, stop.clone());
    let watching = Arc::clone(clusters).watch(stop.clone());
    let sweeping = sweep(hosts.documents(), stop.clone());
    let packing = images::start(images, hosts, stop);
    [
        ("noting what netboot saw", tokio::spawn(seen)),
        ("removing what has expired", tokio::spawn(sweeping)),
        ("looking at clusters", tokio::spawn(watching)),
        ("packing images", packing),
        ("rolling clusters", rolling::start(hosts, clusters, stop)),
    ]
}

fn reach(config: &Config, identity: &tls::Identity) -> anyhow::Result<Reach> {
    Ok(Reach {
        url: config.url.clone(),
        ca: identity.ca_pin,
        ca_pem: identity.ca_pem.as_str().into(),
        servers: image_servers::read(&config.image_servers)?.into(),
    })
}

/// The keys of what is secret. Only a conductor alone on its store makes one, at the first start.
pub(crate) fn sealer(store: &StoreConfig, may_create: bool) -> anyhow::Result<Sealer> {
    let mut sealer = Sealer::from_source(&store.key, may_create && store.url.is_none())?;
    for path in &store.old_keys {
        sealer = sealer.and_older(Sealer::load(path)?);
    }
    Ok(sealer)
}

/// The database: a file, or a server that others use, too.
pub(crate) async fn database(config: &Config, sealer: Sealer) -> anyhow::Result<Database> {
    let Some(url) = &config.store.url else {
        let file = config.state_dir.join("ferrite.db");
        return Ok(Database::sqlite(&file, sealer).await?);
    };
    let mut options: PgConnectOptions = url
        .expose()
        .parse()
        .map_err(|_| anyhow::anyhow!("store.url is no URL of a PostgreSQL database"))?;
    if let Some(path) = &config.store.password_file {
        let password =
            std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        options = options.password(password.trim_end());
    }
    Ok(Database::postgres(options, sealer).await?)
}

/// Tries again while a database on a server is away: it restarts, another takes over for it, or
/// the network is not up yet. A file that cannot be opened is not tried again.
async fn patiently<T>(
    config: &Config,
    open: impl AsyncFn() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    loop {
        let error = match open().await {
            Err(error) if config.store.url.is_some() && is_away(&error) => error,
            result => return result,
        };
        tracing::warn!("waiting for the database: {error:#}");
        systemd::tell(&[NotifyState::Status("waiting for the database")]);
        tokio::time::sleep(DATABASE_PAUSE).await;
    }
}

fn is_away(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<StoreError>();
    error.is_some_and(StoreError::is_away)
}

async fn open_store(config: &Config) -> anyhow::Result<Database> {
    let dir = &config.state_dir;
    let store = database(config, sealer(&config.store, true)?).await?;
    if config.store.url.is_none() {
        return Ok(store);
    }
    if !replicas::shares_files(&store).await? {
        tls::load_or_create(&dir.join("tls"), &config.names)?;
        admin_token(&dir.join("admin.token"))?;
    }
    replicas::share_files(&store, dir).await?;
    Ok(store)
}

/// What is stored, driven alone or as one of several.
async fn load(store: &Arc<Database>, boots: &Arc<Boots>) -> anyhow::Result<Hosts> {
    let ownership = match store.pool().as_postgres() {
        Some(_) => Ownership::shared(),
        None => Ownership::default(),
    };
    let store: Arc<Database> = Arc::clone(store);
    Ok(Hosts::load_as(store, Arc::clone(boots), ownership).await?)
}

fn start_replica(
    pool: PgPool,
    hosts: &Arc<Hosts>,
    driver: &Arc<Driver>,
    stop: &CancellationToken,
) -> JoinHandle<()> {
    let replica = Replica {
        id: uuid::Uuid::new_v4().to_string(),
        leases: Arc::new(InDatabase(Pool::Postgres(pool.clone()))),
        hosts: Arc::clone(hosts),
        driver: Arc::clone(driver),
    };
    let following = replicas::follow(Arc::clone(hosts), pool, stop.clone());
    let leading = replica.run(stop.clone());
    tokio::spawn(async move {
        tokio::join!(following, leading);
    })
}

/// The folder, for its owner alone.
pub(crate) fn make_state_dir(dir: &Path) -> anyhow::Result<()> {
    make_private_dir(dir).with_context(|| format!("making the state folder {}", dir.display()))
}

/// A folder for its owner alone.
pub(crate) fn make_private_dir(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(dir)
}

/// Two conductors on one folder would both drive its hosts. The lock ends with the process.
pub(crate) fn lock_state_dir(dir: &Path) -> anyhow::Result<std::fs::File> {
    let path = dir.join("lock");
    let file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .with_context(|| format!("opening {}", path.display()))?;
    file.try_lock().with_context(|| {
        let dir = dir.display();
        format!("another conductor is running on {dir}; stop it, or set another state_dir")
    })?;
    Ok(file)
}

/// A listener for HTTPS, and what is served at most with the files that may be open.
fn listen_on(config: &Config) -> anyhow::Result<(std::net::TcpListener, Bounds)> {
    let at = config.listen;
    let listener = listen::listener(at)
        .with_context(|| format!("listening on {at}; is another server running there?"))?;
    let fit = listen::raise_file_limit(config.connections.all + netboot::CONNECTIONS);
    let bounds = Bounds {
        connections: config.connections.all.min(fit),
        per_address: config.connections.per_address,
        stall: STALL,
    };
    Ok((listener, bounds))
}

/// The operators' token; made at the first start.
fn admin_token(path: &Path) -> anyhow::Result<()> {
    if path.exists() {
        return Ok(());
    }
    let line = format!("{PREFIX}{FIRST_ADMIN}_{}\n", token::random().expose());
    crash::point(Work::MakeAdminToken, Moment::Before);
    token::write_private(path, line.as_bytes())
        .with_context(|| format!("writing {}", path.display()))?;
    crash::point(Work::MakeAdminToken, Moment::After);
    Ok(())
}

/// Token, CA and `client.toml` for people; made at the first start. Gives the token's digest.
fn client_files(config: &Config, ca_pem: &str) -> anyhow::Result<String> {
    let dir = &config.state_dir;
    let (token_file, ca_file) = (dir.join("admin.token"), dir.join("ca.pem"));
    let client_file = dir.join("client.toml");
    let writing = |path: &Path| format!("writing {}", path.display());
    admin_token(&token_file)?;
    token::write_private(&ca_file, ca_pem.as_bytes()).with_context(|| writing(&ca_file))?;
    let first = !client_file.exists();
    let client = crate::cli::client::ClientFile {
        server: config.url.clone(),
        token_file: std::path::absolute(&token_file)?,
        ca_file: std::path::absolute(&ca_file)?,
    };
    let text = toml::to_string(&client).context("writing client.toml")?;
    token::write_private(&client_file, text.as_bytes()).with_context(|| writing(&client_file))?;
    if first {
        tracing::info!("{}", welcome(&client_file));
    }
    let kept = std::fs::read_to_string(&token_file)
        .with_context(|| format!("reading {}", token_file.display()))?;
    anyhow::ensure!(
        kept.trim().len() >= 32,
        "{} is too short to be a token: remove it and start again",
        token_file.display()
    );
    Ok(token::sha256(kept.trim()))
}

/// What a person does next after the first start. The token itself is in no log.
fn welcome(client_file: &Path) -> String {
    let file = client_file.display();
    format!(
        "first start: a CA, a certificate and an admin token were made; every call needs one.\n\
         On this machine:    export FERRITE_CLIENT={file}\n\
         To see it work:     ferrite whoami\n\
         For a colleague:    ferrite token create NAME --role operator --project default \
         --expires 30d\n\
         By certificate:     ferrite certificate create NAME --role viewer --everywhere\n\
         What was done:      ferrite audit list; ferrite audit verify"
    )
}

async fn start_netboot(config: &Config, boots: &Arc<Boots>) -> anyhow::Result<Option<Netboot>> {
    let Some(netboot) = config.netboot.clone() else {
        tracing::warn!("netboot.artifacts is not set: nothing is served to firmware");
        return Ok(None);
    };
    let directory: Arc<dyn netboot::BootDirectory> = Arc::<Boots>::clone(boots);
    let started = netboot::start(netboot, directory).await;
    Ok(Some(started.context("starting netboot")?))
}

/// Opens BMCs, all with the same few HTTP clients.
fn connect_bmcs() -> crate::lifecycle::execute::Connect {
    let clients = bmc::Clients::default();
    Box::new(move |spec, password| bmc::connect(&clients, spec, password))
}

/// Where BMCs find ISOs; none without one that was built.
fn iso_urls(netboot: Option<&Netboot>) -> IsoUrl {
    const PLACE: &str = "PLACE";
    let pattern = netboot.and_then(|netboot| netboot.iso_url(PLACE));
    Box::new(move |token| Some(pattern.as_ref()?.replace(PLACE, token)))
}

/// Takes what netboot saw into the hosts' timelines.
async fn note_sightings(
    hosts: Arc<Hosts>,
    mut sightings: mpsc::Receiver<Sighting>,
    stop: CancellationToken,
) {
    loop {
        let seen = tokio::select! {
            seen = sightings.recv() => seen,
            () = stop.cancelled() => return,
        };
        let Some(Sighting { host, at, what }) = seen else {
            return;
        };
        let noted = hosts.update(&host, &Actor::Conductor, |change| {
            change.boot_seen(at, &what);
            crash::point(Work::Sighting, Moment::Before);
            Ok(())
        });
        let noted = noted.await;
        crash::point(Work::Sighting, Moment::After);
        match noted {
            Ok(_) => tracing::debug!(%host, what, "seen"),
            Err(problem) if problem.code == Code::HostNotFound => {}
            Err(problem) => tracing::warn!(%host, %problem, "what was seen is not noted"),
        }
    }
}

/// Removes documents that have expired; until then nobody is shown them anyway.
async fn sweep(documents: Documents, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(SWEEP) => {}
            () = stop.cancelled() => return,
        }
        match documents.sweep().await {
            Ok(0) => {}
            Ok(count) => tracing::debug!(count, "expired documents are removed"),
            // Another replica was first, or the database is away: there is a next time.
            Err(problem) => tracing::warn!(%problem, "what has expired stays for now"),
        }
    }
}

async fn serve_https(
    config: &Config,
    (listener, bounds): (std::net::TcpListener, Bounds),
    identity: tls::Identity,
    app: Arc<App>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let tls = axum_server::tls_rustls::RustlsConfig::from_config(identity.server);
    let handle = axum_server::Handle::new();
    let stopper = tokio::spawn(stop_on_signal(handle.clone(), stop));
    let renewer = tokio::spawn(renew(
        config.state_dir.join("tls"),
        config.names.clone(),
        tls.clone(),
    ));
    let limiter = Limiter::new(config.api_rate);
    let limited = middleware::from_fn_with_state(limiter, limits::limit);
    let service = api::router(app).layer(limited);
    let service = service.into_make_service_with_connect_info::<SocketAddr>();
    tracing::info!(listen = %config.listen, url = %config.url, "serving");
    let context = || format!("serving HTTPS on {}", config.listen);
    let door = axum_server::from_tcp_rustls(listener, tls).with_context(context)?;
    let door = listen::bounded(door.map(Introduced), bounds).handle(handle);
    let watchdog = tokio::spawn(systemd::watch());
    systemd::tell(&[NotifyState::Ready]);
    let served = door.serve(service).await;
    watchdog.abort();
    stopper.abort();
    renewer.abort();
    served.with_context(context)
}

/// A conductor may run for longer than its certificate holds.
async fn renew(
    dir: std::path::PathBuf,
    names: Vec<String>,
    serving: axum_server::tls_rustls::RustlsConfig,
) {
    loop {
        tokio::time::sleep(RENEWAL).await;
        match tls::load_or_create(&dir, &names) {
            Ok(identity) => serving.reload_from_config(identity.server),
            Err(error) => tracing::error!(%error, "the certificate is not renewed; trying again"),
        }
    }
}

async fn stop_on_signal(
    handle: axum_server::Handle<std::net::SocketAddr>,
    stop: CancellationToken,
) {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        tracing::error!("SIGTERM cannot be caught: stop with SIGKILL, nothing is lost by it");
        return;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    tracing::info!("stopping");
    systemd::tell(&[NotifyState::Stopping]);
    stop.cancel();
    handle.graceful_shutdown(Some(GRACE));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_folder_has_one_conductor() {
        let dir = tempfile::tempdir().unwrap();
        let first = lock_state_dir(dir.path()).unwrap();
        let refused = lock_state_dir(dir.path()).unwrap_err();
        assert!(refused.to_string().contains("another conductor"));
        drop(first);
        lock_state_dir(dir.path()).unwrap();
    }
}
