//! A database of its own for each test, with an order in it.

use clap::Parser;
use domain::{CaseId, CaseKind, Money, OrderId, OrderNo, Scene};
use paymentctl::place::Place;
use runtime::clock::Clock;
use serde_json::{Value, json};
use sqlx::PgPool;
use store::tables::case_facts;
use store::tables::cases::NewCase;
use store::tables::idempotency_keys::NewKey;
use store::tables::orders::{self, Created, NewOrder};
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

/// What identifies a payer. No answer may show it.
pub const PAYER: &str = "openid-of-the-payer";

/// An order over 8.88 yuan.
pub async fn order(db: &PgPool) -> (OrderId, OrderNo) {
    let begun = testkit::new_order();
    let new = NewOrder {
        order_no: OrderNo::parse(format!("NO_{}", &begun.id.to_string()[8..])).unwrap(),
        amount: Money::from_yuan("8.88").unwrap(),
        scene: Scene::Jsapi,
        prepay: json!({ "openid": PAYER }),
        key: NewKey { key: "secret-key-of-the-client".to_owned(), ..begun.key },
        ..begun
    };
    assert!(matches!(orders::create(db, std::slice::from_ref(&new)).await.unwrap()[..], [Created::Unanswered]));
    (new.id, new.order_no)
}

/// A case that was opened `age` ago.
pub async fn case(db: &PgPool, (kind, number): (CaseKind, &str), evidence: Value, age: Duration) -> CaseId {
    let clock = Clock::fixed(Clock::system().now() - age);
    let id = CaseId::from_u128(clock.fresh_bits());
    let new = NewCase { id, kind, order_id: None, subject_ref: number.to_owned(), evidence };
    case_facts::open(&mut db.acquire().await.unwrap(), &[new], clock.now()).await.unwrap();
    id
}

pub async fn texts(db: &PgPool, sql: &'static str) -> Vec<String> {
    sqlx::query_scalar(sql).fetch_all(db).await.unwrap()
}
