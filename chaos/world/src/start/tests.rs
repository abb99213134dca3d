use std::{os::unix::fs::PermissionsExt as _, sync::Arc};

use super::*;
use crate::etcd::EtcdError;

fn status(layout: &Layout, health: &str, acknowledged: u64) -> v1::StatusReply {
    let number = |generation| Some(v1::PlanNumber { generation, epoch: 1 });
    let nodes = ["edge-iad", "edge-dub", "ns1"];
    v1::StatusReply {
        number: number(2),
        regions: (layout.topology.regions.keys())
            .map(|id| v1::RegionStatus {
                region: id.to_string(),
                health: health.to_owned(),
                ..Default::default()
            })
            .collect(),
        nodes: nodes
            .map(|node| v1::NodeStatus {
                node: node.to_owned(),
                acknowledged: number(acknowledged),
                connected: true,
                ..Default::default()
            })
            .to_vec(),
        ..Default::default()
    }
}

#[test]
fn a_world_is_healthy_once_every_region_is_and_every_node_has_the_plan() {
    let (layout, _network) = Layout::choose(StoreKind::Embedded).unwrap();
    let missing = |status: &v1::StatusReply| missing_for_health(status, &layout);
    assert_eq!(missing(&status(&layout, "healthy", 2)), None);
    let late = missing(&status(&layout, "healthy", 1)).unwrap();
    assert_eq!(late, "edge-dub, edge-iad, ns1 to acknowledge plan 2");
    let unknown = missing(&status(&layout, "no-data", 2)).unwrap();
    assert!(unknown.contains("us-east (no-data)"), "{unknown}");
    assert!(missing(&v1::StatusReply::default()).unwrap().contains("a plan with"));
}

#[test]
fn what_is_not_installed_is_said_with_the_remedy() {
    let (program, package) = ("etcd", "etcd-server");
    let error = StartError::from(EtcdError::NoProgram { program, package }).to_string();
    assert!(error.contains("sudo apt-get install etcd-server"), "{error}");
}

#[test]
fn nothing_is_left_of_a_world_with_the_other_store_and_strangers_are_spared() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for left in ["control-plane", "control-plane-3", "etcd-2", "edge-iad", "photos"] {
        std::fs::create_dir(at(left)).unwrap();
        std::fs::write(at(&format!("{left}.log")), "").unwrap();
    }
    std::fs::write(at("etcd.json"), "addresses").unwrap();
    let (layout, _network) = Layout::choose(StoreKind::Embedded).unwrap();
    clear(folder.path(), &layout).unwrap();
    clear(folder.path(), &layout).unwrap();
    let mut names: Vec<_> = (std::fs::read_dir(folder.path()).unwrap())
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["photos", "photos.log"]);
}

/// Scripts that announce themselves and wait for their end, all that a world needs of its programs.
fn stand_ins(folder: &Path) {
    let announce = r#"printf '{"program":"p","pid":%d,"addresses":{}}' $$ > "$4.new"; mv "$4.new" "$4""#;
    for kind in [Kind::Stack, Kind::ControlPlane, Kind::Dns, Kind::Edge] {
        let path = folder.join(kind.program());
        std::fs::write(&path, format!("#!/bin/sh\n{announce}\ncat >/dev/null\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
}

#[tokio::test]
async fn three_control_planes_share_etcd_and_everything_starts_and_stops_in_order() {
    let folder = tempfile::tempdir().unwrap();
    stand_ins(folder.path());
    let told = Arc::<parking_lot::Mutex<Vec<String>>>::default();
    let tell = told.clone();
    let settings = Settings {
        binaries_dir: folder.path().to_owned(),
        models_dir: folder.path().to_owned(),
        store: StoreKind::Etcd,
        progress: Arc::new(move |progress| {
            if matches!(progress, Progress::Started(_) | Progress::Stopping(_)) {
                tell.lock().push(progress.to_string());
            }
        }),
        ..Settings::new(folder.path().join("state"))
    };
    let world = World::start(settings).await.unwrap();
    let mut deaths = world.deaths();
    let record = crate::find(world.state_dir()).unwrap();
    let etcd: Vec<&str> = record.etcd.keys().map(String::as_str).collect();
    assert_eq!(etcd, ["etcd-1", "etcd-2", "etcd-3"]);
    assert_eq!((record.control_planes.len(), record.processes.len()), (3, 15));
    assert!(
        record.etcd["etcd-2"].starts_with("https://"),
        "only for those with a certificate"
    );
    assert!(record.metrics["etcd-2"].starts_with("http://"), "for Prometheus too");
    let config = world.state_dir().join("control-plane-2/control-plane.toml");
    let config = std::fs::read_to_string(config).unwrap();
    for url in record.etcd.values() {
        assert!(config.contains(url), "{config}");
    }

    for name in ["etcd-2", "control-plane-3"] {
        world.stop(name).await.unwrap();
        world.resume(name).await.unwrap();
        world.kill(name).await.unwrap();
        assert!(!world.pids().await.contains_key(name));
        world.restart(name).await.unwrap();
    }
    let pids = world.pids().await;
    assert_eq!(pids.len(), 15);
    assert_ne!(pids["etcd-2"], record.processes["etcd-2"]);
    assert_eq!(crate::find(world.state_dir()).unwrap().processes, pids);
    let error = world.kill("etcd-4").await.unwrap_err().to_string();
    assert!(error.contains("control-plane-1") && error.contains("etcd-1"), "{error}");
    assert!(world.etcd_leader().await.is_some());

    // All members die and come back one by one. The first has no quorum, so `ready` does not wait for it.
    for member in ["etcd-1", "etcd-2", "etcd-3"] {
        world.kill(member).await.unwrap();
    }
    let error = world.restart("etcd-1").await.unwrap_err().to_string();
    assert!(error.contains("2 of the 3 members must run (now 1)"), "{error}");
    world.restart("etcd-2").await.unwrap();
    world.ready("etcd-1").await.unwrap();
    world.restart("etcd-3").await.unwrap();
    let pids = world.pids().await;
    assert_eq!(crate::find(world.state_dir()).unwrap().processes, pids);

    world.shutdown().await;
    for (name, pid) in pids {
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "{name} ({pid}) is left");
    }
    assert!(deaths.try_recv().is_err(), "nothing died that was not asked to");
    assert_eq!(
        *told.lock(),
        [
            "ap-northeast started",
            "ap-south started",
            "eu-central started",
            "eu-west started",
            "us-east started",
            "us-west started",
            "etcd-1 started",
            "etcd-2 started",
            "etcd-3 started",
            "control-plane-1 started",
            "control-plane-2 started",
            "control-plane-3 started",
            "edge-dub started",
            "edge-iad started",
            "ns1 started",
            "stopping edge-dub, edge-iad",
            "stopping ns1",
            "stopping control-plane-1, control-plane-2, control-plane-3",
            "stopping etcd-1, etcd-2, etcd-3",
            "stopping ap-northeast, ap-south, eu-central, eu-west, us-east, us-west",
        ]
    );
}

#[tokio::test]
async fn programs_that_were_not_built_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = Settings::new(folder.path().join("state"));
    settings.binaries_dir = folder.path().to_owned();
    settings.models_dir = folder.path().to_owned();
    let error = World::start(settings).await.unwrap_err().to_string();
    assert!(error.contains("meridian-stack; build all programs first"), "{error}");
}

/// No control plane renews them: etcd has an authority of its own.
#[test]
fn certificates_of_etcd_are_issued_anew_at_the_middle_of_their_life() {
    let folder = tempfile::tempdir().unwrap();
    let (authority, into) = (Folder::of_etcd(folder.path()), folder.path().join("etcd-1"));
    let now = daemon::clock::now();
    authority.create("voice.example", now).unwrap();
    let leaf = authority::member_leaf("voice.example", "etcd-1", [10, 0, 0, 1].into()).unwrap();
    let leaves = [(leaf.clone(), into.clone())];
    let files = authority.issue(&leaf, &into, now).unwrap();
    let shown = || {
        let pem = identity::files::read(&files.certificate).unwrap();
        (
            identity::ca::peer_of(&pem).unwrap().serial,
            identity::ca::addresses_of(&pem),
        )
    };
    let (first, addresses) = shown();
    issue_due(&authority, &leaves, now + leaf.life * 2 / 5);
    assert_eq!(shown().0, first, "it is young");
    issue_due(&authority, &leaves, now + leaf.life * 3 / 5);
    let (second, still) = shown();
    assert_ne!(second, first);
    assert_eq!(
        still, addresses,
        "members compare the address of the peer with those in its certificate"
    );
}
