//! The users of the service's processes and of the operators' tool at the broker and at the database. This tool
//! does not grant their rights: `paymentctl broker-setup` and `paymentctl database-roles` do that.

/// The owner of everything in the database: tests create databases and break connections.
pub const OWNER: &str = "payment";
/// This user declares the topology and sets policies; it has all rights.
pub const DEPLOY: &str = "payment-deploy";
/// This user is for tests of single parts of the service; no process logs in with it.
pub const SERVICE: &str = "payment";
/// A consumer of the service's events: the shop of the demo, the tests, the load tool.
pub const DOWNSTREAM: &str = "downstream";
/// Not a user: the secret with which Erlang's own tools reach the node.
pub const COOKIE: &str = "cookie";
/// Redis's own name for the user that needs only a password.
pub const REDIS_USER: &str = "default";

/// One process.
#[derive(Debug)]
pub struct Login {
    /// The name of its program.
    pub program: &'static str,
    /// Its role at the database.
    pub role: &'static str,
    /// Its user at the broker.
    pub user: &'static str,
    /// The variable with its `DATABASE_URL`.
    pub database_url: &'static str,
    /// The variable with its `AMQP_URL`.
    pub amqp_url: &'static str,
}

/// Every process.
pub const LOGINS: [Login; 6] = [
    Login {
        program: "payment-api",
        role: "payment_api",
        user: "payment-api",
        database_url: "PAYMENT_API_DATABASE_URL",
        amqp_url: "PAYMENT_API_AMQP_URL",
    },
    Login {
        program: "callback-worker",
        role: "payment_callback_worker",
        user: "payment-callback-worker",
        database_url: "CALLBACK_WORKER_DATABASE_URL",
        amqp_url: "CALLBACK_WORKER_AMQP_URL",
    },
    Login {
        program: "check-worker",
        role: "payment_check_worker",
        user: "payment-check-worker",
        database_url: "CHECK_WORKER_DATABASE_URL",
        amqp_url: "CHECK_WORKER_AMQP_URL",
    },
    Login {
        program: "refund-worker",
        role: "payment_refund_worker",
        user: "payment-refund-worker",
        database_url: "REFUND_WORKER_DATABASE_URL",
        amqp_url: "REFUND_WORKER_AMQP_URL",
    },
    Login {
        program: "relay",
        role: "payment_relay",
        user: "payment-relay",
        database_url: "RELAY_DATABASE_URL",
        amqp_url: "RELAY_AMQP_URL",
    },
    Login {
        program: "paymentctl",
        role: "payment_ctl",
        user: "payment-ctl",
        database_url: "PAYMENTCTL_DATABASE_URL",
        amqp_url: "PAYMENTCTL_AMQP_URL",
    },
];

/// SQL that creates a role, or gives it another password.
pub fn create_role(role: &str, password: &str) -> String {
    let literal = password.replace('\'', "''");
    format!(
        "do $$ begin create role {role} login; exception when duplicate_object then null; end $$;\n\
         alter role {role} login password '{literal}';\n"
    )
}
