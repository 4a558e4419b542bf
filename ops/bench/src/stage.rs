//! Everything that a measurement needs: the database, the broker, keys, and the programs on request.

use std::env;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use gateway_sim::keys::{self, SimKeys};
use gateway_sim::ledger::{Product, Trade};
use gateway_sim::{Options, Simulator};
use serde_json::Value;
use sqlx::PgPool;
use uuid::Uuid;

use crate::broker::Broker;
use crate::callbacks::Callbacks;
use crate::cli::Cli;
use crate::database::{AMOUNT_FEN, Database, order_no, trade_no};
use crate::frontend::{Frontend, Vouching};
use crate::http::{Connection, render};
use crate::progress::Progress;
use crate::service::{Service, free_address};

/// The simulator's schedules and pauses are this many times faster than the gateways' own.
const SPEED: f64 = 60.0;
/// The variables of the caller's environment that programs inherit.
const KEPT: [&str; 3] = ["PATH", "HOME", "TZ"];

/// All work under way must end within this time.
pub(crate) const QUIET: Duration = Duration::from_secs(180);

/// Every program of the service.
pub(crate) const PROGRAMS: [&str; 5] = ["payment-api", "callback-worker", "check-worker", "refund-worker", "relay"];

/// See the module.
pub(crate) struct Stage<'a> {
    pub(crate) cli: &'a Cli,
    pub(crate) dir: PathBuf,
    database: Database,
    pub(crate) db: PgPool,
    pub(crate) broker: Broker,
    pub(crate) callbacks: Callbacks,
    pub(crate) frontend: Frontend,
    simulator: Simulator,
    jwt_secret: String,
    seal_key: String,
    /// The address on which payment-api listens when it runs.
    pub(crate) api: SocketAddr,
}

/// Programs that run together.
pub(crate) struct Services(Vec<Service>);

impl<'a> Stage<'a> {
    pub(crate) async fn set_up(cli: &'a Cli, progress: &Progress) -> Result<Stage<'a>> {
        for program in PROGRAMS {
            let path = cli.bin_dir.join(program);
            if !path.is_file() {
                bail!("{} is missing: build it with --release, or use `cargo xtask bench`", path.display());
            }
        }
        progress.say("setting up: keys, database, broker");
        let name = format!("payment-bench-{}", Uuid::now_v7().simple());
        let dir = writable(cli.work_dir.as_deref(), &name)?;
        let made = Stage::fill(cli, &dir).await;
        if made.is_err() {
            // The error matters more than the files that are left.
            let _ = fs::remove_dir_all(&dir);
        }
        made
    }

    async fn fill(cli: &'a Cli, dir: &Path) -> Result<Stage<'a>> {
        keys::generate(dir, "http://127.0.0.1:9").context("making keys")?;
        let options = Options { speed: SPEED, ..Options::default() };
        let simulator = Simulator::start(dir, "127.0.0.1:0", &options).await?;
        keys::point_at(dir, &simulator.url()).context("pointing the keys at the simulator")?;
        let database = Database::create(&cli.database_url).await?;
        let filled = async {
            for task in ["migrate", "database-roles", "broker-setup"] {
                let mut command = program(cli, &database, dir, "paymentctl");
                command.env("AMQP_ADMIN_URL", &cli.amqp_admin_url);
                command.env("RABBITMQ_MANAGEMENT_URL", &cli.rabbitmq_management_url);
                printed(command, &[task])?;
            }
            let broker = Broker::set_up(&cli.amqp_admin_url).await?;
            broker.empty().await?;
            let db = database.connect().await?;
            // The load measures refunds that begin at once.
            sqlx::query("update payment_config set buyer_refunds = 'auto'").execute(&db).await?;
            Ok::<_, anyhow::Error>((broker, db, secret(), free_address()?))
        };
        match filled.await {
            Ok((broker, db, jwt_secret, api)) => {
                let (callbacks, frontend) = (Callbacks::new(SimKeys::load(dir)?), Frontend::new(&jwt_secret)?);
                let dir = dir.to_owned();
                let seal_key = secret();
                Ok(Stage { cli, dir, database, db, broker, callbacks, frontend, simulator, jwt_secret, seal_key, api })
            }
            Err(error) => {
                database.drop().await.context("dropping the run's database")?;
                Err(error)
            }
        }
    }

    /// Removes everything that the run has created.
    pub(crate) async fn tear_down(self) -> Result<()> {
        self.simulator.stop().await;
        self.db.close().await;
        let (broker, database) = (self.broker.tear_down().await, self.database.drop().await);
        fs::remove_dir_all(&self.dir).with_context(|| format!("removing {}", self.dir.display()))?;
        broker.and(database)
    }

    /// Starts programs and waits until all are ready; a name that occurs twice is started twice.
    pub(crate) async fn start(&self, names: &[&'static str]) -> Result<Services> {
        self.start_with(names, &[]).await
    }

    /// The same with additional variables.
    pub(crate) async fn start_with(&self, names: &[&'static str], variables: &[(&str, &str)]) -> Result<Services> {
        // One address makes all requests, so the limits per client are off.
        let unbound = [
            "REQUESTS_PER_ADDRESS",
            "REQUESTS_PER_USER",
            "REQUESTS_PER_KEY",
            "MAX_PENDING_PER_USER",
            "CONNECTIONS_PER_ADDRESS",
            "REQUESTS_IN_HAND",
            "STREAMS_PER_USER",
        ];
        let all: Vec<(&str, &str)> =
            unbound.into_iter().map(|budget| (budget, "0")).chain(variables.iter().copied()).collect();
        self.start_in_earnest(names, &all).await
    }

    /// Starts programs with the limits per client that apply in production.
    pub(crate) async fn start_in_earnest(
        &self,
        names: &[&'static str],
        variables: &[(&str, &str)],
    ) -> Result<Services> {
        let mut services = Services(Vec::new());
        for name in names {
            let mut command = program(self.cli, &self.database, &self.dir, name);
            // Each program uses its own login, with the rights that it has in production.
            let mut database = login(name, "DATABASE_URL")?;
            database.set_path(self.database.url.path());
            command.env("DATABASE_URL", database.as_str()).env("AMQP_URL", login(name, "AMQP_URL")?.as_str());
            command.env("LISTEN_ADDR", self.api.to_string());
            command.env("PUBLIC_URL", format!("http://{}", self.api));
            command.env("JWT_HS256_SECRET", &self.jwt_secret).env("VIEW_TOKEN_SECRET", secret());
            command.env("BUYER_PRICES", "any,offer");
            // All processes share one key; without Redis it is not used.
            command.env("SEAL_KEY", &self.seal_key).env("COPIES_KEY", COPIES_KEY);
            command.envs(variables.iter().copied());
            services.0.push(Service::start(name, command, self.dir.join(format!("{name}.log"))).await?);
        }
        Ok(services)
    }

    /// Books the trades of the inserted orders `first` to `last` as paid at the gateways, without any notice.
    pub(crate) fn book(&self, first: u32, last: u32) -> Result<()> {
        for order in first..=last {
            let product = if order % 2 == 1 { Product::Page } else { Product::Native };
            let mut trade = Trade::new(product, "main", &order_no(order), AMOUNT_FEN);
            trade.trade_no = Some(trade_no(order));
            self.simulator.book(trade.paid())?;
        }
        Ok(())
    }

    /// Removes every trade at the gateways, and sets the delay of each answer from now on.
    pub(crate) async fn reset_gateways(&self, answer_ms: u64) -> Result<()> {
        let faults = format!("{{\"api\":{{\"slow_ms\":{answer_ms}}}}}");
        for (method, path, body) in [("POST", "/sim/reset", ""), ("PUT", "/sim/faults", faults.as_str())] {
            let mut connection = Connection::open(self.simulator.address()).await?;
            let answer = connection.call(&render(method, path, &[], body.as_bytes())).await?;
            ensure!(answer.status == 200, "{method} {path} of the simulator: {answer}");
        }
        Ok(())
    }

    /// The header of a backend with an API key that reads everything.
    pub(crate) fn reader(&self) -> Result<String> {
        let add = ["keys", "add", "--name", "bench-reader", "--scopes", "payments:read", "--test"];
        Ok(format!("Bearer {}", text(&self.key_command(&add)?, "secret")?))
    }

    /// A backend that signs offers with the secret of an API key.
    pub(crate) fn vouching(&self) -> Result<Vouching> {
        let add = ["keys", "add", "--name", "bench-shop", "--scopes", "payments:orders", "--test"];
        let key_id = text(&self.key_command(&add)?, "id")?;
        let secret = text(&self.key_command(&["keys", "offer-secret", &key_id])?, "offer_secret")?;
        Ok(Vouching::new(key_id, &secret))
    }

    /// The answer of a command about API keys.
    fn key_command(&self, args: &[&str]) -> Result<Value> {
        let args = [&["--json"], args, &["--by", "bench", "--yes"]].concat();
        let mut command = program(self.cli, &self.database, &self.dir, "paymentctl");
        command.env("SEAL_KEY", &self.seal_key);
        Ok(serde_json::from_slice(&printed(command, &args)?)?)
    }

    /// The URL of the run's database.
    pub(crate) fn database_url(&self) -> &url::Url {
        &self.database.url
    }
}

impl Services {
    pub(crate) fn pids(&self) -> Vec<(&'static str, u32)> {
        self.0.iter().map(Service::pid).collect()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Service> {
        self.0.iter()
    }

    /// Stops them all, in the order in which they were started: the ingress first.
    pub(crate) async fn stop(self) -> Result<()> {
        for service in self.0 {
            service.stop().await?;
        }
        Ok(())
    }
}

/// The cached copies of a measurement need no protection.
const COPIES_KEY: &str = "6265636e63686d61726b2d636f706965732d6f662d6e6f2d76616c75652d2d21";

/// Good enough for servers that exist only during this run.
fn secret() -> String {
    format!("{}{}", Uuid::now_v7().simple(), Uuid::now_v7().simple())
}

/// A new folder in the requested place, else in the system's temporary folder.
fn writable(wanted: Option<&Path>, name: &str) -> Result<PathBuf> {
    for base in wanted.map(Path::to_owned).into_iter().chain([env::temp_dir()]) {
        let dir = base.join(name);
        if fs::create_dir(&dir).is_ok() {
            return Ok(dir);
        }
    }
    bail!("no folder can be made in {}", env::temp_dir().display())
}

/// The address of a server from the variable of a program, such as `RELAY_AMQP_URL`.
fn login(name: &str, address: &str) -> Result<url::Url> {
    let variable = format!("{}_{address}", name.to_uppercase().replace('-', "_"));
    let value = env::var(&variable).with_context(|| format!("{variable} is not set; `cargo xtask bench` sets it"))?;
    value.parse().with_context(|| format!("{variable} is no URL"))
}

/// A member of an answer of `paymentctl`.
fn text(answer: &Value, name: &str) -> Result<String> {
    answer[name].as_str().map(str::to_owned).with_context(|| format!("paymentctl answered no {name}"))
}

/// What `paymentctl` prints.
fn printed(mut command: Command, args: &[&str]) -> Result<Vec<u8>> {
    let task = args.join(" ");
    let output = command.args(args).output().with_context(|| format!("running paymentctl {task}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        bail!("paymentctl {task} failed: {}", said.trim());
    }
    Ok(output.stdout)
}

/// The log level of the programs. One line for each request costs a tenth of the ingress's throughput, so this is
/// off by default.
pub(crate) fn log_level() -> String {
    env::var("RUST_LOG").unwrap_or_else(|_| "warn".to_owned())
}

fn program(cli: &Cli, database: &Database, dir: &Path, name: &str) -> Command {
    let mut command = Command::new(cli.bin_dir.join(name));
    command.env_clear().envs(env::vars_os().filter(|(name, _)| KEPT.iter().any(|kept| name == kept)));
    command.env("DATABASE_URL", database.url.as_str()).env("GATEWAYS_FILE", dir.join("gateways.toml"));
    command.env("RUST_LOG", log_level()).current_dir(dir);
    command
}
