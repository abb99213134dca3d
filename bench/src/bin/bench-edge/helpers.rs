//! The helpers of the bench are processes: the bench starts them and sends orders as lines of JSON to their standard input, and they
//! end with it.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::Stdio,
};

use anyhow::Context as _;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::mpsc,
};

use crate::{
    clients::{Counts, Devices, Order},
    open_files::raise_open_files,
    upstream::{self, Behaviour, Part},
};

/// Name of the role of [`Upstream`].
pub(crate) const UPSTREAM: &str = "upstream";
/// Name of the role of [`Clients`].
pub(crate) const CLIENTS: &str = "clients";

struct Helper {
    child: Child,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Helper {
    fn start(role: &str) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot find the path of this program")?;
        let mut child = Command::new(program)
            .arg(role)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start the {role}"))?;
        let orders = child.stdin.take().context("it has a standard input")?;
        let answers = child.stdout.take().context("it has a standard output")?;
        Ok(Self {
            child,
            orders,
            answers: BufReader::new(answers).lines(),
        })
    }

    async fn ask<T: DeserializeOwned>(&mut self, order: &impl Serialize) -> anyhow::Result<T> {
        let line = serde_json::to_string(order)? + "\n";
        self.orders.write_all(line.as_bytes()).await?;
        let answer = self.answers.next_line().await?.context("a helper of the bench ended")?;
        Ok(serde_json::from_str(&answer)?)
    }

    /// Ends it and waits for its end, so that it does not disturb the next measurement.
    async fn end(mut self) {
        drop(self.orders);
        // The helper ends with its input; an error means that it has ended already.
        let _ = self.child.wait().await;
    }
}

/// A stack behind the proxies.
pub(crate) struct Upstream {
    helper: Helper,
    pub(crate) address: SocketAddr,
}

impl Upstream {
    pub(crate) async fn start(manner: Behaviour) -> anyhow::Result<Self> {
        Self::start_with(manner, None).await
    }

    /// As [`Self::start`], and lets in only edges with a certificate; its own lies in this folder.
    pub(crate) async fn start_with(manner: Behaviour, identity: Option<&Path>) -> anyhow::Result<Self> {
        let mut helper = Helper::start(UPSTREAM)?;
        let part = Part {
            manner,
            identity: identity.map(Path::to_owned),
        };
        let address = helper.ask(&part).await?;
        Ok(Self { helper, address })
    }

    pub(crate) async fn end(self) {
        self.helper.end().await;
    }
}

/// Devices in one process.
pub(crate) struct Clients(Helper);

impl Clients {
    pub(crate) fn start() -> anyhow::Result<Self> {
        Helper::start(CLIENTS).map(Self)
    }

    /// Sends an order, and returns the counts after it.
    pub(crate) async fn tell(&mut self, order: &Order) -> anyhow::Result<Counts> {
        self.0.ask(order).await
    }

    pub(crate) async fn end(self) {
        self.0.end().await;
    }
}

/// Plays a role, in the process of a helper, until its input ends.
pub(crate) fn play(role: &str) -> anyhow::Result<()> {
    raise_open_files();
    // One thread: a load generator on all cores would take them from the proxy.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut orders = orders();
        if role == UPSTREAM {
            let part: Part = serde_json::from_str(&orders.recv().await.context("no order")?)?;
            let door = part.door()?;
            let listener = upstream::listen((Ipv4Addr::LOCALHOST, 0).into())?;
            println!("{}", serde_json::to_string(&listener.local_addr()?)?);
            let serve = upstream::serve(listener, door, part.manner);
            tokio::select! {
                () = serve => {}
                _ = orders.recv() => {}
            }
            return Ok(());
        }
        let mut devices = Devices::new();
        while let Some(order) = orders.recv().await {
            let order: Order = serde_json::from_str(&order)?;
            let counts = devices.obey(order).await;
            println!("{}", serde_json::to_string(&counts)?);
        }
        Ok(())
    })
}

/// The lines of standard input, until it ends. A thread reads them, and ends with the process.
fn orders() -> mpsc::Receiver<String> {
    let (sender, orders) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    orders
}
