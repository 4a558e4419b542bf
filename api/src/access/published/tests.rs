//! Published keys follow their issuer. A bad answer changes nothing, and unknown keys cause one fetch in 30 s.

use std::sync::Mutex as StdMutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::FutureExt;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, get_current_timestamp};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::*;
use crate::access::auth::Authenticator;
use crate::access::key::Issuer;

/// An issuer on this machine: its answer, and how often it was asked.
struct Provider {
    url: String,
    state: Arc<Answers>,
}

struct Answers {
    answer: StdMutex<(StatusCode, String)>,
    asked: AtomicUsize,
}

async fn answer(State(state): State<Arc<Answers>>) -> Response {
    state.asked.fetch_add(1, Ordering::SeqCst);
    let (status, text) = state.answer.lock().unwrap().clone();
    // Where a redirect would lead; other answers have it in vain.
    (status, [(header::LOCATION, "/good")], text).into_response()
}

impl Provider {
    async fn new(set: &Value) -> Provider {
        runtime::telemetry::install_crypto();
        let state =
            Arc::new(Answers { answer: StdMutex::new((StatusCode::OK, set.to_string())), asked: AtomicUsize::new(0) });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/keys", listener.local_addr().unwrap());
        let good = set.to_string();
        let router = Router::new().route("/keys", get(answer)).with_state(state.clone());
        let router = router.route("/good", get(|| async move { good }));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Provider { url, state }
    }

    fn authenticator(&self) -> (Authenticator, Arc<Published>) {
        let published = Arc::new(Published::at("JWT_JWKS_URL", &self.url, users(), None).unwrap());
        (Authenticator::new().with_published(published.clone()), published)
    }

    fn answers(&self, status: StatusCode, text: impl Into<String>) {
        *self.state.answer.lock().unwrap() = (status, text.into());
    }

    fn asked(&self) -> usize {
        self.state.asked.load(Ordering::SeqCst)
    }
}

impl Published {
    /// Makes the last fetch older.
    async fn half_a_minute_later(&self) {
        let mut last = self.last.lock().await;
        *last = last.map(|last| Fetch { at: last.at - AT_MOST_EVERY, ..last });
    }
}

fn users() -> Claimed {
    Claimed { of: Issuer::Buyers, issuer: "payment".to_owned(), audience: "payment-api".to_owned() }
}

/// A key of the issuer.
struct Signer {
    kid: &'static str,
    private: EncodingKey,
}

impl Signer {
    fn new(kid: &'static str) -> Signer {
        runtime::telemetry::install_crypto();
        let pem = testkit::RsaPair::generate().private_pem();
        Signer { kid, private: EncodingKey::from_rsa_pem(pem.as_bytes()).unwrap() }
    }

    fn jwk(&self) -> Value {
        let mut jwk = Jwk::from_encoding_key(&self.private, Algorithm::RS256).unwrap();
        jwk.common.key_id = Some(self.kid.to_owned());
        serde_json::to_value(jwk).unwrap()
    }

    fn set(&self) -> Value {
        json!({ "keys": [self.jwk()] })
    }

    fn token(&self) -> String {
        let now = get_current_timestamp();
        let claims = json!({ "sub": "u1", "iss": "payment", "aud": "payment-api", "iat": now, "exp": now + 300 });
        let header = Header { kid: Some(self.kid.to_owned()), ..Header::new(Algorithm::RS256) };
        encode(&header, &claims, &self.private).unwrap()
    }
}

/// Whether a request with the token of this key gets in.
async fn takes(authenticator: &Authenticator, signer: &Signer) -> bool {
    let token = signer.token();
    authenticator.learn(&token).await;
    authenticator.caller(&token).is_ok()
}

#[tokio::test]
async fn a_new_key_is_learned_when_a_token_names_it_and_an_old_one_goes() {
    let (old, new) = (Signer::new("old"), Signer::new("new"));
    let provider = Provider::new(&old.set()).await;
    let (authenticator, published) = provider.authenticator();
    assert!(takes(&authenticator, &old).await, "the first token waits for the first fetch");
    for _ in 0..5 {
        assert!(takes(&authenticator, &old).await);
    }
    assert_eq!(provider.asked(), 1, "a known key causes no fetch");
    provider.answers(StatusCode::OK, new.set().to_string());
    assert!(!takes(&authenticator, &new).await && takes(&authenticator, &old).await);
    assert_eq!(provider.asked(), 1, "not within 30 s");
    published.half_a_minute_later().await;
    assert!(takes(&authenticator, &new).await, "the request itself gets in");
    assert!(!takes(&authenticator, &old).await, "a key that is no longer published verifies nothing");
    assert_eq!(provider.asked(), 2);
}

#[tokio::test]
async fn an_answer_that_is_no_set_of_keys_leaves_the_keys_as_they_are() {
    let (old, new) = (Signer::new("old"), Signer::new("new"));
    let provider = Provider::new(&old.set()).await;
    let (authenticator, published) = provider.authenticator();
    assert!(takes(&authenticator, &old).await);
    let encryption = json!({ "keys": [{ "kty": "RSA", "use": "enc", "kid": "e", "n": "AQAB", "e": "AQAB" }] });
    let padded = format!("{}{}", new.set(), " ".repeat(LARGEST));
    for (n, (status, text)) in [
        (StatusCode::BAD_GATEWAY, new.set().to_string()),
        (StatusCode::NO_CONTENT, String::new()),
        (StatusCode::FOUND, String::new()),
        (StatusCode::OK, String::new()),
        (StatusCode::OK, "<html>signed out</html>".to_owned()),
        (StatusCode::OK, "{}".to_owned()),
        (StatusCode::OK, json!({ "keys": [] }).to_string()),
        (StatusCode::OK, encryption.to_string()),
        (StatusCode::OK, padded),
    ]
    .into_iter()
    .enumerate()
    {
        provider.answers(status, text.clone());
        published.half_a_minute_later().await;
        assert!(!takes(&authenticator, &new).await, "{status} {text:.80}");
        assert_eq!(provider.asked(), n + 2, "{status} {text:.80}");
        assert!(takes(&authenticator, &old).await, "{status} {text:.80}");
    }
    provider.answers(StatusCode::OK, new.set().to_string());
    published.half_a_minute_later().await;
    assert!(takes(&authenticator, &new).await);
}

#[tokio::test]
async fn keys_of_other_kinds_are_left_out_of_a_published_set() {
    let mine = Signer::new("mine");
    let others = [
        json!({ "kty": "oct", "k": "c2VjcmV0", "kid": "secret" }),
        json!({ "kty": "new-kind", "kid": "later" }),
        json!({ "kty": "EC", "crv": "P-384", "x": "AA", "y": "AA", "kid": "large" }),
        json!("no key at all"),
    ];
    let mut members = others.to_vec();
    members.push(mine.jwk());
    let set = Set::read(&json!({ "keys": members }).to_string(), &users()).ok().unwrap();
    assert_eq!(set.keys.iter().map(|key| key.kid.as_deref()).collect::<Vec<_>>(), [Some("mine")]);
    assert_eq!(set.left_out.len(), others.len());
    assert!(!set.left_out.join(" ").contains("c2VjcmV0"), "{:?}", set.left_out);
}

#[tokio::test]
async fn strangers_cause_one_fetch_whether_they_wait_or_go_away() {
    let (known, unknown) = (Signer::new("known"), Signer::new("unknown"));
    let provider = Provider::new(&known.set()).await;
    let (authenticator, published) = provider.authenticator();
    let authenticator = Arc::new(authenticator);
    // The first poll starts the fetch, and then its caller is gone.
    assert!(authenticator.learn(&unknown.token()).now_or_never().is_none());
    let requests = (0..64).map(|_| {
        let (authenticator, token) = (authenticator.clone(), unknown.token());
        tokio::spawn(async move { authenticator.learn(&token).await })
    });
    futures_util::future::join_all(requests).await;
    assert_eq!(provider.asked(), 1);
    // Neither names a published key.
    published.half_a_minute_later().await;
    let claims = json!({ "sub": "u1" });
    let secret = EncodingKey::from_secret(b"0123456789abcdef0123456789abcdef");
    let named = Header { kid: Some("key-of-a-shop".to_owned()), ..Header::new(Algorithm::HS256) };
    for token in [encode(&named, &claims, &secret).unwrap(), "no token".to_owned()] {
        authenticator.learn(&token).await;
    }
    assert_eq!(provider.asked(), 1);
}

#[tokio::test]
async fn keys_are_fetched_again_by_themselves_sooner_after_a_failure() {
    let signer = Signer::new("k1");
    let provider = Provider::new(&signer.set()).await;
    let (authenticator, published) = provider.authenticator();
    for (status, asked) in [(StatusCode::BAD_GATEWAY, 1), (StatusCode::OK, 2), (StatusCode::OK, 2)] {
        provider.answers(status, signer.set().to_string());
        published.fetch_if(Fetch::is_due).await;
        assert_eq!((provider.asked(), authenticator.caller(&signer.token()).is_ok()), (asked, asked == 2));
        published.half_a_minute_later().await;
    }
    for _ in 0..9 {
        published.half_a_minute_later().await;
    }
    published.fetch_if(Fetch::is_due).await;
    assert_eq!(provider.asked(), 3, "good keys are fetched again after five minutes");
}

#[test]
fn a_url_that_anyone_on_the_way_could_answer_is_refused() {
    runtime::telemetry::install_crypto();
    for (text, wrong) in [
        ("http://id.example.com/keys", "it does not begin with https://"),
        ("http://127.0.0.1.example.com/keys", "it does not begin with https://"),
        ("file:///etc/payment/jwks.json", "it does not begin with https://"),
        ("https://shop:secret@id.example.com/keys", "it holds a user or a password"),
        ("id.example.com/keys", "relative URL without a base"),
    ] {
        assert_eq!(Published::at("JWT_JWKS_URL", text, users(), None).err().as_deref(), Some(wrong), "{text}");
    }
    for text in ["https://id.example.com/keys", "http://127.0.0.1:8080/keys", "http://[::1]/keys"] {
        assert!(Published::at("JWT_JWKS_URL", text, users(), None).is_ok(), "{text}");
    }
}
