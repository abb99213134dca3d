//! An edge whose own machine lets nothing out any more: a packet filter, an interface or a route that is gone. In a process of its
//! own, from which it takes the right to connect.

use std::collections::BTreeMap;

use crate::support::{
    Fate, Stack, World,
    alone::done_in_own_process,
    hang_means_failure,
    http::{answer, say},
    read_head,
};
use rustix::io::Errno;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter_all_threads};
use tokio::net::TcpStream;

const UPGRADE: &str = "GET /v1/realtime HTTP/1.1\r\nHost: v\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const GET: &str = "GET /v1/models HTTP/1.1\r\nHost: v\r\n\r\n";

/// From now on nothing in this process connects to anything: the kernel says this of the network.
fn lose_the_network(says: Errno) {
    #[cfg(target_arch = "x86_64")]
    const CONNECT: i64 = 42;
    #[cfg(target_arch = "aarch64")]
    const CONNECT: i64 = 203;
    let says = SeccompAction::Errno(says.raw_os_error() as u32);
    let filter = SeccompFilter::new(
        BTreeMap::from([(CONNECT, vec![])]),
        SeccompAction::Allow,
        says,
        TargetArch::try_from(std::env::consts::ARCH).unwrap(),
    );
    let program: BpfProgram = filter.unwrap().try_into().unwrap();
    apply_filter_all_threads(&program).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edge_whose_own_network_is_gone_says_that_it_is_full_and_blames_no_region() {
    if done_in_own_process("own_network::an_edge_whose_own_network_is_gone_says_that_it_is_full_and_blames_no_region") {
        return;
    }
    let lives = Stack::Serves(Fate::Lives);
    let world = World::new(&[("eu-west", lives), ("eu-central", lives)]).await;
    let mut session = world.open(&[]).await;
    assert!(session.hear().await.is_text());
    // All devices are connected before, because none can connect afterwards.
    let mut devices = Vec::new();
    for _ in 0..5 {
        let mut device = TcpStream::connect(world.address).await.unwrap();
        say(&mut device, "GET /nothing HTTP/1.1\r\nHost: v\r\n\r\n").await;
        assert!(answer(&mut device).await.0.starts_with("HTTP/1.1 404 "));
        devices.push(device);
    }
    world.observed();

    // Without an interface the edge reaches no region; without a route it may still reach one near by.
    for (says, is_out_of_room) in [(Errno::NETUNREACH, false), (Errno::NETDOWN, true)] {
        lose_the_network(says);
        for request in [GET, UPGRADE] {
            let mut device = devices.pop().unwrap();
            hang_means_failure(async {
                // The one before turned newcomers away for a moment; this one shall find out by itself.
                while world.edge.admission.is_exhausted() {
                    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                }
            })
            .await;
            say(&mut device, request).await;
            let head = hang_means_failure(read_head(&mut device)).await.unwrap();
            assert!(head.starts_with("HTTP/1.1 503 "), "{says}: {head}");
            assert!(head.to_lowercase().contains("retry-after: "), "{says}: {head}");
            assert_eq!(world.edge.admission.is_exhausted(), is_out_of_room, "{says}");
        }
    }
    let faults = |region: &str, fault: &str| {
        let name = format!("meridian_edge_faults_total{{region=\"{region}\",fault=\"{fault}\"}}");
        world.metric(&name).unwrap_or(0.0)
    };
    assert!(faults("eu-west", "edge") >= 4.0);
    for region in ["eu-west", "eu-central"] {
        assert_eq!(faults(region, "region"), 0.0, "{region}");
    }
    let observed = world.observed();
    assert!(observed.values().all(|(_, failed)| *failed == 0), "{observed:?}");
    // The edge goes on serving connected devices.
    for word in ["a", "."] {
        session.say(word).await;
    }
    let mut heard = Vec::new();
    while heard.last().is_none_or(|word| word != "done") {
        heard.push(session.hear().await.into_text().unwrap().to_string());
    }
    assert_eq!(heard, ["listening", "said a", "done"]);

    // Another machine answers "No route to host": the path to the region is broken, and not the one out of here.
    lose_the_network(Errno::HOSTUNREACH);
    let mut device = devices.pop().unwrap();
    hang_means_failure(async {
        while world.edge.admission.is_exhausted() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
    say(&mut device, UPGRADE).await;
    let head = hang_means_failure(read_head(&mut device)).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    for region in ["eu-west", "eu-central"] {
        assert_eq!(faults(region, "region"), 1.0, "{region}");
    }
    assert!(!world.edge.admission.is_exhausted());
}
