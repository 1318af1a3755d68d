//! The fields of a posted form, from the bytes of a request to an author's type.

use std::borrow::Cow;

use form_urlencoded::Serializer;
use percent_encoding::percent_decode;
use serde::de::DeserializeOwned;

use crate::engine::EventId;
use crate::limits::web::guard::FORM_FIELDS;

/// The fields of a form in the order they were posted, without the id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Fields(Vec<(String, String)>);

/// What is wrong with a form: the field, if it is a single one, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Misfit {
    pub(crate) field: Option<String>,
    pub(crate) why: String,
}

impl Fields {
    /// Reads what a form sends (`application/x-www-form-urlencoded`). Returns its fields, and apart from them those
    /// named `id`.
    pub(crate) fn read(body: &[u8]) -> Result<(Self, Vec<String>), Misfit> {
        let mut fields = Vec::new();
        let mut ids = Vec::new();
        for pair in body.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty()) {
            let end = pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len());
            let (name, value) = (&pair[..end], pair.get(end + 1..).unwrap_or_default());
            let name =
                decode(name).ok_or_else(|| Misfit { field: None, why: "a field's name is not UTF-8".to_owned() })?;
            let Some(value) = decode(value) else {
                let why = "its text is not UTF-8".to_owned();
                return Err(Misfit { field: Some(shortened(&name)), why });
            };
            if fields.len() + ids.len() == FORM_FIELDS {
                return Err(Misfit { field: None, why: format!("a form has at most {FORM_FIELDS} fields") });
            }
            if name == "id" { ids.push(value) } else { fields.push((name, value)) }
        }
        Ok((Self(fields), ids))
    }

    /// Whether a value is an event's id. Nobody types one, so nobody needs to see it.
    pub(crate) fn is_id(value: &str) -> bool {
        value.parse::<EventId>().is_ok()
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each field's name and value.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }

    /// The fields as a `T`. Text becomes numbers, fields of one name become a list, and an empty field becomes `None`
    /// where that is allowed.
    pub(crate) fn parse<T: DeserializeOwned>(&self) -> Result<T, Misfit> {
        parse(&Serializer::new(String::new()).extend_pairs(self.iter()).finish())
    }
}

/// Reads `text` as a `T`. The text is what follows the `?` of an address, or what a form sends.
pub(crate) fn parse<T: DeserializeOwned>(text: &str) -> Result<T, Misfit> {
    let fields = serde_html_form::Deserializer::from_bytes(text.as_bytes());
    serde_path_to_error::deserialize(fields).map_err(|error| {
        let path = error.path().to_string();
        let why = shortened(&error.into_inner().to_string());
        // For an error about the whole form, the path is a dot. The words then name the field.
        let field = (!path.is_empty() && path != ".").then(|| shortened(&path)).or_else(|| quoted(&why));
        Misfit { field, why }
    })
}

/// Decodes a name or value, or nothing when it isn't UTF-8.
fn decode(bytes: &[u8]) -> Option<String> {
    let spaced: Vec<u8> = bytes.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
    percent_decode(&spaced).decode_utf8().ok().map(Cow::into_owned)
}

/// The text between backticks.
fn quoted(text: &str) -> Option<String> {
    text.split('`').nth(1).map(str::to_owned)
}

/// Enough of a text to recognize it by.
fn shortened(text: &str) -> String {
    let mut short: String = text.chars().take(100).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

impl Misfit {
    /// What is wrong, as a sentence.
    pub(crate) fn sentence(&self) -> String {
        match &self.field {
            Some(field) if !self.why.contains(&format!("`{field}`")) => {
                format!("The field `{field}` doesn't fit: {}.", self.why)
            }
            _ => super::sentence(&self.why),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Eq, Deserialize)]
    struct Entry {
        title: String,
        #[serde(default)]
        tag: Vec<String>,
        stars: Option<u8>,
    }

    fn read(body: &str) -> Result<Entry, Misfit> {
        Fields::read(body.as_bytes()).and_then(|(fields, _)| fields.parse())
    }

    #[test]
    fn fields_become_text_numbers_and_lists() {
        let entry = |title: &str, tag: &[&str], stars| Entry {
            title: title.to_owned(),
            tag: tag.iter().map(|&tag| tag.to_owned()).collect(),
            stars,
        };
        assert_eq!(read("title=a+b%26c&tag=x&id=1&tag=y&stars=3"), Ok(entry("a b&c", &["x", "y"], Some(3))));
        assert_eq!(read("title=&stars="), Ok(entry("", &[], None)));
        assert_eq!(read("title=1&other=2"), Ok(entry("1", &[], None)), "what the form doesn't have is left out");
    }

    #[test]
    fn what_does_not_fit_names_the_field() {
        for (body, field) in [
            ("stars=3", "title"),
            ("title=a&title=b", "title"),
            ("title=a&stars=many", "stars"),
            ("title=a&stars=300", "stars"),
            ("title=%ff", "title"),
        ] {
            let misfit = read(body).expect_err(body);
            assert_eq!(misfit.field.as_deref(), Some(field), "{body}: {misfit:?}");
            assert!(misfit.sentence().contains(&format!("`{field}`")), "{misfit:?}");
        }
        assert_eq!(read("%ff=a").expect_err("not text").field, None);
        assert_eq!(
            read(&("title=a&".to_owned() + &"tag=x&".repeat(FORM_FIELDS - 1))).expect("it fits").tag.len(),
            FORM_FIELDS - 1
        );
        let many = read(&"tag=x&".repeat(FORM_FIELDS + 1)).expect_err("too many");
        assert_eq!(many.sentence(), "A form has at most 1000 fields.");
    }
}
