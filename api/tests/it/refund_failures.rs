//! A refund that has failed, or waits, says why to each reader whom it concerns.

use axum::http::Method;
use domain::{RefundFailure, RefundId, RefundReport, RefundState};
use runtime::clock::Clock;
use serde_json::{Value, json};
use sqlx::PgPool;
use store::tables::refunds;

use crate::support::{Who, returned};
use crate::world::World;

/// A refund of u1 that is not sent yet: its id.
async fn requested(world: &World) -> String {
    let order = world.paid("u1").await;
    let answer = world.refund("u1", &order, &order, &json!({})).await;
    assert_eq!(answer.status.as_u16(), 202, "{}", answer.body);
    assert_eq!(answer.json()["failure"], Value::Null);
    answer.json()["id"].as_str().unwrap().to_owned()
}

impl World {
    async fn refund_is_sent(&self, id: &str) {
        let mut tx = self.db.begin().await.unwrap();
        refunds::mark_sent(&mut tx, RefundId::parse(id).unwrap(), Clock::system().now()).await.unwrap();
        tx.commit().await.unwrap();
    }

    async fn refund_met(&self, id: &str, refused_code: Option<&str>, error: &str) {
        let mut tx = self.db.begin().await.unwrap();
        let (id, now) = (RefundId::parse(id).unwrap(), Clock::system().now());
        refunds::note_error(&mut tx, id, refused_code, error, now).await.unwrap();
        tx.commit().await.unwrap();
    }

    /// As the refund worker stores it when it postpones the job.
    async fn refund_waits(&self, id: &str, note: &str) {
        let done = sqlx::query("update jobs set last_error = $2 where kind = 'refund' and ref_id = $1");
        assert_eq!(done.bind(id).bind(note).execute(&self.db).await.unwrap().rows_affected(), 1);
    }

    /// What the buyer reads, by the refund's own route and by the list.
    async fn failure(&self, id: &str) -> Value {
        let one = self.get(&format!("/v1/refunds/{id}"), "u1").await.json();
        let list = self.get("/v1/refunds?limit=50", "u1").await.json();
        let listed = list["refunds"].as_array().unwrap().iter().find(|refund| refund["id"] == id).unwrap();
        assert_eq!(one, *listed);
        one["failure"].clone()
    }

    async fn failure_for_the_merchant(&self, id: &str) -> Value {
        let answer = self.request(Who::Admin("a1"), Method::GET, &format!("/v1/refunds/{id}"), None).await;
        assert_eq!(answer.status.as_u16(), 200, "{}", answer.body);
        answer.json()["failure"].clone()
    }
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_failed_refund_says_what_its_event_says(db: PgPool) {
    let world = World::new(db).await;
    for (refused_code, state, code) in [
        (Some("ACQ.TRADE_HAS_FINISHED"), RefundState::Absent, "refused"),
        (None, RefundState::Absent, "unknown_to_gateway"),
        (None, RefundState::Closed, "closed"),
    ] {
        let id = requested(&world).await;
        world.refund_is_sent(&id).await;
        if refused_code.is_some() {
            world.refund_met(&id, refused_code, "the trade is finished").await;
            assert_eq!(world.failure(&id).await, Value::Null, "a query has not confirmed it");
        }
        world.tell(&id, &RefundReport::of(state)).await;
        let why: String = sqlx::query_scalar("select data->>'why' from events where event_id = 'refund.failed:' || $1")
            .bind(&id)
            .fetch_one(&world.db)
            .await
            .unwrap();
        let expected = json!({ "code": code, "message": why });
        assert_eq!(world.failure(&id).await, expected);
        // A later query without an answer is not why it failed.
        world.refund_met(&id, None, "timeout").await;
        assert_eq!(world.failure(&id).await, expected);
        assert_eq!(world.failure_for_the_merchant(&id).await, expected);
    }
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn a_refund_that_waits_says_for_what(db: PgPool) {
    let world = World::new(db).await;
    for why in [RefundFailure::Balance, RefundFailure::OurAccount] {
        let id = requested(&world).await;
        world.refund_is_sent(&id).await;
        world.refund_waits(&id, &why.note(Some("NO_AUTH: 商户号 1900000109"))).await;
        // The buyer reads nothing of the merchant's account.
        let shown = world.failure(&id).await;
        assert_eq!(shown, json!({ "code": why.as_str(), "message": why.words() }));
        let full = world.failure_for_the_merchant(&id).await;
        assert_eq!(full["code"], why.as_str());
        assert!(full["message"].as_str().unwrap().ends_with("NO_AUTH: 商户号 1900000109"), "{full}");
        world.refund_waits(&id, "accepted, not done yet").await;
        assert_eq!(world.failure(&id).await, Value::Null);
        world.tell(&id, &returned()).await;
        assert_eq!(world.failure(&id).await, Value::Null);
    }
    let id = requested(&world).await;
    world.refund_waits(&id, &RefundFailure::Turn.note(None)).await;
    assert_eq!(world.failure(&id).await["code"], "waiting_for_turn");
    world.refund_is_sent(&id).await;
    assert_eq!(world.failure(&id).await, Value::Null, "its turn has come");
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn an_undeliverable_refund_says_so(db: PgPool) {
    let world = World::new(db).await;
    let id = requested(&world).await;
    world.refund_is_sent(&id).await;
    world.tell(&id, &RefundReport::of(RefundState::Abnormal)).await;
    world.refund_met(&id, None, "NO_AUTH: not for a buyer").await;
    let expected = json!({ "code": "undeliverable", "message": RefundFailure::Undeliverable.words() });
    assert_eq!(world.failure(&id).await, expected);
}
