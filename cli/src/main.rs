//! The `meridian` command: everything people do with a deployment.
//!
//! Exit codes: 0 ok · 1 failed · 2 usage · 3 refused by a safety rule · 5 unreachable · 6 outcome unknown ·
//! 130 interrupted.

mod call;
mod exit;
mod present;
mod say;
mod up;

use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use api::{Operator, operator::Action};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::exit::Failure;

#[derive(Debug, Parser)]
#[command(
    name = "meridian",
    version,
    about = "Runs a multi-region voice deployment, asks it why, and tells it what to do",
    after_help = "Exit codes: 0 ok, 1 failed, 2 usage, 3 refused by a safety rule, 5 unreachable, 6 outcome unknown"
)]
struct Options {
    /// How results are printed.
    #[arg(short, long, value_enum, default_value_t = Output::Table, global = true)]
    output: Output,
    /// Control planes, separated by commas; those of the running world when not given.
    #[arg(
        long,
        value_name = "URL,...",
        global = true,
        env = "MERIDIAN_CONTROL_PLANE",
        value_delimiter = ','
    )]
    control_plane: Vec<String>,
    /// Where `up` keeps its world and the other commands look for it.
    #[arg(long, value_name = "DIR", global = true, env = "MERIDIAN_STATE_DIR")]
    state_dir: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Table,
    /// For programs, with a schema number.
    Json,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Start a whole deployment on this machine and keep it running until Ctrl-C.
    Up(up::Up),
    /// Play the story: real calls, a region dies under them, its sessions move, and it comes back.
    Demo(Demo),
    /// Call the running world as a device would: say something and hear the reply.
    Call(call::CallArgs),
    /// Show regions, edges, nodes and the plan in force.
    Status,
    /// Explain everything about one region: what was seen, what was decided, what is waited for.
    Why {
        /// The region.
        region: String,
    },
    /// List the newest decisions with their reasons.
    History {
        /// How many.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=500))]
        limit: u32,
    },
    /// Move a region's sessions to its backups now.
    Failover(OnRegion),
    /// Give an evacuated region its sessions back, step by step.
    Restore(OnRegion),
    /// Stop automatic decisions for a while.
    Freeze {
        /// For how long, such as 30m or 2h: a freeze never outlives the people who forgot it.
        #[arg(long = "for", value_name = "TIME", value_parser = parse_length)]
        length: Duration,
        #[command(flatten)]
        because: Because,
    },
    /// Allow automatic decisions again.
    Unfreeze {
        #[command(flatten)]
        because: Because,
    },
}

#[derive(Debug, Args)]
struct OnRegion {
    /// The region.
    region: String,
    #[command(flatten)]
    because: Because,
}

#[derive(Debug, Args)]
struct Because {
    /// Why; kept in the audit log.
    #[arg(long)]
    reason: String,
    /// Who; your login name when not given.
    #[arg(long, env = "USER", default_value = "operator")]
    author: String,
    /// Names the action: the same name twice is one action. Given when an earlier attempt has an unknown outcome.
    #[arg(long)]
    token: Option<String>,
}

#[derive(Debug, Args)]
struct Demo {
    /// Where the report, the replies and the logs go.
    #[arg(long, value_name = "DIR", default_value = "target/demo")]
    report: PathBuf,
    /// Callers who talk all the while.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(2..=100))]
    sessions: u16,
    /// The recorded calls (calls.tsv and its WAV files).
    #[arg(long, value_name = "DIR")]
    calls: Option<PathBuf>,
    /// The speech models; also MERIDIAN_MODELS_DIR.
    #[arg(long, value_name = "DIR")]
    models_dir: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    // Commands speak for themselves; their logs are for whoever asks for them.
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
    match options.verb {
        Verb::Up(up) => return up::up(up, state_dir).await,
        Verb::Demo(demo) => return play(demo).await,
        Verb::Call(call) => return call::call(call, &state_dir, output).await,
        _ => {}
    }
    let operator = Operator::at(match options.control_plane {
        named if named.is_empty() => world::find(&state_dir)?.control_planes,
        named => named,
    });
    match options.verb {
        Verb::Status => print(&present::status(&operator.status().await?, output)),
        Verb::Why { region } => print(&present::why(&operator.why(&region).await?, output)),
        Verb::History { limit } => print(&present::history(&operator.history(limit).await?, output)),
        Verb::Failover(OnRegion { region, because }) => {
            return act(&operator, &Action::Failover { region }, &because, output).await;
        }
        Verb::Restore(OnRegion { region, because }) => {
            return act(&operator, &Action::Restore { region }, &because, output).await;
        }
        Verb::Freeze { length, because } => {
            return act(&operator, &Action::Freeze { duration: length }, &because, output).await;
        }
        Verb::Unfreeze { because } => return act(&operator, &Action::Unfreeze, &because, output).await,
        Verb::Up(_) | Verb::Demo(_) | Verb::Call(_) => unreachable!("these were carried out above"),
    }
    Ok(ExitCode::SUCCESS)
}

async fn act(operator: &Operator, action: &Action, because: &Because, output: Output) -> Result<ExitCode, Failure> {
    let token = because.token.clone();
    let token = token.unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
    let reply = operator.act(action, &because.reason, &because.author, &token).await?;
    print(&present::action(&reply, output));
    Ok(if reply.accepted {
        ExitCode::SUCCESS
    } else {
        exit::REFUSED.into()
    })
}

async fn play(demo: Demo) -> Result<ExitCode, Failure> {
    // The world lies beside the report, so that the logs of a demo that failed are at hand.
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
    // Dropping the story drops its world, and with it every process.
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
        Failure::failed(error.context(format!("the story could not be told{logs}")))
    })?;
    Ok(if report.held {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Prints a result; whoever reads it may have gone (`| head`), which is no failure of ours.
pub(crate) fn print(text: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stdout(), "{}", text.trim_end());
}

/// A whole number and s, m, h or d.
fn parse_length(text: &str) -> Result<Duration, String> {
    let wrong = || format!("\"{text}\" is not a length of time; write a whole number and s, m, h or d, such as 30m");
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds_per_unit = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    match number.checked_mul(seconds_per_unit) {
        Some(0) | None => Err(wrong()),
        Some(seconds) => Ok(Duration::from_secs(seconds)),
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
            assert!(parse_length(wrong).unwrap_err().contains("such as 30m"), "{wrong}");
        }
    }

    #[test]
    fn an_action_needs_a_reason() {
        let parse = |line: &str| Options::try_parse_from(line.split(' '));
        assert!(parse("meridian failover us-east").is_err());
        assert!(parse("meridian failover us-east --reason drill -o json").is_ok());
        assert!(parse("meridian freeze --reason drill").is_err(), "a freeze has an end");
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
