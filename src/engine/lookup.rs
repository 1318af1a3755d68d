//! Recognizes queries that look rows of one table up by a key: `SELECT … FROM t WHERE k = ?1 …`.
//!
//! The answer to such a query depends only on the rows whose `k` has that value. So a commit that wrote other rows of
//! the table can't have changed it. A query that isn't recognized is only run more often than necessary. So this looks
//! for a plain form and gives up on everything else.

/// A query's lookup: the rows of `table` whose `column` equals a parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lookup<'a> {
    pub(super) table: &'a str,
    pub(super) column: &'a str,
    /// The index of the parameter, from 0.
    pub(super) param: usize,
}

/// A token of SQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token<'a> {
    /// A name or a keyword, without quotes.
    Word(&'a str),
    /// A quoted name.
    Name(&'a str),
    /// `?` or `?N`.
    Param(Option<usize>),
    /// A literal.
    Literal,
    /// Any other character.
    Sign(char),
}

impl<'a> Token<'a> {
    fn is(self, keyword: &str) -> bool {
        matches!(self, Self::Word(word) if word.eq_ignore_ascii_case(keyword))
    }

    fn is_any(self, keywords: &[&str]) -> bool {
        keywords.iter().any(|keyword| self.is(keyword))
    }

    fn name(self) -> Option<&'a str> {
        match self {
            Self::Word(name) | Self::Name(name) => Some(name),
            _ => None,
        }
    }
}

/// With one of these keywords, rows of the answer may come from outside the one table.
const ELSEWHERE: [&str; 6] = ["WITH", "UNION", "EXCEPT", "INTERSECT", "JOIN", "VALUES"];

/// The keywords that may follow the conditions of a query.
const AFTER_WHERE: [&str; 4] = ["GROUP", "ORDER", "LIMIT", "WINDOW"];

impl<'a> Lookup<'a> {
    /// Returns what `sql` looks up, if that is all it does.
    pub(super) fn in_sql(sql: &'a str) -> Option<Self> {
        let tokens = tokens(sql)?;
        let (first, rest) = tokens.split_first()?;
        let goes_elsewhere = |token: &Token<'_>| token.is("SELECT") || token.is_any(&ELSEWHERE);
        // `IN` may name a table, even the same one.
        let is_in_table = |pair: &[Token<'_>]| pair[0].is("IN") && pair[1] != Token::Sign('(');
        if !first.is("SELECT") || rest.iter().any(goes_elsewhere) || rest.windows(2).any(is_in_table) {
            return None;
        }
        let from = outside_parentheses(rest).position(|(_, token)| token.is("FROM"))?;
        let (from, _) = outside_parentheses(rest).nth(from)?;
        let (table, rest) = rest.get(from + 1..)?.split_first()?;
        let table = table.name()?;
        let (alias, rest) = match rest {
            [r#as, alias, rest @ ..] if r#as.is("AS") => (alias.name()?, rest),
            [r#where, ..] if r#where.is("WHERE") => (table, rest),
            [alias, rest @ ..] => (alias.name()?, rest),
            [] => return None,
        };
        let [r#where, conditions @ ..] = rest else { return None };
        if !r#where.is("WHERE") {
            return None;
        }
        let (column, conditions) = match conditions {
            [of, Token::Sign('.'), column, rest @ ..] if of.name()?.eq_ignore_ascii_case(alias) => (column, rest),
            [column, rest @ ..] => (column, rest),
            [] => return None,
        };
        let column = column.name()?;
        let [Token::Sign('='), Token::Param(number), rest @ ..] = conditions else { return None };
        let ends = rest.first().is_none_or(|next| next.is("AND") || next.is_any(&AFTER_WHERE));
        let others = outside_parentheses(rest).map(|(_, token)| token);
        let has_or = others.take_while(|token| !token.is_any(&AFTER_WHERE)).any(|token| token.is("OR"));
        if !ends || has_or {
            return None;
        }
        // A parameter without a number gets the one after the largest so far.
        let before = &tokens[..tokens.len() - rest.len() - 1];
        let earlier = before.iter().filter(|token| matches!(token, Token::Param(_))).count();
        let param = match number {
            Some(number) => number.checked_sub(1)?,
            None if earlier == 0 => 0,
            None => return None,
        };
        Some(Self { table, column, param })
    }
}

/// Returns the tokens outside parentheses, with their indexes.
fn outside_parentheses<'t, 'a>(tokens: &'t [Token<'a>]) -> impl Iterator<Item = (usize, Token<'a>)> + 't {
    let mut depth = 0_usize;
    tokens.iter().copied().enumerate().filter(move |(_, token)| {
        match token {
            Token::Sign('(') => depth += 1,
            Token::Sign(')') => depth = depth.saturating_sub(1),
            _ => return depth == 0,
        }
        false
    })
}

/// Returns whether `sql` contains the word `keyword` outside literals and comments. Also true for text that can't be
/// tokenized.
pub(super) fn says(sql: &str, keyword: &str) -> bool {
    tokens(sql).is_none_or(|tokens| tokens.iter().any(|token| token.is(keyword)))
}

/// Splits SQL into tokens. Returns `None` for text that isn't understood.
fn tokens(sql: &str) -> Option<Vec<Token<'_>>> {
    let mut tokens = Vec::new();
    let mut rest = sql.trim_end().trim_end_matches(';');
    while let Some(first) = rest.chars().next() {
        let (token, length) = match first {
            _ if first.is_whitespace() => {
                rest = rest.trim_start();
                continue;
            }
            '-' if rest.starts_with("--") => {
                rest = rest.split_once('\n').map_or("", |(_, after)| after);
                continue;
            }
            '/' if rest.starts_with("/*") => {
                rest = rest[2..].split_once("*/")?.1;
                continue;
            }
            '\'' => (Token::Literal, quoted(rest, '\'')?),
            '"' | '`' => {
                let length = quoted(rest, first)?;
                let name = &rest[1..length - 1];
                // A name that contains its own quote would have to be unescaped.
                (if name.contains(first) { return None } else { Token::Name(name) }, length)
            }
            '[' => {
                let length = rest.find(']')? + 1;
                (Token::Name(&rest[1..length - 1]), length)
            }
            '?' => {
                let digits = rest[1..].bytes().take_while(u8::is_ascii_digit).count();
                let number = if digits == 0 { None } else { Some(rest[1..=digits].parse().ok()?) };
                (Token::Param(number), 1 + digits)
            }
            // Named parameters have no index here.
            ':' | '@' | '$' => return None,
            _ if first.is_ascii_digit() => {
                let is_of_number = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'.' || *byte == b'_';
                (Token::Literal, rest.bytes().take_while(is_of_number).count())
            }
            _ if first.is_alphabetic() || first == '_' => {
                let end = rest.find(|char: char| !(char.is_alphanumeric() || char == '_' || char == '$'));
                let length = end.unwrap_or(rest.len());
                (Token::Word(&rest[..length]), length)
            }
            // A double equals sign means the same as a single one.
            '=' if rest.starts_with("==") => (Token::Sign('='), 2),
            _ => (Token::Sign(first), first.len_utf8()),
        };
        tokens.push(token);
        rest = &rest[length..];
    }
    Some(tokens)
}

/// Returns the length of the quoted text at the start of `text`, including both quotes. A doubled quote stands for one
/// inside.
fn quoted(text: &str, quote: char) -> Option<usize> {
    let mut end = 1;
    loop {
        end += text[end..].find(quote)? + 1;
        if !text[end..].starts_with(quote) {
            return Some(end);
        }
        end += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn assert_looks_up(sql: &str, table: &str, column: &str, param: usize) {
        assert_eq!(Lookup::in_sql(sql), Some(Lookup { table, column, param }), "{sql}");
    }

    #[test]
    fn lookups_by_a_key_are_recognized() {
        assert_looks_up("SELECT count FROM likes WHERE id = ?1", "likes", "id", 0);
        assert_looks_up("select n from t where k=? and n > 3 order by n limit 1;", "t", "k", 0);
        assert_looks_up("SELECT a.n, max(a.m) FROM t AS a WHERE a.k = ?2 AND (a.x = ?1 OR a.y)", "t", "k", 1);
        assert_looks_up(
            "SELECT count(*) FROM \"my table\" r WHERE r.[a key] == ?1 GROUP BY kind",
            "my table",
            "a key",
            0,
        );
        assert_looks_up("SELECT n -- the OR of all\n FROM t WHERE k = ?1 AND s = 'a OR b''s'", "t", "k", 0);
    }

    #[test]
    fn what_may_depend_on_other_rows_is_not() {
        for sql in [
            "SELECT n FROM t",
            "SELECT n FROM t WHERE k = 3",
            "SELECT n FROM t WHERE k = ?1 OR n = 2",
            "SELECT n FROM t WHERE k = ?1 AND n = 2 OR n = 3",
            "SELECT n FROM t WHERE NOT k = ?1",
            "SELECT n FROM t WHERE k = ?1 + 1",
            "SELECT n FROM t WHERE k = ?1 COLLATE NOCASE",
            "SELECT n FROM t WHERE k = ?1 = ?2",
            "SELECT n FROM t WHERE k >= ?1",
            "SELECT n FROM t WHERE k = ?1 AND n = (SELECT max(n) FROM t)",
            "SELECT n FROM t, u WHERE k = ?1",
            "SELECT n FROM t WHERE k = ?1 AND n IN t",
            "SELECT n FROM t JOIN u ON t.a = u.a WHERE k = ?1",
            "SELECT n FROM t WHERE k = ?1 UNION SELECT 1",
            "WITH t AS (SELECT 1) SELECT n FROM t WHERE k = ?1",
            "SELECT n FROM json_each(?1) WHERE value = ?1",
            "SELECT n FROM main.t WHERE k = ?1",
            "SELECT n FROM t WHERE u.k = ?1",
            "SELECT ? FROM t WHERE k = ?",
            "SELECT n FROM t WHERE k = :key",
            "SELECT n FROM t WHERE (k, l) = (?1, ?2)",
            "SELECT n FROM t WHERE k = ?0",
            "SELECT 'n FROM t WHERE k = ?1",
            "DELETE FROM t WHERE k = ?1",
            "",
        ] {
            assert_eq!(Lookup::in_sql(sql), None, "{sql}");
        }
    }

    #[test]
    fn a_word_is_found_outside_of_literals() {
        assert!(says("INSERT OR replace INTO t VALUES (1)", "REPLACE"));
        assert!(!says("INSERT INTO t VALUES ('replace') -- replace", "REPLACE"));
        assert!(says("INSERT INTO t VALUES ('unended", "REPLACE"), "what can't be read may say anything");
    }
}
