//! Readers and writers at random, in two processes that show orders and one that only changes them, while each one's
//! way to Redis is delayed, hangs and breaks, and Redis forgets everything.
//!
//! What is judged needs no quiet machine. A reader notes when it began and what its process had shown by then; the
//! answer may be nothing older than that, nor than what was committed more than a second before it began.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;

use domain::OrderId;
use futures_util::future::join_all;
use metrics_exporter_prometheus::PrometheusHandle;
use sqlx::PgPool;
use store::cache::{Cache, Changed, FRESH, Redis, Renewer};
use store::tables::orders;
use testkit::Relay;
use tokio::time::{Instant, sleep};

use super::{World, counted, recorder, relay, version};

/// How long it goes on.
const LASTS: Duration = Duration::from_secs(12);
/// How many orders.
const BUSY: usize = 3;
const QUIET: usize = 20;
/// Clocks that count milliseconds.
const ROUNDING: Duration = Duration::from_millis(10);
/// The same choices each time; when each is made is the machine's.
const SEED: u64 = 20_251_126;

/// Numbers that look like chance (xorshift64*, Marsaglia and Vigna).
struct Dice(Cell<u64>);

impl Dice {
    fn new(who: u64) -> Dice {
        Dice(Cell::new(SEED.wrapping_mul(who + 1) | 1))
    }

    fn below(&self, sides: u64) -> u64 {
        let mut x = self.0.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.0.set(x);
        (x.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % sides
    }

    async fn rest(&self, milliseconds: u64) {
        // Real time: readers, writers and faults come at random moments.
        sleep(Duration::from_millis(self.below(milliseconds))).await;
    }
}

/// What was committed: the versions of each order, and when their commits had been answered.
type Committed = RefCell<BTreeMap<OrderId, Vec<(Instant, i64)>>>;

/// A process that shows orders.
struct Process {
    cache: Cache,
    way: Relay,
    /// The newest version of each order that was shown here.
    shown: RefCell<BTreeMap<OrderId, i64>>,
}

impl Process {
    async fn new(world: &World) -> Process {
        let way = relay().await;
        let redis = world.redis_at(way.port()).await;
        Process { cache: Cache::new(Some(redis)), way, shown: RefCell::default() }
    }

    fn show(&self, id: OrderId, version: i64) {
        let mut shown = self.shown.borrow_mut();
        let newest = shown.entry(id).or_default();
        *newest = version.max(*newest);
    }

    fn has_shown(&self, id: OrderId) -> i64 {
        self.shown.borrow().get(&id).copied().unwrap_or_default()
    }
}

struct Stage {
    world: World,
    orders: Vec<OrderId>,
    processes: [Process; 2],
    committed: Committed,
    until: Instant,
}

impl Stage {
    fn goes_on(&self) -> bool {
        Instant::now() < self.until
    }

    /// Every other time one of the few busy ones, where versions follow each other closely; else a quiet one, whose
    /// news may be lost for long.
    fn any_order(&self, dice: &Dice) -> OrderId {
        let (busy, quiet) = self.orders.split_at(BUSY);
        let orders = if dice.below(2) == 0 { busy } else { quiet };
        orders[usize::try_from(dice.below(orders.len() as u64)).unwrap()]
    }

    fn any_process(&self, dice: &Dice) -> &Process {
        &self.processes[usize::try_from(dice.below(2)).unwrap()]
    }

    async fn read(&self, who: u64) -> u64 {
        let dice = Dice::new(who);
        let mut reads = 0;
        while self.goes_on() {
            let (id, process) = (self.any_order(&dice), self.any_process(&dice));
            let (began, before) = (Instant::now(), process.has_shown(id));
            // Now and then as a list or a stream does it.
            let seen = if dice.below(100) == 0 {
                let order = orders::get(&self.world.db, id).await.unwrap().unwrap();
                process.cache.orders.saw(&order);
                order.version
            } else {
                version(&process.cache, &self.world, id).await
            };
            assert!(seen >= before, "order {id}: version {seen} after {before}");
            let over = |(at, _): &&(Instant, i64)| *at + FRESH + ROUNDING < began;
            let due = self.committed.borrow()[&id].iter().filter(over).map(|(_, version)| *version).max();
            assert!(Some(seen) >= due, "order {id}: version {seen}, and {due:?} was committed more than a second ago");
            process.show(id, seen);
            reads += 1;
            dice.rest(8).await;
        }
        reads
    }

    /// Changes orders, and passes it on as a worker does, as the ingress does, or not at all.
    async fn write(&self, who: u64, renewer: &Renewer) -> u64 {
        let dice = Dice::new(who);
        let mut writes = 0;
        while self.goes_on() {
            let id = self.any_order(&dice);
            let version = self.world.step(id).await;
            self.committed.borrow_mut().get_mut(&id).unwrap().push((Instant::now(), version));
            let changed = Changed::Ids(vec![id]);
            match dice.below(3) {
                0 => renewer.renew(&self.world.db, changed),
                1 => self.any_process(&dice).cache.orders.renew(&self.world.db, changed).await,
                _ => {}
            }
            writes += 1;
            dice.rest(120).await;
        }
        writes
    }

    /// Causes a fault in Redis, or on a connection to it.
    async fn disturb(&self, who: u64, workers_way: &Relay, redis: &Redis) {
        let dice = Dice::new(who);
        while self.goes_on() {
            let ways = [&self.processes[0].way, &self.processes[1].way, workers_way];
            let way = ways[usize::try_from(dice.below(3)).unwrap()];
            match dice.below(8) {
                0 => way.cut(),
                1 => self.world.wipe(redis).await,
                // Longer than a call may take.
                2 => hold(way, 100 + dice.below(300)).await,
                _ => hold(way, dice.below(90)).await,
            }
            dice.rest(150).await;
        }
    }
}

async fn hold(way: &Relay, milliseconds: u64) {
    way.hold(true);
    // Real time: Redis hangs this long.
    sleep(Duration::from_millis(milliseconds)).await;
    way.hold(false);
}

#[sqlx::test(migrator = "store::MIGRATOR")]
async fn no_reader_sees_an_older_version_after_a_newer_nor_what_was_over_a_second_ago(db: PgPool) {
    let (recorder, handle) = recorder();
    let _here = metrics::set_default_local_recorder(&recorder);
    let world = World::new(db);
    let mut orders = Vec::new();
    for _ in 0..BUSY + QUIET {
        orders.push(world.order().await);
    }
    let (redis, workers_way) = (world.redis().await, relay().await);
    let renewer = Renewer::new(Some(world.redis_at(workers_way.port()).await));
    let processes = [Process::new(&world).await, Process::new(&world).await];
    let committed = orders.iter().map(|id| (*id, vec![(Instant::now(), 1)])).collect();
    let until = Instant::now() + LASTS;
    let stage = Stage { world, orders, processes, committed: RefCell::new(committed), until };

    let reads = join_all((0..6).map(|who| stage.read(who)));
    let writes = join_all((100..102).map(|who| stage.write(who, &renewer)));
    let disturb = stage.disturb(200, &workers_way, &redis);
    let (reads, writes, ()) = tokio::join!(reads, writes, disturb);
    let (reads, writes): (u64, u64) = (reads.iter().sum(), writes.iter().sum());
    println!("{reads} reads, {writes} writes\n{}", summary(&handle));

    // What happened was what the rules are about.
    assert!(reads > 500 && writes > 50, "{reads} reads, {writes} writes");
    let requests = |parts: [&str; 2]| counted(&handle, &["cache_requests_total", parts[0], parts[1]]);
    for (layer, outcome) in
        [("memory", "hit"), ("memory", "stale"), ("redis", "hit"), ("redis", "stale"), ("redis", "miss")]
    {
        assert!(requests([layer, &format!("\"{outcome}\"")]) > 0, "no {outcome} in {layer}\n{}", handle.render());
    }
    assert!(counted(&handle, &["redis_errors_total"]) > 0, "{}", handle.render());
}

fn summary(handle: &PrometheusHandle) -> String {
    let text = handle.render();
    text.lines().filter(|line| line.starts_with("cache_") || line.starts_with("redis_")).collect::<Vec<_>>().join("\n")
}
