//! What is exported.

use domain::{OrderId, RefundId, named_enum};
use sqlx::PgConnection;
use store::DbError;
use store::tables::order_list::{self, ListedOrder, OrderFilter};
use store::tables::refund_list::{self, ListedRefund, RefundFilter};
use time::OffsetDateTime;

use crate::sums::{Sum, Sums};

/// The most rows of an export. A sheet of Excel has 1 048 576 rows.
pub const MOST_ROWS: i64 = 1_000_000;
/// Rows of one page. A page and the next two are in memory at once.
const PAGE: i64 = 2_000;

named_enum! {
    /// What the rows of an export are.
    Kind {
        /// Orders.
        Orders = "orders",
        /// Refunds.
        Refunds = "refunds",
    }
}

named_enum! {
    /// The format of a file.
    Format {
        /// Text with commas: UTF-8 with a BOM, lines end with CRLF, the sums follow the rows.
        Csv = "csv",
        /// A workbook of Excel: the rows and the sums have a sheet each.
        Xlsx = "xlsx",
    }
}

impl Format {
    /// The media type.
    pub const fn media_type(self) -> &'static str {
        match self {
            Format::Csv => "text/csv; charset=utf-8",
            Format::Xlsx => "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
        }
    }
}

/// How much an export may read. Tests make the limits small.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The most rows.
    pub rows: i64,
    /// The rows of one page.
    pub page: i64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { rows: MOST_ROWS, page: PAGE }
    }
}

/// Which rows, by the filters of their list.
#[derive(Debug, Clone)]
pub enum Selection {
    /// Orders.
    Orders(OrderFilter),
    /// Refunds.
    Refunds(RefundFilter),
}

/// One export.
#[derive(Debug, Clone)]
pub struct Task {
    /// Which rows.
    pub selection: Selection,
    /// The format of the file.
    pub format: Format,
    /// The filters as text, for the reader of the file.
    pub filters: String,
    /// When it was requested.
    pub at: OffsetDateTime,
    /// How much it may read.
    pub limits: Limits,
}

impl Task {
    /// What the rows are.
    pub const fn kind(&self) -> Kind {
        match self.selection {
            Selection::Orders(_) => Kind::Orders,
            Selection::Refunds(_) => Kind::Refunds,
        }
    }
}

/// Rows of one page.
#[derive(Debug)]
pub enum Page {
    /// Orders.
    Orders(Vec<ListedOrder>),
    /// Refunds.
    Refunds(Vec<ListedRefund>),
}

impl Page {
    /// How many rows.
    pub fn len(&self) -> usize {
        match self {
            Page::Orders(rows) => rows.len(),
            Page::Refunds(rows) => rows.len(),
        }
    }

    /// Whether it has no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The place after the last row that was read.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place {
    Order(OrderId),
    Refund(RefundId),
}

impl Page {
    pub(crate) fn end(&self) -> Option<Place> {
        match self {
            Page::Orders(rows) => rows.last().map(|row| Place::Order(row.id)),
            Page::Refunds(rows) => rows.last().map(|row| Place::Refund(row.id)),
        }
    }
}

impl Selection {
    /// What the database adds up, in the transaction of the snapshot.
    pub(crate) async fn sums(&self, tx: &mut PgConnection) -> Result<Sums, DbError> {
        let mut sums = Sums::default();
        match self {
            Selection::Orders(filter) => {
                for group in order_list::groups(tx, filter).await? {
                    let sum = Sum { count: group.count, amount: group.amount_fen, refunded: group.refunded_fen };
                    sums.add(group.status.as_str(), group.payment_method, sum);
                }
            }
            Selection::Refunds(filter) => {
                for group in refund_list::groups(tx, filter).await? {
                    let sum = Sum { count: group.count, amount: group.amount_fen, refunded: 0 };
                    sums.add(group.status.as_str(), group.payment_method, sum);
                }
            }
        }
        Ok(sums)
    }

    /// The page after `place`, as the list reads it, in the transaction of the snapshot.
    pub(crate) async fn page(&self, tx: &mut PgConnection, place: Option<Place>, limit: i64) -> Result<Page, DbError> {
        match self {
            Selection::Orders(filter) => {
                let before = place.and_then(|place| if let Place::Order(id) = place { Some(id) } else { None });
                Ok(Page::Orders(order_list::list(tx, filter, before, limit).await?))
            }
            Selection::Refunds(filter) => {
                let before = place.and_then(|place| if let Place::Refund(id) = place { Some(id) } else { None });
                Ok(Page::Refunds(refund_list::list(tx, filter, before, limit).await?))
            }
        }
    }
}
