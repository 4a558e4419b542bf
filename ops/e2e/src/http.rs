//! What every part of a test asks with: HTTP clients, and an answer that was read completely.

use std::sync::OnceLock;
use std::time::Duration;

use reqwest::header::RETRY_AFTER;
use reqwest::{Client, RequestBuilder};
use serde_json::Value;

/// An answer, read completely.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The body.
    pub text: String,
    /// The seconds after which a retry makes sense, if the answer states them.
    pub retry_after: Option<u64>,
}

impl Answer {
    /// The body as JSON, null if it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_default()
    }

    /// The `code` of a problem.
    #[must_use]
    pub fn code(&self) -> String {
        self.json()["code"].as_str().unwrap_or_default().to_owned()
    }
}

/// Sends the request and reads the whole answer.
///
/// # Errors
/// When there is no answer.
pub async fn answer(request: RequestBuilder) -> Result<Answer, reqwest::Error> {
    let response = request.send().await?;
    let status = response.status().as_u16();
    let retry_after = response.headers().get(RETRY_AFTER).and_then(|wait| wait.to_str().ok()?.parse().ok());
    Ok(Answer { status, text: response.text().await?, retry_after })
}

/// The shared client, for everything that needs no connection of its own.
#[must_use]
pub fn http_client() -> Client {
    static CLIENT: OnceLock<Client> = OnceLock::new();
    CLIENT.get_or_init(new_client).clone()
}

/// A client with its own connections.
#[must_use]
pub fn new_client() -> Client {
    install_crypto();
    let builder = Client::builder().no_proxy().timeout(Duration::from_secs(30));
    builder.build().expect("an HTTP client")
}

/// Chooses the crypto provider of this process, before a library does.
pub fn install_crypto() {
    // This fails only if a provider is already installed, and every caller installs the same one.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}
