//! The tool behind the project's two commands, `cargo xtask demo` and `cargo xtask test`.
//!
//! Both need PostgreSQL, RabbitMQ and Redis. This tool starts private instances of the three ([`servers`]) and
//! stops them again. It never touches a server that it did not start.

mod apps;
mod cargo;
mod demo;
mod dotenv;
mod drill;
mod files;
mod http;
mod ports;
mod prepare;
mod process;
mod rundir;
mod running;
mod servers;
mod supply;
mod test;
mod ui;
mod user;

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use cargo::Profile;
use running::{Running, Servers};
use servers::{Action, Kind, Set, Source, Start, Stop};

/// Runs the payment service and its tests on private servers.
///
/// PostgreSQL, RabbitMQ and Redis are found on this machine, or installed from its packages (as root or with
/// passwordless sudo), or run by Docker Compose. They listen on free loopback ports, store their data in a folder
/// of this checkout under the temporary folder, and are stopped by this tool.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Run the whole system until Ctrl-C: servers, simulator, service, and a shop to buy from.
    Demo(demo::Demo),
    /// Check and test everything, on private servers.
    Test(test::Test),
    /// Run the drills of ops/degraded-modes.md on private servers: every outage, under load.
    Drill(drill::Drill),
    /// Write the data in .sqlx from which checked queries compile without a database.
    Prepare(Prepare),
    /// Check every dependency: known vulnerabilities, licences, sources (deny.toml). Part of `test`.
    Deny,
    /// Write the copy of known vulnerabilities again, for machines without a network.
    Advisories(supply::Advisories),
    /// Write a list of everything that is built in (CycloneDX, a file for each crate) into target/sbom.
    Sbom,
    /// Measure: start servers, build optimized programs, run ops/bench with the arguments after `--`.
    Bench(Bench),
    /// Start PostgreSQL, RabbitMQ and Redis and leave them running, for `--reuse` and for manual work.
    Up(Up),
    /// Stop what `up` started and remove its data.
    Down(Down),
    /// Show which servers of this checkout run, and their addresses.
    Status(Dir),
    /// Print the variables with the addresses of the servers of `up`: `export $(cargo xtask env)`.
    Env(Dir),
    /// Create the broker's users of the …AMQP_URL variables (from the environment or .env) in a RabbitMQ that you
    /// run yourself on this machine, such as docker-compose.yml's. Then `paymentctl broker-setup` grants them
    /// their rights.
    BrokerUsers,
    /// Print the SQL that creates the roles of the …_DATABASE_URL variables (from the environment or .env), for the
    /// psql of a PostgreSQL that you run yourself. Then `paymentctl database-roles` grants them their rights.
    RoleSql,
    /// Stop or start one server of a set, for tests of an outage.
    #[command(hide = true)]
    Server(Server),
    /// Run rabbitmqctl for the broker of a set.
    #[command(hide = true)]
    Rabbitmqctl(Rabbitmqctl),
}

#[derive(Debug, Args)]
struct Dir {
    /// Folder of the servers, instead of this checkout's own.
    #[arg(long)]
    dir: Option<PathBuf>,
}

impl Dir {
    fn path(&self) -> Result<PathBuf> {
        match &self.dir {
            Some(dir) => Ok(std::path::absolute(dir)?),
            None => rundir::for_purpose("up"),
        }
    }
}

#[derive(Debug, Args)]
struct Up {
    #[command(flatten)]
    dir: Dir,
    /// Delete the data of an earlier `up` first.
    #[arg(long)]
    fresh: bool,
    /// Print the variables with the addresses of the servers, as KEY=VALUE lines on standard output.
    #[arg(long)]
    print_env: bool,
    /// Run RabbitMQ as a cluster of this many nodes on this machine.
    #[arg(long, value_name = "1|3", default_value_t = 1, value_parser = nodes)]
    rabbitmq_nodes: u8,
    /// Run a synchronous standby of PostgreSQL: without it, no commit is confirmed.
    #[arg(long)]
    standby: bool,
    /// Use the same releases as the servers in this folder, for a test that needs private servers.
    #[arg(long, hide = true, conflicts_with_all = ["postgres", "rabbitmq"])]
    like: Option<PathBuf>,
    #[command(flatten)]
    source: Source,
}

/// Two nodes could lose none: a majority is needed.
fn nodes(text: &str) -> Result<u8, String> {
    match text {
        "1" => Ok(1),
        "3" => Ok(3),
        _ => Err("a cluster here has three nodes, or one".to_owned()),
    }
}

#[derive(Debug, Args)]
struct Down {
    #[command(flatten)]
    dir: Dir,
    /// Keep the data for the next `up`.
    #[arg(long)]
    keep: bool,
}

#[derive(Debug, Args)]
struct Prepare {
    /// Only compare, and fail with a list of all differences.
    #[arg(long)]
    check: bool,
    /// Use the servers of `cargo xtask up`.
    #[arg(long)]
    reuse: bool,
    /// Do not install anything.
    #[arg(long)]
    no_install: bool,
}

#[derive(Debug, Args)]
struct Bench {
    /// Use the servers of `cargo xtask up`.
    #[arg(long)]
    reuse: bool,
    #[command(flatten)]
    source: Source,
    /// Arguments of the load tool.
    #[arg(last = true)]
    args: Vec<String>,
}

#[derive(Debug, Args)]
struct Server {
    /// The action.
    action: Action,
    /// The server.
    kind: Kind,
    #[command(flatten)]
    dir: Dir,
}

#[derive(Debug, Args)]
struct Rabbitmqctl {
    /// The node of a cluster.
    #[arg(long, default_value_t = Kind::Rabbitmq)]
    node: Kind,
    #[command(flatten)]
    dir: Dir,
    /// Arguments of rabbitmqctl.
    #[arg(last = true)]
    args: Vec<String>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Before any build: a build may replace this file.
    let xtask = std::env::current_exe().unwrap_or_else(|_| "xtask".into());
    match ui::begin().and_then(|()| run(cli.command, &xtask)) {
        Ok(code) => code,
        Err(error) if error.is::<ui::Stopped>() => {
            ui::say("xtask", "stopped on request");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task, xtask: &Path) -> Result<ExitCode> {
    match task {
        Task::Demo(demo) => return demo::run(&demo),
        Task::Test(test) => return test::run(&test, xtask),
        Task::Drill(drill) => return drill::run(&drill, xtask),
        Task::Prepare(task) => prepare(&task)?,
        Task::Deny => supply::check()?,
        Task::Advisories(advisories) => supply::copy(&advisories)?,
        Task::Sbom => supply::list()?,
        Task::Bench(bench) => return self::bench(&bench, xtask),
        Task::Up(up) => self::up(&up)?,
        Task::Down(down) => self::down(&down)?,
        Task::Status(dir) => return status(&dir),
        Task::Env(dir) => print_env(&Set::open(&dir.path()?)?)?,
        Task::BrokerUsers => dotenv::create_users()?,
        Task::RoleSql => dotenv::print_roles()?,
        Task::Server(server) => Set::open(&server.dir.path()?)?.control(server.kind, server.action)?,
        Task::Rabbitmqctl(task) => return rabbitmqctl(&task),
    }
    Ok(ExitCode::SUCCESS)
}

fn up(up: &Up) -> Result<()> {
    let start = if up.fresh { Start::Fresh } else { Start::Reuse };
    let mut source = up.source.clone();
    if let Some(dir) = &up.like {
        source.releases = Set::open(dir)?.releases;
    }
    let mut kinds = Kind::ALL.to_vec();
    kinds.extend((up.rabbitmq_nodes > 1).then_some(Kind::CLUSTER).into_iter().flatten());
    kinds.extend(up.standby.then_some(Kind::Standby));
    let set = Set::up(&up.dir.path()?, start, &kinds, &source)?;
    if up.print_env {
        return print_env(&set);
    }
    ui::say("servers", format_args!("running until `cargo xtask down`; data and logs in {}", set.dir.display()));
    ui::say("servers", "their addresses and passwords: `cargo xtask env`");
    Ok(())
}

fn down(down: &Down) -> Result<()> {
    let dir = down.dir.path()?;
    take_down(&dir, down.keep)?;
    if down.dir.dir.is_none() {
        for (dir, _owned) in running::abandoned()? {
            ui::say("servers", format_args!("left behind by a killed run: {}", dir.display()));
            apps::stop_left_behind(&dir)?;
            take_down(&dir, false)?;
        }
    }
    Ok(())
}

fn take_down(dir: &Path, keep: bool) -> Result<()> {
    rundir::claim(dir)?;
    let _lock = rundir::Lock::wait(dir)?;
    let Ok(set) = Set::open(dir) else {
        ui::say("servers", format_args!("none in {}", dir.display()));
        return Ok(());
    };
    set.stop_all(if keep { Stop::Keep } else { Stop::Discard })?;
    if !keep {
        set.remove()?;
    }
    ui::say("servers", "stopped");
    Ok(())
}

fn status(dir: &Dir) -> Result<ExitCode> {
    let dir = dir.path()?;
    println!("folder     {}", dir.display());
    let Ok(set) = Set::open(&dir) else {
        println!("servers    none: start them with `cargo xtask up`");
        return Ok(ExitCode::FAILURE);
    };
    let mut all_run = true;
    let more = set.recorded().into_iter().filter(|kind| !Kind::ALL.contains(kind));
    for kind in Kind::ALL.into_iter().chain(more) {
        let runs = set.is_running(kind);
        all_run &= runs;
        let word = if runs { "running" } else { "stopped" };
        let port = set.record(kind).and_then(|record| record.port("main"));
        let address = port.map(|port| format!("127.0.0.1:{port}")).unwrap_or_default();
        println!("{:<10} {word}  {address}", kind.to_string());
    }
    Ok(if all_run { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn prepare(task: &Prepare) -> Result<()> {
    let source = Source { no_install: task.no_install, ..Source::default() };
    // One database is enough, but `up` always runs all three servers.
    let kinds = if task.reuse { &Kind::ALL[..] } else { &[Kind::Postgres] };
    let running = Running::up("prepare", servers_of(task.reuse), kinds, &source)?;
    if task.check { prepare::check(&running.set) } else { prepare::write(&running.set) }
}

fn bench(bench: &Bench, xtask: &Path) -> Result<ExitCode> {
    ui::say("build", "cargo build --release --bins");
    let binaries = cargo::build_binaries(Profile::Release)?;
    let running = Running::up("bench", servers_of(bench.reuse), &Kind::ALL, &bench.source)?;
    let env = test::environment(&running.set, &binaries, xtask)?;
    let status = cargo::finish(Command::new(cargo::binary(&binaries, "bench")?).args(&bench.args).envs(env))?;
    Ok(cargo::exit_code(status))
}

fn servers_of(reuse: bool) -> Servers {
    if reuse { Servers::OfUp } else { Servers::Own }
}

fn print_env(set: &Set) -> Result<()> {
    for (name, value) in set.env()? {
        println!("{name}={value}");
    }
    Ok(())
}

fn rabbitmqctl(task: &Rabbitmqctl) -> Result<ExitCode> {
    let status = Set::open(&task.dir.path()?)?.rabbitmqctl(task.node)?.args(&task.args).status()?;
    Ok(cargo::exit_code(status))
}
