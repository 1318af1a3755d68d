//! The recorder and fault injector: builds `shim.c`, starts programs under it, and tells it what to do.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use tempfile::TempDir;

use crate::check::Opened;
use crate::common::{self, Server, wait_for};
use crate::trace;

/// The places of the numbers in `struct control` of `shim.c`.
const FAULT: u64 = 0;
const SEEN: u64 = 5;
const FAILED: u64 = 6;
const HOLD: u64 = 7;
const DELAY: u64 = 8;
const WAITING: u64 = 9;
const SWALLOW: u64 = 10;
const KILL_AT: u64 = 11;
const CHANGES: u64 = 12;
const SWALLOWED: u64 = 13;
const ONLY: u64 = 14;

/// The bytes of `struct control`.
const CONTROL: u64 = 256;

/// Which calls are made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// Calls that write, cut or lengthen a file.
    Writes = 1,
    /// Syncs of files and directories.
    Syncs = 2,
    /// Calls that change or remove a name.
    Names = 3,
    /// Calls that open a file for writing, or make a file or directory.
    Opens = 4,
}

/// A fault of the disk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fault {
    pub(crate) class: Class,
    /// Which of these calls fails, counting from 1 at the moment that this is asked for.
    pub(crate) at: u64,
    pub(crate) errno: rustix::io::Errno,
    /// Whether all later ones fail, too.
    pub(crate) forever: bool,
    /// Whether a failed sync drops what it should have written.
    pub(crate) drops: bool,
}

impl Fault {
    /// A name for a run with this fault, which is there from the first start or begins later.
    pub(crate) fn name(self, from_the_start: bool) -> String {
        let Self { class, at, errno, forever, drops } = self;
        let how = [(forever, "-forever"), (drops, "-drops"), (from_the_start, "-at-start")];
        let how: String = how.into_iter().filter(|(is, _)| *is).map(|(_, name)| name).collect();
        format!("{class:?}-{at}-error-{}{how}", errno.raw_os_error()).to_lowercase()
    }
}

/// Syncs that are silently skipped. Tests that prove anything must notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Swallow {
    /// The first sync of each file in a process, which makes durable what the process found.
    First = 1,
    /// Syncs of write-ahead logs, as with `synchronous=NORMAL`.
    Wal = 2,
}

/// Programs whose changes below one directory are all recorded.
pub(crate) struct Recorder {
    dir: TempDir,
    control: File,
    acknowledged: Mutex<Vec<(String, u64)>>,
    start: AtomicU64,
}

impl Recorder {
    pub(crate) fn new() -> Self {
        let dir = scratch();
        let root = dir.path().join("root");
        fs::create_dir(&root).expect("a directory to watch");
        let inode = fs::metadata(&root).expect("its metadata").ino();
        fs::write(dir.path().join("trace"), trace::beginning(inode)).expect("a trace");
        let control = File::options().read(true).write(true).create_new(true).open(dir.path().join("control"));
        let control = control.expect("a file to tell the recorder what to do");
        control.set_len(CONTROL).expect("its size");
        Self { dir, control, acknowledged: Mutex::default(), start: AtomicU64::default() }
    }

    /// The directory that is watched.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    pub(crate) fn trace(&self) -> PathBuf {
        self.dir.path().join("trace")
    }

    /// A place that isn't watched.
    pub(crate) fn aside(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes `command` watched.
    pub(crate) fn watch(&self, mut command: Command) -> Command {
        command
            .env("LD_PRELOAD", library())
            .env("DISK_ROOT", self.root())
            .env("DISK_TRACE", self.trace())
            .env("DISK_CONTROL", self.dir.path().join("control"));
        command
    }

    /// The program on the data directory `data` below the root.
    pub(crate) fn command(&self, data: &str, arguments: &[&str]) -> Command {
        let mut command = self.watch(program());
        command.args(arguments).env("LIKEWISE_DATA", self.root().join(data)).stdin(Stdio::null());
        command
    }

    /// Serves the data directory `data` below the root.
    pub(crate) fn serve(&self, data: &str, flags: &[&str]) -> Server {
        let mut command = self.command(data, &["serve", "--listen", "127.0.0.1:0"]);
        command.args(flags);
        Server::spawn(command, &self.root().join(data))
    }

    /// Puts a copy of the directory `from` below the root, durably, before the power can be cut.
    pub(crate) fn bring(&self, from: &Path, name: &str) {
        let mut shell = Command::new("sh");
        shell.args(["-ec", r#"cp -r "$0" "$1"; find "$1/.." -exec sync {} +"#]).arg(from).arg(self.root().join(name));
        let output = self.watch(shell).output().expect("a shell");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        self.start.store(self.position(), Ordering::Relaxed);
    }

    /// The length of the trace when the tested part began.
    pub(crate) fn start(&self) -> u64 {
        self.start.load(Ordering::Relaxed)
    }

    /// The length of the trace: everything known now follows from the trace up to here.
    pub(crate) fn position(&self) -> u64 {
        fs::metadata(self.trace()).expect("the trace").len()
    }

    /// Records that `what` was acknowledged just now.
    pub(crate) fn acknowledge(&self, what: &str) {
        let position = self.position();
        self.acknowledged.lock().expect("no panic").push((what.to_owned(), position));
    }

    /// What was acknowledged, and the length of the trace then.
    pub(crate) fn acknowledged(&self) -> Vec<(String, u64)> {
        self.acknowledged.lock().expect("no panic").clone()
    }

    /// Kills a program at a moment when everything it did is in the trace.
    pub(crate) fn kill(&self, server: Server) {
        let trace = File::open(self.trace()).expect("the trace");
        trace.lock().expect("the lock of the trace");
        server.kill();
    }

    /// As [`kill`](Self::kill).
    pub(crate) fn kill_opened(&self, server: Opened) {
        let trace = File::open(self.trace()).expect("the trace");
        trace.lock().expect("the lock of the trace");
        drop(server);
    }

    fn set(&self, place: u64, value: u64) {
        self.control.write_all_at(&value.to_ne_bytes(), place * 8).expect("the recorder's file");
    }

    fn get(&self, place: u64) -> u64 {
        let mut bytes = [0; 8];
        self.control.read_exact_at(&mut bytes, place * 8).expect("the recorder's file");
        u64::from_ne_bytes(bytes)
    }

    /// From now on, this fault applies.
    pub(crate) fn fault(&self, fault: Fault) {
        self.mend();
        let errno = u64::try_from(fault.errno.raw_os_error()).expect("a number of an error");
        self.set(SEEN, 0);
        self.set(FAILED, 0);
        let numbers = [fault.at, errno, fault.forever.into(), fault.drops.into()];
        (FAULT + 1..).zip(numbers).for_each(|(place, number)| self.set(place, number));
        self.set(FAULT, fault.class as u64);
    }

    /// From now on, nothing goes wrong.
    pub(crate) fn mend(&self) {
        self.set(FAULT, 0);
    }

    /// How many calls there were of the failing kind.
    pub(crate) fn seen(&self) -> u64 {
        self.get(SEEN)
    }

    /// How many failed.
    pub(crate) fn failed(&self) -> u64 {
        self.get(FAILED)
    }

    /// Faults, holds and delays apply only to paths that contain this.
    pub(crate) fn only(&self, part: &str) {
        let mut bytes = vec![0; usize::try_from(CONTROL - ONLY * 8).expect("a size")];
        bytes[..part.len()].copy_from_slice(part.as_bytes());
        self.control.write_all_at(&bytes, ONLY * 8).expect("the recorder's file");
    }

    /// Lets no sync end until [`release`](Self::release).
    pub(crate) fn hold(&self) {
        self.set(WAITING, 0);
        self.set(HOLD, 1);
    }

    /// Waits until a sync is held.
    pub(crate) fn until_held(&self) {
        wait_for("a sync to begin", || (self.get(WAITING) > 0).then_some(()));
    }

    pub(crate) fn release(&self) {
        self.set(HOLD, 0);
    }

    /// How long each sync takes from now on.
    pub(crate) fn delay(&self, milliseconds: u64) {
        self.set(DELAY, milliseconds);
    }

    pub(crate) fn swallow(&self, swallow: Swallow) {
        self.set(SWALLOW, swallow as u64);
    }

    /// How many syncs were skipped.
    pub(crate) fn swallowed(&self) -> u64 {
        self.get(SWALLOWED)
    }

    /// Kills the program that is about to make the `n`-th change from now on.
    pub(crate) fn kill_at(&self, n: u64) {
        self.set(CHANGES, 0);
        self.set(KILL_AT, n);
    }

    /// How many changes and syncs there were since [`kill_at`](Self::kill_at), or from the start.
    pub(crate) fn changes(&self) -> u64 {
        self.get(CHANGES)
    }
}

/// A directory that is removed after the test. It is in memory if possible, because real syncs don't matter here.
pub(crate) fn scratch() -> TempDir {
    let memory = Path::new("/dev/shm");
    let builder = tempfile::Builder::new().prefix("likewise-disk-").to_owned();
    let made = if memory.is_dir() { builder.tempdir_in(memory) } else { builder.tempdir() };
    made.expect("a directory for the test's data")
}

/// The program under test, stripped of debug information, because it hashes itself at each start.
pub(crate) fn program() -> Command {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let original = PathBuf::from(common::likewise().get_program());
    let program = PROGRAM.get_or_init(|| {
        build("likewise", &original, |to| {
            let mut strip = Command::new("strip");
            strip.arg("-o").arg(to).arg(&original);
            strip
        })
    });
    let mut command = Command::new(program);
    for (name, _) in common::likewise().get_envs() {
        command.env_remove(name);
    }
    command
}

/// The shim as a library.
pub(crate) fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/disk/shim.c");
        build("shim.so", &source, |to| {
            let mut cc = Command::new("cc");
            cc.args(["-shared", "-fPIC", "-O2", "-Wall", "-o"]).arg(to).arg(&source).args(["-ldl", "-lpthread"]);
            cc
        })
    })
}

/// How old something made for tests must be before it counts as unused.
const OLD: Duration = Duration::from_secs(24 * 3600);

/// Makes a file from another one, unless that was done before. Several tests may do this at the same time.
fn build(name: &str, source: &Path, make: impl FnOnce(&Path) -> Command) -> PathBuf {
    let meta = fs::metadata(source).unwrap_or_else(|why| panic!("{}: {why}", source.display()));
    let made = meta.modified().ok().and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
    let stamp = format!("{:x}-{:x}", made.unwrap_or_default().as_nanos(), meta.len());
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("disk");
    fs::create_dir_all(&dir).expect("a directory for what the tests need");
    let target = dir.join(format!("{stamp}-{name}"));
    if !target.exists() {
        // Remove those of earlier builds, unless a test still runs them.
        for older in fs::read_dir(&dir).expect("the directory").flatten() {
            let age = older.metadata().and_then(|meta| meta.modified()).ok().and_then(|at| at.elapsed().ok());
            if age.is_some_and(|age| age > OLD) {
                drop(fs::remove_file(older.path()));
            }
        }
        let part = tempfile::Builder::new().prefix("part-").tempdir_in(&dir).expect("a place for what isn't whole yet");
        let part = part.path().join(name);
        let mut command = make(&part);
        let tool = command.get_program().to_string_lossy().into_owned();
        let output = command.output().unwrap_or_else(|why| {
            panic!("this test needs {tool} ({why}): install it, on Debian with `apt-get install gcc`")
        });
        assert!(output.status.success(), "{tool}: {}", String::from_utf8_lossy(&output.stderr));
        fs::rename(&part, &target).expect("in its place");
    }
    target
}
