//! The affinity tokens of this edge: it verifies those that devices show, and signs new ones.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use routing::{Affinity, Decision};
use topology::{Moment, PlanNumber, RegionId};

use crate::config::AffinityKey;

#[derive(Debug)]
pub struct AffinityTokens {
    key: AffinityKey,
    age_max: Duration,
    /// The last token that [`AffinityTokens::issue`] signed for each region.
    issued: Mutex<BTreeMap<RegionId, Issued>>,
}

/// An affinity token, and the plan and the second in which it was signed.
#[derive(Debug)]
struct Issued {
    plan: PlanNumber,
    second: u64,
    text: Arc<str>,
}

impl AffinityTokens {
    pub(crate) fn new(key: AffinityKey, age_max: Duration) -> Self {
        Self {
            key,
            age_max,
            issued: Mutex::default(),
        }
    }

    /// The content of a token; `None` for a token that is forged or out of date.
    pub fn verify(&self, token: &str, now: Moment) -> Option<Affinity> {
        self.verify_of(token, None, now)
    }

    /// The same, with the proof whether the token was issued to `holder`.
    pub fn verify_of(&self, token: &str, holder: Option<&str>, now: Moment) -> Option<Affinity> {
        match self.key.0.verify(token, holder, now, self.age_max) {
            Ok(affinity) => Some(affinity),
            Err(error) => {
                tracing::debug!(%error, "affinity token ignored");
                None
            }
        }
    }

    /// A token for the holder of a session in a region. Admission prefers its holder.
    pub fn issue_to(&self, holder: &str, region: &RegionId) -> String {
        self.key.0.issue_to(holder, region, daemon::clock::now())
    }

    /// A token for the requester of an answer: it steers, and gives no precedence. All requesters within a second and under the
    /// same plan get the same token, because signing one costs as much as half the rest of a small request.
    pub fn issue(&self, decision: &Decision, now: Moment) -> Arc<str> {
        let mut issued = self.issued.lock();
        if let Some(token) = issued.get(&decision.region)
            && token.plan == decision.plan
            && token.second == now.0 / 1000
        {
            return token.text.clone();
        }
        let text: Arc<str> = self.key.0.issue(&decision.region, now).into();
        let token = Issued {
            plan: decision.plan,
            second: now.0 / 1000,
            text: text.clone(),
        };
        issued.insert(decision.region.clone(), token);
        text
    }
}
