//! The documents in force: print, validate, compare and apply them.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use api::{Operator, v1};
use clap::Subcommand;
use similar::TextDiff;
use topology::{Policy, Problems, Topology};

use crate::{
    act::Because,
    exit::{self, Failure},
    output::Output,
    output::print,
    present,
};

#[derive(Debug, Subcommand)]
pub(crate) enum DocumentVerb {
    /// Print the document in force.
    Get,
    /// Check a file and report every problem with its line. Contacts no control plane.
    Validate {
        /// The document to check (TOML).
        file: PathBuf,
    },
    /// Show how a file differs from the document in force, and the plan that would follow.
    Diff {
        /// The document to compare (TOML).
        file: PathBuf,
    },
    /// Put a file in force.
    Apply {
        /// The document to put in force (TOML).
        file: PathBuf,
        #[command(flatten)]
        because: Because,
    },
}

pub(crate) fn validate(kind: v1::DocumentKind, file: &Path) -> Result<ExitCode, Failure> {
    let text = read(file)?;
    parse(kind, file, &text).map_err(|problems| Failure::failed(anyhow::anyhow!("{problems}")))?;
    print(&format!("{} is well formed", file.display()));
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn document(
    operator: &Operator,
    kind: v1::DocumentKind,
    verb: DocumentVerb,
    output: Output,
) -> Result<ExitCode, Failure> {
    match verb {
        DocumentVerb::Validate { file } => validate(kind, &file),
        DocumentVerb::Get => {
            let document = operator.document(kind).await?;
            print(&present::document_in_force(&document, output));
            Ok(ExitCode::SUCCESS)
        }
        DocumentVerb::Diff { file } => {
            let in_force = operator.document(kind).await?;
            let text = checked(kind, &file)?;
            if in_force.text == text {
                print("no difference");
                return Ok(ExitCode::SUCCESS);
            }
            let name = file.display().to_string();
            let difference = TextDiff::from_lines(&in_force.text, &text)
                .unified_diff()
                .context_radius(3)
                .header("in force", &name)
                .to_string();
            let try_it = request(kind, text, &in_force.version, ("a dry run", "nobody", "dry-run"), true);
            let tried = operator.apply(try_it).await?;
            print(&present::difference(&difference, &tried, output));
            Ok(if tried.accepted {
                ExitCode::SUCCESS
            } else {
                exit::REFUSED.into()
            })
        }
        DocumentVerb::Apply { file, because } => {
            let text = checked(kind, &file)?;
            let in_force = operator.document(kind).await?;
            let token = because.token();
            let author = because.author(operator);
            let who = (because.reason(), author.as_str(), token.as_str());
            let reply = operator
                .apply(request(kind, text, &in_force.version, who, because.dry_run()))
                .await?;
            print(&present::applied(&reply, because.dry_run(), output));
            Ok(if reply.accepted {
                ExitCode::SUCCESS
            } else {
                exit::REFUSED.into()
            })
        }
    }
}

fn request(
    kind: v1::DocumentKind,
    text: String,
    replaces: &str,
    (reason, author, token): (&str, &str, &str),
    dry_run: bool,
) -> v1::ApplyDocumentRequest {
    v1::ApplyDocumentRequest {
        kind: kind.into(),
        text,
        replaces: replaces.to_owned(),
        author: author.to_owned(),
        reason: reason.to_owned(),
        token: token.to_owned(),
        dry_run,
    }
}

/// The text of a well-formed file. Problems name the file, where the control plane would name the document.
fn checked(kind: v1::DocumentKind, file: &Path) -> Result<String, Failure> {
    let text = read(file)?;
    parse(kind, file, &text).map_err(|problems| Failure::failed(anyhow::anyhow!("{problems}")))?;
    Ok(text)
}

fn parse(kind: v1::DocumentKind, file: &Path, text: &str) -> Result<(), Problems> {
    let name = file.display().to_string();
    match kind {
        v1::DocumentKind::Policy => Policy::parse(&name, text).map(drop),
        v1::DocumentKind::Topology | v1::DocumentKind::Unspecified => Topology::parse(&name, text).map(drop),
    }
}

fn read(file: &Path) -> Result<String, Failure> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(text)
}
