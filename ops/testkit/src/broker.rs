//! Each test gets its own virtual host, so that tests can run in parallel on one broker.

use broker::Connection;
use broker::permissions::{self, Permissions};
use broker::topology::{self, Policy, Setting};
use reqwest::{Client, Method};
use runtime::service::Service;
use secrecy::SecretString;
use serde_json::{Value, json};
use url::Url;
use uuid::Uuid;

/// The rights of the user that plays any process in tests of single parts.
const SERVICE: [&str; 3] = [r"^payment\.", r"^(payment\.|amq\.default)", r"^payment\."];
const EVERYTHING: [&str; 3] = [".*", ".*", ".*"];

/// A new virtual host with the payment topology; it is deleted when this value is dropped.
pub struct TestBroker {
    management: Management,
    vhost: String,
}

impl TestBroker {
    /// A virtual host with topology and policies.
    pub async fn new() -> TestBroker {
        let broker = TestBroker::empty().await;
        let connection = broker.admin().await;
        topology::declare(&connection).await.expect("the topology can be declared");
        for policy in &topology::policies() {
            broker.set_policy(policy).await;
        }
        broker::close(&connection).await;
        broker
    }

    /// An empty virtual host.
    pub async fn empty() -> TestBroker {
        runtime::telemetry::install_crypto();
        let broker =
            TestBroker { management: Management::from_env(), vhost: format!("test-{}", Uuid::now_v7().simple()) };
        broker.manage(Method::PUT, &["vhosts", &broker.vhost], json!({})).await;
        let (admin, service) = (user(&crate::env("AMQP_ADMIN_URL")), user(&crate::env("AMQP_URL")));
        if service != admin {
            broker.grant(&service, SERVICE).await;
        }
        broker.grant(&admin, EVERYTHING).await;
        broker
    }

    /// The address for a test that plays a process: its user has all rights on the service's objects.
    pub fn uri(&self) -> SecretString {
        self.uri_of("AMQP_URL")
    }

    /// The address for a process, with exactly the rights that the deploy step grants it.
    pub async fn uri_for(&self, service: Service) -> SecretString {
        let variable = crate::variable(service, "AMQP_URL");
        let Permissions { configure, write, read } = permissions::of(service);
        self.grant(&user(&crate::env(&variable)), [&configure, &write, &read]).await;
        self.uri_of(&variable)
    }

    /// The address for a user with all rights in this virtual host.
    pub fn admin_uri(&self) -> SecretString {
        self.uri_of("AMQP_ADMIN_URL")
    }

    /// A connection with all rights here.
    pub async fn admin(&self) -> Connection {
        broker::open(&self.admin_uri(), "test").await.expect("the broker answers")
    }

    /// The name of the virtual host.
    pub fn vhost(&self) -> &str {
        &self.vhost
    }

    /// Sets the rights of `user` to configure, write and read.
    pub async fn grant(&self, user: &str, [configure, write, read]: [&str; 3]) {
        let rights = json!({ "configure": configure, "write": write, "read": read });
        self.manage(Method::PUT, &["permissions", &self.vhost, user], rights).await;
    }

    /// Closes every connection to this virtual host, as an operator would.
    pub async fn close_connections(&self) {
        let open = self.manage(Method::GET, &["vhosts", &self.vhost, "connections"], Value::Null).await;
        for name in open.as_array().into_iter().flatten().filter_map(|open| open["name"].as_str()) {
            self.manage(Method::DELETE, &["connections", name], Value::Null).await;
        }
    }

    /// The state of a queue, from the management plug-in.
    pub async fn queue(&self, name: &str) -> Value {
        self.manage(Method::GET, &["queues", &self.vhost, name], Value::Null).await
    }

    /// Sets a policy of the topology.
    pub async fn set_policy(&self, policy: &Policy) {
        let definition: serde_json::Map<_, _> = policy
            .definition
            .iter()
            .map(|(name, setting)| match setting {
                Setting::Text(text) => ((*name).to_owned(), json!(text)),
                Setting::Number(number) => ((*name).to_owned(), json!(number)),
            })
            .collect();
        let policy_body = json!({
            "pattern": policy.pattern, "apply-to": "queues", "priority": policy.priority, "definition": definition,
        });
        self.manage(Method::PUT, &["policies", &self.vhost, policy.name], policy_body).await;
    }

    /// One call to the management plug-in below `/api`; returns the answer, or null for an empty one.
    pub async fn manage(&self, method: Method, path: &[&str], body: Value) -> Value {
        self.management.call(method, path, body).await
    }

    fn uri_of(&self, variable: &str) -> SecretString {
        let mut url = Url::parse(&crate::env(variable)).expect("an AMQP URL");
        url.set_path(&self.vhost);
        SecretString::from(String::from(url))
    }
}

impl Drop for TestBroker {
    fn drop(&mut self) {
        let (management, vhost) = (self.management.clone(), self.vhost.clone());
        // A new runtime, because the test's runtime may be shutting down. A virtual host that cannot be deleted stays.
        let delete = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime
                .map(|runtime| runtime.block_on(management.try_call(Method::DELETE, &["vhosts", &vhost], Value::Null)))
        };
        let _ = std::thread::spawn(delete).join();
    }
}

#[derive(Clone)]
struct Management {
    url: Url,
}

impl Management {
    fn from_env() -> Management {
        Management { url: Url::parse(&crate::env("RABBITMQ_MANAGEMENT_URL")).expect("an HTTP URL") }
    }

    async fn call(&self, method: Method, path: &[&str], body: Value) -> Value {
        match self.try_call(method.clone(), path, body).await {
            Ok(value) => value,
            Err(error) => panic!("{method} {path:?}: {error}"),
        }
    }

    async fn try_call(&self, method: Method, path: &[&str], body: Value) -> Result<Value, String> {
        let mut url = self.url.clone();
        url.path_segments_mut().map_err(|()| "no base")?.pop_if_empty().push("api").extend(path);
        // A new client for each call: a pooled connection would belong to a runtime that may no longer exist.
        let mut request = Client::builder().no_proxy().build().map_err(|error| error.to_string())?.request(method, url);
        if !body.is_null() {
            request = request.json(&body);
        }
        let answer = request.send().await.map_err(|error| error.without_url().to_string())?;
        let (status, text) = (answer.status(), answer.text().await.map_err(|error| error.without_url().to_string())?);
        if !status.is_success() {
            return Err(format!("{status}: {text}"));
        }
        if text.is_empty() { Ok(Value::Null) } else { serde_json::from_str(&text).map_err(|error| error.to_string()) }
    }
}

/// The user in an address.
fn user(url: &str) -> String {
    Url::parse(url).expect("a URL").username().to_owned()
}
