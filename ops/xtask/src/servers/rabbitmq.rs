//! A private RabbitMQ: one small node with its own port mapper, the management plug-in and its users.

use std::{path::Path, process::Command, time::Duration};

use anyhow::{Result, ensure};
use rustix::process::Signal;
use serde_json::json;

use crate::http::{Request, connect};

use super::{
    find,
    logins::LOGINS,
    native::{Place, Server, Stop},
    record::Record,
};

/// Declares the topology and sets policies; may do everything.
pub const DEPLOY: &str = "payment-deploy";
/// What tests of parts of the service log in as; no process does.
pub const SERVICE: &str = "payment";
/// A consumer of the service's events: the shop of the demo, the tests, the load tool.
pub const DOWNSTREAM: &str = "downstream";
/// Not a user: the secret that lets Erlang's own tools reach the node.
pub const COOKIE: &str = "cookie";

/// What users may do of whom the deploy step does not know (regular expressions).
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
    /// A command of RabbitMQ's own with everything in the environment that tells this node from others.
    fn script(&self, place: &Place, record: &Record, name: &str) -> Result<Command> {
        let home = &place.home;
        let mut command = place.command(&self.programs.sbin.join(name), &self.programs.usr);
        command
            .env("HOME", home)
            .env("RABBITMQ_NODENAME", node_name(&place.dir))
            .env("RABBITMQ_CONFIG_FILE", home.join("rabbitmq.conf"))
            .env("RABBITMQ_ADVANCED_CONFIG_FILE", home.join("advanced.config"))
            .env("RABBITMQ_CONF_ENV_FILE", home.join("rabbitmq-env.conf"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", home.join("enabled_plugins"))
            .env("RABBITMQ_MNESIA_BASE", home.join("data"))
            .env("RABBITMQ_LOG_BASE", home.join("log"))
            .env("RABBITMQ_GENERATED_CONFIG_DIR", home.join("config"))
            .env("RABBITMQ_DIST_PORT", record.port("distribution")?.to_string())
            .env("ERL_EPMD_PORT", record.port("epmd")?.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("ERL_CRASH_DUMP_BYTES", "0");
        Ok(command)
    }

    /// `rabbitmqctl` for this node.
    pub fn ctl(&self, place: &Place, record: &Record) -> Result<Command> {
        self.script(place, record, "rabbitmqctl")
    }
}

impl Server for Rabbitmq {
    fn create(&self, place: &Place, record: &mut Record) -> Result<()> {
        let cookie = place.home.join(".erlang.cookie");
        place.run_as.write(&cookie, record.secret(COOKIE)?)
    }

    fn launch(&self, place: &Place, record: &mut Record) -> Result<()> {
        let (write, home) = (|name: &str, text: &str| place.run_as.write(&place.home.join(name), text), &place.home);
        write("enabled_plugins", "[rabbitmq_management].\n")?;
        write("rabbitmq-env.conf", "# Empty, so that the machine's own is not read.\n")?;
        // How soon the management plug-in knows of a quorum queue's policy, for which broker-setup waits.
        write("advanced.config", "[{rabbit, [{quorum_tick_interval, 1000}]}].\n")?;
        write("rabbitmq.conf", &settings(record)?)?;

        // Our own port mapper, in the foreground: the node would start one that outlives it.
        let mut epmd = place.command(&self.programs.epmd, &self.programs.usr);
        epmd.env("HOME", home).args(["-address", "127.0.0.1", "-port"]).arg(record.port("epmd")?.to_string());
        place.launch("1-epmd", &mut epmd, record)?;

        let mut server = self.script(place, record, "rabbitmq-server")?;
        server
            // The script then becomes the node instead of waiting for it: one process to know and to stop.
            .env("RUNNING_UNDER_SYSTEMD", "true")
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "+S 1:1 -kernel inet_dist_use_interface {127,0,0,1}");
        place.launch("2-rabbitmq", &mut server, record).map(drop)
    }

    fn is_ready(&self, record: &Record) -> Result<bool> {
        Ok(admin(record)?.manage("GET", "/api/overview", "").is_ok() && speaks_amqp(record.port("main")?))
    }

    fn finish(&self, record: &Record) -> Result<()> {
        create_users(record)
    }

    fn stop_signal(&self, stop: Stop) -> (Signal, Duration) {
        match stop {
            Stop::Keep => (Signal::TERM, Duration::from_secs(30)),
            // A clean stop takes six seconds, for data that nobody will read.
            Stop::Discard => (Signal::KILL, Duration::from_secs(5)),
        }
    }
}

/// The users besides the deploy user, which the node creates itself at its first start.
pub fn create_users(record: &Record) -> Result<()> {
    let mut names = RIGHTS.iter().map(|rights| rights.user).chain(LOGINS.iter().map(|login| login.user));
    names.try_for_each(|name| create_user(&admin(record)?, name, record.secret(name)?))
}

/// One of the users, made or changed. A process's has no rights yet: they are the deploy step's to give.
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

/// A client that asks for a version nobody has is told the right one: the listener is up and speaks.
fn speaks_amqp(port: u16) -> bool {
    use std::io::{Read, Write};
    let Ok(mut stream) = connect(port) else { return false };
    let mut answer = [0; 4];
    stream.write_all(b"AMQP\x00\x00\x00\x00").is_ok() && stream.read_exact(&mut answer).is_ok() && answer == *b"AMQP"
}

/// The URL for one user.
pub fn url(record: &Record, user: &str) -> Result<String> {
    Ok(format!("amqp://{user}:{}@127.0.0.1:{}/%2f", record.secret(user)?, record.port("main")?))
}

/// The URL of the management plug-in, for the deploy user.
pub fn management_url(record: &Record) -> Result<String> {
    Ok(format!("http://{DEPLOY}:{}@127.0.0.1:{}", record.secret(DEPLOY)?, record.port("management")?))
}

/// One node name per folder, so that tools never reach the wrong node even with the wrong port mapper.
fn node_name(dir: &Path) -> String {
    format!("payment-{}@localhost", crate::rundir::path_hash(dir))
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
    use crate::servers::Kind;

    #[test]
    fn no_guest_and_no_listener_but_on_loopback() {
        let text = settings(&Record::new(Kind::Rabbitmq).unwrap()).unwrap();
        assert!(!text.contains("guest"));
        assert!(text.contains("listeners.tcp.1 = 127.0.0.1:") && text.contains("management.tcp.ip = 127.0.0.1"));
    }

    #[test]
    fn two_folders_are_two_nodes() {
        assert_ne!(node_name(Path::new("/srv/a")), node_name(Path::new("/srv/b")));
    }
}
