//! The live stream for other people's libraries: the same fragments, framed in their conventions. A page can then
//! follow a store with htmx, Datastar or Turbo instead of the common script.

use std::fmt::Write as _;

use bytes::Bytes;

/// How fragments are framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// An event with the fragment's name, whose data is the HTML. The common script reads it.
    Own,
    /// The same for htmx 2 (`sse-swap`), and then a message without a name for htmx 4, which swaps no others.
    Htmx,
    /// `datastar-patch-elements`. It morphs the element with the fragment's id.
    Datastar,
    /// A `<turbo-stream>` in a message without a name. It morphs the element with the fragment's id.
    Turbo,
}

impl Dialect {
    /// How many dialects there are besides [`Own`](Self::Own).
    pub(super) const OTHERS: usize = 3;

    /// Returns the dialect that `GET /live?as=` calls `name`.
    pub(super) fn named(name: &str) -> Option<Self> {
        match name {
            "htmx" => Some(Self::Htmx),
            "datastar" => Some(Self::Datastar),
            "turbo" => Some(Self::Turbo),
            _ => None,
        }
    }

    /// Returns its place among the other dialects.
    pub(super) fn place(self) -> Option<usize> {
        match self {
            Self::Own => None,
            Self::Htmx => Some(0),
            Self::Datastar => Some(1),
            Self::Turbo => Some(2),
        }
    }

    /// Converts a fragment from our own framing to this dialect's.
    pub(super) fn reframe(self, own: &Bytes) -> Bytes {
        let text = std::str::from_utf8(own).expect("BUG: a frame is text");
        let mut lines = text.lines();
        let name = lines.next().and_then(|line| line.strip_prefix("event: ")).expect("BUG: a frame has a name");
        let html = lines.filter_map(|line| line.strip_prefix("data: "));
        let element = format!("live-{name}");
        match self {
            Self::Own => own.clone(),
            Self::Htmx => {
                let open = format!("<hx-partial hx-target=\"#{element}\" hx-swap=\"outerMorph\">");
                let message = message("", [open.as_str()].into_iter().chain(html).chain(["</hx-partial>"]));
                format!("{text}{message}").into()
            }
            Self::Datastar => format!("event: datastar-patch-elements\n{}", message("elements ", html)).into(),
            Self::Turbo => {
                let open = format!("<turbo-stream action=\"replace\" method=\"morph\" target=\"{element}\"><template>");
                let close = "</template></turbo-stream>";
                message("", [open.as_str()].into_iter().chain(html).chain([close])).into()
            }
        }
    }
}

/// Formats the data of a message, and its end. Each line begins with `word`.
fn message<'a>(word: &str, lines: impl Iterator<Item = &'a str>) -> String {
    let mut text = String::new();
    for line in lines {
        writeln!(text, "data: {word}{line}").expect("BUG: a String takes all text");
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::super::publisher::frame;
    use super::*;
    use crate::web::Html;

    #[test]
    fn each_library_gets_the_frames_that_it_reads() {
        let own = frame("open", &Html::trusted("<p>\none</p>"));
        let framed = |name| {
            let dialect = Dialect::named(name).expect("a dialect");
            String::from_utf8(dialect.reframe(&own).to_vec()).expect("text")
        };
        assert_eq!(
            framed("htmx"),
            "event: open\ndata: <p>\ndata: one</p>\n\n\
             data: <hx-partial hx-target=\"#live-open\" hx-swap=\"outerMorph\">\ndata: <p>\ndata: one</p>\n\
             data: </hx-partial>\n\n"
        );
        assert_eq!(
            framed("datastar"),
            "event: datastar-patch-elements\ndata: elements <p>\ndata: elements one</p>\n\n"
        );
        assert_eq!(
            framed("turbo"),
            "data: <turbo-stream action=\"replace\" method=\"morph\" target=\"live-open\"><template>\n\
             data: <p>\ndata: one</p>\ndata: </template></turbo-stream>\n\n"
        );
        assert_eq!(Dialect::named("own"), None);
    }

    #[test]
    fn trust_37_no_text_can_break_out_of_a_frame_of_any_kind() {
        let own = frame("open", &Html::trusted("a\rdata: x\r\n\nevent: y\u{2028}\u{85}\r\r"));
        for name in ["htmx", "datastar", "turbo"] {
            let framed = Dialect::named(name).expect("a dialect").reframe(&own);
            let text = std::str::from_utf8(&framed).expect("text");
            let events = text.trim_end_matches('\n').split("\n\n");
            assert_eq!(events.clone().count(), if name == "htmx" { 2 } else { 1 }, "{text:?}");
            for line in events.flat_map(|event| event.split(['\r', '\n'])) {
                let is_ours = line == "event: open" || line == "event: datastar-patch-elements";
                assert!(is_ours || line.starts_with("data: "), "{text:?}");
            }
        }
    }
}
