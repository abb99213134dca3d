//! The `meridian` command: every tool for operators and developers of a deployment.
//!
//! Exit codes: 0 ok · 1 failed · 2 usage · 3 refused by a safety rule · 4 needs approval · 5 unreachable · 6 outcome
//! unknown · 8 aborted or expired · 130 interrupted.

mod act;
mod audit;
mod call;
mod cert;
mod device_key;
mod documents;
mod edges;
mod exit;
mod explain;
mod manual;
mod models;
mod present;
#[cfg(test)]
mod printed;
mod say;
mod simulate;
mod up;

use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use api::{Operator, v1};
use clap::{Args, Parser, Subcommand, ValueEnum};
use identity::Identity;

use crate::exit::Failure;

#[derive(Debug, Parser)]
#[command(
    name = "meridian",
    version,
    about = "Runs a multi-region voice deployment, asks it why, and tells it what to do",
    after_help = "Exit codes: 0 ok, 1 failed, 2 usage, 3 refused by a safety rule, 4 needs approval, 5 unreachable, \
                  6 outcome unknown, 8 aborted or expired"
)]
struct Options {
    /// Format of results.
    #[arg(short, long, value_enum, default_value_t = Output::Table, global = true)]
    output: Output,
    /// Control planes to ask, separated by commas; by default the running world's.
    #[arg(
        long,
        value_name = "URL,...",
        global = true,
        env = "MERIDIAN_CONTROL_PLANE",
        value_delimiter = ','
    )]
    control_plane: Vec<String>,
    /// Folder of the running world: `up` writes it, the other commands read it.
    #[arg(long, value_name = "DIR", global = true, env = "MERIDIAN_STATE_DIR")]
    state_dir: Option<PathBuf>,
    /// Folder of your credential; by default that of whoever started the running world. `meridian login` makes one.
    #[arg(long, value_name = "DIR", global = true, env = "MERIDIAN_IDENTITY")]
    identity: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

/// Format of results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// Tables for people.
    Table,
    /// JSON for programs, with a schema number.
    Json,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Start a whole deployment on this machine and keep it running until Ctrl-C.
    Up(up::Up),
    /// Play the story: real calls run, their region dies, the sessions move, and the region comes back.
    Demo(Demo),
    /// Call the running world as a device would: say something and hear the reply.
    Call(call::CallArgs),
    /// Show regions, edges, nodes and the plan in force.
    Status,
    /// Explain one region: its evidence, its decisions, and the conditions it waits for.
    Why {
        /// The region's name.
        region: String,
        /// Explain the region in a scenario instead, such as chaos/scenarios/incident-github-2018.scenario.
        #[arg(long, value_name = "FILE")]
        scenario: Option<PathBuf>,
        /// With --scenario: the time since its beginning; by default its end.
        #[arg(long, value_name = "TIME", value_parser = parse_length, requires = "scenario")]
        at: Option<Duration>,
        #[command(flatten)]
        documents: simulate::DocumentFiles,
    },
    /// Explain a route, by asking the edges, or a reason code.
    Explain {
        #[command(subcommand)]
        verb: explain::ExplainVerb,
    },
    /// Play a scenario in virtual time with the product's own decisions, and print every event.
    Simulate {
        /// The scenario's file.
        file: PathBuf,
        #[command(flatten)]
        documents: simulate::DocumentFiles,
    },
    /// List the newest decisions with their reasons.
    History {
        /// Number of decisions.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=500))]
        limit: u32,
    },
    /// Show the decision that would be made now, with the capacity table and every safety rule; changes nothing.
    Plan,
    #[command(flatten)]
    Act(act::Request),
    /// Wait until an action is over.
    Wait {
        /// The action's id, as the request printed it and `meridian status` shows it.
        action: String,
        /// The longest wait, such as 30s or 10m.
        #[arg(long, value_name = "TIME", default_value = "10m", value_parser = parse_length)]
        timeout: Duration,
    },
    /// The topology in force: regions, edges, name servers.
    Topology {
        #[command(subcommand)]
        verb: documents::DocumentVerb,
    },
    /// The policy in force: every number that decisions use.
    Policy {
        #[command(subcommand)]
        verb: documents::DocumentVerb,
    },
    /// The speech models of this machine: list, fetch, verify, use.
    Models(models::Models),
    /// Get a credential for yourself, for 12 hours, where you can read the authority's key.
    Login(cert::Login),
    /// Certificates of processes: an authority, leaves, trusted roots.
    Cert {
        #[command(subcommand)]
        verb: cert::CertVerb,
    },
    /// Make a key for a device, and the lines of devices.toml that let it in.
    DeviceKey(device_key::DeviceKey),
    /// The audit log: export it, or replay its decisions.
    Audit {
        #[command(subcommand)]
        verb: audit::AuditVerb,
    },
    /// Print the completions of a shell, such as `meridian completion bash >/etc/bash_completion.d/meridian`.
    Completion {
        /// The shell to complete for.
        shell: clap_complete::Shell,
    },
    /// Write the man pages, one for each command, such as meridian-failover.1.
    Man {
        /// Folder for the pages, created if missing.
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
}

#[derive(Debug, Args)]
struct Demo {
    /// Folder for the report, the replies and the logs.
    #[arg(long, value_name = "DIR", default_value = "target/demo")]
    report: PathBuf,
    /// Number of callers who talk throughout the story.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(2..=100))]
    sessions: u16,
    /// Folder of the recorded calls (calls.tsv and its WAV files).
    #[arg(long, value_name = "DIR")]
    calls: Option<PathBuf>,
    /// Folder of the speech models; also MERIDIAN_MODELS_DIR.
    #[arg(long, value_name = "DIR")]
    models_dir: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    // Commands print their own results. Logs would mix with them, so only RUST_LOG turns logs on.
    if std::env::var_os("RUST_LOG").is_some() {
        daemon::telemetry::init(daemon::telemetry::Format::Pretty);
    }
    match run(options).await {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("meridian: {:#}", failure.error);
            failure.code.into()
        }
    }
}

async fn run(options: Options) -> Result<ExitCode, Failure> {
    let state_dir = options.state_dir.unwrap_or_else(world::settings::default_state_dir);
    let output = options.output;
    let reach = Reach {
        control_planes: options.control_plane,
        identity: options.identity,
        state_dir: state_dir.clone(),
    };
    match options.verb {
        Verb::Up(up) => up::up(up, state_dir).await,
        Verb::Demo(demo) => play(demo).await,
        Verb::Call(call) => call::call(call, &state_dir, output).await,
        // The verbs here do without a control plane; the last arm asks one.
        Verb::Why {
            region,
            scenario: Some(file),
            at,
            documents,
        } => simulate::why(&region, &file, at, &documents, output),
        Verb::Explain {
            verb: explain::ExplainVerb::Route(route),
        } => explain::route(route, &reach, output).await,
        Verb::Explain {
            verb: explain::ExplainVerb::Reason { code },
        } => explain::reason(code.as_deref(), output),
        Verb::Simulate { file, documents } => simulate::play(&file, &documents, output),
        Verb::Topology {
            verb: documents::DocumentVerb::Validate { file },
        } => documents::validate(v1::DocumentKind::Topology, &file),
        Verb::Policy {
            verb: documents::DocumentVerb::Validate { file },
        } => documents::validate(v1::DocumentKind::Policy, &file),
        Verb::Audit {
            verb: audit::AuditVerb::Replay { file: Some(file) },
        } => audit::replay_file(&file, output),
        Verb::Login(login) => cert::login(login, &state_dir),
        Verb::Cert { verb } => cert::cert(verb, reach.operator().ok()).await,
        Verb::DeviceKey(asked) => device_key::device_key(&asked, output),
        Verb::Models(models) => models::models(models, output).await,
        Verb::Completion { shell } => manual::print_completions(shell),
        Verb::Man { dir } => manual::write_pages(&dir),
        verb => ask(verb, &reach, output).await,
    }
}

/// The addresses of the control planes, and the credential of whoever asks them.
pub(crate) struct Reach {
    pub(crate) control_planes: Vec<String>,
    pub(crate) identity: Option<PathBuf>,
    /// Folder of the running world.
    pub(crate) state_dir: PathBuf,
}

impl Reach {
    /// A client of the named control planes, or else of the running world's.
    pub(crate) fn operator(&self) -> Result<Operator, Failure> {
        let mut folder = self.identity.clone();
        let urls = if self.control_planes.is_empty() {
            let record = world::find(&self.state_dir)?;
            folder.get_or_insert(record.operator);
            record.control_planes
        } else {
            self.control_planes.clone()
        };
        let files = folder.map(|folder| identity::files::Files::in_folder(&folder));
        let identity = Identity::load_if(files, daemon::clock::now).map_err(|error| {
            Failure::failed(anyhow::anyhow!(
                "{error}. `meridian login NAME --roles ROLE` makes a credential, and --identity names its folder"
            ))
        })?;
        if let Some(own) = identity.as_ref().map(|identity| identity.own())
            && own.until <= daemon::clock::now()
        {
            let text = format!(
                "the credential of {} has expired at {}; `meridian login NAME --roles ROLE` makes another",
                own.id.role.name(),
                own.until
            );
            return Err(Failure::failed(anyhow::anyhow!(text)));
        }
        Ok(Operator::at(urls).with_identity(identity))
    }
}

/// Carries out the commands that need a control plane.
async fn ask(verb: Verb, reach: &Reach, output: Output) -> Result<ExitCode, Failure> {
    let (operator, state_dir) = (reach.operator()?, reach.state_dir.as_path());
    match verb {
        Verb::Status => print(&present::status(&operator.status().await?, output)),
        Verb::Why { region, .. } => print(&present::why(&operator.why(&region).await?, output)),
        Verb::History { limit } => print(&present::history(&operator.history(limit).await?, output)),
        Verb::Plan => print(&present::plan(&operator.plan(None).await?, output)),
        Verb::Act(request) => return act::act(&operator, request, state_dir, output).await,
        Verb::Wait { action, timeout } => return act::wait(&operator, &action, timeout, output).await,
        Verb::Topology { verb } => {
            return documents::document(&operator, v1::DocumentKind::Topology, verb, output).await;
        }
        Verb::Policy { verb } => return documents::document(&operator, v1::DocumentKind::Policy, verb, output).await,
        Verb::Audit { verb } => match verb {
            audit::AuditVerb::Export { file, from, to } => {
                return audit::export(&operator, &file, (from, to), output).await;
            }
            audit::AuditVerb::Replay { .. } => return audit::replay_live(&operator, output).await,
        },
        Verb::Up(_)
        | Verb::Demo(_)
        | Verb::Call(_)
        | Verb::Explain { .. }
        | Verb::Simulate { .. }
        | Verb::Login(_)
        | Verb::Cert { .. }
        | Verb::DeviceKey(_)
        | Verb::Models(_)
        | Verb::Completion { .. }
        | Verb::Man { .. } => unreachable!("these were carried out without asking"),
    }
    Ok(ExitCode::SUCCESS)
}

async fn play(demo: Demo) -> Result<ExitCode, Failure> {
    // The world's folder lies beside the report: the logs of a failed demo stay at hand.
    let mut world = world::Settings::new(demo.report.join("world"));
    if let Some(models_dir) = demo.models_dir {
        world.models_dir = models_dir;
    }
    let logs = world.state_dir.clone();
    let settings = drill::demo::Settings {
        report_dir: demo.report,
        calls_dir: demo.calls.unwrap_or_else(drill::recordings::default_folder),
        sessions: demo.sessions.into(),
        world,
    };
    let narrator = Arc::new(drill::Narrator::on_stdout());
    // On Ctrl-C the story is dropped; that drops its world and ends every process.
    let report = tokio::select! {
        report = drill::demo(settings, narrator) => report,
        () = up::asked_to_stop() => return Ok(exit::INTERRUPTED.into()),
    };
    let report = report.map_err(|error| {
        let logs = if logs.exists() {
            format!("; logs are in {}", logs.display())
        } else {
            String::new()
        };
        Failure::failed(error.context(format!("the story failed{logs}")))
    })?;
    Ok(if report.passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Prints a result. The reader may have closed the pipe (`| head`); that is no failure of the command.
pub(crate) fn print(text: &str) {
    use std::io::Write as _;
    // Reasons and authors are other people's text: escape control characters.
    let text = topology::text::for_terminal(text.trim_end());
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Parses a duration as documents have it, but not zero.
pub(crate) fn parse_length(text: &str) -> Result<Duration, String> {
    match text.parse::<topology::document::Span>()?.0 {
        Duration::ZERO => Err("0 is out of range; write a duration greater than zero, such as \"30m\"".to_owned()),
        length => Ok(length),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn lengths_of_time_are_read_or_explained() {
        assert_eq!(parse_length("30m"), Ok(Duration::from_secs(1_800)));
        for wrong in [
            "",
            "m",
            "30",
            "-1h",
            "0s",
            "30µ",
            "99999999999999999999d",
            "9999999999999999999d",
        ] {
            assert!(parse_length(wrong).unwrap_err().contains("; write "), "{wrong}");
        }
    }

    #[test]
    fn an_action_needs_a_reason() {
        let parse = |line: &str| Options::try_parse_from(line.split(' '));
        assert!(parse("meridian failover us-east").is_err());
        assert!(parse("meridian failover us-east --reason drill -o json").is_ok());
        assert!(parse("meridian freeze --reason drill").is_err(), "a freeze has an end");
        assert!(
            parse("meridian failover us-east --reason drill --accept-loss 1h").is_err(),
            "only with --promote"
        );
    }

    #[test]
    fn several_control_planes_can_be_named() {
        let line = "meridian status --control-plane http://127.0.0.1:7110,http://127.0.0.1:7120";
        let options = Options::try_parse_from(line.split(' ')).unwrap();
        assert_eq!(
            options.control_plane,
            ["http://127.0.0.1:7110", "http://127.0.0.1:7120"]
        );
        let command = "meridian unfreeze --reason over --control-plane http://127.0.0.1:7110";
        let options = Options::try_parse_from(command.split(' ')).unwrap();
        assert_eq!(options.control_plane.len(), 1);
    }
}
