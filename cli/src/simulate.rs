//! `simulate` and `why --scenario`: the product's own decisions in virtual time.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::Args;
use serde_json::json;
use simulator::Scenario;
use topology::{Policy, RegionId, Topology, fixtures::three_primaries};

use crate::{
    exit::Failure,
    output::{Output, complain, print},
    present, texts,
};

/// The documents that a scenario is played with.
#[derive(Debug, Args)]
pub(crate) struct DocumentFiles {
    /// For a scenario: a topology to use instead of the six regions of the shipped scenarios.
    #[arg(long, value_name = "FILE")]
    topology: Option<PathBuf>,
    /// For a scenario: a policy to use instead of the default one.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
}

impl DocumentFiles {
    fn read(&self) -> Result<(Topology, Policy), Failure> {
        let topology = match &self.topology {
            None => three_primaries().topology,
            Some(file) => Topology::parse(&file.display().to_string(), &text(file)?).map_err(anyhow::Error::from)?,
        };
        let policy = match &self.policy {
            None => Policy::default(),
            Some(file) => Policy::parse(&file.display().to_string(), &text(file)?).map_err(anyhow::Error::from)?,
        };
        Ok((topology, policy))
    }
}

pub(crate) fn play(file: &Path, documents: &DocumentFiles, output: Output) -> Result<ExitCode, Failure> {
    let (topology, policy) = documents.read()?;
    let scenario = scenario(file)?;
    let record = simulator::play(&scenario, &topology, &policy).map_err(|error| at(file, error))?;
    print(&rendered(&record.transcript, output));
    let broken = record.broken.iter().map(|broken| format!("invariant broken: {broken}"));
    let unmet = scenario.expectations.iter().filter_map(|expectation| {
        let instead = expectation.judge(&record).err()?;
        Some(format!(
            "{}: expected {}, but {instead}",
            expectation.line, expectation.text
        ))
    });
    let mut passed = true;
    for complaint in broken.chain(unmet) {
        passed = false;
        complain(&format!("{}:{complaint}", file.display()));
    }
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

pub(crate) fn why(
    region: &str,
    file: &Path,
    until: Option<Duration>,
    documents: &DocumentFiles,
    output: Output,
) -> Result<ExitCode, Failure> {
    let (topology, policy) = documents.read()?;
    let region = RegionId::new(region).map_err(anyhow::Error::from)?;
    let scenario = scenario(file)?;
    if let Some(until) = until.filter(|until| *until > scenario.end) {
        let (end, until) = (scenario.end.as_secs(), until.as_secs());
        return Err(Failure::usage(texts::scenario_ends_before(file, end, until)));
    }
    let why = simulator::why(&scenario, &topology, &policy, &region, until).map_err(|error| at(file, error))?;
    print(&rendered(&why.to_string(), output));
    Ok(ExitCode::SUCCESS)
}

/// JSON holds the same lines as the text for people.
fn rendered(text: &str, output: Output) -> String {
    match output {
        Output::Table => text.to_owned(),
        Output::Json => present::document(json!({ "lines": text.lines().collect::<Vec<_>>() })),
    }
}

fn scenario(file: &Path) -> Result<Scenario, Failure> {
    Scenario::parse(&text(file)?).map_err(|error| at(file, error))
}

fn at(file: &Path, error: impl std::error::Error + Send + Sync + 'static) -> Failure {
    Failure::failed(anyhow::Error::from(error).context(file.display().to_string()))
}

fn text(file: &Path) -> Result<String, Failure> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(text)
}
