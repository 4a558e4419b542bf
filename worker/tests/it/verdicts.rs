//! One test for each row of the verdict table: what is recorded, what changes, and what a person sees.

use domain::OrderStatus::{Closed, Paid, PartiallyRefunded, Pending, Refunded, Refunding};
use domain::PaymentMethod::{Alipay, Wechat};
use domain::{ExtraState, Money};
use gateway_sim::ledger::{Product, Trade};
use gateway_sim::notify::{Overrides, Wrong};
use serde_json::{Value, json};
use sqlx::PgPool;
use store::MIGRATOR;
use worker::consumer::Ack;

use crate::batches::stored;
use crate::retention::forget;
use crate::support::World;

fn with_fields(fields: &[(&str, Value)]) -> Overrides {
    let fields = fields.iter().map(|(name, value)| ((*name).to_owned(), Some(value.clone()))).collect();
    Overrides { fields, ..Overrides::default() }
}

/// The unpaid close of a trade.
fn closed(trade: &Trade) -> Overrides {
    let mut overrides = with_fields(&[("trade_status", json!("TRADE_CLOSED"))]);
    overrides.fields.insert("gmt_payment".to_owned(), None);
    Overrides { id: Some(format!("close-{}", trade.out_trade_no)), ..overrides }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_payment_settles_at_each_gateway(db: PgPool) {
    let world = World::new(db);
    for method in [Alipay, Wechat] {
        let order = world.pending_order(method, "88.88").await;
        let trade = world.paid_trade(&order);
        let acks = world.settle(vec![world.notice_of(&trade, &Overrides::default())]).await;
        assert_eq!(acks, [Ack::Done]);
        let paid = world.order(&order.id).await;
        assert_eq!((paid.status, paid.version), (Paid, 2), "{method}");
        assert_eq!(paid.trade_no.unwrap().as_str(), trade.trade_no.clone().unwrap());
        assert!(paid.paid_at.is_some());
        assert_eq!(world.payments(&order).await, [(trade.trade_no, "succeeded".to_owned())]);
    }
    assert_eq!(world.count("checks").await, 0, "a paid order needs no check");
    let events = world.events().await;
    assert_eq!(events.len(), 2);
    let fixed = |event: &(String, Value)| {
        let mut data = event.1.clone();
        for name in ["order_id", "order_no", "trade_no", "paid_at"] {
            assert!(data[name].is_string(), "{name}");
            data[name] = "…".into();
        }
        (event.0.clone(), data)
    };
    insta::assert_json_snapshot!(events.iter().map(fixed).collect::<Vec<_>>());
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_repeat_changes_nothing(db: PgPool) {
    let world = World::new(db);
    for method in [Alipay, Wechat] {
        let order = world.pending_order(method, "0.01").await;
        let callback = world.paid(&order);
        world.settle(vec![callback.clone(), callback.clone()]).await;
        world.settle(vec![callback]).await;
        assert_eq!(world.order(&order.id).await.version, 2);
    }
    assert_eq!(world.verdicts().await, [("settled".to_owned(), 3), ("settled".to_owned(), 3)]);
    assert_eq!(world.events().await.len(), 2);
    assert_eq!(world.cases().await, []);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn another_amount_is_a_case_and_moves_nothing(db: PgPool) {
    let world = World::new(db);
    for method in [Alipay, Wechat] {
        let order = world.pending_order(method, "88.88").await;
        for amount in [8_887, 1, 9_999_999_999, 10_000_000_000] {
            let overrides =
                Overrides { amount_fen: Some(amount), id: Some(format!("n{amount}")), ..Default::default() };
            let callback = world.notice_of(&world.paid_trade(&order), &overrides);
            assert_eq!(world.settle(vec![callback]).await, [Ack::Done], "{method} {amount}");
        }
        let shown = world.order(&order.id).await;
        assert_eq!(shown.status, Pending);
        // One trade, whatever amounts were stated for it: the buyer reads that we have it, by the last amount that we
        // can read.
        assert_eq!(
            (shown.extra_state, shown.extra_amount.map(Money::fen)),
            (Some(ExtraState::Held), Some(9_999_999_999))
        );
    }
    assert!(world.verdicts().await.iter().all(|(verdict, _)| verdict == "amount_mismatch"));
    assert_eq!(world.verdicts().await.len(), 8);
    assert_eq!(world.events().await, []);
    let cases = world.cases().await;
    assert!(!cases.is_empty() && cases.iter().all(|(kind, _)| kind == "amount_mismatch"));
    assert!(!format!("{cases:?}").contains("2088102122524333"), "a case names no payer");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_foreign_currency_is_another_amount(db: PgPool) {
    let world = World::new(db);
    let order = world.pending_order(Wechat, "88.88").await;
    let callback = world.notice_of(&world.paid_trade(&order), &with_fields(&[("/amount/currency", json!("USD"))]));
    world.settle(vec![callback]).await;
    assert_eq!(world.status(&order).await, Pending);
    assert_eq!(world.verdicts().await, [("amount_mismatch".to_owned(), 1)]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn another_merchant_or_app_is_a_case(db: PgPool) {
    let world = World::new(db);
    let cases = [
        (Alipay, with_fields(&[("app_id", json!("2021000000000000"))])),
        (Alipay, with_fields(&[("seller_id", json!("2088000000000000"))])),
        (Wechat, with_fields(&[("/mchid", json!("1900000000"))])),
        (Wechat, with_fields(&[("/appid", json!("wx0000000000000000"))])),
    ];
    for (method, overrides) in cases {
        let order = world.pending_order(method, "5").await;
        world.settle(vec![world.notice_of(&world.paid_trade(&order), &overrides)]).await;
        assert_eq!(world.status(&order).await, Pending, "{overrides:?}");
    }
    assert_eq!(world.verdicts().await, vec![("wrong_merchant".to_owned(), 1); 4]);
    assert_eq!(world.cases().await.len(), 4);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_payment_into_another_account_is_a_case(db: PgPool) {
    let world = World::new(db);
    for method in [Alipay, Wechat] {
        let order = world.order_of(method, "second", "5").await;
        // The trade exists at the account "main", under a number that belongs to an order of "second".
        let mut trade = world.paid_trade(&order);
        trade.account = "main".to_owned();
        trade.app_id = match method {
            Alipay => world.keys.alipay_account("main").unwrap().app_id.clone(),
            Wechat => world.keys.wechat_account("main").unwrap().appids[0].clone(),
        };
        world.settle(vec![world.notice_of(&trade, &Overrides::default())]).await;
        assert_eq!(world.status(&order).await, Pending);
    }
    assert_eq!(world.verdicts().await, vec![("wrong_merchant".to_owned(), 1); 2]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_payment_at_the_other_gateway_is_a_case(db: PgPool) {
    let world = World::new(db);
    let order = world.pending_order(Alipay, "5").await;
    let mut trade = Trade::new(Product::Native, "main", order.order_no.as_str(), 500).paid();
    trade.app_id = world.keys.wechat_account("main").unwrap().appids[0].clone();
    world.settle(vec![world.notice_of(&trade, &Overrides::default())]).await;
    assert_eq!(world.status(&order).await, Pending);
    assert_eq!(world.verdicts().await, [("wrong_method".to_owned(), 1)]);
    assert_eq!(world.cases().await[0].0, "wrong_method");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_unknown_order_is_one_case_however_often_it_is_reported(db: PgPool) {
    let world = World::new(db);
    let order = world.pending_order(Alipay, "5").await;
    let mut trade = world.paid_trade(&order);
    trade.out_trade_no = "NOT_AN_ORDER_OF_OURS".to_owned();
    for _ in 0..3 {
        assert_eq!(world.settle(vec![world.notice_of(&trade, &Overrides::default())]).await, [Ack::Done]);
    }
    assert_eq!(world.verdicts().await, [("unknown_order".to_owned(), 3)]);
    assert_eq!(world.cases().await.len(), 1);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_close_ends_a_pending_order_and_only_that(db: PgPool) {
    let world = World::new(db);
    let close = |trade: &Trade| world.notice_of(trade, &closed(trade));
    let given_up = world.pending_order(Alipay, "5").await;
    world.settle(vec![close(&world.paid_trade(&given_up))]).await;
    let order = world.order(&given_up.id).await;
    assert_eq!(order.status, Closed);
    assert!(order.closed_at.is_some());
    assert_eq!(world.payments(&given_up).await, [(None, "failed".to_owned())]);
    world.settle(vec![close(&world.paid_trade(&given_up))]).await;

    let bought = world.pending_order(Alipay, "5").await;
    let trade = world.paid_trade(&bought);
    // Close and payment in one batch, the wrong way round: the payment counts.
    world.settle(vec![close(&trade), world.notice_of(&trade, &Overrides::default())]).await;
    assert_eq!(world.status(&bought).await, Paid);

    let kinds: Vec<String> = world.events().await.into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, ["order.closed", "order.paid"]);
    assert_eq!(world.cases().await, []);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_late_payment_is_held_as_a_case_with_its_money_on_record(db: PgPool) {
    let world = World::new(db);
    let order = world.pending_order(Alipay, "5").await;
    let trade = world.paid_trade(&order);
    world.settle(vec![world.notice_of(&trade, &closed(&trade))]).await;
    for _ in 0..2 {
        world.settle(vec![world.notice_of(&trade, &Overrides::default())]).await;
    }
    assert_eq!(world.status(&order).await, Closed);
    let verdicts = world.verdicts().await;
    assert_eq!(verdicts, [("settled".to_owned(), 1), ("not_pending".to_owned(), 2)]);
    assert_eq!(world.cases().await.len(), 1);
    assert_eq!(world.cases().await[0].0, "late_payment");
    assert_eq!(world.payments(&order).await, [(None, "failed".to_owned()), (trade.trade_no, "succeeded".to_owned())]);
    let kinds: Vec<String> = world.events().await.into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, ["order.closed", "extra_payment.received"], "no order.paid");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_second_payment_is_held_as_a_case_with_a_row_of_its_own(db: PgPool) {
    let world = World::new(db);
    for method in [Alipay, Wechat] {
        let order = world.pending_order(method, "5").await;
        let (first, second) = (world.paid_trade(&order), world.paid_trade(&order));
        assert_ne!(first.trade_no, second.trade_no);
        let both = [&first, &second, &second].map(|trade| world.notice_of(trade, &Overrides::default()));
        world.settle(both.into()).await;
        assert_eq!(world.order(&order.id).await.trade_no.map(String::from), first.trade_no);
        let paid: Vec<_> = world.payments(&order).await.into_iter().filter(|(_, s)| s == "succeeded").collect();
        assert_eq!(paid.len(), 2);
    }
    let cases = world.cases().await;
    assert_eq!(cases.iter().map(|(kind, _)| kind.as_str()).collect::<Vec<_>>(), ["double_payment"; 2]);
    let kinds: Vec<String> = world.events().await.into_iter().map(|(kind, _)| kind).collect();
    let each = ["order.paid", "extra_payment.received"];
    assert_eq!(kinds, [each, each].concat(), "one order.paid each");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn states_that_change_nothing_are_ignored(db: PgPool) {
    let world = World::new(db);
    let order = world.pending_order(Alipay, "5").await;
    for state in ["WAIT_BUYER_PAY", "TRADE_SOMETHING_NEW"] {
        let overrides = Overrides { id: Some(state.to_owned()), ..with_fields(&[("trade_status", json!(state))]) };
        world.settle(vec![world.notice_of(&world.paid_trade(&order), &overrides)]).await;
    }
    let order = world.pending_order(Wechat, "5").await;
    world
        .settle(vec![world.notice_of(&world.paid_trade(&order), &with_fields(&[("/trade_state", json!("NOTPAY"))]))])
        .await;
    assert_eq!(world.status(&order).await, Pending);
    assert_eq!(world.verdicts().await, vec![("ignored".to_owned(), 1); 3]);
    assert_eq!(world.cases().await, []);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_refund_notice_of_a_refund_that_is_not_ours_is_booked(db: PgPool) {
    let world = World::new(db);
    let order = world.pending_order(Alipay, "5").await;
    let trade = world.paid_trade(&order);
    world.settle(vec![world.notice_of(&trade, &Overrides::default())]).await;
    let refund = with_fields(&[("refund_fee", json!("1.00")), ("out_biz_no", json!("R0001"))]);
    world.settle(vec![world.notice_of(&trade, &Overrides { id: Some("refund".to_owned()), ..refund })]).await;
    assert_eq!(world.status(&order).await, PartiallyRefunded);
    assert_eq!(world.verdicts().await[1].0, "settled");
    assert_eq!(world.cases().await, []);
    // `refund_fee=0.00` is a payment.
    let plain = world.pending_order(Alipay, "5").await;
    world
        .settle(vec![world.notice_of(&world.paid_trade(&plain), &with_fields(&[("refund_fee", json!("0.00"))]))])
        .await;
    assert_eq!(world.status(&plain).await, Paid);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_pending_order_found_returned_is_a_case_and_not_paid(db: PgPool) {
    let world = World::new(db);
    let order = world.pending_order(Alipay, "5").await;
    let returned = with_fields(&[("trade_status", json!("TRADE_CLOSED")), ("refund_fee", json!("5.00"))]);
    world.settle(vec![world.notice_of(&world.paid_trade(&order), &returned)]).await;
    assert_eq!(world.status(&order).await, Pending);
    assert_eq!(world.cases().await[0].0, "refunded_elsewhere");
    assert_eq!(world.events().await, []);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn money_that_came_and_went_is_not_delivered_for_by_a_late_notice_of_its_coming(db: PgPool) {
    let world = World::new(db);
    let returned = with_fields(&[("trade_status", json!("TRADE_CLOSED")), ("refund_fee", json!("5.00"))]);
    let returned = Overrides { id: Some("returned".to_owned()), ..returned };
    for apart in [true, false] {
        let order = world.pending_order(Alipay, "5").await;
        let trade = world.paid_trade(&order);
        let (came, went) = (world.notice_of(&trade, &Overrides::default()), world.notice_of(&trade, &returned));
        if apart {
            world.settle(vec![went]).await;
            world.settle(vec![came]).await;
        } else {
            world.settle(vec![came, went]).await;
        }
        assert_eq!(world.status(&order).await, Pending);
        let mut payments = world.payments(&order).await;
        payments.sort();
        assert_eq!(payments[0], (None, "pending".to_owned()));
        assert!(payments[1..].iter().all(|(_, status)| status == "succeeded"), "what came, and what went");
        // Another trade pays it as ever.
        world.settle(vec![world.paid(&order)]).await;
        assert_eq!(world.status(&order).await, Paid);
    }
    assert_eq!(
        world.cases().await.iter().map(|(kind, _)| kind.as_str()).collect::<Vec<_>>(),
        ["refunded_elsewhere"; 2]
    );
    assert_eq!(world.events().await.len(), 2, "one order.paid each");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_return_of_a_paid_order_that_no_refund_of_ours_explains_is_booked_once(db: PgPool) {
    let world = World::new(db);
    let order = world.pending_order(Alipay, "5").await;
    let trade = world.paid_trade(&order);
    world.settle(vec![world.notice_of(&trade, &Overrides::default())]).await;
    let returned = with_fields(&[("trade_status", json!("TRADE_CLOSED")), ("refund_fee", json!("5.00"))]);
    for id in ["first", "second"] {
        let returned = Overrides { id: Some(id.to_owned()), ..returned.clone() };
        world.settle(vec![world.notice_of(&trade, &returned)]).await;
    }
    assert_eq!(world.status(&order).await, Refunded);
    assert_eq!(world.cases().await, []);
    assert!(world.request_refund(order.id, None).await.is_err(), "nothing more goes back");

    // A refund of ours may explain it.
    let order = world.pending_order(Alipay, "5").await;
    let trade = world.paid_trade(&order);
    world.settle(vec![world.notice_of(&trade, &Overrides::default())]).await;
    world.request_refund(order.id, None).await.unwrap();
    let returned = Overrides { id: Some("third".to_owned()), ..returned };
    world.settle(vec![world.notice_of(&trade, &returned)]).await;
    assert_eq!(world.cases().await, []);
    assert_eq!(world.status(&order).await, Refunding);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_the_key_did_not_sign_is_dead_and_stored_as_evidence(db: PgPool) {
    let world = World::new(db);
    for (method, wrong) in [
        (Alipay, Wrong::Tamper),
        (Alipay, Wrong::Forged),
        (Alipay, Wrong::Probe),
        (Wechat, Wrong::Tamper),
        (Wechat, Wrong::Forged),
        (Wechat, Wrong::Probe),
    ] {
        let order = world.pending_order(method, "5").await;
        let overrides = Overrides { wrong: Some(wrong), ..Overrides::default() };
        let good = world.pending_order(method, "5").await;
        let callbacks = vec![world.notice_of(&world.paid_trade(&order), &overrides), world.paid(&good)];
        assert_eq!(world.settle(callbacks).await, [Ack::Dead, Ack::Done], "{method} {wrong:?}");
        assert_eq!(world.status(&order).await, Pending);
        assert_eq!(world.status(&good).await, Paid, "a bad one delays nobody");
    }
    let bad = world.verdicts().await.into_iter().filter(|(verdict, _)| verdict == "bad_signature").count();
    assert_eq!(bad, 6);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_cannot_be_read_is_dead(db: PgPool) {
    let world = World::new(db);
    let order = world.pending_order(Wechat, "5").await;
    let trade = world.paid_trade(&order);
    let envelopes = [
        ("/resource/nonce", json!("short")),
        ("/resource/nonce", json!("thirteen char")),
        ("/resource/ciphertext", json!("%%% not base64 %%%")),
        ("/resource/algorithm", json!("AEAD_SM4_GCM")),
        ("/resource", json!("no object")),
    ];
    for (pointer, value) in envelopes {
        let envelope = [(pointer.to_owned(), Some(value.clone()))].into();
        let callback = world.notice_of(&trade, &Overrides { envelope, ..Overrides::default() });
        assert_eq!(world.settle(vec![callback]).await, [Ack::Dead], "{pointer} {value}");
    }
    for body in ["", "{", "null", "[]", "<xml></xml>", "{\"id\":1}"] {
        let callback = world.notice_of(&trade, &Overrides { body: Some(body.to_owned()), ..Overrides::default() });
        assert_eq!(world.settle(vec![callback]).await, [Ack::Dead], "{body:?}");
    }
    assert_eq!(world.status(&order).await, Pending);
    assert!(world.verdicts().await.iter().all(|(verdict, _)| verdict == "undecodable"));
    // What another key may decrypt waits for one.
    for (pointer, value) in
        [("/resource/ciphertext", json!("AAAA")), ("/resource/associated_data", json!("something else"))]
    {
        let envelope = [(pointer.to_owned(), Some(value.clone()))].into();
        let callback = world.notice_of(&trade, &Overrides { envelope, ..Overrides::default() });
        assert_eq!(world.settle(vec![callback]).await, [Ack::Done], "{pointer} {value}");
    }
    assert_eq!(world.count("callback jobs").await, 2);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_callback_with_an_unknown_key_is_stored_until_the_key_is_there(db: PgPool) {
    let world = World::new(db);
    let order = world.pending_order(Wechat, "5").await;
    let trade = world.paid_trade(&order);
    let stranger = Overrides { wrong: Some(Wrong::WrongSerial), ..Overrides::default() };
    assert_eq!(world.settle(vec![world.notice_of(&trade, &stranger)]).await, [Ack::Done]);
    assert_eq!(world.count("callback jobs").await, 1);
    assert_eq!(world.verdicts().await, []);
    // It comes back as a job, and the key is still unknown: the same row waits on.
    let stored = stored(&world).await;
    world.settle(stored.clone()).await;
    assert_eq!(world.count("callback jobs").await, 1);
    // Another callback that names this row settles by itself and leaves the row alone.
    let mut known = world.paid(&order);
    known.job_id = stored[0].job_id;
    world.settle(vec![known]).await;
    assert_eq!(world.count("callback jobs").await, 1);
    assert_eq!(world.status(&order).await, Paid);
}

/// Every fact that something of ours remembers, on orders that are done. (`histories.rs` has the refunds.)
#[sqlx::test(migrator = "MIGRATOR")]
async fn a_fact_that_comes_again_after_years_is_no_news(db: PgPool) {
    let world = World::new(db);
    let notice = |trade: &Trade, overrides: Overrides, id: &str| {
        world.notice_of(trade, &Overrides { id: Some(format!("{id}-{}", trade.out_trade_no)), ..overrides })
    };
    let close = async |trade: &Trade| world.settle(vec![world.notice_of(trade, &closed(trade))]).await;
    let mut facts = Vec::new();
    for n in 0..6 {
        let order = world.pending_order(Alipay, "5").await;
        let (trade, second) = (world.paid_trade(&order), world.paid_trade(&order));
        let plain = notice(&trade, Overrides::default(), "paid");
        let returned = with_fields(&[("trade_status", json!("TRADE_CLOSED")), ("refund_fee", json!("5.00"))]);
        let of_order = match n {
            0 => vec![notice(&trade, closed(&trade), "closed"), plain],
            1 => vec![plain, notice(&second, Overrides::default(), "second")],
            2 => vec![plain, notice(&trade, returned, "returned")],
            3 => vec![notice(&trade, returned, "returned")],
            4 => vec![notice(&trade, with_fields(&[("total_amount", json!("4.00"))]), "amount")],
            _ => vec![notice(&trade, with_fields(&[("app_id", json!("2021000000000000"))]), "app")],
        };
        for fact in &of_order {
            world.settle(vec![fact.clone()]).await;
        }
        if n > 2 {
            close(&trade).await;
        }
        // And the money that went back once more as money that came.
        facts.extend(of_order);
        facts.extend((n == 3).then(|| notice(&trade, Overrides::default(), "came")));
    }
    let kinds: Vec<String> = world.cases().await.into_iter().map(|(kind, _)| kind).collect();
    let wanted = ["late_payment", "double_payment", "refunded_elsewhere", "amount_mismatch", "wrong_merchant"];
    assert_eq!(kinds, wanted);

    forget(&world.db).await;
    assert_eq!(world.events().await, []);
    assert_eq!(world.verdicts().await, []);
    let stored: Vec<String> = world.cases().await.into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(stored, wanted[2..]);
    world.settle(facts).await;
    assert_eq!(world.events().await, []);
    assert_eq!(world.cases().await.len(), stored.len());
    assert!(world.verdicts().await.iter().all(|(verdict, _)| verdict != "settled"), "{:?}", world.verdicts().await);
}
