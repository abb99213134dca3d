//! A group of servers of an operator's own, behind a path of the public URL: least connections, and nginx's `max_fails`
//! and `fail_timeout`.

use std::time::Duration;

use topology::Moment;

/// A group of servers that are asked in turn.
#[derive(Debug, Clone)]
pub struct Upstream {
    max_fails: u32,
    fail_timeout: Duration,
    servers: Vec<Server>,
    /// Where the last search ended, so that equals take turns.
    last: usize,
}

#[derive(Debug, Clone, Default)]
struct Server {
    active: u32,
    fails: u32,
    /// When the first of these failures was.
    failing_since: Moment,
    down_until: Moment,
}

impl Upstream {
    /// So many servers. One that fails `max_fails` times within `fail_timeout` is not asked for that long; 0 never.
    pub fn new(servers: usize, max_fails: u32, fail_timeout: Duration) -> Self {
        Self {
            max_fails,
            fail_timeout,
            servers: vec![Server::default(); servers],
            last: servers.saturating_sub(1),
        }
    }

    /// The server with the fewest requests in flight of those that are up and not `tried`. When all of these are down they
    /// are asked all the same: a server that may work is better than an error that is certain. `None` when all were tried.
    /// Each that was picked must be [`finish`](Self::finish)ed.
    pub fn pick(&mut self, tried: &[usize], now: Moment) -> Option<usize> {
        let count = self.servers.len();
        let in_turn = (1..=count).map(|step| (self.last + step) % count);
        let untried: Vec<usize> = in_turn.filter(|index| !tried.contains(index)).collect();
        let up = |index: &&usize| !self.is_down(**index, now);
        let least = |index: &&usize| self.servers[**index].active;
        let picked = untried
            .iter()
            .filter(up)
            .min_by_key(least)
            .or_else(|| untried.iter().min_by_key(least))
            .copied()?;
        self.last = picked;
        self.servers[picked].active += 1;
        Some(picked)
    }

    /// Whether a server is not asked now.
    pub fn is_down(&self, server: usize, now: Moment) -> bool {
        self.servers.get(server).is_some_and(|server| now < server.down_until)
    }

    /// A request is over. Returns whether the server was marked down by it.
    pub fn finish(&mut self, server: usize, failed: bool, now: Moment) -> bool {
        let (max_fails, fail_timeout) = (self.max_fails, self.fail_timeout);
        let Some(server) = self.servers.get_mut(server) else {
            return false;
        };
        debug_assert!(server.active > 0, "only what was picked can finish");
        server.active = server.active.saturating_sub(1);
        if !failed {
            // What failed while it was asked all the same says no more than that it works again.
            (server.fails, server.down_until) = (0, Moment(0));
            return false;
        }
        if now.since(server.failing_since) > fail_timeout {
            (server.fails, server.failing_since) = (0, now);
        }
        server.fails = server.fails.saturating_add(1);
        let is_down = max_fails > 0 && server.fails >= max_fails;
        if is_down {
            server.down_until = now + fail_timeout;
        }
        is_down
    }
}
