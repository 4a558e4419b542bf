//! Signed callbacks of both gateways, rendered before anything is measured.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow};
use gateway_sim::keys::SimKeys;
use gateway_sim::ledger::{Product, Trade};
use gateway_sim::notify::{self, Overrides, SignedCallback};

use crate::database::{AMOUNT_FEN, order_no};
use crate::http::{self, Requests};

/// WeChat Pay's clock window is 300 s in both directions. A callback that is signed for this much later can be used
/// for nearly twice as long.
const AHEAD: Duration = Duration::from_secs(270);
/// After this time they are signed again.
const FRESH: Duration = Duration::from_secs(480);

/// Callbacks for the orders 1 to n, one each, for the two gateways in turn. They are signed once, because signing
/// is expensive.
pub(crate) struct Callbacks {
    keys: SimKeys,
    prepared: Mutex<Option<Prepared>>,
}

struct Prepared {
    signed_at: Instant,
    callbacks: Arc<Signed>,
}

/// The same callbacks as requests and as plain bodies.
pub(crate) struct Signed {
    pub(crate) requests: Requests,
    pub(crate) bodies: Vec<Vec<u8>>,
}

impl Callbacks {
    pub(crate) fn new(keys: SimKeys) -> Callbacks {
        Callbacks { keys, prepared: Mutex::default() }
    }

    /// Callbacks for `count` orders from `first` on, signed now and not stored.
    pub(crate) fn fresh(&self, first: u32, count: u32) -> Result<Signed> {
        sign(&self.keys, first, count)
    }

    /// Exactly `count` callbacks, for the orders from 1 on.
    pub(crate) fn signed(&self, count: u32) -> Result<Arc<Signed>> {
        let mut prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(prepared) = &*prepared
            && prepared.signed_at.elapsed() < FRESH
            && prepared.callbacks.bodies.len() == count as usize
        {
            return Ok(prepared.callbacks.clone());
        }
        let signed_at = Instant::now();
        let callbacks = Arc::new(sign(&self.keys, 1, count)?);
        *prepared = Some(Prepared { signed_at, callbacks: callbacks.clone() });
        Ok(callbacks)
    }
}

/// Signs on all processors.
fn sign(keys: &SimKeys, first: u32, count: u32) -> Result<Signed> {
    let sent = SystemTime::now().duration_since(UNIX_EPOCH)? + AHEAD;
    let overrides = Overrides { at: Some(i64::try_from(sent.as_secs())?), ..Overrides::default() };
    let threads = u32::try_from(thread::available_parallelism().map_or(1, usize::from))?;
    let parts: Vec<Result<Vec<SignedCallback>>> = thread::scope(|scope| {
        let spawn = |part: u32| {
            let (from, to) = (first + count * part / threads, first + count * (part + 1) / threads);
            let overrides = &overrides;
            scope.spawn(move || (from..to).map(|order| one(keys, order, overrides)).collect())
        };
        let running: Vec<_> = (0..threads).map(spawn).collect();
        let join =
            |part: thread::ScopedJoinHandle<'_, _>| part.join().unwrap_or_else(|_| Err(anyhow!("signing panicked")));
        running.into_iter().map(join).collect()
    });
    let mut signed = Signed { requests: Arc::default(), bodies: Vec::new() };
    let mut requests = Vec::new();
    for part in parts {
        for callback in part? {
            let headers: Vec<(&str, &str)> = callback.headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            requests.push(http::render("POST", &callback.path, &headers, &callback.body));
            signed.bodies.push(callback.body);
        }
    }
    signed.requests = Arc::new(requests);
    Ok(signed)
}

fn one(keys: &SimKeys, order: u32, overrides: &Overrides) -> Result<SignedCallback> {
    let trade = |product| Trade::new(product, "main", &order_no(order), AMOUNT_FEN);
    let addressed = |mut trade: Trade, to: &str| {
        trade.subject = "bench".to_owned();
        trade.notify_url = Some(format!("http://127.0.0.1{to}"));
        trade.paid()
    };
    if order % 2 == 1 {
        let merchant = keys.alipay_account("main").context("the key set has no Alipay account main")?;
        return Ok(notify::alipay(merchant, &addressed(trade(Product::Page), "/v1/callbacks/alipay/main"), overrides));
    }
    let merchant = keys.wechat_account("main").context("the key set has no WeChat Pay account main")?;
    Ok(notify::wechat(merchant, &addressed(trade(Product::Native), "/v1/callbacks/wechat/main"), overrides))
}
