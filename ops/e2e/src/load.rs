//! Buyers who buy, pay and request refunds, while a test causes faults in the service.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::sleep;

use crate::shop::{Purchase, RefundRequest, order};
use crate::{Gateway, Order, SOON, World, eventually};

/// The pause between two rounds of one buyer.
const PAUSE: Duration = Duration::from_millis(50);
/// How long the last unfinished requests may take once the fault is over.
const LONG: Duration = Duration::from_secs(150);

/// What buyers have done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Made {
    /// Orders.
    pub bought: i64,
    /// The orders that they have paid.
    pub paid: i64,
    /// The orders for which they have requested a refund.
    pub returned: i64,
}

impl Made {
    fn and(self, other: Made) -> Made {
        Made {
            bought: self.bought + other.bought,
            paid: self.paid + other.paid,
            returned: self.returned + other.returned,
        }
    }
}

/// What one buyer has done, and what is unfinished.
#[derive(Default)]
struct Buyer {
    made: Made,
    /// Requested and not created yet.
    wanted: Vec<Purchase>,
    /// Paid, and to be refunded; the refund is not accepted yet.
    unwanted: Vec<(Order, RefundRequest)>,
}

impl Buyer {
    /// One round: the buyer repeats unfinished requests with the same keys, and begins a new purchase.
    async fn act(&mut self, world: &World, more: bool) {
        if more && self.wanted.len() < 2 {
            // Neither scene needs the gateway's page, which may be unreachable.
            let (gateway, scene) =
                if self.made.bought % 2 == 0 { (Gateway::Alipay, "qr") } else { (Gateway::Wechat, "native") };
            self.wanted.push(Purchase::new(gateway, scene, "2.00"));
        }
        for purchase in std::mem::take(&mut self.wanted) {
            // While the ingress or a dependency is down, there is no answer, or the answer says when to retry.
            match world.shop.request_order(&purchase).await {
                Ok(answer) if answer.status == 201 => self.pay(world, order(&purchase, &answer)).await,
                Ok(answer) => {
                    let later = answer.retry_after.is_some() || answer.status >= 500;
                    assert!(later, "{purchase:?} is refused: {answer:?}");
                    self.wanted.push(purchase);
                }
                Err(_) => self.wanted.push(purchase),
            }
        }
        for (order, request) in std::mem::take(&mut self.unwanted) {
            match world.shop.request_refund(&order, &request).await {
                Ok(answer) if answer.status == 202 => self.made.returned += 1,
                Ok(answer) => {
                    // A refusal is final for its key. If the request came before the payment was settled, it is
                    // refused, and a new key is needed.
                    let early = answer.code() == "order_not_paid";
                    let later = answer.retry_after.is_some() || answer.status >= 500;
                    assert!(early || later, "{request:?} of {} is refused: {answer:?}", order.order_no);
                    self.unwanted.push((order, if early { RefundRequest::of_the_rest() } else { request }));
                }
                Err(_) => self.unwanted.push((order, request)),
            }
        }
    }

    /// Pays five of six orders, and requests a refund of each third payment.
    async fn pay(&mut self, world: &World, order: Order) {
        self.made.bought += 1;
        if self.made.bought % 6 == 0 {
            return;
        }
        world.pay(&order).await;
        self.made.paid += 1;
        if self.made.paid % 3 == 0 {
            self.unwanted.push((order, RefundRequest::of_the_rest()));
        }
    }

    fn is_idle(&self) -> bool {
        self.wanted.is_empty() && self.unwanted.is_empty()
    }
}

impl World {
    /// Lets `buyers` buyers buy, pay and request refunds while `meanwhile` runs. Afterwards they finish what they
    /// have begun.
    ///
    /// # Panics
    /// When a request is refused permanently, or something that was begun does not finish.
    pub async fn under_load<T>(&self, buyers: usize, meanwhile: impl Future<Output = T>) -> (T, Made) {
        let open = AtomicBool::new(true);
        let buying = join_all((0..buyers).map(async |_| {
            let mut buyer = Buyer::default();
            while open.load(Ordering::Relaxed) {
                buyer.act(self, true).await;
                sleep(PAUSE).await;
            }
            eventually("what was begun under load ends", LONG, async || {
                buyer.act(self, false).await;
                buyer.is_idle().then_some(())
            })
            .await;
            buyer.made
        }));
        let ended = async {
            let ended = meanwhile.await;
            open.store(false, Ordering::Relaxed);
            ended
        };
        let (made, ended) = tokio::join!(buying, ended);
        (ended, made.into_iter().fold(Made::default(), Made::and))
    }

    /// Asserts that everything that was made under load has finished normally, and that there is no case.
    ///
    /// # Panics
    /// When it has not.
    pub async fn all_completed(&self, made: Made) {
        self.all_completed_but(made, &[]).await;
    }

    /// [`World::all_completed`], where there are cases of these kinds and no others.
    ///
    /// # Panics
    /// When something has not finished, when there is another case, or when there is none of the named kinds.
    pub async fn all_completed_but(&self, made: Made, kinds: &[&str]) {
        println!("{made:?}");
        eventually("everything is paid and returned", LONG, async || {
            let paid = "select count(*) from payment_orders where status in ('paid', 'refunded')";
            let returned = "select count(*) from payment_orders where status = 'refunded'";
            (self.number(paid).await? == made.paid && self.number(returned).await? == made.returned).then_some(())
        })
        .await;
        self.wait_quiet(SOON * 3).await;
        self.books_agree().await;
        assert_eq!(self.number("select count(*) from payment_orders").await, Some(made.bought), "one for each key");
        let (known, other): (Vec<String>, Vec<String>) = self
            .texts("select kind || ': ' || evidence from cases")
            .await
            .into_iter()
            .partition(|case| kinds.iter().any(|kind| case.starts_with(kind)));
        assert_eq!((other, known.is_empty()), (Vec::new(), kinds.is_empty()), "{known:?}");
        assert!(self.processes().all(crate::process::Process::runs), "a process gave up");
        self.logs_are_clean();
    }
}
