//! Shared by the tests of the whole program: the real binary on a free port, with its own data.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

pub mod authority;
pub mod mounted;
pub mod nats;
pub mod reverse_proxy;
pub mod served;

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::{NamedTempFile, TempDir};

/// How long a test waits for something that must happen. Long, because the machine may be busy; a passing test never waits
/// this long.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// The program under test, ready for its arguments. It doesn't see the `LIKEWISE_…` variables of the person who runs the tests.
/// That person may name another program in LIKEWISE_BINARY.
pub fn likewise() -> Command {
    let other = std::env::var_os("LIKEWISE_BINARY");
    let mut command = Command::new(other.unwrap_or_else(|| env!("CARGO_BIN_EXE_likewise").into()));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("LIKEWISE_") {
            command.env_remove(name);
        }
    }
    command
}

/// Whether to try all cases instead of a sample: LIKEWISE_FAULTS is `all`.
pub fn is_asked_for_all() -> bool {
    std::env::var_os("LIKEWISE_FAULTS").is_some_and(|value| value == "all")
}

/// The size of a load: `usual`, times LIKEWISE_LOAD if that is set.
pub fn load(usual: usize) -> usize {
    usual * std::env::var("LIKEWISE_LOAD").ok().and_then(|times| times.parse().ok()).unwrap_or(1)
}

/// Lets this process open as many files as the system allows, for tests that hold many connections.
pub fn raise_open_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).expect("more open files");
}

/// A directory for data, removed after the test.
pub fn data_dir() -> TempDir {
    tempfile::tempdir().expect("a directory for the test's data")
}

/// Runs a command of the program on the data in `data` until it ends.
pub fn run(data: &Path, arguments: &[&str]) -> Output {
    let mut command = likewise();
    command.args(arguments).env("LIKEWISE_DATA", data).stdin(Stdio::null());
    command.output().expect("the program starts")
}

/// Runs a command with something on its standard input.
pub fn run_with(data: &Path, arguments: &[&str], input: &str) -> Output {
    let mut command = likewise();
    command.args(arguments).env("LIKEWISE_DATA", data);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut stdin = child.stdin.take().expect("its input");
    let input = input.to_owned();
    // A program that stops at a bad line doesn't read the rest.
    let writing = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
    let output = child.wait_with_output().expect("its end");
    writing.join().expect("no panic");
    output
}

/// What a command printed on standard output. The command must have succeeded.
pub fn printed(output: Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}: {text}{}", output.status, errors(&output));
    text
}

/// What a command printed on standard error.
pub fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A running `likewise serve`; killed when dropped.
pub struct Server {
    child: Child,
    stdout: Option<BufReader<ChildStdout>>,
    stderr: NamedTempFile,
    /// Where it listens, such as `http://127.0.0.1:40123`.
    pub url: String,
    data: PathBuf,
}

impl Server {
    /// Serves the data in `data` on a free port.
    pub fn start(data: &Path) -> Self {
        Self::start_with(data, &["--listen", "127.0.0.1:0"])
    }

    /// Serves the data in `data`, with these flags of `serve`.
    pub fn start_with(data: &Path, flags: &[&str]) -> Self {
        let mut command = likewise();
        command.arg("serve").args(flags);
        Self::spawn(command, data)
    }

    /// Runs `command`, which must serve, on the data in `data`.
    pub fn spawn(command: Command, data: &Path) -> Self {
        Self::spawn_with(command, data, Stdio::null())
    }

    /// Runs it with this standard input.
    pub fn spawn_with(mut command: Command, data: &Path, stdin: Stdio) -> Self {
        let stderr = NamedTempFile::new().expect("a file for the program's log");
        let mut child = command
            .env("LIKEWISE_DATA", data)
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(stderr.reopen().expect("the file for the program's log"))
            .spawn()
            .expect("the program starts");
        let mut stdout = BufReader::new(child.stdout.take().expect("its standard output"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("its ready line");
        let url = line.trim().strip_prefix("listening on ").map(str::to_owned);
        let Some(url) = url else {
            let status = child.wait().expect("its end");
            let log = std::fs::read_to_string(stderr.path()).unwrap_or_default();
            panic!("the program did not get ready ({status}); it printed {line:?}, and on standard error:\n{log}");
        };
        Self { child, stdout: Some(stdout), stderr, url, data: data.to_owned() }
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.url.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port in the address")
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The files of one of its stores.
    pub fn store(&self, name: &str) -> PathBuf {
        self.data.join("stores").join(name)
    }

    /// Where it keeps its data.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// What it wrote on standard error so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.stderr.path()).expect("the program's log")
    }

    /// Whether it is still there.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("its state").is_none()
    }

    /// Kills it without warning.
    pub fn kill(mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it ends");
    }

    /// Sends it the signal with which service managers end a program.
    pub fn send_term(&self) {
        self.signal(Signal::TERM);
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        kill_process(Pid::from_raw(pid).expect("a process id"), signal).expect("it gets the signal");
    }

    /// Waits until it has ended, and returns its status.
    pub fn wait(&mut self) -> ExitStatus {
        wait_for("the program to end", || self.child.try_wait().expect("its state"))
    }

    /// Asks it to end, as a service manager does, and returns its status.
    pub fn terminate(mut self) -> ExitStatus {
        self.send_term();
        self.wait()
    }

    /// The rest of what it prints on standard output, once it has ended.
    pub fn rest_of_stdout(&mut self) -> String {
        let mut rest = String::new();
        if let Some(mut stdout) = self.stdout.take() {
            stdout.read_to_string(&mut rest).expect("its standard output");
        }
        rest
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Waits until `look` finds something. If it never does, the panic says what the test waited for.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(start.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The first code block in `language` after `heading` in a document, without its fences.
pub fn code_block<'a>(document: &'a str, heading: &str, language: &str) -> &'a str {
    let (_, text) = document.split_once(heading).unwrap_or_else(|| panic!("no {heading:?}"));
    let (_, text) = text.split_once(&format!("```{language}\n")).unwrap_or_else(|| panic!("no block in {language}"));
    text.split_once("\n```").expect("the end of the block").0
}
