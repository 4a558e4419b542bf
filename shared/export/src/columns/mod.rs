//! The columns of each kind of file: their heads, and the cells of a row.

pub mod orders;
pub mod refunds;

use crate::cell::Cell;
use crate::sums::Sums;
use crate::task::{Kind, Page};

/// A column.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// The head, in Chinese. Of a time it names the zone, of an amount the unit.
    pub head: &'static str,
    /// The width in a workbook, in characters.
    pub width: u8,
}

const fn column(head: &'static str, width: u8) -> Column {
    Column { head, width }
}

/// The columns of a kind.
pub const fn of(kind: Kind) -> &'static [Column] {
    match kind {
        Kind::Orders => orders::COLUMNS,
        Kind::Refunds => refunds::COLUMNS,
    }
}

/// Hands the cells of each row to `write`, and adds the row to `sums`.
///
/// # Errors
/// The error of `write`.
pub fn each<E>(page: &Page, sums: &mut Sums, mut write: impl FnMut(&[Cell]) -> Result<(), E>) -> Result<(), E> {
    match page {
        Page::Orders(rows) => rows.iter().try_for_each(|row| {
            sums.add(row.status.as_str(), row.payment_method, orders::sum(row));
            write(&orders::cells(row))
        }),
        Page::Refunds(rows) => rows.iter().try_for_each(|row| {
            sums.add(row.status.as_str(), row.payment_method, refunds::sum(row));
            write(&refunds::cells(row))
        }),
    }
}
