//! Every limit of the program: how much, how many, how long, how often; each once, with its reason.
//!
//! One file a floor, one module a job. Only numbers stand here, and this module knows nothing of the rest of the program.
//! What a file format or the wire protocol fixes isn't a limit: it stands beside the code that reads it.

#[cfg(feature = "app")]
pub(crate) mod app;
pub(crate) mod engine;
pub(crate) mod sync;
#[cfg(feature = "app")]
pub(crate) mod web;

/// What holds between limits. A change that breaks one of these doesn't compile.
#[cfg(feature = "app")]
const _: () = {
    // A device that hears nothing gives up only after it has missed two pings.
    assert!(sync::stream::SILENCE.as_secs() > 2 * sync::stream::PING_EVERY.as_secs());
    // A device drops an unused connection before the hub does, so no request goes out on one that is just closing.
    assert!(sync::http::KEEP.as_secs() < web::server::HEADER_READ.as_secs());
    // A stream that only stands still for a moment isn't judged by its speed.
    assert!(sync::sse::LONG.as_secs() > sync::stream::SILENCE.as_secs());
    // A body has room for a push.
    assert!(web::guard::SYNC_BODY_BYTES > sync::page::BYTES as u64);
    // The stores have time to close after the server has ended.
    assert!(web::server::LAST_CALL.as_millis() + web::server::DRAIN.as_millis() < app::SHUTDOWN.as_millis());
    // A node says that its stores are in use before they count as unused.
    assert!(app::ATTEND_EVERY.as_secs() < sync::client::IDLE_AFTER.as_secs());
};
