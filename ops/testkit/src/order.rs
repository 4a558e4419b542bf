//! An order with which a test can start.

use domain::{AccountName, Money, OrderNo, PaymentMethod, ProductType, Purchase, Scene, Subject, UserId};
use runtime::clock::Clock;
use serde_json::json;
use store::tables::idempotency_keys::NewKey;
use store::tables::orders::NewOrder;
use time::Duration;

/// A new order of 12.34 yuan at WeChat Pay, by QR code. A test overrides the fields that it needs.
///
/// # Panics
/// Never: the values are constant and valid.
pub fn new_order() -> NewOrder {
    let clock = Clock::system();
    let (id, now) = (clock.fresh_id(), clock.now());
    NewOrder {
        id,
        user_id: UserId::parse("buyer-1").expect("a user"),
        order_no: OrderNo::parse(id.to_string()).expect("a number"),
        product_type: ProductType::parse("credits").expect("a type"),
        subject: Subject::parse("十次修图").expect("a subject"),
        amount: Money::from_yuan("12.34").expect("an amount"),
        payment_method: PaymentMethod::Wechat,
        scene: Scene::Native,
        account: AccountName::parse("main").expect("an account"),
        expires_at: now + Duration::minutes(30),
        purchase: Purchase::OF_BUYER,
        client_ip: None,
        metadata: json!({ "cart": 7 }),
        prepay: json!({}),
        check_in: Duration::seconds(30),
        created_at: now,
        key: NewKey {
            caller: "buyer-1".to_owned(),
            key: id.to_string(),
            route: "POST /v1/orders",
            request_hash: [0; 32],
            held_until: None,
            expires_at: now + Duration::days(1),
        },
        answer: None,
    }
}
