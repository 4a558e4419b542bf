//! Creates the broker's users and the database's roles for servers that a person runs, as with
//! `docker-compose.yml`. The names come from the same variables that the programs read.

use std::{collections::BTreeMap, env, fs};

use anyhow::{Context, Result, ensure};

use crate::{
    rundir::checkout,
    servers::logins::{self, DOWNSTREAM, LOGINS, SERVICE},
    servers::rabbitmq::{self, Login},
    ui::say,
};

/// Creates the broker's user of every variable that names one, through `RABBITMQ_MANAGEMENT_URL`. `payment-api
/// broker-setup` grants the processes their rights.
pub fn create_users() -> Result<()> {
    let address = addresses();
    let management = address("RABBITMQ_MANAGEMENT_URL")?;
    ensure!(
        ["127.0.0.1", "localhost"].contains(&&*management.host),
        "RABBITMQ_MANAGEMENT_URL names {}: this command is for a broker on this machine",
        management.host
    );
    let admin = Login { user: &management.user, password: &management.password, port: management.port };
    let processes = LOGINS.iter().map(|login| (login.amqp_url, login.user));
    for (variable, role) in [("AMQP_URL", SERVICE), ("DOWNSTREAM_AMQP_URL", DOWNSTREAM)].into_iter().chain(processes) {
        let user = address(variable)?;
        ensure!(user.user == role, "the user of {variable} is `{}` and should be `{role}`", user.user);
        rabbitmq::create_user(&admin, role, &user.password)?;
        say("rabbitmq", format_args!("user {role} is there"));
    }
    Ok(())
}

/// Prints the SQL that creates the database role of each process.
pub fn print_roles() -> Result<()> {
    let address = addresses();
    for login in &LOGINS {
        let user = address(login.database_url)?;
        ensure!(
            user.user == login.role,
            "the user of {} is `{}` and should be `{}`",
            login.database_url,
            user.user,
            login.role
        );
        print!("{}", logins::create_role(login.role, &user.password));
    }
    Ok(())
}

/// Reads variables that contain addresses, from the environment, else from `.env`.
fn addresses() -> impl Fn(&str) -> Result<Address> {
    let file = fs::read_to_string(checkout().join(".env")).map(|text| parse(&text)).unwrap_or_default();
    move |name| {
        let value = env::var(name).ok().or_else(|| file.get(name).cloned());
        let value = value.with_context(|| format!("{name} is neither in the environment nor in .env"))?;
        let address = Address::parse(&value);
        let address = address.with_context(|| format!("{name} is not of the form scheme://user:password@host:port"))?;
        // This password is public, and the programs also refuse it.
        ensure!(!address.is_placeholder(), "{name} holds the password of .env.example; put one of your own there");
        Ok(address)
    }
}

/// Reads `NAME=value` lines; comments, blank lines and everything else are ignored.
fn parse(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let pairs = lines.filter_map(|line| line.strip_prefix("export ").unwrap_or(line).split_once('='));
    pairs
        .map(|(name, value)| {
            let value = value.trim();
            let bare = ['"', '\''].iter().find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote));
            (name.trim().to_owned(), bare.unwrap_or(value).to_owned())
        })
        .collect()
}

/// The parts of a URL that form a login.
#[derive(Debug, PartialEq, Eq)]
struct Address {
    user: String,
    password: String,
    host: String,
    port: u16,
}

impl Address {
    fn is_placeholder(&self) -> bool {
        self.password.to_lowercase().contains("change-me")
    }

    fn parse(url: &str) -> Option<Address> {
        let (login, place) = url.split_once("://")?.1.split_once('@')?;
        let (user, password) = login.split_once(':')?;
        let (host, port) = place.split(['/', '?']).next()?.rsplit_once(':')?;
        Some(Address { user: decode(user)?, password: decode(password)?, host: host.into(), port: port.parse().ok()? })
    }
}

/// `%2F` → `/`.
fn decode(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(part.get(..2)?, 16).ok()?);
        bytes.extend_from_slice(part.get(2..)?.as_bytes());
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_variables_is_read() {
        let read = parse("# A=0\n\nA=1\nexport B = \"two words\"\nC='x=y'\nnothing\n");
        let pairs: Vec<(&str, &str)> = read.iter().map(|(name, value)| (&**name, &**value)).collect();
        assert_eq!(pairs, [("A", "1"), ("B", "two words"), ("C", "x=y")]);
    }

    #[test]
    fn the_example_names_users_that_can_be_created() {
        let example = parse(&fs::read_to_string(checkout().join(".env.example")).unwrap());
        let roles = LOGINS.iter().map(|login| (login.database_url, login.role));
        let users = LOGINS.iter().map(|login| (login.amqp_url, login.user));
        let others = [("AMQP_URL", "payment"), ("DOWNSTREAM_AMQP_URL", "downstream")];
        for (variable, user) in roles.chain(users).chain(others) {
            let address = Address::parse(&example[variable]).unwrap();
            assert_eq!(address.user, user);
            assert!(address.is_placeholder(), "{variable}");
        }
        let management = Address::parse(&example["RABBITMQ_MANAGEMENT_URL"]).unwrap();
        assert_eq!((management.password.as_str(), management.port), (&*example["RABBITMQ_DEPLOY_PASSWORD"], 15672));
    }

    #[test]
    fn an_address_without_all_parts_is_none() {
        let whole = Address::parse("amqp://a%40b:p%2Fw@h:5672/%2f").unwrap();
        assert_eq!((whole.user.as_str(), whole.password.as_str(), whole.port), ("a@b", "p/w", 5672));
        for broken in ["", "amqp://h:1", "amqp://a@h:1", "amqp://a:b@h", "amqp://a:%zz@h:1", "amqp://a:b@h:99999"] {
            assert_eq!(Address::parse(broken), None, "{broken}");
        }
    }
}
