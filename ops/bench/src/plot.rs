//! Plots as SVG files.

use std::fs;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;
use serde::Serialize;

const SIZE: (u32, u32) = (900, 480);
const FONT: &str = "sans-serif";

/// Lines over time or over size.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Plot {
    /// The name of its file, without extension.
    pub(crate) name: String,
    pub(crate) title: String,
    pub(crate) x: Axis,
    pub(crate) y: &'static str,
    pub(crate) lines: Vec<Line>,
}

/// The quantity on the horizontal axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Axis {
    /// Seconds since the load began.
    Seconds,
    /// The number of processes of a kind.
    Processes,
    /// The number of orders in the table; each step is ten times the previous one.
    Orders,
}

/// One quantity; its points are sorted along the axis.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Line {
    pub(crate) label: String,
    pub(crate) points: Vec<(f64, f64)>,
}

impl Plot {
    /// A plot over time.
    pub(crate) fn over_time(name: &str, title: &str, y: &'static str, lines: Vec<Line>) -> Plot {
        Plot { name: name.to_owned(), title: title.to_owned(), x: Axis::Seconds, y, lines }
    }

    /// Writes `{name}.svg`.
    pub(crate) fn write(&self, dir: &Path) -> Result<()> {
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        let path = dir.join(format!("{}.svg", self.name));
        fs::write(&path, self.svg()?).with_context(|| format!("writing {}", path.display()))
    }

    fn svg(&self) -> Result<String> {
        let places = || self.lines.iter().flat_map(|line| &line.points);
        let (least, most) = places().fold((f64::MAX, f64::MIN), |(least, most), (x, _)| (least.min(*x), most.max(*x)));
        let highest = places().map(|(_, y)| *y).fold(0.0, f64::max);
        ensure!(least <= most, "{} has no points", self.name);
        // The axis starts at zero, so that no difference looks larger than it is.
        let y = 0.0..if highest > 0.0 { highest * 1.05 } else { 1.0 };
        let mut svg = String::new();
        match self.x {
            Axis::Orders => self.draw(&mut svg, (least..most.max(least * 10.0)).log_scale(), y),
            Axis::Seconds | Axis::Processes => self.draw(&mut svg, 0.0..most.max(1.0), y),
        }
        .with_context(|| format!("drawing {}", self.name))?;
        Ok(svg)
    }

    fn draw<X>(&self, svg: &mut String, x: X, y: Range<f64>) -> Result<()>
    where
        X: AsRangedCoord<Value = f64, CoordDescType: ValueFormatter<f64>>,
    {
        let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(&self.title, (FONT, 20))
            .margin(12)
            .x_label_area_size(36)
            .y_label_area_size(64)
            .build_cartesian_2d(x, y)?;
        let label = match self.x {
            Axis::Seconds => "seconds",
            Axis::Processes => "processes",
            Axis::Orders => "orders in the table",
        };
        let mut mesh = chart.configure_mesh();
        mesh.light_line_style(TRANSPARENT).x_desc(label).y_desc(self.y);
        mesh.draw()?;
        for (n, line) in self.lines.iter().enumerate() {
            let color = Palette99::pick(n).to_rgba();
            chart
                .draw_series(LineSeries::new(line.points.iter().copied(), color.stroke_width(2)))?
                .label(&line.label)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2)));
        }
        let mut legend = chart.configure_series_labels();
        legend.background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.3)).label_font((FONT, 14));
        legend.draw()?;
        root.present()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(x: Axis, points: &[(f64, f64)]) -> Plot {
        let lines = vec![Line { label: "answered <fast>".to_owned(), points: points.to_vec() }];
        Plot { name: "storm".to_owned(), title: "A storm & its calm".to_owned(), x, y: "per second", lines }
    }

    #[test]
    fn each_axis_is_drawn_with_its_words() {
        for (x, word) in
            [(Axis::Seconds, "seconds"), (Axis::Processes, "processes"), (Axis::Orders, "orders in the table")]
        {
            let svg = plot(x, &[(1.0, 3.0), (10.0, 4.0)]).svg().unwrap();
            assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
            for part in [word, "per second", "polyline", "A storm &amp; its calm", "answered &lt;fast&gt;"] {
                assert!(svg.contains(part), "no {part:?} in {svg}");
            }
        }
    }

    #[test]
    fn one_point_is_enough_and_none_is_an_error() {
        assert!(plot(Axis::Orders, &[(10_000.0, 0.0)]).svg().is_ok());
        assert!(plot(Axis::Seconds, &[]).svg().unwrap_err().to_string().contains("storm has no points"));
    }
}
