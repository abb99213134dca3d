//! A process of its own for a test that changes what all tests of a process share: its open files, its system calls, its log.

use std::process::Command;

/// Environment variable of a process that one test has for itself.
const ALONE: &str = "MERIDIAN_TEST_ALONE";

/// Runs a test, named with its module, in a process of its own and fails as it does; then the test is done. False in that
/// process, where the test goes on.
pub fn done_in_own_process(test: &str) -> bool {
    if std::env::var_os(ALONE).is_some() {
        return false;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(ALONE, "yes")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("test result: ok. 1 passed"), "{test}: {}", output.status);
    true
}
