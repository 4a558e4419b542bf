//! More than one machine: the broker as a cluster of three nodes, a database with a standby, several of each program.
//! One of the machines is lost while buyers buy, and the others continue.

use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use broker::topology;
use e2e::http::{Answer, http_client};
use e2e::process::{Ended, Process};
use e2e::servers::{PrivateServers, Servers};
use e2e::shop::{self, Purchase, RefundRequest};
use e2e::{Gateway, Order, Setup, World, eventually};
use futures_util::future::join_all;
use serde_json::Value;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection, Executor};
use testkit::Relay;
use tokio::time::sleep;
use url::Url;

/// How long anything may take while machines are lost.
const LONG: Duration = Duration::from_secs(120);
/// Two callback workers with two batches in hand each.
const CONSUMERS: u32 = 4;
/// How many more orders are paid before a lost machine comes back: the others continue without it.
const MEANWHILE: i64 = 40;

/// For the refund jobs that a lost worker could not give back: after two minutes other workers claim them.
const TWO_MINUTES_PASS: &str =
    "update jobs set due_at = least(due_at, now()), lease_until = least(lease_until, now()) where kind = 'refund'";

/// What `xtask server` calls the nodes, in the order of their addresses.
const NODES: [&str; 3] = ["rabbitmq", "rabbitmq-2", "rabbitmq-3"];

/// The buyers, and how many fen of their yuan they want back.
const BUYERS: [(Gateway, &str, i64); 8] = [
    (Gateway::Alipay, "page", 0),
    (Gateway::Wechat, "native", 0),
    (Gateway::Alipay, "qr", 0),
    (Gateway::Wechat, "h5", 0),
    (Gateway::Alipay, "page", 100),
    (Gateway::Wechat, "native", 100),
    (Gateway::Alipay, "wap", 40),
    (Gateway::Wechat, "native", 30),
];

/// Two of each program, and the servers that `more` names.
async fn world(purpose: &str, more: &[&str], database_port: impl AsyncFnOnce(&Servers) -> Option<u16>) -> World {
    let servers = Servers::Private(PrivateServers::up_with(purpose, more).await);
    let database_port = database_port(&servers).await;
    let setup = Setup {
        apis: 2,
        workers: 2,
        check_workers: 2,
        refund_workers: 2,
        relays: 2,
        speed: 300.0,
        database_port,
        ..Setup::default()
    };
    World::on(servers, setup.trusting_this_machine()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_node_that_leads_the_callbacks_killed_under_load_again_and_again_loses_and_doubles_nothing() {
    let world = world("leader", &["--rabbitmq-nodes", "3"], async |_| None).await;
    under_load(&world, async {
        for away in 0..2 {
            let leader = leader(&world).await;
            world.servers().server("kill", kind(&leader)).await;
            others_go_on(&world).await;
            if away == 0 {
                // The first address of each list is the one that is away: commands go on to the next.
                assert_eq!(kind(&leader), "rabbitmq", "queues are led from where they were declared");
                world.set_up_broker().await;
                let Ended { status, said } = world.paymentctl().arg("doctor").run(world.dir(), LONG).await;
                assert!(status.success(), "{said}");
                assert!(said.contains("is away: start it, or replace it"), "{said}");
            }
            world.servers().server("start", kind(&leader)).await;
            takes_part_again(&world, &leader).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leading_node_cut_off_from_the_others_under_load_loses_and_doubles_nothing() {
    let world = world("partition", &["--rabbitmq-nodes", "3"], async |_| None).await;
    under_load(&world, async {
        for _ in 0..2 {
            let leader = leader(&world).await;
            let others: Vec<String> = members(&world)
                .await
                .into_iter()
                .filter(|node| *node != leader)
                .map(|node| format!("'{node}'"))
                .collect();
            // Erlang's own way to keep two nodes apart: they no longer share a secret, in either direction.
            let on_each = |what: &str| format!("[begin {what} end || N <- [{}]].", others.join(","));
            let cut = on_each("erlang:set_cookie(N, apart), erlang:disconnect_node(N)");
            world.servers().rabbitmqctl_on(kind(&leader), &["eval", &cut]).await;
            eventually("the others have another leader", LONG, async || {
                (callbacks(&world, Some(&leader)).await?["leader"] != leader.as_str()).then_some(())
            })
            .await;
            // Also the workers that were connected to the isolated node, whether it has notified them or not.
            eventually("both workers are consumers for the others", LONG, async || {
                (callbacks(&world, Some(&leader)).await?["consumers"] == CONSUMERS).then_some(())
            })
            .await;
            others_go_on(&world).await;
            let mend = on_each("erlang:set_cookie(N, erlang:get_cookie())");
            world.servers().rabbitmqctl_on(kind(&leader), &["eval", &mend]).await;
            takes_part_again(&world, &leader).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_promoted_under_load_has_everything_that_was_answered() {
    a_standby_takes_over("standby", |_| ()).await;
}

/// A machine that loses power closes no connection: no client is notified, and a client that waits would wait for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_promoted_for_a_machine_that_vanished_without_a_word_is_found_by_everybody() {
    a_standby_takes_over("vanished", Relay::strand).await;
}

/// `last` is what the connections to the lost machine see when it is lost.
async fn a_standby_takes_over(purpose: &str, last: impl Fn(&Relay)) {
    let mut address = None;
    let world = world(purpose, &["--standby"], async |servers| {
        let relay = Relay::to(host_and_port(&servers.addresses().database)).await;
        let port = relay.port();
        address = Some(relay);
        Some(port)
    })
    .await;
    let address = address.expect("a relay stands for the address that moves");
    let standby = world.addresses.standby.clone().expect("a standby");
    under_load(&world, async {
        others_go_on(&world).await;
        last(&address);
        world.servers().server("kill", "postgres").await;
        let mut connection = PgConnection::connect(&standby).await.expect("a standby answers");
        connection.execute("select pg_promote()").await.expect("promoted");
        connection.execute(TWO_MINUTES_PASS).await.expect("time passes");
        address.point_at(host_and_port(&standby));
        world.db.set_connect_options(PgConnectOptions::from_str(&standby).expect("a URL"));
        let moved = Instant::now();
        others_go_on(&world).await;
        println!(
            "{MEANWHILE} more orders were paid {:.1} s after the address had moved",
            moved.elapsed().as_secs_f64()
        );
    })
    .await;
}

/// Longer than any client waits: a request that timed out is completed later all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_that_wait_for_a_standby_are_given_up_and_found_done_when_it_is_back() {
    let world = world("waiting", &["--standby"], async |_| None).await;
    under_load(&world, async {
        others_go_on(&world).await;
        world.servers().server("kill", "standby").await;
        // Real time: the standby has to be away longer than any client waits.
        sleep(Duration::from_secs(45)).await;
        world.servers().server("start", "standby").await;
        others_go_on(&world).await;
        world.db.execute(TWO_MINUTES_PASS).await.expect("time passes");
    })
    .await;
}

/// Buyers buy while something `happens`; then everything comes to rest, and the books agree.
async fn under_load(world: &World, happens: impl Future<Output = ()>) {
    let over = AtomicBool::new(false);
    let happens = async {
        happens.await;
        over.store(true, Ordering::Relaxed);
    };
    let buying = BUYERS.map(|(gateway, scene, back)| buy_until(world, gateway, scene, back, &over));
    let ((), bought) = tokio::join!(happens, join_all(buying));
    let bought: usize = bought.into_iter().sum();
    world.wait_quiet(LONG).await;
    world.books_agree().await;
    assert_eq!(world.number("select count(*) from payment_orders").await, Some(bought as i64));
    let open = "select count(*) from payment_orders where status not in ('paid', 'partially_refunded', 'refunded')";
    assert_eq!(world.number(open).await, Some(0));
    // A lost machine is not a wiped broker: it causes nothing to be published again.
    let rebuilds = world.relays.iter().map(async |relay| relay.metrics().await.sum("relay_rebuilds_total", &[]));
    assert_eq!(join_all(rebuilds).await.into_iter().sum::<f64>(), 0.0);
    assert_eq!(world.texts("select kind from cases").await, Vec::<String>::new(), "nobody has to look at anything");
    assert!(world.processes().all(Process::runs), "a process gave up");
    world.logs_are_clean();
    let (events, deliveries) = (world.downstream.times().len(), world.downstream.all().len());
    println!("{bought} orders, {events} events in {deliveries} deliveries");
}

/// Buys, pays and waits for the goods, and then perhaps for money; how many times.
async fn buy_until(world: &World, gateway: Gateway, scene: &str, back: i64, over: &AtomicBool) -> usize {
    let mut bought = 0;
    while !over.load(Ordering::Relaxed) {
        let purchase = Purchase::new(gateway, scene, "1.00");
        let answer = answered(async || world.shop.request_order(&purchase).await.ok()).await;
        assert_eq!(answer.status, 201, "{purchase:?}: {answer:?}");
        let order = shop::order(&purchase, &answer);
        world.pay(&order).await;
        becomes(world, &order, "paid").await;
        if back > 0 {
            let request = RefundRequest::of(back);
            let answer = answered(async || world.shop.request_refund(&order, &request).await.ok()).await;
            assert_eq!(answer.status, 202, "{request:?} of {order:?}: {answer:?}");
            becomes(world, &order, if back == order.amount_fen { "refunded" } else { "partially_refunded" }).await;
        }
        bought += 1;
    }
    bought
}

/// The first answer that is neither "later" nor "it took too long, repeat it".
async fn answered(mut request: impl AsyncFnMut() -> Option<Answer>) -> Answer {
    let is_one = |answer: &Answer| answer.retry_after.is_none() && answer.status != 504;
    eventually("an answer", LONG, async || request().await.filter(is_one)).await
}

async fn becomes(world: &World, order: &Order, status: &str) {
    eventually(&format!("{} is {status}", order.order_no), LONG, async || {
        let found = sqlx::query_scalar::<_, String>("select status from payment_orders where id = $1").bind(&order.id);
        (found.fetch_optional(&world.db).await.ok()?? == status).then_some(())
    })
    .await;
}

/// Waits until some more orders are paid.
async fn others_go_on(world: &World) {
    let paid = async || world.number("select count(*) from payment_orders where status <> 'pending'").await;
    let before = eventually("a count", LONG, &paid).await;
    eventually("orders are bought and paid without the lost one", LONG, async || {
        (paid().await? >= before + MEANWHILE).then_some(())
    })
    .await;
}

/// What the broker says of the queue of callbacks, by whichever node answers but one.
async fn callbacks(world: &World, except: Option<&str>) -> Option<Value> {
    for (node, name) in world.addresses.management.split(',').zip(NODES) {
        if except.is_some_and(|except| kind(except) == name) {
            continue;
        }
        let url = format!("{node}/api/queues/%2F/{}", topology::CALLBACKS);
        if let Ok(answer) = http_client().get(url).send().await
            && answer.status().is_success()
        {
            return answer.json().await.ok();
        }
    }
    None
}

async fn leader(world: &World) -> String {
    eventually("a leader", LONG, async || {
        let queue = callbacks(world, None).await?;
        let leader = queue["leader"].as_str()?;
        queue["online"].as_array()?.iter().any(|node| node == leader).then(|| leader.to_owned())
    })
    .await
}

async fn members(world: &World) -> Vec<String> {
    let queue = eventually("the queue", LONG, async || callbacks(world, None).await).await;
    let members = queue["members"].as_array().expect("a quorum queue has members");
    assert_eq!(members.len(), 3, "a replica on each node: {members:?}");
    members.iter().filter_map(|node| node.as_str().map(str::to_owned)).collect()
}

/// Waits until a node that was away has a replica again.
async fn takes_part_again(world: &World, node: &str) {
    eventually(&format!("{node} takes part again"), LONG, async || {
        callbacks(world, None).await?["online"].as_array()?.iter().any(|online| online == node).then_some(())
    })
    .await;
}

/// What `xtask server` calls a node.
fn kind(node: &str) -> &'static str {
    NODES[1..].iter().find(|kind| node.contains(*kind)).unwrap_or(&NODES[0])
}

fn host_and_port(url: &str) -> String {
    let url = Url::parse(url).expect("a URL");
    format!("{}:{}", url.host_str().expect("a host"), url.port().expect("a port"))
}
