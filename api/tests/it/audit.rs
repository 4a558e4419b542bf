//! What administrators do leaves a row that no process can change, in the transaction of its effect.

use axum::http::Method;
use serde_json::json;
use sqlx::PgPool;

use crate::cases::{A, B, step};
use crate::world::World;

async fn acts(db: &PgPool) -> Vec<String> {
    let sql = "select subject || ' ' || act || ' ' || split_part(object, ':', 1) from audit_log order by id";
    sqlx::query_scalar(sql).fetch_all(db).await.unwrap()
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn each_act_of_a_person_is_written_down_and_nothing_that_was_refused(db: PgPool) {
    let world = World::new(db.clone()).await;
    let id = world.placed("u1").await;
    world.close_locally(&id).await;
    let case = world.late_payment(&id, "4200000042").await;
    assert_eq!(acts(&db).await, [""; 0], "buyers and gateways are no people of the merchant");

    let proposed = step(&world, A, &case, "propose", json!({ "action": "refund", "reason": "late" })).await.json();
    let version = json!({ "version": proposed["version"] });
    step(&world, A, &case, "confirm", version.clone()).await.is(403, "same_person");
    step(&world, B, &case, "confirm", json!({ "version": 1 })).await.is(409, "case_changed");
    assert_eq!(step(&world, B, &case, "confirm", version).await.status.as_u16(), 200);
    assert_eq!(step(&world, A, &case, "reopen", json!({ "reason": "the buyer asks" })).await.status.as_u16(), 200);
    assert_eq!(step(&world, B, &case, "resolve", json!({ "note": "explained" })).await.status.as_u16(), 200);
    let path = "/v1/admin/config/alipay";
    let body = json!({ "version": 1, "min_amount": "0.02", "note": "by phone" });
    assert_eq!(world.request(A, Method::PATCH, path, Some(&body)).await.status.as_u16(), 200);
    world.request(A, Method::PATCH, path, Some(&body)).await.is(409, "config_changed");
    assert_eq!(
        acts(&db).await,
        [
            "a1 case.proposed case",
            "a2 case.confirmed case",
            "a1 case.reopened case",
            "a2 case.resolved case",
            "a1 payment_config.changed payment_config",
        ]
    );
    let entries: Vec<String> =
        sqlx::query_scalar("select object || ' ' || detail::text from audit_log where act like 'case.%'")
            .fetch_all(&db)
            .await
            .unwrap();
    assert!(entries.iter().all(|row| row.starts_with(&format!("case:{case} "))), "{entries:?}");
    assert!(entries[0].contains("\"reason\": \"late\"") && entries[2].contains("the buyer asks"), "{entries:?}");
    assert!(entries[1].contains("\"done\": \"refund "), "{entries:?}");
}
