//! Control planes for tests: real gRPC servers in this process, with every message decided by the test.

use std::pin::Pin;

use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use api::testing::serve;
pub(crate) use api::testing::{in_time, nobody, silent};
use api::v1::{
    self,
    observations_server::{Observations, ObservationsServer},
    plans_server::{Plans, PlansServer},
    watch_request::Message,
};

/// A node that watches plans. The test plays the control plane.
pub(crate) struct Watching {
    pub(crate) hello: v1::Hello,
    pub(crate) updates: mpsc::Sender<Result<v1::SnapshotUpdate, Status>>,
    pub(crate) answers: Streaming<v1::WatchRequest>,
}

/// A control plane that hands its watchers to the test.
pub(crate) async fn planes() -> (String, mpsc::Receiver<Watching>) {
    let (watchers, watching) = mpsc::channel(8);
    let router = tonic::transport::Server::builder().add_service(PlansServer::new(Planes(watchers)));
    (serve(router).await, watching)
}

struct Planes(mpsc::Sender<Watching>);

#[tonic::async_trait]
impl Plans for Planes {
    type WatchStream = ReceiverStream<Result<v1::SnapshotUpdate, Status>>;

    async fn watch(
        &self,
        request: Request<Streaming<v1::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let mut answers = request.into_inner();
        let Some(Message::Hello(hello)) = answers.message().await?.and_then(|first| first.message) else {
            return Err(Status::invalid_argument("the first message is the hello"));
        };
        let (updates, stream) = mpsc::channel(2);
        let watching = Watching {
            hello,
            updates,
            answers,
        };
        self.0
            .send(watching)
            .await
            .map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// A vantage that reports. The test decides whether to read the reports.
pub(crate) struct Reporting {
    pub(crate) reports: Streaming<v1::TickReport>,
    _receipts: mpsc::Sender<Result<v1::ReportReceipt, Status>>,
}

/// A control plane that hands the reports of its vantages to the test.
pub(crate) async fn observers() -> (String, mpsc::Receiver<Reporting>) {
    let (vantages, reporting) = mpsc::channel(8);
    let service = ObservationsServer::new(Observers(vantages));
    let router = tonic::transport::Server::builder().add_service(service);
    (serve(router).await, reporting)
}

struct Observers(mpsc::Sender<Reporting>);

#[tonic::async_trait]
impl Observations for Observers {
    type ReportStream = Pin<Box<dyn Stream<Item = Result<v1::ReportReceipt, Status>> + Send>>;

    async fn report(
        &self,
        request: Request<Streaming<v1::TickReport>>,
    ) -> Result<Response<Self::ReportStream>, Status> {
        let (receipts, stream) = mpsc::channel(2);
        let reporting = Reporting {
            reports: request.into_inner(),
            _receipts: receipts,
        };
        self.0
            .send(reporting)
            .await
            .map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}
