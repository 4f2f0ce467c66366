//! One suite for every kind of database.

use std::path::Path;
use std::sync::Arc;

use ferrite_proto::api::HostEvent;
use ferrite_proto::host::HostManifest;
use jiff::Timestamp;
use serde_json::json;

use super::database::Database;
use super::*;
use crate::lifecycle::intent;

pub(super) fn host(name: &str, nic: u8) -> Box<Stored> {
    let add = json!({
        "apiVersion": "ferrite/v1", "kind": "Host",
        "metadata": {"name": name, "project": "p", "labels": {"rack": "r1"}},
        "spec": {
            "bmc": {"address": format!("redfish+http://10.0.0.{nic}"), "username": "u"},
            "boot_mac": format!("52:54:00:00:00:{nic:02x}"),
        },
        "secrets": {"bmc_password": "hunter2"},
    });
    let add: HostManifest = serde_json::from_value(add).unwrap();
    let change = intent::enrol(add, format!("uid-{name}"), Timestamp::UNIX_EPOCH).unwrap();
    Box::new(change.into_parts().0)
}

fn sqlite_sealer(dir: &Path) -> Sealer {
    Sealer::load_or_create(&dir.join("key")).unwrap()
}

use crate::seal::Sealer;

async fn store(dir: &Path) -> Database {
    Database::sqlite(&dir.join("db"), sqlite_sealer(dir))
        .await
        .unwrap()
}

async fn one(store: &dyn Store, write: Write) -> Result<Revision, StoreError> {
    store.commit(&[write]).await.remove(0)
}

fn add(host: &Stored) -> Write {
    Write::Add {
        host: Box::new(host.clone()),
        with: Entries::default(),
    }
}

fn save(host: &Stored, version: Revision) -> Write {
    let mut before = host.clone();
    before.record.host.version = version;
    Write::Save {
        host: Box::new(host.clone()),
        before: Arc::new(before),
        fence: None,
        with: Entries::default(),
    }
}

/// The suite: each on a database of its own.
macro_rules! suite {
    ($($name:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test]
            async fn $name() {
                let dir = tempfile::tempdir().unwrap();
                super::$name(&super::store(dir.path()).await).await;
            })*
        }

        #[tokio::test]
        async fn the_whole_suite_on_postgres() {
            let dir = tempfile::tempdir().unwrap();
            let server = super::postgres::Server::start().await;
            $(
                let options = server.database(stringify!($name)).await;
                let store = Database::postgres(options, sqlite_sealer(dir.path())).await.unwrap();
                $name(&store).await;
            )*
        }
    };
}

suite! {
    a_save_over_somebody_elses_is_refused_and_spoils_nothing,
    no_two_hosts_share_a_name_a_nic_or_a_bmc,
    a_document_is_written_as_expected_or_not_at_all,
    the_audit_log_is_a_chain_and_its_end_is_vouched_for,
    contacts_are_kept_without_a_revision,
    contacts_of_many_hosts_are_all_kept,
    what_a_removed_host_said_waits_to_be_told,
}

#[tokio::test]
async fn what_is_stored_comes_back_after_a_restart_and_no_secret_is_in_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut given = host("a", 1);
    let event = HostEvent {
        at: Timestamp::UNIX_EPOCH,
        kind: "state".into(),
        text: "added".into(),
    };
    let write = Write::Add {
        host: given.clone(),
        with: Entries {
            events: vec![event.clone()],
            ..Entries::default()
        },
    };
    let first = store(dir.path()).await;
    given.record.host.version = one(&first, write).await.unwrap();
    drop(first);
    let again = store(dir.path()).await;
    let news = again.news(0).await.unwrap();
    assert_eq!(news.hosts, [*given.clone()]);
    assert_eq!(again.events("a", 9).await.unwrap(), [event]);
    for file in ["db", "db-wal"] {
        let bytes = std::fs::read(dir.path().join(file)).unwrap_or_default();
        assert!(!bytes.windows(7).any(|w| w == b"hunter2"));
    }
    let gone = Write::Remove {
        host: Arc::new(*given),
        fence: None,
        with: Entries::default(),
    };
    let removed = one(&again, gone).await.unwrap();
    let news = again.news(0).await.unwrap();
    assert_eq!((news.hosts.len(), news.removed[0].revision), (0, removed));
    assert!(again.events("a", 9).await.unwrap().is_empty());
}

async fn a_save_over_somebody_elses_is_refused_and_spoils_nothing(store: &dyn Store) {
    let a = host("a", 1);
    let first = one(store, add(&a)).await.unwrap();
    let second = one(store, save(&a, first)).await.unwrap();
    assert!(second > first);
    let outcomes = store
        .commit(&[save(&a, first), add(&host("b", 2)), save(&host("c", 3), 1)])
        .await;
    assert!(matches!(outcomes[0], Err(StoreError::Conflict(_))));
    assert!(matches!(outcomes[1], Ok(revision) if revision > second));
    assert!(matches!(outcomes[2], Err(StoreError::NotFound { .. })));
    assert_eq!(store.news(second).await.unwrap().hosts.len(), 1);
}

async fn no_two_hosts_share_a_name_a_nic_or_a_bmc(store: &dyn Store) {
    one(store, add(&host("a", 1))).await.unwrap();
    let mut same_nic = host("b", 1);
    same_nic.record.host.spec.bmc.address = "redfish+http://elsewhere".into();
    let mut same_bmc = host("c", 1);
    same_bmc.record.host.spec.boot_mac = None;
    let mut same_name = host("a", 2);
    same_name.record.host.uid = "another".into();
    for (host, wanted) in [
        (&same_nic, "boot MAC"),
        (&same_bmc, "BMC address"),
        (&same_name, "name"),
    ] {
        let refused = one(store, add(host)).await;
        assert!(
            matches!(&refused, Err(StoreError::Exists { what, owner })
                if *what == wanted && owner == "host \"a\""),
            "{refused:?}"
        );
    }
    let before = host("d", 9);
    let version = one(store, add(&before)).await.unwrap();
    let mut moved = before.clone();
    moved.record.host.spec.bmc.address = "redfish+http://10.0.0.1".into();
    let mut before = *before;
    before.record.host.version = version;
    let refused = one(
        store,
        Write::Save {
            host: moved,
            before: Arc::new(before),
            fence: None,
            with: Entries::default(),
        },
    )
    .await;
    assert!(
        matches!(&refused, Err(StoreError::Exists { what, .. }) if *what == "BMC address"),
        "{refused:?}"
    );
}

async fn a_document_is_written_as_expected_or_not_at_all(store: &dyn Store) {
    let put = |text: &str, expect| Write::Put {
        document: Box::new(Document {
            secret: Some(json!("hunter2")),
            ..Document::new("Image", "i", Timestamp::UNIX_EPOCH, json!({ "text": text }))
        }),
        expect,
        with: Entries::default(),
    };
    let first = one(store, put("1", Expect::Absent)).await.unwrap();
    let refused = one(store, put("2", Expect::Absent)).await;
    assert!(matches!(refused, Err(StoreError::Exists { .. })));
    let second = one(store, put("3", Expect::Revision(first))).await.unwrap();
    let refused = one(store, put("4", Expect::Revision(first))).await;
    assert!(matches!(refused, Err(StoreError::Conflict(_))));
    let third = one(store, put("5", Expect::Anything)).await.unwrap();
    let found = store.news(0).await.unwrap().documents;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].body, json!({"text": "5"}));
    assert_eq!(found[0].secret, Some(json!("hunter2")));
    assert_eq!(found[0].revision, third);
    let gone = |expect| Write::Drop {
        kind: "Image".into(),
        name: "i".into(),
        expect,
        with: Entries::default(),
    };
    let refused = one(store, gone(Expect::Revision(second))).await;
    assert!(matches!(refused, Err(StoreError::Conflict(_))));
    one(store, gone(Expect::Revision(third))).await.unwrap();
    let news = store.news(0).await.unwrap();
    assert_eq!((news.documents.len(), news.removed.len()), (0, 1));
}

async fn the_audit_log_is_a_chain_and_its_end_is_vouched_for(store: &dyn Store) {
    let entry = |text: &str| AuditEntry {
        project: "default".into(),
        body: json!({ "text": text }),
    };
    one(store, Write::Audit(vec![entry("1"), entry("2")]))
        .await
        .unwrap();
    one(store, Write::Audit(vec![entry("3")])).await.unwrap();
    let lines = store.audit(0, 9).await.unwrap();
    let mut hash = String::new();
    for line in &lines {
        hash = commit::chained(&hash, line.id, &line.project, &line.body);
        assert_eq!(hash, line.hash);
    }
    let head = store.audit_head().await.unwrap().unwrap();
    assert_eq!((head.id, head.hash, head.vouched), (3, hash, true));
}

async fn what_a_removed_host_said_waits_to_be_told(store: &dyn Store) {
    let said = |text: &str| HostEvent {
        at: Timestamp::UNIX_EPOCH,
        kind: "state".into(),
        text: text.into(),
    };
    let added = |name: &str, mac, text: &str| Write::Add {
        host: host(name, mac),
        with: Entries {
            events: vec![said(text)],
            ..Entries::default()
        },
    };
    one(store, added("a", 1, "first a")).await.unwrap();
    one(store, added("b", 2, "b")).await.unwrap();
    let gone = Write::Remove {
        host: Arc::new(*host("a", 1)),
        fence: None,
        with: Entries::default(),
    };
    one(store, gone).await.unwrap();
    one(store, added("a", 1, "second a")).await.unwrap();
    let told = store.outbox(0, 9).await.unwrap();
    let texts: Vec<_> = told.iter().map(|line| line.event.text.as_str()).collect();
    assert_eq!(texts, ["first a", "b", "second a"]);
    assert_eq!(store.outbox(told[0].id, 1).await.unwrap(), told[1..2]);
    // Nobody else sees it, the next host of the name least of all.
    assert_eq!(store.events("a", 9).await.unwrap(), [said("second a")]);
    assert_eq!(store.log(0, 9).await.unwrap(), told[1..]);
    let before = Timestamp::UNIX_EPOCH;
    let kept = Write::Forget {
        upto: told[0].id - 1,
        before,
    };
    let revision = one(store, kept).await.unwrap();
    assert!(store.has_departed().await.unwrap());
    let forgotten = Write::Forget {
        upto: told[0].id,
        before,
    };
    assert_eq!(one(store, forgotten).await.unwrap(), revision);
    assert!(!store.has_departed().await.unwrap());
    assert_eq!(store.outbox(0, 9).await.unwrap(), told[1..]);
}

async fn contacts_of_many_hosts_are_all_kept(store: &dyn Store) {
    let at = |second: i64| Some(Timestamp::from_second(second).unwrap());
    let all: Vec<_> = (1..=150)
        .map(|number| Contact {
            uid: format!("u{number:03}"),
            agent: at(number),
            daemon: None,
        })
        .collect();
    let writes: Vec<_> = all.iter().cloned().map(Write::Heard).collect();
    let outcomes = store.commit(&writes).await;
    assert!(outcomes.iter().all(Result::is_ok) && outcomes.len() == 150);
    let mut kept = store.contacts(Timestamp::UNIX_EPOCH).await.unwrap();
    kept.sort_by(|a, b| a.uid.cmp(&b.uid));
    assert_eq!(kept, all);
}

async fn contacts_are_kept_without_a_revision(store: &dyn Store) {
    let at = |second| Some(Timestamp::from_second(second).unwrap());
    let heard = |agent, daemon| {
        Write::Heard(Contact {
            uid: "u".into(),
            agent,
            daemon,
        })
    };
    store
        .commit(&[heard(at(1), None), heard(None, at(2)), heard(at(3), None)])
        .await;
    let wanted = Contact {
        uid: "u".into(),
        agent: at(3),
        daemon: at(2),
    };
    assert_eq!(
        store.contacts(Timestamp::UNIX_EPOCH).await.unwrap(),
        [wanted]
    );
    assert_eq!(store.news(0).await.unwrap().revision, 0);
}

async fn put_something_of_each(store: &dyn Store) {
    let with = Entries {
        events: vec![HostEvent {
            at: Timestamp::UNIX_EPOCH,
            kind: "state".into(),
            text: "added".into(),
        }],
        audit: vec![AuditEntry {
            project: "p".into(),
            body: json!({"a": 1}),
        }],
        ..Entries::default()
    };
    let host = host("a", 1);
    one(store, Write::Add { host, with }).await.unwrap();
    let document = Document {
        secret: Some(json!("hunter2")),
        ..Document::new("Image", "i", Timestamp::UNIX_EPOCH, json!({"b": 2}))
    };
    let put = Write::Put {
        document: Box::new(document),
        expect: Expect::Absent,
        with: Entries::default(),
    };
    one(store, put).await.unwrap();
}

/// From `SQLite` through a file into `PostgreSQL`; what cannot be used changes nothing.
#[tokio::test]
async fn a_backup_goes_from_one_kind_of_database_into_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let first = store(dir.path()).await;
    put_something_of_each(&first).await;
    let mut made = Vec::new();
    backup::dump(first.pool(), &[], &mut made).await.unwrap();
    assert!(!made.windows(7).any(|w| w == b"hunter2"));
    let sealer = sqlite_sealer(dir.path());
    for (at, byte) in [(made.len() / 2, b'~'), (made.len() - 20, b'0')] {
        let mut damaged = made.clone();
        // Where it is that byte already, the next.
        damaged[at] = byte + u8::from(damaged[at] == byte);
        assert!(backup::read(&damaged, &sealer).is_err(), "{at}");
    }
    assert!(backup::read(&made[..made.len() / 2], &sealer).is_err());
    let other = Sealer::load_or_create(&dir.path().join("other")).unwrap();
    let refused = backup::read(&made, &other);
    assert!(matches!(refused, Err(backup::BackupError::OtherKey)));
    let rows = || backup::read(&made, &sealer).unwrap();
    let refused = backup::restore(first.pool(), rows()).await;
    assert!(matches!(refused, Err(backup::BackupError::NotEmpty(_))));

    let server = super::postgres::Server::start().await;
    let second = Database::postgres(server.database("restored").await, sqlite_sealer(dir.path()));
    let second = second.await.unwrap();
    backup::restore(second.pool(), rows()).await.unwrap();
    let (was, is) = (first.news(0).await.unwrap(), second.news(0).await.unwrap());
    assert_eq!(
        (was.hosts, was.documents, was.revision),
        (is.hosts, is.documents, is.revision)
    );
    assert!(second.audit_head().await.unwrap().unwrap().vouched);
    assert_eq!(second.events("a", 9).await.unwrap().len(), 1);
    // It goes on from there, and everything can be sealed under another key.
    let next = Write::Audit(vec![AuditEntry {
        project: "p".into(),
        body: json!({}),
    }]);
    assert_eq!(one(&second, next).await.unwrap(), is.revision + 1);
    let both = Sealer::load(&dir.path().join("other"))
        .unwrap()
        .and_older(sqlite_sealer(dir.path()));
    assert_eq!(backup::reseal(second.pool(), &both).await.unwrap(), 3);
    let mut again = Vec::new();
    backup::dump(second.pool(), &[], &mut again).await.unwrap();
    let refused = backup::read(&again, &sealer);
    assert!(matches!(refused, Err(backup::BackupError::OtherKey)));
    backup::read(&again, &other).unwrap();
}

/// How many small saves a second; prints it with `--nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_writers_share_transactions() {
    const WRITERS: u64 = 64;
    const EACH: u64 = 30;
    let dir = tempfile::tempdir().unwrap();
    let reach = crate::lifecycle::order::Reach {
        url: "https://c:7443".into(),
        ca: ferrite_proto::boot::CaPin([7; 32]),
        ca_pem: "".into(),
        servers: [].into(),
    };
    let boots = Arc::new(crate::boots::Boots::new(reach).0);
    let hosts = crate::hosts::Hosts::load(Arc::new(store(dir.path()).await), boots);
    let hosts = Arc::new(hosts.await.unwrap());
    let actor = crate::actor::Actor::Conductor;
    let before = std::time::Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for at in 1..=WRITERS {
        let (hosts, actor) = (Arc::clone(&hosts), actor.clone());
        tasks.spawn(async move {
            let name = format!("n{at}");
            let stored = *host(&name, u8::try_from(at).unwrap());
            let new = crate::lifecycle::change::Change::new(
                stored.record,
                stored.kept,
                Timestamp::UNIX_EPOCH,
            );
            hosts.insert(&actor, new).await.unwrap();
            for _ in 0..EACH {
                let touch = |change: &mut crate::lifecycle::change::Change| {
                    change.record.run.request += 1;
                    Ok(())
                };
                hosts.update(&name, &actor, touch).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    let all = WRITERS * (EACH + 1);
    assert_eq!(hosts.revision(), all);
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let rate = all as f64 / before.elapsed().as_secs_f64();
    eprintln!("{rate:.0} writes/s by {WRITERS} writers");
}
