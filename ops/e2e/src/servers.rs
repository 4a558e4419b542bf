//! The database and the broker: those that all tests share, or a private set that one test may stop and wipe.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use runtime::service::Service;
use secrecy::ExposeSecret;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use testkit::TestBroker;
use url::Url;

use crate::http::install_crypto;
use crate::process::binaries;
use crate::unique;

/// The addresses of one database and one broker.
#[derive(Debug, Clone)]
pub struct Addresses {
    /// `DATABASE_URL`: the owner of the tables, for the deploy step and for inspection.
    pub database: String,
    /// `AMQP_URL`: a user with all rights on the service's objects; no process logs in as this user.
    pub amqp: String,
    /// `DATABASE_URL` and `AMQP_URL` of each process, with its own role and its own user.
    pub logins: Vec<(Service, String, String)>,
    /// `AMQP_ADMIN_URL`: the deploy step.
    pub admin: String,
    /// `RABBITMQ_MANAGEMENT_URL`: the deploy step.
    pub management: String,
    /// `DOWNSTREAM_AMQP_URL`: the consumer of the events.
    pub downstream: String,
    /// `REDIS_URL`: the cached copies of what the API shows.
    pub redis: String,
    /// `STANDBY_DATABASE_URL`: the owner of the tables at the standby, where there is one.
    pub standby: Option<String>,
}

impl Addresses {
    /// `DATABASE_URL` and `AMQP_URL` of a program of the service.
    ///
    /// # Panics
    /// For any other program.
    #[must_use]
    pub fn login(&self, program: &str) -> (String, String) {
        let found = self.logins.iter().find(|(service, _, _)| service.as_str() == program);
        let (_, database, amqp) = found.unwrap_or_else(|| panic!("{program} is no process of the service"));
        (database.clone(), amqp.clone())
    }
}

/// The logins of every process, read from variables.
fn logins(value_of: impl Fn(&str) -> String) -> Vec<(Service, String, String)> {
    let login = |service: &Service| {
        let variable = |address| value_of(&testkit::variable(*service, address));
        (*service, variable("DATABASE_URL"), variable("AMQP_URL"))
    };
    Service::ALL.iter().map(login).collect()
}

/// The servers of a test.
pub enum Servers {
    /// A database and a virtual host of the test's own, on the servers of the whole run.
    Shared {
        /// Deleted with this value.
        database: Database,
        /// Deleted with this value.
        broker: TestBroker,
    },
    /// The test's own servers.
    Private(PrivateServers),
}

impl Servers {
    /// An empty database and an empty virtual host.
    pub async fn shared() -> Servers {
        install_crypto();
        let database = Database::create(&testkit::env("DATABASE_URL")).await;
        let broker = TestBroker::empty().await;
        let downstream = Url::parse(&testkit::env("DOWNSTREAM_AMQP_URL")).expect("an AMQP URL");
        broker.grant(downstream.username(), [r"^test\.", r"^test\.", r"^(test\..*|payment\.events)$"]).await;
        Servers::Shared { database, broker }
    }

    /// Their addresses.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        match self {
            Servers::Shared { database, broker } => Addresses {
                database: database.url.clone(),
                amqp: broker.uri().expose_secret().to_owned(),
                logins: logins(testkit::env)
                    .into_iter()
                    .map(|(service, url, amqp)| {
                        (service, with_path(&url, &database.name), with_path(&amqp, broker.vhost()))
                    })
                    .collect(),
                admin: broker.admin_uri().expose_secret().to_owned(),
                management: testkit::env("RABBITMQ_MANAGEMENT_URL"),
                downstream: with_path(&testkit::env("DOWNSTREAM_AMQP_URL"), broker.vhost()),
                redis: testkit::env("REDIS_URL"),
                standby: None,
            },
            Servers::Private(servers) => servers.addresses.clone(),
        }
    }
}

fn with_path(url: &str, path: &str) -> String {
    let mut url = Url::parse(url).expect("a URL");
    url.set_path(path);
    url.into()
}

/// The database of one test.
pub struct Database {
    url: String,
    server: String,
    name: String,
}

impl Database {
    /// Creates an empty one on the server of `url`.
    pub async fn create(url: &str) -> Database {
        let name = format!("e2e_{}", unique());
        execute(url, format!("create database {name}")).await.expect("a database can be created");
        Database { url: with_path(url, &name), server: url.to_owned(), name }
    }

    /// Its address.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let (server, sql) = (self.server.clone(), format!("drop database if exists {} with (force)", self.name));
        // A new runtime, because the test's runtime may be shutting down. A database that cannot be dropped stays.
        let drop = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.map(|runtime| runtime.block_on(execute(&server, sql)))
        };
        let _ = thread::spawn(drop).join();
    }
}

async fn execute(url: &str, sql: String) -> Result<(), sqlx::Error> {
    let mut connection = PgConnection::connect(url).await?;
    sqlx::query(AssertSqlSafe(sql)).execute(&mut connection).await?;
    connection.close().await
}

/// PostgreSQL and RabbitMQ for one test alone, which it may stop, kill and wipe. They are shut down when this value
/// is dropped.
pub struct PrivateServers {
    xtask: PathBuf,
    dir: PathBuf,
    addresses: Addresses,
    wiped: AtomicBool,
}

impl PrivateServers {
    /// Starts one of each; this takes about ten seconds.
    pub async fn up(purpose: &str) -> PrivateServers {
        PrivateServers::up_with(purpose, &[]).await
    }

    /// The same, with `--rabbitmq-nodes 3` or `--standby`.
    pub async fn up_with(purpose: &str, more: &[&str]) -> PrivateServers {
        install_crypto();
        let xtask = std::env::var_os("PAYMENT_XTASK").map_or_else(|| binaries().join("xtask"), PathBuf::from);
        // Beside the servers of this run, so that `cargo xtask down` finds what a killed test leaves behind.
        let shared = PathBuf::from(testkit::env("PAYMENT_SERVERS_DIR"));
        let dir = shared.parent().unwrap_or(Path::new("/tmp")).join(format!("e2e-{purpose}-{}", std::process::id()));
        let unknown = String::new;
        let addresses = Addresses {
            database: unknown(),
            amqp: unknown(),
            logins: Vec::new(),
            admin: unknown(),
            management: unknown(),
            downstream: unknown(),
            redis: unknown(),
            standby: None,
        };
        // If a step below fails, `Drop` shuts down what was started.
        let mut servers = PrivateServers { xtask, dir, addresses, wiped: AtomicBool::new(false) };
        let like = shared.display().to_string();
        let up = ["up", "--fresh", "--no-install", "--print-env", "--like", &like];
        let said = servers.xtask(&[up.as_slice(), more].concat()).await;
        let value_of = |name: &str| said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        let variable = |name: &str| value_of(name).unwrap_or_else(|| panic!("xtask up printed no {name}")).to_owned();
        servers.addresses = Addresses {
            database: variable("DATABASE_URL"),
            amqp: variable("AMQP_URL"),
            logins: logins(variable),
            admin: variable("AMQP_ADMIN_URL"),
            management: variable("RABBITMQ_MANAGEMENT_URL"),
            downstream: variable("DOWNSTREAM_AMQP_URL"),
            redis: variable("REDIS_URL"),
            standby: value_of("STANDBY_DATABASE_URL").map(str::to_owned),
        };
        servers
    }

    /// Runs an action (`start`, `stop`, `kill`, `pause`, `resume`, `wipe`) on one server (`postgres`, `rabbitmq`,
    /// `rabbitmq-2`, …).
    pub async fn server(&self, action: &str, kind: &str) {
        if action == "wipe" {
            self.wiped.store(true, Ordering::Relaxed);
        }
        self.xtask(&["server", action, kind]).await;
    }

    /// Runs rabbitmqctl for this broker.
    pub async fn rabbitmqctl(&self, args: &[&str]) {
        self.rabbitmqctl_on("rabbitmq", args).await;
    }

    /// Runs rabbitmqctl for one node of a cluster.
    pub async fn rabbitmqctl_on(&self, node: &str, args: &[&str]) {
        let mut command = Command::new(&self.xtask);
        command.args(["rabbitmqctl", "--node", node, "--dir"]).arg(&self.dir).arg("--").args(args).stdin(Stdio::null());
        self.run(command).await;
    }

    /// The folder of the servers.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Runs xtask for these servers through the command `enter`, for example inside a namespace.
    pub(crate) async fn in_place(&self, mut enter: Command, args: &[&str]) {
        enter.arg(&self.xtask).args(args).arg("--dir").arg(&self.dir).stdin(Stdio::null());
        self.run(enter).await;
    }

    /// Whether a server was wiped.
    #[must_use]
    pub fn was_wiped(&self) -> bool {
        self.wiped.load(Ordering::Relaxed)
    }

    async fn xtask(&self, args: &[&str]) -> String {
        self.run(self.command(args)).await
    }

    async fn run(&self, mut command: Command) -> String {
        let what = format!("{command:?}");
        let ended = tokio::task::spawn_blocking(move || command.output()).await.expect("no panic");
        let output = ended.unwrap_or_else(|error| panic!("{}: {error}", self.xtask.display()));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{what}: {errors}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.xtask);
        command.args(args).arg("--dir").arg(&self.dir).stdin(Stdio::null());
        command
    }
}

impl Drop for PrivateServers {
    fn drop(&mut self) {
        // What cannot be shut down stays for `cargo xtask down`.
        let _ = self.command(&["down"]).output();
        let _ = fs::remove_dir_all(&self.dir);
    }
}
