//! Which value of which row our types refuse: the database library knows only the place of the column.

use std::fmt::Display;

use crate::error::DbError;

/// The text of a query that reads whole rows, and the tables that it reads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading {
    /// Each table with the name that the query gives it, the table of the row first. A column without such a name is of
    /// the first.
    pub tables: &'static [(&'static str, &'static str)],
    /// From `select` to the clause after `from`.
    pub query: &'static str,
}

/// The text of the columns that a macro hands on.
macro_rules! text {
    ($columns:tt,) => {
        $columns
    };
}
pub(super) use text;

/// A column of a table.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    table: &'static str,
    column: &'static str,
}

impl Reading {
    /// The error of a read by this key.
    pub(super) fn error(self, row: impl Display, error: sqlx::Error) -> DbError {
        match DbError::from(error) {
            DbError::Corrupt { table, column, source, .. } => {
                let place = column.parse().ok().and_then(|place| self.place(place));
                let (table, column) = place.map_or((table, column), |place| (place.table, place.column.to_owned()));
                DbError::Corrupt { table, column, row: row.to_string(), source }
            }
            other => other,
        }
    }

    /// The column at this place of the list. What is computed has the name that the query gives it.
    fn place(self, place: usize) -> Option<Place> {
        let (list, _) = self.query.trim_start().strip_prefix("select")?.rsplit_once("\n            from ")?;
        let item = list.split(',').nth(place)?.trim();
        let (value, name) = item.rsplit_once(" as ").unwrap_or((item, item));
        let is_column = value.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.'));
        let name = if is_column { value } else { name.trim_matches('"') };
        let (of, column) = name.split_once('.').unwrap_or(("", name));
        let (_, first) = self.tables.first()?;
        let table = self.tables.iter().find(|(name, _)| *name == of).map_or(*first, |(_, table)| *table);
        Some(Place { table, column })
    }
}

/// The most keys that an error names.
const MOST: usize = 3;

/// The keys of a read of several rows.
pub(super) fn keys(keys: &[impl Display]) -> String {
    let named: Vec<String> = keys.iter().take(MOST).map(ToString::to_string).collect();
    let more = keys.len().saturating_sub(MOST);
    let more = if more > 0 { format!(" or {more} more") } else { String::new() };
    format!("{}{more}", named.join(" or "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_is_named_by_its_place() {
        let query = r#"
            select
              o.id as "id: OrderId", o.closed_at, version, p.gateway_no as "trade_no!: TradeNo", o.reason as why,
              case when a between b and c then d end as paid_at
            from payment_orders o
            "#;
        let reading = Reading { tables: &[("o", "orders"), ("p", "payments")], query };
        let names = (0..7).map(|place| reading.place(place).map(|place| (place.table, place.column)));
        let names: Vec<(&str, &str)> = names.flatten().collect();
        let of_orders = |column| ("orders", column);
        assert_eq!(names[..3], ["id", "closed_at", "version"].map(of_orders));
        assert_eq!(names[3..], [("payments", "gateway_no"), ("orders", "reason"), ("orders", "paid_at")]);
    }

    #[test]
    fn many_keys_are_not_all_named() {
        assert_eq!(keys(&["a"]), "a");
        assert_eq!(keys(&["a", "b", "c"]), "a or b or c");
        assert_eq!(keys(&["a", "b", "c", "d", "e"]), "a or b or c or 2 more");
    }
}
