//! Reporting what a vantage saw, to every control plane: each judges by itself and is ready to lead. Reports wait in a
//! short queue while one is away; health is judged on fresh ticks, so old reports are dropped rather than kept.

use std::{collections::BTreeSet, sync::Arc};

use tokio::{
    sync::{
        broadcast::{self, error::RecvError},
        mpsc,
    },
    task::JoinSet,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use verdict::TickReport;

use crate::{
    connect::{self, Backoff},
    v1::observations_client::ObservationsClient,
};

/// Reports kept for a control plane that is away: about three ticks, what freshness allows (and a power of two, which
/// the queue would make of it anyway). One copy serves all.
const QUEUE_LENGTH: usize = 4;

/// The end that takes reports, and the task that sends them to all `endpoints`.
pub fn report_queue(endpoints: Vec<String>) -> (mpsc::Sender<TickReport>, Reporter) {
    let (sender, reports) = mpsc::channel(QUEUE_LENGTH);
    (sender, Reporter { endpoints, reports })
}

/// Sends every report to every control plane; one that is slow or dead delays no other.
pub struct Reporter {
    endpoints: Vec<String>,
    reports: mpsc::Receiver<TickReport>,
}

/// Reports for one control plane. What it is too slow for is overwritten, oldest first.
type Queue = broadcast::Receiver<Arc<TickReport>>;

impl Reporter {
    /// Sends until the queue is closed or `stop`; what was not sent by then is lost.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        tokio::select! {
            () = stop => {}
            () = self.send_all() => {}
        }
    }

    async fn send_all(&mut self) {
        let (queues, _) = broadcast::channel(QUEUE_LENGTH);
        // They end when this future is dropped.
        let mut streams = JoinSet::new();
        let endpoints: BTreeSet<String> = self.endpoints.drain(..).collect();
        for endpoint in endpoints {
            streams.spawn(keep_sending(endpoint, queues.subscribe()));
        }
        loop {
            tokio::select! {
                report = self.reports.recv() => match report {
                    // Fails when no control plane is configured: then nobody wants it.
                    Some(report) => drop(queues.send(Arc::new(report))),
                    None => return,
                },
                // They go on forever, so it panicked: a vantage that silently stopped reporting would be worse.
                Some(Err(error)) = streams.join_next() => {
                    if let Ok(panic) = error.try_into_panic() {
                        std::panic::resume_unwind(panic);
                    }
                }
            }
        }
    }
}

async fn keep_sending(endpoint: String, mut queue: Queue) {
    let mut backoff = Backoff::of(&endpoint);
    loop {
        let mut connected = false;
        match send_to(&endpoint, &mut queue, &mut connected).await {
            // Closed: `send_all` is about to end all of us.
            Ok(()) => return,
            Err(error) => tracing::debug!(%endpoint, %error, "cannot report observations"),
        }
        if connected {
            backoff.reset();
        }
        tokio::time::sleep(backoff.wait()).await;
    }
}

/// Sends to one control plane; `Ok` when the queue was closed. Sets `connected` once the control plane answered.
async fn send_to(endpoint: &str, queue: &mut Queue, connected: &mut bool) -> Result<(), Status> {
    let mut client = ObservationsClient::new(connect::connect(endpoint).await?);
    // One under way; whatever comes meanwhile waits in the queue, where it can still be dropped.
    let (outgoing, requests) = mpsc::channel(1);
    let mut receipts = client.report(ReceiverStream::new(requests)).await?.into_inner();
    *connected = true;
    let gone = || Status::unavailable("the control plane stopped listening");
    loop {
        tokio::select! {
            // A place first, then a report: one that was taken out could not be dropped any more.
            place = outgoing.reserve() => {
                let place = place.map_err(|_| gone())?;
                tokio::select! {
                    report = queue.recv() => match report {
                        Ok(report) => place.send(report.as_ref().into()),
                        Err(RecvError::Lagged(dropped)) => {
                            tracing::warn!(%endpoint, dropped, "this control plane is too slow for our reports");
                        }
                        Err(RecvError::Closed) => return Ok(()),
                    },
                    receipt = receipts.message() => take_receipt(receipt)?,
                }
            }
            receipt = receipts.message() => take_receipt(receipt)?,
        }
    }
}

fn take_receipt(receipt: Result<Option<crate::v1::ReportReceipt>, Status>) -> Result<(), Status> {
    match receipt? {
        Some(receipt) => tracing::trace!(tick = receipt.tick, "report received"),
        None => return Err(Status::unavailable("the control plane ended the stream")),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use topology::{NodeId, Tick};

    use super::*;
    use crate::testing::{in_time, nobody, observers, silent};

    fn report(tick: u64) -> TickReport {
        TickReport::new(NodeId::new("edge-iad").unwrap(), Tick(tick), Vec::new())
    }

    /// A vantage that reports to some control planes.
    fn vantage(endpoints: &[&str]) -> mpsc::Sender<TickReport> {
        let (reports, reporter) = report_queue(endpoints.iter().map(ToString::to_string).collect());
        tokio::spawn(reporter.run(std::future::pending()));
        reports
    }

    #[tokio::test]
    async fn every_control_plane_gets_every_report() {
        let (first, mut seen_first) = observers().await;
        let (second, mut seen_second) = observers().await;
        let vantage = vantage(&[&first, &second]);
        for tick in 1..=3 {
            vantage.send(report(tick)).await.unwrap();
        }
        for seen in [&mut seen_first, &mut seen_second] {
            let mut stream = in_time(seen.recv()).await.unwrap();
            for tick in 1..=3 {
                assert_eq!(in_time(stream.reports.message()).await.unwrap().unwrap().tick, tick);
            }
        }
    }

    #[tokio::test]
    async fn dead_frozen_and_stalled_control_planes_delay_no_other() {
        let (frozen, _frozen) = silent();
        let (stalled, mut seen_stalled) = observers().await;
        let (good, mut seen_good) = observers().await;
        let vantage = vantage(&[&nobody(), &frozen, &stalled, &good]);
        // It takes the stream, and reads none of it for now.
        let mut stalled = in_time(seen_stalled.recv()).await.unwrap();
        let mut good = in_time(seen_good.recv()).await.unwrap();
        // Enough to fill whatever the network holds for the stalled one, one at a time as ticks come.
        const TICKS: u64 = 1_500;
        for tick in 1..=TICKS {
            in_time(vantage.send(large(tick))).await.unwrap();
            assert_eq!(in_time(good.reports.message()).await.unwrap().unwrap().tick, tick);
        }
        // It goes on with what is fresh; most of what it slept through was dropped and not kept.
        let mut ticks = Vec::new();
        while ticks.last() != Some(&TICKS) {
            ticks.push(in_time(stalled.reports.message()).await.unwrap().unwrap().tick);
        }
        assert!(ticks.is_sorted());
        assert!(ticks.len() < 750, "{} of {TICKS} were kept", ticks.len());
        let last: Vec<u64> = (TICKS + 1 - QUEUE_LENGTH as u64..=TICKS).collect();
        assert!(ticks.ends_with(&last), "{ticks:?}");
    }

    /// A report of some kilobytes.
    fn large(tick: u64) -> TickReport {
        use topology::{Component, RegionId};
        use verdict::{Latency, Observation, Source};
        let observation = Observation {
            region: RegionId::new("us-east").unwrap(),
            component: Component::Asr,
            source: Source::Probe,
            succeeded: 1,
            failed: 1,
            latency: Latency::default(),
            failure: "x".repeat(verdict::FAILURE_LENGTH_MAX),
        };
        TickReport {
            observations: vec![observation; 20],
            ..report(tick)
        }
    }

    #[tokio::test]
    async fn without_control_planes_reports_are_taken_and_dropped() {
        let vantage = vantage(&[]);
        for tick in 0..100 {
            in_time(vantage.send(report(tick))).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_closed_queue_ends_it_although_nobody_answers() {
        let (reports, reporter) = report_queue(vec![nobody()]);
        reports.send(report(1)).await.unwrap();
        drop(reports);
        in_time(reporter.run(std::future::pending())).await;
    }
}
