//! A database of its own for each test, with an order in it.

use clap::Parser;
use paymentctl::place::Place;
use serde_json::{Value, json};
use shared::clock::Clock;
use shared::db::cases::{self, NewCase};
use shared::db::idempotency_keys::NewKey;
use shared::db::orders::{self, Created, NewOrder};
use shared::domain::{
    AccountName, CaseId, CaseKind, Money, OrderId, OrderNo, PaymentMethod, ProductType, Scene, Subject, UserId,
};
use sqlx::PgPool;
use time::Duration;

/// Reads the arguments of a command as the command line does.
#[derive(Parser)]
struct Line<T: clap::Subcommand> {
    #[command(subcommand)]
    command: T,
}

/// The command that a line of words names.
pub fn line<T: clap::Subcommand>(words: &str) -> T {
    let words = std::iter::once("test").chain(words.split_whitespace());
    Line::try_parse_from(words).unwrap_or_else(|error| panic!("{error}")).command
}

pub fn place(db: &PgPool) -> Place {
    Place { db: db.clone(), clock: Clock::system() }
}

/// What a payer is known by, and nobody may see here.
pub const PAYER: &str = "openid-of-the-payer";

/// An order over 8.88 yuan.
pub async fn order(db: &PgPool) -> (OrderId, OrderNo) {
    let clock = Clock::system();
    let (id, now) = (clock.fresh_id(), clock.now());
    let order_no = OrderNo::parse(format!("NO_{}", &id.to_string()[8..])).unwrap();
    let new = NewOrder {
        id,
        user_id: UserId::parse("buyer-1").unwrap(),
        order_no: order_no.clone(),
        product_type: ProductType::parse("credits").unwrap(),
        subject: Subject::parse("十次修图").unwrap(),
        amount: Money::from_yuan("8.88").unwrap(),
        payment_method: PaymentMethod::Wechat,
        scene: Scene::Jsapi,
        account: AccountName::parse("main").unwrap(),
        expires_at: now + Duration::minutes(30),
        client_ip: None,
        metadata: json!({}),
        prepay: json!({ "openid": PAYER }),
        check_at: now + Duration::seconds(30),
        created_at: now,
        key: NewKey {
            key: "secret-key-of-the-client".to_owned(),
            route: "POST /v1/orders",
            request_hash: [0; 32],
            held_until: None,
            expires_at: now + Duration::days(1),
        },
        answer: None,
    };
    assert!(matches!(orders::create(db, &new).await.unwrap(), Created::Unanswered));
    (id, order_no)
}

/// A case that was opened `age` ago.
pub async fn case(db: &PgPool, (kind, number): (CaseKind, &str), evidence: Value, age: Duration) -> CaseId {
    let clock = Clock::fixed(Clock::system().now() - age);
    let id = CaseId::from_u128(clock.fresh_bits());
    let new = NewCase { id, kind, order_id: None, gateway_no: number.to_owned(), evidence };
    cases::open(&mut db.acquire().await.unwrap(), &[new], clock.now()).await.unwrap();
    id
}

pub async fn texts(db: &PgPool, sql: &'static str) -> Vec<String> {
    sqlx::query_scalar(sql).fetch_all(db).await.unwrap()
}
