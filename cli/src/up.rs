//! `meridian up`: a whole deployment on this machine until Ctrl-C.

use std::{fmt::Write as _, io::BufRead as _, path::PathBuf, process::ExitCode, sync::Arc};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use futures_util::{
    StreamExt as _,
    future::{BoxFuture, FutureExt as _},
    stream::FuturesUnordered,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use world::{Progress, Record, StoreKind, World};

use crate::{
    exit::{Failure, INTERRUPTED},
    output::print,
};

#[derive(Debug, Args)]
pub(crate) struct Up {
    /// A policy to use instead of the default one (configs/policy.toml).
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Folder of the speech models.
    #[arg(long, value_name = "DIR")]
    models_dir: Option<PathBuf>,
    /// The store of decisions.
    #[arg(long, value_enum, default_value_t = Store::Embedded)]
    store: Store,
    /// Let web pages of this origin call the edges from a browser. May be given several times; * stands for every
    /// origin.
    #[arg(long = "origin", value_name = "https://APP")]
    origins: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Store {
    /// A file of one control plane.
    Embedded,
    /// Three members of etcd, shared by three control planes; needs etcd.
    Etcd,
}

pub(crate) async fn up(args: Up, state_dir: PathBuf) -> Result<ExitCode, Failure> {
    let mut settings = world::Settings::new(state_dir);
    if let Some(policy) = args.policy {
        settings.policy =
            std::fs::read_to_string(&policy).with_context(|| format!("cannot read {}", policy.display()))?;
        // Check the policy here, where all its problems reach the terminal; a control plane would write them to its
        // log.
        topology_policy(&policy, &settings.policy)?;
    }
    if let Some(models_dir) = args.models_dir {
        settings.models_dir = models_dir;
    }
    settings.origins = args.origins;
    settings.store = match args.store {
        Store::Embedded => StoreKind::Embedded,
        Store::Etcd => StoreKind::Etcd,
    };
    settings.progress = Arc::new(|progress| {
        if !matches!(progress, Progress::Started(_)) {
            print(&format!("  {progress}"));
        }
    });
    let control_planes = match args.store {
        Store::Embedded => "a control plane",
        Store::Etcd => "three members of etcd, three control planes",
    };
    print(&format!(
        "starting six regions, {control_planes}, a name server and two edges"
    ));
    let started = tokio::select! {
        world = World::start(settings) => world?,
        // Dropping a half-started world ends the processes started so far.
        () = asked_to_stop() => return Ok(INTERRUPTED.into()),
    };
    let world = Arc::new(started);
    print(&addresses(&world.record().await));
    let stopped = run_until_stopped(&world).await;
    print("stopping");
    let world = Arc::into_inner(world).context("a task still uses the world")?;
    tokio::select! {
        () = world.shutdown() => {
            print("stopped; no process is left");
            stopped.map(|()| ExitCode::SUCCESS)
        }
        // The second Ctrl-C: dropping the world kills the processes that remain.
        () = asked_to_stop() => Ok(INTERRUPTED.into()),
    }
}

fn topology_policy(path: &std::path::Path, text: &str) -> anyhow::Result<()> {
    topology::Policy::parse(&path.display().to_string(), text)
        .map(|_| ())
        .map_err(|problems| anyhow::anyhow!("{problems}"))
}

async fn run_until_stopped(world: &World) -> Result<(), Failure> {
    let mut deaths = world.deaths();
    let mut commands = commands();
    // Restarted processes that are not ready yet. The next command does not wait for them.
    let mut starting = FuturesUnordered::new();
    let healthy = async {
        match world.healthy().await {
            Ok(_) => print("  every region is healthy\n"),
            Err(error) => print(&format!("  {error}\n")),
        }
    };
    let mut healthy = std::pin::pin!(healthy);
    let mut is_reported = false;
    let stop = asked_to_stop();
    let mut stop = std::pin::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => return Ok(()),
            () = &mut healthy, if !is_reported => is_reported = true,
            Ok(death) = deaths.recv() => {
                let (name, log) = (&death.name, death.log.display());
                print(&format!("{name} ended unexpectedly ({}); log {log}:\n{}", death.how, death.last_words));
                print(&format!("type `restart {name}` to bring it back"));
            }
            Some(line) = commands.recv() => {
                print(&obey(world, &line, &mut starting).await);
            }
            Some(outcome) = starting.next() => print(&outcome),
        }
    }
}

/// The commands that `meridian up` takes on standard input.
const HELP: &str = "type: kill NAME · restart NAME · stop NAME (freeze) · resume NAME";

/// Carries a command out and returns its outcome as text.
async fn obey<'w>(world: &'w World, line: &str, starting: &mut FuturesUnordered<BoxFuture<'w, String>>) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    let outcome = match words[..] {
        [] => return String::new(),
        ["kill", name] => world.kill(name).await.map(|_| format!("{name} killed")),
        ["stop", name] => world.stop(name).await.map(|()| format!("{name} frozen")),
        ["resume", name] => world.resume(name).await.map(|()| format!("{name} resumed")),
        ["restart", name] => {
            return match world.start_again(name).await {
                Ok(()) => {
                    starting.push(ready(world, name.to_owned()).boxed());
                    format!("{name} started")
                }
                Err(error) => error.to_string(),
            };
        }
        [word, ..] => Ok(misheard(word)),
    };
    outcome.unwrap_or_else(|error| error.to_string())
}

/// The verbs of the commands on standard input.
const VERBS: [&str; 4] = ["kill", "restart", "stop", "resume"];

/// The answer to an unknown command: it quotes the word and offers the nearest verb.
fn misheard(word: &str) -> String {
    if VERBS.contains(&word) {
        return format!("\"{word}\" takes the name of one process; {HELP}");
    }
    match topology::spelling::nearest(word, VERBS) {
        Some(verb) => format!("there is no command \"{word:.20}\"; did you mean `{verb}`? {HELP}"),
        None => format!("there is no command \"{word:.20}\"; {HELP}"),
    }
}

async fn ready(world: &World, name: String) -> String {
    match world.ready(&name).await {
        Ok(took) => format!("{name} ready after {:.1} s", took.as_secs_f64()),
        Err(error) => error.to_string(),
    }
}

/// Reads lines from standard input, a terminal or a pipe. The end of the input does not end the world.
fn commands() -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel(8);
    // Reading a terminal cannot be cancelled, so it gets a thread, which ends with the program.
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// Waits for Ctrl-C, `kill`, or the end of the terminal.
pub(crate) async fn asked_to_stop() {
    let listen = |kind| signal(kind).expect("the runtime has signals enabled");
    let mut interrupt = listen(SignalKind::interrupt());
    let mut terminate = listen(SignalKind::terminate());
    let mut hang_up = listen(SignalKind::hangup());
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hang_up.recv() => {}
    }
}

fn addresses(record: &Record) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(text, "\nedges");
    for (name, url) in &record.edges {
        let _ = writeln!(
            text,
            "  {name:<15} {url}/v1   {}/v1/realtime",
            url.replacen("http", "ws", 1)
        );
    }
    let _ = writeln!(text, "regions (for edges only, which prove who they are)");
    for (name, url) in &record.stacks {
        let _ = writeln!(text, "  {name:<15} {url}");
    }
    let _ = writeln!(text, "control planes (gRPC)");
    let store = match record.etcd.is_empty() {
        true => StoreKind::Embedded,
        false => StoreKind::Etcd,
    };
    for (name, url) in world::layout::control_planes(store).iter().zip(&record.control_planes) {
        let _ = writeln!(text, "  {name:<15} {url}");
    }
    if !record.etcd.is_empty() {
        let _ = writeln!(text, "etcd (decisions)");
    }
    for (name, url) in &record.etcd {
        let _ = writeln!(text, "  {name:<15} {url}");
    }
    let _ = writeln!(
        text,
        "name server\n  {:<15} dig +noall +answer -p {} @{} {} A",
        "ns1",
        record.dns.port(),
        record.dns.ip(),
        record.zone
    );
    let _ = writeln!(text, "metrics");
    for (name, url) in &record.metrics {
        let _ = writeln!(text, "  {name:<15} {url}");
    }
    let _ = writeln!(
        text,
        "try, in another terminal\n  meridian call --say \"set a timer for ten minutes\"\n  meridian status\n\
         {HELP}\nCtrl-C stops everything\n",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_is_no_command_is_named_with_the_nearest_one() {
        for (word, said) in [
            ("kil", "there is no command \"kil\"; did you mean `kill`?"),
            ("restrat", "there is no command \"restrat\"; did you mean `restart`?"),
            ("Stop", "there is no command \"Stop\"; did you mean `stop`?"),
            ("dance", "there is no command \"dance\"; type: kill NAME"),
            ("kill", "\"kill\" takes the name of one process; type: kill NAME"),
        ] {
            let answer = misheard(word);
            assert!(answer.starts_with(said), "{answer}");
        }
    }
}
