//! A roll-out across a migration: the database is ahead of the programs for a while, and one that is too far ahead says so.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use e2e::process::Process;
use e2e::{SOON, Setup, World, eventually};
use sqlx::migrate::Migrator;
use sqlx::{Connection, PgConnection};

const BUYERS: usize = 6;
const COMMAND: Duration = Duration::from_secs(30);

/// What the next release would bring: everything that `migrations/README.md` calls expanding.
const EXPANDS: [(&str, &str); 2] = [
    (
        "more",
        "set local lock_timeout = '2s';
        alter table payment_orders add column note text;
        alter table refund_records add column note text not null default '';
        alter table payment_orders add constraint payment_orders_note check (length(note) < 9) not valid;
        create table notes (id bigint not null generated always as identity, note text);",
    ),
    (
        "index",
        "-- no-transaction\ncreate index concurrently payment_orders_note_once on payment_orders (note) where note is not null;",
    ),
];

/// The migrations of this checkout, in a folder to which a test adds.
struct Release {
    folder: PathBuf,
    next: i64,
}

impl Release {
    fn new(folder: PathBuf) -> Release {
        fs::create_dir_all(&folder).expect("a folder can be made");
        let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../migrations");
        let mut next = 1;
        for entry in fs::read_dir(ours).expect("the migrations") {
            let entry = entry.expect("an entry");
            let name = entry.file_name().into_string().expect("a name");
            if let Some(number) = name.strip_suffix(".sql").and_then(|name| name.split('_').next()?.parse::<i64>().ok())
            {
                fs::copy(entry.path(), folder.join(&name)).expect("a migration can be copied");
                next = next.max(number + 1);
            }
        }
        assert!(next > 12, "these are not the migrations");
        Release { folder, next }
    }

    /// One more migration; its number.
    fn add(&mut self, name: &str, sql: &str) -> i64 {
        let number = self.next;
        fs::write(self.folder.join(format!("{number:04}_{name}.sql")), sql).expect("a file can be written");
        self.next += 1;
        number
    }

    /// What `paymentctl migrate` of that release would do.
    async fn migrate(&self, database: &str) {
        let mut connection = PgConnection::connect(database).await.expect("a connection");
        let migrator = Migrator::new(self.folder.as_path()).await.expect("migrations");
        migrator.run(&mut connection).await.expect("the migrations of the next release succeed");
        connection.close().await.expect("a connection can be closed");
    }
}

async fn restart(process: &Process) {
    let (status, _) = process.terminate().await;
    assert_eq!(status.code(), Some(0), "{}: {status}\n{}", process.name, process.log());
    process.start().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_roll_out_across_a_migration_refuses_no_callback_and_loses_nothing() {
    let setup =
        Setup { apis: 2, workers: 2, check_workers: 2, refund_workers: 2, relays: 2, speed: 300.0, ..Setup::default() };
    let world = World::with(setup.trusting_this_machine()).await;
    let mut next = Release::new(world.dir().join("next"));
    for (name, sql) in EXPANDS {
        next.add(name, sql);
    }
    let roll_out = async {
        eventually("there is load", SOON, async || {
            let sql = "select count(*) from payment_orders where status = 'refunded'";
            (world.number(sql).await? >= 3).then_some(())
        })
        .await;
        next.migrate(&world.addresses.database).await;
        let mut outcomes = BTreeSet::new();
        for process in world.processes() {
            // Counters end with their process.
            outcomes.extend(process.metrics().await.by("callbacks_received_total", "outcome").into_keys());
            restart(process).await;
        }
        outcomes
    };
    let (mut outcomes, made) = world.under_load(BUYERS, roll_out).await;
    assert!(made.paid >= 50 && made.returned >= 10, "hardly any load: {made:?}");
    world.all_completed(made).await;
    for api in world.apis() {
        outcomes.extend(api.metrics().await.by("callbacks_received_total", "outcome").into_keys());
    }
    assert_eq!(outcomes.iter().collect::<Vec<_>>(), ["accepted"], "every callback was taken");
    assert!(world.logs().contains("is newer than this build"), "it is told that the database is ahead");

    // The command of a release that was rolled back finds nothing to do.
    let migrate = || world.program("payment-api").arg("migrate").env("DATABASE_URL", &world.addresses.database);
    let ended = migrate().run(world.dir(), COMMAND).await;
    assert!(ended.status.success() && ended.said.contains("2 of a newer release"), "{ended:?}");

    // A release later the old column goes, and with it every program that does not know the new one.
    let needs = next.add("what_took_the_place_of_the_old_column", "select 1;");
    let name = format!("contract_from_{needs:04}_subject");
    let contracts = next.add(&name, "alter table payment_orders drop column note;");
    next.migrate(&world.addresses.database).await;
    let refusal =
        format!("the database has migration {contracts}, after which only builds that know migration {needs}");
    let ended = migrate().run(world.dir(), COMMAND).await;
    assert!(!ended.status.success() && ended.said.contains(&refusal), "{ended:?}");
    for name in ["payment-api", "callback-worker", "check-worker", "refund-worker", "relay"] {
        let ended = world.program(name).run(world.dir(), COMMAND).await;
        assert!(!ended.status.success() && ended.said.contains(&refusal), "{name}: {ended:?}");
    }
}
