//! A group of an operator's own servers behind a path of the public URL. It balances by least connections and has
//! nginx's `max_fails` and `fail_timeout`.

use std::time::Duration;

use topology::Moment;

/// A group of servers.
#[derive(Debug, Clone)]
pub struct Upstream {
    max_fails: u32,
    fail_timeout: Duration,
    servers: Vec<Server>,
    /// The server that was picked last, so that servers with equal load take turns.
    last: usize,
}

#[derive(Debug, Clone, Default)]
struct Server {
    active: u32,
    fails: u32,
    /// The time of the first of these failures.
    failing_since: Moment,
    down_until: Moment,
}

impl Upstream {
    /// A group of `servers` servers. A server that fails `max_fails` times within `fail_timeout` is down for that long.
    /// With a `max_fails` of 0 no server is ever down.
    pub fn new(servers: usize, max_fails: u32, fail_timeout: Duration) -> Self {
        Self {
            max_fails,
            fail_timeout,
            servers: vec![Server::default(); servers],
            last: servers.saturating_sub(1),
        }
    }

    /// The server with the fewest requests in flight among those that are up and not in `tried`. If all of those are
    /// down, one of them is picked anyway: a server that may work is better than a certain error. `None` when all were
    /// tried. The caller must call [`finish`](Self::finish) once for every picked server.
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

    /// Whether a server is down at this time.
    pub fn is_down(&self, server: usize, now: Moment) -> bool {
        self.servers.get(server).is_some_and(|server| now < server.down_until)
    }

    /// Counts the end of a request. Returns whether this failure marked the server down.
    pub fn finish(&mut self, server: usize, failed: bool, now: Moment) -> bool {
        let (max_fails, fail_timeout) = (self.max_fails, self.fail_timeout);
        let Some(server) = self.servers.get_mut(server) else {
            return false;
        };
        debug_assert!(server.active > 0, "only what was picked can finish");
        server.active = server.active.saturating_sub(1);
        if !failed {
            // A success proves that the server works again, including one that was picked while it was down.
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
