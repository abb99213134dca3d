//! Voice sessions: processor time of a relayed frame, memory of a silent session, bursts, and the most sessions of a machine.

use std::{collections::BTreeMap, net::Ipv4Addr, time::Duration};

use anyhow::bail;
use futures_util::future::try_join_all;
use serde::Serialize;

use crate::{
    clients::{Counts, Order},
    helpers::{Clients, Upstream},
    proxies::{CONNECTIONS_MAX, Kind, Over, Place, Proxy, free_address},
    upstream::Behaviour,
};

/// Sessions that talk: few enough that no proxy is saturated, so that all carry the same load.
const TALKING: usize = 200;
/// A microphone delivers a frame every 20 ms.
const FRAME_MS: u64 = 20;
/// Three seconds of speech.
pub(crate) const FRAMES: u64 = 150;
/// Sessions that are silent, and sessions of a burst.
pub(crate) const MANY: usize = 4_000;
/// A pause for the last bytes that are under way; a proxy gives memory back at once.
const SETTLE: Duration = Duration::from_millis(500);

fn open(proxy: &Proxy, over: Over, sessions: usize, at_once: usize) -> Order {
    Order::Open {
        to: proxy.address(over),
        from: Ipv4Addr::LOCALHOST.into(),
        sessions,
        at_once,
        trusting: proxy.trusted(over),
    }
}

fn all_well(counts: &Counts, sessions: usize) -> anyhow::Result<()> {
    if counts.open != sessions as u64 || counts.sent != counts.received {
        bail!("{sessions} sessions should be well: {counts:?}");
    }
    Ok(())
}

/// Processor time of a proxy for one frame, in microseconds, while every session sends this many; as many go to the stack as come from
/// it.
pub(crate) async fn frame_cpu_us(proxy: &Proxy, over: Over, frames: u64) -> anyhow::Result<f64> {
    let mut clients = Clients::start()?;
    clients.tell(&open(proxy, over, TALKING, 50)).await?;
    let talk = |frames| Order::Talk {
        frames,
        every_ms: FRAME_MS,
    };
    let warm = clients.tell(&talk(25)).await?;
    let before = proxy.cpu()?;
    let counts = clients.tell(&talk(frames)).await?;
    let used = proxy.cpu()? - before;
    all_well(&counts, TALKING)?;
    clients.end().await;
    let relayed = counts.sent + counts.received - warm.sent - warm.received;
    Ok(used.as_secs_f64() * 1e6 / relayed as f64)
}

/// Memory of a proxy for one silent session, in KiB.
pub(crate) async fn idle_kib(kind: Kind, over: Over, stack: &Upstream, place: &Place) -> anyhow::Result<f64> {
    let proxy = Proxy::start(kind, &[stack.address], place).await?;
    let mut clients = Clients::start()?;
    let before = proxy.anonymous_kib()?;
    let counts = clients.tell(&open(&proxy, over, MANY, 100)).await?;
    all_well(&counts, MANY)?;
    tokio::time::sleep(SETTLE).await;
    let after = proxy.anonymous_kib()?;
    clients.end().await;
    proxy.stop().await;
    Ok((after - before) / MANY as f64)
}

/// Sessions of a burst, and those that were closed or not opened without a reason.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Burst {
    /// Sessions that the devices opened at the same moment.
    pub(crate) sessions: u64,
    /// Those that were closed or not opened.
    pub(crate) wrong: u64,
    /// Their number by reason.
    pub(crate) why: BTreeMap<String, u64>,
}

/// Opens many sessions at the same moment, and sends one frame in each.
pub(crate) async fn burst(kind: Kind, manner: Behaviour, place: &Place) -> anyhow::Result<Burst> {
    let stack = Upstream::start(manner).await?;
    let proxy = Proxy::start(kind, &[stack.address], place).await?;
    let mut clients = Clients::start()?;
    let opened = clients.tell(&open(&proxy, Over::Plain, MANY, MANY)).await?;
    let talk = Order::Talk {
        frames: 1,
        every_ms: 1_000,
    };
    let counts = if opened.open > 0 {
        clients.tell(&talk).await?
    } else {
        opened
    };
    clients.end().await;
    proxy.stop().await;
    stack.end().await;
    Ok(Burst {
        sessions: MANY as u64,
        wrong: counts.failed + counts.closed,
        why: counts.why,
    })
}

/// Sessions that a machine held for a time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct HoldResult {
    /// Processes of the edge that shared the port.
    pub(crate) processes: usize,
    /// Sessions that the devices opened.
    pub(crate) sessions: u64,
    /// Those that were closed or not opened.
    pub(crate) wrong: u64,
    /// Their number by reason.
    pub(crate) why: BTreeMap<String, u64>,
    /// The time for which they were open, in seconds.
    pub(crate) seconds: u64,
    /// The time to open all of them, in seconds.
    pub(crate) opened_in_s: f64,
    /// Memory of all processes of the edge, for one session, in KiB.
    pub(crate) memory_kib_per_session: f64,
    /// Processor time of all processes of the edge while the sessions were silent, in percent of one core.
    pub(crate) cpu_percent: f64,
}

/// Holds this many sessions for a time, in several processes of the edge that share a port, and sends one frame in each at the end.
pub(crate) async fn hold(sessions: usize, processes: usize, seconds: u64, place: &Place) -> anyhow::Result<HoldResult> {
    // Sessions a helper can have: fewer than its 20,000 descriptors, and than the 28,000 ports of an address.
    const HELPER_MAX: usize = 17_000;
    if sessions > processes * CONNECTIONS_MAX {
        bail!("{processes} processes cannot hold {sessions} sessions");
    }
    let helpers = sessions.div_ceil(HELPER_MAX);
    let mut stacks = Vec::new();
    for _ in 0..helpers {
        stacks.push(Upstream::start(Behaviour::Usual).await?);
    }
    let address = free_address()?;
    let mut proxies = Vec::new();
    for number in 0..processes {
        let stack = [stacks[number % helpers].address];
        let place = place.within(&format!("held-{number}"));
        proxies.push(Proxy::start_at(Kind::Meridian, address, &stack, &place).await?);
    }
    let memory = |proxies: &[Proxy]| proxies.iter().map(Proxy::anonymous_kib).sum::<anyhow::Result<f64>>();
    let cpu = |proxies: &[Proxy]| proxies.iter().map(Proxy::cpu).sum::<anyhow::Result<Duration>>();
    let memory_before = memory(&proxies)?;
    let mut clients = (0..helpers)
        .map(|_| Clients::start())
        .collect::<anyhow::Result<Vec<_>>>()?;
    let began = std::time::Instant::now();
    let opening = clients.iter_mut().enumerate().map(async |(number, clients)| {
        let order = Order::Open {
            to: address,
            // Each address has its own ports, and the kernel does not free those of the hold before soon enough.
            from: [127, 0, u8::try_from(processes)?, 2 + u8::try_from(number)?].into(),
            sessions: (sessions + number) / helpers,
            at_once: 200,
            trusting: None,
        };
        clients.tell(&order).await
    });
    try_join_all(opening).await?;
    let opened_in_s = began.elapsed().as_secs_f64();
    tokio::time::sleep(SETTLE).await;
    let used = memory(&proxies)? - memory_before;
    let cpu_before = cpu(&proxies)?;
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let cpu_percent = (cpu(&proxies)? - cpu_before).as_secs_f64() / seconds as f64 * 100.0;
    let talk = Order::Talk {
        frames: 1,
        every_ms: 5_000,
    };
    let counts = try_join_all(clients.iter_mut().map(|clients| clients.tell(&talk))).await?;
    let mut held = HoldResult {
        processes,
        sessions: sessions as u64,
        wrong: 0,
        why: BTreeMap::new(),
        seconds,
        opened_in_s,
        memory_kib_per_session: used / sessions as f64,
        cpu_percent,
    };
    for counts in counts {
        // A message without an answer counts as a lost session too.
        held.wrong += counts.failed + counts.closed + counts.sent.abs_diff(counts.received);
        for (why, count) in counts.why {
            *held.why.entry(why).or_default() += count;
        }
    }
    for clients in clients {
        clients.end().await;
    }
    for proxy in proxies {
        proxy.stop().await;
    }
    for stack in stacks {
        stack.end().await;
    }
    Ok(held)
}
