//! Genuine callbacks and other users' looks at their orders, while one client of each kind does what it can.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::attacks::{Attack, Attacked, Attacker};
use crate::database;
use crate::figures::short;
use crate::frontend::USERS;
use crate::http::{self, Load, Outcome};
use crate::progress::Progress;
use crate::report::{Question, Row, Target};
use crate::stage::Stage;

/// A second.
const CALLBACKS: u32 = 50;
const LOOKS: u32 = 100;
/// Each from an address of its own: no limit is met by who does nothing wrong.
const GATEWAYS: u32 = 16;
const BUYERS: u32 = 64;
const GATEWAY: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 1);
const BUYER: Ipv4Addr = Ipv4Addr::new(127, 0, 2, 1);
/// Both gateways give up after this.
const PATIENCE_MS: f64 = 5_000.0;
/// Nobody minds less.
const UNNOTICED_MS: f64 = 100.0;
/// The orders of so many users are those whose end is asked for.
const CLOSERS: u32 = 10;
/// Twenty of each user.
const ORDERS: u32 = 20 * USERS;
/// An attack is fully under way before the others come.
const LEAD: Duration = Duration::from_secs(5);

pub(super) async fn measure(stage: &Stage<'_>, progress: &Progress) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for attack in Attack::ALL {
        let (mut ours, mut limits, mut shares, mut notes) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for repeat in 1..=stage.cli.repeats() {
            progress.say(&format!("attackers {repeat}: quiet, then {}", attack.name()));
            let quiet = run(stage, None).await.context("a quiet time")?;
            let under = run(stage, Some(attack)).await.with_context(|| attack.name())?;
            let note = format!("quiet {}; under the attack {}", quiet.told(), under.told());
            progress.done(&format!("attackers: {}: {note}", attack.name()));
            ours.push(under.looks_p99());
            limits.push(UNNOTICED_MS.max(2.0 * quiet.looks_p99()));
            shares.push(under.in_time());
            notes.push(note);
        }
        let question = Question {
            what: format!("p99 of other users' answers beside {}", attack.name()),
            unit: "ms",
            against: "twice the quiet p99, or 100 ms".to_owned(),
            target: Target::AtMost(1.0),
        };
        rows.push(question.answer(&ours, &limits, notes));
        let question = Question {
            what: format!("callbacks answered with success within 5 s beside {}", attack.name()),
            unit: "of one",
            against: "99.9 %".to_owned(),
            target: Target::AtLeast(1.0),
        };
        rows.push(question.answer(&shares, &[0.999], Vec::new()));
    }
    Ok(rows)
}

/// One repeat.
struct Repeat {
    callbacks: Outcome,
    looks: Outcome,
    attacked: Option<Attacked>,
}

impl Repeat {
    /// Of an answer that did not come, or was no success, as long as anybody waits.
    fn looks_p99(&self) -> f64 {
        self.looks.percentile(99.0, PATIENCE_MS)
    }

    fn in_time(&self) -> f64 {
        self.callbacks.within(PATIENCE_MS)
    }

    fn told(&self) -> String {
        let attacked = self.attacked.as_ref().map(|attacked| {
            format!(
                "; the attacker made {} connections with {} of one processor",
                attacked.connections,
                short(attacked.share)
            )
        });
        format!(
            "callbacks p99 {} ms, looks p99 {} ms, refused {:?}{}",
            short(self.callbacks.percentile(99.0, PATIENCE_MS)),
            short(self.looks_p99()),
            self.callbacks.refused.iter().chain(&self.looks.refused).collect::<Vec<_>>(),
            attacked.unwrap_or_default()
        )
    }
}

async fn run(stage: &Stage<'_>, attack: Option<Attack>) -> Result<Repeat> {
    let seconds = stage.cli.seconds();
    database::refill(&stage.db, ORDERS).await?;
    let signed = stage.callbacks.signed(CALLBACKS * seconds)?;
    // Nobody looks at what the closers have.
    let others = (0..).filter(|n| n % USERS >= CLOSERS);
    let looks = others.take((LOOKS * seconds) as usize).map(|n| stage.frontend.look(1 + n % ORDERS));
    let looks = Arc::new(looks.collect());
    let closes = (1..=ORDERS).filter(|n| n % USERS < CLOSERS).map(|n| stage.frontend.close(n)).collect();
    let services = stage.start_in_earnest(&["payment-api"]).await?;
    let attacker = attack.map(|attack| Attacker::start(attack, stage.api, Arc::new(closes)));
    tokio::time::sleep(LEAD).await;
    let load = |connections, per_second, from| Load {
        to: stage.api,
        connections,
        pace: Some(Duration::from_secs(1) / per_second),
        from: Some(from),
    };
    let (callbacks, looks) = tokio::try_join!(
        http::try_send(load(GATEWAYS, CALLBACKS, GATEWAY), &signed.requests),
        http::try_send(load(BUYERS, LOOKS, BUYER), &looks),
    )?;
    let attacked = match attacker {
        Some(attacker) => Some(attacker.stop().await?),
        None => None,
    };
    services.stop().await?;
    stage.broker.empty().await?;
    Ok(Repeat { callbacks, looks, attacked })
}
