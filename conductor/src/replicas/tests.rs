//! Several conductors on one real `PostgreSQL`, in one process.

use std::path::Path;

use super::*;
use crate::actor::Actor;
use crate::boots::Boots;
use crate::lifecycle::change::Change;
use crate::lifecycle::execute::World;
use crate::lifecycle::intent;
use crate::lifecycle::order::Reach;
use crate::lifecycle::record::Limits;
use crate::ownership::Ownership;
use crate::seal::Sealer;
use crate::store::leases::InDatabase;
use crate::store::postgres::Server;
use ferrite_proto::problem::{Code, Problem};
use sqlx::postgres::PgConnectOptions;

struct One {
    replica: Replica,
    stop: CancellationToken,
}

async fn one(options: PgConnectOptions, dir: &Path, id: &str) -> One {
    let sealer = Sealer::load_or_create(&dir.join("key")).unwrap();
    let database = Database::postgres(options, sealer).await.unwrap();
    let pool = database.pool().clone();
    let reach = Reach {
        url: "https://c:7443".into(),
        ca: ferrite_proto::boot::CaPin([7; 32]),
        ca_pem: "".into(),
        servers: [].into(),
    };
    let boots = Arc::new(Boots::new(reach.clone()).0);
    let store: Arc<dyn Store> = Arc::new(database);
    let hosts = Hosts::load_as(store, boots, Ownership::shared())
        .await
        .unwrap();
    let hosts = Arc::new(hosts);
    let world = Arc::new(World {
        hosts: Arc::clone(&hosts),
        limits: Limits::default(),
        reach,
        iso_url: Box::new(|_| None),
        clusters: Arc::new(crate::cluster::Clusters::new(
            hosts.documents(),
            ferrite_proto::address::Policy::Others,
        )),
        connect: Box::new(|_, _| {
            Err(crate::bmc::BmcError::Unreachable {
                bmc: "nobody".to_owned(),
                reason: "nobody is there".to_owned(),
            })
        }),
    });
    let stop = CancellationToken::new();
    let driver = Arc::new(Driver::start(world, stop.clone()));
    let postgres = pool.as_postgres().unwrap().clone();
    tokio::spawn(follow(Arc::clone(&hosts), postgres, stop.clone()));
    let replica = Replica {
        id: id.to_owned(),
        leases: Arc::new(InDatabase(pool)),
        hosts,
        driver,
    };
    One { replica, stop }
}

fn new_host(at: usize) -> Change {
    let manifest = serde_json::json!({
        "apiVersion": "ferrite/v1", "kind": "Host", "metadata": {"name": format!("n{at:02}")},
        "spec": {"bmc": {"address": format!("redfish+http://10.0.0.{at}"), "username": "u"},
                 "boot_via": "virtual-media"},
        "secrets": {"bmc_password": "p"},
    });
    let manifest = serde_json::from_value(manifest).unwrap();
    let uid = format!("uid-{at}");
    intent::enrol(manifest, uid, crate::clock::now()).unwrap()
}

#[expect(clippy::unnecessary_wraps, reason = "a change may be refused")]
fn touch(change: &mut Change) -> Result<(), Problem> {
    change.event("log", "touched");
    Ok(())
}

impl One {
    fn driven(&self) -> Vec<String> {
        let names = self.replica.hosts.names();
        names
            .into_iter()
            .filter(|name| self.replica.driver.drives(name))
            .collect()
    }
}

/// What people see of a replica that has five of ten hosts, and of its lease.
fn is_seen(one: &One, taken: u64, handed_over: u64) {
    let facts = one.replica.hosts.ownership().facts().unwrap();
    assert_eq!((facts.taken, facts.handed_over), (taken, handed_over));
    assert_eq!((facts.alive.len(), facts.leases.len()), (2, 5));
    let limits = crate::lifecycle::record::Limits::default();
    let now = crate::clock::now();
    let text = crate::seeing::figures(&one.replica.hosts, &limits, now);
    let id = &one.replica.id;
    for line in [
        format!("ferrite_replicas{{replica=\"{id}\"}} 2\n"),
        format!("ferrite_replica_leases{{replica=\"{id}\"}} 5\n"),
        format!("ferrite_replica_taken_total{{replica=\"{id}\"}} {taken}\n"),
        format!("ferrite_replica_renewed_seconds{{replica=\"{id}\"}} "),
    ] {
        assert!(text.contains(&line), "no {line} in {text}");
    }
}

/// One server, one story: shares, hand over, take over, a stale owner, a server that went away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_have_one_driver_whoever_comes_and_goes() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start().await;
    let options = server.database("several").await;
    let a = one(options.clone(), dir.path(), "a").await;
    for at in 0..10 {
        a.replica
            .hosts
            .insert(&Actor::Conductor, new_host(at))
            .await
            .unwrap();
    }
    a.replica.turn().await.unwrap();
    assert_eq!(a.driven().len(), 10);
    // A newcomer gets its share, no host has two drivers, and each sees what the other writes.
    let b = one(options.clone(), dir.path(), "b").await;
    assert_eq!(b.replica.hosts.names().len(), 10);
    b.replica.turn().await.unwrap();
    assert!(b.driven().is_empty(), "all are a's");
    a.replica.turn().await.unwrap();
    b.replica.turn().await.unwrap();
    assert_eq!((a.driven().len(), b.driven().len()), (5, 5));
    is_seen(&a, 10, 5);
    is_seen(&b, 5, 0);
    assert!(b.driven().iter().all(|name| !a.driven().contains(name)));
    let name = &a.driven()[0];
    let refused = b
        .replica
        .hosts
        .update_as_owner(name, touch)
        .await
        .unwrap_err();
    assert_eq!(refused.code, Code::NotOwner);
    b.replica
        .hosts
        .update(name, &Actor::Agent, touch)
        .await
        .unwrap();
    a.replica
        .hosts
        .update(name, &Actor::Agent, touch)
        .await
        .unwrap();
    a_stale_owner_is_refused(&a, &b, name).await;
    the_server_goes_away_and_comes_back(&mut server, &b).await;
    for one in [a, b] {
        one.stop.cancel();
        one.replica.driver.join().await;
    }
}

/// `a` stops renewing, as a paused process does; `b` takes all; `a` writes as if nothing had been.
async fn a_stale_owner_is_refused(a: &One, b: &One, name: &str) {
    let stopped = Instant::now();
    while b.driven().len() < 10 {
        assert!(
            stopped.elapsed() < Duration::from_secs(10),
            "nobody took over"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
        b.replica.turn().await.unwrap();
    }
    assert!(
        stopped.elapsed() > Duration::from_secs(TTL - 1),
        "taken from the living"
    );
    // By its own clock it knows already; the database refuses it even if it did not.
    let refused = a
        .replica
        .hosts
        .update_as_owner(name, touch)
        .await
        .unwrap_err();
    assert_eq!(refused.code, Code::NotOwner);
    let until = Instant::now() + Duration::from_mins(1);
    a.replica
        .hosts
        .ownership()
        .hold(vec![(name.to_owned(), 1)], until);
    a.replica.hosts.follow_store().await.unwrap();
    let refused = a
        .replica
        .hosts
        .update_as_owner(name, touch)
        .await
        .unwrap_err();
    assert_eq!(refused.code, Code::NotOwner, "{refused}");
    b.replica.hosts.update_as_owner(name, touch).await.unwrap();
}

async fn the_server_goes_away_and_comes_back(server: &mut Server, b: &One) {
    let hosts = &b.replica.hosts;
    server.stop();
    let refused = hosts.update("n01", &Actor::Agent, touch).await.unwrap_err();
    assert_eq!(refused.code, Code::StoreUnavailable, "{refused}");
    assert_eq!(
        hosts.list(&crate::access::caller::Visible::all()).len(),
        10,
        "reads go on"
    );
    server.launch().await;
    hosts.update("n01", &Actor::Agent, touch).await.unwrap();
    let before = hosts.events("n01", 99).await.unwrap();
    assert_eq!(
        before
            .iter()
            .filter(|event| event.text == "touched")
            .count(),
        1
    );
}
