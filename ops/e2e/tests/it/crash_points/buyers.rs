//! Buyers who continue to buy while processes die. A frontend that gets no answer repeats the request with the same
//! key.

use std::sync::atomic::{AtomicBool, Ordering};

use e2e::http::Answer;
use e2e::shop::{self, Purchase, RefundRequest};
use e2e::{Gateway, Order, World, eventually};
use serde_json::{Value, json};

use super::{LONG, time_passes};

/// A second of polling: then time passes, for the work that a dead process has left.
const LOOKS: usize = 40;

/// What a buyer does with each of their orders.
pub struct Buyer {
    gateway: Gateway,
    scene: &'static str,
    habit: Habit,
}

enum Habit {
    /// Pays.
    Pays,
    /// Pays, and the gateway sends no notification.
    PaysSilently,
    /// Opens the cashier page, and closes the order.
    GivesUp,
    /// Pays and wants this many fen back, from a gateway with this fault for refunds.
    Returns(i64, fn() -> Value),
}

/// What an order costs, in yuan and in fen.
const PRICE: (&str, i64) = ("1.00", 100);

/// All of them at once, so that some buyer always passes every point.
pub const BUYERS: &[Buyer] = &[
    Buyer { gateway: Gateway::Alipay, scene: "page", habit: Habit::Pays },
    Buyer { gateway: Gateway::Wechat, scene: "native", habit: Habit::Pays },
    Buyer { gateway: Gateway::Alipay, scene: "qr", habit: Habit::PaysSilently },
    Buyer { gateway: Gateway::Wechat, scene: "native", habit: Habit::PaysSilently },
    Buyer { gateway: Gateway::Alipay, scene: "wap", habit: Habit::GivesUp },
    Buyer { gateway: Gateway::Wechat, scene: "h5", habit: Habit::GivesUp },
    Buyer { gateway: Gateway::Alipay, scene: "page", habit: Habit::Returns(100, || json!({})) },
    Buyer { gateway: Gateway::Wechat, scene: "native", habit: Habit::Returns(30, || json!({})) },
    // Only a query shows the result of these refunds.
    Buyer { gateway: Gateway::Wechat, scene: "native", habit: Habit::Returns(100, || json!({ "no_notice": true })) },
    Buyer {
        gateway: Gateway::Alipay,
        scene: "page",
        habit: Habit::Returns(40, || json!({ "no_notice": true, "effect_then_timeout": 0.5 })),
    },
];

impl Buyer {
    /// Buys again and again until it is `over`; every order, and the status that it has ended in.
    pub async fn until(&self, world: &World, over: &AtomicBool) -> Vec<(Order, &'static str)> {
        let mut bought = Vec::new();
        while !over.load(Ordering::Relaxed) {
            let purchase = Purchase::new(self.gateway, self.scene, PRICE.0);
            let order = buy(world, &purchase).await;
            let end = self.deal_with(world, &order).await;
            // Pressed once more: the same answer, whatever has become of the order.
            assert_eq!(buy(world, &purchase).await.id, order.id);
            bought.push((order, end));
        }
        bought
    }

    async fn deal_with(&self, world: &World, order: &Order) -> &'static str {
        match self.habit {
            Habit::Pays => {
                world.pay(order).await;
                becomes(world, order, "paid").await
            }
            Habit::PaysSilently => {
                world.gateways.pay_silently(order).await;
                becomes(world, order, "paid").await
            }
            Habit::GivesUp => {
                world.gateways.open(order).await;
                give_up(world, order).await;
                becomes(world, order, "closed").await
            }
            Habit::Returns(fen, faults) => {
                world.gateways.faults(&json!({ "scope": order.order_no, "refund": faults() })).await;
                world.pay(order).await;
                becomes(world, order, "paid").await;
                want_back(world, order, &RefundRequest::of(fen)).await;
                becomes(world, order, if fen == PRICE.1 { "refunded" } else { "partially_refunded" }).await
            }
        }
    }
}

/// Asks until there is an order.
pub async fn buy(world: &World, purchase: &Purchase) -> Order {
    let answer = answered(world, &purchase.attempt, async || world.shop.request_order(purchase).await.ok()).await;
    assert_eq!(answer.status, 201, "{purchase:?}: {}", answer.text);
    shop::order(purchase, &answer)
}

async fn want_back(world: &World, order: &Order, request: &RefundRequest) {
    let answer = answered(world, &request.attempt, async || world.shop.request_refund(order, request).await.ok()).await;
    assert_eq!(answer.status, 202, "{request:?} of {order:?}: {}", answer.text);
}

async fn give_up(world: &World, order: &Order) {
    let answer = answered(world, "none", async || world.shop.close(order).await.ok()).await;
    assert!([200, 202].contains(&answer.status), "{order:?}: {answer:?}");
}

/// The first answer that is not "later". A request that died under its key holds it for a while: that passes.
async fn answered(world: &World, key: &str, mut request: impl AsyncFnMut() -> Option<Answer>) -> Answer {
    eventually("an answer", LONG, async || {
        let answer = request().await?;
        if answer.retry_after.is_none() {
            return Some(answer);
        }
        let sql = "update idempotency_keys set held_until = now() where key = $1 and answer is null";
        sqlx::query(sql).bind(key).execute(&world.db).await.expect("the database answers");
        None
    })
    .await
}

/// Waits for a status; when it does not come, time passes.
async fn becomes(world: &World, order: &Order, status: &'static str) -> &'static str {
    let mut looks = 0;
    eventually(&format!("{} is {status}", order.order_no), LONG, async || {
        looks += 1;
        if looks % LOOKS == 0 {
            time_passes(world, order).await;
        }
        (world.status(order).await == status).then_some(status)
    })
    .await
}
