//! From callback received to event published, callback by callback.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::broker::Arrival;
use crate::database::order_no;
use crate::figures::{percentile, sorted};
use crate::http::Sent;
use crate::plot::{Line, Plot};
use crate::timeline::Timeline;

/// The maximum time between two events.
pub(super) const STILL: Duration = Duration::from_secs(30);
const STEP: Duration = Duration::from_millis(500);

/// When each order's event arrived, and how many milliseconds after its callback was first sent.
pub(super) struct Way {
    began: Instant,
    arrived: Vec<(Instant, f64)>,
}

impl Way {
    /// The request `n` is about the order `orders[n]`. If an event arrived twice, the first arrival counts.
    pub(super) fn of(sent: &Sent, orders: &[u32], arrived: &[Arrival]) -> Result<Way> {
        let mut first: HashMap<String, Instant> = HashMap::new();
        for Arrival { at, data } in arrived {
            let data: Value = serde_json::from_slice(data).context("an event that is not JSON")?;
            let order_no = data["order_no"].as_str().context("an event without order_no")?;
            first.entry(order_no.to_owned()).or_insert(*at);
        }
        let mut reported: HashMap<u32, Instant> = HashMap::new();
        for (order, at) in orders.iter().zip(&sent.at) {
            let earliest = reported.entry(*order).or_insert(*at);
            *earliest = (*earliest).min(*at);
        }
        let way = |(order, at): (u32, Instant)| {
            let order_no = order_no(order);
            let arrived = *first.get(&order_no).with_context(|| format!("no event for {order_no}"))?;
            Ok((arrived, arrived.saturating_duration_since(at).as_secs_f64() * 1000.0))
        };
        Ok(Way { began: sent.began, arrived: reported.into_iter().map(way).collect::<Result<_>>()? })
    }

    /// The duration within which `percent` of the callbacks led to an event, in milliseconds.
    pub(super) fn percentile(&self, percent: f64) -> f64 {
        percentile(&sorted(&self.arrived.iter().map(|(_, ms)| *ms).collect::<Vec<_>>()), percent)
    }

    /// Events per second.
    pub(super) fn rate(&self) -> f64 {
        let last = self.arrived.iter().map(|(at, _)| at.saturating_duration_since(self.began)).max();
        self.arrived.len() as f64 / last.unwrap_or_default().as_secs_f64()
    }

    /// Throughput and latency over time, as two plots.
    pub(super) fn plots(&self, sent: &Sent, name: &str, title: &str) -> [Plot; 2] {
        let answered = Timeline::of(sent.began, STEP, sent.answers());
        let published = Timeline::of(self.began, STEP, self.arrived.iter().copied());
        let line = |label: &str, points| Line { label: label.to_owned(), points };
        let throughput = vec![line("answered", answered.per_second()), line("published", published.per_second())];
        let latency = vec![
            line("answer p50", answered.percentile(50.0)),
            line("answer p99", answered.percentile(99.0)),
            line("callback to event p50", published.percentile(50.0)),
            line("callback to event p99", published.percentile(99.0)),
        ];
        [
            Plot::over_time(&format!("{name}-throughput"), title, "per second", throughput),
            Plot::over_time(&format!("{name}-latency"), title, "ms", latency),
        ]
    }
}
