//! Tokens for programs that order as operators: made here, and known to control planes by their hash only.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::anyhow;
use clap::Args;
use identity::{Role, files, join::Token, operators::OperatorTokens};
use serde_json::json;

use crate::{exit::Failure, length::parse_length, output::Output, output::print, present::document, texts};

/// Longest life of a token: somebody shall look at it once a year.
const LIFE_MAX: Duration = Duration::from_secs(366 * 86_400);

#[derive(Debug, Args)]
pub(crate) struct OperatorToken {
    /// Name of the program, unique in operators.toml; the audit log shows it.
    name: String,
    /// The roles of the token, separated by commas, as for `meridian login`.
    #[arg(long, value_name = "ROLE,...")]
    roles: String,
    /// Life of the token, at most 366d.
    #[arg(long = "for", value_name = "TIME", value_parser = parse_length)]
    life: Duration,
    /// File with the root of the control planes, such as root.crt of the authority: the program shows its token under this root only.
    #[arg(long, value_name = "FILE")]
    root: PathBuf,
}

/// Makes a token, and the lines that know it. Nothing is stored.
pub(crate) fn operator_token(asked: &OperatorToken, output: Output) -> Result<ExitCode, Failure> {
    let OperatorToken {
        name,
        roles,
        life,
        root,
    } = asked;
    if *life > LIFE_MAX {
        return Err(Failure::usage(texts::token_life_too_long()));
    }
    let roots = files::read(root).map_err(|error| Failure::failed(error.into()))?;
    let token =
        Token::under(Role::Operator(name.clone()), &roots).ok_or_else(|| Failure::usage(texts::not_one_root(root)))?;
    let end = jiff::Timestamp::now().checked_add(*life);
    let end = end.map_err(|_| Failure::usage(texts::life_too_long()))?;
    let lines = format!(
        "[[token]]\nname = {name:?}\nroles = {roles:?}\nsha256 = \"{}\"\nexpires = \"{}\"\n",
        token.hash(),
        end.strftime("%Y-%m-%dT%H:%M:%SZ")
    );
    // The control plane will read these lines, so what it would refuse is refused here.
    OperatorTokens::parse("these lines", &lines).map_err(|problems| Failure::usage(anyhow!("{problems}")))?;
    match output {
        Output::Json => print(&document(json!({ "token": token.to_string(), "toml": lines }))),
        Output::Table => print(&format!(
            "{token}\n\nThe program logs in with it: `meridian login --token - --control-plane URL`. It is not shown again.\nAdd these lines \
             to the operators.toml of every control plane:\n\n{lines}"
        )),
    }
    Ok(ExitCode::SUCCESS)
}
