//! A stack of its own for a bench, and requests to it.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use daemon::Announcement;
use identity::{Identity, PeerId, ca::Leaf, files::Files};
use tokio::sync::broadcast;
use world::{authority::Folder, process::Supervised};

use crate::texts;

/// Longest wait for the models.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// The region of the stack.
pub const REGION: &str = "eu-west";
/// The zone of the certificates.
const ZONE: &str = "voice.example";

/// Starts a stack with the models of the source tree. `more` are further lines of its configuration.
pub async fn start(state_dir: &Path, more: &str) -> anyhow::Result<(Supervised, SocketAddr)> {
    let binaries = world::settings::default_binaries_dir();
    let models = models_dir()?;
    let configuration = state_dir.join("stack.toml");
    let document = format!(
        "region = \"{REGION}\"\nlisten = \"127.0.0.1:0\"\nadmin_listen = \"127.0.0.1:0\"\nmodels_dir = {:?}\n{more}",
        models.display().to_string()
    );
    std::fs::write(&configuration, document).with_context(|| texts::cannot_write(&configuration))?;
    let (deaths, _) = broadcast::channel(1);
    let program: PathBuf = binaries.join("meridian-stack");
    let mut stack = Supervised::new("stack-under-test", program, configuration, state_dir, deaths);
    stack.start()?;
    stack.ready(START_TIMEOUT).await?;
    let announcement =
        Announcement::read(&state_dir.join("stack-under-test.json"))?.context("the stack announced nothing")?;
    let address = announcement
        .addresses
        .get("http")
        .copied()
        .context("the stack has no HTTP address")?;
    Ok((stack, address))
}

/// Makes the certificates of a stack and of an edge below `folder`. Returns the stack's section `[identity]`, which lets in only callers
/// with a certificate, and the edge's identity.
pub fn required_identity(folder: &Path) -> anyhow::Result<(String, Arc<Identity>)> {
    let (stack, edge) = certificates(folder, REGION, "bench")?;
    let edge = Identity::load(edge, daemon::clock::now)?;
    Ok((identity_section(&stack) + "mode = \"required\"\n", edge))
}

/// Makes an authority below `folder`, and the certificates of a stack of `region` and of the edge of this name.
pub fn certificates(folder: &Path, region: &str, edge: &str) -> anyhow::Result<(Files, Files)> {
    let now = daemon::clock::now();
    let authority = Folder::at(folder.join("authority"));
    authority.create(ZONE, now)?;
    let issue = |role: &str, name: &str| -> anyhow::Result<_> {
        let leaf = Leaf::of(PeerId::new(ZONE, role.parse()?)?);
        Ok(authority.issue(&leaf, &folder.join(name), now)?)
    };
    Ok((
        issue(&format!("stack/{region}/a"), "stack")?,
        issue(&format!("edge/{edge}"), "edge")?,
    ))
}

/// The section `[identity]` of a process's configuration that names these files.
pub fn identity_section(files: &Files) -> String {
    let [certificate, key, trust] =
        [&files.certificate, &files.key, &files.trust].map(|path| path.display().to_string());
    format!("[identity]\ncertificate = {certificate:?}\nkey = {key:?}\ntrust = {trust:?}\n")
}

/// The models of the source tree around this program.
pub fn models_dir() -> anyhow::Result<PathBuf> {
    let binaries = world::settings::default_binaries_dir();
    world::settings::find_upwards(&binaries, "regional-stack/models")
        .with_context(|| texts::not_found("regional-stack/models"))
}

/// A request with a body, on a connection of its own.
pub fn request(path: &str, kind: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: stack\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// The request to transcribe a WAV file.
pub fn transcription(file: &[u8]) -> Vec<u8> {
    let mut body = b"--x\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\n".to_vec();
    body.extend_from_slice(file);
    body.extend_from_slice(b"\r\n--x--\r\n");
    request("/v1/audio/transcriptions", "multipart/form-data; boundary=x", &body)
}
