//! A world for a test: real processes, a folder of its own, logs shown when the test fails.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::{sync::Arc, time::Instant};

use drill::{Recording, Resolver};
use probe::CallOptions;
use world::{StoreKind, World};

/// A healthy world, and what callers need.
pub(crate) struct Stage {
    pub(crate) world: World,
    pub(crate) resolver: Resolver,
    pub(crate) options: CallOptions,
    pub(crate) recordings: Arc<Vec<Recording>>,
    began: Instant,
    _folder: tempfile::TempDir,
}

impl Stage {
    /// Starts everything, with the policy of the demo, and waits until every region is known to be healthy.
    pub(crate) async fn set() -> Self {
        Self::set_on(StoreKind::Embedded).await
    }

    /// The same, with decisions kept in a store of one's choice.
    pub(crate) async fn set_on(store: StoreKind) -> Self {
        let began = Instant::now();
        let folder = tempfile::tempdir().unwrap();
        let mut settings = world::Settings::new(folder.path().join("world"));
        settings.policy = drill::demo::policy();
        settings.store = store;
        settings.progress = Arc::new(|progress| println!("  {progress}"));
        let world = World::start(settings).await.unwrap_or_else(|error| panic!("{error}"));
        world.healthy().await.unwrap_or_else(|error| panic!("{error}"));
        let record = world.record().await;
        let resolver = Resolver::new(record.dns, &record.zone, record.edge_port).unwrap();
        let options = CallOptions {
            host: Some(record.zone),
            ..CallOptions::default()
        };
        let recordings = drill::recordings::load(&drill::recordings::default_folder()).unwrap();
        Self {
            world,
            resolver,
            options,
            recordings: Arc::new(recordings),
            began,
            _folder: folder,
        }
    }

    /// Says what is tested now.
    pub(crate) fn scene(&self, title: &str) {
        println!("{:5.1} s  {title}", self.began.elapsed().as_secs_f64());
    }

    /// Ends the world; nothing may be left of it.
    pub(crate) async fn clear(self) {
        let pids = self.world.pids().await;
        self.world.shutdown().await;
        for (name, pid) in pids {
            let left = std::path::Path::new(&format!("/proc/{pid}")).exists();
            assert!(!left, "{name} ({pid}) is left");
        }
    }
}
