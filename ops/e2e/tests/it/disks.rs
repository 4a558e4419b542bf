//! The disk of the database full, under load: refused writes first, then a server that gives up.

use std::time::Duration;

use e2e::disk::SmallDisk;
use e2e::servers::{PrivateServers, Servers};
use e2e::{Made, SOON, Setup, World, eventually};

const BUYERS: usize = 4;
/// In MiB: a new cluster, its log, and not much more.
const DISK: u32 = 160;
const LONG: Duration = Duration::from_secs(60);
/// Orders that are paid while the disk is full.
const PAID_MEANWHILE: usize = 32;

async fn refused(world: &World) -> f64 {
    world.api.metrics().await.sum("http_requests_total", &[("status", "503")])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_disk_of_the_database_full_callbacks_are_taken_and_everything_completes_when_there_is_room() {
    let servers = PrivateServers::up("disk").await;
    let disk = SmallDisk::under(&servers, DISK).await;
    let setup = Setup { workers: 2, check_workers: 1, refund_workers: 2, relays: 2, speed: 100.0, ..Setup::default() };
    let world = World::on(Servers::Private(servers), setup.trusting_this_machine()).await;
    let orders = world.buy_many(PAID_MEANWHILE).await;
    let (refusing, given_up) = orders.split_at(PAID_MEANWHILE / 2);

    let full = async {
        eventually("there is load", SOON, async || {
            let sql = "select count(*) from payment_orders where status = 'refunded'";
            (world.number(sql).await? >= 3).then_some(())
        })
        .await;
        let before = refused(&world).await;
        eventually("PostgreSQL finds no room and orders are refused", LONG, async || {
            disk.fill();
            (disk.server_said("No space left on device") > 0 && refused(&world).await > before).then_some(())
        })
        .await;
        world.pay_slowly(refusing).await;
        world.wait_all_answered().await;
        // Until then it wrote into log that it had set aside. Now it needs more.
        eventually("PostgreSQL gives up", LONG, async || {
            disk.fill();
            let _ = sqlx::query("select pg_switch_wal()").execute(&world.db).await;
            (disk.server_said("PANIC") > 0).then_some(())
        })
        .await;
        disk.fill();
        world.pay_slowly(given_up).await;
        world.wait_all_answered().await;
        let received = world.api.metrics().await.by("callbacks_received_total", "outcome");
        assert_eq!(received.keys().collect::<Vec<_>>(), ["accepted"], "the broker took them: {received:?}");
        disk.free();
        // It may have come back by itself, and may not: then an operator starts it.
        disk.start(world.servers()).await;
    };
    let ((), made) = world.under_load(BUYERS, full).await;
    let meanwhile = PAID_MEANWHILE as i64;
    world.all_completed(Made { bought: made.bought + meanwhile, paid: made.paid + meanwhile, ..made }).await;
    assert!(made.paid >= 20, "hardly any load: {made:?}");
    assert!(world.logs().contains("No space left on device"), "the programs were told why");
}
