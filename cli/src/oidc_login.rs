//! A person logs in at the identity provider, and gets the same certificate as with every other login.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use api::v1;
use identity::{files, join::RootHash};
use oidc::{
    Client, Metadata, Unasked,
    flow::{self, NotSignedIn},
};

use crate::{exit::Failure, join, output::print, texts};

/// Logs in: asks a control plane for its provider, lets the person sign in there, and shows the id token to a control plane.
pub(crate) async fn log_in(
    root: &Path,
    into: Option<PathBuf>,
    control_planes: &[String],
    state_dir: &Path,
) -> Result<ExitCode, Failure> {
    if control_planes.is_empty() {
        return Err(Failure::usage(texts::nobody_to_ask()));
    }
    let roots = files::read(root).map_err(|error| Failure::failed(error.into()))?;
    let root = RootHash::of_only(&roots).ok_or_else(|| Failure::usage(texts::not_one_root(root)))?;
    let described = api::join::describe_login(control_planes, root).await;
    let v1::LoginDescription {
        issuer,
        client_id,
        scope,
        trust,
    } = described?;
    let signing_in = tokio::task::spawn_blocking(move || {
        let client = Client::new((!trust.is_empty()).then_some(trust.as_str()))?;
        let metadata = Metadata::of(&client, &issuer)?;
        flow::sign_in(&client, &metadata, (&client_id, &scope), show, std::thread::sleep)
    });
    let token = signing_in.await.context("signing in panicked")?;
    let token = token.map_err(|error| match error {
        NotSignedIn::Unasked(error @ Unasked::Http { .. }) => Failure::unreachable(texts::provider_is_away(error)),
        other => Failure::failed(other.into()),
    })?;
    let joined = api::join::log_in(control_planes, root, &token, daemon::clock::now()).await?;
    join::keep_login(&joined, into, state_dir)
}

fn show(begun: &flow::Begun) {
    let visible = |text: &str| text.replace(topology::text::is_hidden, "?");
    let (page, code) = (visible(&begun.verification_uri), visible(&begun.user_code));
    let whole = begun.verification_uri_complete.as_deref().map(visible);
    let short = whole.map_or_else(String::new, |url| format!("\nor open {url}"));
    print(&format!(
        "open {page} on any device and enter {code}{short}\nwaiting ..."
    ));
}
