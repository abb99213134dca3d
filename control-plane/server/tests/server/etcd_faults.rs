//! Faults of etcd clusters: writes, watches and leaderships survive them.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::etcd_support::{
    DEADLINE, answering_late, candidate, cluster, cluster_with, eventually, put, soon, store, write_once,
};
use etcd_client::{AlarmAction, AlarmType, Client};
use server::store::{Etcd, Listing, Mirror, Outcome, Store, StoreError, Transaction, WatchEnd, mirror};
use tokio_util::sync::CancellationToken;
use world::etcd::Size;

const SHORT_LEASE: Duration = Duration::from_secs(2);

/// A mirror that lists only when it must, kept up to date until the end of the test.
fn mirror(store: &Etcd, prefix: &str) -> Mirror {
    let settings = mirror::Settings {
        relist_every: Duration::from_secs(600),
        ..mirror::Settings::default()
    };
    let (mirror, follow) = Mirror::new(Arc::new(store.clone()), prefix, settings);
    tokio::spawn(follow.run(CancellationToken::new()));
    mirror
}

async fn until_mirrored(mirror: &Mirror, what: &str, holds: impl FnMut(&Arc<Listing>) -> bool) {
    soon(what, mirror.contents().wait_for(holds)).await.unwrap();
}

fn fenced(fence: (String, Option<u64>), key: &str) -> Transaction {
    let mut transaction = put(key, "", None);
    transaction.expect.push(fence);
    transaction
}

#[tokio::test]
async fn killing_etcds_leader_under_load_stops_no_write_and_hides_no_change() {
    let mut cluster = cluster(Size::Three).await;
    let leader = cluster.leader().await;
    // All clients use the member that is about to die.
    let (writer, watcher) = (cluster.store_at(leader).await, cluster.store_at(leader).await);
    let mirror = mirror(&watcher, "/load/");
    let start = watcher.list("/load/").await.unwrap().revision;
    let watched = tokio::spawn(async move {
        let (mut seen, mut position) = (Vec::new(), start);
        loop {
            let Ok(mut changes) = watcher.watch("/load/", position).await else {
                // The store already moved on to the next member.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            while let Ok(batch) = changes.next().await {
                position = batch.revision;
                for change in batch.changes {
                    if change.key == "/load/end" {
                        return seen;
                    }
                    seen.push((change.key, change.revision));
                }
            }
        }
    });
    let written = Arc::new(AtomicU64::new(0));
    let counter = written.clone();
    let load = tokio::spawn(async move {
        let mut acknowledged = Vec::new();
        for number in 0..400 {
            let key = format!("/load/{number:04}");
            let revision = write_once(&writer, &key, "x").await;
            acknowledged.push((key, revision));
            counter.fetch_add(1, Ordering::SeqCst);
        }
        write_once(&writer, "/load/end", "x").await;
        acknowledged
    });
    eventually("writes", || async {
        (written.load(Ordering::SeqCst) > 100).then_some(())
    })
    .await;
    cluster.etcd.kill(leader).unwrap();
    let acknowledged = soon("writes go on", load).await.unwrap();
    assert_eq!(acknowledged.len(), 400);
    let seen = soon("the watch goes on", watched).await.unwrap();
    assert_eq!(seen, acknowledged, "every change exactly once and in order");
    until_mirrored(&mirror, "the mirror goes on", |listing| {
        listing.entries.contains_key("/load/end")
    })
    .await;
    let contents = mirror.contents().borrow().clone();
    for (key, revision) in &acknowledged {
        assert_eq!(contents.entries[key].revision, *revision);
    }
    assert_eq!((mirror.divergences(), mirror.restores()), (0, 0));
}

#[tokio::test]
async fn a_mirror_that_fell_behind_a_compaction_lists_again_and_misses_nothing() {
    let cluster = cluster(Size::One).await;
    let (behind, writer) = (cluster.store().await, cluster.store().await);
    let settings = mirror::Settings {
        relist_every: Duration::from_secs(600),
        ..mirror::Settings::default()
    };
    let (mirror, follow) = Mirror::new(Arc::new(behind), "/c/", settings);
    let mut follow = Box::pin(follow.run(CancellationToken::new()));
    let first = writer.commit(put("/c/0", "first", None)).await.unwrap();
    let mut contents = mirror.contents();
    tokio::select! {
        () = &mut follow => unreachable!("nobody stops it"),
        listed = soon("it lists", contents.wait_for(|listing| listing.revision >= first)) => drop(listed.unwrap()),
    }

    // The test does not read the watch now. Once the buffers on the way are full the watch falls behind, and compaction
    // removes the changes that it has not sent.
    let value = "v".repeat(16 << 10);
    let writes = (0..8).map(|task: usize| {
        let (writer, value) = (writer.clone(), value.clone());
        tokio::spawn(async move {
            for number in 0..300 {
                let mut transaction = put(&format!("/c/{}", (task * 300 + number) % 97), &value, None);
                transaction.expect.clear();
                writer.commit(transaction).await.unwrap();
            }
        })
    });
    for write in writes.collect::<Vec<_>>() {
        write.await.unwrap();
    }
    let last = writer.commit(put("/c/last", "last", None)).await.unwrap();
    let mut client = Client::connect(cluster.etcd.endpoints(), None).await.unwrap();
    client.compact(last.cast_signed(), None).await.unwrap();

    tokio::select! {
        () = &mut follow => unreachable!("nobody stops it"),
        listed = soon("it catches up", contents.wait_for(|listing| listing.entries.contains_key("/c/last"))) => {
            drop(listed.unwrap());
        }
    }
    assert_eq!(
        mirror.contents().borrow().entries,
        writer.list("/c/").await.unwrap().entries
    );
    assert_eq!((mirror.listings(), mirror.divergences(), mirror.restores()), (2, 0, 0));
}

#[tokio::test]
async fn a_mirror_leaves_a_member_that_went_silent() {
    let mut cluster = cluster(Size::Three).await;
    let watcher = cluster.store().await;
    let mirror = mirror(&watcher, "/m/");
    until_mirrored(&mirror, "it lists", |listing| listing.revision > 0).await;
    let start = write_once(&watcher, "/m/first", "1").await;
    until_mirrored(&mirror, "it watches", |listing| {
        listing.entries.contains_key("/m/first")
    })
    .await;
    let bare = cluster.store().await;
    let mut changes = bare.watch("/m/", start).await.unwrap();
    let hangs_on = watcher.endpoint().to_owned();
    let index = cluster
        .etcd
        .endpoints()
        .iter()
        .position(|endpoint| *endpoint == hangs_on)
        .unwrap();
    cluster.etcd.stop(index).await.unwrap();
    let end = loop {
        match soon("the watch ends", changes.next()).await {
            Ok(batch) => assert!(batch.changes.is_empty(), "{batch:?}"),
            Err(end) => break end,
        }
    };
    assert!(
        matches!(end, WatchEnd::Stalled(_)),
        "long before the connection is given up: {end}"
    );
    assert_ne!(bare.endpoint(), hangs_on);

    let others = cluster.store_without(index).await;
    let revision = write_once(&others, "/m/news", "1").await;
    until_mirrored(&mirror, "the news", |listing| listing.entries.contains_key("/m/news")).await;
    assert_ne!(watcher.endpoint(), hangs_on);
    assert!(mirror.staleness().unwrap() < DEADLINE);

    // The silent member wakes up and sends old changes, which change nothing.
    cluster.etcd.resume(index).unwrap();
    let more = write_once(&others, "/m/more", "1").await;
    until_mirrored(&mirror, "more news", |listing| listing.entries.contains_key("/m/more")).await;
    let contents = mirror.contents().borrow().clone();
    assert_eq!(contents.entries["/m/news"].revision, revision);
    assert_eq!(contents.entries["/m/more"].revision, more);
    assert_eq!((mirror.divergences(), mirror.restores()), (0, 0));
}

#[tokio::test]
async fn without_a_quorum_errors_are_quick_the_lead_ends_by_its_own_clock_and_all_comes_back() {
    let mut cluster = cluster(Size::Three).await;
    let store = cluster.store().await;
    let lead = soon("it leads", store.campaign(&candidate("a", SHORT_LEASE)))
        .await
        .unwrap();
    let before = store.commit(fenced(lead.fence(), "/before")).await.unwrap();
    let lonely = cluster.store_at(2).await;
    let mut changes = lonely.watch("/", before).await.unwrap();
    for index in [0, 1] {
        cluster.etcd.stop(index).await.unwrap();
    }
    // Nothing prolongs the leadership from here on: its end by its own clock is before the end of the lease.
    let frozen = Instant::now();
    let ends = lead.valid_until().unwrap();
    assert!(
        ends <= frozen + SHORT_LEASE - Duration::from_millis(500),
        "half a second before the lease"
    );

    let began = Instant::now();
    let error = store.commit(put("/during", "", None)).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
    let error = store.list("/").await.unwrap_err();
    let nothing = matches!(
        &error,
        StoreError::Unavailable {
            outcome: Outcome::NothingWritten,
            ..
        }
    );
    assert!(nothing && error.to_string().contains("cannot be reached"), "{error}");
    assert!(matches!(store.health().await, Err(StoreError::Unavailable { .. })));
    // Three requests of four seconds at most, and a busy machine.
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    soon("the lead is lost", lead.lost()).await;
    assert!(!lead.is_valid());
    // The third member lives, but it is useless without a quorum.
    let end = soon("the watch ends", async {
        loop {
            if let Err(end) = changes.next().await {
                break end;
            }
        }
    });
    assert!(end.await.to_string().contains("no leader"));

    for index in [0, 1] {
        cluster.etcd.resume(index).unwrap();
    }
    write_once(&store, "/after", "").await;
    assert!(!lead.is_valid(), "a lost lead stays lost");
    let next = soon("somebody leads again", store.campaign(&candidate("b", SHORT_LEASE)))
        .await
        .unwrap();
    assert!(next.epoch() > lead.epoch());
    assert!(store.commit(fenced(lead.fence(), "/stale")).await.is_err());
    // The new leadership may be lost on a busy machine, but then it reports so.
    let fresh = store.commit(fenced(next.fence(), "/fresh")).await;
    assert!(fresh.is_ok() || !next.is_valid(), "{fresh:?}");
}

#[tokio::test]
async fn an_unanswered_write_says_that_its_outcome_is_unknown() {
    let mut cluster = cluster(Size::One).await;
    let store = cluster.store().await;
    store.commit(put("/a", "", None)).await.unwrap();
    cluster.etcd.stop(0).await.unwrap();
    let error = store.commit(put("/b", "", None)).await.unwrap_err();
    assert!(
        matches!(
            &error,
            StoreError::Unavailable {
                outcome: Outcome::Unknown,
                ..
            }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("unknown"), "{error}");
    // No member accepts connections: the commit was certainly not written.
    cluster.etcd.kill(0).unwrap();
    let certain = eventually("the old connection is given up", || async {
        match store.commit(put("/c", "", None)).await.unwrap_err() {
            StoreError::Unavailable { outcome, reason } => (outcome == Outcome::NothingWritten).then_some(reason),
            other => panic!("{other}"),
        }
    });
    assert!(certain.await.contains("http://127."), "the reason names the member");
    cluster.etcd.restart(0).await.unwrap();
    write_once(&store, "/c", "").await;
}

#[tokio::test]
async fn a_full_store_says_so_is_still_read_and_recovers() {
    let cluster = cluster_with(Size::One, |settings| settings.quota_bytes = Some(4 << 20)).await;
    let store = cluster.store().await;
    let value = vec![b'x'; 256 << 10];
    let error = loop {
        let transaction = Transaction {
            put: vec![("/big".to_owned(), value.clone())],
            ..Transaction::default()
        };
        if let Err(error) = store.commit(transaction).await {
            break error;
        }
    };
    for word in ["full", "compact", "defrag", "alarm disarm"] {
        assert!(error.to_string().contains(word), "{error}");
    }
    assert!(matches!(error, StoreError::NoSpace(_)));
    assert!(matches!(store.health().await, Err(StoreError::NoSpace(_))));
    let entry = store.get("/big").await.unwrap().unwrap();
    assert_eq!(entry.value, value);
    // A candidate waits and does not give up.
    let waiting = store.clone();
    let campaign = tokio::spawn(async move { waiting.campaign(&candidate("a", SHORT_LEASE)).await });

    let mut client = Client::connect(cluster.etcd.endpoints(), None).await.unwrap();
    client.compact(entry.revision.cast_signed(), None).await.unwrap();
    client.defragment().await.unwrap();
    let alarms = client.alarm(AlarmAction::Get, AlarmType::Nospace, None).await.unwrap();
    for alarm in alarms.alarms() {
        let mut member = etcd_client::AlarmOptions::new();
        member.with_member(alarm.member_id());
        client
            .alarm(AlarmAction::Deactivate, AlarmType::Nospace, Some(member))
            .await
            .unwrap();
    }
    store.commit(put("/after", "", None)).await.unwrap();
    assert!(store.health().await.unwrap().bytes < 4 << 20);
    soon("the candidate leads", campaign).await.unwrap().unwrap();
}

/// Endpoints of the cluster. The test sets it in the process that leads until it is frozen.
const LEADER: &str = "MERIDIAN_TEST_ETCD_LEADER";

/// Leads, prints so, and on command writes as the leader that it believes to be.
async fn lead_until_told_to_write(endpoints: &str) -> ! {
    let store = store(endpoints.split(',').map(str::to_owned).collect()).await;
    let lead = store.campaign(&candidate("frozen", SHORT_LEASE)).await.unwrap();
    println!("\nepoch {}", lead.epoch());
    std::io::stdout().flush().unwrap();
    let told = tokio::task::spawn_blocking(|| std::io::stdin().lines().next())
        .await
        .unwrap();
    told.unwrap().unwrap();
    let was_valid = lead.is_valid();
    let result = store.commit(fenced(lead.fence(), "/stale")).await;
    println!(
        "\nvalid {was_valid} {}",
        result.map_or_else(|error| error.to_string(), |_| "written".to_owned())
    );
    std::process::exit(0);
}

#[tokio::test]
async fn a_leader_frozen_past_its_lease_wakes_up_to_no_power() {
    if let Ok(endpoints) = std::env::var(LEADER) {
        lead_until_told_to_write(&endpoints).await;
    }
    let cluster = cluster(Size::One).await;
    let store = cluster.store().await;
    let mut frozen = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "--nocapture",
            "etcd_faults::a_leader_frozen_past_its_lease_wakes_up_to_no_power",
        ])
        .env(LEADER, cluster.etcd.endpoints().join(","))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(frozen.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    let epoch: u64 = said.find_map(|line| line.strip_prefix("epoch ")?.parse().ok()).unwrap();
    assert_eq!(store.leader().await.unwrap().unwrap().epoch, epoch);
    let signal = |name: &str| {
        let pid = frozen.id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    };
    signal("-STOP");
    let began = Instant::now();
    let successor = soon(
        "somebody else leads",
        store.campaign(&candidate("awake", Duration::from_secs(60))),
    )
    .await
    .unwrap();
    assert!(successor.epoch() > epoch);
    store.commit(fenced(successor.fence(), "/fresh")).await.unwrap();
    // Twice a second etcd looks for leases that ran out.
    assert!(began.elapsed() < SHORT_LEASE * 5, "{:?}", began.elapsed());

    signal("-CONT");
    frozen.stdin.take().unwrap().write_all(b"write\n").unwrap();
    let result = said.find(|line| line.starts_with("valid ")).unwrap();
    assert!(result.starts_with("valid false"), "{result}");
    assert!(
        result.contains("another control plane wrote /meridian/v1/leader first"),
        "{result}"
    );
    frozen.wait().unwrap();
    assert_eq!(store.get("/stale").await.unwrap(), None);
}

#[tokio::test]
async fn a_lead_that_was_dropped_runs_out_and_one_that_was_removed_by_hand_is_noticed() {
    let cluster = cluster(Size::One).await;
    let store = cluster.store().await;
    let dropped = soon("it leads", store.campaign(&candidate("a", SHORT_LEASE)))
        .await
        .unwrap();
    let fence = dropped.fence();
    drop(dropped);
    let next = soon("the lease runs out", store.campaign(&candidate("b", SHORT_LEASE)))
        .await
        .unwrap();
    assert!(store.commit(fenced(fence, "/stale")).await.is_err());

    let mut client = Client::connect(cluster.etcd.endpoints(), None).await.unwrap();
    client.delete(server::store::etcd::LEADER, None).await.unwrap();
    let error = store.commit(fenced(next.fence(), "/stale")).await.unwrap_err();
    assert!(matches!(error, StoreError::Conflict { found: None, .. }), "{error}");
    soon("it notices", next.lost()).await;
    assert!(store.get("/stale").await.unwrap().is_none());
}

#[tokio::test]
async fn a_lead_counts_from_when_it_was_asked_for_not_from_when_the_answer_came() {
    let cluster = cluster(Size::One).await;
    let delay = Duration::from_millis(400);
    let far_away = store(vec![answering_late(&cluster.etcd.endpoints()[0], delay).await]).await;
    let ttl = Duration::from_secs(4);
    let lead = soon("it leads", far_away.campaign(&candidate("a", ttl))).await.unwrap();
    // A fifth of the lease is the margin. The lease was granted, and then the key was written: two answers ago.
    let longest = ttl - ttl / 5;
    let first_end = lead.valid_until().unwrap();
    assert!(first_end <= Instant::now() - 2 * delay + longest);
    let renewed = eventually("the lead is renewed", || async {
        let end = lead.valid_until().unwrap();
        (end > first_end).then_some(end)
    });
    let end = renewed.await;
    assert!(end <= Instant::now() - delay + longest);
    assert!(lead.is_valid());
    lead.resign().await.unwrap();
    assert_eq!(cluster.store().await.leader().await.unwrap(), None);
}

#[tokio::test]
async fn of_two_that_found_nobody_leading_one_leads() {
    let cluster = cluster(Size::One).await;
    let delay = Duration::from_millis(400);
    let endpoint = &cluster.etcd.endpoints()[0];
    // Both candidates learn late that no replica leads, so each takes the lead before it can learn of the other.
    let (one, other) = (
        store(vec![answering_late(endpoint, delay).await]).await,
        store(vec![answering_late(endpoint, delay).await]).await,
    );
    let ttl = Duration::from_secs(10);
    let (one_stands, other_stands) = (candidate("one", ttl), candidate("other", ttl));
    let mut campaigns = [
        Box::pin(one.campaign(&one_stands)),
        Box::pin(other.campaign(&other_stands)),
    ];
    let [first, second] = &mut campaigns;
    let (lead, waiting) = soon("one leads", async {
        tokio::select! {
            lead = first => (lead.unwrap(), 1),
            lead = second => (lead.unwrap(), 0),
        }
    })
    .await;
    // Longer than the other candidate needs to learn the outcome of its attempt.
    let heard = tokio::time::timeout(4 * delay, &mut campaigns[waiting]).await;
    assert!(
        heard.is_err(),
        "two lead at once: {:?}",
        heard.map(|lead| lead.map(|lead| lead.epoch()))
    );
    assert!(lead.is_valid());
    let direct = cluster.store().await;
    direct.commit(fenced(lead.fence(), "/mine")).await.unwrap();
    assert_eq!(direct.leader().await.unwrap().unwrap().epoch, lead.epoch());
}

#[tokio::test]
async fn a_frozen_member_costs_no_lead() {
    let mut cluster = cluster(Size::Three).await;
    let follower = (cluster.leader().await + 1) % 3;
    let store = cluster.store_at(follower).await;
    let lead = soon("it leads", store.campaign(&candidate("a", Duration::from_secs(15))))
        .await
        .unwrap();
    cluster.etcd.stop(follower).await.unwrap();
    let ends = lead.valid_until().unwrap();
    // The leadership is renewed through another member before it ends.
    eventually("the lead is renewed", || async {
        assert!(lead.is_valid(), "the lead was lost");
        (lead.valid_until().unwrap() > ends).then_some(())
    })
    .await;
    store.commit(fenced(lead.fence(), "/going-on")).await.unwrap();
}

fn etcdctl(endpoint: &str, arguments: &[&str]) {
    let output = Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .arg(format!("--endpoints={endpoint}"))
        .args(arguments)
        .output()
        .expect("etcdctl is installed (tools/setup test)");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn a_restore_from_an_older_snapshot_is_noticed_said_and_followed() {
    let mut cluster = cluster(Size::One).await;
    let store = cluster.store().await;
    let mirror = mirror(&store, "/r/");
    write_once(&store, "/r/old", "1").await;
    let member = cluster.etcd.members().remove(0);
    let file = cluster.folder.path().join("snapshot");
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    etcdctl(&member.client_url, &["snapshot", "save", &path(&file)]);
    for number in 0..20 {
        write_once(&store, &format!("/r/new-{number}"), "1").await;
    }
    until_mirrored(&mirror, "it follows", |listing| listing.entries.len() == 21).await;
    let before = mirror.contents().borrow().revision;

    cluster.etcd.kill(0).unwrap();
    // No member answers: the copy stays as it is.
    assert_eq!(mirror.contents().borrow().entries.len(), 21);
    std::fs::remove_dir_all(&member.data_dir).unwrap();
    let (name, peer) = (member.name.clone(), member.peer_url.clone());
    let initial = cluster.etcd.initial_cluster();
    #[rustfmt::skip]
    etcdctl(&member.client_url, &[
        "snapshot", "restore", &path(&file), "--data-dir", &path(&member.data_dir),
        "--name", &name, "--initial-cluster", &initial, "--initial-advertise-peer-urls", &peer,
    ]);
    cluster.etcd.restart(0).await.unwrap();
    until_mirrored(&mirror, "the restored contents", |listing| listing.entries.len() == 1).await;
    assert_eq!((mirror.restores(), mirror.divergences()), (1, 0));
    assert!(mirror.contents().borrow().revision < before);
    write_once(&store, "/r/next", "1").await;
    until_mirrored(&mirror, "it follows from there", |listing| {
        listing.entries.contains_key("/r/next")
    })
    .await;
}
