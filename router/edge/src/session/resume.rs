//! A device that lost its connection comes back, through whichever edge, with the token of its session (`?resume=`): finds the
//! stack that remembers it, and tells the stack that takes the device the fate of the session.
//!
//! First the stack that the token names is asked, then those that the session may have been moved to since: all decline while
//! they do not remember it. So does a stack whose memory is older than the token, or that lost the session without a word: a
//! stack that froze remembers what was in force before the session went on elsewhere. The newest of such memories serves when
//! no stack has a better one. When none does, its last checkpoint serves, if this edge has it ([`crate::session::parked`]).
//! Else a new session begins, and the stack tells the device why.

use std::{net::SocketAddr, time::Duration};

use bytes::BytesMut;
use routing::{
    Affinity, Decision, Table, Tried,
    affinity::Proof,
    session::{self, Token, TokenError},
};
use topology::Moment;
use tungstenite::protocol::frame::coding::{Data, OpCode};
use wire::{HOME_ZONE_HEADER, Lost, RESUMES_HEADER, REVISION_HEADER, Resume, Resumes, SESSION_HEADER};

use crate::{Edge, request_id::RequestId, session::frames::frame_for_region};

/// How a session begins, as far as an earlier one goes.
#[derive(Debug)]
pub struct Resuming {
    name: String,
    /// The device that the edge recognised; it alone can use the session's ids.
    owner: Box<str>,
    /// Issue time of the session id that the device gets.
    issued_at: Moment,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Begins,
    /// The stack that remembers the session is looked for.
    Searches(Box<Search>),
    /// A session begins with its last checkpoint.
    Parked(Box<[u8]>),
    /// A new session begins in its place.
    Lost(Lost),
}

/// A memory that is older than the token of its session by more than this is not the one that the token was issued for. Clocks
/// of regions differ, but not by more.
const SKEW_MAX: Duration = Duration::from_secs(300);
/// Stacks asked for one session, in all regions together: more than any region has, and an end to asking.
const ASKED_MAX: usize = 64;

#[derive(Debug)]
struct Search {
    token: Token,
    affinity: Affinity,
    /// Stacks that took no session at all: no use to ask them for a new one.
    failed: Vec<Decision>,
    /// Whether the stack that the token names was asked and said that it does not remember the session.
    forgot: bool,
    asked: usize,
    /// The newest memory of those stacks that remember the session and would rather not speak for it, and its revision.
    newest: Option<(Decision, Moment)>,
    /// Nobody else has the session: its newest memory serves.
    settles: bool,
    /// The token is older than tokens may be.
    is_expired: bool,
    regions_max: usize,
}

impl Resuming {
    /// Reads the `?resume=` of a device.
    ///
    /// `owner` is the device that the edge recognised; it gets no session of another. Empty where devices are not recognised.
    pub fn new(edge: &Edge, (asked, owner): (Option<&str>, &str), id: &RequestId, now: Moment) -> Self {
        let fresh = || session::name(rand::random());
        let Some(asked) = asked else {
            let (name, stage) = (fresh(), Stage::Begins);
            return Self {
                name,
                owner: owner.into(),
                issued_at: now,
                stage,
            };
        };
        let age_max = edge.config.timeouts.resume.0;
        // The token of a connection that lasts is renewed by the next one only. So one that is too old is taken all the same
        // where a stack still remembers the session: the memory's own age is the bound.
        let lost = match edge
            .config
            .affinity_key
            .0
            .verify_session(asked, owner, now, Duration::MAX)
        {
            Ok(token) => {
                let is_expired = now.since(token.issued_at) > age_max;
                let name = token.name.clone();
                let affinity = Affinity {
                    region: token.region.clone(),
                    // The plan may send no sessions of this home there, or have evacuated the region: the session's memory is there
                    // all the same. From there it goes on, as from a region that is drained or evacuated.
                    issued_at: now,
                    proof: Proof::Remembers,
                };
                let stage = Stage::Searches(Box::new(Search {
                    token,
                    affinity,
                    failed: Vec::new(),
                    forgot: false,
                    asked: 0,
                    newest: None,
                    settles: false,
                    is_expired,
                    regions_max: edge.config.limits.regions_tried_max,
                }));
                return Self {
                    name,
                    owner: owner.into(),
                    issued_at: now,
                    stage,
                };
            }
            // Only a stack that is called directly takes a name for an id. Here it would pass for a token that never expires,
            // and ask a stack by chance.
            Err(TokenError::Bare) => Lost::Unknown,
            Err(TokenError::Forged) => Lost::Forged,
            Err(TokenError::OutOfDate) => Lost::Expired,
        };
        tracing::info!(request_id = %id, ?lost, "a session token is not accepted");
        Self {
            name: fresh(),
            owner: owner.into(),
            issued_at: now,
            stage: Stage::Lost(lost),
        }
    }

    /// Where the session is, before anything that the device says about where it was.
    pub fn affinity(&self) -> Option<&Affinity> {
        match &self.stage {
            Stage::Searches(search) => Some(&search.affinity),
            Stage::Begins | Stage::Parked(_) | Stage::Lost(_) => None,
        }
    }

    /// Whether the session goes on where it is remembered.
    pub fn is_found(&self) -> bool {
        matches!(self.stage, Stage::Searches(_))
    }

    /// The decision, for the stack of the region that remembers the session.
    pub fn at_its_stack(&self, decision: Decision, table: &Table) -> Decision {
        match &self.stage {
            Stage::Searches(search) if search.token.region == decision.region => {
                decision.at_stack(table, |stack: SocketAddr| search.token.is_at(stack))
            }
            _ => decision,
        }
    }

    /// The request for the stack that was decided on. `home_zone`: the time zone of the session's home.
    pub fn request(
        &mut self,
        request: &[u8],
        edge: &Edge,
        decision: &Decision,
        home_zone: Option<&str>,
        now: Moment,
    ) -> Vec<u8> {
        // A new id for each connection: what is remembered of an earlier one can be told by it. The name stays.
        self.issued_at = match &self.stage {
            Stage::Searches(search) => now.max(search.token.issued_at + Duration::from_millis(1)),
            _ => now,
        };
        let key = &edge.config.affinity_key.0;
        let token = key.issue_session(
            &self.name,
            &self.owner,
            &decision.region,
            decision.stack,
            self.issued_at,
        );
        let rule = match &self.stage {
            Stage::Begins => None,
            Stage::Searches(_) => Some(Resumes::IfKnown),
            Stage::Parked(_) => Some(Resumes::State),
            Stage::Lost(lost) => Some(Resumes::Lost(*lost)),
        };
        let rule = rule.map_or_else(String::new, |rule| format!("{RESUMES_HEADER}: {rule}\r\n"));
        let newest = match &self.stage {
            Stage::Searches(search) if !search.settles => {
                format!("{REVISION_HEADER}: {}\r\n", search.newest_revision().0)
            }
            _ => String::new(),
        };
        let zone = home_zone.map_or_else(String::new, |zone| format!("{HOME_ZONE_HEADER}: {zone}\r\n"));
        let ours = format!("{SESSION_HEADER}: {token}\r\n{rule}{newest}{zone}\r\n");
        // Before the empty line that ends the head.
        let lines = request.strip_suffix(b"\r\n").unwrap_or(request);
        [lines, ours.as_bytes()].concat()
    }

    /// Whether an answer that declines only says that this stack does not remember the session, so that the next is asked.
    /// Such an answer costs no attempt: the session may be at any stack of its region, however many there are.
    /// `revision` is that of the memory which the stack has all the same.
    pub fn goes_on(&mut self, declined: &[u8], revision: Option<Moment>, decision: &Decision) -> bool {
        let Stage::Searches(search) = &mut self.stage else {
            return false;
        };
        let is_unknown = declined.starts_with(b"HTTP/1.1 404 ");
        search.forgot |= is_unknown && search.is_named(decision);
        search.asked += usize::from(is_unknown);
        if let Some(revision) = revision.filter(|revision| is_unknown && *revision > search.newest_revision()) {
            search.newest = Some((decision.clone(), revision));
        }
        is_unknown
    }

    /// No stack is left to ask. Settles on the newest memory that a stack has and does not vouch for, if there is one and this
    /// edge has nothing newer: then says which stack to ask for it.
    pub fn settles(&mut self, edge: &Edge, now: Moment) -> Option<Decision> {
        let Stage::Searches(search) = &mut self.stage else {
            return None;
        };
        let (decision, revision) = search.newest.take()?;
        let parked = edge.parked.get(&self.name, search.token.issued_at, now);
        let sealed_at = parked.and_then(|state| wire::sealed_at(&state));
        search.settles = sealed_at.is_none_or(|sealed_at| sealed_at <= revision);
        search.settles.then_some(decision)
    }

    /// Whether enough stacks were asked for the session.
    pub fn has_asked_enough(&self) -> bool {
        matches!(&self.stage, Stage::Searches(search) if search.asked >= ASKED_MAX)
    }

    /// A stack took no session.
    pub fn failed(&mut self, decision: &Decision) {
        if let Stage::Searches(search) = &mut self.stage {
            search.failed.push(decision.clone());
        }
    }

    /// No stack is left to ask. Gives the session up and begins another one. Returns the stacks that took no session at all.
    pub fn gives_up(&mut self, edge: &Edge, id: &RequestId, now: Moment) -> Option<Tried> {
        let Stage::Searches(search) = &self.stage else {
            return None;
        };
        let mut tried = Tried::up_to(search.regions_max);
        for failed in &search.failed {
            tried.stack(&failed.region, failed.stack);
        }
        let lost = if search.is_expired {
            Lost::Expired
        } else if search.forgot {
            Lost::Unknown
        } else {
            Lost::Unreachable
        };
        let parked = edge.parked.get(&self.name, search.token.issued_at, now);
        let (region, has_state) = (&search.token.region, parked.is_some());
        tracing::info!(request_id = %id, %region, ?lost, has_state, "no stack remembers a session");
        if let Some(state) = parked {
            self.stage = Stage::Parked(state);
            return Some(tried);
        }
        // A new name: should the old stack come back, it still remembers the old session.
        self.name = session::name(rand::random());
        self.stage = Stage::Lost(lost);
        Some(tried)
    }
}

impl Resuming {
    /// Whether the session is where its device is, now that a stack accepted: it remembers it, or was given the last checkpoint
    /// (`takes_state`: a stack of an earlier release does not take one).
    pub fn is_taken(&self, takes_state: bool) -> bool {
        match &self.stage {
            Stage::Searches(_) => true,
            Stage::Parked(_) => takes_state,
            Stage::Begins | Stage::Lost(_) => false,
        }
    }

    /// The session's own name, under which its last checkpoint is parked.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// See [`Resuming::name`], and when the id of it was issued.
    pub fn into_name(self) -> (String, Moment) {
        (self.name, self.issued_at)
    }

    /// The first frame for a stack that agreed to begin with the last checkpoint; it goes before any byte of the device.
    pub fn first_frame(&self) -> Option<BytesMut> {
        let Stage::Parked(state) = &self.stage else { return None };
        let message = wire::Message::Resume(Resume {
            first: 0,
            consumed: 0,
            delivered: 0,
            is_broken: true,
            state,
        });
        Some(frame_for_region(OpCode::Data(Data::Binary), &message.to_bytes()))
    }
}

impl Search {
    /// A memory must be newer.
    fn newest_revision(&self) -> Moment {
        let skew_ms = u64::try_from(SKEW_MAX.as_millis()).unwrap_or(u64::MAX);
        let oldest = Moment(self.token.issued_at.0.saturating_sub(skew_ms));
        self.newest.as_ref().map_or(oldest, |(_, revision)| *revision)
    }

    fn is_named(&self, decision: &Decision) -> bool {
        decision.region == self.token.region && self.token.is_at(decision.stack)
    }
}
