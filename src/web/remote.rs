//! Routes for commands of an app: commit an event, answer a query, list the events without effect.

use axum::Json;
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::problem::Problem;
use super::{Opened, sentence};
use crate::engine::{Answer, Envelope, Error, Question, Skipped};
use crate::sync::WireEvent;

/// The outcome of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Committed {
    /// False when it was stored before.
    pub(crate) is_new: bool,
}

/// `POST /control/v1/{store}/commit`
pub(crate) async fn commit(Opened { store, .. }: Opened, body: Bytes) -> Result<Json<Committed>, Problem> {
    let event = Envelope::try_from(understood::<WireEvent>(&body)?).map_err(Error::from)?;
    let receipt = store.commit_envelope(event).await?;
    Ok(Json(Committed { is_new: receipt.is_new }))
}

/// `POST /control/v1/{store}/query`
pub(crate) async fn query(Opened { store, .. }: Opened, body: Bytes) -> Result<Json<Answer>, Problem> {
    let answer = store.answer(understood::<Question>(&body)?).await;
    Ok(Json(answer.map_err(|error| match error {
        // The owner of the data wrote the query, and has to see what is wrong with it.
        Error::Query(_) => Problem::bad_request("query-failed", sentence(error), "Nothing was changed."),
        error => error.into(),
    })?))
}

/// `GET /control/v1/{store}/skipped`
pub(crate) async fn skipped(Opened { store, .. }: Opened) -> Result<Json<Vec<Skipped>>, Problem> {
    Ok(Json(store.skipped().await?))
}

fn understood<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|why| {
        let advice = "Use the command of the program that serves this.";
        Problem::bad_request("malformed-request", format!("The request is not understood: {why}."), advice)
    })
}
