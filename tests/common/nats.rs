//! Real NATS servers with JetStream, alone or as a cluster, and what happens to servers: they are killed and paused, their
//! files are set back, and the network between them is cut.
//!
//! Each server has a loopback address of its own, with the usual ports. So a server comes back where it was, and no other
//! program can have taken its port meanwhile.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::{PATIENCE, wait_for};

const CLIENTS: u16 = 4222;
const ROUTES: u16 = 6222;
const MONITOR: u16 = 8222;

/// The server program: the one that `tests/nats-server` has installed, or the one on the PATH.
pub fn program() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("the directory of the build");
    let installed = target.join("nats/bin/nats-server");
    if installed.exists() { installed } else { "nats-server".into() }
}

/// How servers are to be set up. What isn't said is what docs/scale.md recommends.
pub struct Plan {
    servers: usize,
    has_jetstream: bool,
    has_links: bool,
    jetstream: String,
    more: String,
    dir: Option<TempDir>,
}

impl Plan {
    /// As many servers, which are a cluster if there are several.
    pub fn new(servers: usize) -> Self {
        Self {
            servers,
            has_jetstream: true,
            has_links: false,
            jetstream: String::new(),
            more: String::new(),
            dir: None,
        }
    }

    /// NATS alone, which keeps nothing.
    pub fn without_jetstream(mut self) -> Self {
        self.has_jetstream = false;
        self
    }

    /// JetStream may use this much disk, for example `20MB`.
    pub fn store_limit(mut self, limit: &str) -> Self {
        self.jetstream += &format!("  max_file_store: {limit}\n");
        self
    }

    /// These lines stand in the configuration, too.
    pub fn also(mut self, lines: &str) -> Self {
        self.more += lines;
        self.more.push('\n');
        self
    }

    /// Servers reach each other through links that can be cut.
    pub fn with_links(mut self) -> Self {
        self.has_links = true;
        self
    }

    /// Their files are in this directory.
    pub fn in_dir(mut self, dir: TempDir) -> Self {
        self.dir = Some(dir);
        self
    }

    /// Starts them, and waits until they take messages.
    pub fn start(mut self) -> Nats {
        let dir = self.dir.take().unwrap_or_else(|| tempfile::tempdir().expect("a directory for the servers"));
        let network = free_network();
        let addresses: Vec<_> = (1..=self.servers).map(|n| host(network, n)).collect();
        let mut links = Vec::new();
        if self.has_links {
            for from in 0..self.servers {
                for to in (0..self.servers).filter(|to| *to != from) {
                    links.push((from, to, Link::start((addresses[to], ROUTES).into())));
                }
            }
        }
        let mut nats = Nats { servers: Vec::new(), links, has_jetstream: self.has_jetstream, dir };
        for (n, address) in addresses.iter().enumerate() {
            let server = Server { address: *address, dir: nats.dir.path().join(format!("n{}", n + 1)), child: None };
            fs::create_dir_all(&server.dir).expect("a directory for the server");
            let routes = (0..self.servers).filter(|to| *to != n).map(|to| match nats.link(n, to) {
                Some(link) => link.address.to_string(),
                None => format!("{}:{ROUTES}", addresses[to]),
            });
            let routes: Vec<_> = routes.map(|address| format!("nats://{address}")).collect();
            fs::write(server.configuration(), self.configuration(n, &server, &routes)).expect("its configuration");
            nats.servers.push(server);
        }
        for n in 0..self.servers {
            nats.start(n);
        }
        nats.wait_until_ready();
        nats
    }

    fn configuration(&self, n: usize, server: &Server, routes: &[String]) -> String {
        let (address, dir) = (server.address, server.dir.display());
        let mut text = format!(
            "server_name: n{}\nlisten: \"{address}:{CLIENTS}\"\nhttp: \"{address}:{MONITOR}\"\n{}",
            n + 1,
            self.more
        );
        if self.has_jetstream {
            text +=
                &format!("jetstream {{\n  store_dir: \"{dir}/data\"\n  sync_interval: always\n{}}}\n", self.jetstream);
        }
        if self.servers > 1 {
            // Clients and servers keep to the addresses that they were given, or they would find ways around a cut link.
            let advertise = if self.has_links { format!("  advertise: \"{address}:9\"\n") } else { String::new() };
            text += &format!(
                "cluster {{\n  name: test\n  listen: \"{address}:{ROUTES}\"\n  no_advertise: true\n{advertise}  routes: [{}]\n}}\n",
                routes.join(", ")
            );
        }
        text
    }
}

/// Running servers; killed when dropped.
pub struct Nats {
    servers: Vec<Server>,
    /// From which server, to which, and the way between them.
    links: Vec<(usize, usize, Link)>,
    has_jetstream: bool,
    dir: TempDir,
}

struct Server {
    address: Ipv4Addr,
    dir: PathBuf,
    child: Option<Child>,
}

/// The files of a server as they were at some moment.
pub struct Saved(TempDir);

impl Nats {
    /// One server.
    pub fn single() -> Self {
        Plan::new(1).start()
    }

    /// A cluster of three.
    pub fn cluster() -> Self {
        Plan::new(3).start()
    }

    /// How many servers there are.
    pub fn len(&self) -> usize {
        self.servers.len()
    }

    /// Where clients reach all of them, separated by commas.
    pub fn url(&self) -> String {
        self.urls().join(",")
    }

    /// Where clients reach each of them.
    pub fn urls(&self) -> Vec<String> {
        (0..self.len()).map(|n| self.url_of(n)).collect()
    }

    /// Where clients reach one of them.
    pub fn url_of(&self, n: usize) -> String {
        format!("nats://{}", self.clients_of(n))
    }

    /// The socket on which one of them listens for clients.
    pub fn clients_of(&self, n: usize) -> SocketAddr {
        (self.servers[n].address, CLIENTS).into()
    }

    /// Where one of them tells about itself.
    pub fn monitor_of(&self, n: usize) -> String {
        format!("http://{}:{MONITOR}", self.servers[n].address)
    }

    /// What one of them tells at this path, for example `jsz`, if it answers at all.
    pub fn told_by(&self, n: usize, path: &str) -> Option<Value> {
        let config = ureq::Agent::config_builder().http_status_as_error(false).proxy(None);
        let agent = config.timeout_global(Some(Duration::from_secs(5))).build().new_agent();
        let mut answer = agent.get(format!("{}/{path}", self.monitor_of(n))).call().ok()?;
        serde_json::from_str(&answer.body_mut().read_to_string().ok()?).ok()
    }

    /// Waits until all servers that run can take messages.
    pub fn wait_until_ready(&self) {
        for n in (0..self.len()).filter(|n| self.is_running(*n)) {
            wait_for(&format!("nats-server {n} to be ready: {}", self.log_of(n)), || {
                let is_healthy = self.told_by(n, "healthz")?["status"] == "ok";
                let needs_leader = self.has_jetstream && self.len() > 1;
                let has_leader = !needs_leader
                    || self.told_by(n, "jsz")?["meta_cluster"]["leader"].as_str().is_some_and(|name| !name.is_empty());
                (is_healthy && has_leader).then_some(())
            });
        }
    }

    /// The server that leads a stream, according to whichever server knows.
    pub fn leader_of(&self, stream: &str) -> Option<usize> {
        (0..self.len()).find_map(|n| {
            let told = self.told_by(n, "jsz?streams=true&accounts=true")?;
            let accounts = told["account_details"].as_array()?;
            let streams = accounts.iter().flat_map(|account| account["stream_detail"].as_array().into_iter().flatten());
            let stream = streams.into_iter().find(|detail| detail["name"] == stream)?;
            let leader = stream["cluster"]["leader"].as_str()?;
            leader.strip_prefix('n')?.parse::<usize>().ok()?.checked_sub(1)
        })
    }

    /// Starts one that doesn't run, without waiting for it.
    pub fn start(&mut self, n: usize) {
        let server = &mut self.servers[n];
        assert!(server.child.is_none(), "it runs already");
        let log = fs::OpenOptions::new().create(true).append(true).open(server.log()).expect("a file for its log");
        let mut command = Command::new(program());
        command.arg("-c").arg(server.configuration()).stdin(Stdio::null());
        let child = command.stdout(log.try_clone().expect("its log")).stderr(log).spawn();
        server.child = Some(
            child.unwrap_or_else(|error| panic!("cannot run nats-server ({error}); get it with: tests/nats-server")),
        );
    }

    /// Whether it was started, and not killed since.
    pub fn is_running(&self, n: usize) -> bool {
        self.servers[n].child.is_some()
    }

    /// Kills one without warning.
    pub fn kill(&mut self, n: usize) {
        self.servers[n].kill();
    }

    /// Stops one in the middle of whatever it does.
    pub fn pause(&self, n: usize) {
        self.servers[n].signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn resume(&self, n: usize) {
        self.servers[n].signal(Signal::CONT);
    }

    /// Copies the files of one, which must be killed or paused.
    pub fn save(&self, n: usize) -> Saved {
        let copy = tempfile::tempdir().expect("a directory for the copy");
        copy_all(&self.servers[n].data(), copy.path());
        Saved(copy)
    }

    /// Copies the files of all at one moment, while they run.
    pub fn save_all(&self) -> Vec<Saved> {
        for n in 0..self.len() {
            self.pause(n);
        }
        let saved = (0..self.len()).map(|n| self.save(n)).collect();
        for n in 0..self.len() {
            self.resume(n);
        }
        saved
    }

    /// Gives one, which must be killed, the files that it had then.
    pub fn set_back(&self, n: usize, saved: &Saved) {
        assert!(!self.is_running(n), "it runs");
        self.lose(n);
        copy_all(saved.0.path(), &self.servers[n].data());
    }

    /// Removes all files of one, which must be killed.
    pub fn lose(&self, n: usize) {
        assert!(!self.is_running(n), "it runs");
        fs::remove_dir_all(self.servers[n].data()).expect("its files");
    }

    /// Where one keeps its messages.
    pub fn data_of(&self, n: usize) -> PathBuf {
        self.servers[n].data()
    }

    /// What one has logged.
    pub fn log_of(&self, n: usize) -> String {
        fs::read_to_string(self.servers[n].log()).unwrap_or_default()
    }

    fn link(&self, from: usize, to: usize) -> Option<&Link> {
        self.links.iter().find(|link| (link.0, link.1) == (from, to)).map(|link| &link.2)
    }

    /// What servers tell each other takes this course from now on, between `n` and all others, in both directions.
    pub fn set_links_of(&self, n: usize, course: Course) {
        assert!(!self.links.is_empty(), "these servers have no links");
        for (_, _, link) in self.links.iter().filter(|(from, to, _)| *from == n || *to == n) {
            link.set(course);
        }
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        for n in 0..self.len() {
            self.kill(n);
            if thread::panicking() {
                let log = self.log_of(n);
                let start = log.floor_char_boundary(log.len().saturating_sub(3_000));
                eprintln!("---- log of nats-server {n}:\n{}", &log[start..]);
            }
        }
    }
}

impl Server {
    fn configuration(&self) -> PathBuf {
        self.dir.join("nats.conf")
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child {
            let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a process id");
            kill_process(pid, signal).expect("it gets the signal");
        }
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("it can be killed");
            child.wait().expect("it ends");
        }
    }
}

/// What a link does with what is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Course {
    Pass,
    /// Nobody listens, and connections end.
    Cut,
    /// Nothing arrives, and nobody is told.
    Swallow,
}

/// A way to a server that can be cut.
pub struct Link {
    /// Where it is found.
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    course: Mutex<Course>,
    open: Mutex<Vec<TcpStream>>,
}

impl Link {
    /// A link that leads to `target`.
    pub fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address");
        let shared = Arc::new(Shared { course: Mutex::new(Course::Pass), open: Mutex::default() });
        let serving = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let shared = Arc::clone(&serving);
                thread::spawn(move || shared.connect(client, target));
            }
        });
        Self { address, shared }
    }

    /// What is sent takes this course from now on. What was swallowed doesn't come back: those connections end when the
    /// link passes again.
    pub fn set(&self, course: Course) {
        let before = std::mem::replace(&mut *self.shared.course.lock().unwrap(), course);
        if course == Course::Cut || (course == Course::Pass && before == Course::Swallow) {
            for end in self.shared.open.lock().unwrap().drain(..) {
                drop(end.shutdown(Shutdown::Both));
            }
        }
    }
}

impl Shared {
    fn course(&self) -> Course {
        *self.course.lock().unwrap()
    }

    fn connect(self: Arc<Self>, client: TcpStream, target: SocketAddr) {
        let passes = self.course() != Course::Cut;
        let Some(server) = passes.then(|| TcpStream::connect_timeout(&target, PATIENCE).ok()).flatten() else {
            return;
        };
        let ends = [client.try_clone(), server.try_clone()].into_iter().flatten();
        self.open.lock().unwrap().extend(ends);
        // The course may have changed before this connection was on the list.
        if self.course() == Course::Cut {
            drop([client.shutdown(Shutdown::Both), server.shutdown(Shutdown::Both)]);
        }
        let (Ok(back), Ok(forth)) = (client.try_clone(), server.try_clone()) else { return };
        let shared = Arc::clone(&self);
        thread::spawn(move || shared.carry(forth, back));
        self.carry(client, server);
    }

    fn carry(&self, mut from: TcpStream, mut to: TcpStream) {
        drop(to.set_nodelay(true));
        let mut bytes = vec![0; 64 << 10];
        loop {
            match from.read(&mut bytes) {
                Ok(read @ 1..) if self.course() == Course::Swallow || to.write_all(&bytes[..read]).is_ok() => {}
                _ => break,
            }
        }
        drop([from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both)]);
    }
}

/// The host of this number in a network.
fn host([a, b]: [u8; 2], n: usize) -> Ipv4Addr {
    Ipv4Addr::new(127, a, b, u8::try_from(n).expect("few servers"))
}

/// A part of the loopback network that nobody else uses. Chance finds it; the usual addresses are left out.
fn free_network() -> [u8; 2] {
    loop {
        let [a, b, ..] = uuid::Uuid::new_v4().into_bytes();
        let is_free = |port| TcpListener::bind(SocketAddrV4::new(host([a, b], 1), port)).is_ok();
        if a > 0 && [CLIENTS, ROUTES, MONITOR].into_iter().all(is_free) {
            return [a, b];
        }
    }
}

/// Loopback addresses on which nobody has the usual ports.
pub fn free_hosts<const N: usize>() -> [Ipv4Addr; N] {
    let network = free_network();
    std::array::from_fn(|n| host(network, n + 1))
}

/// One such address.
pub fn free_host() -> Ipv4Addr {
    let [host] = free_hosts();
    host
}

/// Copies a directory. A file that goes away meanwhile is left out.
fn copy_all(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory for the copy");
    for entry in fs::read_dir(from).expect("the files").flatten() {
        let target = to.join(entry.file_name());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            copy_all(&entry.path(), &target);
        } else {
            drop(fs::copy(entry.path(), target));
        }
    }
}
