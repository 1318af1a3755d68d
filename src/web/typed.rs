//! Which fields of a form people type in. A post doesn't say, but the page with the form does.
//!
//! Without JavaScript, a refused post comes back on a page of its own. That page shows what was typed, to be corrected,
//! and keeps the other fields hidden.

use std::collections::BTreeMap;

/// Inputs that nobody types in.
const UNTYPED: [&str; 9] = ["hidden", "submit", "button", "image", "reset", "file", "checkbox", "radio", "password"];

/// How a field of a form gets its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Filled {
    /// By the page, or by choosing.
    ByPage,
    /// By typing.
    ByHand,
}

/// The fields of the forms in `html` that post to `action`. If forms disagree about a field, it counts as typed.
pub(crate) fn fields(html: &str, action: &str) -> BTreeMap<String, Filled> {
    let mut fields = BTreeMap::new();
    let mut is_inside = false;
    for Tag { name, attributes } in Tags(html) {
        let attribute = |wanted: &str| attributes.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted));
        let attribute = |wanted: &str| attribute(wanted).map(|(_, value)| *value);
        let is = |wanted: &str| name.eq_ignore_ascii_case(wanted);
        if is("form") {
            is_inside = attribute("action") == Some(action);
        } else if is("/form") {
            is_inside = false;
        }
        let filled = match attribute("type").unwrap_or_default().to_ascii_lowercase() {
            kind if is("input") && !UNTYPED.contains(&kind.as_str()) => Filled::ByHand,
            _ if is("textarea") => Filled::ByHand,
            _ if is("input") || is("button") || is("select") => Filled::ByPage,
            _ => continue,
        };
        if is_inside && let Some(name) = attribute("name") {
            let known = fields.entry(name.to_owned()).or_insert(filled);
            *known = filled.max(*known);
        }
    }
    fields
}

/// A tag: its name, with a `/` in front if it ends an element, and its attributes.
struct Tag<'a> {
    name: &'a str,
    attributes: Vec<(&'a str, &'a str)>,
}

/// The tags in a text, in order.
struct Tags<'a>(&'a str);

impl<'a> Tags<'a> {
    /// Takes the text up to the first character that is `end`.
    fn take_until(&mut self, end: impl Fn(char) -> bool) -> &'a str {
        let (taken, rest) = self.0.split_at(self.0.find(end).unwrap_or(self.0.len()));
        self.0 = rest;
        taken
    }

    fn skip(&mut self, skipped: impl Fn(char) -> bool) {
        self.take_until(|next| !skipped(next));
    }

    /// The value of an attribute whose name was just read.
    fn value(&mut self) -> &'a str {
        self.skip(|next| next.is_ascii_whitespace());
        let Some(rest) = self.0.strip_prefix('=') else { return "" };
        self.0 = rest.trim_ascii_start();
        match self.0.chars().next().filter(|quote| matches!(quote, '"' | '\'')) {
            Some(quote) => {
                let (value, rest) = self.0[1..].split_once(quote).unwrap_or((&self.0[1..], ""));
                self.0 = rest;
                value
            }
            None => self.take_until(|next| next.is_ascii_whitespace() || next == '>'),
        }
    }
}

impl<'a> Iterator for Tags<'a> {
    type Item = Tag<'a>;

    fn next(&mut self) -> Option<Tag<'a>> {
        loop {
            self.0 = self.0.split_once('<')?.1;
            if let Some(comment) = self.0.strip_prefix("!--") {
                self.0 = comment.split_once("-->")?.1;
                continue;
            }
            let at = usize::from(self.0.starts_with('/'));
            let length = self.0[at..].find(|next: char| !next.is_ascii_alphanumeric() && next != '-');
            let (name, rest) = self.0.split_at(length.map_or(self.0.len(), |length| at + length));
            if name.len() == at {
                continue;
            }
            self.0 = rest;
            let mut attributes = Vec::new();
            loop {
                self.skip(|next| next.is_ascii_whitespace() || matches!(next, '/' | '=' | '"' | '\''));
                if self.0.is_empty() || self.0.starts_with('>') {
                    return Some(Tag { name, attributes });
                }
                let attribute = self.take_until(|next| next.is_ascii_whitespace() || matches!(next, '=' | '>' | '/'));
                attributes.push((attribute, self.value()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::{fuzz, text};

    #[test]
    fn what_people_type_is_told_from_what_the_form_sends_along() {
        let page = r#"<!-- <form action=/add><input name=comment> --> <input name="outside">
            <form method="post" action="/other"><input name="other"></form>
            <FORM method='post' action='/add' data-a><input type="hidden" name="id" value="<input name=x>">
              <input type=hidden name=todo value=7><input name="title" required/><textarea name=text rows=3>a</textarea>
              <input type="email" name="mail"><input type="checkbox" name="urgent"><input type=RADIO name=kind value=a>
              <select name="list"><option>1</select><button name="side" value="before">Up</button><input>
            </form><input name="after">
            <form action="/add"><input name="kind"></form>"#;
        let of = |filled: Filled| -> Vec<String> {
            fields(page, "/add").into_iter().filter(|(_, how)| *how == filled).map(|(name, _)| name).collect()
        };
        assert_eq!(of(Filled::ByHand), ["kind", "mail", "text", "title"]);
        assert_eq!(of(Filled::ByPage), ["id", "list", "side", "todo", "urgent"]);
        assert!(fields(page, "/nowhere").is_empty());
    }

    #[test]
    fn fuzzed_pages_have_fields_or_none() {
        fuzz("page", &["<form action=/a>", "<input name=", "\"", "'", "<!--", "-->", ">", "</", "textarea"], |input| {
            fields(&text(input), "/a").len().min(2).to_string()
        });
    }
}
