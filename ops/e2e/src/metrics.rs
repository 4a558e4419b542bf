//! The metrics of a process, as Prometheus reads them.

use std::collections::BTreeMap;

/// One reading of `/metrics`.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// The text as received.
    pub text: String,
}

impl Metrics {
    /// The sum of all series of `name` that carry these labels.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let fits = |series: &str| labels.iter().all(|(name, value)| series.contains(&format!("{name}=\"{value}\"")));
        self.series(name).filter(|(series, _)| fits(series)).map(|(_, value)| value).sum()
    }

    /// The series of `name`, added up by the value of one label.
    #[must_use]
    pub fn by(&self, name: &str, label: &str) -> BTreeMap<String, f64> {
        let mut sums = BTreeMap::new();
        for (series, value) in self.series(name) {
            let found = series.split_once(&format!("{label}=\"")).and_then(|(_, rest)| rest.split_once('"'));
            *sums.entry(found.map_or_else(String::new, |(found, _)| found.to_owned())).or_default() += value;
        }
        sums
    }

    fn series<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
        self.text.lines().filter_map(move |line| {
            let (series, value) = line.rsplit_once(' ')?;
            let labels = series.strip_prefix(name)?;
            let whole = labels.is_empty() || labels.starts_with('{');
            Some((labels, value.parse().ok()?)).filter(|_| whole)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_added_by_label() {
        let text = "# TYPE a counter\na{x=\"1\",y=\"2\"} 3\na{x=\"2\",y=\"2\"} 4\nab{x=\"1\"} 9\nc 1\n".to_owned();
        let metrics = Metrics { text };
        assert!((metrics.sum("a", &[("y", "2")]) - 7.0).abs() < 1e-9);
        assert!((metrics.sum("c", &[]) - 1.0).abs() < 1e-9);
        assert_eq!(metrics.by("a", "x").len(), 2);
    }
}
