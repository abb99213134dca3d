//! Reporting what a vantage saw. Reports wait in a short queue while the control plane is away; health is judged on
//! fresh ticks, so old reports are dropped rather than kept.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use verdict::TickReport;

use crate::{follow, v1::observations_client::ObservationsClient};

/// Reports kept while the control plane is away: three ticks, what freshness allows.
const QUEUE_LENGTH: usize = 3;
/// Wait between attempts to connect.
const RETRY: Duration = Duration::from_millis(500);

/// The end that takes reports, and the task that sends them.
pub fn report_queue(endpoints: Vec<String>) -> (mpsc::Sender<TickReport>, Reporter) {
    let (sender, reports) = mpsc::channel(QUEUE_LENGTH);
    (sender, Reporter { endpoints, reports })
}

/// Sends reports to whichever control plane answers.
pub struct Reporter {
    endpoints: Vec<String>,
    reports: mpsc::Receiver<TickReport>,
}

impl Reporter {
    /// Sends until the queue is closed or `stop`.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        tokio::select! {
            () = stop => {}
            () = self.send_all() => {}
        }
    }

    async fn send_all(&mut self) {
        let endpoints = std::mem::take(&mut self.endpoints);
        for endpoint in endpoints.iter().cycle() {
            match self.send_to(endpoint).await {
                Ok(()) => return,
                Err(error) => tracing::debug!(%endpoint, %error, "cannot report observations"),
            }
            tokio::time::sleep(RETRY).await;
        }
        // No control plane is configured: take and drop, so that the queue never looks full.
        while self.reports.recv().await.is_some() {}
    }

    /// Sends to one control plane; `Ok` when the queue was closed.
    async fn send_to(&mut self, endpoint: &str) -> Result<(), tonic::Status> {
        let channel = follow::channel(endpoint)?
            .connect()
            .await
            .map_err(|error| follow::unavailable(endpoint, &error))?;
        let (outgoing, requests) = mpsc::channel(1);
        let mut receipts = ObservationsClient::new(channel)
            .report(ReceiverStream::new(requests))
            .await?
            .into_inner();
        loop {
            tokio::select! {
                report = self.reports.recv() => match report {
                    Some(report) => {
                        let gone = |_| tonic::Status::unavailable("the control plane stopped listening");
                        outgoing.send((&report).into()).await.map_err(gone)?;
                    }
                    None => return Ok(()),
                },
                receipt = receipts.message() => match receipt? {
                    Some(receipt) => tracing::trace!(tick = receipt.tick, "report received"),
                    None => return Err(tonic::Status::unavailable("the control plane ended the stream")),
                },
            }
        }
    }
}
