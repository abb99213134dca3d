//! The command line, as clap reads it.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};

use crate::{
    act, audit, call, cert, device_key, dns, documents, explain, length::parse_length, models, operator_token,
    output::Output, simulate, up,
};

#[derive(Debug, Parser)]
#[command(
    name = "meridian",
    version,
    about = "Runs a multi-region voice deployment, asks it why, and tells it what to do",
    after_help = "Exit codes: 0 ok, 1 failed, 2 usage, 3 refused by a safety rule, 4 needs approval, 5 unreachable, \
                  6 outcome unknown, 8 aborted or expired"
)]
pub(crate) struct Options {
    /// Format of results.
    #[arg(short, long, value_enum, default_value_t = Output::Table, global = true)]
    pub(crate) output: Output,
    /// Control planes to ask, separated by commas; by default the running world's.
    #[arg(
        long,
        value_name = "URL,...",
        global = true,
        env = "MERIDIAN_CONTROL_PLANE",
        value_delimiter = ','
    )]
    pub(crate) control_plane: Vec<String>,
    /// Folder of the running world: `up` writes it, the other commands read it.
    #[arg(long, value_name = "DIR", global = true, env = "MERIDIAN_STATE_DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// Folder of your credential; by default that of the person who started the running world. `meridian login` makes one.
    #[arg(long, value_name = "DIR", global = true, env = "MERIDIAN_IDENTITY")]
    pub(crate) identity: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
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
    /// DNS answers: every step that leads to one, or one question to a name server.
    Dns {
        #[command(subcommand)]
        verb: dns::DnsVerb,
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
    /// Get a credential for yourself, for 12 hours, where you can read the authority's key; or for a program, with its token.
    Login(cert::Login),
    /// Certificates of processes: an authority, leaves, trusted roots.
    Cert {
        #[command(subcommand)]
        verb: cert::CertVerb,
    },
    /// Make a token with which a program logs in, and the lines of operators.toml that know it.
    OperatorToken(operator_token::OperatorToken),
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
pub(crate) struct Demo {
    /// Folder for the report, the replies and the logs.
    #[arg(long, value_name = "DIR", default_value = "target/demo")]
    pub(crate) report: PathBuf,
    /// Number of callers who talk throughout the story.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(2..=100))]
    pub(crate) sessions: u16,
    /// Folder of the recorded calls (calls.tsv and its WAV files).
    #[arg(long, value_name = "DIR")]
    pub(crate) calls: Option<PathBuf>,
    /// Folder of the speech models; also MERIDIAN_MODELS_DIR.
    #[arg(long, value_name = "DIR")]
    pub(crate) models_dir: Option<PathBuf>,
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
