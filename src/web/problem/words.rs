//! The words for a bare status.

use axum::http::StatusCode;

use super::Problem;

impl Problem {
    /// The problem behind a bare status: the router's 404 and 405, an extractor's 400.
    pub(super) fn of_status(status: StatusCode) -> Self {
        let (code, detail, advice) = match status {
            StatusCode::BAD_REQUEST => (
                "bad-request",
                "The request is not in a form that this address understands.",
                "Go back, reload the page and try again.",
            ),
            StatusCode::UNAUTHORIZED => (
                "unauthorized",
                "This address needs a valid token.",
                "Add a device at the hub with its command `token add NAME` and use the token that it prints.",
            ),
            StatusCode::FORBIDDEN => {
                ("forbidden", "This request is not allowed.", "Use the program from its own page.")
            }
            StatusCode::NOT_FOUND => (
                "not-found",
                "The program knows no such address.",
                "Check it for typing errors, or go to the start page.",
            ),
            StatusCode::METHOD_NOT_ALLOWED => (
                "method-not-allowed",
                "This address exists, but not for requests of this method.",
                "Use one of the methods in the Allow header, or go to the start page.",
            ),
            StatusCode::REQUEST_TIMEOUT => (
                "request-timeout",
                "The request did not arrive in time, so the connection was closed.",
                "Try again. On a slow network, send less at once.",
            ),
            StatusCode::PAYLOAD_TOO_LARGE => {
                ("body-too-large", "The request carries more data than this address takes.", "Send less at once.")
            }
            StatusCode::URI_TOO_LONG => (
                "uri-too-long",
                "The address of the request is too long.",
                "Check the address, or go to the start page.",
            ),
            StatusCode::UNSUPPORTED_MEDIA_TYPE => (
                "unsupported-media-type",
                "The request carries data in a format that this address doesn't take.",
                "Send a form to pages and JSON to programs, with the matching Content-Type.",
            ),
            StatusCode::UNPROCESSABLE_ENTITY => (
                "unprocessable",
                "The data of the request has the right format, but not the expected content.",
                "Go back, reload the page and try again.",
            ),
            StatusCode::TOO_MANY_REQUESTS => {
                ("too-many-requests", "There were too many requests in a short time.", "Wait a moment and try again.")
            }
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => (
                "headers-too-large",
                "The headers of the request are too large.",
                "Clear the cookies of this address: all programs of one machine share them.",
            ),
            StatusCode::SERVICE_UNAVAILABLE => {
                ("unavailable", "The program can't do this right now.", "Wait a moment and try again.")
            }
            status if status.is_server_error() => (
                "internal",
                "Something went wrong inside the program. Nothing that was confirmed before is lost.",
                "Try again. If it happens again, look into the log of the program.",
            ),
            _ => ("refused", "The request can't be answered.", "Go to the start page and try again."),
        };
        Self::new(status, code, detail, advice)
    }
}

pub(super) fn reason(status: StatusCode) -> &'static str {
    status.canonical_reason().unwrap_or("Error")
}

/// A heading for people. Programs get the registered reason phrase.
pub(super) fn title(status: StatusCode) -> &'static str {
    match status {
        StatusCode::BAD_REQUEST => "That can’t be understood",
        StatusCode::UNPROCESSABLE_ENTITY => "That was not accepted",
        StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => "That’s not allowed",
        StatusCode::NOT_FOUND => "Nothing here",
        StatusCode::METHOD_NOT_ALLOWED => "That can’t be done here",
        StatusCode::GONE => "That’s no longer good",
        StatusCode::CONFLICT => "That doesn’t fit",
        StatusCode::REQUEST_TIMEOUT => "That took too long",
        StatusCode::PAYLOAD_TOO_LARGE | StatusCode::URI_TOO_LONG | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
            "That’s too much"
        }
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => "Not right now",
        status if status.is_server_error() => "Something went wrong",
        _ => "That didn’t work",
    }
}
