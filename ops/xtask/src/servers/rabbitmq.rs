//! A private RabbitMQ: one small node with its own port mapper, the management plug-in and its users. Or three such
//! nodes in one cluster, with a port mapper that outlives each of them.

use std::{
    path::Path,
    process::{Child, Command},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::json;

use crate::http::{Request, connect};

use super::{
    Kind, find,
    logins::{COOKIE, DEPLOY, DOWNSTREAM, LOGINS, SERVICE},
    record::Record,
    server::{Place, Server, Stop},
};

/// The rights of the users that the deploy step does not manage (regular expressions).
const RIGHTS: [Rights; 2] = [
    Rights { user: SERVICE, configure: r"^payment\.", write: r"^(payment\.|amq\.default)", read: r"^payment\." },
    Rights {
        user: DOWNSTREAM,
        configure: r"^(shop|downstream|bench|test)\..*",
        write: r"^(shop|downstream|bench|test)\..*",
        read: r"^((shop|downstream|bench|test)\..*|payment\.events$)",
    },
];

#[derive(Debug, Clone, Copy)]
struct Rights {
    user: &'static str,
    configure: &'static str,
    write: &'static str,
    read: &'static str,
}

/// RabbitMQ as a native server.
#[derive(Debug)]
pub struct Rabbitmq {
    /// Its programs.
    pub programs: find::Rabbitmq,
}

impl Rabbitmq {
    /// A command of RabbitMQ's own, with all the variables that distinguish this node from others.
    fn script(&self, place: &Place, record: &Record, name: &str) -> Result<Command> {
        let home = &place.home;
        let mut command = place.command(&self.programs.sbin.join(name), &self.programs.usr);
        command
            .env("HOME", home)
            .env("RABBITMQ_NODENAME", node_name(&place.dir, record.kind))
            .env("RABBITMQ_CONFIG_FILE", home.join("rabbitmq.conf"))
            .env("RABBITMQ_ADVANCED_CONFIG_FILE", home.join("advanced.config"))
            .env("RABBITMQ_CONF_ENV_FILE", home.join("rabbitmq-env.conf"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", home.join("enabled_plugins"))
            .env("RABBITMQ_MNESIA_BASE", home.join("data"))
            .env("RABBITMQ_LOG_BASE", home.join("log"))
            .env("RABBITMQ_GENERATED_CONFIG_DIR", home.join("config"))
            .env("RABBITMQ_DIST_PORT", record.port("distribution")?.to_string())
            .env("ERL_EPMD_PORT", epmd_port(place, record)?.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("ERL_CRASH_DUMP_BYTES", "0");
        Ok(command)
    }

    /// Starts the port mapper in the foreground: a port mapper that the node starts would outlive the node and this
    /// tool.
    fn launch_epmd(&self, place: &Place, port: u16, record: &mut Record) -> Result<Child> {
        let mut epmd = place.command(&self.programs.epmd, &self.programs.usr);
        epmd.env("HOME", &place.home).args(["-address", "127.0.0.1", "-port"]).arg(port.to_string());
        place.launch("1-epmd", &mut epmd, record)
    }

    /// `rabbitmqctl` for this node.
    pub fn ctl(&self, place: &Place, record: &Record) -> Result<Command> {
        self.script(place, record, "rabbitmqctl")
    }
}

impl Server for Rabbitmq {
    fn create(&self, place: &Place, record: &mut Record) -> Result<()> {
        if record.kind != Kind::Rabbitmq {
            // One cluster has one cookie and the same users.
            record.secrets = first(place)?.secrets;
        }
        let cookie = place.home.join(".erlang.cookie");
        place.run_as.write(&cookie, record.secret(COOKIE)?)
    }

    fn launch(&self, place: &Place, record: &mut Record) -> Result<()> {
        let write = |name: &str, text: &str| place.run_as.write(&place.home.join(name), text);
        write("enabled_plugins", "[rabbitmq_management].\n")?;
        write("rabbitmq-env.conf", "# Empty, so that the machine's own is not read.\n")?;
        // The first setting: the management plug-in learns quickly of a quorum queue's policy, for which
        // broker-setup waits. The second: a node that is cut off from the others stops serving instead of acting as
        // a separate broker.
        let alone = if is_clustered(place) { ", {cluster_partition_handling, pause_minority}" } else { "" };
        write("advanced.config", &format!("[{{rabbit, [{{quorum_tick_interval, 1000}}{alone}]}}].\n"))?;
        let first_node = node_name(&place.dir, Kind::Rabbitmq);
        let joins = if record.kind == Kind::Rabbitmq { String::new() } else { joins(&first_node) };
        write("rabbitmq.conf", &(settings(record)? + &joins))?;
        if !is_clustered(place) {
            self.launch_epmd(place, record.port("epmd")?, record)?;
        }

        let mut server = self.script(place, record, "rabbitmq-server")?;
        server
            // The script then becomes the node instead of waiting for it, so there is only one process to record
            // and stop.
            .env("RUNNING_UNDER_SYSTEMD", "true")
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-kernel inet_dist_use_interface {127,0,0,1}");
        place.launch("2-rabbitmq", &mut server, record).map(drop)
    }

    fn is_ready(&self, record: &Record) -> Result<bool> {
        Ok(admin(record)?.manage("GET", "/api/overview", "").is_ok() && speaks_amqp(record.port("main")?))
    }

    fn finish(&self, place: &Place, record: &Record) -> Result<()> {
        if record.kind == Kind::Rabbitmq {
            return create_users(record);
        }
        let known = admin(&first(place)?)?.manage("GET", "/api/nodes", "")?;
        let name = node_name(&place.dir, record.kind);
        ensure!(known.contains(&name), "{name} has not joined the cluster");
        Ok(())
    }

    fn stop_signal(&self, stop: Stop) -> (Signal, Duration) {
        match stop {
            Stop::Keep => (Signal::TERM, Duration::from_secs(30)),
            // A clean stop takes six seconds, for data that is not needed.
            Stop::Discard => (Signal::KILL, Duration::from_secs(5)),
        }
    }
}

/// The port mapper of a cluster.
#[derive(Debug)]
pub struct Epmd(pub Rabbitmq);

impl Server for Epmd {
    fn create(&self, _: &Place, _: &mut Record) -> Result<()> {
        Ok(())
    }

    fn launch(&self, place: &Place, record: &mut Record) -> Result<()> {
        self.0.launch_epmd(place, record.port("main")?, record).map(drop)
    }

    fn is_ready(&self, record: &Record) -> Result<bool> {
        Ok(connect(record.port("main")?).is_ok())
    }

    fn finish(&self, _: &Place, _: &Record) -> Result<()> {
        Ok(())
    }

    fn stop_signal(&self, _: Stop) -> (Signal, Duration) {
        (Signal::TERM, Duration::from_secs(5))
    }
}

fn is_clustered(place: &Place) -> bool {
    Record::load(&place.dir, Kind::Epmd).is_some()
}

/// The port of the cluster's port mapper, or of this node's own.
fn epmd_port(place: &Place, record: &Record) -> Result<u16> {
    match Record::load(&place.dir, Kind::Epmd) {
        Some(epmd) => epmd.port("main"),
        None => record.port("epmd"),
    }
}

/// The node that the others join.
fn first(place: &Place) -> Result<Record> {
    Record::load(&place.dir, Kind::Rabbitmq).context("there is no first node to join")
}

/// Creates all users except the deploy user, which the node creates itself at its first start.
pub fn create_users(record: &Record) -> Result<()> {
    let mut names = RIGHTS.iter().map(|rights| rights.user).chain(LOGINS.iter().map(|login| login.user));
    names.try_for_each(|name| create_user(&admin(record)?, name, record.secret(name)?))
}

/// Creates or changes one of the users. The user of a process has no rights yet: the deploy step grants them.
pub fn create_user(admin: &Login<'_>, name: &str, password: &str) -> Result<()> {
    admin.manage("PUT", &format!("/api/users/{name}"), &json!({ "password": password, "tags": "" }).to_string())?;
    let Some(rights) = RIGHTS.iter().find(|rights| rights.user == name) else { return Ok(()) };
    let permissions = json!({ "configure": rights.configure, "write": rights.write, "read": rights.read });
    admin.manage("PUT", &format!("/api/permissions/%2F/{name}"), &permissions.to_string()).map(drop)
}

/// A user of the management plug-in on this machine.
#[derive(Debug)]
pub struct Login<'a> {
    /// Name.
    pub user: &'a str,
    /// Password.
    pub password: &'a str,
    /// Loopback port of the plug-in.
    pub port: u16,
}

impl Login<'_> {
    fn manage(&self, method: &str, path: &str, body: &str) -> Result<String> {
        let login = Some((self.user, self.password));
        let (status, answer) = Request { method, path, login, body }.send(self.port)?;
        ensure!(status / 100 == 2, "RabbitMQ answered {status} to {method} {path}: {answer}");
        Ok(answer)
    }
}

fn admin(record: &Record) -> Result<Login<'_>> {
    Ok(Login { user: DEPLOY, password: record.secret(DEPLOY)?, port: record.port("management")? })
}

/// Whether the listener speaks AMQP: to a client that requests an unknown version, it answers with the version it
/// supports.
fn speaks_amqp(port: u16) -> bool {
    use std::io::{Read, Write};
    let Ok(mut stream) = connect(port) else { return false };
    let mut answer = [0; 4];
    stream.write_all(b"AMQP\x00\x00\x00\x00").is_ok() && stream.read_exact(&mut answer).is_ok() && answer == *b"AMQP"
}

/// The URL for one user, of each node, separated by commas.
pub fn url(nodes: &[Record], user: &str) -> Result<String> {
    let url = |node: &Record| Ok(format!("amqp://{user}:{}@127.0.0.1:{}/%2f", node.secret(user)?, node.port("main")?));
    Ok(nodes.iter().map(url).collect::<Result<Vec<_>>>()?.join(","))
}

/// The URL of the management plug-in for the deploy user, of each node, separated by commas.
pub fn management_url(nodes: &[Record]) -> Result<String> {
    let url =
        |node: &Record| Ok(format!("http://{DEPLOY}:{}@127.0.0.1:{}", node.secret(DEPLOY)?, node.port("management")?));
    Ok(nodes.iter().map(url).collect::<Result<Vec<_>>>()?.join(","))
}

/// Each folder has its own node names, so that tools never reach the wrong node even through the wrong port mapper.
/// The other nodes of a cluster are `…-rabbitmq-2` and `…-rabbitmq-3`.
fn node_name(dir: &Path, kind: Kind) -> String {
    let hash = crate::rundir::path_hash(dir);
    match kind {
        Kind::Rabbitmq => format!("payment-{hash}@localhost"),
        other => format!("payment-{hash}-{other}@localhost"),
    }
}

/// At its first start, a node with these settings joins another one.
fn joins(first_node: &str) -> String {
    format!(
        "cluster_formation.peer_discovery_backend = classic_config\n\
         cluster_formation.classic_config.nodes.1 = {first_node}\n"
    )
}

fn settings(record: &Record) -> Result<String> {
    Ok(format!(
        "# Written by xtask at each start.\n\
         listeners.tcp.1 = 127.0.0.1:{}\n\
         management.tcp.ip = 127.0.0.1\n\
         management.tcp.port = {}\n\
         default_user = {DEPLOY}\n\
         default_pass = {}\n\
         default_user_tags.administrator = true\n\
         default_permissions.configure = .*\n\
         default_permissions.read = .*\n\
         default_permissions.write = .*\n\
         auth_mechanisms.1 = PLAIN\n\
         disk_free_limit.absolute = 200MB\n\
         raft.wal_max_size_bytes = 67108864\n\
         log.console = false\n\
         log.file.level = info\n",
        record.port("main")?,
        record.port("management")?,
        record.secret(DEPLOY)?
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_guest_and_no_listener_but_on_loopback() {
        let text = settings(&Record::new(Kind::Rabbitmq).unwrap()).unwrap();
        assert!(!text.contains("guest"));
        assert!(text.contains("listeners.tcp.1 = 127.0.0.1:") && text.contains("management.tcp.ip = 127.0.0.1"));
    }

    #[test]
    fn two_folders_are_two_nodes() {
        let name = |dir, kind| node_name(Path::new(dir), kind);
        assert_ne!(name("/srv/a", Kind::Rabbitmq), name("/srv/b", Kind::Rabbitmq));
        assert_ne!(name("/srv/a", Kind::Rabbitmq), name("/srv/a", Kind::Rabbitmq2));
    }

    #[test]
    fn a_cluster_is_one_list_of_addresses() {
        let nodes = Kind::NODES.map(|kind| Record::new(kind).unwrap());
        assert_eq!(url(&nodes, SERVICE).unwrap().matches("amqp://payment:").count(), 3);
        assert_eq!(management_url(&nodes[..1]).unwrap().matches(',').count(), 0);
    }
}
