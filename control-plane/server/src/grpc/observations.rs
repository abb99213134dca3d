//! The gRPC service through which vantages report what they observe.

use std::time::Duration;

use api::{
    convert::NamesSeen,
    v1::{self, observations_server::Observations},
};
use identity::Call;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Response, Status, Streaming};
use topology::{Moment, NodeId};
use verdict::TickReport;

use super::guard::{self, Guard};
use crate::{
    nodes::Nodes,
    reconcile::{Arrival, Request},
    texts,
};

/// Longest wait for the deciding task's answer about a report: less than a tick, so that the next report is not late.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// The gRPC service that takes reports of vantages.
pub(crate) struct ObservationsService {
    pub(crate) inbox: mpsc::Sender<Request>,
    pub(crate) guard: Guard,
    /// The nodes, among them the name servers whose reports people read.
    pub(crate) nodes: Nodes,
    /// Name of this control plane.
    pub(crate) node: NodeId,
    /// Ends every stream when the process stops.
    pub(crate) stop: CancellationToken,
}

#[tonic::async_trait]
impl Observations for ObservationsService {
    type ReportStream = ReceiverStream<Result<v1::ReportReceipt, Status>>;

    async fn report(
        &self,
        request: tonic::Request<Streaming<v1::TickReport>>,
    ) -> Result<Response<Self::ReportStream>, Status> {
        let caller = guard::caller(&request);
        let mut reports = request.into_inner();
        // A vantage sends one report per tick. One that does not read its receipts blocks at the second.
        let (receipts, stream) = mpsc::channel(2);
        let (inbox, guard, stop) = (self.inbox.clone(), self.guard.clone(), self.stop.clone());
        let nodes = self.nodes.clone();
        let asked = self.node.clone();
        // The connection owns the task: it ends with the stream of reports.
        tokio::spawn(async move {
            while let Some(Some(read)) = stop.run_until_cancelled(reports.next()).await {
                let received = daemon::clock::now();
                let allowed = read.and_then(|report| {
                    // A text that is no name would reach the log as its sender wrote it.
                    NodeId::new(&report.vantage).map_err(|error| Status::invalid_argument(error.to_string()))?;
                    let call = match report.names {
                        Some(_) => Call::ReportAsDns { node: &report.vantage },
                        None => Call::Report {
                            vantage: &report.vantage,
                            asked: asked.as_str(),
                        },
                    };
                    guard.allow(caller.as_ref(), call)?;
                    Ok(report)
                });
                // Reports of name servers end here: the deciding task never sees them.
                let names = allowed.as_ref().ok().and_then(|report| report.names.clone());
                if let (Some(names), Ok(report)) = (names, &allowed) {
                    let receipt = take_names(&nodes, report, names, received);
                    if receipt.as_ref().map_or(true, |receipt| !receipt.unwanted.is_empty()) {
                        guard.metrics.reports_unwanted.inc();
                    }
                    let refused = receipt.is_err();
                    if receipts.send(receipt).await.is_err() || refused {
                        return;
                    }
                    continue;
                }
                let receipt = match allowed.map(|report| (ahead_ms(&report, received), TickReport::try_from(report))) {
                    Ok((ahead_ms, Ok(report))) => {
                        let (tick, (reply, answer)) = (report.tick.0, oneshot::channel());
                        let arrival = Arrival {
                            ahead_ms,
                            reply: Some(reply),
                            ..report.into()
                        };
                        if inbox.send(Request::Observe(arrival)).await.is_err() {
                            return;
                        }
                        // The deciding task may be busy. A receipt that leaves open whether the report counts is better
                        // than none, which would look like a control plane that does not listen.
                        let unwanted = timeout(ANSWER_MAX, answer).await;
                        let unwanted = unwanted.ok().and_then(Result::ok).flatten();
                        Ok(v1::ReportReceipt {
                            tick,
                            unwanted: unwanted.map(|it| it.to_string()).unwrap_or_default(),
                            received_ms: received.0,
                            sent_ms: daemon::clock::now().0,
                        })
                    }
                    Ok((_, Err(bad))) => {
                        guard.metrics.reports_unwanted.inc();
                        Err(bad.into())
                    }
                    // It is another vantage's, or too long, or the stream broke: send the error in case the vantage still listens.
                    Err(unreadable) => Err(unreadable),
                };
                let refused = receipt.is_err();
                if receipts.send(receipt).await.is_err() || refused {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// Keeps what a name server reports.
fn take_names(
    nodes: &Nodes,
    report: &v1::TickReport,
    names: v1::NamesSeen,
    received: Moment,
) -> Result<v1::ReportReceipt, Status> {
    let node = NodeId::new(&report.vantage).map_err(|error| Status::invalid_argument(error.to_string()))?;
    let seen = NamesSeen::try_from(names)?;
    let unwanted = match nodes.saw_names(&node, seen, received) {
        true => String::new(),
        false => texts::calls::no_such_name_server(&node),
    };
    Ok(v1::ReportReceipt {
        tick: report.tick,
        unwanted,
        received_ms: received.0,
        sent_ms: daemon::clock::now().0,
    })
}

/// Milliseconds by which the vantage's clock is ahead. Taken from the vantage's own measure, which excludes the time on
/// the way, or else from the time at which it sent this report.
fn ahead_ms(report: &v1::TickReport, received: Moment) -> Option<i64> {
    let by_this = i128::from(report.sent_ms) - i128::from(received.0);
    let by_this = i64::try_from(by_this).unwrap_or(i64::MAX);
    report.ahead_ms.or((report.sent_ms > 0).then_some(by_this))
}
