//! The simulator as one server: state, routes, start and stop.

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

use crate::calls::Calls;
use crate::clock;
use crate::deliver::Deliveries;
use crate::faults::Faults;
use crate::keys::SimKeys;
use crate::ledger::{Gateway, Ledger, Refusal, Trade, TradeKey};
use crate::notify::{Overrides, SignedCallback};
use crate::{alipay, control, notify, pages, wechat};

/// No gateway accepts a larger body.
const BODY_LIMIT: usize = 64 * 1024;

/// The options of a simulator.
#[derive(Debug, Clone)]
pub struct Options {
    /// The pauses of the callback schedules are divided by this number.
    pub speed: f64,
    /// The seed of the dice that decide on faults.
    pub seed: u64,
    /// The maximum number of trades; the oldest is dropped for a new one.
    pub max_trades: usize,
    /// The maximum number of callbacks in flight.
    pub max_deliveries: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options { speed: 1.0, seed: 1, max_trades: 1_000_000, max_deliveries: 64 }
    }
}

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

/// The state that all handlers share.
pub(crate) type Shared = Arc<Sim>;

#[derive(Debug)]
pub(crate) struct Sim {
    pub(crate) keys: SimKeys,
    pub(crate) ledger: Ledger,
    pub(crate) faults: Faults,
    pub(crate) calls: Calls,
    pub(crate) deliveries: Deliveries,
}

impl Sim {
    fn new(keys: SimKeys, options: &Options) -> Result<Sim> {
        Ok(Sim {
            keys,
            ledger: Ledger::new(options.max_trades),
            faults: Faults::new(options.seed),
            calls: Calls::default(),
            deliveries: Deliveries::new(options.speed, options.max_deliveries)?,
        })
    }

    /// The trade with this number; `Differs` if several accounts use it and none is named.
    pub(crate) fn one_trade(
        &self,
        gateway: Gateway,
        out_trade_no: &str,
        account: Option<&str>,
    ) -> Result<TradeKey, Refusal> {
        let accounts: Vec<String> = match (account, gateway) {
            (Some(account), _) => vec![account.to_owned()],
            (None, Gateway::Alipay) => self.keys.alipay.iter().map(|merchant| merchant.account.clone()).collect(),
            (None, Gateway::Wechat) => self.keys.wechat.iter().map(|merchant| merchant.account.clone()).collect(),
        };
        let mut found = self.ledger.find(gateway, &accounts, out_trade_no);
        match found.len() {
            0 | 1 => found.pop().ok_or(Refusal::Unknown),
            _ => Err(Refusal::Differs),
        }
    }

    /// The buyer pays, and the callbacks begin.
    pub(crate) fn pay(self: &Arc<Self>, key: &TradeKey) -> Result<Trade, Refusal> {
        let trade = self.ledger.pay(key, clock::now())?;
        info!(out_trade_no = trade.out_trade_no, amount_fen = trade.amount_fen, "{} was paid", trade.out_trade_no);
        self.deliveries.start(self, &trade);
        Ok(trade)
    }

    /// The callback of the trade's last notification; `None` if its account does not exist.
    pub(crate) fn render(&self, trade: &Trade, overrides: &Overrides) -> Option<SignedCallback> {
        match trade.gateway() {
            Gateway::Alipay => {
                self.keys.alipay_account(&trade.account).map(|merchant| notify::alipay(merchant, trade, overrides))
            }
            Gateway::Wechat => {
                self.keys.wechat_account(&trade.account).map(|merchant| notify::wechat(merchant, trade, overrides))
            }
        }
    }

    /// The address of the browser after the payment, if the merchant named one.
    pub(crate) fn return_url(&self, trade: &Trade) -> Option<String> {
        let merchant = self.keys.alipay_account(&trade.account).filter(|_| trade.gateway() == Gateway::Alipay)?;
        alipay::notify::return_url(merchant, trade, clock::now())
    }

    /// The payee's number at the gateway.
    pub(crate) fn merchant_id(&self, trade: &Trade) -> String {
        let id = match trade.gateway() {
            Gateway::Alipay => self.keys.alipay_account(&trade.account).map(|merchant| &merchant.seller_id),
            Gateway::Wechat => self.keys.wechat_account(&trade.account).map(|merchant| &merchant.mchid),
        };
        id.cloned().unwrap_or_default()
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
