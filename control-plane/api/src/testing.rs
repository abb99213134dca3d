//! Control planes for tests: real gRPC servers in this process whose every word the test decides.

use std::{net::TcpListener, pin::Pin, sync::Arc, time::Duration};

use tokio::sync::mpsc;
use tokio_stream::{
    Stream,
    wrappers::{ReceiverStream, TcpListenerStream},
};
use tonic::{Request, Response, Status, Streaming, transport::server::Router};

use crate::v1::{
    self,
    observations_server::{Observations, ObservationsServer},
    operator_server::{Operator, OperatorServer},
    plans_server::{Plans, PlansServer},
    watch_request::Message,
};

/// Far longer than anything here takes; only a hang gets this far.
const PATIENCE: Duration = Duration::from_secs(30);

/// What comes in good time, or a failed test.
pub(crate) async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("it should have happened long ago")
}

/// Where nobody listens.
pub(crate) fn nobody() -> String {
    "http://127.0.0.1:1".to_owned()
}

/// A process that was stopped: the system takes connections for it, and nothing more comes.
pub(crate) fn silent() -> (String, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    (format!("http://{}", listener.local_addr().unwrap()), listener)
}

async fn serve(router: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    // Ends with the runtime of the test.
    tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
    url
}

/// A node that watches plans; the test plays the control plane.
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

/// A vantage that reports; the test reads, or does not.
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

/// What a control plane answers to a request of an operator, which is named by its verb and token.
pub(crate) type Script = Arc<dyn Fn(&str, &str) -> Result<(), Status> + Send + Sync>;

/// A control plane for operators that answers as `script` says.
pub(crate) async fn operators(script: impl Fn(&str, &str) -> Result<(), Status> + Send + Sync + 'static) -> String {
    let service = OperatorServer::new(Operators(Arc::new(script)));
    serve(tonic::transport::Server::builder().add_service(service)).await
}

struct Operators(Script);

impl Operators {
    fn answer<T: Default>(&self, verb: &str, token: &str) -> Result<Response<T>, Status> {
        (self.0)(verb, token).map(|()| Response::new(T::default()))
    }
}

#[tonic::async_trait]
impl Operator for Operators {
    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::StatusReply>, Status> {
        self.answer("status", "")
    }

    async fn why(&self, _: Request<v1::WhyRequest>) -> Result<Response<v1::WhyReply>, Status> {
        self.answer("why", "")
    }

    async fn history(&self, _: Request<v1::HistoryRequest>) -> Result<Response<v1::HistoryReply>, Status> {
        self.answer("history", "")
    }

    async fn act(&self, request: Request<v1::ActRequest>) -> Result<Response<v1::ActReply>, Status> {
        self.answer("act", &request.into_inner().token)
    }

    async fn plan(&self, _: Request<v1::PlanRequest>) -> Result<Response<v1::PlanReply>, Status> {
        self.answer("plan", "")
    }

    async fn wait(&self, request: Request<v1::WaitRequest>) -> Result<Response<v1::Action>, Status> {
        self.answer("wait", &request.into_inner().action)
    }

    async fn get_document(&self, _: Request<v1::GetDocumentRequest>) -> Result<Response<v1::Document>, Status> {
        self.answer("get document", "")
    }

    async fn apply_document(
        &self,
        request: Request<v1::ApplyDocumentRequest>,
    ) -> Result<Response<v1::ApplyDocumentReply>, Status> {
        self.answer("apply document", &request.into_inner().token)
    }

    type AuditStream = tokio_stream::Empty<Result<v1::AuditItem, Status>>;

    async fn audit(&self, _: Request<v1::AuditRequest>) -> Result<Response<Self::AuditStream>, Status> {
        let reply: Response<()> = self.answer("audit", "")?;
        Ok(reply.map(|()| tokio_stream::empty()))
    }
}
