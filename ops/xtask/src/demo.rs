//! `cargo xtask demo`: the whole system on this machine, from a shop's page to the event that the shop waits for.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    thread::sleep,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::Value;

use crate::{
    apps::{Apps, Ready},
    cargo::{self, Profile, must},
    files::write_private,
    ports,
    running::{Running, Servers},
    servers::{Kind, Source, logins::LOGINS, postgres},
    ui::{check_stop, say},
};

/// The variables of the caller's environment that programs inherit.
const KEPT: [&str; 7] = ["PATH", "HOME", "LANG", "TZ", "TERM", "RUST_LOG", "RUST_BACKTRACE"];
/// Secrets that only the deploy step may know: those of the owner of the tables and of the user who declares
/// objects and grants rights.
const DEPLOY_ONLY: [&str; 3] = ["DATABASE_URL", "AMQP_ADMIN_URL", "RABBITMQ_MANAGEMENT_URL"];
/// Only tests of single parts log in with this; no program of the demo does.
const TESTS_ONLY: &str = "AMQP_URL";
/// Variables that the shop and the gateways must not see: in production, other parties run those.
const SERVICE_ONLY: [&str; 5] = ["REDIS_URL", "VIEW_TOKEN_SECRET", "SEAL_KEY", "COPIES_KEY", "GATEWAYS_FILE"];

/// What only the shop's backend knows.
const SHOP_ONLY: [&str; 3] = ["SHOP_API_KEY", "SHOP_OFFER_SECRET", "SHOP_KEY_ID"];

/// How to run the demo.
#[derive(Debug, Args)]
pub struct Demo {
    /// Play one purchase and one refund at each gateway without a browser, print the events and exit: 0 only if all
    /// events arrived.
    #[arg(long)]
    once: bool,
    /// Build and run optimized programs; the first build takes longer.
    #[arg(long)]
    release: bool,
    /// The simulator repeats its callbacks this many times faster than the real gateways.
    #[arg(long, default_value_t = 60)]
    speed: u32,
    #[command(flatten)]
    source: Source,
    /// Build nothing: run the programs in this folder.
    #[arg(long, conflicts_with = "release")]
    bin_dir: Option<PathBuf>,
}

/// The workers, each with the usual port of its metrics.
const WORKERS: [(&str, u16); 4] =
    [("callback-worker", 9101), ("relay", 9102), ("check-worker", 9103), ("refund-worker", 9104)];

/// The ports of all programs.
#[derive(Debug)]
struct Addresses {
    shop: u16,
    api: u16,
    api_ops: u16,
    simulator: u16,
    /// The ports of the workers' metrics.
    workers: Vec<(&'static str, u16)>,
}

impl Addresses {
    /// Ports that are easy to remember, where they are free.
    fn usual() -> Result<Addresses> {
        let port = ports::usual_or_free;
        Ok(Addresses {
            shop: port(3000)?,
            api: port(8080)?,
            api_ops: port(9100)?,
            simulator: port(7000)?,
            workers: WORKERS.iter().map(|(name, usual)| Ok((*name, port(*usual)?))).collect::<Result<_>>()?,
        })
    }

    fn free() -> Result<Addresses> {
        let ports = ports::free(4 + WORKERS.len())?;
        let [shop, api, api_ops, simulator, workers @ ..] = &ports[..] else {
            unreachable!("more than four ports were asked for")
        };
        let workers = WORKERS.iter().zip(workers).map(|((name, _), port)| (*name, *port)).collect();
        Ok(Addresses { shop: *shop, api: *api, api_ops: *api_ops, simulator: *simulator, workers })
    }
}

/// Runs the demo until Ctrl-C, or once.
pub fn run(demo: &Demo) -> Result<ExitCode> {
    let binaries = match &demo.bin_dir {
        Some(folder) => std::path::absolute(folder)?,
        None => build(if demo.release { Profile::Release } else { Profile::Dev })?,
    };
    let purpose = if demo.once { "demo-once" } else { "demo" };
    let mut running = Running::up(purpose, Servers::Own, &Kind::ALL, &demo.source)?;
    // From here on a failure leaves the logs in place.
    running.keep_logs();
    let addresses = if demo.once { Addresses::free()? } else { Addresses::usual()? };
    let mut stage = Stage::new(&running, binaries, addresses)?;
    let mut apps = Apps::new(&stage.dir)?;
    stage.prepare()?;
    stage.open_shop()?;
    stage.lift_rules(&running)?;
    stage.start(&mut apps, demo.speed)?;

    let code = if demo.once { stage.play_once(&apps)? } else { stage.show(&apps)? };
    apps.stop();
    if code == ExitCode::SUCCESS {
        running.forget_logs();
    }
    Ok(code)
}

fn build(profile: Profile) -> Result<PathBuf> {
    let name = if profile == Profile::Release { "release" } else { "dev" };
    say("build", format_args!("cargo build --bins ({name} profile)"));
    cargo::build_binaries(profile)
}

/// The programs, their variables and their folder.
#[derive(Debug)]
struct Stage {
    dir: PathBuf,
    binaries: PathBuf,
    addresses: Addresses,
    env: BTreeMap<&'static str, String>,
}

/// An RFC 3339 time.
fn in_thirty_days() -> Result<String> {
    let date =
        Command::new("date").args(["-u", "-d", "+30 days", "+%FT%TZ"]).output().context("`date` does not run")?;
    Ok(String::from_utf8(date.stdout)?.trim().to_owned())
}

impl Stage {
    fn new(running: &Running, binaries: PathBuf, addresses: Addresses) -> Result<Stage> {
        let dir = running.set.dir.clone();
        let mut env: BTreeMap<&'static str, String> = running.set.env()?.into_iter().collect();
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        env.insert("GATEWAYS_FILE", gateways(&dir).join("gateways.toml").display().to_string());
        env.insert("PUBLIC_URL", url(addresses.api));
        env.insert("RETURN_URL_ORIGINS", url(addresses.shop));
        env.insert("API_URL", url(addresses.api));
        env.insert("SIM_URL", url(addresses.simulator));
        env.insert("SHOP_URL", url(addresses.shop));
        env.insert("JWT_HS256_SECRET", ports::secret()?);
        env.insert("JWT_ISSUER", "payment".into());
        env.insert("JWT_AUDIENCE", "payment-api".into());
        // The demo has no sign-in for people, so a token of the shop's issuer names them.
        env.insert("USER_ADMIN_TOKENS_UNTIL", in_thirty_days()?);
        env.insert("VIEW_TOKEN_SECRET", ports::secret()?);
        env.insert("SEAL_KEY", ports::key()?);
        env.insert("COPIES_KEY", ports::key()?);
        Ok(Stage { dir, binaries, addresses, env })
    }

    /// What a deployment does once: it creates tables, topology and keys.
    fn prepare(&self) -> Result<()> {
        say("paymentctl", "migrate: the tables");
        self.run_quietly("paymentctl", &["migrate"])?;
        say("paymentctl", "database-roles: what each process may do to them");
        self.run_quietly("paymentctl", &["database-roles"])?;
        say("paymentctl", "broker-setup: exchanges, queues, policies, and what each process may do there");
        self.run_quietly("paymentctl", &["broker-setup"])?;
        say("gateway-sim", "keygen: keys of two gateways and a merchant");
        let (folder, url) = (gateways(&self.dir), format!("http://127.0.0.1:{}", self.addresses.simulator));
        fs::create_dir_all(&folder)?;
        let folder = folder.to_str().context("the temporary folder's path is not text")?;
        self.run_quietly("gateway-sim", &["keygen", "--dir", folder, "--url", &url])
    }

    /// Makes an API key for the shop's backend, and a secret with which it signs offers.
    fn open_shop(&mut self) -> Result<()> {
        say("paymentctl", "keys add: an API key of the shop's backend, which signs the prices");
        let key = ["keys", "add", "--name", "demo-shop", "--scopes", "payments:orders,payments:read", "--test"];
        let key = self.answer_of(&[&key[..], &["--yes"]].concat())?;
        let text = |answer: &Value, name: &str| {
            answer[name].as_str().map(str::to_owned).with_context(|| format!("paymentctl answered no {name}"))
        };
        let id = text(&key, "id")?;
        let offers = self.answer_of(&["keys", "offer-secret", &id, "--yes"])?;
        self.env.insert("SHOP_API_KEY", text(&key, "secret")?);
        self.env.insert("SHOP_OFFER_SECRET", text(&offers, "offer_secret")?);
        self.env.insert("SHOP_KEY_ID", id);
        Ok(())
    }

    /// What paymentctl answers to a command, which it signs with the name `demo`.
    fn answer_of(&self, args: &[&str]) -> Result<Value> {
        let mut command = self.program("paymentctl", None, None)?;
        command.args(["--json", "--operator", "demo"]).args(args);
        let done = command.output().context("starting paymentctl")?;
        ensure!(done.status.success(), "paymentctl failed: {}", String::from_utf8_lossy(&done.stderr));
        serde_json::from_slice(&done.stdout).context("the answer of paymentctl is no JSON")
    }

    /// Lets the demo's buyer make refunds alone. A fresh installation lets buyers make requests, which a person approves.
    fn lift_rules(&self, running: &Running) -> Result<()> {
        let file = self.dir.join("rules.sql");
        fs::write(&file, "update payment_config set buyer_refunds = 'auto';")?;
        say("rules", "buyers make refunds alone");
        running.set.sql_file(postgres::DATABASE, &file, true)
    }

    fn start(&self, apps: &mut Apps, speed: u32) -> Result<()> {
        let at = &self.addresses;
        let ready = |port| Ready { port, path: "/readyz" };
        let mut simulator = self.program("gateway-sim", Some(at.simulator), None)?;
        simulator.args(["serve", "--dir"]).arg(gateways(&self.dir));
        simulator.args(["--listen", &listen(at.simulator), "--speed", &speed.to_string()]);
        apps.start("gateway-sim", &mut simulator)?;
        for (name, port) in &at.workers {
            apps.start(name, &mut self.program(name, None, Some(*port))?)?;
        }
        apps.start("payment-api", self.program("payment-api", Some(at.api), Some(at.api_ops))?.arg("serve"))?;
        apps.wait_ready("gateway-sim", Ready { port: at.simulator, path: "/healthz" })?;
        for (name, port) in &at.workers {
            apps.wait_ready(name, ready(*port))?;
        }
        apps.wait_ready("payment-api", ready(at.api_ops))?;
        apps.start("shop", self.program("shop", Some(at.shop), None)?.arg("serve"))?;
        apps.wait_ready("shop", Ready { port: at.shop, path: "/healthz" })
    }

    /// Prints all addresses and waits until a person asks to stop.
    fn show(&self, apps: &Apps) -> Result<ExitCode> {
        let at = &self.addresses;
        let metrics: String = at
            .workers
            .iter()
            .map(|(name, port)| format!("                   http://127.0.0.1:{port}/metrics ({name})\n"))
            .collect();
        println!(
            "\n  The shop         http://127.0.0.1:{}\n  \
               The API          http://127.0.0.1:{}/docs\n  \
               The simulator    http://127.0.0.1:{}\n  \
               Metrics          http://127.0.0.1:{}/metrics (payment-api)\n{}  \
               Logs             {}\n  \
               Variables        {}\n\n\
             Ctrl-C stops everything.\n",
            at.shop,
            at.api,
            at.simulator,
            at.api_ops,
            metrics,
            self.dir.join("logs").display(),
            self.write_env()?.display()
        );
        while check_stop().is_ok() {
            apps.check()?;
            sleep(Duration::from_millis(200));
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Lets the shop buy something at each gateway and refund it; the shop's exit code is the result.
    fn play_once(&self, apps: &Apps) -> Result<ExitCode> {
        say("shop", "one purchase and one refund at each gateway");
        let status = cargo::finish(self.program("shop", None, None)?.arg("once"))?;
        apps.check()?;
        if !status.success() {
            say("shop", format_args!("not everything arrived; logs in {}", self.dir.join("logs").display()));
        }
        Ok(cargo::exit_code(status))
    }

    /// A program that gets only the addresses it needs, and of the caller's environment only a few variables such
    /// as the log level.
    fn program(&self, name: &str, listens: Option<u16>, ops: Option<u16>) -> Result<Command> {
        let mut program = Command::new(cargo::binary(&self.binaries, name)?);
        let kept = std::env::vars_os().filter(|(name, _)| KEPT.iter().any(|kept| name == kept));
        let mut env = self.env.clone();
        env.retain(|name, _| !DEPLOY_ONLY.contains(name) && *name != TESTS_ONLY);
        if ["shop", "gateway-sim"].contains(&name) {
            env.retain(|name, _| !SERVICE_ONLY.contains(name));
        }
        if name != "shop" {
            env.retain(|name, _| !SHOP_ONLY.contains(name));
        }
        if let (Some(url), "shop") = (env.remove("DOWNSTREAM_AMQP_URL"), name) {
            env.insert("AMQP_URL", url);
        }
        // Each program gets its own user and its own role, and no other's.
        for login in &LOGINS {
            let own = (env.remove(login.database_url), env.remove(login.amqp_url));
            if let ((Some(database), Some(broker)), true) = (own, login.program == name) {
                env.insert("DATABASE_URL", database);
                env.insert("AMQP_URL", broker);
            }
        }
        program.env_clear().envs(kept).envs(env).current_dir(&self.dir);
        program.envs(listens.map(|port| ("LISTEN_ADDR", listen(port))));
        program.envs(ops.map(|port| ("OPS_ADDR", listen(port))));
        Ok(program)
    }

    /// Runs a program until it ends; its output is shown only if it fails.
    fn run_quietly(&self, name: &str, args: &[&str]) -> Result<()> {
        let path = self.dir.join("logs").join(format!("{name}-{}.log", args[0]));
        fs::create_dir_all(self.dir.join("logs"))?;
        let log = fs::File::create(&path)?;
        let mut command = self.program(name, None, None)?;
        if name == "paymentctl" {
            command.envs(self.env.iter().filter(|(name, _)| DEPLOY_ONLY.contains(name)));
        }
        let failed = format!("{name} {} failed", args[0]);
        must(&failed, command.args(args).stdout(log.try_clone()?).stderr(log))
            .with_context(|| crate::process::tail(&path, 30))
    }

    /// Writes the variables of the programs to a file, so that a person can try a command by hand.
    fn write_env(&self) -> Result<PathBuf> {
        let path = self.dir.join("env");
        let lines: Vec<String> = self.env.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
        write_private(&path, &lines.concat())?;
        ensure!(path.is_file(), "{} was not written", path.display());
        Ok(path)
    }
}

fn gateways(dir: &Path) -> PathBuf {
    dir.join("gateways")
}

fn listen(port: u16) -> String {
    format!("127.0.0.1:{port}")
}
