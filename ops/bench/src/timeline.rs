//! Events over time, in steps of equal length.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::figures::{percentile, sorted};

/// Times from a start on, each with a figure.
#[derive(Debug, Clone)]
pub(crate) struct Timeline {
    step: Duration,
    /// The figures that fall into each step.
    steps: Vec<Vec<f64>>,
}

impl Timeline {
    pub(crate) fn of(began: Instant, step: Duration, moments: impl IntoIterator<Item = (Instant, f64)>) -> Timeline {
        let mut steps: Vec<Vec<f64>> = Vec::new();
        for (at, figure) in moments {
            let place = (at.saturating_duration_since(began).as_secs_f64() / step.as_secs_f64()) as usize;
            if steps.len() <= place {
                steps.resize(place + 1, Vec::new());
            }
            steps[place].push(figure);
        }
        Timeline { step, steps }
    }

    /// The number per second, at the middle of each step.
    pub(crate) fn per_second(&self) -> Vec<(f64, f64)> {
        let rate = |figures: &Vec<f64>| Some(figures.len() as f64 / self.step.as_secs_f64());
        self.points(rate)
    }

    /// The percentile of the figures of each step that has any.
    pub(crate) fn percentile(&self, percent: f64) -> Vec<(f64, f64)> {
        self.points(|figures| (!figures.is_empty()).then(|| percentile(&sorted(figures), percent)))
    }

    fn points(&self, figure: impl Fn(&Vec<f64>) -> Option<f64>) -> Vec<(f64, f64)> {
        let middle = |n: usize| (n as f64 + 0.5) * self.step.as_secs_f64();
        self.steps.iter().enumerate().filter_map(|(n, figures)| Some((middle(n), figure(figures)?))).collect()
    }
}

/// Does the work and samples a figure repeatedly in the meantime; returns the figures with the seconds since the start.
pub(crate) async fn watched<T>(
    every: Duration,
    mut measure: impl AsyncFnMut() -> Result<f64>,
    work: impl Future<Output = Result<T>>,
) -> Result<(T, Vec<(f64, f64)>)> {
    let (began, mut seen) = (Instant::now(), Vec::new());
    let look = async {
        loop {
            match measure().await {
                Ok(figure) => seen.push((began.elapsed().as_secs_f64(), figure)),
                Err(error) => return error,
            }
            tokio::time::sleep(every).await;
        }
    };
    let done = tokio::select! {
        done = work => done?,
        error = look => return Err(error),
    };
    Ok((done, seen))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_fall_into_their_steps() {
        let began = Instant::now();
        let at = |ms| began + Duration::from_millis(ms);
        let moments = [(at(0), 1.0), (at(499), 3.0), (at(1200), 5.0)];
        let timeline = Timeline::of(began, Duration::from_millis(500), moments);
        assert_eq!(timeline.per_second(), [(0.25, 4.0), (0.75, 0.0), (1.25, 2.0)]);
        assert_eq!(timeline.percentile(50.0), [(0.25, 2.0), (1.25, 5.0)]);
    }

    #[tokio::test]
    async fn a_watch_ends_with_the_work_or_with_what_cannot_be_measured() {
        let step = Duration::from_millis(1);
        let work = async {
            tokio::time::sleep(10 * step).await;
            Ok(7)
        };
        let (done, seen) = watched(step, async || Ok(2.0), work).await.unwrap();
        assert!(done == 7 && !seen.is_empty() && seen.iter().all(|(_, figure)| *figure == 2.0));
        let mute = watched(step, async || Err(anyhow::anyhow!("mute")), std::future::pending::<Result<()>>()).await;
        assert_eq!(mute.unwrap_err().to_string(), "mute");
    }
}
