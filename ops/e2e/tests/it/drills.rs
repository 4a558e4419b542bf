//! Servers that run but do not do their work, under load: blocked, slow, full, cut off in the middle of a message.
//!
//! `ops/degraded-modes.md` says of each what still works; `cargo xtask drill` runs these and the other drills that it
//! names.

use std::time::Duration;

use e2e::servers::{PrivateServers, Servers};
use e2e::{SOON, Setup, World, eventually};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection};
use testkit::Relay;
use tokio::time::sleep;
use url::Url;

const LONG: Duration = Duration::from_secs(120);

/// Two workers and two relays behind ways that can be held and cut.
struct Ways {
    world: World,
    database: Relay,
    broker: Relay,
}

impl Ways {
    async fn new() -> Ways {
        let servers = Servers::shared().await;
        let addresses = servers.addresses();
        let (database, broker) = (relay_to(&addresses.database).await, relay_to(&addresses.amqp).await);
        let setup = Setup {
            workers: 2,
            relays: 2,
            speed: 300.0,
            database_port: Some(database.port()),
            broker_port: Some(broker.port()),
            ..Setup::default()
        };
        let world = World::on(servers, setup.trusting_this_machine()).await;
        Ways { world, database, broker }
    }
}

async fn relay_to(url: &str) -> Relay {
    let url = Url::parse(url).expect("a URL");
    let (host, port) = (url.host_str().expect("a host"), url.port().expect("a port"));
    Relay::to(format!("{host}:{port}")).await
}

async fn on_the_way_of_the_database(world: &World) -> f64 {
    world.api.metrics().await.sum("callbacks_stored_total", &[("road", "database")])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_broker_short_of_memory_or_disk_callbacks_go_to_the_database_and_everything_completes() {
    let servers = Servers::Private(PrivateServers::up("alarms").await);
    let setup = Setup { relays: 2, speed: 100.0, ..Setup::default() };
    let world = World::on(servers, setup.trusting_this_machine()).await;
    let orders = world.buy_many(48).await;
    let alarms = [
        (
            ["set_vm_memory_high_watermark", "absolute", "1"].as_slice(),
            ["set_vm_memory_high_watermark", "0.6"].as_slice(),
        ),
        (&["set_disk_free_limit", "1000000GB"], &["set_disk_free_limit", "50MB"]),
    ];
    for ((raise, clear), few) in alarms.iter().zip(orders.chunks(24)) {
        let before = on_the_way_of_the_database(&world).await;
        world.servers().rabbitmqctl(raise).await;
        // The broker checks its state from time to time, and notifies a publisher when it publishes.
        eventually("the ingress is told that publishing is blocked", SOON, async || {
            let probe = world.buy_many(1).await;
            world.pay(&probe[0]).await;
            (on_the_way_of_the_database(&world).await > before).then_some(())
        })
        .await;
        world.wait_all_answered().await;
        let before = on_the_way_of_the_database(&world).await;
        world.pay_slowly(few).await;
        world.wait_all_answered().await;
        let stored = on_the_way_of_the_database(&world).await - before;
        assert!(stored >= few.len() as f64, "{stored} of {} callbacks were kept in the database", few.len());
        world.servers().rabbitmqctl(clear).await;
    }
    let received = world.api.metrics().await.by("callbacks_received_total", "outcome");
    assert_eq!(received.keys().collect::<Vec<_>>(), ["accepted"], "every callback was taken: {received:?}");
    let made = world.number("select count(*) from payment_orders").await.expect("a count");
    world.all_settled(usize::try_from(made).expect("a count"), LONG).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_cut_in_the_middle_of_frames_lose_nothing() {
    let Ways { world, database, broker } = Ways::new().await;
    let mut bought = 0;
    for round in 0..10 {
        let orders = world.buy_many(8).await;
        bought += orders.len();
        let (one, other) = if round % 2 == 0 { (&broker, &database) } else { (&database, &broker) };
        let cut = async {
            // In the middle of what is under way: as soon as something more has been said.
            one.hears_more_than(one.from_clients()).await;
            one.cut();
            other.hears_more_than(other.from_clients()).await;
            other.cut();
        };
        tokio::join!(world.pay_slowly(&orders), cut);
    }
    world.all_settled(bought, LONG).await;
    assert!(broker.accepted() > 10 && database.accepted() > 10, "connections were made again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_answers_late_again_and_again_delays_and_loses_nothing() {
    let Ways { world, database, .. } = Ways::new().await;
    let mut bought = 0;
    for _ in 0..6 {
        let orders = world.buy_many(8).await;
        bought += orders.len();
        let late = async {
            for _ in 0..4 {
                database.hold(true);
                // Real time: the database answers this late.
                sleep(Duration::from_millis(700)).await;
                database.hold(false);
                sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::join!(world.pay_slowly(&orders), late);
    }
    world.all_settled(bought, LONG).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_without_a_connection_to_spare_delays_and_loses_nothing() {
    let servers = Servers::Private(PrivateServers::up("connections").await);
    let setup = Setup { workers: 2, relays: 2, speed: 300.0, ..Setup::default() };
    let world = World::on(servers, setup.trusting_this_machine()).await;
    let orders = world.buy_many(40).await;
    let owner = world.addresses.database.clone();
    let mut last = PgConnection::connect(&owner).await.expect("a connection");
    let mut taken = Vec::new();
    // The service loses its connections, and these take their places.
    while let Ok(connection) = PgConnection::connect(&owner).await {
        taken.push(connection);
        let end = "select pg_terminate_backend(pid) from pg_stat_activity where usename like 'payment\\_%'";
        sqlx::query(AssertSqlSafe(end)).execute(&mut last).await.expect("the database answers");
    }
    assert!(taken.len() > 10, "{} connections were there to be taken", taken.len());
    world.pay_slowly(&orders).await;
    let received = eventually("callbacks come", SOON, async || {
        Some(world.api.metrics().await.by("callbacks_received_total", "outcome"))
            .filter(|received| !received.is_empty())
    })
    .await;
    assert_eq!(received.keys().collect::<Vec<_>>(), ["accepted"], "the broker took them: {received:?}");
    drop(taken);
    world.all_settled(orders.len(), LONG).await;
}
