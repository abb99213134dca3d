//! `kill -9` at any moment loses no commit that the embedded store acknowledged, and leaves no half of a commit.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Command, Stdio},
};

use server::store::{Embedded, Store, Transaction};

/// Names the file to write to. The test sets it in the process that it kills.
const VICTIM: &str = "MERIDIAN_TEST_STORE_VICTIM";
const KILLS: u64 = 10;

/// Commits numbers without end, each under two keys, and prints the acknowledged ones.
async fn write_until_killed(file: &Path) {
    let store = Embedded::open(file).unwrap();
    let mut number = acknowledged(&store).await + 1;
    loop {
        let key = |half: &str| format!("/{half}/{number:06}");
        let value = format!("{number} ").repeat(50).into_bytes();
        let mut transaction = Transaction {
            expect: vec![(key("left"), None)],
            put: vec![(key("left"), value.clone()), (key("right"), value)],
            delete: vec![],
        };
        // It removes old numbers, so that the kill also interrupts removals.
        if let Some(old) = number.checked_sub(100).filter(|old| *old > 0) {
            transaction.delete = vec![format!("/left/{old:06}"), format!("/right/{old:06}")];
        }
        store.commit(transaction).await.unwrap();
        println!("\nacknowledged {number}");
        std::io::stdout().flush().unwrap();
        number += 1;
    }
}

/// The greatest number in the store. Checks both halves of it and of the 99 before it.
async fn acknowledged(store: &Embedded) -> u64 {
    let numbers = |half: &'static str| async move {
        let listing = store.list(half).await.unwrap();
        let number = |key: &String| key[half.len()..].parse::<u64>().unwrap();
        for (key, entry) in &listing.entries {
            assert_eq!(entry.value, format!("{} ", number(key)).repeat(50).into_bytes());
        }
        listing.entries.keys().map(number).collect::<Vec<_>>()
    };
    let (left, right) = (numbers("/left/").await, numbers("/right/").await);
    assert_eq!(left, right, "half a transaction");
    let last = left.last().copied().unwrap_or(0);
    assert_eq!(
        left,
        (last.saturating_sub(100) + 1..=last).collect::<Vec<_>>(),
        "a commit is missing"
    );
    last
}

#[tokio::test]
async fn every_acknowledged_write_survives_ten_kills() {
    if let Some(file) = std::env::var_os(VICTIM) {
        write_until_killed(Path::new(&file)).await;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("store.redb");
    let mut last = 0;
    for round in 0..KILLS {
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "--nocapture",
                "store_crash::every_acknowledged_write_survives_ten_kills",
            ])
            .env(VICTIM, &file)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(victim.stdout.take().unwrap());
        let mut numbers = said
            .lines()
            .filter_map(|line| line.ok()?.strip_prefix("acknowledged ")?.parse::<u64>().ok());
        // The kill hits the writes after this many at a random point.
        let writes = usize::try_from(1 + (round * 7_919) % 31).unwrap();
        numbers.nth(writes - 1).unwrap();
        victim.kill().unwrap();
        victim.wait().unwrap();
        // Lines printed before the kill count too.
        let said = numbers.last();
        let store = Embedded::open(&file).unwrap();
        let found = acknowledged(&store).await;
        assert!(
            found >= said.unwrap_or(0).max(last + u64::try_from(writes).unwrap()),
            "lost: {said:?}"
        );
        assert!(
            store.list("/").await.unwrap().revision > found,
            "revisions grow across restarts"
        );
        last = found;
    }
}
