use std::io::Write as _;

use std::net::TcpListener;

use super::*;

fn in_folder(folder: &tempfile::TempDir, size: Size) -> EtcdSettings {
    EtcdSettings::for_tests(size, folder.path())
}

/// Whether an etcd process has this id. Checks the name too, because the system gives ids to new processes.
fn is_etcd(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "etcd")
}

/// Asks until a member says that it leads; a busy one may be late to answer.
async fn elected(cluster: &EtcdCluster) -> usize {
    let elected = async {
        loop {
            match cluster.leader().await {
                Some(leader) => return leader,
                None => tokio::time::sleep(LOOK_AGAIN).await,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), elected)
        .await
        .expect("a member leads")
}

#[tokio::test]
async fn three_members_elect_a_leader_lose_it_and_get_it_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = EtcdCluster::start(in_folder(&folder, Size::Three)).await.unwrap();
    let pids: Vec<u32> = cluster.members().iter().filter_map(|member| member.pid).collect();
    assert_eq!(pids.len(), 3);
    let first = elected(&cluster).await;
    cluster.kill(first).unwrap();
    assert!(!is_etcd(pids[first]));
    assert!(matches!(cluster.kill(first), Err(EtcdError::NotRunning(_))));
    assert!(matches!(cluster.launch((first + 1) % 3), Err(EtcdError::Running(_))));
    cluster.healthy().await.unwrap();
    let second = elected(&cluster).await;
    assert_ne!(first, second);
    cluster.restart(first).await.unwrap();
    assert_eq!(elected(&cluster).await, second);
    let follower = 3 - first - second;
    cluster.stop(follower).await.unwrap();
    let address = cluster.addresses[follower].client;
    assert!(
        cluster.ask(address, "GET /health", "").await.is_err(),
        "a frozen member says nothing"
    );
    cluster.resume(follower).unwrap();
    cluster.healthy().await.unwrap();
    let pids: Vec<u32> = cluster.members().iter().filter_map(|member| member.pid).collect();
    drop(cluster);
    assert!(!pids.into_iter().any(is_etcd), "nothing outlives a cluster");
}

#[tokio::test]
async fn a_cluster_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let settings = in_folder(&folder, Size::One);
    let cluster = EtcdCluster::start(settings.clone()).await.unwrap();
    let endpoints = cluster.endpoints();
    // "a" and "b" in base64.
    let put = r#"{"key":"YQ==","value":"Yg=="}"#;
    cluster
        .ask(cluster.addresses[0].client, "POST /v3/kv/put", put)
        .await
        .unwrap();
    drop(cluster);
    let cluster = EtcdCluster::start(settings).await.unwrap();
    assert_eq!(cluster.endpoints(), endpoints);
    let range = cluster.ask(cluster.addresses[0].client, "POST /v3/kv/range", r#"{"key":"YQ=="}"#);
    assert!(range.await.unwrap().contains(r#""value":"Yg==""#));
}

#[tokio::test]
async fn a_taken_address_is_an_error_with_etcds_own_words() {
    let folder = tempfile::tempdir().unwrap();
    let settings = in_folder(&folder, Size::One);
    let address = EtcdCluster::start(settings.clone()).await.unwrap().addresses[0].client;
    let _taken = TcpListener::bind(address).unwrap();
    let error = EtcdCluster::start(settings).await.unwrap_err().to_string();
    assert!(error.contains("address already in use"), "{error}");
}

#[test]
fn a_missing_program_names_the_package() {
    let error = find("no-such-program", "etcd-server").unwrap_err().to_string();
    assert!(error.contains("install etcd-server"), "{error}");
}

/// With this variable, the test's program is the supervisor of the next test: it prints its member's process id and
/// waits to be killed.
const SUPERVISOR: &str = "MERIDIAN_TEST_ETCD_SUPERVISOR";

#[tokio::test]
async fn a_killed_supervisor_leaves_nothing_behind() {
    if let Some(folder) = std::env::var_os(SUPERVISOR) {
        let settings = EtcdSettings::for_tests(Size::One, Path::new(&folder));
        let cluster = EtcdCluster::start(settings).await.unwrap();
        println!("pid={}", cluster.members()[0].pid.unwrap());
        std::io::stdout().flush().unwrap();
        std::future::pending::<()>().await;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut supervisor = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "--nocapture",
            "etcd::tests::a_killed_supervisor_leaves_nothing_behind",
        ])
        .env(SUPERVISOR, folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let said = std::io::BufReader::new(supervisor.stdout.take().unwrap());
    let mut lines = std::io::BufRead::lines(said).map(Result::unwrap);
    let pid = lines.find_map(|line| line.split_once("pid=").map(|(_, pid)| pid.trim().to_owned()));
    let pid: u32 = pid.unwrap().parse().unwrap();
    assert!(is_etcd(pid));
    supervisor.kill().unwrap();
    supervisor.wait().unwrap();
    let began = Instant::now();
    while is_etcd(pid) {
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "etcd outlives its supervisor"
        );
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}
