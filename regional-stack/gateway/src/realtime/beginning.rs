//! The beginning of a session on a socket: a new one, one with the memory in its last checkpoint, or one that an edge carries here from
//! another stack.

use std::{sync::Arc, time::Duration};

use axum::extract::ws::{Message, WebSocket};
use dialogue::Zone;
use futures_util::{StreamExt as _, stream::SplitStream};
use tokio::time::timeout;
use wire::{MessageError, Resume};

use super::{checkpoint::RestoreError, opening::Opening, session::Session};
use crate::{ids::name_of, live::Claim, seal::SealError, stack::Stack, store::Memory, texts as log};

/// Time for an edge to send the messages of a session that it carries here: it has all of them at hand.
const REPLAY_LIMIT: Duration = Duration::from_secs(5);
/// Most bytes of a replay: more than any edge keeps of one session.
const REPLAY_BYTES_MAX: usize = 16 << 20;

pub(super) enum Begin {
    /// In this stack.
    Here {
        opening: Box<Opening>,
        /// Whether an edge listens that can carry it elsewhere.
        continuity: bool,
    },
    /// Here, with the memory in the last checkpoint of an earlier connection.
    Reopened { opening: Box<Opening> },
    /// In another stack: an edge carries it here.
    Carried {
        /// The zone that the device names, for a session from a stack without zones.
        zone: Option<Zone>,
        /// The session's id from here on, which leads its device back to this stack.
        id: Option<String>,
    },
}

/// The reason why a session that an edge carried here cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum ResumeError {
    #[error("nothing to resume came")]
    Nothing,
    #[error("what came is not what is to be resumed")]
    Unexpected,
    #[error("too much came")]
    TooMuch,
    #[error(transparent)]
    Message(#[from] MessageError),
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error(transparent)]
    Restore(#[from] RestoreError),
}

/// Opens a session, and claims it for this connection.
pub(super) async fn open(
    stack: &Arc<Stack>,
    begin: Begin,
    stream: &mut SplitStream<WebSocket>,
) -> Result<(Box<Session>, Claim), ResumeError> {
    match begin {
        Begin::Here { opening, continuity } => {
            let (mut session, claim) = Session::new(Arc::clone(stack), *opening);
            if continuity {
                session.begin_checkpoints();
            }
            Ok((Box::new(session), claim))
        }
        Begin::Reopened { mut opening } => {
            match timeout(REPLAY_LIMIT, remembered(stack, stream)).await {
                Ok(Ok(memory)) => (opening.memory, opening.lost) = (Some(memory), None),
                Ok(Err(error)) => tracing::warn!(%error, "{}", log::COPY_USELESS),
                Err(_) => tracing::warn!("{}", log::COPY_LATE),
            }
            let (mut session, claim) = Session::new(Arc::clone(stack), *opening);
            session.begin_checkpoints();
            Ok((Box::new(session), claim))
        }
        Begin::Carried { zone, id } => {
            let session = timeout(REPLAY_LIMIT, resume(stack, stream)).await;
            let mut session = session.unwrap_or(Err(ResumeError::Nothing))?;
            if session.device.dialogue.zone.is_none() {
                session.device.dialogue.set_zone(zone);
            }
            // The next `session.updated` tells the device.
            if let Some(id) = id.filter(|id| name_of(id) == session.name()) {
                session.id = id;
            }
            let claim = stack.live.claim(session.name()).await;
            Ok((Box::new(session), claim))
        }
    }
}

/// Reads the memory in the last checkpoint of a session, which is the first message.
async fn remembered(stack: &Arc<Stack>, stream: &mut SplitStream<WebSocket>) -> Result<Memory, ResumeError> {
    let first = next_data(stream).await?;
    let state = opened(stack, &first)?.1;
    Ok(Session::remembered_in(stack, state).map_err(RestoreError::from)?)
}

/// Reads a session's first message: the edge's request and the state without its seal.
fn opened<'m>(stack: &Stack, first: &'m Message) -> Result<(Resume<'m>, &'m [u8]), ResumeError> {
    let Message::Binary(bytes) = first else {
        return Err(ResumeError::Unexpected);
    };
    let wire::Message::Resume(resume) = wire::Message::parse(bytes)? else {
        return Err(ResumeError::Unexpected);
    };
    let key = stack.config.checkpoint_key.as_ref().ok_or(ResumeError::Unexpected)?;
    let state = key.open(resume.state, daemon::clock::now())?;
    Ok((resume, state))
}

/// Takes over a session: first comes its state, then the client's messages that the state needs.
async fn resume(stack: &Arc<Stack>, stream: &mut SplitStream<WebSocket>) -> Result<Session, ResumeError> {
    let first = next_data(stream).await?;
    let (resume, state) = opened(stack, &first)?;
    let replay = replayed(&resume, stream, stack.config.limits.frame_bytes_max).await?;
    Ok(Session::restore(stack, state, &resume, &replay, daemon::clock::now())?)
}

/// Reads the client's messages that the state does not include.
async fn replayed(
    resume: &Resume<'_>,
    stream: &mut SplitStream<WebSocket>,
    bytes_max: usize,
) -> Result<Vec<String>, ResumeError> {
    let mut replay = Vec::new();
    let mut bytes = 0;
    while !resume.is_broken && resume.first + (replay.len() as u64) < resume.consumed {
        // A message that is not text, or too long, was refused there, and counts.
        let text = match next_data(stream).await? {
            Message::Text(text) if text.len() <= bytes_max => text.as_str().to_owned(),
            _ => String::new(),
        };
        bytes += text.len();
        if bytes > REPLAY_BYTES_MAX {
            return Err(ResumeError::TooMuch);
        }
        replay.push(text);
    }
    Ok(replay)
}

async fn next_data(stream: &mut SplitStream<WebSocket>) -> Result<Message, ResumeError> {
    loop {
        match stream.next().await {
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(message @ (Message::Text(_) | Message::Binary(_)))) => return Ok(message),
            _ => return Err(ResumeError::Nothing),
        }
    }
}
