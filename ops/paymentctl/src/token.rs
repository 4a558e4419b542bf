//! `paymentctl token`: a token of a buyer, for trying things out. It reads the environment alone.

use clap::Args;
use domain::UserId;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use runtime::env::Env;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;
use serde_json::json;
use store::tables::unplaced::NO_USER;
use time::{Duration, OffsetDateTime};

use crate::answer::{Answer, Problem, moment};
use crate::when::span;

/// Whose token, and what it may do.
#[derive(Debug, Clone, Args)]
pub struct Token {
    /// The user.
    #[arg(long, value_name = "USER", value_parser = user)]
    pub sub: UserId,
    /// Words of the claim `scope`, separated by spaces, such as "orders payments".
    #[arg(long, value_name = "WORDS")]
    pub scope: Option<String>,
    /// How long it lives: 30m 2h. With a scope beyond `orders` and `payments` an hour at most, else MAX_TOKEN_AGE.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = span)]
    pub lives: Duration,
}

/// Accepts a user that a token can name.
fn user(text: &str) -> Result<UserId, String> {
    if text == NO_USER {
        return Err("this user owns the orders that no buyer placed".to_owned());
    }
    UserId::parse(text).map_err(|error| error.to_string())
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: String,
    aud: String,
    sub: &'a str,
    iat: i64,
    exp: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<&'a str>,
}

/// How long a token may live, unless `MAX_TOKEN_AGE` says otherwise.
const MAX_AGE: Duration = Duration::DAY;
/// The same for a token with a scope beyond the user's own orders.
const MAX_SCOPED_AGE: Duration = Duration::HOUR;
/// Words of a scope that give access to nothing beyond that.
const OWN: [&str; 3] = ["", "orders", "payments"];

/// Makes the token. Its text is the only line of the answer.
///
/// # Errors
/// [`Problem`] when a variable does not fit, or payment-api would refuse the token.
pub fn run(mut env: Env, token: &Token, now: OffsetDateTime) -> Result<Answer, Problem> {
    const HINT: &str = "set it to the value that payment-api has; `openssl rand -hex 32` makes one";
    let secret = env.secret("JWT_HS256_SECRET", 32, HINT);
    let issuer = env.optional("JWT_ISSUER").unwrap_or_else(|| "payment".to_owned());
    let audience = env.optional("JWT_AUDIENCE").unwrap_or_else(|| "payment-api".to_owned());
    let takes_long = env.switch("LONG_USER_IDS", false);
    let longest = max_age(&mut env);
    let faults: Vec<String> = env.into_faults().0.iter().map(ToString::to_string).collect();
    let (Some(secret), Some(longest)) = (secret, longest) else {
        return Err(Problem::usage(faults.join("\n       "), "every variable is in .env.example"));
    };
    if token.sub.is_long() && !takes_long {
        let said = format!("payment-api would refuse a sub of more than {} characters", UserId::SHORT);
        return Err(Problem::usage(said, "set LONG_USER_IDS=on, if payment-api has it"));
    }
    let is_own = token.scope.as_deref().unwrap_or_default().split(' ').all(|word| OWN.contains(&word));
    let longest = if is_own { longest } else { longest.min(MAX_SCOPED_AGE) };
    if token.lives > longest || token.lives < Duration::SECOND {
        let said = format!("payment-api would refuse a token that lives {} s", token.lives.whole_seconds());
        return Err(Problem::usage(said, format!("give --lives 1s to {}s", longest.whole_seconds())));
    }
    let ends = now + token.lives;
    let claims = Claims {
        iss: issuer,
        aud: audience,
        sub: token.sub.as_str(),
        iat: now.unix_timestamp(),
        exp: ends.unix_timestamp(),
        scope: token.scope.as_deref(),
    };
    let key = EncodingKey::from_secret(secret.expose_secret().as_bytes());
    let text = encode(&Header::new(Algorithm::HS256), &claims, &key);
    let text = text.map_err(|error| Problem::failed(format!("the token was not signed: {error}"), "try again"))?;
    let json = json!({ "sub": token.sub.as_str(), "expires_at": moment(ends) });
    Ok(Answer::done("", json).with_secret("token", SecretString::from(text)))
}

/// `MAX_TOKEN_AGE`, as payment-api reads it: a number and `s`, `m` or `h`, from a minute to 30 days.
fn max_age(env: &mut Env) -> Option<Duration> {
    let Some(text) = env.optional("MAX_TOKEN_AGE") else { return Some(MAX_AGE) };
    let read = span(&text).ok().filter(|_| !text.ends_with('d'));
    let age = read.filter(|age| (Duration::MINUTE..=Duration::days(30)).contains(age));
    if age.is_none() {
        let hint = "set it to a time from 1m to 720h, such as 24h, or leave it out";
        env.fault("MAX_TOKEN_AGE", format!("{text:?} does not fit"), hint);
    }
    age
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use jsonwebtoken::{DecodingKey, Validation, decode};
    use serde_json::Value;
    use time::macros::datetime;

    use super::*;

    const SECRET: &str = "0123456789abcdef0123456789abcdef-hidden";
    const NOW: OffsetDateTime = datetime!(2026-01-05 02:00 UTC);

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        token: Token,
    }

    fn line(words: &[&str]) -> Result<Token, clap::Error> {
        Line::try_parse_from(["test"].iter().chain(words)).map(|line| line.token)
    }

    fn made(variables: &[(&str, &str)], words: &[&str]) -> Result<String, Problem> {
        let variables = [("JWT_HS256_SECRET", SECRET)].iter().chain(variables).copied();
        run(Env::of(variables), &line(words).unwrap(), NOW).map(|answer| answer.printed(false))
    }

    fn decoded(token: &str, secret: &str, issuer: &str, audience: &str) -> Result<Value, jsonwebtoken::errors::Error> {
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_required_spec_claims(&["exp", "aud", "iss", "sub"]);
        validation.set_audience(&[audience]);
        validation.set_issuer(&[issuer]);
        // The test's time has passed.
        validation.validate_exp = false;
        decode::<Value>(token, &DecodingKey::from_secret(secret.as_bytes()), &validation).map(|token| token.claims)
    }

    #[test]
    fn a_token_says_what_was_requested_and_opens_with_its_secret_alone() {
        let token = made(&[], &["--sub", "buyer-1"]).unwrap();
        let claims = decoded(&token, SECRET, "payment", "payment-api").unwrap();
        let at = NOW.unix_timestamp();
        let expected = json!({ "iss": "payment", "aud": "payment-api", "sub": "buyer-1", "iat": at, "exp": at + 3600 });
        assert_eq!(claims, expected);
        assert!(decoded(&token, &SECRET.replace('0', "1"), "payment", "payment-api").is_err());
        assert!(decoded(&token, SECRET, "other", "payment-api").is_err());
        assert!(decoded(&token, SECRET, "payment", "other").is_err());

        let words = ["--sub", "alice", "--scope", "payments:admin", "--lives", "5m"];
        let token = made(&[("JWT_ISSUER", "shop"), ("JWT_AUDIENCE", "pay")], &words).unwrap();
        let claims = decoded(&token, SECRET, "shop", "pay").unwrap();
        assert_eq!((&claims["scope"], &claims["exp"]), (&json!("payments:admin"), &json!(at + 300)));
    }

    #[test]
    fn what_payment_api_would_refuse_is_not_made() {
        let sub = ["--sub", "buyer-1"];
        for (variables, words, fits) in [
            (&[][..], &["--lives", "24h"][..], true),
            (&[], &["--lives", "86401s"], false),
            (&[], &["--lives", "0s"], false),
            (&[], &["--lives", "2h", "--scope", "orders payments"], true),
            (&[], &["--lives", "1h", "--scope", "payments:read"], true),
            (&[], &["--lives", "61m", "--scope", "payments:read"], false),
            (&[], &["--lives", "61m", "--scope", "orders payments:admin"], false),
            (&[("MAX_TOKEN_AGE", "30m")], &["--lives", "30m"], true),
            (&[("MAX_TOKEN_AGE", "30m")], &[], false),
            (&[("MAX_TOKEN_AGE", "720h")], &["--lives", "30d"], true),
            (&[("MAX_TOKEN_AGE", "2d")], &[], false),
            (&[("MAX_TOKEN_AGE", "59s")], &[], false),
        ] {
            let made = made(variables, &[&sub[..], words].concat());
            assert_eq!(made.is_ok(), fits, "{variables:?} {words:?}: {:?}", made.err());
        }
        let long = ["--sub", "7f1c2f0e-5a2b-4c1d-9e3f-0a1b2c3d4e5f"];
        assert!(made(&[], &long).is_err() && made(&[("LONG_USER_IDS", "on")], &long).is_ok());
        for sub in ["", "-", "two words", &"x".repeat(65)] {
            assert!(line(&["--sub", sub]).is_err(), "{sub}");
        }
    }

    #[test]
    fn a_secret_that_is_none_is_named_and_not_shown() {
        for wrong in ["", "hidden", "change-me-0123456789-0123456789-0123456789"] {
            let token = line(&["--sub", "buyer-1"]).unwrap();
            let problem = run(Env::of([("JWT_HS256_SECRET", wrong)]), &token, NOW).unwrap_err();
            let text = problem.to_string();
            assert!(problem.usage && text.contains("JWT_HS256_SECRET"), "{text}");
            assert!(wrong.is_empty() || !text.contains(wrong), "{text}");
        }
    }
}
