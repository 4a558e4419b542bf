//! The simulator as one server: routes, start and stop.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use axum::Router;
use axum::extract::DefaultBodyLimit;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tracing::info;

use crate::clock;
use crate::keys::SimKeys;
use crate::ledger::Trade;
use crate::state::{Options, Shared, Sim};
use crate::{alipay, control, pages, wechat};

/// No gateway accepts a larger body.
const BODY_LIMIT: usize = 64 * 1024;

/// Both gateways, serving. Dropping this value stops them.
#[derive(Debug)]
pub struct Simulator {
    address: SocketAddr,
    sim: Shared,
    stop: Option<oneshot::Sender<()>>,
    server: JoinHandle<()>,
}

impl Simulator {
    /// Serves both gateways on `listen` (port 0: any free one) with the key set in `dir`.
    ///
    /// # Errors
    /// When the key set or the address is invalid.
    pub async fn start(dir: &Path, listen: &str, options: &Options) -> Result<Simulator> {
        let sim = Arc::new(Sim::new(SimKeys::load(dir)?, options)?);
        let listener = TcpListener::bind(listen).await.with_context(|| format!("listening on {listen}"))?;
        let address = listener.local_addr().context("asking for the address listened on")?;
        let (stop, stopped) = oneshot::channel();
        let app = router(Arc::clone(&sim));
        let server = tokio::spawn(async move {
            let until = async {
                let _ = stopped.await; // A message or a dropped sender: both mean stop.
            };
            if let Err(error) = axum::serve(listener, app).with_graceful_shutdown(until).await {
                tracing::error!(%error, "The simulator stopped serving");
            }
        });
        info!("Both gateways listen on http://{address}");
        Ok(Simulator { address, sim, stop: Some(stop), server })
    }

    /// The address on which it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The current keys: the simulator signs with what is changed through them.
    #[must_use]
    pub fn keys(&self) -> &SimKeys {
        &self.sim.keys
    }

    /// Its base address: `http://127.0.0.1:7000`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Books a trade as it is, even a paid one, as if its buyer had already been here. No notice is sent.
    ///
    /// # Errors
    /// When its number is used by a trade that differs or has ended.
    pub fn book(&self, trade: Trade) -> Result<()> {
        let number = trade.out_trade_no.clone();
        let booked = self.sim.ledger.place(trade, clock::now());
        booked.map(drop).map_err(|refusal| anyhow!("{number} cannot be booked: {refusal:?}"))
    }

    /// Stops accepting requests and aborts deliveries. It waits for requests under way, for at most 2 s.
    pub async fn stop(mut self) {
        self.sim.deliveries.stop();
        drop(self.stop.take());
        if tokio::time::timeout(Duration::from_secs(2), &mut self.server).await.is_err() {
            self.server.abort();
        }
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        self.sim.deliveries.stop();
    }
}

fn router(sim: Shared) -> Router {
    Router::new()
        .merge(alipay::router())
        .merge(wechat::router())
        .merge(pages::router())
        .merge(control::router())
        .merge(control::refunds::router())
        .merge(control::keys::router())
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(sim)
}
