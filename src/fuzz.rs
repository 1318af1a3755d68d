//! Fuzzing on the stable compiler, for every decoder that a stranger can reach. Each decoder's own tests pass a check
//! to [`fuzz`], which tries the inputs in `tests/fuzz/corpus/<decoder>/` and then mutations of them.
//!
//! Each run tries the same inputs. `LIKEWISE_SEED` gives other inputs, and `LIKEWISE_FUZZ_SECONDS` sets how long a run
//! lasts. An input that fails is written to the corpus, where it stays and is tried first from then on.

use std::any::Any;
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How many inputs are made in a run without a set time.
const ROUNDS: usize = 3_000;

/// The longest input, in bytes. It is above the bounds of most decoders, so those are tested.
const LONGEST: usize = 80 << 10;

/// How many inputs with a new outcome are kept for further mutation.
const KEPT: usize = 1_000;

/// Words that decoders of all kinds trip over.
const WORDS: &[&str] = &[
    "",
    "0",
    "-1",
    "1e999",
    "4611686018427387904",
    "9223372036854775808",
    "18446744073709551616",
    "null",
    "{}",
    "[]",
    "\"\"",
    "\\u0000",
    "\\ud800",
    "\u{0}",
    "\r\n",
    "\n",
    "\u{feff}",
    "\u{202e}",
    "é",
    "🦀",
    "%00",
    "%ff",
    "%",
    "&",
    "=",
    "+",
    ";",
    ":",
    "[",
    "]",
    "{",
    "}",
    "\"",
    ",",
    "../",
    " ",
    "\t",
];

/// Runs `check` on the inputs of `decoder`. The check fails by a panic, and otherwise returns the outcome. An input
/// with a new outcome is worth mutating further. `words` are those that this decoder in particular knows.
pub(crate) fn fuzz(decoder: &str, words: &[&str], check: impl FnMut(&[u8]) -> String) {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(decoder);
    let nothing = || format!("{} has to hold an input that is right, at least", dir.display());
    let files = std::fs::read_dir(&dir).unwrap_or_else(|why| panic!("{}: {why}", nothing()));
    let mut files: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
    files.sort();
    let corpus: Vec<_> = files.iter().map(|path| std::fs::read(path).expect("an input")).collect();
    assert!(!corpus.is_empty(), "{}", nothing());
    if let Some((input, panic)) = find(corpus, words, check) {
        let path = dir.join(format!("failed-{}", &blake3::hash(&input).to_hex()[..16]));
        std::fs::write(&path, &input).expect("the input to be kept");
        eprintln!("the input is in {}; it belongs into the corpus", path.display());
        resume_unwind(panic);
    }
}

/// An input that panics, and its panic.
type Failure = (Vec<u8>, Box<dyn Any + Send>);

/// Looks for an input on which `check` panics, in the corpus and among its mutations.
fn find(corpus: Vec<Vec<u8>>, words: &[&str], mut check: impl FnMut(&[u8]) -> String) -> Option<Failure> {
    let words: Vec<_> = words.iter().chain(WORDS).map(|word| word.as_bytes()).collect();
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let mut random = Random(number("LIKEWISE_SEED").unwrap_or(20_240_607) | 1);
    let (start, seconds) = (Instant::now(), number("LIKEWISE_FUZZ_SECONDS").map(Duration::from_secs));
    let (known, mut pool, mut outcomes) = (corpus.len(), corpus, HashSet::new());
    for round in 0.. {
        let is_over = seconds.map_or(round >= known + ROUNDS, |seconds| start.elapsed() >= seconds);
        if round >= known && is_over {
            break;
        }
        let input = if round < known { pool[round].clone() } else { random.mutated(&pool, &words) };
        match catch_unwind(AssertUnwindSafe(|| check(&input))) {
            Ok(outcome) => {
                // Positions and numbers in a message don't make a new outcome.
                let outcome: String = outcome.chars().filter(|c| !c.is_ascii_digit()).take(60).collect();
                if outcomes.insert(outcome) && pool.len() < KEPT && round >= known {
                    pool.push(input);
                }
            }
            Err(panic) => return Some((input, panic)),
        }
    }
    None
}

/// A small random generator with a seed, so a failure can be repeated.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Returns a number below `end`, or 0 if `end` is 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end.max(1) as u64).expect("it came from a usize")
    }

    fn part(&mut self, input: &[u8]) -> std::ops::Range<usize> {
        let start = self.below(input.len() + 1);
        start..start + self.below((input.len() - start).min(64) + 1)
    }

    /// Returns an input of the pool, changed in one to six places.
    fn mutated(&mut self, pool: &[Vec<u8>], words: &[&[u8]]) -> Vec<u8> {
        let mut input = pool[self.below(pool.len())].clone();
        for _ in 0..=self.below(6) {
            let part = self.part(&input);
            match self.below(9) {
                0 => {
                    if let Some(byte) = input.get_mut(part.start) {
                        *byte ^= 1 << self.below(8);
                    }
                }
                1 => drop(input.drain(part)),
                2 => input.truncate(part.start),
                3 => {
                    let copy = input[part.clone()].to_vec();
                    input.splice(part.end..part.end, copy);
                }
                4 => {
                    // Repeat a part many times: deep nesting, long text, many items.
                    let copy = input[part.clone()].repeat(1 << self.below(14));
                    input.splice(part.end..part.end, copy.into_iter().take(LONGEST));
                }
                5 => {
                    let other = &pool[self.below(pool.len())];
                    let piece = other[self.part(other)].to_vec();
                    input.splice(part, piece);
                }
                6 => {
                    // Replace a number, or a word of hexadecimal digits, with another word.
                    let is_in = |byte: &u8| byte.is_ascii_hexdigit();
                    let end = part.start + input[part.start..].iter().take_while(|byte| is_in(byte)).count();
                    let word = words[self.below(words.len())];
                    input.splice(part.start..end, word.iter().copied());
                }
                7 => {
                    let word = words[self.below(words.len())];
                    input.splice(part, word.iter().copied());
                }
                _ => {
                    let word = words[self.below(words.len())];
                    input.splice(part.start..part.start, word.iter().copied());
                }
            }
            input.truncate(LONGEST);
        }
        input
    }
}

/// Converts the input to text, and replaces what isn't UTF-8. Decoders of text get nothing else.
pub(crate) fn text(input: &[u8]) -> String {
    String::from_utf8_lossy(input).into_owned()
}

/// Returns the outcome of a decoder that gives a value or says why not.
pub(crate) fn outcome<T, E: std::fmt::Display>(result: &Result<T, E>) -> String {
    match result {
        Ok(_) => "right".to_owned(),
        Err(why) => {
            let why = why.to_string();
            // The quoted parts of the input differ each time.
            why.split('`').step_by(2).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fuzzer that finds nothing proves something only if it finds the faults that are there.
    #[test]
    fn faults_that_were_put_there_are_found() {
        let corpus = || vec![br#"{"seq":9,"name":"NoteAdded"}"#.to_vec()];
        let slices_text = |input: &[u8]| {
            let text = text(input);
            text.find(':').map_or(String::new(), |at| text[at + 1..(at + 3).min(text.len())].to_owned())
        };
        assert!(find(corpus(), &[], slices_text).is_some(), "a cut through a character");
        let adds = |input: &[u8]| {
            let number = text(input).split(|c: char| !c.is_ascii_digit()).find_map(|digits| digits.parse::<u64>().ok());
            number.unwrap_or_default().checked_mul(2).expect("a small number").to_string()
        };
        assert!(find(corpus(), &[], adds).is_some(), "a number that overflows");
        let counts = |input: &[u8]| {
            assert!(input.iter().filter(|byte| **byte == b',').count() < 2_000);
            String::new()
        };
        assert!(find(corpus(), &[], counts).is_some(), "a list without an end");
        assert!(find(corpus(), &[], |input| input.len().to_string()).is_none());
    }
}
