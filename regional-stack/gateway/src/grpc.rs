//! gRPC: `meridian.voice.v1.Voice`, on the same port as everything else.

mod health;

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{
    Router,
    body::{Body, HttpBody},
    extract::{Request, State},
    http::StatusCode,
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use futures_util::{
    Stream, StreamExt as _,
    stream::{self},
};
use hyper::body::{Frame, SizeHint};
use speech::{SAMPLE_RATE, pcm};
use tokio::sync::OwnedSemaphorePermit;
use tonic::Status;

use crate::{
    caller::class_of,
    error::ApiError,
    queue::Class,
    script::Script,
    stack::Stack,
    texts,
    transcribing::transcribe,
    voice::{
        Audio, Segment, SynthesizeRequest, TranscribeRequest, TranscribeResponse,
        voice_server::{Voice, VoiceServer},
    },
};

/// Room in a message for its fields beside the recording.
const ENVELOPE_BYTES: usize = 1024;

/// The name of our service.
const VOICE: &str = "meridian.voice.v1.Voice";
/// The descriptions of our service and its messages, as reflection hands them on.
const DESCRIPTIONS: &[u8] = tonic::include_file_descriptor_set!("voice");
/// Largest question to reflection: the name of a symbol.
const QUESTION_BYTES_MAX: usize = 4096;

/// The routes of the services.
pub(crate) fn router(stack: Arc<Stack>) -> Router {
    let service = VoiceServer::new(Service(Arc::clone(&stack)))
        .max_decoding_message_size(stack.config.limits.body_bytes_max.saturating_add(ENVELOPE_BYTES));
    let health = health::service(Arc::clone(&stack));
    // Programs ask for either version of reflection.
    let described = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTIONS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let generated = "the descriptions were generated";
    let reflection = described().build_v1().expect(generated);
    let reflection_alpha = described().build_v1alpha().expect(generated);
    Router::new()
        .route_service("/meridian.voice.v1.Voice/{method}", service)
        .layer(middleware::from_fn_with_state(stack, bound))
        .route_service("/grpc.health.v1.Health/{method}", health)
        .route_service(
            "/grpc.reflection.v1.ServerReflection/{method}",
            reflection.max_decoding_message_size(QUESTION_BYTES_MAX),
        )
        .route_service(
            "/grpc.reflection.v1alpha.ServerReflection/{method}",
            reflection_alpha.max_decoding_message_size(QUESTION_BYTES_MAX),
        )
}

struct Service(Arc<Stack>);

#[tonic::async_trait]
impl Voice for Service {
    async fn transcribe(
        &self,
        request: tonic::Request<TranscribeRequest>,
    ) -> Result<tonic::Response<TranscribeResponse>, Status> {
        let class = class_of(request.metadata().as_ref(), Class::Bulk);
        let heard = transcribe(&self.0, class, request.into_inner().wav).await?;
        let segments = heard.segments.iter().map(|segment| Segment {
            start_s: segment.start_s,
            end_s: segment.end_s,
            text: segment.text.clone(),
            confidence: segment.confidence,
        });
        Ok(tonic::Response::new(TranscribeResponse {
            text: heard.text(),
            confidence: heard.confidence(),
            duration_s: heard.seconds,
            region: self.0.config.region.to_string(),
            segments: segments.collect(),
        }))
    }

    type SynthesizeStream = Pin<Box<dyn Stream<Item = Result<Audio, Status>> + Send>>;

    async fn synthesize(
        &self,
        request: tonic::Request<SynthesizeRequest>,
    ) -> Result<tonic::Response<Self::SynthesizeStream>, Status> {
        // A caller of the stream waits for the first sentence.
        let class = class_of(request.metadata().as_ref(), Class::Live);
        let SynthesizeRequest { text, speed } = request.into_inner();
        let mut script = Script::read(&self.0, class, "text", &text, speed)?;
        // The call waits for the first sentence: an error until then is the call's status, and not the end of a stream.
        let first = script.speak_next(&self.0, SAMPLE_RATE).await?.unwrap_or_default();
        let stack = Arc::clone(&self.0);
        let rest = stream::try_unfold((script, stack), async |(mut script, stack)| {
            let spoken = script.speak_next(&stack, SAMPLE_RATE).await?;
            Ok::<_, Status>(spoken.map(|samples| (audio(&samples), (script, stack))))
        });
        let all = stream::once(async move { Ok(audio(&first)) }).chain(rest);
        Ok(tonic::Response::new(Box::pin(all)))
    }
}

fn audio(samples: &[f32]) -> Audio {
    Audio {
        sample_rate: SAMPLE_RATE,
        pcm: pcm::to_s16le(samples).into(),
    }
}

/// Applies the limits of HTTP uploads: their number at once, and the time for each.
async fn bound(State(stack): State<Arc<Stack>>, request: Request, next: Next) -> Response {
    let limits = &stack.config.limits;
    let Ok(place) = Arc::clone(&stack.uploads).try_acquire_owned() else {
        let message = texts::TOO_MANY_UPLOADS;
        return Status::resource_exhausted(message).into_http::<Body>().into_response();
    };
    let deadline = tokio::time::sleep(limits.body_max.0);
    // A message that is cut off is an error of the call.
    let request = request.map(|body| Body::from_stream(body.into_data_stream().take_until(deadline)));
    let response = next.run(request).await;
    response.map(|body| Body::new(Held { body, _place: place }))
}

/// A body that holds a place until its end: a call is over when the last piece of its stream is sent.
struct Held {
    body: Body,
    _place: OwnedSemaphorePermit,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        let ApiError { status, message, .. } = error;
        match status {
            StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE => Self::invalid_argument(message),
            StatusCode::TOO_MANY_REQUESTS => Self::resource_exhausted(message),
            StatusCode::SERVICE_UNAVAILABLE => Self::unavailable(message),
            _ => Self::internal(message),
        }
    }
}
