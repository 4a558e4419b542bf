//! API keys: their life, their version, what the database refuses to every role, and what is recorded.

use domain::{ApiKeyId, ApiKeyName, ApiKeySecret, ApiKeyState, KeyEnvironment, Scope, Scopes};
use runtime::clock::Clock;
use runtime::service::Service::{self, CallbackWorker, PaymentApi, PaymentCtl, Relay};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, PgPool};
use store::tables::api_keys::{self as keys, ActiveKey, KeyRefusal, KeyUse, NewApiKey, Rotation};
use store::{DbError, MIGRATOR, NotDone};
use time::Duration;

use crate::rights::granted;

const ALICE: &str = "paymentctl/alice";
const BOB: &str = "paymentctl/bob";

fn id(n: u8) -> ApiKeyId {
    ApiKeyId::from_bytes([n; 8])
}

fn secret(n: u8) -> ApiKeySecret {
    ApiKeySecret::from_bytes([n; 32])
}

/// A key whose id, name and secret follow from its number.
fn new(n: u8, scopes: &str) -> NewApiKey {
    NewApiKey {
        id: id(n),
        name: ApiKeyName::parse(format!("key {n}")).unwrap(),
        environment: KeyEnvironment::Live,
        scopes: Scopes::parse(scopes),
        networks: Vec::new(),
        digest: secret(n).digest(),
        expires_at: None,
    }
}

/// Runs one change in a transaction of its own. A refused change is rolled back.
macro_rules! change {
    ($db:expr, $change:path $(, $argument:expr)* ; $by:expr) => {{
        let mut tx = $db.begin().await.unwrap();
        let done = $change(&mut tx $(, $argument)*, $by).await;
        match done {
            Ok(_) => tx.commit().await.unwrap(),
            Err(_) => tx.rollback().await.unwrap(),
        }
        done
    }};
}

fn rotation(n: u8, overlap: Duration) -> Rotation {
    Rotation { digest: secret(n).digest(), overlap }
}

fn refusal<T: std::fmt::Debug>(done: Result<T, NotDone<KeyRefusal>>) -> KeyRefusal {
    done.unwrap_err().refusal().unwrap()
}

async fn run(db: &PgPool, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(db).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// The constraint or trigger that refuses a statement of the owner.
async fn refused_by(db: &PgPool, sql: &str) -> String {
    let done = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(db).await;
    match done.map_err(DbError::from) {
        Err(DbError::Constraint(name)) => name,
        other => panic!("{sql}: {other:?}"),
    }
}

/// Which of the secrets 1 to 9 open the key.
async fn opening(db: &PgPool, key: ApiKeyId) -> Vec<u8> {
    let active = keys::active(db).await.unwrap();
    let Some(ActiveKey { secrets, .. }) = active.into_iter().find(|active| active.id == key) else { return Vec::new() };
    (1..10).filter(|n| secrets.iter().any(|one| one.digest == secret(*n).digest())).collect()
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn each_change_raises_the_version_and_a_use_does_not(db: PgPool) {
    let mut last = keys::version(&db).await.unwrap();
    let mut rises = async |what: &str, by: i64| {
        let now = keys::version(&db).await.unwrap();
        assert_eq!(now, last + by, "{what}");
        last = now;
    };
    change!(db, keys::create, &new(1, "payments:refund payments:read"); ALICE).unwrap();
    rises("create", 1).await;
    change!(db, keys::confirm, id(1); BOB).unwrap();
    rises("confirm", 1).await;
    change!(db, keys::create, &new(5, "payments:read"); ALICE).unwrap();
    rises("create", 1).await;
    change!(db, keys::rotate, id(5), &rotation(2, Duration::HOUR); ALICE).unwrap();
    rises("rotate", 1).await;
    run(&db, "delete from api_keys where scopes = array['payments:read']").await;
    rises("delete one", 1).await;
    let used = KeyUse { id: id(1), at: Clock::system().now() };
    assert_eq!(keys::note_used(&db, &[used]).await.unwrap(), 1);
    rises("a use", 0).await;
    run(&db, "update api_keys set last_used_at = null").await;
    rises("a use by hand", 0).await;
    run(&db, "update api_keys set name = name").await;
    rises("an update without a change", 0).await;
    run(&db, "update api_keys set name = 'other', last_used_at = now()").await;
    rises("a change beside a use", 1).await;
    assert_eq!(refusal(change!(db, keys::create, &named(2, "other"); ALICE)), KeyRefusal::NameTaken);
    rises("a refused key", 0).await;
    change!(db, keys::revoke, id(1); ALICE).unwrap();
    rises("revoke", 1).await;
    let mut tx = db.begin().await.unwrap();
    keys::create(&mut tx, &new(4, "payments:read"), ALICE).await.unwrap();
    assert_eq!(keys::version(&mut *tx).await.unwrap(), keys::version(&db).await.unwrap() + 1);
    tx.rollback().await.unwrap();
    rises("what was rolled back", 0).await;
    run(&db, "delete from api_keys").await;
    rises("delete", 1).await;
    run(&db, "truncate api_keys").await;
    rises("truncate", 1).await;
}

fn named(n: u8, name: &str) -> NewApiKey {
    NewApiKey { name: ApiKeyName::parse(name).unwrap(), ..new(n, "payments:read") }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_key_that_returns_money_takes_two_persons(db: PgPool) {
    let state = change!(db, keys::create, &new(1, "payments:refund"); "paymentctl/Alice").unwrap();
    assert_eq!((state, opening(&db, id(1)).await), (ApiKeyState::Proposed, vec![]));
    assert_eq!(refusal(change!(db, keys::rotate, id(1), &rotation(2, Duration::HOUR); BOB)), KeyRefusal::NotConfirmed);
    for same in ["paymentctl/Alice", "paymentctl/alice", "PAYMENTCTL/ALICE", "alice", "ALICE"] {
        assert_eq!(refusal(change!(db, keys::confirm, id(1); same)), KeyRefusal::SamePerson, "{same}");
        let by_hand = format!("update api_keys set state = 'active', confirmed_by = '{same}'");
        assert_eq!(refused_by(&db, &by_hand).await, "api_keys_two_people", "{same}");
    }
    assert_eq!(refused_by(&db, "update api_keys set state = 'active'").await, "api_keys_two_people");
    assert_eq!(opening(&db, id(1)).await, [0; 0]);
    change!(db, keys::confirm, id(1); BOB).unwrap();
    assert_eq!(opening(&db, id(1)).await, [1]);
    assert_eq!(refusal(change!(db, keys::confirm, id(1); "paymentctl/carol")), KeyRefusal::Active);
    assert_eq!(refused_by(&db, "update api_keys set confirmed_by = 'carol'").await, "api_keys_fixed");
    // A new secret would return money, too, and one person would hold it.
    assert_eq!(refusal(change!(db, keys::rotate, id(1), &rotation(2, Duration::HOUR); ALICE)), KeyRefusal::TakesTwo);
    let by_hand = "update api_keys set digest = sha256('another')";
    assert_eq!(refused_by(&db, by_hand).await, "api_keys_fixed");

    let state = change!(db, keys::create, &new(2, "payments:orders payments:read"); ALICE).unwrap();
    assert_eq!((state, opening(&db, id(2)).await), (ApiKeyState::Active, vec![2]));
    assert_eq!(refusal(change!(db, keys::confirm, id(2); BOB)), KeyRefusal::Active);
    assert_eq!(refusal(change!(db, keys::confirm, id(9); BOB)), KeyRefusal::Unknown);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn two_secrets_count_and_a_third_drops_the_oldest(db: PgPool) {
    change!(db, keys::create, &new(1, "payments:read"); ALICE).unwrap();
    let until = change!(db, keys::rotate, id(1), &rotation(2, Duration::HOUR); ALICE).unwrap().unwrap();
    let ahead = until - Clock::system().now();
    assert!(ahead > Duration::minutes(59) && ahead < Duration::minutes(61), "{until}");
    assert_eq!(opening(&db, id(1)).await, [1, 2]);
    assert_eq!(keys::get(&db, id(1)).await.unwrap().unwrap().previous_until, Some(until));
    change!(db, keys::rotate, id(1), &rotation(3, Duration::HOUR); ALICE).unwrap();
    assert_eq!(opening(&db, id(1)).await, [2, 3]);
    // Its time is over.
    run(&db, "update api_keys set previous_until = now()").await;
    assert_eq!(opening(&db, id(1)).await, [3]);
    assert_eq!(keys::get(&db, id(1)).await.unwrap().unwrap().previous_until, None);
    // A secret that leaked ends at once.
    let until = change!(db, keys::rotate, id(1), &rotation(4, Duration::ZERO); ALICE).unwrap();
    assert_eq!((until, opening(&db, id(1)).await), (None, vec![4]));
    // The same secret again is none.
    let same = change!(db, keys::rotate, id(1), &rotation(4, Duration::HOUR); ALICE).unwrap_err();
    assert!(matches!(&same, NotDone::Db(DbError::Constraint(name)) if name == "api_keys_digests"), "{same:?}");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn rotations_at_the_same_time_follow_each_other(db: PgPool) {
    change!(db, keys::create, &new(1, "payments:read"); ALICE).unwrap();
    let before = keys::version(&db).await.unwrap();
    let one = async { change!(db, keys::rotate, id(1), &rotation(2, Duration::HOUR); ALICE).unwrap() };
    let other = async { change!(db, keys::rotate, id(1), &rotation(3, Duration::HOUR); BOB).unwrap() };
    futures_util::future::join(one, other).await;
    assert_eq!(opening(&db, id(1)).await, [2, 3], "each person's secret opens, and the first is gone");
    assert_eq!(keys::version(&db).await.unwrap(), before + 2);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_revocation_wins_over_a_rotation_and_a_confirmation(db: PgPool) {
    change!(db, keys::create, &new(1, "payments:read"); ALICE).unwrap();
    change!(db, keys::create, &new(2, "payments:refund"); ALICE).unwrap();
    let mut revoking = db.begin().await.unwrap();
    keys::revoke(&mut revoking, id(1), ALICE).await.unwrap();
    keys::revoke(&mut revoking, id(2), ALICE).await.unwrap();
    let rotating = async { refusal(change!(db, keys::rotate, id(1), &rotation(3, Duration::HOUR); BOB)) };
    let confirming = async { refusal(change!(db, keys::confirm, id(2); BOB)) };
    let committing = async {
        // Both wait for the row.
        let waiting =
            "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()";
        while sqlx::query_scalar::<_, i64>(waiting).fetch_one(&db).await.unwrap() < 2 {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        revoking.commit().await.unwrap();
    };
    let (rotated, confirmed, ()) = futures_util::future::join3(rotating, confirming, committing).await;
    assert_eq!((rotated, confirmed), (KeyRefusal::Revoked, KeyRefusal::Revoked));
    assert!(keys::active(&db).await.unwrap().is_empty());
    assert_eq!(refusal(change!(db, keys::revoke, id(1); BOB)), KeyRefusal::Revoked);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_owner_too_is_refused_what_a_key_never_does(db: PgPool) {
    change!(db, keys::create, &new(1, "payments:read"); ALICE).unwrap();
    change!(db, keys::create, &new(2, "payments:refund"); ALICE).unwrap();
    for (sql, by) in [
        ("update api_keys set state = 'proposed' where name = 'key 1'", "api_keys_moves"),
        ("update api_keys set scopes = '{payments:orders}'", "api_keys_fixed"),
        ("update api_keys set environment = 'test'", "api_keys_fixed"),
        ("update api_keys set proposed_by = 'bob'", "api_keys_fixed"),
        ("update api_keys set state = 'revoked'", "api_keys_revoked"),
        ("update api_keys set revoked_at = now()", "api_keys_revoked"),
        ("update api_keys set digest = ''", "api_keys_digests"),
        ("update api_keys set previous_digest = ''", "api_keys_digests"),
        ("update api_keys set previous_until = now()", "api_keys_previous"),
        ("update api_keys set name = ' a'", "api_keys_name_form"),
        ("update api_keys set expires_at = created_at", "api_keys_expiry"),
        ("update api_keys set networks = '{10.0.0.0/8,NULL}'", "api_keys_networks"),
        ("update api_keys set networks = '{10.0.0.1}'", "api_keys_networks"),
        ("update api_keys set confirmed_by = 'bob' where name = 'key 2'", "api_keys_confirmed"),
    ] {
        assert_eq!(refused_by(&db, sql).await, by, "{sql}");
    }
    change!(db, keys::revoke, id(1); ALICE).unwrap();
    for sql in [
        "update api_keys set state = 'active', revoked_at = null where name = 'key 1'",
        "update api_keys set digest = sha256(digest) where name = 'key 1'",
        "update api_keys set networks = '{10.0.0.0/8}' where name = 'key 1'",
    ] {
        assert_eq!(refused_by(&db, sql).await, "api_keys_fixed", "{sql}");
    }
    assert!(keys::active(&db).await.unwrap().is_empty());
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn no_key_has_a_scope_of_people(db: PgPool) {
    for scope in Scope::ALL.iter().filter(|scope| scope.of_people()) {
        let new = new(1, &format!("payments:read {scope}"));
        let refused = change!(db, keys::create, &new; ALICE).unwrap_err();
        assert!(matches!(&refused, NotDone::Db(DbError::Constraint(name)) if name == "api_keys_scopes"), "{refused:?}");
    }
    let refused = change!(db, keys::create, &new(1, ""); ALICE).unwrap_err();
    assert!(matches!(&refused, NotDone::Db(DbError::Constraint(name)) if name == "api_keys_some_scope"), "{refused:?}");
    // Not even if the constraint is gone, and a scope of a later release gives no right here.
    change!(db, keys::create, &new(1, "payments:read"); ALICE).unwrap();
    run(&db, "alter table api_keys drop constraint api_keys_scopes; alter table api_keys disable trigger user").await;
    run(&db, "update api_keys set scopes = '{payments:admin,payments:read,payments:cases.confirm,payments:later}'")
        .await;
    assert_eq!(keys::active(&db).await.unwrap()[0].scopes.to_string(), "payments:read");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_key_ends_with_its_time(db: PgPool) {
    let ends = Clock::system().now() + Duration::HOUR;
    for (n, scopes) in [(1, "payments:read"), (2, "payments:refund")] {
        change!(db, keys::create, &NewApiKey { expires_at: Some(ends), ..new(n, scopes) }; ALICE).unwrap();
    }
    let active = keys::active(&db).await.unwrap();
    assert_eq!(active.len(), 1);
    assert!((active[0].expires_at.unwrap() - ends).abs() < Duration::MILLISECOND);
    // `created_at` is fixed, so its trigger steps aside for the passing of time.
    run(&db, "alter table api_keys disable trigger user").await;
    run(&db, "update api_keys set created_at = now() - interval '2 h', expires_at = now()").await;
    run(&db, "alter table api_keys enable trigger user").await;
    assert!(keys::active(&db).await.unwrap().is_empty());
    assert_eq!(refusal(change!(db, keys::rotate, id(1), &rotation(3, Duration::HOUR); ALICE)), KeyRefusal::Expired);
    assert_eq!(refusal(change!(db, keys::confirm, id(2); BOB)), KeyRefusal::Expired);
    change!(db, keys::revoke, id(1); ALICE).unwrap();
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn networks_are_kept_in_one_form(db: PgPool) {
    let texts = ["10.1.2.3/8", "203.0.113.7/32", "2001:DB8::/32", "::ffff:10.0.0.1/128"];
    let networks = texts.iter().map(|text| text.parse::<ipnet::IpNet>().unwrap().trunc()).collect();
    change!(db, keys::create, &NewApiKey { networks, ..new(1, "payments:read") }; ALICE).unwrap();
    let read = keys::active(&db).await.unwrap().remove(0).networks;
    let read: Vec<String> = read.iter().map(ToString::to_string).collect();
    assert_eq!(read, ["10.0.0.0/8", "203.0.113.7/32", "2001:db8::/32", "::ffff:10.0.0.1/128"]);
    // What cannot be read must not become an empty list, which allows every address.
    run(&db, "alter table api_keys drop constraint api_keys_networks; update api_keys set networks = '{strange}'")
        .await;
    let corrupt = keys::active(&db).await.unwrap_err();
    assert!(matches!(corrupt, DbError::Corrupt { table: "api_keys", .. }), "{corrupt:?}");
    assert!(keys::list(&db).await.is_err());
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_use_is_noted_once_a_minute(db: PgPool) {
    change!(db, keys::create, &new(1, "payments:read"); ALICE).unwrap();
    change!(db, keys::create, &new(2, "payments:read"); ALICE).unwrap();
    let now = Clock::system().now();
    let at = |n: u8, ago: Duration| KeyUse { id: id(n), at: now - ago };
    let last = async |n: u8| keys::get(&db, id(n)).await.unwrap().unwrap().last_used_at;
    let is_about = |found: Option<time::OffsetDateTime>, ago: Duration| {
        found.is_some_and(|at| (at - (now - ago)).abs() < Duration::seconds(30))
    };
    let uses = [at(1, Duration::minutes(9)), at(1, Duration::minutes(5)), at(9, Duration::ZERO)];
    assert_eq!(keys::note_used(&db, &uses).await.unwrap(), 1);
    assert!(is_about(last(1).await, Duration::minutes(5)), "the last of several");
    assert_eq!(last(2).await, None);
    assert_eq!(keys::note_used(&db, &[at(1, Duration::seconds(241))]).await.unwrap(), 0, "within a minute");
    assert_eq!(keys::note_used(&db, &[at(1, Duration::minutes(8))]).await.unwrap(), 0, "never back");
    // A clock that is ahead writes the database's time, so that the next uses count.
    assert_eq!(keys::note_used(&db, &[at(1, -Duration::HOUR), at(2, Duration::ZERO)]).await.unwrap(), 2);
    assert!(is_about(last(1).await, Duration::ZERO), "{:?}", last(1).await);
    assert_eq!(keys::note_used(&db, &[]).await.unwrap(), 0);
    // It waits for no change of a key.
    run(&db, "update api_keys set last_used_at = null").await;
    let mut holding = db.begin().await.unwrap();
    keys::rotate(&mut holding, id(1), &rotation(3, Duration::HOUR), ALICE).await.unwrap();
    assert_eq!(keys::note_used(&db, &[at(1, Duration::ZERO), at(2, Duration::ZERO)]).await.unwrap(), 1);
    holding.commit().await.unwrap();
    assert_eq!(last(1).await, None);
}

/// What each role can do with the functions of this module, as itself.
#[sqlx::test(migrator = "MIGRATOR")]
async fn operators_make_keys_and_the_ingress_only_reads_them(db: PgPool) {
    let mut connection = granted(&db).await;
    become_role(&mut connection, PaymentCtl).await;
    keys::create(&mut connection, &new(1, "payments:refund"), ALICE).await.unwrap();
    keys::confirm(&mut connection, id(1), BOB).await.unwrap();
    keys::create(&mut connection, &new(5, "payments:read"), ALICE).await.unwrap();
    keys::rotate(&mut connection, id(5), &rotation(2, Duration::HOUR), ALICE).await.unwrap();
    assert_eq!(keys::list(&mut connection).await.unwrap().len(), 2);
    // The operators' role acts in the name of an operator alone.
    let mut tx = connection.begin().await.unwrap();
    let forged = keys::create(&mut tx, &new(3, "payments:read"), "alice").await.unwrap_err();
    assert!(format!("{forged:?}").contains("audit_log"), "{forged:?}");
    tx.rollback().await.unwrap();

    become_role(&mut connection, PaymentApi).await;
    let used = KeyUse { id: id(1), at: Clock::system().now() };
    assert_eq!(keys::active(&mut connection).await.unwrap().len(), 2);
    assert_eq!(keys::note_used(&mut connection, &[used]).await.unwrap(), 1);
    keys::version(&mut connection).await.unwrap();
    for service in [PaymentApi, CallbackWorker, Relay] {
        become_role(&mut connection, service).await;
        let made = keys::create(&mut connection, &new(4, "payments:read"), "alice").await.unwrap_err();
        let revoked = keys::revoke(&mut connection, id(1), "alice").await.unwrap_err();
        for error in [made, revoked] {
            assert!(format!("{error:?}").contains("permission denied"), "{service}: {error:?}");
        }
    }
    become_role(&mut connection, PaymentApi).await;
    for sql in ["update api_keys set state = 'active'", "update api_keys_version set version = 9"] {
        let error = connection.execute(sql).await.unwrap_err().to_string();
        assert!(error.contains("permission denied"), "{sql}: {error}");
    }
}

async fn become_role(connection: &mut PgConnection, service: Service) {
    connection.execute("reset role").await.unwrap();
    connection.execute(AssertSqlSafe(format!("set role {}", service.database_role()))).await.unwrap();
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_people_did_to_keys_is_recorded_without_digests(db: PgPool) {
    change!(db, keys::create, &new(1, "payments:refund payments:read"); ALICE).unwrap();
    change!(db, keys::confirm, id(1); BOB).unwrap();
    change!(db, keys::revoke, id(1); "carol").unwrap();
    change!(db, keys::create, &new(2, "payments:read"); "dave").unwrap();
    change!(db, keys::rotate, id(2), &rotation(3, Duration::HOUR); ALICE).unwrap();
    // What is refused leaves no row.
    refusal(change!(db, keys::revoke, id(1); ALICE));
    refusal(change!(db, keys::create, &named(3, "key 2"); ALICE));
    let acts =
        "select subject || ' ' || act || ' ' || object || ' ' || (detail ->> 'name') || ' ' || (detail ->> 'scopes')
                from audit_log order by id";
    let acts: Vec<String> = sqlx::query_scalar(acts).fetch_all(&db).await.unwrap();
    let (one, two) = (id(1), id(2));
    let of_one = format!("key:{one} key 1 payments:read payments:refund");
    assert_eq!(
        acts,
        [
            format!("{ALICE} key.proposed {of_one}"),
            format!("{BOB} key.confirmed {of_one}"),
            format!("carol key.revoked {of_one}"),
            format!("dave key.made key:{two} key 2 payments:read"),
            format!("{ALICE} key.rotated key:{two} key 2 payments:read"),
        ]
    );
    let all: String =
        sqlx::query_scalar("select string_agg(a::text, ' ') from audit_log a").fetch_one(&db).await.unwrap();
    for n in [1, 2] {
        let digest: String = secret(n).digest().as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(!all.contains(&digest[..16]), "{all}");
    }
}

/// By SQL alone, as the operators' role could.
#[sqlx::test(migrator = "MIGRATOR")]
async fn the_function_that_records_takes_operators_and_keys_alone(db: PgPool) {
    for (arguments, recorded) in [
        ("'paymentctl/alice', 'key.made', 'key:1', '{}'", true),
        ("'alice', 'key.made', 'key:1', '{}'", false),
        ("'paymentctl/alice', 'case.confirmed', 'key:1', '{}'", false),
        ("'paymentctl/alice', 'key.made', 'case:1', '{}'", false),
        ("null, 'key.made', 'key:1', '{}'", false),
    ] {
        let sql = AssertSqlSafe(format!("select record_operator_act({arguments})"));
        let done: bool = sqlx::query_scalar(sql).fetch_one(&db).await.unwrap();
        assert_eq!(done, recorded, "{arguments}");
    }
    let rows: i64 = sqlx::query_scalar("select count(*) from audit_log").fetch_one(&db).await.unwrap();
    assert_eq!(rows, 1);
}
