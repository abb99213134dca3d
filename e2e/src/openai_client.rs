//! The unmodified `openai` Python package as a device. tools/setup installs it into .venv, and
//! tools/openai-client/drive.py drives it.

use std::path::Path;

use serde_json::Value;

/// Transcribes, synthesises and takes a realtime turn through the edge at `edge` (`http://address:port`).
pub async fn drive(edge: &str, recording: &Path) -> Value {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let python = root.join(".venv/bin/python");
    assert!(
        python.exists(),
        "the openai package is not installed; run tools/setup test"
    );
    let output = tokio::process::Command::new(python)
        .arg(root.join("tools/openai-client/drive.py"))
        .arg(format!("{edge}/v1"))
        .arg(recording)
        .kill_on_drop(true)
        .output()
        .await
        .expect("python starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("the script prints one JSON object")
}
