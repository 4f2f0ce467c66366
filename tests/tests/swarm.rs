//! A swarm against a real conductor: machines are enrolled, deployed, and do everything once, also
//! when the conductor is killed meanwhile.

use std::path::PathBuf;
use std::time::Duration;

use ferrite_tests::swarm::{Served, Settings, Swarm};

const PATIENCE: Duration = Duration::from_mins(1);

fn ferrite() -> PathBuf {
    ferrite_tests::swarm::ferrite().expect("`make build` makes it")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_are_deployed_once_although_the_conductor_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let served = Served::start(&ferrite(), dir.path(), "").await.unwrap();
    let swarm = Swarm::start(Settings::of(&served, 20)).await.unwrap();
    let operator = served.operator().unwrap();
    operator.add_all(&swarm, swarm.machines(), 4).await.unwrap();
    operator
        .until_state("available", 20, PATIENCE)
        .await
        .unwrap();
    operator.provision_all(swarm.machines(), 4).await.unwrap();
    tokio::time::sleep(Duration::from_millis(400)).await;
    served.kill().unwrap();
    served.launch().unwrap();
    served.until_ready(PATIENCE).await.unwrap();
    operator
        .until_state("provisioned", 20, PATIENCE)
        .await
        .unwrap();
    assert_eq!(swarm.doubled(), [""; 0]);
    for machine in swarm.machines() {
        let deeds = machine.deeds();
        let once = (deeds.images_written, deeds.erased, deeds.enrolled);
        assert_eq!(once, (1, 1, 1), "{}: {deeds:?}", machine.name);
    }
    swarm.stop().await;
}
