//! Keys follow the changes of their files. A bad file changes nothing.

use std::fs;

use domain::OrderId;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, get_current_timestamp};
use serde_json::json;

use super::*;

const ONE: &str = "0123456789abcdef0123456789abcdef-one";
const TWO: &str = "0123456789abcdef0123456789abcdef-two";
const VIEW: &str = "fedcba9876543210fedcba9876543210-view";

/// A temporary folder with the files that the environment names.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        runtime::telemetry::install_crypto();
        let folder = std::env::temp_dir().join(format!("token-keys-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        Folder(folder)
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn token(secret: &str) -> String {
    let now = get_current_timestamp();
    let claims = json!({ "sub": "u1", "iss": "payment", "aud": "payment-api", "iat": now, "exp": now + 300 });
    encode(&Header::new(Algorithm::HS256), &claims, &EncodingKey::from_secret(secret.as_bytes())).unwrap()
}

fn faults(variables: &[(&str, &str)]) -> String {
    let mut env = Env::of(variables.iter().copied());
    assert!(TokenKeys::from_env(&mut env).is_none());
    env.finish().unwrap_err().to_string()
}

#[test]
fn files_that_change_are_taken_up_whole_or_not_at_all() {
    let folder = Folder::new("reload");
    let (jwt, view) = (folder.write("jwt", ONE), folder.write("view", VIEW));
    let mut env = Env::of([("JWT_HS256_SECRET_FILE", jwt.as_str()), ("VIEW_TOKEN_SECRET_FILE", view.as_str())]);
    let (keys, authenticator, views) = TokenKeys::from_env(&mut env).unwrap();
    env.finish().unwrap();
    let mut seen = Seen { judged: keys.print.clone(), last: keys.print.clone() };
    let takes = |secret: &str| authenticator.caller(&token(secret)).is_ok();
    let page = views.mint(OrderId::from_u128(1), OffsetDateTime::UNIX_EPOCH + time::Duration::days(40_000)).unwrap();
    assert!(takes(ONE) && !takes(TWO) && views.open(&page).is_ok());
    for (text, taken) in [
        (TWO, TWO),
        // A placeholder, a short secret, the other secret, and an empty file: the old keys stay in force.
        ("change-me-0123456789-0123456789-0123456789", TWO),
        ("short", TWO),
        (VIEW, TWO),
        ("", TWO),
        (ONE, ONE),
    ] {
        folder.write("jwt", text);
        let before = takes(TWO);
        seen.look(&keys, &authenticator, &views);
        assert_eq!(takes(TWO), before, "{text:?} may still be being written");
        seen.look(&keys, &authenticator, &views);
        assert_eq!((takes(ONE), takes(TWO)), (taken == ONE, taken == TWO), "{text:?}");
        assert!(views.open(&page).is_ok());
    }
    fs::remove_file(folder.0.join("jwt")).unwrap();
    folder.write("view", &VIEW.replace("view", "other"));
    (0..2).for_each(|_| seen.look(&keys, &authenticator, &views));
    assert!(takes(ONE) && views.open(&page).is_ok(), "one of two files is good, and neither counts");
    folder.write("jwt", TWO);
    (0..2).for_each(|_| seen.look(&keys, &authenticator, &views));
    assert!(takes(TWO) && !takes(ONE) && views.open(&page).is_err());
}

#[test]
fn a_set_of_keys_is_taken_up_when_its_file_changes() {
    let folder = Folder::new("jwks");
    let set = |kid: &str, pem: &str| {
        let private = EncodingKey::from_rsa_pem(pem.as_bytes()).unwrap();
        let mut jwk = jsonwebtoken::jwk::Jwk::from_encoding_key(&private, Algorithm::RS256).unwrap();
        jwk.common.key_id = Some(kid.to_owned());
        json!({ "keys": [jwk] }).to_string()
    };
    let (old, new) = (testkit::RsaPair::generate().private_pem(), testkit::RsaPair::generate().private_pem());
    let path = folder.write("jwks.json", &set("old", &old));
    let mut env = Env::of([("JWT_JWKS_FILE", path.as_str()), ("VIEW_TOKEN_SECRET", VIEW)]);
    let (keys, authenticator, views) = TokenKeys::from_env(&mut env).unwrap();
    let takes = |kid: &str, pem: &str| {
        let now = get_current_timestamp();
        let claims = json!({ "sub": "u1", "iss": "payment", "aud": "payment-api", "iat": now, "exp": now + 300 });
        let header = Header { kid: Some(kid.to_owned()), ..Header::new(Algorithm::RS256) };
        let token = encode(&header, &claims, &EncodingKey::from_rsa_pem(pem.as_bytes()).unwrap()).unwrap();
        authenticator.caller(&token).is_ok()
    };
    let mut seen = Seen { judged: keys.print.clone(), last: keys.print.clone() };
    assert!(takes("old", &old) && !takes("new", &new));
    for bad in ["", "{}", "{\"keys\":[]}", &set("new", &new)[..100]] {
        folder.write("jwks.json", bad);
        (0..2).for_each(|_| seen.look(&keys, &authenticator, &views));
        assert!(takes("old", &old), "{bad:?}");
    }
    folder.write("jwks.json", &set("new", &new));
    (0..2).for_each(|_| seen.look(&keys, &authenticator, &views));
    assert!(takes("new", &new) && !takes("old", &old), "a stolen key goes without a restart");
}

#[test]
fn the_secret_before_verifies_until_its_time_and_signs_nothing() {
    runtime::telemetry::install_crypto();
    let old_views = ViewTokens::new(&SecretString::from(TWO));
    let order = OrderId::from_u128(1);
    let expires_at = OffsetDateTime::UNIX_EPOCH + time::Duration::days(40_000);
    for (until, counts) in
        [("2999-01-01T00:00:00Z", true), ("2999-01-01T00:00:00+08:00", true), ("2020-01-01T00:00:00Z", false)]
    {
        let mut env = Env::of([
            ("JWT_HS256_SECRET", ONE),
            ("PREVIOUS_JWT_HS256_SECRET", TWO),
            ("PREVIOUS_JWT_HS256_SECRET_UNTIL", until),
            ("VIEW_TOKEN_SECRET", VIEW),
            ("PREVIOUS_VIEW_TOKEN_SECRET", TWO),
            ("PREVIOUS_VIEW_TOKEN_SECRET_UNTIL", until),
        ]);
        let (_, authenticator, views) = TokenKeys::from_env(&mut env).unwrap();
        env.finish().unwrap();
        assert!(authenticator.caller(&token(ONE)).is_ok());
        assert_eq!(authenticator.caller(&token(TWO)).is_ok(), counts, "{until}");
        assert_eq!(views.open(&old_views.mint(order, expires_at).unwrap()).is_ok(), counts, "{until}");
        let fresh = views.mint(order, expires_at).unwrap();
        assert!(views.open(&fresh).is_ok() && old_views.open(&fresh).is_err(), "the new one signs");
    }
}

#[test]
fn what_is_wrong_with_keys_is_named_at_once_and_shows_none() {
    let folder = Folder::new("faults");
    let secret_as_set = folder.write("jwks.json", "\"0123456789-hidden-secret\"");
    let text = faults(&[
        ("JWT_HS256_SECRET", ONE),
        ("PREVIOUS_JWT_HS256_SECRET", TWO),
        ("PREVIOUS_VIEW_TOKEN_SECRET", "hidden"),
        ("PREVIOUS_VIEW_TOKEN_SECRET_UNTIL", "tomorrow"),
        ("JWT_JWKS_FILE", &secret_as_set),
        ("MAX_TOKEN_AGE", "forever"),
    ]);
    for wrong in [
        "PREVIOUS_JWT_HS256_SECRET_UNTIL: it is not set",
        "PREVIOUS_VIEW_TOKEN_SECRET_UNTIL: \"tomorrow\" is not an RFC 3339 time",
        "VIEW_TOKEN_SECRET: it is not set",
        "JWT_JWKS_FILE: it is not a JWKS: see line 1",
        "MAX_TOKEN_AGE: \"forever\" does not fit",
    ] {
        assert!(text.contains(wrong), "{wrong}: {text}");
    }
    assert!(!text.contains("hidden") && !text.contains(ONE) && !text.contains(TWO), "{text}");
    for age in ["0h", "59s", "721h", "24", "h", "-1h", "1.5h", "99999999999999999999h"] {
        let text = faults(&[("JWT_HS256_SECRET", ONE), ("VIEW_TOKEN_SECRET", VIEW), ("MAX_TOKEN_AGE", age)]);
        assert!(text.contains("MAX_TOKEN_AGE"), "{age}: {text}");
    }
    let read = |age: &str| max_token_age(&mut Env::of([("MAX_TOKEN_AGE", age)])).map(|age| age.as_secs());
    assert_eq!(["", "1m", "60s", "720h"].map(read), [Some(86_400), Some(60), Some(60), Some(2_592_000)]);
}

#[test]
fn longer_user_ids_are_a_switch_that_is_off() {
    let takes = |value: Option<&'static str>| {
        let variables = [("JWT_HS256_SECRET", ONE), ("VIEW_TOKEN_SECRET", VIEW)].into_iter();
        let mut env = Env::of(variables.chain(value.map(|value| ("LONG_USER_IDS", value))));
        let takes = TokenKeys::from_env(&mut env).map(|(_, authenticator, _)| authenticator.takes_long_user_ids());
        env.finish().map(|()| takes).map_err(|faults| faults.to_string())
    };
    runtime::telemetry::install_crypto();
    for (value, long) in [(None, false), (Some("off"), false), (Some("on"), true), (Some("1"), true)] {
        assert_eq!(takes(value), Ok(Some(long)), "{value:?}");
    }
    assert!(takes(Some("64")).unwrap_err().contains("LONG_USER_IDS: it is neither on nor off"));
}

#[test]
fn an_issuer_has_a_file_or_a_url_and_a_name_of_its_own() {
    let folder = Folder::new("issuers");
    let file = folder.write("jwks.json", "{}");
    let mut env = Env::of([
        ("JWT_JWKS_URL", "http://id.example.com/keys"),
        ("VIEW_TOKEN_SECRET", VIEW),
        ("SERVICE_JWT_JWKS_FILE", file.as_str()),
        ("SERVICE_JWT_JWKS_URL", "https://id.example.com/keys"),
        ("STAFF_JWT_JWKS_URL", "https://id.example.com/keys"),
        ("STAFF_JWT_ISSUER", "payment"),
        ("STAFF_JWT_AUDIENCE", "payment-api"),
    ]);
    TokenKeys::from_env(&mut env);
    let text = env.finish().unwrap_err().to_string();
    for wrong in [
        "JWT_JWKS_URL: it does not begin with https://",
        "SERVICE_JWT_JWKS_URL: SERVICE_JWT_JWKS_FILE is set as well",
        "STAFF_JWT_JWKS_URL: its issuer and audience are those of another issuer",
    ] {
        assert!(text.contains(wrong), "{wrong}: {text}");
    }
    let alone = [("JWT_JWKS_URL", "https://id.example.com/keys"), ("VIEW_TOKEN_SECRET", VIEW)];
    let mut env = Env::of(alone);
    assert!(TokenKeys::from_env(&mut env).is_some(), "an issuer that is away does not stop the start");
    env.finish().unwrap();
}
