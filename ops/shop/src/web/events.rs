//! The fulfilment events that the shop receives, as server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};

use super::state::Shared;
use crate::desk::Notice;

/// `GET /api/events`: the last 50 events, then each one as it arrives; also whether the broker is reachable.
pub(super) async fn stream(State(shop): State<Shared>) -> Response {
    let (replay, notices) = shop.desk.watch();
    let state = (VecDeque::from(replay), notices);
    let notices = stream::unfold(state, async |(mut replay, mut notices)| {
        let notice = match replay.pop_front() {
            Some(notice) => notice,
            // A watcher that fell behind is disconnected. Its browser reconnects and gets the replay.
            None => notices.recv().await.ok()?,
        };
        Some((Ok::<_, Infallible>(render(&notice)), (replay, notices)))
    });
    let notices = notices.take_until(Box::pin(async move { shop.stop.said().await }));
    Sse::new(notices).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))).into_response()
}

fn render(notice: &Notice) -> Event {
    let (name, data) = match notice {
        Notice::Delivered(delivered) => ("delivered", serde_json::to_string(delivered)),
        Notice::Link(link) => ("link", serde_json::to_string(link)),
    };
    // Both are plain structures with text keys, which always serialize to JSON.
    Event::default().event(name).data(data.unwrap_or_default())
}
