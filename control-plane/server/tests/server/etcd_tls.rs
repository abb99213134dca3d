//! etcd with mutual TLS: it takes decisions from control planes only.

use std::{path::Path, sync::Arc};

use identity::{PeerId, Service, ca::Leaf, files::Files};
use server::store::{Etcd, Store as _, StoreError, etcd::Settings};
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
