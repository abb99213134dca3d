//! The page `/explain`, which edges and name servers have at their administrative addresses.

use anyhow::anyhow;
use reqwest::{RequestBuilder, StatusCode};
use serde_json::Value;

use crate::exit::Failure;

/// The answer of a page.
pub(crate) enum Answer {
    Is(Value),
    /// The process does not hold the plan of the question, with its words.
    NoSuchPlan(String),
}

/// Asks a page. `silent` is the sentence for a process that does not answer, and `refused` makes the failure from the words of one that
/// answers with another status.
pub(crate) async fn ask(
    request: RequestBuilder,
    silent: String,
    refused: impl FnOnce(StatusCode, String) -> Failure,
) -> Result<Answer, Failure> {
    let asked = async {
        let answer = request.send().await?;
        match answer.status() {
            StatusCode::OK => answer.json().await.map(Ok),
            status => answer.text().await.map(|said| Err((status, said))),
        }
    };
    let unreachable = |error: reqwest::Error| Failure::unreachable(anyhow!(error.without_url()).context(silent));
    match asked.await.map_err(unreachable)? {
        Ok(answer) => Ok(Answer::Is(answer)),
        // A 404 without the word "plan" comes from another server at this address.
        Err((StatusCode::NOT_FOUND, said)) if said.contains("plan") => Ok(Answer::NoSuchPlan(said)),
        Err((status, said)) => Err(refused(status, said)),
    }
}
