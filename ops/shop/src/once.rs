//! One purchase and one refund at each gateway without a browser: the shortest proof that the whole system works.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use reqwest::Client;
use serde_json::{Map, Value};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::api::{Api, ApiError, Created, Payment};
use crate::cli::{Settings, join};
use crate::desk::{Delivered, Desk};
use crate::fulfilment::{self, Queue};
use crate::offer::Purchase;
use crate::stop::Stop;

/// The broker must be reachable within this time.
const CONNECT: Duration = Duration::from_secs(20);
/// Everything from the payment to the event must finish within this time.
const ARRIVE: Duration = Duration::from_secs(60);
/// How long to keep listening for an event that should not arrive.
const LISTEN_ON: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(200);
const CALL: Duration = Duration::from_secs(15);
/// How many times a call is tried that a gateway or a server refuses only temporarily.
const TRIES: u32 = 5;

/// The purchase at each gateway.
const PURCHASES: [(&str, &str, &str); 2] = [("alipay", "page", "12.34"), ("wechat", "native", "0.01")];

struct Bought {
    method: &'static str,
    created: Created,
}

/// Plays both purchases and their refunds and prints what happened. It succeeds only if each order's `order.paid`
/// arrived exactly once, followed by the events of its refund.
pub(crate) async fn run(settings: &Settings, stop: Stop) -> anyhow::Result<ExitCode> {
    let desk = Desk::new();
    let (finish, finished) = Stop::new();
    // A separate queue, so that a shop that serves at the same time still gets its events.
    let queue = Queue::Passing(format!("shop.once.{}", Uuid::now_v7().simple()));
    let consumer = tokio::spawn(fulfilment::consume(settings.amqp_url.clone(), queue, desk.clone(), finished));
    let played = tokio::select! {
        played = play(settings, &desk) => played,
        () = stop.said() => Err(anyhow::anyhow!("interrupted")),
    };
    // The consumer removes its queue before it ends.
    finish.stop();
    let _ = timeout(CALL, consumer).await;
    let missing = played?;
    for line in &missing {
        println!("✘ {line}");
    }
    Ok(if missing.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Buys, pays and waits; returns what is missing.
async fn play(settings: &Settings, desk: &Arc<Desk>) -> anyhow::Result<Vec<String>> {
    let api = Api::new(settings)?;
    let http = Client::builder().timeout(CALL).build().context("building the HTTP client")?;
    println!("… connecting to the broker as a downstream system");
    let mut link = desk.link();
    if timeout(CONNECT, link.wait_for(|link| link.connected)).await.is_err() {
        let reason = link.borrow().reason.clone().unwrap_or_default();
        bail!("no subscription to the fulfilment events within {} s: {reason}", CONNECT.as_secs());
    }
    println!("✔ subscribed to the fulfilment events");
    refuse_a_forgery(&api).await?;
    let mut bought = Vec::new();
    for (method, scene, amount) in PURCHASES {
        let created =
            order(&api, method, scene, amount).await.with_context(|| format!("creating an order at {method}"))?;
        println!("✔ {method}: order {} over ¥{amount} ({scene}), id {}", created.order.order_no, created.order.id);
        pay(&http, settings, method, &created).await.with_context(|| format!("paying at {method}"))?;
        println!("✔ {method}: paid at the simulator, now its callback has to come");
        bought.push(Bought { method, created });
    }
    let mut missing = arrive(&api, desk, &bought).await;
    if missing.is_empty() {
        for bought in &bought {
            missing.extend(give_back(&api, desk, bought).await?);
        }
    }
    for bought in &bought {
        for delivered in desk.of_order(&bought.created.order.id) {
            print_event(&delivered);
        }
    }
    Ok(missing)
}

/// What the shop sells in a run without a browser.
fn purchase(method: &str, scene: &str, amount: &str) -> Purchase {
    Purchase {
        product_type: "membership".to_owned(),
        subject: "会员月卡".to_owned(),
        amount: amount.to_owned(),
        payment_method: method.to_owned(),
        scene: scene.to_owned(),
        return_url: None,
        metadata: Map::from_iter([("shop".to_owned(), "once".into())]),
    }
}

/// A shopper who changes the price in the offer gets no order.
async fn refuse_a_forgery(api: &Api) -> anyhow::Result<()> {
    let (method, scene, amount) = PURCHASES[0];
    let forged = api.tamper(&Uuid::now_v7().to_string(), &purchase(method, scene, amount), "0.01").await;
    match forged {
        Err(ApiError::Refused { problem, .. }) if problem["code"] == "offer_invalid" => {
            println!("✔ a price of ¥0.01 that the shop did not sign is refused (offer_invalid)");
            Ok(())
        }
        Err(error) => Err(error).context("sending an offer with another price"),
        Ok(created) => bail!("order {} has a price that the shop did not sign", created.order.order_no),
    }
}

async fn order(api: &Api, method: &str, scene: &str, amount: &str) -> anyhow::Result<Created> {
    let (attempt, purchase) = (Uuid::now_v7().to_string(), purchase(method, scene, amount));
    for _ in 1..TRIES {
        match api.create(&attempt, &purchase).await {
            Err(error) if error.is_passing() => println!("… {method}: {error}; trying again"),
            settled => return Ok(settled?),
        }
        sleep(Duration::from_secs(1)).await;
    }
    Ok(api.create(&attempt, &purchase).await?)
}

/// Does what the buyer does: opens the payment, then pays.
async fn pay(http: &Client, settings: &Settings, method: &str, created: &Created) -> anyhow::Result<()> {
    if let Payment::Redirect { url } = &created.payment {
        // At Alipay the trade is created when the buyer opens the page.
        let opened = http.get(url).send().await.context("opening the cashier")?;
        ensure!(opened.status().is_success(), "the cashier answered {}", opened.status());
    }
    let url = join(&settings.sim_url, &["sim", "trades", method, &created.order.order_no, "pay"]);
    let paid = http.post(url).json(&serde_json::json!({})).send().await.context("asking the simulator to pay")?;
    let status = paid.status();
    let answer = paid.text().await.unwrap_or_default();
    ensure!(status.is_success(), "the simulator answered {status}: {answer}");
    Ok(())
}

/// Waits until every order is paid and its event has arrived, then keeps listening for unexpected events.
async fn arrive(api: &Api, desk: &Desk, bought: &[Bought]) -> Vec<String> {
    let since = Instant::now();
    let mut reported = vec![false; bought.len()];
    let missing = loop {
        let mut missing = Vec::new();
        for (bought, reported) in bought.iter().zip(&mut reported) {
            let lacks = lacking(api, desk, bought).await;
            if lacks.is_empty() && !*reported {
                *reported = true;
                println!("✔ {}: order.paid arrived and the order is paid", bought.method);
            }
            missing.extend(lacks);
        }
        if missing.is_empty() || since.elapsed() >= ARRIVE {
            break missing;
        }
        sleep(POLL).await;
    };
    if !missing.is_empty() {
        return missing;
    }
    println!("✔ both after {:.1} s; listening on for {} s", since.elapsed().as_secs_f32(), LISTEN_ON.as_secs());
    sleep(LISTEN_ON).await;
    bought.iter().flat_map(|bought| wrong(bought, &desk.of_order(&bought.created.order.id))).collect()
}

/// Requests the refund and waits until it is done; returns what is missing.
async fn give_back(api: &Api, desk: &Desk, bought: &Bought) -> anyhow::Result<Vec<String>> {
    let (method, order) = (bought.method, &bought.created.order);
    api.refund(&Uuid::now_v7().to_string(), &order.id).await.with_context(|| format!("refunding at {method}"))?;
    let since = Instant::now();
    loop {
        let deliveries = desk.of_order(&order.id);
        let came = |kind: &str| deliveries.iter().any(|delivered| delivered.event.kind == kind);
        let status = api.order(&order.id).await.map_or_else(|error| error.to_string(), |now| now.status);
        if status == "refunded" && came("refund.succeeded") && came("order.refunded") {
            println!("✔ {method}: refunded after {:.1} s, and both events arrived", since.elapsed().as_secs_f32());
            return Ok(Vec::new());
        }
        if since.elapsed() >= ARRIVE {
            return Ok(vec![format!("{method} order {}: not refunded, payment-api says {status}", order.order_no)]);
        }
        sleep(POLL).await;
    }
}

/// What has not arrived yet for one order.
async fn lacking(api: &Api, desk: &Desk, bought: &Bought) -> Vec<String> {
    let order = &bought.created.order;
    let name = format!("{} order {}", bought.method, order.order_no);
    let mut lacks = Vec::new();
    if !desk.of_order(&order.id).iter().any(|delivered| delivered.event.kind == "order.paid") {
        lacks.push(format!("{name}: no order.paid has arrived"));
    }
    match api.order(&order.id).await {
        Ok(now) if now.status == "paid" => {}
        Ok(now) => lacks.push(format!("{name}: payment-api still says {}", now.status)),
        Err(error) => lacks.push(format!("{name}: {error}")),
    }
    lacks
}

/// What is wrong with the events of one order. A repeat with the same id is allowed in transport; it delivers nothing.
fn wrong(bought: &Bought, delivered: &[Delivered]) -> Vec<String> {
    let order = &bought.created.order;
    let name = format!("{} order {}", bought.method, order.order_no);
    let mut wrong = Vec::new();
    let paid: Vec<_> = delivered.iter().filter(|delivered| delivered.event.kind == "order.paid").collect();
    if paid.len() != 1 {
        wrong.push(format!("{name}: {} different order.paid events instead of one", paid.len()));
    }
    for event in paid.iter().map(|delivered| &delivered.event) {
        let expected = [("order_no", &order.order_no), ("amount", &order.amount), ("order_id", &order.id)];
        for (field, ours) in expected.into_iter().filter(|(field, ours)| event.field(field) != ours.as_str()) {
            wrong.push(format!("{name}: {} says {field} {:?} instead of {ours:?}", event.event_id, event.field(field)));
        }
        for field in ["trade_no", "paid_at"].into_iter().filter(|field| event.field(field).is_empty()) {
            wrong.push(format!("{name}: {} has no {field}", event.event_id));
        }
    }
    let others = delivered.iter().filter(|delivered| delivered.event.kind != "order.paid");
    wrong.extend(others.map(|other| format!("{name}: unexpected event {}", other.event.event_id)));
    wrong
}

fn print_event(delivered: &Delivered) {
    let event = &delivered.event;
    println!("{} {}", event.kind, event.event_id);
    for field in ["order_no", "amount", "payment_method", "trade_no", "paid_at"] {
        let value = event.data.get(field).map_or_else(|| "-".to_owned(), plain);
        println!("    {field:<15} {value}");
    }
    println!("    {:<15} {}", "times_seen", delivered.times_seen);
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::event::Event;

    fn bought() -> Bought {
        let created = json!({ "payment": { "kind": "qr", "code_url": "u" }, "view_token": "t",
            "order": { "id": "o1", "order_no": "N1", "amount": "0.01", "status": "pending" } });
        Bought { method: "wechat", created: serde_json::from_value(created).unwrap() }
    }

    fn delivered(id: &str, kind: &str, amount: &str) -> Delivered {
        let data =
            json!({ "order_id": "o1", "order_no": "N1", "amount": amount, "trade_no": "4200", "paid_at": "now" });
        let event = Event { event_id: id.to_owned(), kind: kind.to_owned(), subject: None, data };
        Delivered { event, times_seen: 2, received_at: String::new() }
    }

    #[test]
    fn one_event_is_right_even_when_it_came_twice() {
        assert_eq!(wrong(&bought(), &[delivered("a", "order.paid", "0.01")]), Vec::<String>::new());
    }

    #[test]
    fn none_two_another_amount_and_a_close_are_wrong() {
        let paid = || delivered("a", "order.paid", "0.01");
        assert_eq!(wrong(&bought(), &[]).len(), 1);
        assert_eq!(wrong(&bought(), &[paid(), delivered("b", "order.paid", "0.01")]).len(), 1);
        assert_eq!(wrong(&bought(), &[delivered("a", "order.paid", "0.02")]).len(), 1);
        assert_eq!(wrong(&bought(), &[paid(), delivered("c", "order.closed", "0.01")]).len(), 1);
    }
}
