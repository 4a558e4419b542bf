//! Genuine callbacks and other users' reads of their orders, during one attack of each kind.
//!
//! The quiet time has the same genuine traffic without an attack. The requirement allows as many requests in the
//! quiet time as in the attack, from many addresses. Without them, the comparison is stricter.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use crate::attacks::{Attack, Attacked, Attacker};
use crate::database;
use crate::figures::short;
use crate::frontend::USERS;
use crate::http::{self, Load, Outcome};
use crate::progress::Progress;
use crate::report::{Question, Row, Target};
use crate::stage::Stage;

/// Per second.
const CALLBACKS: u32 = 50;
const LOOKS: u32 = 100;
/// Each has its own address, so that clients without any fault reach no limit.
const GATEWAYS: u32 = 16;
const BUYERS: u32 = 64;
const GATEWAY: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 1);
const BUYER: Ipv4Addr = Ipv4Addr::new(127, 0, 2, 1);
/// Both gateways stop waiting after this time.
const PATIENCE_MS: f64 = 5_000.0;
/// A delay that users do not notice.
const UNNOTICED_MS: f64 = 100.0;
/// The maximum share of one processor for an attacker.
const QUARTER: f64 = 0.25;
/// The attack requests the close of the orders of this many users.
const CLOSERS: u32 = 10;
/// Twenty for each user.
const ORDERS: u32 = 20 * USERS;
/// The other users begin this much before the attack.
const LEAD: Duration = Duration::from_secs(1);

pub(super) async fn measure(stage: &Stage<'_>, progress: &Progress) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for attack in Attack::ALL {
        let (mut ours, mut limits, mut late, mut shares, mut notes) = (vec![], vec![], vec![], vec![], vec![]);
        for repeat in 1..=stage.cli.repeats() {
            progress.say(&format!("attackers {repeat}: quiet, then {}", attack.name()));
            let quiet = run(stage, None).await.context("a quiet time")?;
            ensure!(
                quiet.late() == 0 && quiet.looks.refused.is_empty(),
                "a quiet time is not quiet: {}",
                quiet.summary()
            );
            let under = run(stage, Some(attack)).await.with_context(|| attack.name())?;
            let note = format!("quiet {}; under the attack {}", quiet.summary(), under.summary());
            progress.done(&format!("attackers: {}: {note}", attack.name()));
            ours.push(under.looks_p99());
            limits.push(UNNOTICED_MS.max(2.0 * quiet.looks_p99()));
            late.push(under.late());
            shares.push(under.attacked.as_ref().map_or(0.0, |attacked| attacked.share));
            notes.push(note);
        }
        let question = |what: String, unit, against: &str| {
            let what = format!("{what} beside {}", attack.name());
            Question { what, unit, against: against.to_owned(), target: Target::AtMost(1.0) }
        };
        let looks = question("p99 of other users' answers".to_owned(), "ms", "twice the quiet p99, or 100 ms");
        rows.push(looks.answer(&ours, &limits, notes));
        // The sum over all repeats, so that good repeats do not hide a bad one.
        let sent = CALLBACKS * stage.cli.seconds() * stage.cli.repeats();
        let what = format!("of {sent} callbacks refused, or later than 5 s,");
        let callbacks = question(what, "", "one of a thousand");
        rows.push(callbacks.answer(&[late.iter().sum::<usize>() as f64], &[f64::from(sent) / 1000.0], Vec::new()));
        let processor = question("the attacker's share of one processor".to_owned(), "", "a quarter");
        rows.push(processor.answer(&shares, &[QUARTER], Vec::new()));
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
    fn looks_p99(&self) -> f64 {
        self.looks.percentile(99.0)
    }

    /// How many callbacks did not succeed in time.
    fn late(&self) -> usize {
        self.callbacks.later_than(PATIENCE_MS)
    }

    fn summary(&self) -> String {
        let attacked = self
            .attacked
            .as_ref()
            .map(|attacked| format!("; attacker {} of one processor, {:?}", short(attacked.share), attacked.outcomes));
        let refused: Vec<_> = self.callbacks.refused.iter().chain(&self.looks.refused).take(5).collect();
        format!(
            "callbacks p99 {} ms, looks p99 {} ms, refused {refused:?}{}",
            short(self.callbacks.percentile(99.0)),
            short(self.looks_p99()),
            attacked.unwrap_or_default()
        )
    }
}

async fn run(stage: &Stage<'_>, attack: Option<Attack>) -> Result<Repeat> {
    let seconds = stage.cli.seconds();
    database::refill(&stage.db, ORDERS).await?;
    let signed = stage.callbacks.signed(CALLBACKS * seconds)?;
    // The reads exclude the orders of the users whose orders are closed.
    let others = (1..=ORDERS).filter(|n| n % USERS >= CLOSERS).cycle();
    let looks = others.take((LOOKS * seconds) as usize).map(|n| stage.frontend.look(n));
    let looks = Arc::new(looks.collect());
    let closes = Arc::new((1..=ORDERS).filter(|n| n % USERS < CLOSERS).map(|n| stage.frontend.close(n)).collect());
    // The documentation has the largest answer, which the slow readers request.
    let services = stage.start_in_earnest(&["payment-api"], &[("SERVE_DOCS", "1")]).await?;
    let load = |connections, per_second, from| Load {
        to: stage.api,
        connections,
        pace: Some(Duration::from_secs(1) / per_second),
        from: Some(from),
    };
    let attacking = async {
        tokio::time::sleep(LEAD).await;
        let lasts = Duration::from_secs(u64::from(seconds)).saturating_sub(LEAD);
        let attacker = attack.map(|attack| Attacker::start(attack, stage.api, lasts, closes));
        tokio::time::sleep(lasts).await;
        match attacker {
            Some(attacker) => attacker.stop().await.map(Some),
            None => Ok(None),
        }
    };
    let (callbacks, looks, attacked) = tokio::try_join!(
        http::try_send(load(GATEWAYS, CALLBACKS, GATEWAY), &signed.requests),
        http::try_send(load(BUYERS, LOOKS, BUYER), &looks),
        attacking,
    )?;
    if let (Some(attack), Some(attacked)) = (attack, &attacked) {
        let felt = attack.is_felt(&attacked.outcomes);
        felt.map_err(|lacking| anyhow!("this was no attack ({lacking}): {:?}", attacked.outcomes))?;
    }
    if attack == Some(Attack::AbortedCloses) {
        ensure!(
            database::closes_requested(&stage.db).await? >= 100,
            "hardly any close was read before its client disconnected"
        );
    }
    services.stop().await?;
    stage.broker.empty().await?;
    Ok(Repeat { callbacks, looks, attacked })
}
