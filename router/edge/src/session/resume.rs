//! The return of a device that lost its connection. It comes through any edge, with the token of its session (`?resume=`). The edge
//! finds the stack that remembers the session, and tells the stack that takes the device the fate of the session.
//!
//! The edge first asks the stack that the token names, then those to which the session may have moved since. A stack declines that
//! does not remember the session, whose memory is older than the token, or that lost the session without a Close frame: a stack
//! that froze remembers a state from before the move. The newest of such memories serves when no stack has a better one. When
//! there is none, the last checkpoint serves, if this edge has it ([`crate::session::parked`]). Otherwise a new session begins, and
//! the stack tells the device why.

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

/// The beginning of a session, and its relation to an earlier one.
#[derive(Debug)]
pub struct Resuming {
    name: String,
    /// The holder of the device that the edge recognised; only it can use the session's ids.
    owner: Box<str>,
    /// Issue time of the session id that the device gets.
    issued_at: Moment,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Begins,
    /// The edge searches the stack that remembers the session.
    Searches(Box<Search>),
    /// The session begins with the last checkpoint, which this edge has.
    Parked(Box<[u8]>),
    /// A new session begins in its place.
    Lost(Lost),
}

/// A memory that is older than the session's token by more than this is not the one for which the token was issued. The clocks of
/// regions differ by less.
const SKEW_MAX: Duration = Duration::from_secs(300);
/// Most stacks that the edge asks for one session, in all regions together: more than any region has.
const ASKED_MAX: usize = 64;

#[derive(Debug)]
struct Search {
    token: Token,
    affinity: Affinity,
    /// Stacks that took no session at all; the edge does not ask them for a new one either.
    failed: Vec<Decision>,
    /// Whether the stack that the token names answered that it does not remember the session.
    forgot: bool,
    asked: usize,
    /// The newest memory that a stack has and does not vouch for, and its revision.
    newest: Option<(Decision, Moment)>,
    /// No stack vouches for a memory, so the newest one serves.
    settles: bool,
    /// The token is older than `timeouts.resume`.
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
        // Only the next connection renews the token of a session, so a long session has an old one. A stack that still remembers the
        // session takes an old token: the age of the memory is the bound.
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
                    // The session's memory is in that region even if the plan sends no sessions of its home there, or evacuated it. The
                    // session is fetched from there, and leaves as from a drained or evacuated region.
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
            // Only a stack that a device calls directly takes a bare name. Here it would be a token that never expires, and the edge
            // would ask a random stack.
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

    /// The region of the session. It takes precedence over the device's affinity token.
    pub fn affinity(&self) -> Option<&Affinity> {
        match &self.stage {
            Stage::Searches(search) => Some(&search.affinity),
            Stage::Begins | Stage::Parked(_) | Stage::Lost(_) => None,
        }
    }

    /// Whether the session goes on at a stack that remembers it.
    pub fn is_found(&self) -> bool {
        matches!(self.stage, Stage::Searches(_))
    }

    /// The decision, changed to the stack of the region that remembers the session.
    pub fn at_its_stack(&self, decision: Decision, table: &Table) -> Decision {
        match &self.stage {
            Stage::Searches(search) if search.token.region == decision.region => {
                decision.at_stack(table, |stack: SocketAddr| search.token.is_at(stack))
            }
            _ => decision,
        }
    }

    /// The request for the chosen stack. `home_zone` is the time zone of the session's home.
    pub fn request(
        &mut self,
        request: &[u8],
        edge: &Edge,
        decision: &Decision,
        home_zone: Option<&str>,
        now: Moment,
    ) -> Vec<u8> {
        // Each connection gets a new id, by which a stack recognises the memory of an earlier one. The name stays.
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

    /// Records the answer of a stack that declined. Returns whether it only means that the stack does not remember the session, so
    /// that the edge asks the next one. Such an answer costs no attempt: the session may be at any stack of its region. `revision` is
    /// that of a memory that the stack does not vouch for.
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

    /// Settles on the newest memory that a stack has and does not vouch for, when no stack is left to ask and this edge has nothing
    /// newer. Returns the stack that has it.
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

    /// Whether the edge has asked enough stacks for the session.
    pub fn has_asked_enough(&self) -> bool {
        matches!(&self.stage, Stage::Searches(search) if search.asked >= ASKED_MAX)
    }

    /// Records a stack that took no session.
    pub fn failed(&mut self, decision: &Decision) {
        if let Stage::Searches(search) = &mut self.stage {
            search.failed.push(decision.clone());
        }
    }

    /// Gives the session up when no stack is left to ask, and begins a new one. Returns the stacks that took no session at all.
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
        // A new name, because the old stack may come back and still remember the old session.
        self.name = session::name(rand::random());
        self.stage = Stage::Lost(lost);
        Some(tried)
    }
}

impl Resuming {
    /// Whether the stack that accepted has the session: it remembers it, or took the last checkpoint (`takes_state`: a stack of an
    /// earlier release takes none).
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

    /// [`Resuming::name`], and the issue time of the session's id.
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
    /// The revision that a memory must exceed.
    fn newest_revision(&self) -> Moment {
        let skew_ms = u64::try_from(SKEW_MAX.as_millis()).unwrap_or(u64::MAX);
        let oldest = Moment(self.token.issued_at.0.saturating_sub(skew_ms));
        self.newest.as_ref().map_or(oldest, |(_, revision)| *revision)
    }

    fn is_named(&self, decision: &Decision) -> bool {
        decision.region == self.token.region && self.token.is_at(decision.stack)
    }
}
