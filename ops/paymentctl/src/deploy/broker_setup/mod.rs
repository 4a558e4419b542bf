//! `paymentctl broker-setup`: gives the broker its topology and policies, and each user its rights.
//!
//! It declares over AMQP, and sets policies and permissions through the management plug-in, with a user of its own; the
//! services only check. It may run any number of times: it changes only what differs.

use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use broker::AmqpConfig;
use broker::BrokerError;
use broker::permissions::{self, Permissions};
use broker::topology::{self, Policy, Setting};
use clap::Args;
use reqwest::{Client, Method, StatusCode};
use runtime::env::Env;
use runtime::service::{self, Named, Service};
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep};

mod address;

pub use address::management_url;
use address::{Node, nodes};

/// How long a policy may take until the queues have it.
const TAKES_EFFECT: Duration = Duration::from_secs(20);
/// How far the plug-in's knowledge of a queue may be behind, also after its leader has changed.
const LAGS: Duration = Duration::from_secs(10);
/// The number of nodes that a queue should live on, if the broker has that many: a majority survives the loss of one.
const REPLICAS: usize = 3;

/// What the deploy step needs.
#[derive(Debug, Clone)]
pub struct BrokerSetupConfig {
    /// `AMQP_ADMIN_URL`: the user who may declare.
    pub amqp: AmqpConfig,
    /// `RABBITMQ_MANAGEMENT_URL`: the management plug-in of each node, with a user who may set policies.
    pub management_url: SecretString,
}

impl BrokerSetupConfig {
    /// Reads the configuration; faults stay in `env`.
    pub fn from_env(env: &mut Env) -> Option<BrokerSetupConfig> {
        let (amqp, management_url) = (AmqpConfig::admin_from_env(env), address::required(env));
        Some(BrokerSetupConfig { amqp: amqp?, management_url: management_url? })
    }
}

/// How to call it.
#[derive(Debug, Clone, Default, Args)]
pub struct BrokerSetup {
    /// The user of a process, if it is not the usual one (payment-api, payment-callback-worker, payment-check-worker,
    /// payment-refund-worker, payment-relay, payment-ctl).
    #[arg(long = "user", value_name = "PROCESS=USER")]
    users: Vec<Named>,
    /// A user who consumes events: may declare, bind to payment.events and consume what begins with its own name and a dot.
    #[arg(long, value_name = "USER")]
    downstream: Vec<String>,
    /// Do not set permissions: something else manages users.
    #[arg(long, conflicts_with_all = ["users", "downstream"])]
    no_permissions: bool,
}

impl BrokerSetup {
    /// Each user with its permissions.
    fn users(&self) -> anyhow::Result<Vec<(String, Permissions)>> {
        if self.no_permissions {
            return Ok(Vec::new());
        }
        let processes = service::names(Service::broker_user, &self.users).map_err(anyhow::Error::msg)?;
        let mut users: Vec<_> = processes.into_iter().map(|(service, user)| (user, permissions::of(service))).collect();
        for user in &self.downstream {
            // What belongs to `goods.v1` belongs to `goods` as well: both patterns would match it.
            let is_within = self.downstream.iter().any(|other| user.starts_with(&format!("{other}.")));
            ensure!(!is_within, "--downstream: what belongs to {user} would belong to another consumer as well");
            ensure!(users.iter().all(|(taken, _)| taken != user), "{user} cannot be a consumer of events as well");
            let rights = permissions::of_downstream(user);
            users.push((user.clone(), rights.map_err(|wrong| anyhow!("--downstream: {wrong}; choose another name"))?));
        }
        Ok(users)
    }
}

/// Declares the topology, sets policies and permissions, waits until the policies are in effect, and prints what it did.
///
/// # Errors
/// Names every conflicting object at once, every missing user, or what could not be reached.
pub async fn run(config: BrokerSetupConfig, options: &BrokerSetup) -> anyhow::Result<()> {
    let users = options.users()?;
    let connection = broker::open(&config.amqp.url, "broker-setup").await;
    let connection = connection.context("check AMQP_ADMIN_URL, and that the broker runs and knows this user")?;
    let vhost = connection.status().vhost().to_string();
    let declared = topology::declare(&connection).await;
    broker::close(&connection).await;
    match declared {
        Err(BrokerError::Topology(faults)) => bail!("the broker has another topology in vhost {vhost}:\n{faults}"),
        other => other.context("declaring the topology")?,
    }
    for exchange in topology::EXCHANGES {
        println!("exchange {} ({:?})", exchange.name, exchange.routing);
    }
    for queue in topology::queues() {
        println!("queue {queue} (quorum)");
    }
    for binding in topology::bindings() {
        println!("binding {} → {} by {}", binding.exchange, binding.queue, binding.routing_key);
    }
    let management = Management::new(&config.management_url, vhost)?;
    for policy in &topology::policies() {
        management.set(policy).await?;
        println!("policy {} on {} {}", policy.name, policy.pattern, json!(definition(policy)));
    }
    management.wait_until_in_effect().await?;
    management.permit(&users).await?;
    // Nothing that this command could mend.
    let thin =
        management.thin_queues().await.unwrap_or_else(|error| vec![format!("the replicas are unknown: {error:#}")]);
    thin.iter().for_each(|thin| println!("warning: {thin}"));
    println!("The broker is set up in vhost {}.", management.vhost);
    Ok(())
}

/// The differences of the policies in effect from the table, a line for each queue. Changes nothing; any user that sees the
/// queues is enough for `management_url`.
///
/// # Errors
/// When the management plug-in cannot be asked.
pub async fn wrong_policies(management_url: &SecretString, vhost: String) -> anyhow::Result<Vec<String>> {
    Management::new(management_url, vhost)?.wrong_policies_after(LAGS).await
}

/// What is wrong with where the queues live, a line for each node that is away and each queue that the loss of a node could
/// stop.
///
/// # Errors
/// When the management plug-in cannot be asked.
pub async fn thin_queues(management_url: &SecretString, vhost: String) -> anyhow::Result<Vec<String>> {
    Management::new(management_url, vhost)?.thin_queues().await
}

/// The policy's settings as the management plug-in writes them.
fn definition(policy: &Policy) -> Map<String, Value> {
    let setting = |(name, setting): &(&str, Setting)| {
        let value = match setting {
            Setting::Text(text) => json!(text),
            Setting::Number(number) => json!(number),
        };
        ((*name).to_owned(), value)
    };
    policy.definition.iter().map(setting).collect()
}

/// The management plug-in of the broker.
struct Management {
    http: Client,
    nodes: Vec<Node>,
    vhost: String,
}

impl Management {
    fn new(urls: &SecretString, vhost: String) -> anyhow::Result<Management> {
        let nodes = nodes(urls).map_err(|wrong| anyhow!("RABBITMQ_MANAGEMENT_URL: {wrong}"))?;
        let http = Client::builder()
            .no_proxy()
            // Nothing of the plug-in redirects, and the password goes to no other address.
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(5))
            .timeout(Duration::from_secs(15))
            .build()
            .context("setting up HTTP")?;
        Ok(Management { http, nodes, vhost })
    }

    /// Sets what each user may do in the virtual host.
    async fn permit(&self, users: &[(String, Permissions)]) -> anyhow::Result<()> {
        let mut missing = Vec::new();
        for (user, _) in users {
            let (status, answer) = self.call(Method::GET, &["users", user], None).await?;
            match status {
                StatusCode::NOT_FOUND => missing.push(format!("  rabbitmqctl add_user {user}")),
                status if status.is_success() => {}
                status => bail!(
                    "asking for user {user} was answered with {status}: {answer}; use a user who may administer users, \
                     or --no-permissions"
                ),
            }
        }
        if !missing.is_empty() {
            bail!(
                "users are missing at the broker; make them, each with a password of its own, or name others with \
                 --user PROCESS=USER:\n{}",
                missing.join("\n")
            );
        }
        for (user, Permissions { configure, write, read }) in users {
            let body = json!({ "configure": configure, "write": write, "read": read });
            let (status, answer) = self.call(Method::PUT, &["permissions", &self.vhost, user], Some(&body)).await?;
            if !status.is_success() {
                bail!("the broker refused the permissions of {user} with {status}: {answer}");
            }
            println!("user {user} may configure {configure}, write {write}, read {read}");
        }
        Ok(())
    }

    async fn set(&self, policy: &Policy) -> anyhow::Result<()> {
        let body = json!({
            "pattern": policy.pattern,
            "apply-to": "queues",
            "priority": policy.priority,
            "definition": definition(policy),
        });
        let (status, answer) = self.call(Method::PUT, &["policies", &self.vhost, policy.name], Some(&body)).await?;
        if !status.is_success() {
            bail!(
                "the broker refused policy {} with {status}: {answer}; mend it or use a user who may set policies",
                policy.name
            );
        }
        Ok(())
    }

    /// A policy takes effect a moment after it is set, or never, when another one with a higher priority applies.
    async fn wait_until_in_effect(&self) -> anyhow::Result<()> {
        let wrong = self.wrong_policies_after(TAKES_EFFECT).await?;
        ensure!(wrong.is_empty(), "policies are set, but not in effect:\n{}", wrong.join("\n"));
        Ok(())
    }

    /// What is still wrong with the policies after this time, or nothing as soon as nothing is.
    async fn wrong_policies_after(&self, time: Duration) -> anyhow::Result<Vec<String>> {
        let give_up = Instant::now() + time;
        loop {
            let wrong = self.wrong_policies().await?;
            if wrong.is_empty() || Instant::now() > give_up {
                return Ok(wrong);
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    async fn wrong_policies(&self) -> anyhow::Result<Vec<String>> {
        let mut wrong = Vec::new();
        for policy in &topology::policies() {
            for queue in &policy.queues {
                wrong.extend(self.compare(policy, queue).await?);
            }
        }
        Ok(wrong)
    }

    /// Nodes that are away, queues with fewer replicas than the broker has nodes for, and what to do. A queue gets its replicas
    /// when it is declared: one that is older than the cluster has one.
    async fn thin_queues(&self) -> anyhow::Result<Vec<String>> {
        let (status, answer) = self.call(Method::GET, &["nodes"], None).await?;
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            bail!("this user may not see the nodes of the broker: give him the tag monitoring");
        }
        let nodes: Vec<Value> = read(status, &answer, "the nodes")?;
        let away = nodes.iter().filter(|node| node["running"] == false);
        let away = away.map(|node| format!("node {} is away: start it, or replace it", node["name"]));
        let mut thin: Vec<String> = away.collect();
        for queue in topology::queues() {
            let found = self.queue(queue).await?;
            let members = found.get("members").and_then(Value::as_array).map_or(0, Vec::len);
            if members < REPLICAS.min(nodes.len()) {
                thin.push(format!(
                    "queue {queue} lives on {members} of the {} nodes: run `rabbitmq-queues grow NODE all` for each that \
                     lacks it",
                    nodes.len()
                ));
            }
        }
        Ok(thin)
    }

    async fn queue(&self, queue: &str) -> anyhow::Result<Map<String, Value>> {
        let (status, answer) = self.call(Method::GET, &["queues", &self.vhost, queue], None).await?;
        read(status, &answer, &format!("queue {queue}"))
    }

    /// What is wrong with the policy that applies to `queue`.
    async fn compare(&self, policy: &Policy, queue: &str) -> anyhow::Result<Option<String>> {
        let found = self.queue(queue).await?;
        let Some(applies) = found.get("policy").and_then(Value::as_str) else {
            return Ok(Some(format!("queue {queue}: no policy applies, and {} should", policy.name)));
        };
        if applies != policy.name {
            let remedy = format!("remove it or lower its priority below {}", policy.priority);
            return Ok(Some(format!("queue {queue}: policy {applies} applies, not {}; {remedy}", policy.name)));
        }
        // An operator policy may add settings of its own.
        let effective = found.get("effective_policy_definition").cloned().unwrap_or_default();
        let differs = |(name, value): (&String, &Value)| effective.get(name) != Some(value);
        let wanted = definition(policy);
        Ok(wanted.iter().any(differs).then(|| {
            format!("queue {queue}: {effective} is in effect instead of {}; look for an operator policy", json!(wanted))
        }))
    }

    /// Asks the nodes in turn, until one answers. All that is asked here may be asked twice.
    async fn call(&self, method: Method, path: &[&str], body: Option<&Value>) -> anyhow::Result<(StatusCode, String)> {
        let mut silent = Vec::new();
        for node in &self.nodes {
            match self.call_one(node, method.clone(), path, body).await {
                Ok(answer) => return Ok(answer),
                Err(error) => silent.push(format!("{error:#}")),
            }
        }
        bail!("the management plug-in does not answer; check RABBITMQ_MANAGEMENT_URL: {}", silent.join("; "))
    }

    async fn call_one(
        &self,
        node: &Node,
        method: Method,
        path: &[&str],
        body: Option<&Value>,
    ) -> anyhow::Result<(StatusCode, String)> {
        let mut url = node.url.clone();
        match url.path_segments_mut() {
            Ok(mut segments) => drop(segments.pop_if_empty().push("api").extend(path)),
            Err(()) => bail!("it cannot have a path"),
        }
        let password = node.password.as_ref().map(ExposeSecret::expose_secret);
        let mut request = self.http.request(method, url).basic_auth(&node.user, password);
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await?;
        Ok((answer.status(), answer.text().await?))
    }
}

fn read<T: DeserializeOwned>(status: StatusCode, answer: &str, what: &str) -> anyhow::Result<T> {
    ensure!(status.is_success(), "asking for {what} was answered with {status}: {answer}");
    serde_json::from_str(answer).context("the answer of the management plug-in")
}

#[cfg(test)]
mod tests {
    use testkit::TestBroker;

    use super::*;

    fn config(broker: &TestBroker) -> BrokerSetupConfig {
        let management_url = SecretString::from(testkit::env("RABBITMQ_MANAGEMENT_URL"));
        BrokerSetupConfig { amqp: AmqpConfig { url: broker.admin_uri() }, management_url }
    }

    #[test]
    fn a_consumer_of_events_owns_nothing_of_the_service_or_of_another() {
        for downstream in [
            &["payment"][..],
            &["payment.callbacks"],
            &["amq"],
            &[""],
            &[".*"],
            &["payment-relay"],
            &["goods", "goods.v1"],
            &["goods.v1", "goods"],
            &["goods", "goods"],
        ] {
            let downstream = downstream.iter().map(|user| (*user).to_owned()).collect();
            let options = BrokerSetup { downstream, ..BrokerSetup::default() };
            assert!(options.users().is_err(), "{options:?}");
        }
        let downstream = vec!["goods".to_owned(), "goods2.v1".to_owned()];
        let users = BrokerSetup { downstream, ..BrokerSetup::default() }.users().unwrap();
        assert_eq!(users.len(), Service::ALL.len() + 2);
    }

    #[tokio::test]
    async fn an_empty_broker_is_set_up_and_a_second_run_changes_nothing() {
        let broker = TestBroker::empty().await;
        run(config(&broker), &BrokerSetup::default()).await.unwrap();
        run(config(&broker), &BrokerSetup::default()).await.unwrap();
        let queue = broker.queue(topology::CALLBACKS).await;
        assert_eq!((&queue["type"], &queue["policy"]), (&json!("quorum"), &json!("payment-work")));
        let service = broker::open(&broker.uri(), "test").await.unwrap();
        topology::check(&service, &topology::Needs::everything()).await.unwrap();
        assert!(!topology::marker_exists(&service).await.unwrap(), "the marker is the relay's");
    }

    #[tokio::test]
    async fn each_user_gets_his_rights_and_missing_ones_are_named_at_once() {
        let broker = TestBroker::empty().await;
        let named = |text: &str| text.parse::<Named>().unwrap();
        let users = vec![named("relay=nobody"), named("check-worker=no-one")];
        let options = BrokerSetup { users, ..BrokerSetup::default() };
        let error = run(config(&broker), &options).await.unwrap_err().to_string();
        assert!(error.contains("add_user nobody") && error.contains("add_user no-one"), "{error}");
        let rights = async || broker.manage(Method::GET, &["vhosts", broker.vhost(), "permissions"], Value::Null).await;
        let of =
            |rights: &Value, user: &str| rights.as_array().unwrap().iter().find(|one| one["user"] == user).cloned();
        assert_eq!(of(&rights().await, "payment-api"), None, "all or none");
        let options = BrokerSetup { downstream: vec!["downstream".to_owned()], ..BrokerSetup::default() };
        run(config(&broker), &options).await.unwrap();
        let rights = rights().await;
        let api = of(&rights, "payment-api").unwrap();
        assert_eq!([&api["configure"], &api["write"], &api["read"]], ["^$", r"^payment\.in$", "^$"]);
        assert_eq!(of(&rights, "downstream").unwrap()["read"], r"^(payment\.events$|downstream\.)");
    }

    #[tokio::test]
    async fn conflicting_queues_are_named_at_once_with_what_to_do() {
        let broker = TestBroker::empty().await;
        for queue in [topology::CALLBACKS, topology::DEAD] {
            let classic = json!({ "durable": true, "arguments": { "x-queue-type": "classic" } });
            broker.manage(Method::PUT, &["queues", broker.vhost(), queue], classic).await;
        }
        let error = run(config(&broker), &BrokerSetup::default()).await.unwrap_err().to_string();
        for queue in [topology::CALLBACKS, topology::DEAD] {
            assert!(error.contains(&format!("queue {queue}: it exists with other properties")), "{error}");
        }
        assert!(error.contains("empty and delete it"), "{error}");
    }

    #[tokio::test]
    async fn a_policy_that_stands_in_the_way_is_named() {
        let broker = TestBroker::new().await;
        let other = json!({ "pattern": ".*", "apply-to": "queues", "priority": 99, "definition": { "max-length": 5 } });
        broker.manage(Method::PUT, &["policies", broker.vhost(), "everything"], other).await;
        let config = config(&broker);
        let management = Management::new(&config.management_url, broker.vhost().to_owned()).unwrap();
        let policy = &topology::policies()[0];
        let deadline = Instant::now() + TAKES_EFFECT;
        loop {
            match management.compare(policy, topology::CALLBACKS).await.unwrap() {
                Some(wrong) if wrong.contains("everything applies") => return,
                _ => assert!(Instant::now() < deadline, "the policy never applied"),
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    #[tokio::test]
    async fn a_node_that_is_away_is_passed_over_and_each_is_named_when_all_are() {
        let broker = TestBroker::new().await;
        let closed = {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            listener.local_addr().unwrap()
        };
        let management = testkit::env("RABBITMQ_MANAGEMENT_URL");
        let urls = SecretString::from(format!("http://u:hidden@{closed},{management}"));
        assert_eq!(thin_queues(&urls, broker.vhost().to_owned()).await.unwrap(), Vec::<String>::new());
        let management_url = SecretString::from(format!("http://u:hidden@{closed},http://u:hidden@{closed}"));
        let config = BrokerSetupConfig { amqp: AmqpConfig { url: broker.admin_uri() }, management_url };
        let error = format!("{:#}", run(config, &BrokerSetup::default()).await.unwrap_err());
        assert_eq!(error.matches(&closed.to_string()).count(), 2, "{error}");
        assert!(!error.contains("hidden"), "{error}");
    }
}
