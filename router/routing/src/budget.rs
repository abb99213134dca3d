//! How many extra requests may be made: a share of those that devices asked for, over the last ten seconds.
//!
//! Retries and second copies help while few requests need them. When most do, they are what keeps the regions down.

use topology::Moment;

/// What is looked at, in seconds: long enough to smooth a burst, short enough that quiet minutes save nothing up.
pub const WINDOW_S: u64 = 10;

/// A budget of extra requests.
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
    /// `percent` of what was asked, and at least `reserve` in ten seconds.
    pub fn new(percent: u32, reserve: u32) -> Self {
        Self {
            percent,
            reserve,
            seconds: Default::default(),
        }
    }

    /// A device asked for something.
    pub fn asked(&mut self, now: Moment) {
        let second = self.second(now);
        second.asked = second.asked.saturating_add(1);
    }

    /// Takes one extra request out of the budget; whether there was one.
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

    /// What was asked, and what was extra, in the window that ends now.
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
        // A clock that went back a little counts where it is now.
        if second.at < at {
            *second = Second {
                at,
                ..Second::default()
            };
        }
        second
    }
}
