//! A world for a test: real processes, a folder of its own, logs shown when the test fails.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

pub mod openai_client;

use std::{sync::Arc, time::Instant};

use client::CallOptions;
use drill::{Recording, Resolver};
use tokio::sync::{Mutex, MutexGuard};
use world::{StoreKind, World};

/// Two worlds at once would want the processors of both, and each measures how fast it recovers.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// A healthy world, and what callers need.
pub struct Stage {
    /// The processes.
    pub world: World,
    /// Asks the world's name server, as devices do.
    pub resolver: Resolver,
    /// Options of the callers, who call by the zone's name.
    pub options: CallOptions,
    /// The recorded calls of the demo.
    pub recordings: Arc<Vec<Recording>>,
    began: Instant,
    _folder: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Stage {
    /// Starts everything, with the policy of the demo, and waits until every region is known to be healthy. Waits first until
    /// the worlds of other tests are cleared.
    pub async fn set() -> Self {
        Self::set_on(StoreKind::Embedded).await
    }

    /// The same, with decisions kept in a store of one's choice.
    pub async fn set_on(store: StoreKind) -> Self {
        let turn = ONE_AT_A_TIME.lock().await;
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
            _turn: turn,
        }
    }

    /// Says what is tested now.
    pub fn scene(&self, title: &str) {
        println!("{:5.1} s  {title}", self.began.elapsed().as_secs_f64());
    }

    /// Ends the world; nothing may be left of it.
    pub async fn clear(self) {
        let pids = self.world.pids().await;
        self.world.shutdown().await;
        for (name, pid) in pids {
            let left = std::path::Path::new(&format!("/proc/{pid}")).exists();
            assert!(!left, "{name} ({pid}) is left");
        }
    }
}
