//! Data of earlier versions opens, whole.

use std::path::Path;

use ferrite_proto::host::HostState;
use ferrite_proto::secret::Secret;

use super::Store;
use super::database::Database;
use crate::seal::Sealer;

/// Of the fixture's conductor.
const KEY: &str = "05611a98ba31ae25d5ff787138c692f8a99b79860627351c5a0635481571a89a";

async fn left_by_version_0_1(dir: &Path) {
    let key: Vec<u8> = (0..KEY.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&KEY[at..at + 2], 16).unwrap())
        .collect();
    std::fs::write(dir.join("key"), key).unwrap();
    let options = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(dir.join("db"))
        .create_if_missing(true);
    let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
    let dump = include_str!("fixtures/version-0.1.sql");
    sqlx::raw_sql(dump).execute(&pool).await.unwrap();
    pool.close().await;
}

#[tokio::test]
async fn hosts_of_version_0_1_are_all_there() {
    let dir = tempfile::tempdir().unwrap();
    left_by_version_0_1(dir.path()).await;
    for _ in 0..2 {
        let sealer = Sealer::load_or_create(&dir.path().join("key")).unwrap();
        let store = Database::sqlite(&dir.path().join("db"), sealer)
            .await
            .unwrap();
        let news = store.news(0).await.unwrap();
        let names: Vec<_> = news
            .hosts
            .iter()
            .map(|h| h.record.host.name.as_str())
            .collect();
        assert_eq!(names, ["n1", "n2", "n3"]);
        let password = Some(Secret::new("hunter2".to_owned()));
        for host in &news.hosts {
            assert_eq!(host.kept.host.bmc_password, password);
            assert_eq!(host.record.host.project, "default");
            assert!(host.record.host.version <= news.revision);
        }
        let mut versions: Vec<_> = news.hosts.iter().map(|h| h.record.host.version).collect();
        versions.sort_unstable();
        versions.dedup();
        assert_eq!(versions.len(), 3, "a revision is one change");
        assert_eq!(news.hosts[0].record.state(), HostState::Registering);
        let n2 = &news.hosts[1].record.host.uid;
        let inventory = store.inventory(n2).await.unwrap().unwrap();
        assert_eq!(inventory.version, 1);
        let runs = store.runs(n2, 9).await.unwrap();
        assert_eq!((runs.len(), runs[0].stages.len()), (1, 2));
        let doing = news.hosts[2].record.run.doing.as_ref().unwrap();
        assert_eq!((doing.stages.len(), doing.ended), (1, None));
        assert_eq!(store.events("n1", 99).await.unwrap().len(), 2);
    }
}
