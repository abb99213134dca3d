//! Limits extra requests to a share of the requests that devices made in the last ten seconds.
//!
//! Retries and second copies help while few requests need them. When most requests need them, they keep the regions
//! down.

use topology::Moment;

/// Length of the window, in seconds: long enough to smooth a burst, and short enough that quiet minutes save nothing
/// up.
pub const WINDOW_S: u64 = 10;

/// A budget for extra requests.
#[derive(Debug, Clone)]
pub struct Budget {
    percent: u32,
    reserve: u32,
    seconds: [Second; WINDOW_S as usize],
}

#[derive(Debug, Clone, Copy, Default)]
struct Second {
    at: u64,
    asked: u32,
    extra: u32,
}

impl Budget {
    /// Allows `percent` of the devices' requests, and at least `reserve` in ten seconds.
    pub fn new(percent: u32, reserve: u32) -> Self {
        Self {
            percent,
            reserve,
            seconds: Default::default(),
        }
    }

    /// Counts a request of a device.
    pub fn count_request(&mut self, now: Moment) {
        let second = self.second(now);
        second.asked = second.asked.saturating_add(1);
    }

    /// Takes one extra request out of the budget. Returns whether the budget allowed it.
    pub fn try_spend(&mut self, now: Moment) -> bool {
        let (asked, extra) = self.window(now);
        let allowed = (asked * u64::from(self.percent) / 100).max(u64::from(self.reserve));
        let granted = extra < allowed;
        if granted {
            let second = self.second(now);
            second.extra = second.extra.saturating_add(1);
        }
        granted
    }

    /// The devices' requests and the extra requests in the window that ends now.
    pub fn window(&self, now: Moment) -> (u64, u64) {
        let now_s = now.0 / 1000;
        let seconds = self.seconds.iter().filter(|second| second.at + WINDOW_S > now_s);
        seconds.fold((0, 0), |(asked, extra), second| {
            (asked + u64::from(second.asked), extra + u64::from(second.extra))
        })
    }

    fn second(&mut self, now: Moment) -> &mut Second {
        let at = now.0 / 1000;
        let second = &mut self.seconds[(at % WINDOW_S) as usize];
        // If the clock went back a little, the request counts in the slot that is there.
        if second.at < at {
            *second = Second {
                at,
                ..Second::default()
            };
        }
        second
    }
}
