//! Reports the observations of a vantage to every control plane, because each judges by itself and is ready to lead.
//! While a control plane is away, reports for it wait in a short queue. Health is judged on fresh ticks, so old reports
//! are dropped.
//!
//! Each report carries the time at which it was sent, and each receipt the time at which the report arrived, so both
//! ends know the difference of their clocks. A receipt also says why a report does not count, so a vantage with a wrong
//! name or clock finds the reason in its own log.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use identity::Identity;
use tokio::{
    sync::{
        broadcast::{self, error::RecvError},
        mpsc,
    },
    task::JoinSet,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use topology::Moment;
use verdict::{TickReport, clocks::ALARM_MS};

use api::{
    connect::{self, Backoff},
    convert::NamesReport,
    v1::{self, observations_client::ObservationsClient},
};

use crate::texts;

/// Reports stored for a control plane that is away: about three ticks, the limit of freshness. A power of two, because
/// the channel rounds up to one anyway. All control planes share one copy of each report.
const QUEUE_LENGTH: usize = 4;

/// The sender for reports, and the task that delivers them to all `endpoints`. `identity` is what this vantage shows to those at
/// `https://` URLs, and `clock` its clock.
pub fn report_queue<T: Report>(
    endpoints: Vec<String>,
    identity: Option<Arc<Identity>>,
    clock: fn() -> Moment,
) -> (mpsc::Sender<T>, Reporter<T>) {
    let (sender, reports) = mpsc::channel(QUEUE_LENGTH);
    let reporter = Reporter {
        endpoints,
        identity,
        reports,
        clock,
    };
    (sender, reporter)
}

/// A report as it goes to control planes: that of a vantage, or that of a name server.
pub trait Report: Send + Sync + 'static {
    /// The message.
    fn message(&self) -> v1::TickReport;
}

impl Report for TickReport {
    fn message(&self) -> v1::TickReport {
        self.into()
    }
}

impl Report for NamesReport {
    fn message(&self) -> v1::TickReport {
        self.into()
    }
}

/// Sends every report to every control plane. A slow or dead control plane does not delay the others.
pub struct Reporter<T> {
    endpoints: Vec<String>,
    identity: Option<Arc<Identity>>,
    reports: mpsc::Receiver<T>,
    clock: fn() -> Moment,
}

/// Reports for one control plane. If it is too slow, the oldest are overwritten.
type Queue<T> = broadcast::Receiver<Arc<T>>;

impl<T: Report> Reporter<T> {
    /// Sends reports until the queue is closed or `stop`. Reports that were not sent by then are lost.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        tokio::select! {
            () = stop => {}
            () = self.send_all() => {}
        }
    }

    async fn send_all(&mut self) {
        let (queues, _) = broadcast::channel(QUEUE_LENGTH);
        // The streams end when this future is dropped.
        let mut streams = JoinSet::new();
        let endpoints: BTreeSet<String> = self.endpoints.drain(..).collect();
        for endpoint in endpoints {
            streams.spawn(keep_sending(
                endpoint,
                self.identity.clone(),
                queues.subscribe(),
                self.clock,
            ));
        }
        loop {
            tokio::select! {
                report = self.reports.recv() => match report {
                    // Fails when no control plane is configured; the report has no receiver then.
                    Some(report) => drop(queues.send(Arc::new(report))),
                    None => return,
                },
                // Streams never end, so this one panicked. A vantage that silently stopped reporting would be worse
                // than one that stops.
                Some(Err(error)) = streams.join_next() => {
                    if let Ok(panic) = error.try_into_panic() {
                        std::panic::resume_unwind(panic);
                    }
                }
            }
        }
    }
}

async fn keep_sending<T: Report>(
    endpoint: String,
    identity: Option<Arc<Identity>>,
    mut queue: Queue<T>,
    clock: fn() -> Moment,
) {
    let mut backoff = Backoff::of(&endpoint);
    let mut receipts = Receipts::of(&endpoint);
    loop {
        let mut connected = false;
        match send_to(
            &endpoint,
            identity.as_ref(),
            &mut queue,
            clock,
            &mut receipts,
            &mut connected,
        )
        .await
        {
            // The queue was closed: `send_all` is about to end every stream.
            Ok(()) => return,
            Err(error) => {
                tracing::debug!(%endpoint, %error, "cannot report observations to this control plane; trying again");
            }
        }
        if connected {
            backoff.reset();
        }
        tokio::time::sleep(backoff.wait()).await;
    }
}

/// Sends to one control plane. Returns `Ok` when the queue was closed. Sets `connected` once the control plane has
/// answered.
async fn send_to<T: Report>(
    endpoint: &str,
    identity: Option<&Arc<Identity>>,
    queue: &mut Queue<T>,
    clock: fn() -> Moment,
    known: &mut Receipts,
    connected: &mut bool,
) -> Result<(), Status> {
    let mut client = ObservationsClient::new(connect::connect(endpoint, identity).await?);
    // One report in flight. Newer ones wait in the queue, where they can still be dropped.
    let (outgoing, requests) = mpsc::channel(1);
    let mut receipts = client.report(ReceiverStream::new(requests)).await?.into_inner();
    *connected = true;
    let gone = || Status::unavailable("the control plane stopped listening");
    let ended = || Status::unavailable("the control plane ended the stream");
    loop {
        tokio::select! {
            // Reserve room first, then take a report: a report that has left the queue could no longer be dropped.
            place = outgoing.reserve() => {
                let place = place.map_err(|_| gone())?;
                tokio::select! {
                    report = queue.recv() => match report {
                        Ok(report) => place.send(known.stamp(report.message(), clock())),
                        Err(RecvError::Lagged(dropped)) => {
                            tracing::warn!(%endpoint, dropped, "{}", texts::READS_TOO_SLOWLY);
                        }
                        Err(RecvError::Closed) => return Ok(()),
                    },
                    receipt = receipts.message() => known.take(&receipt?.ok_or_else(ended)?, clock()),
                }
            }
            receipt = receipts.message() => known.take(&receipt?.ok_or_else(ended)?, clock()),
        }
    }
}

/// The receipts of one control plane.
struct Receipts {
    endpoint: String,
    /// Reports without a receipt: their ticks, and the times at which they were sent.
    sent: VecDeque<(u64, Moment)>,
    /// The time by which this node's clock is ahead of the control plane's, in milliseconds, by the newest receipt.
    ahead_ms: Option<i64>,
    /// The problems that were logged last: each is logged when it begins, not with every tick.
    is_unwanted: bool,
    is_off: bool,
}

impl Receipts {
    fn of(endpoint: &str) -> Self {
        Self {
            endpoint: endpoint.to_owned(),
            sent: VecDeque::new(),
            ahead_ms: None,
            is_unwanted: false,
            is_off: false,
        }
    }

    /// Adds to a report the time of sending and the difference of the clocks.
    fn stamp(&mut self, mut report: v1::TickReport, now: Moment) -> v1::TickReport {
        if self.sent.len() == QUEUE_LENGTH {
            self.sent.pop_front();
        }
        self.sent.push_back((report.tick, now));
        (report.sent_ms, report.ahead_ms) = (now.0, self.ahead_ms);
        report
    }

    fn take(&mut self, receipt: &v1::ReportReceipt, now: Moment) {
        let endpoint = &self.endpoint;
        tracing::trace!(%endpoint, tick = receipt.tick, "report received");
        let is_unwanted = !receipt.unwanted.is_empty();
        if is_unwanted && !self.is_unwanted {
            tracing::warn!(%endpoint, why = receipt.unwanted, "{}", texts::UNWANTED);
        }
        self.is_unwanted = is_unwanted;
        let at = self.sent.iter().position(|(tick, _)| *tick == receipt.tick);
        let Some((_, sent)) = at.and_then(|at| self.sent.drain(..=at).next_back()) else {
            return;
        };
        if receipt.received_ms == 0 {
            return;
        }
        let ahead_ms = ahead_ms(sent, Moment(receipt.received_ms), Moment(receipt.sent_ms), now);
        self.ahead_ms = Some(ahead_ms);
        let is_off = ahead_ms.unsigned_abs() >= ALARM_MS;
        if is_off && !self.is_off {
            tracing::warn!(
                %endpoint,
                ahead_ms,
                "{}", texts::CLOCKS_APART
            );
        }
        self.is_off = is_off;
    }
}

/// The time by which this node's clock is ahead of the control plane's, in milliseconds, computed as in NTP (RFC 5905).
/// The time on the network cancels out if it is the same in both directions.
fn ahead_ms(sent: Moment, received: Moment, replied: Moment, arrived: Moment) -> i64 {
    let difference = |ours: Moment, theirs: Moment| i128::from(ours.0) - i128::from(theirs.0);
    let ahead = (difference(sent, received) + difference(arrived, replied)) / 2;
    i64::try_from(ahead).unwrap_or(if ahead > 0 { i64::MAX } else { i64::MIN })
}

#[cfg(test)]
mod tests {
    use topology::{NodeId, Tick};

    use super::*;
    use crate::testing::{in_time, nobody, observers, silent};

    fn clock() -> Moment {
        Moment(1_700_000_000_000)
    }

    #[test]
    fn clocks_are_compared_without_the_time_on_the_way() {
        // This node's clock is 2 s ahead; 30 ms to the control plane, 5 ms there, 30 ms back.
        let moments = [12_000, 10_030, 10_035, 12_065].map(Moment);
        let [sent, received, replied, arrived] = moments;
        assert_eq!(ahead_ms(sent, received, replied, arrived), 2_000);
        assert_eq!(
            ahead_ms(Moment(10_000), Moment(12_030), Moment(12_035), Moment(10_065)),
            -2_000
        );
        assert_eq!(
            ahead_ms(Moment(u64::MAX), Moment(0), Moment(0), Moment(u64::MAX)),
            i64::MAX
        );
        assert_eq!(
            ahead_ms(Moment(0), Moment(u64::MAX), Moment(u64::MAX), Moment(0)),
            i64::MIN
        );
    }

    #[test]
    fn a_report_says_when_it_was_sent_and_what_the_last_receipt_told() {
        let mut receipts = Receipts::of("http://control-plane:7100");
        let stamped = receipts.stamp((&report(7)).into(), Moment(70_020));
        assert_eq!((stamped.sent_ms, stamped.ahead_ms), (70_020, None));
        let receipt = |tick, received_ms| v1::ReportReceipt {
            tick,
            unwanted: "no such edge".into(),
            received_ms,
            sent_ms: received_ms,
        };
        receipts.take(&receipt(7, 70_170), Moment(70_020));
        assert_eq!((receipts.ahead_ms, receipts.is_unwanted), (Some(-150), true));
        assert_eq!(receipts.stamp((&report(8)).into(), Moment(80_020)).ahead_ms, Some(-150));
        // An older control plane sends no times, and a receipt for an unknown report is ignored.
        receipts.take(&receipt(8, 0), Moment(80_020));
        receipts.take(&receipt(99, 1), Moment(80_020));
        assert_eq!(receipts.ahead_ms, Some(-150));
        // Receipts that never come use no more memory.
        (0..1_000).for_each(|tick| drop(receipts.stamp((&report(tick)).into(), Moment(0))));
        assert_eq!(receipts.sent.len(), QUEUE_LENGTH);
    }

    fn report(tick: u64) -> TickReport {
        TickReport::new(NodeId::new("edge-iad").unwrap(), Tick(tick), Vec::new())
    }

    /// A vantage that reports to some control planes.
    fn vantage(endpoints: &[&str]) -> mpsc::Sender<TickReport> {
        let (reports, reporter) = report_queue(endpoints.iter().map(ToString::to_string).collect(), None, clock);
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
        // This control plane accepts the stream and reads nothing for now.
        let mut stalled = in_time(seen_stalled.recv()).await.unwrap();
        let mut good = in_time(seen_good.recv()).await.unwrap();
        // Enough to fill all buffers towards the stalled control plane. One report at a time, as ticks come.
        const TICKS: u64 = 1_500;
        for tick in 1..=TICKS {
            in_time(vantage.send(large(tick))).await.unwrap();
            assert_eq!(in_time(good.reports.message()).await.unwrap().unwrap().tick, tick);
        }
        // The control plane continues with fresh reports. Most of those that it missed were dropped, not stored.
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
            stack: None,
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
        let (reports, reporter) = report_queue(vec![nobody()], None, clock);
        reports.send(report(1)).await.unwrap();
        drop(reports);
        in_time(reporter.run(std::future::pending())).await;
    }
}
