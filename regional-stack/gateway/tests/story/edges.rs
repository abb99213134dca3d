//! A real edge before a region.

use std::{net::SocketAddr, path::Path, sync::Arc};

use edge::{
    accept::{listener, tls::Tls, workers::Workers},
    metrics::Metrics,
};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use topology::{RegionId, Snapshot, fixtures::three_primaries, snapshot::digest};

use crate::region::HANGS_AFTER;

pub(crate) struct Edge {
    pub(crate) http: SocketAddr,
    /// Its address for TLS, if it has one.
    pub(crate) https: Option<SocketAddr>,
    stop: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
}

impl Edge {
    /// An edge whose home is this region; `more` goes before its configuration.
    pub(crate) async fn before(region: SocketAddr, more: &str) -> Self {
        let mut snapshot: Snapshot = three_primaries();
        for known in snapshot.topology.regions.values_mut() {
            known.stacks.clear();
        }
        let home = RegionId::new("eu-west").unwrap();
        snapshot.topology.regions.get_mut(&home).unwrap().stacks = vec![region.into()];
        snapshot.plan.documents = digest(&snapshot.topology, snapshot.dns_ttl_s, &snapshot.probe);
        let document = format!(
            "node = \"edge-dub\"\nlisten = [\"127.0.0.1:0\"]\nadmin_listen = \"127.0.0.1:0\"\n\
             control_planes = [\"http://127.0.0.1:1\"]\nstate_dir = \"unused\"\n\
             affinity_key = \"00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\"\n{more}"
        );
        let config: edge::Config = daemon::config::parse("edge.toml", &document).unwrap();
        let metrics = Metrics::new(&mut Registry::default());
        let tls = Tls::load(&config.tls, Path::new(""), metrics.clone()).unwrap();
        let tls = tls.map(Arc::new);
        let listeners = listener::claim(&config, tls.as_ref(), None).unwrap().listen().unwrap();
        let addresses: Vec<SocketAddr> = listeners.iter().map(|listener| listener.address().unwrap()).collect();
        let edge = Arc::new(edge::Edge::new(config, metrics));
        edge.apply(&snapshot);
        let stop = CancellationToken::new();
        let serving = tokio::spawn(listener::serve(
            edge.clone(),
            Workers::start(&edge).unwrap(),
            listeners,
            Default::default(),
            stop.clone(),
            std::future::pending(),
        ));
        Self {
            http: addresses[0],
            https: addresses.get(1).copied(),
            stop,
            serving,
        }
    }

    pub(crate) async fn stopped(self) {
        self.stop.cancel();
        tokio::time::timeout(HANGS_AFTER, self.serving).await.unwrap().unwrap();
    }
}
