//! Plots as SVG: lines through points, on axes that are linear or logarithmic.
//!
//! This is all of it. A crate for plots would be twenty crates, and each of its pictures would be set up at such length.

use std::fmt::Write as _;

/// A plot without its lines.
pub(crate) struct Plot {
    pub(crate) title: &'static str,
    pub(crate) x: Axis,
    pub(crate) y: Axis,
}

pub(crate) struct Axis {
    /// What is along it, with the unit.
    of: &'static str,
    is_log: bool,
}

impl Axis {
    /// Begins at 0.
    pub(crate) const fn linear(of: &'static str) -> Self {
        Self { of, is_log: false }
    }

    /// Has a mark for each power of ten.
    pub(crate) const fn log(of: &'static str) -> Self {
        Self { of, is_log: true }
    }

    /// What is shown of it, for these values.
    fn range(&self, values: impl Iterator<Item = f64>) -> Range {
        let (mut least, mut most) = (f64::MAX, f64::MIN);
        for value in values.filter(|value| value.is_finite() && (!self.is_log || *value > 0.0)) {
            (least, most) = (least.min(value), most.max(value));
        }
        if least > most {
            (least, most) = (1.0, 1.0);
        }
        if self.is_log {
            // A mark stands on each side, as good as.
            let (from, to) = ((least.log10() + 0.02).floor(), (most.log10() - 0.02).ceil());
            let to = to.max(from + 1.0);
            let marks = (0..=(to - from) as i32).map(|n| 10_f64.powf(from + f64::from(n))).collect();
            return Range { from, to, is_log: true, marks };
        }
        let step = round_step(most.max(f64::MIN_POSITIVE) / 5.0);
        let steps = (most / step).ceil().max(1.0);
        let marks = (0..=steps as i32).map(|n| f64::from(n) * step).collect();
        Range { from: 0.0, to: steps * step, is_log: false, marks }
    }
}

/// The next larger of 1, 2 and 5 times a power of ten.
fn round_step(least: f64) -> f64 {
    let power = 10_f64.powf(least.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| factor * power >= least);
    factor.unwrap_or(10.0) * power
}

/// The ends of an axis and its marks.
struct Range {
    from: f64,
    to: f64,
    is_log: bool,
    marks: Vec<f64>,
}

impl Range {
    /// Where along the axis a value is, from 0 to 1.
    fn at(&self, value: f64) -> f64 {
        let value = if self.is_log { value.log10() } else { value };
        (value - self.from) / (self.to - self.from)
    }
}

/// The picture and the part of it inside the axes, in pixels.
const WIDTH: f64 = 750.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 84.0;
const RIGHT: f64 = WIDTH - 220.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = HEIGHT - 56.0;

/// Colours that people tell apart, whatever colours they see.
const COLOURS: [&str; 6] = ["#d55e00", "#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"];

impl Plot {
    /// Draws lines, each with a name.
    pub(crate) fn draw(&self, lines: &[(String, Vec<(f64, f64)>)]) -> String {
        let all = || lines.iter().flat_map(|(_, points)| points);
        let (x, y) = (self.x.range(all().map(|(x, _)| *x)), self.y.range(all().map(|(_, y)| *y)));
        let across = |value: f64| LEFT + x.at(value) * (RIGHT - LEFT);
        let up = |value: f64| BOTTOM - y.at(value) * (BOTTOM - TOP);
        let mut svg = format!(
            r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13" fill="#222">
<title>{title}</title>
<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>
<text x="{LEFT}" y="24" font-size="16">{title}</text>
"##,
            title = self.title
        );
        for mark in &x.marks {
            let at = across(*mark);
            let _ = writeln!(svg, r##"<path d="M{at:.1} {TOP}V{BOTTOM}" stroke="#ddd"/>"##);
            let _ = writeln!(
                svg,
                r#"<text x="{at:.1}" y="{}" text-anchor="middle">{}</text>"#,
                BOTTOM + 18.0,
                short(*mark)
            );
        }
        for mark in &y.marks {
            let at = up(*mark);
            let _ = writeln!(svg, r##"<path d="M{LEFT} {at:.1}H{RIGHT}" stroke="#ddd"/>"##);
            let _ = writeln!(
                svg,
                r#"<text x="{}" y="{:.1}" text-anchor="end">{}</text>"#,
                LEFT - 8.0,
                at + 4.0,
                short(*mark)
            );
        }
        let (middle, below) = (f64::midpoint(LEFT, RIGHT), BOTTOM + 42.0);
        let _ = writeln!(svg, r#"<text x="{middle}" y="{below}" text-anchor="middle">{}</text>"#, self.x.of);
        let height = f64::midpoint(TOP, BOTTOM);
        let _ = writeln!(
            svg,
            r#"<text transform="translate(20 {height}) rotate(-90)" text-anchor="middle">{}</text>"#,
            self.y.of
        );
        for (n, (name, points)) in lines.iter().enumerate() {
            let colour = COLOURS[n % COLOURS.len()];
            let places: Vec<_> = points.iter().map(|(x, y)| format!("{:.1},{:.1}", across(*x), up(*y))).collect();
            let _ = writeln!(
                svg,
                r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2"/>"#,
                places.join(" ")
            );
            for (x, y) in points {
                let _ = writeln!(svg, r#"<circle cx="{:.1}" cy="{:.1}" r="3.5" fill="{colour}"/>"#, across(*x), up(*y));
            }
            let (left, line) = (RIGHT + 14.0, TOP + 12.0 + 22.0 * n as f64);
            let _ = writeln!(
                svg,
                r#"<path d="M{left} {line}h18" stroke="{colour}" stroke-width="3"/><text x="{}" y="{}">{name}</text>"#,
                left + 24.0,
                line + 4.0
            );
        }
        svg + "</svg>\n"
    }
}

/// A number as it stands beside a mark.
fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 1e6 => format!("{}M", rounded(value / 1e6)),
        size if size >= 1e4 => format!("{}k", rounded(value / 1e3)),
        _ => rounded(value),
    }
}

/// Without the noise of binary fractions.
fn rounded(value: f64) -> String {
    let text = format!("{value:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}
