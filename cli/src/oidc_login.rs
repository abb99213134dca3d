//! A person logs in at the identity provider, and gets the same certificate as with every other login.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, anyhow};
use identity::{files, join::RootHash};
use oidc::{Metadata, flow};

use crate::{exit::Failure, join, output::print};

/// Logs in: asks a control plane for its provider, lets the person sign in there, and shows the id token to a control plane.
pub(crate) async fn log_in(
    root: &Path,
    into: Option<PathBuf>,
    control_planes: &[String],
    state_dir: &Path,
) -> Result<ExitCode, Failure> {
    if control_planes.is_empty() {
        let text = "--control-plane: somebody has to be asked; write --control-plane https://address:port";
        return Err(Failure::usage(anyhow!(text)));
    }
    let roots = files::read(root).map_err(|error| Failure::failed(error.into()))?;
    let root = RootHash::of_only(&roots).ok_or_else(|| {
        let text = format!("{} holds no root, or several; name a file with one", root.display());
        Failure::usage(anyhow!(text))
    })?;
    let described = api::join::describe_login(control_planes, root).await;
    let described = described.map_err(|error| Failure::failed(error.into()))?;
    let signing_in = tokio::task::spawn_blocking(move || {
        let metadata = Metadata::of(&described.issuer)?;
        flow::sign_in(
            &metadata,
            &described.client_id,
            &described.scope,
            show,
            std::thread::sleep,
        )
    });
    let token = signing_in.await.context("signing in panicked")?;
    let token = token.map_err(|error| Failure::failed(error.into()))?;
    let joined = api::join::log_in(control_planes, root, &token, daemon::clock::now()).await;
    let joined = joined.map_err(|error| Failure::failed(error.into()))?;
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
