//! A control plane for the tests of [`super::Operator`]: it answers by a script.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use crate::{
    testing::serve,
    v1::{
        self,
        operator_server::{Operator, OperatorServer},
    },
};

/// The answer of a control plane to an operator's request, by the verb and the token of the request.
pub(crate) type Script = Arc<dyn Fn(&str, &str) -> Result<(), Status> + Send + Sync>;

/// A control plane for operators that answers by `script`.
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

    async fn make_token(&self, _: Request<v1::TokenRequest>) -> Result<Response<v1::Token>, Status> {
        self.answer("make token", "")
    }

    type AuditStream = tokio_stream::Empty<Result<v1::AuditItem, Status>>;

    async fn audit(&self, _: Request<v1::AuditRequest>) -> Result<Response<Self::AuditStream>, Status> {
        let reply: Response<()> = self.answer("audit", "")?;
        Ok(reply.map(|()| tokio_stream::empty()))
    }
}
