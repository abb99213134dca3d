//! A world of three control planes and three members of etcd: the leader dies in the middle of a region's failover.

use std::time::Duration;

use api::v1::StatusReply;
use drill::observe::{Observer, published};
use e2e::Stage;
use topology::Tick;
use world::StoreKind;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_fails_over_once_although_the_leader_dies_in_the_middle() {
    let stage = Stage::set_on(StoreKind::Etcd).await;
    let operator = stage.world.operator();
    let observer = Observer::start(operator.clone());
    let leader = crate::status(&stage).await.leader;
    stage.scene(&format!(
        "us-east dies, and {leader}, which leads, dies before it can decide"
    ));
    // Wait for the middle of a tick, so that the region's last good probes are over and its first bad ones are still to
    // come.
    let now = daemon::clock::now();
    let middle = now.tick().end() + Tick::LENGTH / 2;
    tokio::time::sleep(middle.since(now)).await;
    let killed_at = stage.world.kill("us-east").await.unwrap();
    tokio::time::sleep(Tick::LENGTH).await;
    stage.world.kill(&leader).await.unwrap();

    let evacuated = |status: &StatusReply| {
        let mut regions = status.regions.iter();
        let gone = regions.any(|region| region.region == "us-east" && region.state == "evacuated");
        gone && published(status, status.number.unwrap().generation).is_some()
    };
    let status = observer
        .until("the failover", Duration::from_secs(60), evacuated)
        .await
        .unwrap();
    let failover = published(&status, status.number.unwrap().generation)
        .unwrap()
        .since(killed_at);
    stage.scene(&format!(
        "{} moved it, {:.1} s after its death",
        status.leader,
        failover.as_secs_f64()
    ));
    assert_ne!(status.leader, leader);
    assert!(failover < Duration::from_secs(45), "{failover:?}");

    stage.scene("the dead control plane comes back and follows; one evacuation was decided");
    stage.world.restart(&leader).await.unwrap();
    stage.world.restart("us-east").await.unwrap();
    let well = |status: &StatusReply| status.regions.iter().all(|region| region.health == "healthy");
    observer
        .until("the region's recovery", Duration::from_secs(60), well)
        .await
        .unwrap();
    let decisions = operator.history(0).await.unwrap();
    let moves = decisions.iter().flat_map(|decision| &decision.reasons);
    let moves: Vec<&str> = moves
        .map(|reason| reason.code.as_str())
        .filter(|code| *code == "failover")
        .collect();
    assert_eq!(moves.len(), 1, "{decisions:#?}");
    drop(observer);
    stage.clear().await;
}
