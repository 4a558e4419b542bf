//! How a process reads the addresses of the servers: every fault is named at once, and passwords are never shown in
//! clear text.

use broker::AmqpConfig;
use runtime::env::Env;
use store::DatabaseConfig;
use store::cache::RedisConfig;

/// Whether the three addresses, and nothing else, let a start go on; what is said otherwise.
fn started(database: &str, amqp: &str, redis: &str, allowed: &str) -> Result<(), String> {
    let mut env =
        Env::of([("DATABASE_URL", database), ("AMQP_URL", amqp), ("REDIS_URL", redis), ("ALLOW_PLAINTEXT", allowed)]);
    let read = DatabaseConfig::from_env(&mut env, 1).is_some()
        & AmqpConfig::from_env(&mut env).is_some()
        & RedisConfig::from_env(&mut env).is_some();
    let finished = env.finish().map_err(|faults| faults.to_string());
    assert_eq!(read, finished.is_ok());
    finished
}

const LOCAL: [&str; 3] = ["postgres://u:hidden@127.0.0.1/d", "amqp://u:hidden@localhost/v", "redis://:hidden@[::1]/0"];

#[test]
fn every_plaintext_address_of_another_host_is_named_at_once() {
    let [database, amqp, redis] = [
        "postgres://u:hidden@db.internal/d",
        "amqp://u:hidden@mq-1/v,amqps://u:hidden@mq-2/v",
        "redis://:hidden@10.0.0.3/0",
    ];
    let text = started(database, amqp, redis, "").unwrap_err();
    for wrong in [
        "DATABASE_URL: passwords and data would go to db.internal",
        "AMQP_URL: passwords and data would go to mq-1 without",
        "REDIS_URL: passwords and data would go to 10.0.0.3",
        "sslmode=verify-full",
        "amqps://",
        "rediss://",
        "ALLOW_PLAINTEXT=1",
    ] {
        assert!(text.contains(wrong), "{wrong}: {text}");
    }
    assert!(!text.contains("hidden"), "{text}");
    started(database, amqp, redis, "1").unwrap();
    let mut env = Env::of([("DATABASE_URL", database), ("ALLOW_PLAINTEXT", "1")]);
    assert!(DatabaseConfig::from_env(&mut env, 1).is_some());
    assert_eq!(started(database, amqp, redis, "0").unwrap_err(), text);
    let wrong = started(database, amqp, redis, "yes").unwrap_err();
    assert_eq!(wrong.matches("ALLOW_PLAINTEXT: it is neither").count(), 1, "{wrong}");
}

#[test]
fn postgres_is_verified_whole_or_stays_on_this_machine() {
    let [_, amqp, redis] = LOCAL;
    for clear in [
        "postgres://u@h/d",
        "postgres://u@h/d?sslmode=disable",
        "postgres://u@h/d?sslmode=prefer",
        "postgres://u@h/d?sslmode=require",
        "postgres://u@h/d?sslmode=verify-ca",
        "postgres://u@[2001:db8::1]/d",
        // The host of the parameter counts, not the one that is read first.
        "postgres://u@127.0.0.1/d?host=db.example.com",
        "postgres://u@127.0.0.1/d?hostaddr=192.0.2.1",
        "postgres://u@127.0.0.1.example.com/d",
        "postgres://u@localhost.example.com/d",
    ] {
        assert!(started(clear, amqp, redis, "").is_err(), "{clear}");
    }
    for fine in [
        "postgres://u@h/d?sslmode=verify-full",
        "postgres://u@127.0.0.5/d",
        "postgres://u@localhost/d?sslmode=disable",
        "postgres://u@[::1]/d",
        "postgres://u@%2Fvar%2Frun%2Fpostgresql/d",
        "postgres:///d?host=/var/run/postgresql",
    ] {
        started(fine, amqp, redis, "").unwrap_or_else(|text| panic!("{fine}: {text}"));
    }
}

#[test]
fn broker_and_redis_are_encrypted_or_on_this_machine() {
    let [database, amqp, redis] = LOCAL;
    for clear in
        ["amqp://u:p@h/v", "amqp://u:p@[2001:db8::1]/v", "amqps://u:p@a/v,amqp://u:p@b/v", "amqp://u:p@0.0.0.0/v"]
    {
        assert!(started(database, clear, redis, "").is_err(), "{clear}");
    }
    for fine in ["amqps://u:p@h/v", "amqp://u:p@[::1]/v", "amqp://u:p@127.0.0.1/v,amqp://u:p@localhost:5673/v"] {
        started(database, fine, redis, "").unwrap_or_else(|text| panic!("{fine}: {text}"));
    }
    for clear in ["redis://:p@h/0", "redis://u:p@192.168.0.1:6379/0"] {
        assert!(started(database, amqp, clear, "").is_err(), "{clear}");
    }
    for fine in ["rediss://:p@h/0", "redis://127.0.0.1/0"] {
        started(database, amqp, fine, "").unwrap_or_else(|text| panic!("{fine}: {text}"));
    }
}
