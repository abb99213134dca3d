//! etcd with mutual TLS: it takes decisions from control planes only.

use std::{path::Path, sync::Arc};

use identity::{PeerId, Service, ca::Leaf, files::Files};
use server::{
    metrics::EtcdExpiry,
    store::{
        Etcd, Store as _, StoreError,
        etcd::{Settings, look_at_members},
    },
};
use world::{
    authority::Folder,
    etcd::{EtcdAuthority, Size},
};

use crate::etcd_support::{cluster_with, eventually, put};

const ZONE: &str = "voice.example";

fn authority(folder: &Path) -> EtcdAuthority {
    let authority = EtcdAuthority {
        folder: Folder::at(folder.to_owned()),
        zone: ZONE.to_owned(),
    };
    authority.folder.create(ZONE, daemon::clock::now()).unwrap();
    authority
}

fn issue(authority: &EtcdAuthority, role: &str, into: &Path) -> Files {
    let leaf = Leaf::of(PeerId::new(ZONE, role.parse().unwrap()).unwrap());
    authority.folder.issue(&leaf, into, daemon::clock::now()).unwrap()
}

async fn store(endpoints: Vec<String>, files: Option<&Files>) -> Etcd {
    let settings = Settings {
        tls: files.map(|files| Arc::new(Service::load(files.clone()).unwrap())),
        ..Settings::new(endpoints)
    };
    Etcd::connect(settings).await.unwrap()
}

async fn check_refused(store: &Etcd, who: &str) {
    match store.commit(put("/meridian/v1/plan", "mine", None)).await {
        Err(StoreError::Unavailable { .. }) => {}
        other => panic!("{who}: {other:?}"),
    }
}

/// The end of every certificate between a control plane and etcd is a metric: also of those that members show.
async fn check_ends_are_a_metric(endpoints: &[String], files: &Files) {
    let etcd = Arc::new(Service::load(files.clone()).unwrap());
    let mut registry = prometheus_client::registry::Registry::default();
    registry.register_collector(Box::new(EtcdExpiry(Some(etcd.clone()))));
    let settings = Settings {
        tls: Some(etcd),
        ..Settings::new(endpoints.to_vec())
    };
    let page = || {
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &registry).unwrap();
        page
    };
    let ends = |kind: &str| -> Option<f64> {
        let name = format!("meridian_control_plane_etcd_expires_timestamp_seconds{{certificate=\"{kind}\"}} ");
        page().lines().find_map(|line| line.strip_prefix(&name)?.parse().ok())
    };
    assert_eq!(ends("member"), None, "none was seen yet");
    let shown = eventually("members show their certificates", || async { ends("member") });
    let shown = tokio::select! {
        () = look_at_members(settings) => unreachable!("it was never stopped"),
        shown = shown => shown,
    };
    let days = |at: f64| ((at - daemon::clock::now().0 as f64 / 1_000.0) / 86_400.0).round();
    assert_eq!(days(shown), 1.0);
    let all = ["own", "issuer", "root"].map(|kind| days(ends(kind).unwrap()));
    assert_eq!(all[..2], [1.0, 365.0]);
    assert!(all[2] > 3_000.0, "{all:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_takes_decisions_from_those_with_its_certificate_only() {
    let folder = tempfile::tempdir().unwrap();
    let (ours, others) = (
        authority(&folder.path().join("ours")),
        authority(&folder.path().join("others")),
    );
    let mut cluster = cluster_with(Size::Three, |settings| settings.authority = Some(ours.clone())).await;
    let endpoints = cluster.etcd.endpoints();
    assert!(endpoints.iter().all(|endpoint| endpoint.starts_with("https://")));
    cluster.leader().await;

    // The certificates of nodes are another authority's, also those of control planes.
    let files = issue(&others, "control-plane/cp-1", &folder.path().join("node"));
    let trust = ours.folder.trust();
    std::fs::copy(trust, &files.trust).unwrap();
    check_refused(&store(endpoints.clone(), Some(&files)).await, "another authority").await;
    let plain = endpoints.iter().map(|endpoint| endpoint.replacen("https", "http", 1));
    check_refused(&store(plain.collect(), None).await, "plain text").await;
    // The control plane does not believe an etcd of another authority either.
    let own = issue(&ours, "control-plane/cp-1", &folder.path().join("own"));
    let misled = issue(&ours, "control-plane/cp-1", &folder.path().join("misled"));
    std::fs::copy(others.folder.trust(), &misled.trust).unwrap();
    check_refused(&store(endpoints.clone(), Some(&misled)).await, "another trust").await;

    check_ends_are_a_metric(&endpoints, &own).await;
    let store = store(endpoints, Some(&own)).await;
    let written = store.commit(put("/meridian/v1/plan", "ours", None)).await;
    assert!(written.is_ok(), "{written:?}");

    // Every certificate is exchanged, and nobody restarts anything but a member, so that connections are opened anew.
    issue(&ours, "control-plane/cp-1", &folder.path().join("own"));
    cluster.etcd.kill(0).unwrap();
    cluster.etcd.restart(0).await.unwrap();
    eventually("the store answers", || async {
        let found = store.list("/meridian/v1/").await.ok()?;
        (found.entries.len() == 1).then_some(())
    })
    .await;
}
