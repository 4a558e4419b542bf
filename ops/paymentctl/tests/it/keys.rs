//! API keys made, confirmed, listed, rotated, revoked.

use clap::Parser;
use domain::{ApiKeyId, ApiKeyText, KeyDigest};
use paymentctl::answer::{Answer, Problem};
use paymentctl::keys::{self, Command};
use runtime::env::Env;
use runtime::seal::SealKeys;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use sqlx::PgPool;
use store::MIGRATOR;
use store::tables::api_keys::{self, offer_secret_place};

use crate::world::{line, place, texts};

async fn run_as(db: &PgPool, words: &str, operator: &str) -> Result<Answer, Problem> {
    keys::run(&place(db), &line::<Command>(words), Some(operator), Some(&seal())).await
}

/// A key that seals secrets.
fn seal() -> SealKeys {
    let mut env = Env::of([("SEAL_KEY", "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef")]);
    SealKeys::from_env(&mut env).unwrap().unwrap()
}

async fn run(db: &PgPool, words: &str) -> Result<Answer, Problem> {
    run_as(db, words, "alice").await
}

/// The text of a key that an answer shows, and its id.
fn shown(answer: &Answer) -> ApiKeyText {
    ApiKeyText::parse(answer.secret.as_ref().expect("a secret").text.expose_secret()).expect("the text of a key")
}

/// Whether this text of a key opens at present.
async fn opens(db: &PgPool, text: &ApiKeyText) -> bool {
    let active = api_keys::active(db).await.unwrap();
    let key = active.iter().find(|key| key.id == text.id && key.environment == text.environment);
    let digests: Vec<KeyDigest> = key.into_iter().flat_map(|key| &key.secrets).map(|secret| secret.digest).collect();
    digests.contains(&text.digest)
}

async fn everything(db: &PgPool) -> String {
    let mut rows = texts(db, "select row(k.*)::text from api_keys k order by id").await;
    rows.extend(texts(db, "select row(a.*)::text from audit_log a order by id").await);
    rows.extend(texts(db, "select version::text from api_keys_version").await);
    rows.join("\n")
}

#[derive(Debug, Parser)]
struct Line {
    #[command(subcommand)]
    command: Command,
}

/// What the command line says of words that it does not accept.
fn refused(words: &str) -> String {
    Line::try_parse_from(["keys"].into_iter().chain(words.split_whitespace())).unwrap_err().to_string()
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_secret_is_shown_once_and_the_database_never_has_it(db: PgPool) {
    let add = "add --name shop --scopes payments:orders,payments:read --networks 203.0.113.7,10.0.0.0/8 --expires 90d";
    let before = everything(&db).await;
    let dry = run(&db, add).await.unwrap();
    assert!(
        dry.text.starts_with("would make the key \"shop\" (live, active), which may payments:orders payments:read")
    );
    assert!(
        dry.text.contains("from 203.0.113.7/32 10.0.0.0/8, until ") && dry.text.contains("--yes does it"),
        "{dry:?}"
    );
    assert!(dry.secret.is_none() && dry.json["id"].is_null(), "{dry:?}");
    assert_eq!(everything(&db).await, before, "nothing was changed");

    let made = run(&db, &format!("{add} --yes")).await.unwrap();
    let (key, text) = (shown(&made), made.printed(false));
    let secret = made.secret.as_ref().unwrap().text.expose_secret();
    assert!(secret.starts_with("sk_live_"));
    assert_eq!((text.matches(secret).count(), text.lines().last()), (1, Some(secret)));
    assert!(text.contains("shown this once"), "{}", made.text);
    let printed: Value = serde_json::from_str(&made.printed(true)).unwrap();
    assert_eq!((&printed["secret"], &printed["id"]), (&json!(secret), &json!(key.id.to_string())));
    assert!(!format!("{made:?}").contains(secret));
    assert!(opens(&db, &key).await);

    let digits = secret.rsplit('_').next().unwrap();
    for kept in [everything(&db).await, run(&db, "list").await.unwrap().printed(true)] {
        assert!(kept.contains(&key.id.to_string()) && !kept.contains(digits), "{kept}");
    }
    let digest: String = key.digest.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    let acts = texts(&db, "select subject || ' ' || act || ' ' || object || detail::text from audit_log").await;
    assert_eq!(acts.len(), 1);
    assert!(acts[0].starts_with(&format!("paymentctl/alice key.made key:{}", key.id)), "{acts:?}");
    assert!(acts[0].contains("payments:orders payments:read") && !acts[0].contains(&digest), "{acts:?}");

    let taken = run(&db, &format!("{add} --yes")).await.unwrap_err();
    assert!(taken.said.contains("another key has or had this name"), "{taken}");
    assert!(run(&db, add).await.unwrap().text.contains("but another key has or had this name"));
    let test = run(&db, "add --name try --scopes payments:read --test --yes").await.unwrap();
    assert!(test.secret.as_ref().unwrap().text.expose_secret().starts_with("sk_test_"));
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_key_that_returns_money_takes_two_persons(db: PgPool) {
    let made = run(&db, "add --name refunds --scopes payments:refund --yes").await.unwrap();
    let key = shown(&made);
    assert!(made.text.contains("it is useless until another person runs"), "{}", made.text);
    assert!(!opens(&db, &key).await);
    let (confirm, rotate) = (format!("confirm {} --yes", key.id), format!("rotate {} --yes", key.id));
    for same in ["alice", "Alice", "ALICE"] {
        let problem = run_as(&db, &confirm, same).await.unwrap_err();
        assert!(problem.said.contains("the person who made the key cannot confirm it"), "{problem}");
        let dry = run_as(&db, &format!("confirm {}", key.id), same).await.unwrap_err();
        assert_eq!(dry, problem);
    }
    assert!(run_as(&db, &rotate, "bob").await.unwrap_err().said.contains("waits for another person"));
    let dry = run_as(&db, &format!("confirm {}", key.id), "bob").await.unwrap();
    assert!(dry.text.contains("which paymentctl/alice made: it may payments:refund"), "{}", dry.text);
    assert!(!opens(&db, &key).await);

    let done = run_as(&db, &confirm, "bob").await.unwrap();
    assert!(done.secret.is_none() && opens(&db, &key).await);
    let again = run_as(&db, &confirm, "bob").await.unwrap_err();
    assert!(again.said.contains("is active already"), "{again}");
    let acts = texts(&db, "select subject || ' ' || act from audit_log order by id").await;
    assert_eq!(acts, ["paymentctl/alice key.proposed", "paymentctl/bob key.confirmed"]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_key_is_rotated_and_revoked(db: PgPool) {
    let first = shown(&run(&db, "add --name shop --scopes payments:read --yes").await.unwrap());
    let id = first.id;
    let before = everything(&db).await;
    for words in [format!("rotate {id}"), format!("revoke {id}")] {
        let dry = run(&db, &words).await.unwrap();
        assert!(dry.secret.is_none() && dry.text.contains("nothing was changed"), "{dry:?}");
    }
    assert_eq!(everything(&db).await, before);

    let answer = run(&db, &format!("rotate {id} --yes")).await.unwrap();
    let second = shown(&answer);
    assert!(answer.text.contains("the secret before it counts until 20"), "{}", answer.text);
    assert_eq!((second.id, second.digest == first.digest), (id, false));
    assert!(opens(&db, &first).await && opens(&db, &second).await);
    let dry = run(&db, &format!("rotate {id}")).await.unwrap();
    assert!(dry.text.contains("ends at once"), "{}", dry.text);
    let third = shown(&run(&db, &format!("rotate {id} --overlap 1h --yes")).await.unwrap());
    let open = [opens(&db, &first).await, opens(&db, &second).await, opens(&db, &third).await];
    assert_eq!(open, [false, true, true], "a third drops the oldest");
    // One leaked.
    let answer = run(&db, &format!("rotate {id} --overlap 0s --yes")).await.unwrap();
    let last = shown(&answer);
    assert!(answer.text.contains("the secret before it has ended"), "{}", answer.text);
    assert_eq!([opens(&db, &third).await, opens(&db, &last).await], [false, true]);

    run(&db, &format!("revoke {id} --yes")).await.unwrap();
    assert!(!opens(&db, &last).await);
    for words in ["rotate", "revoke", "confirm"] {
        let problem = run_as(&db, &format!("{words} {id} --yes"), "bob").await.unwrap_err();
        assert!(!problem.usage && problem.said.contains("the key is revoked"), "{words}: {problem}");
    }
    let acts = texts(&db, "select act from audit_log order by id").await;
    assert_eq!(acts, ["key.made", "key.rotated", "key.rotated", "key.rotated", "key.revoked"]);
}

/// The secrets of offers that count at present, opened as `payment-api` opens them, with whether one has an end.
async fn offer_secrets(db: &PgPool, id: ApiKeyId) -> Vec<(String, bool)> {
    let active = api_keys::active(db).await.unwrap();
    let key = active.iter().find(|key| key.id == id).expect("an active key");
    let (seal, id) = (seal(), id.to_string());
    let open = |sealed: &[u8]| String::from_utf8(seal.open(&offer_secret_place(&id), sealed).unwrap()).unwrap();
    key.offer_secrets.iter().map(|secret| (open(&secret.sealed), secret.until.is_some())).collect()
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_key_gets_secrets_for_its_offers(db: PgPool) {
    let id = shown(&run(&db, "add --name shop --scopes payments:orders --yes").await.unwrap()).id;
    let before = everything(&db).await;
    let dry = run(&db, &format!("offer-secret {id}")).await.unwrap();
    assert!(dry.secret.is_none() && dry.text.contains("would make a secret for the offers of"), "{dry:?}");
    assert_eq!(everything(&db).await, before);

    let yes = format!("offer-secret {id} --yes");
    let text = |answer: &Answer| answer.secret.as_ref().expect("a secret").text.expose_secret().to_owned();
    let made = run(&db, &yes).await.unwrap();
    let first = text(&made);
    assert!(first.starts_with("os_") && made.text.contains("no other one counts"), "{}", made.text);
    assert!(!made.text.contains(&first) && made.json["offer_secret"].is_null(), "the text is shown by its own line");
    assert_eq!(offer_secrets(&db, id).await, [(first.clone(), false)]);
    assert!(!everything(&db).await.contains(&first), "the database never has it");

    let answer = run(&db, &yes).await.unwrap();
    let second = text(&answer);
    assert!(answer.text.contains("the one before it counts until 20"), "{}", answer.text);
    assert_eq!(offer_secrets(&db, id).await, [(second.clone(), false), (first, true)]);
    let dry = run(&db, &format!("offer-secret {id}")).await.unwrap();
    assert!(dry.text.contains("ends at once"), "{}", dry.text);
    // One leaked.
    let third = text(&run(&db, &format!("{yes} --overlap 0s")).await.unwrap());
    assert_eq!(offer_secrets(&db, id).await, [(third, false)]);
    let acts = texts(&db, "select act from audit_log order by id").await;
    assert_eq!(acts, ["key.made", "key.offer_secret_made", "key.offer_secret_made", "key.offer_secret_made"]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_secret_for_offers_needs_a_key_that_orders_and_a_seal(db: PgPool) {
    let reads = shown(&run(&db, "add --name reads --scopes payments:read --yes").await.unwrap()).id;
    let orders = shown(&run(&db, "add --name orders --scopes payments:orders --yes").await.unwrap()).id;
    let gone = shown(&run(&db, "add --name gone --scopes payments:orders --yes").await.unwrap()).id;
    run(&db, &format!("revoke {gone} --yes")).await.unwrap();
    let before = everything(&db).await;
    for (id, said) in [
        (reads, "payments:orders"),
        (gone, "the key is revoked"),
        (ApiKeyId::from_bytes([7; 8]), "there is no such key"),
    ] {
        let problem = run(&db, &format!("offer-secret {id} --yes")).await.unwrap_err();
        assert!(!problem.usage && problem.to_string().contains(said), "{problem}");
    }
    let words = line::<Command>(&format!("offer-secret {orders} --yes"));
    let unsealed = keys::run(&place(&db), &words, Some("alice"), None).await.unwrap_err();
    assert!(unsealed.usage && unsealed.said == "SEAL_KEY is not set", "{unsealed}");
    assert_eq!(everything(&db).await, before);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn keys_are_listed_with_what_a_person_needs(db: PgPool) {
    assert_eq!(run(&db, "list").await.unwrap().text, "no such key");
    run(&db, "add --name 商城 --scopes payments:read,payments:orders,payments:read --yes").await.unwrap();
    let old = shown(&run(&db, "add --name old --scopes payments:refund --expires 1h --yes").await.unwrap());
    run(&db, &format!("revoke {} --yes", old.id)).await.unwrap();
    let list = run(&db, "list").await.unwrap();
    let lines: Vec<&str> = list.text.lines().collect();
    assert!(lines[0].starts_with("KEY") && lines.len() == 3, "{}", list.text);
    assert!(lines[1].contains("old") && lines[1].contains("revoked"), "the newest first: {}", list.text);
    assert!(lines[2].contains("商城") && lines[2].ends_with("payments:orders payments:read"), "{}", list.text);
    let keys = &list.json["keys"];
    assert_eq!(keys[1]["scopes"], json!(["payments:orders", "payments:read"]));
    assert_eq!((&keys[1]["proposed_by"], &keys[1]["last_used_at"]), (&json!("paymentctl/alice"), &Value::Null));
    assert!(keys[0]["expires_at"].is_string() && keys[0]["digest"].is_null(), "{keys}");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn what_cannot_work_is_refused_with_what_to_do(db: PgPool) {
    let unknown = ApiKeyId::from_bytes([7; 8]);
    for words in ["confirm", "rotate", "revoke"] {
        for yes in ["", " --yes"] {
            let problem = run(&db, &format!("{words} {unknown}{yes}")).await.unwrap_err();
            assert!(!problem.usage && problem.said.contains("there is no such key"), "{words}: {problem}");
        }
        let unsigned = keys::run(&place(&db), &line::<Command>(&format!("{words} {unknown} --yes")), None, None).await;
        assert_eq!(unsigned.unwrap_err().said, "no operator is named");
    }
    let unsigned = line::<Command>("add --name a --scopes payments:read --yes");
    let unsigned = keys::run(&place(&db), &unsigned, None, None).await.unwrap_err();
    assert!(unsigned.usage && unsigned.said == "no operator is named", "{unsigned}");
    let late = run(&db, "add --name a --scopes payments:read --expires 2020-01-01 --yes").await.unwrap_err();
    assert!(late.usage && late.said.contains("expired already"), "{late}");
    assert!(run(&db, "add --name a --scopes payments:read --expires 0s").await.unwrap_err().usage);
    assert!(everything(&db).await.lines().count() == 1, "no row but the version");

    let allowed = "a key may have payments:orders, payments:read, payments:refund, payments:config, payments:notices, \
                   payments:events, payments:reconcile, payments:keys";
    for (scopes, said) in [
        ("payments:admin", "only a person has this scope"),
        ("payments:read,payments:cases.confirm", "only a person has this scope"),
        ("payments:cases.propose", "only a person has this scope"),
        ("payments:strange", "no such scope"),
        ("payments:read,", "no such scope"),
    ] {
        let text = refused(&format!("add --name a --scopes {scopes}"));
        assert!(text.contains(said) && text.contains(allowed), "{scopes}: {text}");
    }
    for (words, said) in [
        ("add --name a", "--scopes"),
        ("add --scopes payments:read", "--name"),
        ("add --name a --scopes payments:read --networks 10.0.0.1/8", "did you mean 10.0.0.0/8?"),
        ("add --name a --scopes payments:read --networks here", "203.0.113.0/24"),
        ("add --name a --scopes payments:read --expires soon", "12h 90d"),
        ("rotate 0123456789abcdef --overlap 31d", "no more than 30d"),
        ("revoke 0123456789ABCDEF", "16 lower-case hex digits"),
        ("revoke sk_live_0123456789abcdef", "16 lower-case hex digits"),
    ] {
        let text = refused(words);
        assert!(text.contains(said), "{words}: {text}");
    }
}
