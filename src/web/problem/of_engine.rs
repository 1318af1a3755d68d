//! How the engine's errors are answered.

use axum::http::StatusCode;

use super::{EVENT_REFUSED, Problem, sentence};
use crate::engine::Error;

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let detail = sentence(&error);
        match error {
            Error::Malformed(_) => Self::bad_request(
                "malformed-event",
                detail,
                "Nothing was stored. Reload the page and post again; a program must send a new UUID of version 7.",
            ),
            // The materializer's words are for the person who posted. Words of ours around them would only drown them.
            Error::Refused(why) => Self::new(StatusCode::UNPROCESSABLE_ENTITY, EVENT_REFUSED, why, ""),
            Error::SetAside(_) => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                EVENT_REFUSED,
                detail,
                "Nothing was stored, and the same event would be refused again.",
            ),
            Error::Conflict(_) => {
                Self::conflict("id-taken", detail, "Nothing was changed. Post it again: it then gets an id of its own.")
            }
            Error::Overloaded => {
                Self::unavailable("overloaded", detail, "Nothing was stored. Repeat it with the same id.", 1)
            }
            Error::TooManyOpen => {
                Self::unavailable("too-many-stores-open", detail, "Nothing was stored. Repeat it with the same id.", 5)
            }
            Error::TooManyStores(_) => Self::new(
                StatusCode::INSUFFICIENT_STORAGE,
                "too-many-stores",
                detail,
                "Nothing was stored. Use a store that exists.",
            ),
            Error::TooManyNewStores(wait) => Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                "too-many-new-stores",
                detail,
                "Nothing was stored. Use a store that exists, or come back later.",
            )
            .retry_in(wait),
            Error::Unavailable(_) => Self::unavailable(
                "store-unavailable",
                detail,
                "Nothing that was acknowledged is lost. Repeat it with the same id when the cause is gone: one id counts once.",
                2,
            ),
            Error::OwnLog => Self::conflict("own-log", detail, "Nothing was changed."),
            Error::HistoryMissing { .. } => Self::conflict("history-missing", detail, "Nothing was changed."),
            Error::Closed => Self::unavailable("shutting-down", detail, "Try again when it has started again.", 1),
            Error::Query(_) => Self::internal(&error),
        }
    }
}
