//! How dead letters become cases, and what happens to the jobs that they were published for.

use std::time::Duration;

use broker::{Publisher, PublisherOptions, callback_message, topology};
use domain::PaymentMethod::Alipay;
use domain::message::callback::Callback;
use serde_json::json;
use sqlx::PgPool;
use store::MIGRATOR;
use store::tables::jobs;
use tokio_util::sync::CancellationToken;

use super::{PATIENCE, Setup};
use crate::support::World;

#[sqlx::test(migrator = "MIGRATOR")]
async fn dead_letters_become_cases_with_bytes_reason_and_origin(db: PgPool) {
    let setup = Setup::new(db).await;
    let connection = broker::open(&setup.broker.uri(), "test").await.unwrap();
    let stop = CancellationToken::new();
    let publisher = Publisher::start(&setup.broker.uri(), "test", PublisherOptions::default(), stop.clone()).unwrap();
    publisher.ready().await;
    let message = broker::Message {
        exchange: topology::PAYMENT_IN.to_owned(),
        routing_key: topology::CALLBACKS.to_owned(),
        id: "m1".to_owned(),
        kind: None,
        content_type: "text/plain".to_owned(),
        headers: vec![("method".to_owned(), "alipay".to_owned())],
        body: "poison".into(),
    };
    publisher.publish(message, PATIENCE).await.unwrap();
    let reject =
        async |batch: &[broker::Delivery]| Ok::<_, store::DbError>(vec![worker::consumer::Ack::Dead; batch.len()]);
    let options = worker::consumer::BatchOptions::in_order(1, Duration::from_millis(1));
    let rejected = CancellationToken::new();
    let consumer = worker::consumer::run(&connection, topology::CALLBACKS, options, rejected.clone(), reject);
    setup.start();
    let filed = async {
        setup.until("select count(*) from cases", 1).await;
        rejected.cancel();
    };
    let (consumed, ()) = tokio::join!(consumer, filed);
    consumed.unwrap();
    let (kind, evidence): (String, serde_json::Value) =
        sqlx::query_as("select kind, evidence from cases").fetch_one(&setup.db).await.unwrap();
    assert_eq!(kind, "dead_letter");
    insta::assert_json_snapshot!(evidence);
    let stored: Vec<Vec<u8>> = sqlx::query_scalar("select body from dead_letters").fetch_all(&setup.db).await.unwrap();
    assert_eq!(stored, [b"poison"]);
    stop.cancel();
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_dead_callback_ends_the_job_that_it_came_as_and_no_other(db: PgPool) {
    let world = World::new(db.clone());
    let setup = Setup::new(db).await;
    let mut callbacks = Vec::new();
    for _ in 0..2 {
        let callback = world.paid(&world.pending_order(Alipay, "8").await);
        jobs::insert_callback(&setup.db, &callback, time::Duration::hours(1)).await.unwrap();
        callbacks.push(callback);
    }
    let ids = async |kind: &str| -> Vec<i64> {
        let rows = sqlx::query_scalar("select id from jobs where kind = $1 order by id").bind(kind.to_owned());
        rows.fetch_all(&setup.db).await.unwrap()
    };
    let (rows, checks) = (ids("callback").await, ids("check").await);
    // Its own row; then, forged, the row of another callback and one that is no callback at all.
    let naming = |id: i64| {
        let callback = Callback { job_id: Some(id), ..callbacks[0].clone() };
        callback_message(&callback, format!("job:{id}"))
    };
    let last = callback_message(&callbacks[1], "last".to_owned());
    setup.publish(vec![naming(rows[0]), naming(rows[1]), naming(checks[0]), last]).await;
    let _rejected = setup.reject(topology::CALLBACKS, 4).await;
    setup.start();
    // They arrive in order, so with the last one all of them have been filed: the first three are one callback.
    setup.until("select count(*) from cases", 2).await;
    assert_eq!(ids("callback").await, [rows[1]]);
    assert_eq!(ids("check").await, checks);
    let evidence = "select evidence->'callback' from cases";
    let evidence: Vec<serde_json::Value> = sqlx::query_scalar(evidence).fetch_all(&setup.db).await.unwrap();
    for evidence in evidence {
        assert_eq!((&evidence["method"], &evidence["account"]), (&json!("alipay"), &json!("main")), "{evidence}");
        assert_eq!(evidence["headers"], json!(callbacks[0].headers), "what its signature needs");
    }
    // The bytes name the payer: they are apart, as the job that a replay makes of them.
    let payer = "select count(*) from cases where evidence::text like '%buyer%' or evidence ? 'body'";
    assert_eq!(sqlx::query_scalar::<_, i64>(payer).fetch_one(&setup.db).await.unwrap(), 0);
    let jobs = "select job from dead_letters join cases on cases.id = case_id order by cases.id";
    let jobs: Vec<serde_json::Value> = sqlx::query_scalar(jobs).fetch_all(&setup.db).await.unwrap();
    let expected: Vec<serde_json::Value> =
        callbacks.iter().map(|callback| serde_json::to_value(callback).unwrap()).collect();
    assert_eq!(jobs, expected);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_is_signed_once_opens_one_case_however_it_is_written(db: PgPool) {
    let world = World::new(db.clone());
    let setup = Setup::new(db).await;
    // A browser return, which an older ingress accepted as a notification: it has no id.
    let mut overrides = gateway_sim::notify::Overrides::default();
    for absent in ["notify_id", "notify_type", "trade_status"] {
        overrides.fields.insert(absent.to_owned(), None);
    }
    let order = world.pending_order(Alipay, "8").await;
    let returned = world.notice_of(&world.paid_trade(&order), &overrides);
    let plain = String::from_utf8(returned.body.to_vec()).unwrap();
    let turned = plain.split('&').rev().collect::<Vec<_>>().join("&");
    let lower = plain.replace("%2B", "%2b").replace("%3A", ":");
    let writings = [
        plain.clone(),
        turned,
        lower,
        plain.replace('+', "%20"),
        format!("&{plain}&&a="),
        format!("{plain}&notify_id="),
    ];
    let callbacks: Vec<Callback> =
        writings.iter().map(|body| Callback { body: body.clone().into(), ..returned.clone() }).collect();
    assert_eq!(world.settle(callbacks.clone()).await, [worker::consumer::Ack::Dead; 6]);
    assert_eq!(world.verdicts().await, [("undecodable".to_owned(), 6)], "one row of evidence");

    let letters = callbacks.iter().enumerate().map(|(n, callback)| callback_message(callback, format!("m{n}")));
    let forged = Callback { body: plain.replacen("total_amount=8", "total_amount=9", 1).into(), ..returned.clone() };
    assert_ne!(forged.body, returned.body);
    setup.publish(letters.chain([callback_message(&forged, "forged".to_owned())]).collect()).await;
    let _rejected = setup.reject(topology::CALLBACKS, 7).await;
    setup.start();
    // The forged one bears the same signature, and is another message.
    setup.until("select count(*) from cases", 2).await;
    let bodies: Vec<String> = sqlx::query_scalar("select job->>'body' from dead_letters order by case_id")
        .fetch_all(&setup.db)
        .await
        .unwrap();
    assert_ne!(bodies[0], bodies[1]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_dead_nudge_ends_no_job_and_is_one_case_however_often_it_comes(db: PgPool) {
    let world = World::new(db.clone());
    let setup = Setup::new(db).await;
    let order = world.pending_order(Alipay, "8").await;
    let job: i64 = sqlx::query_scalar("select id from jobs").fetch_one(&setup.db).await.unwrap();
    let nudge = |id: String, body: String| broker::Message {
        exchange: topology::PAYMENT_JOBS.to_owned(),
        routing_key: topology::CHECKS.to_owned(),
        id,
        kind: Some("check".to_owned()),
        content_type: "application/json".to_owned(),
        headers: Vec::new(),
        body: body.into(),
    };
    let of = |fence: i64| nudge(format!("job:{job}:{fence}"), json!({ "id": job, "fence": fence }).to_string());
    setup.publish(vec![of(1), of(2), of(3), nudge("last".to_owned(), "no job".to_owned())]).await;
    let _rejected = setup.reject(topology::CHECKS, 4).await;
    setup.start();
    // They arrive in order, so with the last one all of them have been filed.
    setup.until("select count(*) from cases where subject_ref = 'last'", 1).await;
    let sql = "select subject_ref, evidence from cases where subject_ref <> 'last'";
    let cases: Vec<(String, serde_json::Value)> = sqlx::query_as(sql).fetch_all(&setup.db).await.unwrap();
    assert_eq!(cases.len(), 1, "{cases:?}");
    assert_eq!(cases[0].0, format!("job:{job}"));
    assert_eq!(cases[0].1["job"], json!({ "id": job, "kind": "check", "ref_id": order.id.to_string() }));
    assert_eq!(world.count("checks").await, 1, "the order is still looked after");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_letter_that_the_database_refuses_stops_no_other(db: PgPool) {
    sqlx::query("alter table cases add constraint refused check (subject_ref <> 'refused')")
        .execute(&db)
        .await
        .unwrap();
    let setup = Setup::new(db).await;
    let letter = |id: &str, headers: &[(&str, &str)]| broker::Message {
        exchange: String::new(),
        routing_key: topology::DEAD.to_owned(),
        id: id.to_owned(),
        kind: None,
        content_type: "text/plain".to_owned(),
        headers: headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        body: id.to_owned().into(),
    };
    setup
        .publish(vec![
            letter("first", &[]),
            letter("nul\0id", &[("na\0me", "val\0ue")]),
            letter("refused", &[("kind", "of none")]),
            letter("last", &[]),
        ])
        .await;
    setup.start();
    setup.until("select count(*) from cases", 4).await;
    let sql = "select case when subject_ref = id then 'its own' else subject_ref end, evidence from cases \
               order by (select body from dead_letters where case_id = cases.id)";
    let cases: Vec<(String, serde_json::Value)> = sqlx::query_as(sql).fetch_all(&setup.db).await.unwrap();
    insta::assert_json_snapshot!(cases);
}
