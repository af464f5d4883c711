//! The page of `--html`: all tables, with plots.
//!
//! Invariant: the page loads nothing from anywhere; what is in it is escaped by the template engine, never by hand; every row of the results
//! is in a plot and in a table. Read first: `page.html`, the template; [`crate::bench::report`].

use minijinja::Environment;
use serde::Serialize;

use super::{
    case::{Case, Direction, What},
    report::{LATENCY_HEADS, LatencyRow, RATE_HEADS, Results, Row},
};

/// Width of a plot's drawing area, in SVG units.
const WIDTH: f64 = 560.0;
/// Height of a bar and the space around it.
const STEP: f64 = 22.0;
/// Height of the drawing area of latencies.
const HEIGHT: f64 = 260.0;

/// One kind of measurement, as bars.
#[derive(Serialize)]
struct Bars {
    title: &'static str,
    unit: &'static str,
    height: f64,
    ticks: Vec<Tick>,
    bars: Vec<Bar>,
}

#[derive(Serialize)]
struct Bar {
    label: String,
    y: f64,
    width: f64,
    low: f64,
    high: f64,
    text: String,
    class: &'static str,
    disturbed: bool,
}

#[derive(Serialize)]
struct Tick {
    at: f64,
    text: String,
}

/// Times by percentile, as lines.
#[derive(Serialize)]
struct Lines {
    height: f64,
    across: Vec<Tick>,
    up: Vec<Tick>,
    lines: Vec<Line>,
}

#[derive(Serialize)]
struct Line {
    label: String,
    class: usize,
    points: String,
    /// Where its label stands in the legend.
    y: f64,
}

#[derive(Serialize)]
struct Page<'a> {
    results: &'a Results,
    width: f64,
    charts: Vec<Bars>,
    latency: Option<Lines>,
    tables: Vec<Cells>,
}

/// A table as the terminal shows it.
#[derive(Serialize)]
struct Cells {
    title: &'static str,
    class: &'static str,
    heads: Vec<Head>,
    rows: Vec<Vec<String>>,
}

#[derive(Serialize)]
struct Head {
    text: String,
    right: bool,
}

impl Cells {
    fn new(title: &'static str, class: &'static str, heads: &[&str], rows: Vec<Vec<String>>) -> Option<Cells> {
        let head = |text: &&str| {
            let right = text.strip_prefix('>');
            Head { text: right.unwrap_or(text).to_lowercase(), right: right.is_some() }
        };
        (!rows.is_empty()).then(|| Cells { title, class, heads: heads.iter().map(head).collect(), rows })
    }
}

/// The page.
///
/// # Errors
/// The template is wrong.
pub fn page(results: &Results) -> Result<String, minijinja::Error> {
    let mut environment = Environment::new();
    // The name's ending turns escaping on.
    environment.add_template("page.html", include_str!("page.html"))?;
    let rates = results.rows.iter().map(|row| row.cells().to_vec()).collect();
    let rates = Cells::new("Rates", "rate", &RATE_HEADS, rates);
    let times = results.latency.iter().map(|row| row.cells().to_vec()).collect();
    let times = Cells::new("Latency", "latency", &LATENCY_HEADS, times);
    let page = Page {
        results,
        width: WIDTH,
        charts: charts(&results.rows),
        latency: (!results.latency.is_empty()).then(|| lines(&results.latency)),
        tables: [rates, times].into_iter().flatten().collect(),
    };
    environment.get_template("page.html")?.render(minijinja::value::Serde(&page))
}

/// A chart for each kind of measurement, in the order of the rows.
fn charts(rows: &[Row]) -> Vec<Bars> {
    let mut kinds: Vec<What> = Vec::new();
    for row in rows {
        if !kinds.contains(&row.case.what) {
            kinds.push(row.case.what);
        }
    }
    kinds.into_iter().map(|what| bars(what, rows.iter().filter(|row| row.case.what == what).collect())).collect()
}

fn bars(what: What, rows: Vec<&Row>) -> Bars {
    let highest = rows.iter().map(|row| row.spread.max).fold(0.0, f64::max);
    let step = round_step(highest / 5.0);
    let top = (highest / step).ceil().max(1.0) * step;
    let at = |figure: f64| figure / top * WIDTH;
    let bar = |(n, row): (usize, &&Row)| Bar {
        label: label(&row.case),
        y: n as f64 * STEP,
        width: at(row.spread.median),
        low: at(row.spread.min),
        high: at(row.spread.max),
        text: format!("{:.2}", row.spread.median),
        class: match row.case.direction {
            Direction::OneWay => "one",
            Direction::BothWays => "both",
        },
        disturbed: row.effort.disturbed,
    };
    let ticks = (0..=(top / step).round() as u32).map(|n| f64::from(n) * step);
    Bars {
        title: what.title(),
        unit: what.unit(),
        height: rows.len() as f64 * STEP,
        ticks: ticks.map(|figure| Tick { at: at(figure), text: number(figure) }).collect(),
        bars: rows.iter().enumerate().map(bar).collect(),
    }
}

/// What tells a row from the others of its chart.
fn label(case: &Case) -> String {
    match case.what {
        What::ScalingFlows => format!("{} flows", case.flows),
        What::ScalingMacs => format!("{} MACs", case.macs),
        What::ScalingPorts => format!("{} ports", case.ports),
        _ => format!("{} B, {}, {}", case.size_bytes, case.direction.word(), case.path.word()),
    }
}

/// The least of 1, 2 and 5 times a power of ten that is not below `figure`.
fn round_step(figure: f64) -> f64 {
    if figure <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf(figure.log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|step| *step >= figure).unwrap_or(power)
}

/// Without digits that say nothing.
fn number(figure: f64) -> String {
    let text = format!("{figure:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Percentiles to the right, each nine as wide as the one before; times upwards by powers of ten.
fn lines(rows: &[LatencyRow]) -> Lines {
    let curves = || rows.iter().flat_map(|row| &row.curve);
    let nines = |quantile: f64| -(1.0 - quantile).max(1e-12).log10();
    let most = curves().map(|(quantile, _)| nines(*quantile)).fold(2.0, f64::max).ceil();
    let times = || curves().map(|(_, us)| us.max(0.01).log10());
    let bottom = times().fold(1.0, f64::min).floor();
    let top = times().fold(bottom + 1.0, f64::max).ceil();
    let x = |quantile: f64| nines(quantile) / most * WIDTH;
    let y = |us: f64| HEIGHT - (us.max(0.01).log10() - bottom) / (top - bottom) * HEIGHT;
    let line = |(n, row): (usize, &LatencyRow)| Line {
        label: match row.offered_mpps {
            Some(mpps) => format!("{} B, at {mpps:.1} Mpps", row.case.size_bytes),
            None => format!("{} B, one in flight", row.case.size_bytes),
        },
        class: n % 4,
        points: row.curve.iter().map(|(quantile, us)| format!("{:.1},{:.1} ", x(*quantile), y(*us))).collect(),
        y: n as f64 * 16.0,
    };
    let across = (0..=most as i32).map(|n| {
        let quantile = 1.0 - 10f64.powi(-n);
        // As many digits as there are nines.
        Tick { at: x(quantile), text: format!("{:.*}", (n - 2).max(0) as usize, quantile * 100.0) }
    });
    let up = (bottom as i32..=top as i32).map(|power| {
        let us = 10f64.powi(power);
        Tick { at: y(us), text: number(us) }
    });
    Lines {
        height: HEIGHT,
        across: across.collect(),
        up: up.collect(),
        lines: rows.iter().enumerate().map(line).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_round() {
        assert_eq!([0.0, 0.9, 1.0, 1.3, 3.0, 7.2, 72.0].map(round_step), [1.0, 1.0, 1.0, 2.0, 5.0, 10.0, 100.0]);
        assert_eq!([0.0, 0.5, 20.0, 99.9].map(number), ["0", "0.5", "20", "99.9"]);
    }
}
