//! Which value of which row our types refuse: the database library knows only the place of the column.

use std::fmt::Display;

use crate::error::DbError;

/// The table and the list of columns of a query that reads whole rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading {
    /// The table.
    pub table: &'static str,
    /// The text of the query, from `select` to the clause after `from`.
    pub query: &'static str,
}

/// The text of the columns that a macro hands on.
macro_rules! text {
    ($columns:tt,) => {
        $columns
    };
}
pub(super) use text;

impl Reading {
    /// The error of a read by this key.
    pub(super) fn error(self, row: impl Display, error: sqlx::Error) -> DbError {
        match DbError::from(error) {
            DbError::Corrupt { column, source, .. } => {
                let name = column.parse().ok().and_then(|place| self.column(place)).map(str::to_owned);
                DbError::Corrupt { table: self.table, column: name.unwrap_or(column), row: row.to_string(), source }
            }
            other => other,
        }
    }

    /// The name of the column at this place: the last word of its item, without the type.
    fn column(self, place: usize) -> Option<&'static str> {
        let (list, _) = self.query.trim_start().strip_prefix("select")?.rsplit_once("\n            from ")?;
        let item = list.split(',').nth(place)?.trim();
        let name = item.rsplit_once(" as ").map_or(item, |(_, name)| name);
        let name = name.rsplit_once('.').map_or(name, |(_, name)| name);
        name.trim_matches('"').split([':', '!', '?']).next()
    }
}

/// The keys of a read of several rows.
pub(super) fn keys(keys: &[impl Display]) -> String {
    keys.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_is_named_by_its_place() {
        let query = r#"
            select
              o.id as "id: OrderId", closed_at, o.version, p.trade_no as "trade_no!: TradeNo",
              case when a between b and c then d end as paid_at
            from payment_orders o
            "#;
        let reading = Reading { table: "payment_orders", query };
        let names: Vec<Option<&str>> = (0..6).map(|place| reading.column(place)).collect();
        assert_eq!(names, [Some("id"), Some("closed_at"), Some("version"), Some("trade_no"), Some("paid_at"), None]);
    }
}
