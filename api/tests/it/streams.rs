//! `GET /v1/orders/{id}/stream`: what a waiting page sees.

use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::http::{Request, Response};
use futures_util::StreamExt;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::time::timeout;

use crate::world::{Setup, World, signed};

/// An open stream, read event by event.
struct Page {
    data: BodyDataStream,
    text: String,
}

impl Page {
    fn of(response: Response<Body>) -> Page {
        assert_eq!(response.status().as_u16(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Page { data: response.into_body().into_data_stream(), text: String::new() }
    }

    /// The next event's id and data; `None` at the end.
    async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let field =
                    |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
                assert_eq!(field("event:"), "status");
                let found = (field("id:").to_owned(), serde_json::from_str(field("data:")).unwrap());
                self.text = rest.to_owned();
                return Some(found);
            }
            let more = timeout(Duration::from_secs(10), self.data.next()).await.expect("an event in time")?;
            self.text.push_str(std::str::from_utf8(&more.unwrap()).unwrap());
        }
    }
}

fn watching(path: &str, token: &Value) -> Request<Body> {
    Request::get(format!("{path}?view_token={}", token.as_str().unwrap())).body(Body::empty()).unwrap()
}

fn path(placed: &Value) -> String {
    format!("/v1/orders/{}/stream", placed["order"]["id"].as_str().unwrap())
}

async fn pay(world: &World) {
    sqlx::query("update payment_orders set status = 'paid', trade_no = 't1', paid_at = now(), version = version + 1")
        .execute(&world.db)
        .await
        .unwrap();
}

/// A world whose hub is at work.
async fn awake(db: PgPool) -> World {
    let world = World::new(db.clone()).await;
    let hub = world.app.hub.clone();
    tokio::spawn(async move { hub.run(db).await });
    world
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_page_sees_the_present_then_the_payment_then_the_end(db: PgPool) {
    let world = awake(db).await;
    let placed = world.order("u1").await;
    let mut by_token = Page::of(world.open(watching(&path(&placed), &placed["view_token"])).await);
    let bearer = signed(axum::http::Method::GET, &path(&placed), "u1").body(Body::empty()).unwrap();
    let mut by_bearer = Page::of(world.open(bearer).await);
    for page in [&mut by_token, &mut by_bearer] {
        let (id, data) = page.next().await.unwrap();
        assert_eq!((id.as_str(), &data["status"], &data["paid_at"]), ("1", &json!("pending"), &Value::Null));
    }
    pay(&world).await;
    for page in [&mut by_token, &mut by_bearer] {
        let (id, data) = page.next().await.unwrap();
        assert_eq!((id.as_str(), &data["status"], &data["amount"]), ("2", &json!("paid"), &json!("12.34")));
        assert!(page.next().await.is_none(), "nothing more is to be waited for");
    }
    let mut again = watching(&path(&placed), &placed["view_token"]);
    again.headers_mut().insert("last-event-id", "2".parse().unwrap());
    assert_eq!(world.open(again).await.status().as_u16(), 204, "a browser stops asking");
    let mut late = Page::of(world.open(watching(&path(&placed), &placed["view_token"])).await);
    assert_eq!(late.next().await.unwrap().1["status"], "paid");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_stream_is_for_who_may_see_the_order(db: PgPool) {
    let world = awake(db).await;
    let (mine, other) = (world.order("u1").await, world.order("u2").await);
    world.send(watching(&path(&other), &mine["view_token"])).await.is(404, "order_not_found");
    world.send(Request::get(path(&mine)).body(Body::empty()).unwrap()).await.is(401, "token_missing");
    world.send(watching(&path(&mine), &json!("a.b.c"))).await.is(401, "token_invalid");
    world.get(&path(&mine), "u2").await.is(404, "order_not_found");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn streams_are_capped_and_give_their_place_back(db: PgPool) {
    let mut setup = Setup::default();
    setup.settings.streams = 7;
    let world = World::with(db, setup).await;
    let placed = [world.order("u1").await, world.order("u1").await];
    let mut open = Vec::new();
    for _ in 0..5 {
        open.push(world.open(watching(&path(&placed[0]), &placed[0]["view_token"])).await);
    }
    let sixth = world.send(watching(&path(&placed[0]), &placed[0]["view_token"])).await;
    sixth.is(429, "too_many_streams");
    assert_eq!(sixth.header("retry-after"), "5");
    for _ in 0..2 {
        open.push(world.open(watching(&path(&placed[1]), &placed[1]["view_token"])).await);
    }
    let eighth = world.send(watching(&path(&placed[1]), &placed[1]["view_token"])).await;
    eighth.is(503, "streams_full");
    assert_eq!(eighth.header("retry-after"), "5");
    open.clear();
    let mut page = Page::of(world.open(watching(&path(&placed[0]), &placed[0]["view_token"])).await);
    assert_eq!(page.next().await.unwrap().1["status"], "pending");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn open_pages_do_not_keep_the_process_from_stopping(db: PgPool) {
    let world = awake(db).await;
    let placed = world.order("u1").await;
    let mut page = Page::of(world.open(watching(&path(&placed), &placed["view_token"])).await);
    page.next().await.unwrap();
    world.stop.cancel();
    assert!(page.next().await.is_none());
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_refund_in_flight_keeps_the_page_waiting(db: PgPool) {
    let world = awake(db).await;
    let placed = world.order("u1").await;
    testkit::make_up_facts(&world.db).await;
    sqlx::query("update payment_orders set status = 'refunding', trade_no = 't1', paid_at = now(), version = 3")
        .execute(&world.db)
        .await
        .unwrap();
    let mut page = Page::of(world.open(watching(&path(&placed), &placed["view_token"])).await);
    assert_eq!(page.next().await.unwrap().1["status"], "refunding");
    sqlx::query("update payment_orders set status = 'refunded', version = 4").execute(&world.db).await.unwrap();
    assert_eq!(page.next().await.unwrap().0, "4");
    assert!(page.next().await.is_none());
}

/// A time that our types cannot read, written by hand: its page waits, and the others see their orders.
#[sqlx::test(migrator = "store::MIGRATOR")]
async fn an_order_that_cannot_be_read_keeps_no_other_from_its_page(db: PgPool) {
    let world = awake(db).await;
    let (mut pages, mut ids) = (Vec::new(), Vec::new());
    for user in ["u1", "u2", "u3"] {
        let placed = world.order(user).await;
        let mut page = Page::of(world.open(watching(&path(&placed), &placed["view_token"])).await);
        assert_eq!(page.next().await.unwrap().1["status"], "pending");
        pages.push(page);
        ids.push(placed["order"]["id"].as_str().unwrap().to_owned());
    }
    let at = "update payment_orders set status = 'paid', trade_no = id, version = 2, paid_at = $2::text::timestamptz where id = $1";
    for (n, time) in [(0, "infinity"), (1, "infinity"), (2, "2026-01-05T10:21:08Z")] {
        sqlx::query(at).bind(&ids[n]).bind(time).execute(&world.db).await.unwrap();
    }
    assert_eq!(pages[2].next().await.unwrap().1["status"], "paid");
    // Later ones too: the hub is still at work.
    for id in &ids[..2] {
        sqlx::query("update payment_orders set paid_at = now() where id = $1")
            .bind(id)
            .execute(&world.db)
            .await
            .unwrap();
    }
    for page in &mut pages[..2] {
        assert_eq!(page.next().await.unwrap().1["status"], "paid");
    }
}
