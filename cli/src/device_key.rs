//! Makes keys for devices. Edges know a key only by its hash.

use std::{process::ExitCode, time::Duration};

use anyhow::anyhow;
use clap::Args;
use serde_json::json;

use crate::{exit::Failure, length::parse_length, output::Output, output::print, present::document, texts};

#[derive(Debug, Args)]
pub(crate) struct DeviceKey {
    /// Name of the device, unique in devices.toml; logs show it.
    name: String,
    /// The tenant of devices.toml whose limits count.
    #[arg(long)]
    tenant: String,
    /// Life of the key, such as 720h; without it the key has no end.
    #[arg(long = "for", value_name = "TIME", value_parser = parse_length)]
    life: Option<Duration>,
}

/// Makes a key, and the lines of devices.toml that admit it. The command stores nothing.
pub(crate) fn device_key(asked: &DeviceKey, output: Output) -> Result<ExitCode, Failure> {
    let (key, sha256) = auth::new_key(rand::random());
    let expires = match asked.life {
        None => String::new(),
        Some(life) => {
            let end = jiff::Timestamp::now().checked_add(life);
            let end = end.map_err(|_| Failure::usage(texts::life_too_long()))?;
            format!("expires = \"{}\"\n", end.strftime("%Y-%m-%dT%H:%M:%SZ"))
        }
    };
    let (name, tenant) = (&asked.name, &asked.tenant);
    let lines = format!("[[key]]\nname = {name:?}\ntenant = {tenant:?}\nsha256 = \"{sha256}\"\n{expires}");
    // The edge will read these lines, so the command refuses what the edge would refuse.
    let whole = format!("[[tenant]]\nname = {tenant:?}\n{lines}");
    auth::Devices::parse("these lines", &whole).map_err(|problems| Failure::usage(anyhow!("{problems}")))?;
    match output {
        Output::Json => print(&document(json!({ "key": key, "toml": lines }))),
        Output::Table => print(&format!(
            "{key}\n\nThe device sends it as `Authorization: Bearer KEY`. It is not shown again.\nAdd these lines to the devices.toml \
             of every edge:\n\n{lines}"
        )),
    }
    Ok(ExitCode::SUCCESS)
}
