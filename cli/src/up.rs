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
    print,
};

#[derive(Debug, Args)]
pub(crate) struct Up {
    /// Another policy than the product's (configs/policy.toml).
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// The speech models.
    #[arg(long, value_name = "DIR")]
    models_dir: Option<PathBuf>,
    /// Where decisions are kept.
    #[arg(long, value_enum, default_value_t = Store::Embedded)]
    store: Store,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Store {
    /// In a file of one control plane.
    Embedded,
    /// In three members of etcd, shared by three control planes; needs etcd.
    Etcd,
}

pub(crate) async fn up(args: Up, state_dir: PathBuf) -> Result<ExitCode, Failure> {
    let mut settings = world::Settings::new(state_dir);
    if let Some(policy) = args.policy {
        settings.policy =
            std::fs::read_to_string(&policy).with_context(|| format!("cannot read {}", policy.display()))?;
        // Refused here, with all problems, rather than in the log of a process that does not start.
        topology_policy(&policy, &settings.policy)?;
    }
    if let Some(models_dir) = args.models_dir {
        settings.models_dir = models_dir;
    }
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
        // Dropping a world that is being started ends what was started of it.
        () = asked_to_stop() => return Ok(INTERRUPTED.into()),
    };
    let world = Arc::new(started);
    print(&addresses(&world.record().await));
    let stopped = run_until_stopped(&world).await;
    print("stopping");
    let world = Arc::into_inner(world).context("somebody still uses the world")?;
    tokio::select! {
        () = world.shutdown() => {
            print("stopped; no process is left");
            stopped.map(|()| ExitCode::SUCCESS)
        }
        // The second Ctrl-C: dropping the world kills what is left of it.
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
    // Processes that were restarted and are not ready yet. Nobody waits for them before the next command.
    let mut starting = FuturesUnordered::new();
    let healthy = async {
        match world.healthy().await {
            Ok(_) => print("  every region is healthy\n"),
            Err(error) => print(&format!("  {error}\n")),
        }
    };
    let mut healthy = std::pin::pin!(healthy);
    let mut told = false;
    let stop = asked_to_stop();
    let mut stop = std::pin::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => return Ok(()),
            () = &mut healthy, if !told => told = true,
            Ok(death) = deaths.recv() => {
                let (name, log) = (&death.name, death.log.display());
                print(&format!("{name} died by itself ({}); log {log}:\n{}", death.how, death.last_words));
                print(&format!("type `restart {name}` to bring it back"));
            }
            Some(line) = commands.recv() => {
                print(&obey(world, &line, &mut starting).await);
            }
            Some(outcome) = starting.next() => print(&outcome),
        }
    }
}

/// What can be typed while a world runs.
const HELP: &str = "type: kill NAME · restart NAME · stop NAME (freeze) · resume NAME";

/// Carries a command out and says what came of it.
async fn obey<'w>(world: &'w World, line: &str, starting: &mut FuturesUnordered<BoxFuture<'w, String>>) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    let outcome = match words[..] {
        [] => return String::new(),
        ["kill", name] => world.kill(name).await.map(|_| format!("{name} killed")),
        ["stop", name] => world.stop(name).await.map(|()| format!("{name} frozen")),
        ["resume", name] => world.resume(name).await.map(|()| format!("{name} goes on")),
        ["restart", name] => {
            return match world.start_again(name).await {
                Ok(()) => {
                    starting.push(ready(world, name.to_owned()).boxed());
                    format!("{name} started")
                }
                Err(error) => error.to_string(),
            };
        }
        _ => Ok(HELP.to_owned()),
    };
    outcome.unwrap_or_else(|error| error.to_string())
}

async fn ready(world: &World, name: String) -> String {
    match world.ready(&name).await {
        Ok(took) => format!("{name} ready after {:.1} s", took.as_secs_f64()),
        Err(error) => error.to_string(),
    }
}

/// Lines of the standard input, be it a terminal or a pipe. Its end is not that of the world.
fn commands() -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel(8);
    // A thread of its own: reading a terminal cannot be cancelled, and the end of the program ends it.
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// Ctrl-C, `kill`, or the end of the terminal.
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
    let _ = writeln!(text, "regions (past the edges)");
    for (name, url) in &record.stacks {
        let _ = writeln!(text, "  {name:<15} {url}/v1");
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
