//! Messages to the deciding task, and its answers.

use std::{sync::Arc, time::Duration};

use planning::{Action, Outcome, audit::Principal};
use tokio::sync::oneshot;
use topology::{Intent, Topology};
use verdict::{TickReport, Unwanted};

use crate::{
    records::Document,
    store::StoreError,
    texts::calls as texts,
    view::{Leader, View},
};

/// Requests and reports waiting in the queue: room for a burst from every edge of a large fleet.
pub const INBOX_LENGTH: usize = 2_048;

/// A message to the deciding task.
pub enum Request {
    /// A vantage's report.
    Observe(Arrival),
    /// An operator's request.
    Ask {
        intent: Intent,
        /// The credential of its author; none without a certificate.
        by: Option<Principal>,
        /// Plan only; commit nothing.
        dry_run: bool,
        reply: oneshot::Sender<Result<Answer, Unanswered>>,
    },
    /// A dry run without a request: the decision that would be made now.
    Rehearse(oneshot::Sender<Result<Answer, Unanswered>>),
    /// A new document.
    Apply {
        /// The document, with its author and reason.
        document: Document,
        /// The credential of its author; none without a certificate.
        by: Option<Principal>,
        /// The version that it replaces. If another one is in force, the document is not applied.
        replaces: String,
        /// Plan only; commit nothing.
        dry_run: bool,
        reply: oneshot::Sender<Result<Applied, Unanswered>>,
    },
}

/// A report with the time data of its arrival.
pub struct Arrival {
    pub report: TickReport,
    /// Milliseconds by which the vantage's clock is ahead of this control plane's; `None` if the report has no time.
    pub ahead_ms: Option<i64>,
    /// Receives the reason for which the report does not count, or `None` if it counts.
    pub reply: Option<oneshot::Sender<Option<Unwanted>>>,
}

impl From<TickReport> for Arrival {
    /// A report of this control plane's own probes.
    fn from(report: TickReport) -> Self {
        Self {
            report,
            ahead_ms: None,
            reply: None,
        }
    }
}

/// The reasons for which a request gets no answer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Unanswered {
    /// This replica does not lead.
    #[error("{0}")]
    NotLeading(Leader),
    /// The store did not take the decision.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Too many requests lately were refused, or asked for what was so already.
    #[error("{}", texts::too_many_requests(author, *wait))]
    TooMany {
        /// The author of the requests.
        author: String,
        /// Time until the next request is considered.
        wait: Duration,
    },
    /// This author applied too many documents within minutes.
    #[error("{}", texts::too_many_documents(author, *wait))]
    TooManyDocuments {
        /// The author of the documents.
        author: String,
        /// Time until the next document is taken.
        wait: Duration,
    },
}

/// The answer to an operator's request.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The action that the request became, or the one that it approved; `None` if it was refused.
    pub action: Option<Action>,
    /// The decision.
    pub outcome: Outcome,
    /// The topology of the decision.
    pub topology: Topology,
    /// The view after the decision; for a dry run the view before it.
    pub view: Arc<View>,
}

/// The outcome of applying a document.
#[derive(Debug, Clone, PartialEq)]
pub enum Applied {
    /// The document has these problems and is not applied.
    Problems(Vec<String>),
    /// Another document was applied meanwhile: its version.
    Changed(String),
    /// The document is in force, or would be after a dry run.
    InForce(Box<Answer>),
}
