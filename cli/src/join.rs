//! The way of a new process into a deployment: an admin makes a token, and the process shows it. Programs log in the same way.

use std::{
    io::Read as _,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use api::{
    Operator,
    join::{JoinError, Joined},
    v1,
};
use clap::Args;
use identity::{
    Role, ca,
    files::{self, FileError, Files},
    join::Token,
};
use serde_json::json;
use topology::Moment;
use world::authority::operator_folder;

use crate::{
    exit::Failure,
    length::parse_length,
    output::{Output, print},
    present::document,
    role::parse_role,
    texts,
};

/// Longest token on standard input, in bytes: several times what one has.
const TOKEN_BYTES_MAX: u64 = 4_096;
/// File of the key that waits for its certificate. A token is bound to the first key that it was shown with, so an attempt whose answer was
/// lost is repeated with the same one.
const WAITING_KEY: &str = "joining.key";

#[derive(Debug, Args)]
pub(crate) struct MakeToken {
    /// The process that may join: edge/NAME, dns/NAME, control-plane/NAME or stack/REGION/NAME, by its name in the topology.
    #[arg(long, value_name = "KIND/NAME", value_parser = parse_role)]
    role: Role,
    /// Life of the token, at most 1h.
    #[arg(long = "for", value_name = "TIME", default_value = "15m", value_parser = parse_length)]
    life: Duration,
    /// The reason, for the audit log.
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

#[derive(Debug, Args)]
pub(crate) struct Join {
    /// The token, as `meridian cert token` printed it; `-` reads it from standard input, where no list of processes shows it.
    token: String,
    /// Folder for identity.crt, identity.key and trust.crt.
    #[arg(long, value_name = "DIR")]
    into: PathBuf,
}

/// Makes a token and shows it once.
pub(crate) async fn make_token(asked: MakeToken, operator: &Operator, output: Output) -> Result<ExitCode, Failure> {
    let MakeToken { role, life, reason } = asked;
    let request = v1::TokenRequest {
        role: role.to_string(),
        life_ms: u64::try_from(life.as_millis()).unwrap_or(u64::MAX),
        reason,
    };
    let v1::Token { token, until_ms } = operator.make_token(request).await?;
    print(&match output {
        Output::Json => document(json!({ "token": token, "role": role.to_string(), "until_ms": until_ms })),
        Output::Table => format!(
            "{token}\n\n{role} may join with it once, until {:#} UTC. On its machine:\n  meridian cert join - --control-plane {} --into DIR",
            Moment(until_ms),
            operator.urls().join(",")
        ),
    });
    Ok(ExitCode::SUCCESS)
}

/// Joins with a token, and writes the identity.
pub(crate) async fn join(asked: Join, control_planes: &[String]) -> Result<ExitCode, Failure> {
    let Join { token, into } = asked;
    let token = read_token(&token)?;
    if let Role::Operator(name) = &token.role {
        return Err(Failure::usage(texts::token_is_an_operators(name)));
    }
    let joined = ask(&token, &into, control_planes).await?;
    print(&format!(
        "{} until {:#} UTC, in {}\nname its files in [identity]; control planes renew the certificate while the process runs",
        joined.peer.id,
        joined.peer.until,
        into.display()
    ));
    Ok(ExitCode::SUCCESS)
}

/// Logs a program in with its token, and writes its credential.
pub(crate) async fn log_in(
    token: &str,
    into: Option<PathBuf>,
    control_planes: &[String],
    state_dir: &Path,
) -> Result<ExitCode, Failure> {
    let token = read_token(token)?;
    let Role::Operator(name) = &token.role else {
        return Err(Failure::usage(texts::token_is_a_process_s(&token.role)));
    };
    let into = folder_of(name, into, state_dir)?;
    let joined = ask(&token, &into, control_planes).await?;
    say_logged_in(&joined, &into);
    Ok(ExitCode::SUCCESS)
}

/// Writes the credential of a person who logged in.
pub(crate) fn keep_login(joined: &Joined, into: Option<PathBuf>, state_dir: &Path) -> Result<ExitCode, Failure> {
    let role = &joined.peer.id.role;
    let into = folder_of(role.name(), into, state_dir)?;
    let files = Files::in_folder(&into);
    may_hold(&files, role, &into)?;
    keep(joined, &files, &into)?;
    say_logged_in(joined, &into);
    Ok(ExitCode::SUCCESS)
}

/// The folder of an operator's credential. The line that is printed is typed in any folder.
fn folder_of(name: &str, into: Option<PathBuf>, state_dir: &Path) -> Result<PathBuf, Failure> {
    let into = into.unwrap_or_else(|| operator_folder(state_dir, name));
    Ok(std::path::absolute(&into).with_context(|| format!("cannot use {}", into.display()))?)
}

fn say_logged_in(joined: &Joined, into: &Path) {
    print(&format!(
        "{} has the roles {} until {:#} UTC\nexport MERIDIAN_IDENTITY='{}'",
        joined.peer.id.role.name(),
        joined.peer.roles(),
        joined.peer.until,
        into.display()
    ));
}

fn read_token(text: &str) -> Result<Token, Failure> {
    let read = match text {
        "-" => from_stdin().context("cannot read the token from standard input")?,
        _ => text.to_owned(),
    };
    read.parse()
        .map_err(|error: identity::join::BadToken| Failure::usage(error.into()))
}

/// Shows a token, and writes what comes of it.
async fn ask(token: &Token, into: &Path, control_planes: &[String]) -> Result<Joined, Failure> {
    if control_planes.is_empty() {
        return Err(Failure::usage(texts::nobody_to_ask()));
    }
    let files = Files::in_folder(into);
    // Before the token is used up.
    may_hold(&files, &token.role, into)?;
    make_private(into)?;
    let waiting = into.join(WAITING_KEY);
    let key = waiting_key(&waiting)?;
    let joined = api::join::join(control_planes, token, key, daemon::clock::now()).await;
    let joined = joined.map_err(|error| match error {
        JoinError::Unanswered(why) => Failure::unreachable(texts::token_unanswered(&why, &waiting)),
        other => other.into(),
    })?;
    keep(&joined, &files, into)?;
    std::fs::remove_file(&waiting).with_context(|| format!("cannot remove {}", waiting.display()))?;
    Ok(joined)
}

/// The key of an earlier attempt, or a new one.
fn waiting_key(file: &Path) -> Result<String, Failure> {
    let failed = |error: FileError| Failure::failed(error.into());
    match files::read_key(file) {
        Err(FileError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            let (key, _) = ca::request().map_err(JoinError::from)?;
            files::write(file, &key, 0o600).map_err(failed)?;
            Ok(key)
        }
        read => read.map_err(failed),
    }
}

fn make_private(folder: &Path) -> Result<(), Failure> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    Ok(made.with_context(|| format!("cannot use {}", folder.display()))?)
}

fn keep(joined: &Joined, files: &Files, into: &Path) -> Result<(), Failure> {
    make_private(into)?;
    let failed = |error: files::FileError| Failure::failed(error.into());
    files::write(&files.trust, &joined.trust, 0o644).map_err(failed)?;
    files.write(&joined.credential).map_err(failed)
}

/// A folder with the certificate of another process stays as it is.
fn may_hold(files: &Files, role: &Role, into: &Path) -> Result<(), Failure> {
    let old = files::read(&files.certificate).ok().and_then(|pem| ca::peer_of(&pem));
    match old.filter(|old| old.id.role != *role) {
        None => Ok(()),
        Some(old) => Err(Failure::failed(texts::folder_is_anothers(into, &old.id))),
    }
}

fn from_stdin() -> std::io::Result<String> {
    let mut text = String::new();
    std::io::stdin().take(TOKEN_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}
