//! The sums of an export: those of the database, and those of the rows while they are written.

use std::collections::BTreeMap;
use std::ops::AddAssign;

use domain::PaymentMethod;
use time::OffsetDateTime;

use crate::cell::{Cell, yuan};
use crate::task::{Kind, Task};
use crate::words;

/// A sum over some rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sum {
    /// How many rows.
    pub count: i64,
    /// Their amounts, in fen.
    pub amount: i64,
    /// Of orders: what was refunded, in fen.
    pub refunded: i64,
}

impl AddAssign for Sum {
    fn add_assign(&mut self, other: Sum) {
        self.count += other.count;
        self.amount += other.amount;
        self.refunded += other.refunded;
    }
}

/// The sums by state and gateway.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sums(BTreeMap<(&'static str, PaymentMethod), Sum>);

impl Sums {
    /// Adds to the sum of a state at a gateway.
    pub fn add(&mut self, status: &'static str, method: PaymentMethod, sum: Sum) {
        *self.0.entry((status, method)).or_default() += sum;
    }

    /// The sum of each state at each gateway that has rows.
    pub fn groups(&self) -> impl Iterator<Item = (&'static str, PaymentMethod, Sum)> + '_ {
        self.0.iter().map(|((status, method), sum)| (*status, *method, *sum))
    }

    /// The sum over everything.
    pub fn total(&self) -> Sum {
        self.by(|_, _| ()).into_values().next().unwrap_or_default()
    }

    /// The sum of each state.
    pub fn by_status(&self) -> BTreeMap<&'static str, Sum> {
        self.by(|status, _| status)
    }

    /// The sum of each gateway.
    pub fn by_method(&self) -> BTreeMap<PaymentMethod, Sum> {
        self.by(|_, method| method)
    }

    fn by<K: Ord>(&self, key: impl Fn(&'static str, PaymentMethod) -> K) -> BTreeMap<K, Sum> {
        let mut sums: BTreeMap<K, Sum> = BTreeMap::new();
        for (status, method, sum) in self.groups() {
            *sums.entry(key(status, method)).or_default() += sum;
        }
        sums
    }

    /// The first state and gateway whose rows do not add up to what is expected; `None`: all do.
    pub fn difference(&self, rows: &Sums) -> Option<String> {
        let keys = self.0.keys().chain(rows.0.keys());
        let of = |sums: &Sums, key| sums.0.get(key).copied().unwrap_or_default();
        let (status, method) = keys.into_iter().find(|key| of(self, key) != of(rows, key))?;
        let (expected, found) = (of(self, &(*status, *method)), of(rows, &(*status, *method)));
        let say = |sum: Sum| format!("{} rows, {}, refunded {}", sum.count, yuan(sum.amount), yuan(sum.refunded));
        Some(format!("{status} at {method}: {} in the database, {} in the file", say(expected), say(found)))
    }

    /// The sums as rows: first what the file is, then heads, then the sums.
    pub fn table(&self, about: &About) -> Vec<Vec<Cell>> {
        let kind = about.kind;
        let line = |what: [&'static str; 3], sum: Sum| {
            let mut cells: Vec<Cell> = what.into_iter().map(Cell::Word).collect();
            cells.extend([Cell::Count(sum.count), Cell::Amount(sum.amount)]);
            cells.extend((kind == Kind::Orders).then_some(Cell::Amount(sum.refunded)));
            cells
        };
        let mut rows = vec![
            vec![Cell::Word("汇总"), Cell::Word(words::sheet(kind))],
            vec![Cell::Word("导出时间（北京时间 UTC+8）"), Cell::Time(about.at)],
            vec![Cell::Word("筛选条件"), Cell::Text(about.filters.clone())],
            heads(kind),
            line(["合计", "全部", "全部"], self.total()),
        ];
        for (status, sum) in self.by_status() {
            rows.push(line(["按状态", words::status(kind, status), "全部"], sum));
        }
        for (method, sum) in self.by_method() {
            rows.push(line(["按支付方式", "全部", words::payment_method(method)], sum));
        }
        for (status, method, sum) in self.groups() {
            rows.push(line(["按状态和支付方式", words::status(kind, status), words::payment_method(method)], sum));
        }
        rows
    }
}

fn heads(kind: Kind) -> Vec<Cell> {
    let heads: &[&str] = match kind {
        Kind::Orders => &["项目", "状态", "支付方式", "笔数", "订单金额（元）", "已退金额（元）"],
        Kind::Refunds => &["项目", "状态", "支付方式", "笔数", "退款金额（元）"],
    };
    heads.iter().map(|head| Cell::Word(head)).collect()
}

/// What the sums are about, for their reader.
#[derive(Debug, Clone)]
pub struct About {
    /// What the rows are.
    pub kind: Kind,
    /// When the export was requested.
    pub at: OffsetDateTime,
    /// The filters as text.
    pub filters: String,
}

impl About {
    /// What an export is about.
    pub fn of(task: &Task) -> About {
        About { kind: task.kind(), at: task.at, filters: task.filters.clone() }
    }
}

#[cfg(test)]
mod tests {
    use domain::PaymentMethod::{Alipay, Wechat};

    use super::*;

    fn sums() -> Sums {
        let mut sums = Sums::default();
        for (status, method, amount) in
            [("paid", Wechat, 10), ("paid", Wechat, 5), ("paid", Alipay, 1), ("closed", Wechat, 7)]
        {
            sums.add(status, method, Sum { count: 1, amount, refunded: 0 });
        }
        sums
    }

    #[test]
    fn sums_add_up() {
        let of = |count, amount| Sum { count, amount, refunded: 0 };
        assert_eq!(sums().total(), of(4, 23));
        assert_eq!(sums().by_status(), BTreeMap::from([("closed", of(1, 7)), ("paid", of(3, 16))]));
        assert_eq!(sums().by_method(), BTreeMap::from([(Alipay, of(1, 1)), (Wechat, of(3, 22))]));
        assert_eq!(Sums::default().total(), of(0, 0));
    }

    #[test]
    fn each_difference_is_found() {
        assert_eq!(sums().difference(&sums()), None);
        for (status, method, sum) in [
            ("paid", Wechat, Sum { count: 0, amount: 1, refunded: 0 }),
            ("paid", Wechat, Sum { count: 0, amount: 0, refunded: 1 }),
            ("closed", Wechat, Sum { count: 1, amount: 0, refunded: 0 }),
            ("closed", Alipay, Sum { count: 1, amount: 1, refunded: 0 }),
        ] {
            let mut other = sums();
            other.add(status, method, sum);
            for said in [sums().difference(&other).unwrap(), other.difference(&sums()).unwrap()] {
                assert!(said.starts_with(&format!("{status} at {method}: ")), "{said}");
            }
        }
        // Only the place differs, and not the total.
        let (mut one, mut other) = (sums(), sums());
        one.add("paid", Alipay, Sum { count: 1, amount: 1, refunded: 0 });
        other.add("paid", Wechat, Sum { count: 1, amount: 1, refunded: 0 });
        assert!(one.difference(&other).is_some());
    }
}
