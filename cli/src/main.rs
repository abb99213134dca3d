//! The `meridian` command: every tool for operators and developers of a deployment.
//!
//! Exit codes: 0 ok · 1 failed · 2 usage · 3 refused by a safety rule · 4 needs approval · 5 unreachable · 6 outcome
//! unknown · 8 aborted or expired · 130 interrupted.

mod act;
mod audit;
mod call;
mod cert;
mod device_key;
mod dns;
mod documents;
mod edges;
mod exit;
mod explain;
mod explain_page;
mod join;
mod length;
mod manual;
mod models;
mod oidc_login;
mod operator_token;
mod options;
mod output;
mod present;
#[cfg(test)]
mod printed;
mod reach;
mod role;
mod say;
mod sealed;
mod simulate;
mod texts;
mod up;
mod zone_key;

use std::{process::ExitCode, sync::Arc};

use crate::{
    exit::Failure,
    options::{Demo, Options, Verb},
    output::{Output, complain, print},
    reach::Reach,
};
use api::v1;

#[tokio::main]
async fn main() -> ExitCode {
    let options: Options = output::options();
    // Commands print their own results. Logs would mix with them, so only RUST_LOG turns logs on.
    if std::env::var_os("RUST_LOG").is_some() {
        daemon::telemetry::init(daemon::telemetry::Format::Pretty);
    }
    match run(options).await {
        Ok(code) => code,
        Err(failure) => {
            complain(&format!("{:#}", failure.error));
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
        Verb::Dns { verb } => dns::dns(verb, &reach, output).await,
        Verb::Simulate { file, documents } => simulate::play(&file, &documents, output),
        Verb::Topology {
            verb: documents::DocumentVerb::Validate { file },
        } => documents::validate(v1::DocumentKind::Topology, &file),
        Verb::Policy {
            verb: documents::DocumentVerb::Validate { file },
        } => documents::validate(v1::DocumentKind::Policy, &file),
        Verb::Audit {
            verb: audit::AuditVerb::Replay { file: Some(file), key },
        } => audit::replay_file(&file, key.as_deref(), output),
        Verb::Audit {
            verb:
                audit::AuditVerb::Verify {
                    file,
                    trust,
                    heads,
                    key,
                },
        } => audit::verify_file(
            &file,
            key.as_deref(),
            &trust.map_or_else(|| reach.trust(), Ok)?,
            &heads,
            output,
        ),
        Verb::Login(cert::Login {
            token: Some(token),
            into,
            ..
        }) => join::log_in(&token, into, &reach.control_planes, &state_dir).await,
        Verb::Login(cert::Login {
            oidc: true,
            root: Some(root),
            into,
            ..
        }) => oidc_login::log_in(&root, into, &reach.control_planes, &state_dir).await,
        Verb::Login(login) => cert::login(login, &state_dir),
        Verb::OperatorToken(asked) => operator_token::operator_token(&asked, output),
        Verb::Cert {
            verb: cert::CertVerb::Token(asked),
        } => join::make_token(asked, &reach.operator()?, output).await,
        Verb::Cert {
            verb: cert::CertVerb::Join(asked),
        } => join::join(asked, &reach.control_planes).await,
        Verb::Cert { verb } => cert::cert(verb, reach.operator().ok()).await,
        Verb::DeviceKey(asked) => device_key::device_key(&asked, output),
        Verb::Models(models) => models::models(models, output).await,
        Verb::Completion { shell } => manual::print_completions(shell),
        Verb::Man { dir } => manual::write_pages(&dir),
        verb => ask(verb, &reach, output).await,
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
            audit::AuditVerb::Export {
                file,
                from,
                to,
                encrypt_to,
            } => {
                return audit::export(&operator, &file, (from, to), encrypt_to.as_deref(), output).await;
            }
            audit::AuditVerb::Head => return audit::head(&operator).await,
            audit::AuditVerb::Verify { .. } => unreachable!("it was carried out without asking"),
            audit::AuditVerb::Replay { .. } => return audit::replay_live(&operator, output).await,
        },
        Verb::Up(_)
        | Verb::Demo(_)
        | Verb::Call(_)
        | Verb::Explain { .. }
        | Verb::Dns { .. }
        | Verb::Simulate { .. }
        | Verb::Login(_)
        | Verb::Cert { .. }
        | Verb::DeviceKey(_)
        | Verb::OperatorToken(_)
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
