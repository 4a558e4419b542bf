//! The grid of own state and fact: each cell is executed with what the gateways sign, printed, and held to the laws.
//!
//! The snapshots are the expected cells, and `ops/states.md` shows them. After a change that is meant: run with
//! `INSTA_UPDATE=always`, read the difference, then run with `UPDATE_DOCS=1`.

mod books;
mod desk;
mod orders;
mod refunds;
mod table;

use desk::Desk;
use domain::PaymentMethod::{Alipay, Wechat};
use domain::{OrderStatus, REFUND_TRANSITIONS, RefundStatus, TRANSITIONS};
use sqlx::PgPool;
use store::MIGRATOR;

/// Prints a grid beside the snapshots of the other tests.
fn print(name: &str, grid: &str) {
    insta::with_settings!({ snapshot_path => "../snapshots", omit_expression => true }, {
        insta::assert_snapshot!(name, grid);
    });
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_alipay_says_of_an_order_in_each_state(db: PgPool) {
    print("orders_at_alipay", &orders::grid(&Desk::new(db).await, Alipay).await);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_wechat_says_of_an_order_in_each_state(db: PgPool) {
    print("orders_at_wechat", &orders::grid(&Desk::new(db).await, Wechat).await);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_alipay_says_of_a_refund_in_each_state(db: PgPool) {
    print("refunds_at_alipay", &refunds::grid(&Desk::new(db).await, Alipay).await);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_wechat_says_of_a_refund_in_each_state(db: PgPool) {
    print("refunds_at_wechat", &refunds::grid(&Desk::new(db).await, Wechat).await);
}

#[test]
fn the_page_explains_each_state_and_shows_each_grid() {
    let moves =
        |rows: Vec<[&str; 3]>| rows.iter().map(|[from, on, to]| format!("{from:10}  {on:17}  {to}\n")).collect();
    let of_orders = TRANSITIONS.iter().map(|(from, on, to)| [from.as_str(), on.as_str(), to.as_str()]).collect();
    let of_refunds =
        REFUND_TRANSITIONS.iter().map(|(from, on, to)| [from.as_str(), on.as_str(), to.as_str()]).collect();
    let mut parts = vec![("moves of an order", moves(of_orders)), ("moves of a refund", moves(of_refunds))];
    let grids = ["orders_at_alipay", "orders_at_wechat", "refunds_at_alipay", "refunds_at_wechat"];
    parts.extend(grids.map(|name| (name, table::snapshot(name))));
    let page = table::page_shows("../ops/states.md", &parts);
    let states = OrderStatus::ALL.iter().map(|status| status.as_str());
    for state in states.chain(RefundStatus::ALL.iter().map(|status| status.as_str())) {
        assert!(page.contains(&format!("| `{state}` |")), "the page does not explain {state}");
    }
}
