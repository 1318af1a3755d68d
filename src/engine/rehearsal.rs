//! The rehearsal runs each materializer on made-up events when an app starts. It finds SQL that SQLite can't even
//! prepare, before somebody's first event is refused for it.
//!
//! Only errors in preparing count. A made-up event may well be one that the materializer or a constraint refuses, and
//! much of the code isn't reached at all. Each change is rolled back in the end. Before that, queries can be tried on
//! it.

use std::cell::Cell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::de::value::{StrDeserializer, U32Deserializer};
use serde::de::{self, DeserializeSeed, Deserializer, IntoDeserializer, Visitor};

use super::authorizer::Mode;
use super::error::{DbError, Fault};
use super::event::EventId;
use super::materialize::{Db, Payload};
use super::query::Query;
use super::sandbox::Sandbox;
use super::schema::Schema;
use crate::limits::engine::rehearsal::{BOTTOM, DEEPEST, ROUNDS};

/// The state in a rehearsal, to try queries on.
pub(crate) struct Rehearsed<'a> {
    schema: &'a Schema,
    sandbox: &'a Sandbox,
    /// Whether no event has been applied yet. The state is then that of every new store.
    pub(crate) is_empty: bool,
}

impl Rehearsed<'_> {
    /// Returns whether events of that name have a materializer.
    pub(crate) fn knows(&self, name: &str) -> bool {
        self.schema.knows(name)
    }

    /// Runs `query`. The inner error depends on the rows: with other rows there may be an answer.
    ///
    /// # Errors
    ///
    /// If the query fails whatever the rows.
    pub(crate) fn answer<T: 'static>(&self, query: &Query<T>) -> Result<Result<T, DbError>, DbError> {
        query.prepare(self.sandbox)?;
        match query.run(self.sandbox) {
            Ok((answer, _)) => Ok(Ok(answer)),
            Err(error) if error.is_of_author() => Err(error),
            Err(error) => Ok(Err(error)),
        }
    }
}

impl Schema {
    /// Runs each materializer in a transaction on the empty state, and rolls it back. `look` sees the state in between.
    ///
    /// # Errors
    ///
    /// The first statement that can't be prepared, with the event of its materializer. Also the errors of `look`.
    pub(super) fn rehearse<E: From<Fault>>(
        &self,
        sandbox: &Sandbox,
        look: &mut impl FnMut(&Rehearsed<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let touched = Cell::default();
        let db = Db::new(sandbox, &touched);
        let run = |sql: &str| sandbox.engine().execute_batch(sql).map_err(Fault::state);
        look(&Rehearsed { schema: self, sandbox, is_empty: true })?;
        run("BEGIN")?;
        for round in 0..ROUNDS {
            for (name, materializer) in &self.materializers {
                run("SAVEPOINT rehearsal")?;
                let payload = Payload::MadeUp(MadeUp { round, depth: 0 });
                let materialize = || sandbox.within(Mode::Materialize, || materializer(payload, &db));
                let is_done =
                    db.at(id(round), || catch_unwind(AssertUnwindSafe(materialize)).is_ok_and(|result| result.is_ok()));
                if let Some((sql, why)) = db.take_unprepared()
                    // No real event would produce a statement that is built from the made-up payload.
                    && !sql.contains(&id(round).to_string())
                {
                    let why = format!(
                        "the materializer of {name} has a statement that can't be prepared: {why}. Correct it and start again"
                    );
                    return Err(Fault::Schema(DbError::refuse(why)).into());
                }
                if sandbox.is_autocommit() {
                    run("BEGIN")?;
                } else if is_done {
                    run("RELEASE rehearsal")?;
                    look(&Rehearsed { schema: self, sandbox, is_empty: false })?;
                } else {
                    run("ROLLBACK TO rehearsal; RELEASE rehearsal")?;
                }
            }
        }
        Ok(run("ROLLBACK")?)
    }
}

/// Returns the id of the events of a round. Its time is 1970, which no real event has.
fn id(round: u32) -> EventId {
    EventId::from_parts(0, [round as u8; 10])
}

/// Deserializes into a value of any type. Texts are the id of the round. So they parse as ids too, and refer to the
/// rows that other made-up events have made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MadeUp {
    round: u32,
    depth: u32,
}

impl MadeUp {
    fn deeper(self) -> Result<Self, Unreachable> {
        if self.depth < BOTTOM { Ok(Self { depth: self.depth + 1, ..self }) } else { Err(Unreachable) }
    }

    /// Returns how many elements a list has if its type sets no length.
    fn length(self) -> usize {
        usize::from(self.depth < DEEPEST)
    }
}

/// The error if no value of a type can be made up.
#[derive(Debug)]
pub(crate) struct Unreachable;

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no value of this type can be made up")
    }
}

impl std::error::Error for Unreachable {}

impl de::Error for Unreachable {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self
    }
}

macro_rules! numbers {
    ($($method:ident $visit:ident $type:ty),*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unreachable> {
            visitor.$visit(self.round as $type)
        })*
    };
}

impl<'de> Deserializer<'de> for MadeUp {
    type Error = Unreachable;

    numbers! {
        deserialize_i8 visit_i8 i8, deserialize_i16 visit_i16 i16, deserialize_i32 visit_i32 i32,
        deserialize_i64 visit_i64 i64, deserialize_i128 visit_i128 i128,
        deserialize_u8 visit_u8 u8, deserialize_u16 visit_u16 u16, deserialize_u32 visit_u32 u32,
        deserialize_u64 visit_u64 u64, deserialize_u128 visit_u128 u128,
        deserialize_f32 visit_f32 f32, deserialize_f64 visit_f64 f64
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unreachable> {
        visitor.visit_bool(self.round % 2 == 1)
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unreachable> {
        visitor.visit_char('a')
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unreachable> {
        visitor.visit_string(id(self.round).to_string())
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unreachable> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unreachable> {
        visitor.visit_byte_buf(id(self.round).as_bytes().to_vec())
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unreachable> {
        self.deserialize_bytes(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unreachable> {
        match self.deeper() {
            Ok(inner) if self.round.is_multiple_of(2) && self.depth < DEEPEST => visitor.visit_some(inner),
            _ => visitor.visit_none(),
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unreachable> {
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Unreachable> {
        visitor.visit_unit()
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Unreachable> {
        visitor.visit_newtype_struct(self.deeper()?)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unreachable> {
        visitor.visit_seq(Elements { of: self, left: self.length() })
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value, Unreachable> {
        visitor.visit_seq(Elements { of: self, left: length })
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Unreachable> {
        self.deserialize_tuple(length, visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unreachable> {
        visitor.visit_map(Elements { of: self, left: self.length() })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Unreachable> {
        visitor.visit_map(Fields { of: self, names: fields })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Unreachable> {
        let count = u32::try_from(variants.len()).map_err(|_| Unreachable)?;
        visitor.visit_enum(Variant { of: self, index: self.round.checked_rem(count).ok_or(Unreachable)? })
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unreachable> {
        self.deserialize_str(visitor)
    }

    /// Yields a unit for self-describing types, such as any JSON value.
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unreachable> {
        visitor.visit_unit()
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unreachable> {
        visitor.visit_unit()
    }
}

/// The elements of a list, or the keys and values of a map.
struct Elements {
    of: MadeUp,
    left: usize,
}

impl<'de> de::SeqAccess<'de> for Elements {
    type Error = Unreachable;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Unreachable> {
        let Some(left) = self.left.checked_sub(1) else { return Ok(None) };
        self.left = left;
        seed.deserialize(self.of.deeper()?).map(Some)
    }
}

impl<'de> de::MapAccess<'de> for Elements {
    type Error = Unreachable;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Unreachable> {
        de::SeqAccess::next_element_seed(self, seed)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Unreachable> {
        seed.deserialize(self.of.deeper()?)
    }
}

/// The fields of a struct.
struct Fields {
    of: MadeUp,
    names: &'static [&'static str],
}

impl<'de> de::MapAccess<'de> for Fields {
    type Error = Unreachable;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Unreachable> {
        let Some((first, others)) = self.names.split_first() else { return Ok(None) };
        self.names = others;
        let name: StrDeserializer<'_, Unreachable> = (*first).into_deserializer();
        seed.deserialize(name).map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Unreachable> {
        seed.deserialize(self.of.deeper()?)
    }
}

/// One variant of an enum, with its content.
struct Variant {
    of: MadeUp,
    index: u32,
}

impl<'de> de::EnumAccess<'de> for Variant {
    type Error = Unreachable;
    type Variant = Self;

    fn variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<(T::Value, Self), Unreachable> {
        let index: U32Deserializer<Unreachable> = self.index.into_deserializer();
        Ok((seed.deserialize(index)?, self))
    }
}

impl<'de> de::VariantAccess<'de> for Variant {
    type Error = Unreachable;

    fn unit_variant(self) -> Result<(), Unreachable> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Unreachable> {
        seed.deserialize(self.of.deeper()?)
    }

    fn tuple_variant<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value, Unreachable> {
        self.of.deeper()?.deserialize_tuple(length, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Unreachable> {
        self.of.deeper()?.deserialize_struct("", fields, visitor)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Everything {
        id: EventId,
        text: String,
        number: i16,
        maybe: Option<Box<Everything>>,
        list: Vec<(u64, f64)>,
        map: BTreeMap<String, bool>,
        choice: Choice,
        any: serde_json::Value,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    enum Choice {
        Nothing,
        One(char),
        Two(u8, u8),
        Named { note: String },
    }

    fn made<T: for<'de> Deserialize<'de>>(round: u32) -> T {
        T::deserialize(MadeUp { round, depth: 0 }).expect("a value")
    }

    #[test]
    fn a_value_of_any_type_is_made_up() {
        let choices: Vec<Choice> = (0..4).map(made).collect();
        let note = id(3).to_string();
        assert_eq!(choices, [Choice::Nothing, Choice::One('a'), Choice::Two(2, 2), Choice::Named { note }]);
        let Everything { text, maybe, list, map, any, .. } = made(0);
        assert_eq!((text, list.len(), map.len(), any), (id(0).to_string(), 1, 1, serde_json::Value::Null));
        assert!(maybe.is_some() && made::<Everything>(1).maybe.is_none());
    }
}
