//! A count as a picture, for pages that can have no script: a README, a mail, a forum.

use askama::Template;

/// The picture. It has no style of its own, because the policy on answers allows none.
#[derive(Template)]
#[template(path = "embed/badge.svg", escape = "html")]
pub(super) struct Badge<'a> {
    /// What is counted.
    label: &'a str,
    count: String,
    label_width: usize,
    width: usize,
}

/// The width of a character, in pixels. Most are narrower in the fonts that browsers take.
const CHARACTER: usize = 7;

/// What is left and right of a text.
const MARGIN: usize = 14;

impl<'a> Badge<'a> {
    pub(super) fn new(label: &'a str, count: u64) -> Self {
        let count = compact(count);
        let width = |text: &str| text.chars().count() * CHARACTER + MARGIN;
        let label_width = width(label);
        Self { label, label_width, width: label_width + width(&count), count }
    }

    fn label_middle(&self) -> usize {
        self.label_width / 2
    }

    fn count_middle(&self) -> usize {
        (self.label_width + self.width) / 2
    }
}

/// Writes a number in at most four characters and a unit: `999`, `1.2k`, `12k`, `3.4M`. It rounds down, so nothing is
/// promised that isn't there.
fn compact(count: u64) -> String {
    let Some((unit, name)) =
        [(1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")].into_iter().find(|(unit, _)| count >= *unit)
    else {
        return count.to_string();
    };
    let (whole, tenth) = (count / unit, count % unit * 10 / unit);
    if whole < 10 && tenth > 0 { format!("{whole}.{tenth}{name}") } else { format!("{whole}{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_short() {
        for (count, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1k"),
            (1_299, "1.2k"),
            (12_999, "12k"),
            (999_999, "999k"),
            (3_450_000, "3.4M"),
            (u64::MAX, "18446744073G"),
        ] {
            assert_eq!(compact(count), text);
        }
    }

    #[test]
    fn the_label_is_escaped() {
        let svg = Badge::new("<b>\"&'", 1_234).render().expect("a picture");
        assert!(!svg.contains("<b>") && svg.contains("&#60;b&#62;&#34;&#38;&#39;"), "{svg}");
        assert!(svg.contains(">1.2k</text>"), "{svg}");
    }
}
