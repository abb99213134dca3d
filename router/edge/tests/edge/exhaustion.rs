//! An edge that runs out of open files says so and blames no region. In a process of its own, whose limit it lowers.

use std::time::Duration;

use crate::support::{Stack, World, alone::done_in_own_process, leave_open_files, open};
use rustix::process::{Resource, getrlimit, setrlimit};

#[tokio::test]
async fn an_edge_without_open_files_says_that_it_is_full_and_blames_no_region() {
    if done_in_own_process("exhaustion::an_edge_without_open_files_says_that_it_is_full_and_blames_no_region") {
        return;
    }
    let stacks = [("eu-west", Stack::Echoes), ("eu-central", Stack::Echoes)];
    let world = World::new(&stacks).await;
    let mut before = world.open(&[]).await;
    world.observed();
    let limit = getrlimit(Resource::Nofile);
    // For the device and for the connection that the edge accepts; there is none for the region.
    let taken = leave_open_files(2);
    let mut refused = Vec::new();
    for _ in 0..5 {
        let answer = match open(world.address, &[]).await {
            Ok(_) => panic!("there is no room"),
            Err(answer) => answer,
        };
        refused.push((answer.status().as_u16(), answer.headers().contains_key("retry-after")));
        // The first refusal turns the others away before a region is asked.
        assert!(world.edge.admission.is_exhausted());
    }
    drop(taken);
    setrlimit(Resource::Nofile, limit).unwrap();
    assert_eq!(refused, [(503, true); 5]);
    let failed: u32 = world.observed().values().map(|(_, failed)| failed).sum();
    assert_eq!(failed, 0);
    let faults = |fault: &str| {
        let name = format!("meridian_edge_faults_total{{region=\"eu-west\",fault=\"{fault}\"}}");
        world.metric(&name).unwrap_or(0.0)
    };
    // A machine that is slow enough lets the edge find out again.
    assert!((1.0..=5.0).contains(&faults("edge")), "{}", faults("edge"));
    assert_eq!(faults("region"), 0.0);
    before.check_echo("who was here goes on").await;
    while world.edge.admission.is_exhausted() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut after = world.open(&[]).await;
    assert_eq!(after.header("meridian-region"), "eu-west");
    after.check_echo("hello").await;
}
