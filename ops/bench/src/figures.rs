//! Medians, spreads and percentiles.

use serde::Serialize;

/// The result of several repeats.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    pub(crate) repeats: usize,
}

impl Spread {
    /// Without any repeats, everything is NaN, which misses every target.
    pub(crate) fn of(figures: &[f64]) -> Spread {
        let sorted = sorted(figures);
        Spread {
            median: percentile(&sorted, 50.0),
            min: sorted.first().copied().unwrap_or(f64::NAN),
            max: sorted.last().copied().unwrap_or(f64::NAN),
            repeats: sorted.len(),
        }
    }
}

/// The figures in ascending order.
pub(crate) fn sorted(figures: &[f64]) -> Vec<f64> {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// The value below which `percent` of the sorted figures lie, interpolated between two neighbours.
pub(crate) fn percentile(sorted: &[f64], percent: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let place = percent / 100.0 * last as f64;
    let (below, above) = (place.floor() as usize, place.ceil() as usize);
    sorted[below] + (sorted[above] - sorted[below]) * (place - place.floor())
}

/// No decimals from 100 on, one from 10 on, two below.
pub(crate) fn short(figure: f64) -> String {
    match figure.abs() {
        size if size >= 100.0 => format!("{figure:.0}"),
        size if size >= 10.0 => format!("{figure:.1}"),
        _ => format!("{figure:.2}"),
    }
}

/// A rate for the progress bar.
pub(crate) fn rate(what: &str, measured: f64, against: &str, limit: f64) -> String {
    let (a, b) = (short(measured), short(limit));
    format!("{what} {a}/s, {against} {b}/s, ratio {}", short(measured / limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_lie_between_neighbours() {
        assert_eq!(Spread::of(&[3.0, 1.0, 2.0]), Spread { median: 2.0, min: 1.0, max: 3.0, repeats: 3 });
        assert_eq!(Spread::of(&[4.0, 1.0]).median, 2.5);
        assert_eq!(percentile(&sorted(&[5.0, 1.0, 2.0, 4.0, 3.0]), 99.0), 4.96);
        assert!(Spread::of(&[]).median.is_nan());
    }

    #[test]
    fn figures_are_as_exact_as_they_are_large() {
        assert_eq!((short(1234.5), short(12.345), short(1.2345)), ("1234".into(), "12.3".into(), "1.23".into()));
    }
}
