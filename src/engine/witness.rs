//! The witness: a small file that remembers how far the eventlog had come.
//!
//! Pending events are never in `state.db` on disk, so the state's cursor can't show that they are missing. This file
//! can. It is written after each commit and never synced. After a power cut it may be behind the eventlog, but never
//! ahead of it. A torn witness counts as none.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::error::{Fault, IoContext};
use super::files::open_private_file;
use super::place::{Generation, Seq};

/// How far an eventlog has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Testimony {
    pub(crate) generation: Generation,
    /// The last event of the log.
    pub(crate) seq: Seq,
    /// The highest number that the outbox has ever assigned.
    pub(crate) n: i64,
    /// How many transactions have changed the eventlog. The other fields don't change while pending events only leave.
    /// SQLite accepts a newer database with an older WAL, in which those events are still there. This number shows
    /// that.
    pub(crate) commits: u64,
}

impl Testimony {
    /// Returns what the eventlog at `self` has lost, if it had come as far as `earlier` before.
    pub(crate) fn lacks(self, earlier: Self) -> Option<String> {
        if self.generation < earlier.generation {
            return Some(format!(
                "it is of generation {}, and had reached generation {}",
                self.generation.0, earlier.generation.0
            ));
        }
        if self.generation == earlier.generation && self.seq < earlier.seq {
            return Some(format!("it ends at {}, and had reached {}", self.seq, earlier.seq));
        }
        if self.n < earlier.n {
            return Some(format!("its outbox ends at {}, and had reached {}", self.n, earlier.n));
        }
        if self.commits < earlier.commits {
            return Some(format!("it was written to {} times, and had been {} times", self.commits, earlier.commits));
        }
        None
    }

    /// Returns one line of fixed width. So each write covers the previous one.
    fn to_line(self) -> String {
        let body = format!("{:020} {:020} {:020} {:020}", self.generation.0, self.seq.0, self.n, self.commits);
        format!("{body} {}\n", check(&body))
    }

    fn from_line(line: &str) -> Option<Self> {
        let (body, sum) = line.trim_end().rsplit_once(' ')?;
        if check(body) != sum {
            return None;
        }
        let mut numbers = body.split(' ');
        let generation = Generation(numbers.next()?.parse().ok()?);
        let seq = Seq(numbers.next()?.parse().ok()?);
        let n = numbers.next()?.parse().ok()?;
        let commits = numbers.next()?.parse().ok()?;
        Some(Self { generation, seq, n, commits })
    }
}

/// Returns what the witness at `path` says, if it exists and is valid.
pub(crate) fn testimony(path: &Path) -> Option<Testimony> {
    std::fs::read_to_string(path).ok().as_deref().and_then(Testimony::from_line)
}

fn check(body: &str) -> String {
    blake3::hash(body.as_bytes()).to_hex()[..16].to_owned()
}

/// The open file.
#[derive(Debug)]
pub(crate) struct Witness {
    file: File,
    path: PathBuf,
    last: Testimony,
}

impl Witness {
    /// Opens the witness, and returns what it says, if it is valid.
    pub(crate) fn open(path: &Path) -> Result<(Self, Option<Testimony>), Fault> {
        let file = open_private_file(path)?;
        let mut bytes = Vec::new();
        (&file).take(256).read_to_end(&mut bytes).doing("read", path)?;
        let said = std::str::from_utf8(&bytes).ok().and_then(Testimony::from_line);
        Ok((Self { file, path: path.to_owned(), last: said.unwrap_or_default() }, said))
    }

    /// Records how far the eventlog has come.
    pub(crate) fn write(&mut self, now: Testimony) -> Result<(), Fault> {
        if now == self.last {
            return Ok(());
        }
        let line = now.to_line();
        self.file
            .seek(SeekFrom::Start(0))
            .and_then(|_| self.file.write_all(line.as_bytes()))
            .doing("write", &self.path)?;
        self.last = now;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_was_written_and_a_torn_one_nothing() {
        let said = Testimony { generation: Generation(3), seq: Seq(70_000), n: -5, commits: 9 };
        let line = said.to_line();
        assert_eq!(Testimony::from_line(&line), Some(said));
        assert_eq!(line.len(), Testimony::default().to_line().len());
        for cut in 0..line.len() - 1 {
            assert_eq!(Testimony::from_line(&line[..cut]), None);
        }
    }
}
