//! `grpc.health.v1.Health`: the state of this stack for load balancers and orchestrators. It is the state that `/health` has.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::{Stream, stream};
use tonic::{Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_check_response::ServingStatus,
    health_server::{Health, HealthServer},
};

use crate::{health, stack::Stack};

/// Largest request: the name of a service.
const REQUEST_BYTES_MAX: usize = 4096;
/// Period at which a watch looks for changes. An orchestrator acts on seconds.
const LOOKS_EVERY: Duration = Duration::from_secs(1);

pub(super) fn service(stack: Arc<Stack>) -> HealthServer<impl Health> {
    HealthServer::new(Service(stack)).max_decoding_message_size(REQUEST_BYTES_MAX)
}

struct Service(Arc<Stack>);

/// The services that have a state: all together, and the one there is.
fn is_known(service: &str) -> bool {
    ["", super::VOICE].contains(&service)
}

async fn status(stack: &Stack) -> ServingStatus {
    match health::check(stack).await.is_ok() {
        true => ServingStatus::Serving,
        false => ServingStatus::NotServing,
    }
}

fn answer(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl Health for Service {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        if !is_known(&request.get_ref().service) {
            return Err(Status::not_found(crate::texts::UNKNOWN_SERVICE));
        }
        Ok(Response::new(answer(status(&self.0).await)))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let stack = Arc::clone(&self.0);
        if !is_known(&request.get_ref().service) {
            // The protocol wants the watch to stay open, as services may come; none comes here before the stack ends.
            let draining = stack.draining.clone();
            let unknown = stream::unfold(false, move |told| {
                let draining = draining.clone();
                async move {
                    if told {
                        draining.cancelled().await;
                        return None;
                    }
                    Some((Ok(answer(ServingStatus::ServiceUnknown)), true))
                }
            });
            return Ok(Response::new(Box::pin(unknown)));
        }
        let changes = stream::unfold((stack, None), async |(stack, told)| {
            loop {
                // A watch must not hold up the end of the stack: it ends once it has told of it.
                let is_over = stack.draining.is_cancelled();
                let now = status(&stack).await;
                if told != Some(now) {
                    return Some((Ok(answer(now)), (stack, Some(now))));
                }
                if is_over {
                    return None;
                }
                tokio::select! {
                    () = stack.draining.cancelled() => {}
                    () = tokio::time::sleep(LOOKS_EVERY) => {}
                }
            }
        });
        Ok(Response::new(Box::pin(changes)))
    }
}
