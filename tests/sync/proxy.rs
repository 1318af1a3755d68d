//! A proxy between a client and its hub that cuts, delays, swallows, freezes and lies on demand.

use std::cell::OnceCell;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// What happens to requests from now on. Connections that already carry an answer go on.
#[derive(Clone, Debug)]
pub enum Mode {
    Pass,
    /// As if nobody listened.
    Refuse,
    /// Takes requests and says nothing.
    Silent,
    /// Every request waits before it goes on.
    Delay(Duration),
    /// Something other than the hub answers every request.
    Answer(String),
    /// Something other than the hub answers every push.
    AnswerPush(String),
    /// Something other than the hub answers requests of more bytes.
    Limit(usize, String),
    /// Pushes reach the hub, and their answers get lost.
    EatPushAnswers,
    /// The hub's answers come in pieces of this many bytes, each after a pause.
    Slow(usize, Duration),
    /// An event stream whose first line never ends.
    Endless,
    /// A malicious hub answers each request as it likes.
    Lie(Lie),
    /// That is what happens to requests whose first line has this word. All others pass.
    On(&'static str, Box<Mode>),
}

/// What to do with a request and the connection that it came on, which ends afterwards.
#[derive(Clone)]
pub struct Lie(pub Arc<Told>);

type Told = dyn Fn(&str, &mut TcpStream) -> std::io::Result<()> + Send + Sync;

impl std::fmt::Debug for Lie {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Lie")
    }
}

pub struct Proxy {
    /// Where clients find it.
    pub url: String,
    shared: Arc<Shared>,
}

struct Shared {
    target: Mutex<Option<SocketAddr>>,
    mode: Mutex<Mode>,
    connections: Mutex<Vec<([TcpStream; 2], Arc<Carrier>)>>,
    requests: AtomicU64,
    /// Requests on connections that no longer carry anything.
    lost: AtomicU64,
    /// Requests that something other than the hub answered.
    answered: AtomicU64,
    /// Pushes whose answer was swallowed.
    eaten: AtomicU64,
}

impl Proxy {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let shared = Arc::new(Shared {
            target: Mutex::new(None),
            mode: Mutex::new(Mode::Pass),
            connections: Mutex::default(),
            requests: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            eaten: AtomicU64::new(0),
        });
        let serving = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let shared = Arc::clone(&serving);
                thread::spawn(move || drop(converse(&shared, client)));
            }
        });
        Self { url, shared }
    }

    /// Sends requests to the server at `url` from now on.
    pub fn point_to(&self, url: &str) {
        let address = url.trim_start_matches("http://").parse().expect("an address");
        *self.shared.target.lock().unwrap() = Some(address);
    }

    pub fn set(&self, mode: Mode) {
        *self.shared.mode.lock().unwrap() = mode;
    }

    /// Ends all connections.
    pub fn cut(&self) {
        for (ends, _) in self.shared.connections.lock().unwrap().drain(..) {
            for end in ends {
                drop(end.shutdown(Shutdown::Both));
            }
        }
    }

    /// No new requests pass, and those under way end.
    pub fn part(&self) {
        self.set(Mode::Refuse);
        self.cut();
    }

    /// All open connections stop carrying anything, and nobody is told.
    pub fn freeze(&self) {
        for (_, carrier) in &*self.shared.connections.lock().unwrap() {
            carrier.is_frozen.store(true, Ordering::SeqCst);
        }
    }

    /// How many requests have come.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::SeqCst)
    }

    /// How many of them came on connections that no longer carry anything.
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::SeqCst)
    }

    /// How many of them something other than the hub answered.
    pub fn answered(&self) -> u64 {
        self.shared.answered.load(Ordering::SeqCst)
    }

    /// How many answers to pushes were swallowed.
    pub fn eaten(&self) -> u64 {
        self.shared.eaten.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.part();
    }
}

/// Carries one client's requests to the hub, each according to the mode at its time.
fn converse(shared: &Arc<Shared>, mut client: TcpStream) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    let hub: OnceCell<TcpStream> = OnceCell::new();
    let carrier = Arc::new(Carrier::default());
    while let Some(request) = read_request(&mut client)? {
        let is_push = request.starts_with(b"POST ");
        shared.requests.fetch_add(1, Ordering::SeqCst);
        if carrier.is_frozen.load(Ordering::SeqCst) {
            shared.lost.fetch_add(1, Ordering::SeqCst);
            continue;
        }
        let mode = match shared.mode.lock().unwrap().clone() {
            Mode::On(word, mode) => {
                *carrier.pace.lock().unwrap() = None;
                let line = request.split(|byte| *byte == b'\r').next().unwrap_or_default();
                if String::from_utf8_lossy(line).contains(word) { *mode } else { Mode::Pass }
            }
            mode => mode,
        };
        carrier.is_eating.store(false, Ordering::SeqCst);
        match mode {
            Mode::Pass | Mode::On(..) => {}
            Mode::Refuse => return client.shutdown(Shutdown::Both),
            Mode::Silent => continue,
            Mode::Delay(pause) => thread::sleep(pause),
            Mode::Answer(answer) => return shared.end_with(&mut client, &answer),
            Mode::AnswerPush(answer) if is_push => return shared.end_with(&mut client, &answer),
            Mode::Limit(bytes, answer) if request.len() > bytes => return shared.end_with(&mut client, &answer),
            Mode::AnswerPush(_) | Mode::Limit(..) => {}
            Mode::EatPushAnswers => carrier.is_eating.store(is_push, Ordering::SeqCst),
            Mode::Slow(bytes, pause) => *carrier.pace.lock().unwrap() = Some((bytes, pause)),
            Mode::Endless => {
                client.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\nevent: ")?;
                loop {
                    client.write_all(&[b'x'; 65_536])?;
                }
            }
            Mode::Lie(Lie(tell)) => {
                shared.answered.fetch_add(1, Ordering::SeqCst);
                tell(&String::from_utf8_lossy(&request), &mut client)?;
                return client.shutdown(Shutdown::Write);
            }
        }
        if hub.get().is_none() {
            let target = shared.target.lock().unwrap().expect("the proxy points somewhere");
            let Ok(stream) = TcpStream::connect(target) else { return client.shutdown(Shutdown::Both) };
            stream.set_nodelay(true)?;
            let ends = [client.try_clone()?, stream.try_clone()?];
            shared.connections.lock().unwrap().push((ends, Arc::clone(&carrier)));
            let (from, to) = (stream.try_clone()?, client.try_clone()?);
            let (shared, carrier) = (Arc::clone(shared), Arc::clone(&carrier));
            thread::spawn(move || drop(carrier.carry_answers(&shared, from, to)));
            hub.set(stream).expect("it was empty");
        }
        hub.get().expect("it was filled").write_all(&request)?;
    }
    if let Some(hub) = hub.get()
        && !carrier.is_frozen.load(Ordering::SeqCst)
    {
        hub.shutdown(Shutdown::Both)?;
    }
    Ok(())
}

/// Carries answers back.
#[derive(Default)]
struct Carrier {
    is_frozen: AtomicBool,
    is_eating: AtomicBool,
    pace: Mutex<Option<(usize, Duration)>>,
}

impl Carrier {
    fn carry_answers(&self, shared: &Shared, mut from: TcpStream, mut to: TcpStream) -> std::io::Result<()> {
        let mut buffer = [0; 65_536];
        loop {
            let pace = *self.pace.lock().unwrap();
            let most = pace.map_or(buffer.len(), |(bytes, _)| bytes);
            let length = from.read(&mut buffer[..most])?;
            if self.is_frozen.load(Ordering::SeqCst) {
                if length == 0 {
                    return Ok(());
                }
                continue;
            }
            if self.is_eating.load(Ordering::SeqCst) {
                shared.eaten.fetch_add(1, Ordering::SeqCst);
                from.shutdown(Shutdown::Both)?;
                return to.shutdown(Shutdown::Both);
            }
            if length == 0 {
                return to.shutdown(Shutdown::Both);
            }
            if let Some((_, pause)) = pace {
                thread::sleep(pause);
            }
            to.write_all(&buffer[..length])?;
        }
    }
}

impl Shared {
    /// Answers in the hub's place, and closes without resetting the connection.
    fn end_with(&self, client: &mut TcpStream, answer: &str) -> std::io::Result<()> {
        self.answered.fetch_add(1, Ordering::SeqCst);
        client.write_all(answer.as_bytes())?;
        client.shutdown(Shutdown::Write)
    }
}

/// One request with its body, or nothing if the client has hung up.
pub fn read_request(client: &mut impl Read) -> std::io::Result<Option<Vec<u8>>> {
    let mut request = Vec::new();
    let mut buffer = [0; 65_536];
    let whole = loop {
        if let Some(end) = request.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&request[..end]).to_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
            break end + 4 + length.map_or(0, |length| length.trim().parse().expect("a length"));
        }
        match client.read(&mut buffer)? {
            0 => return Ok(None),
            length => request.extend_from_slice(&buffer[..length]),
        }
    };
    while request.len() < whole {
        match client.read(&mut buffer)? {
            0 => return Ok(None),
            length => request.extend_from_slice(&buffer[..length]),
        }
    }
    Ok(Some(request))
}
