//! What operators do with `paymentctl`: dead letters replayed, events sent again, an order explained, the doctor.

use std::fs;
use std::time::Duration;

use e2e::process::{Ended, Program};
use e2e::shop::{OPENID, RefundRequest};
use e2e::{Gateway, Order, SOON, Setup, World, eventually};
use lapin::options::QueueDeleteOptions;
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(60);

/// Runs a command, and says how it ended and what it said.
async fn run(world: &World, args: &[&str]) -> (i32, String) {
    end(world, args.iter().fold(world.paymentctl(), |program, arg| program.arg(*arg))).await
}

async fn end(world: &World, program: Program) -> (i32, String) {
    let Ended { status, said } = program.run(world.dir(), LIMIT).await;
    assert!(!said.contains("panicked"), "{said}");
    (status.code().expect("it ends by itself"), said)
}

/// What a command that must succeed says to scripts.
async fn output_of(world: &World, args: &[&str]) -> Value {
    let (code, said) = run(world, &[args, &["--json"]].concat()).await;
    assert_eq!(code, 0, "{args:?}: {said}");
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{args:?}: {error}: {said}"))
}

/// Every row that a command might change.
async fn rows(world: &World) -> Vec<String> {
    let mut rows = world.texts("select row(j.*)::text from jobs j where kind = 'callback' order by id").await;
    rows.extend(world.texts("select row(c.*)::text from cases c order by id").await);
    rows.extend(world.texts("select row(e.*)::text from events e order by seq").await);
    rows
}

/// A payment whose callback the worker took for forged, because it had another key of the gateway's. The right key is back.
async fn dead_letter(world: &World) -> (Order, String) {
    let order = world.buy(Gateway::Wechat, "native", "8.88").await;
    let worker = &world.workers[0];
    worker.terminate().await;
    world.pay(&order).await;
    eventually("the callback is taken", SOON, async || {
        let taken = world.api.metrics().await.by("callbacks_received_total", "outcome");
        taken.contains_key("accepted").then_some(())
    })
    .await;
    let keys = world.gateways.dir.join("keys");
    let (right, wrong) = (keys.join("wechat_main_public_1.pem"), keys.join("alipay_main_public.pem"));
    let original = fs::read(&right).expect("the key is there");
    fs::copy(wrong, &right).expect("a copy");
    worker.start().await;
    let case = eventually("a case of the dead letter", SOON, async || {
        world.texts("select id::text from cases where kind = 'dead_letter'").await.pop()
    })
    .await;
    assert_eq!(world.status(&order).await, "pending");
    eventually("its event is out and marked", SOON, async || {
        (world.number("select count(*) from events where published_at is null").await? == 0).then_some(())
    })
    .await;

    // With the wrong key it is a dead letter again, and its case says so.
    output_of(world, &["cases", "replay", &case, "--yes"]).await;
    eventually("the case is open again", SOON, async || {
        let shown = output_of(world, &["cases", "show", &case]).await;
        (shown["status"] == "open" && shown["history"][1]["what"] == "reopened").then_some(())
    })
    .await;
    assert_eq!(world.status(&order).await, "pending");
    marked(world).await;

    fs::write(&right, original).expect("the key can be written");
    worker.terminate().await;
    worker.start().await;
    (order, case)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_that_is_replayed_after_a_repaired_key_settles() {
    let world = World::start().await;
    let (order, case) = dead_letter(&world).await;

    let before = rows(&world).await;
    let (code, said) = run(&world, &["cases", "replay", "--kind", "dead_letter"]).await;
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("would be replayed: a callback of wechat for account main"), "{said}");
    assert!(said.contains("1 of 1 case would be replayed; nothing was changed, --yes does it"), "{said}");
    assert_eq!(rows(&world).await, before, "a dry run changes nothing");

    let listed = output_of(&world, &["cases", "list", "--kind", "dead_letter"]).await;
    assert_eq!(listed["cases"][0]["id"], case.as_str());
    let evidence = &listed["cases"][0]["evidence"];
    assert!(evidence["digest"].as_str().expect("a digest").contains("sha256:"), "{evidence}");
    assert!(evidence.get("body").is_none(), "the bytes name the payer: {evidence}");

    output_of(&world, &["cases", "replay", &case, "--yes"]).await;
    world.wait_paid(&order).await;
    assert_eq!(world.events_of(&order).await.len(), 1);
    let shown = output_of(&world, &["cases", "show", &case]).await;
    assert_eq!((&shown["status"], &shown["resolved_by"]), (&json!("resolved"), &json!("paymentctl/alice")));
    let steps = shown["history"].as_array().expect("steps").iter().map(|step| step["what"].as_str());
    assert_eq!(steps.collect::<Vec<_>>(), [Some("replayed"), Some("reopened"), Some("replayed")]);

    let (code, said) = run(&world, &["cases", "replay", &case, "--yes"]).await;
    assert!(code == 1 && said.contains("is resolved already, by paymentctl/alice"), "{said}");
    let (code, said) = run(&world, &["cases", "discard", &case, "--reason", "again", "--yes"]).await;
    assert!(code == 1 && said.contains("is resolved already"), "{said}");
    world.wait_quiet(SOON).await;
    assert_eq!(world.number("select count(*) from jobs where kind <> 'look_back'").await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_with_a_refund_is_explained_and_its_events_go_out_again_under_their_ids() {
    let world = World::with(Setup { refund_workers: 1, ..Setup::default() }).await;
    let order = world.buy(Gateway::Wechat, "jsapi", "5.00").await;
    world.pay(&order).await;
    world.wait_paid(&order).await;
    world.events_of(&order).await;
    world.shop.refund(&order, &RefundRequest::of(500)).await;
    let first = delivered(&world, &order, 3).await;
    assert_eq!(first.len(), 3, "{first:?}");
    marked(&world).await;
    is_explained(&world, &order).await;

    let before = rows(&world).await;
    let dry = output_of(&world, &["events", "republish", "--order", &order.order_no]).await;
    assert_eq!((&dry["dry_run"], &dry["events"]), (&json!(true), &json!(first)), "in the order in which they go out");
    assert_eq!(rows(&world).await, before, "a dry run changes nothing");
    assert_eq!(delivered(&world, &order, 3).await.len(), 3);

    output_of(&world, &["events", "republish", "--order", &order.order_no, "--yes"]).await;
    assert_eq!(&delivered(&world, &order, 6).await[3..], &first[..]);
    marked(&world).await;
    output_of(&world, &["events", "republish", "--id", &first[1], "--yes"]).await;
    assert_eq!(&delivered(&world, &order, 7).await[6..], &first[1..2]);
    marked(&world).await;
    let (code, said) =
        run(&world, &["events", "republish", "--since", "1h", "--until", "0s", "--limit", "2", "--yes"]).await;
    assert!(code == 1 && said.contains("more than 2 events are requested"), "{said}");
    output_of(&world, &["events", "republish", "--since", "1h", "--until", "0s", "--yes"]).await;
    assert_eq!(&delivered(&world, &order, 10).await[7..], &first[..]);
    assert_eq!(output_of(&world, &["events", "show", &first[0]]).await["id"], first[0].as_str());
    assert_eq!(
        output_of(&world, &["events", "list", "--order", &order.id]).await["events"][0]["id"],
        first[0].as_str()
    );

    // The database refuses this move of a refund that has succeeded.
    let allow = "alter table refund_records disable trigger refund_records_moves";
    sqlx::query(allow).execute(&world.db).await.expect("the owner may");
    let stuck =
        "with stuck as (update refund_records set status = 'processing' returning 1) select count(*) from stuck";
    assert_eq!(world.number(stuck).await, Some(1));
    let (_, said) = run(&world, &["explain", &order.order_no]).await;
    assert!(said.contains("a refund is under way, and it has no job"), "{said}");
}

/// The ids of the events about an order that came downstream, once there are so many.
async fn delivered(world: &World, order: &Order, at_least: usize) -> Vec<String> {
    eventually("the events downstream", SOON, async || {
        let ids: Vec<String> = world.downstream.about(&order.id).into_iter().map(|event| event.id).collect();
        (ids.len() >= at_least).then_some(ids)
    })
    .await
}

async fn is_explained(world: &World, order: &Order) {
    for name in [&order.id, &order.order_no] {
        let (code, said) = run(world, &["explain", name]).await;
        assert_eq!(code, 0, "{said}");
        for line in ["POST /v1/orders", "payment P", "settled", "succeeded", "another query for refunded money due at"]
        {
            assert!(said.contains(line), "{line}: {said}");
        }
        assert!(!said.contains(OPENID), "the payer is nobody's business: {said}");
    }
    let timeline = output_of(world, &["explain", &order.id]).await["timeline"].clone();
    let place = |what: &str| {
        let text = |line: &Value, name: &str| line[name].as_str().expect("text").to_owned();
        let mut lines = timeline.as_array().expect("a list").iter();
        let tells = |line: &Value| format!("{} {}", text(line, "source"), text(line, "what")).contains(what);
        lines.position(tells).unwrap_or_else(|| panic!("{what}: {timeline}"))
    };
    let story = ["order created", "order paid by trade", "order.paid", "requested by", "last sent", "refund.succeeded"];
    let places: Vec<usize> = story.into_iter().map(place).collect();
    assert!(places.is_sorted(), "{places:?} {timeline}");
}

/// Waits until the relay has marked what it published.
async fn marked(world: &World) {
    eventually("events are marked", SOON, async || {
        (world.number("select count(*) from events where published_at is null").await? == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_doctor_is_green_in_a_healthy_world_and_names_each_thing_that_is_wrong() {
    let world = World::with(Setup { check_workers: 1, refund_workers: 1, ..Setup::default() }).await;
    let names = |seen: &Value, state: &str| -> Vec<String> {
        let checks = seen["checks"].as_array().expect("a list").iter();
        checks.filter(|check| check["state"] == state).map(|check| check.to_string()).collect()
    };
    let green = eventually("the relay has set its marker", SOON, async || {
        let green = output_of(&world, &["doctor"]).await;
        names(&green, "warning").is_empty().then_some(green)
    })
    .await;
    assert_eq!(green["ok"], true);
    assert_eq!(names(&green, "skipped"), [""; 0], "{green}");
    let text = green.to_string();
    for looked_at in
        ["migrations of this build", "3 exchanges and 4 queues", "policies", "redis", "account alipay/main", "clock"]
    {
        assert!(text.contains(looked_at), "{looked_at}: {text}");
    }
    assert!(text.contains("it accepts our signature, and we accept its"), "{text}");

    // No worker does the checks any more.
    world.check_workers[0].terminate().await;
    eventually("the doctor misses the worker", SOON, async || {
        let seen = output_of(&world, &["doctor"]).await;
        let missed =
            |line: &String| line.contains("queue payment.checks") && line.contains("no worker receives from it");
        names(&seen, "warning").iter().any(missed).then_some(())
    })
    .await;

    // Our own key is another one, at one gateway; and the other's key is.
    let keys = world.gateways.dir.join("keys");
    fs::copy(keys.join("alipay_main_app_private.pem"), keys.join("wechat_main_merchant_private.pem")).expect("a copy");
    fs::copy(keys.join("wechat_main_public_1.pem"), keys.join("alipay_main_public.pem")).expect("a copy");
    // A later release that has contracted the database, and a queue that is gone.
    let strange = "insert into _sqlx_migrations (version, description, success, checksum, execution_time)
                   values (9999, 'contract from 9999', true, '', 0)";
    sqlx::query(strange).execute(&world.db).await.expect("a row");
    let channel = world.broker().admin().await.create_channel().await.expect("a channel");
    channel.queue_delete("payment.refunds".into(), QueueDeleteOptions::default()).await.expect("it is deleted");

    let (code, said) = run(&world, &["doctor"]).await;
    assert_eq!(code, 1, "{said}");
    let lines: Vec<&str> = said.lines().filter(|line| line.starts_with("failed")).collect();
    for wrong in [
        "account wechat/main reach",
        "account alipay/main reach",
        "the database has migration 9999",
        "queue payment.refunds: it does not exist; run `paymentctl broker-setup`",
    ] {
        assert!(lines.iter().any(|line| line.contains(wrong)), "{wrong}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_done_is_said_with_what_to_do() {
    let world = World::start().await;
    let unknown = "0".repeat(32);
    let nothing = ["cases", "discard", &unknown];
    for (args, code, named) in [
        (&["cases", "show", &unknown][..], 1, "there is no case"),
        (&["explain", "NO_SUCH_ORDER"], 1, "there is no order NO_SUCH_ORDER"),
        (&["events", "show", "order.paid:1"], 1, "there is no event order.paid:1"),
        (&["events", "republish", "--order", &unknown], 1, "there is no order"),
        (&["cases", "replay", &unknown, "--yes"], 1, "there is no case"),
        (&["cases", "show", "not-an-id"], 2, "32 lower-case hex digits"),
        (&nothing, 2, "--reason"),
        (&[&nothing[..], &["--reason", "  "]].concat(), 2, "text of 1 to 2000"),
        (&["cases", "replay"], 2, "required"),
        (&["cases", "replay", &unknown, "--kind", "dead_letter"], 2, "cannot be used with"),
        (&["cases", "replay", &unknown, "--limit", "5"], 2, "cannot be used with"),
        (&["cases", "replay", "--kind", "late_payment"], 2, "dead_letter"),
        (&["events", "republish"], 2, "required"),
        (&["events", "republish", "--id", "a", "--order", "b"], 2, "cannot be used with"),
        (&["events", "republish", "--since", "1h"], 2, "--until"),
        (&["events", "republish", "--since", "1h", "--until", "2h"], 2, "the range ends"),
        (&["events", "republish", "--since", "yesterday", "--until", "1h"], 2, "how long ago"),
        (&["cases", "list", "--limit", "0"], 2, "--limit"),
    ] {
        let (ended, said) = run(&world, args).await;
        assert_eq!(ended, code, "{args:?}: {said}");
        assert!(said.contains(named), "{args:?}: {named}: {said}");
    }
    let unnamed = ["cases", "discard", &unknown, "--reason", "r", "--yes"];
    let unnamed = unnamed.iter().fold(world.paymentctl(), |program, arg| program.arg(*arg));
    let (code, said) = end(&world, unnamed.env("PAYMENT_OPERATOR", "")).await;
    assert!(code == 2 && said.contains("--operator"), "who does it must be known: {said}");
    let (code, said) = end(&world, Program::new("paymentctl").arg("doctor")).await;
    assert!(code == 1 && said.contains("configuration DATABASE_URL: it is not set"), "{said}");
    let (code, said) = end(&world, Program::new("paymentctl").arg("cases").arg("list")).await;
    assert!(code == 2 && said.contains("DATABASE_URL: it is not set"), "{said}");
    let away = "postgres://u:hidden-password@127.0.0.1:1/d";
    let (code, said) = end(&world, world.paymentctl().env("DATABASE_URL", away).arg("cases").arg("list")).await;
    assert!(code == 1 && said.contains("the database is not available") && !said.contains("hidden"), "{said}");
}
