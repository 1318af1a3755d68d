//! NATS servers, gateways before them, and devices behind a load balancer: all of it real processes, with the ways between
//! them. In the end, what people were promised has to be true everywhere.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::nats::{Course, Link, Nats, Plan, Saved};
use crate::common::{PATIENCE, wait_for};
use crate::front::Front;
use crate::people::Person;
use crate::support::Node;

/// How long somebody waits between two likes.
const PAUSE: Duration = Duration::from_millis(40);

pub struct Fleet {
    /// First, so that they are gone before those whom they ask.
    people: Vec<Person>,
    pub nats: Nats,
    /// Copies of the servers' files: of one server alone, and of all at one moment.
    saved: Vec<Option<Saved>>,
    moment: Option<Vec<Saved>>,
    pub gateways: Vec<Member>,
    pub devices: Vec<Node>,
    front: Front,
    liked: BTreeSet<String>,
}

/// A gateway.
pub struct Member {
    person: Option<Person>,
    pub node: Node,
    /// Its ways to the servers.
    links: Vec<Link>,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Up,
    Paused,
    Dead,
}

impl Fleet {
    /// Starts everything, and people who like at each device and at each gateway's own page.
    pub fn start(servers: usize, gateways: usize, devices: usize) -> Self {
        let nats = Plan::new(servers).with_links().start();
        let mut members = Vec::new();
        for n in 0..gateways {
            let links: Vec<_> = (0..servers).map(|to| Link::start(nats.clients_of(to))).collect();
            let url: Vec<_> = links.iter().map(|link| format!("nats://{}", link.address)).collect();
            let mut node = Node::gateway(&format!("gateway-{n}"), &url.join(","));
            node.start();
            node.wait_until("online");
            members.push(Member { node, links, state: State::Up, person: None });
        }
        let saved = (0..servers).map(|_| None).collect();
        let front = Front::start();
        let mut fleet = Self {
            people: Vec::new(),
            nats,
            saved,
            moment: None,
            gateways: members,
            devices: Vec::new(),
            front,
            liked: BTreeSet::new(),
        };
        fleet.direct();
        for n in 0..devices {
            let hub = &fleet.gateways[n % gateways].node;
            let device = Node::client(&format!("device-{n}"), &fleet.front.url, hub);
            fleet.devices.push(device);
        }
        for device in &fleet.devices {
            device.wait_until("online");
        }
        fleet.people_like();
        fleet
    }

    /// Lets people like everywhere, until all is checked.
    fn people_like(&mut self) {
        self.people = self.devices.iter().map(|device| Person::start(device.url(), PAUSE)).collect();
        for gateway in &mut self.gateways {
            gateway.person = Some(Person::start(gateway.node.url(), 3 * PAUSE));
        }
    }

    /// Tells the load balancer where the gateways are.
    fn direct(&self) {
        let alive = self.gateways.iter().filter(|gateway| gateway.state != State::Dead);
        self.front.point_to(alive.map(|gateway| gateway.node.url()));
    }

    /// Kills a gateway, or starts it again.
    pub fn kill_or_start_gateway(&mut self, n: usize) -> &'static str {
        self.resume_gateway(n);
        let gateway = &mut self.gateways[n];
        let person = gateway.person.as_ref().expect("somebody is there");
        let what = if gateway.state == State::Dead {
            gateway.node.start();
            gateway.state = State::Up;
            person.go_to(gateway.node.url());
            "started"
        } else {
            person.wait();
            gateway.node.kill();
            gateway.state = State::Dead;
            "killed"
        };
        self.direct();
        what
    }

    /// Pauses a gateway, or lets it go on.
    pub fn pause_or_resume_gateway(&mut self, n: usize) -> &'static str {
        match self.gateways[n].state {
            State::Up => {
                self.gateways[n].node.pause();
                self.gateways[n].state = State::Paused;
                "paused"
            }
            State::Paused => {
                self.resume_gateway(n);
                "resumed"
            }
            State::Dead => "is dead",
        }
    }

    fn resume_gateway(&mut self, n: usize) {
        if self.gateways[n].state == State::Paused {
            self.gateways[n].node.resume();
            self.gateways[n].state = State::Up;
        }
    }

    /// What a gateway and the servers send each other takes this course from now on.
    pub fn set_links_of_gateway(&self, n: usize, course: Course) {
        self.gateways[n].links.iter().for_each(|link| link.set(course));
    }

    /// What a gateway and one of the servers send each other takes this course from now on.
    pub fn set_link(&self, gateway: usize, server: usize, course: Course) {
        self.gateways[gateway].links[server].set(course);
    }

    /// Copies the files of one server, for [`set_server_back`](Self::set_server_back).
    pub fn save_server(&mut self, n: usize) {
        let is_paused = self.nats.is_running(n);
        if is_paused {
            self.nats.pause(n);
        }
        self.saved[n] = Some(self.nats.save(n));
        if is_paused {
            self.nats.resume(n);
        }
    }

    /// Kills one server and starts it with its files of an earlier moment.
    pub fn set_server_back(&mut self, n: usize) -> bool {
        let Some(saved) = &self.saved[n] else { return false };
        self.nats.kill(n);
        self.nats.set_back(n, saved);
        self.nats.start(n);
        true
    }

    /// Copies the files of all servers at one moment, for [`set_all_back`](Self::set_all_back).
    pub fn save_all(&mut self) {
        self.moment = Some(self.nats.save_all());
    }

    /// Kills all servers, and starts them with their files of one earlier moment.
    pub fn set_all_back(&mut self) -> bool {
        let Some(moment) = &self.moment else { return false };
        let servers = 0..self.nats.len();
        servers.clone().for_each(|n| self.nats.kill(n));
        servers.clone().for_each(|n| self.nats.set_back(n, &moment[n]));
        servers.for_each(|n| self.nats.start(n));
        true
    }

    /// Kills all servers at once, and starts them again.
    pub fn kill_all_servers(&mut self) {
        (0..self.nats.len()).for_each(|n| self.nats.kill(n));
        (0..self.nats.len()).for_each(|n| self.nats.start(n));
    }

    /// Ends all faults, but waits for nothing.
    pub fn heal(&mut self) {
        for n in 0..self.nats.len() {
            if self.nats.is_running(n) {
                self.nats.resume(n);
            } else {
                self.nats.start(n);
            }
            if self.nats.len() > 1 {
                self.nats.set_links_of(n, Course::Pass);
            }
        }
        for n in 0..self.gateways.len() {
            self.set_links_of_gateway(n, Course::Pass);
            self.resume_gateway(n);
            if self.gateways[n].state == State::Dead {
                self.kill_or_start_gateway(n);
            }
        }
    }

    /// How many likes were acknowledged in all, once people have stopped.
    fn stop_people(&mut self) -> u64 {
        let people = self.people.drain(..).chain(self.gateways.iter_mut().filter_map(|gateway| gateway.person.take()));
        let people: Vec<_> = people.collect();
        people.iter().for_each(Person::stop);
        for person in people {
            for id in person.liked() {
                assert!(self.liked.insert(id), "ids are unique");
            }
        }
        self.liked.len() as u64
    }

    /// Every instance.
    fn all(&self) -> Vec<&Node> {
        self.gateways.iter().map(|gateway| &gateway.node).chain(&self.devices).collect()
    }

    /// Heals everything, waits until all instances are level, and checks that each acknowledged like is there once,
    /// everywhere, in one order. Then people like on. Returns how long it took until all was well.
    pub fn check(&mut self) -> Duration {
        self.heal();
        let began = Instant::now();
        let count = self.stop_people();
        let all = self.all();
        let is_level = level(&all, count);
        let took = began.elapsed();
        let mut first: Option<Vec<Value>> = None;
        for node in &all {
            let events = node.export();
            let ids: BTreeSet<_> = events.iter().map(|event| id(event).to_owned()).collect();
            assert_eq!(ids.len(), events.len(), "each like is there once");
            let lost: Vec<_> = self.liked.difference(&ids).collect();
            assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
            let strange: Vec<_> = events.iter().filter(|event| !self.liked.contains(id(event))).collect();
            assert!(strange.is_empty(), "nobody liked these: {strange:?}");
            let known = first.get_or_insert_with(|| events.clone());
            let differs = known.iter().zip(&events).find(|(ours, theirs)| ours != theirs);
            assert!(differs.is_none(), "the order differs: {differs:?}");
            node.verify();
        }
        assert!(is_level, "{count} likes weren't everywhere after {PATIENCE:?}");
        self.people_like();
        took
    }

    /// Waits until some likes have gone all the way since now.
    pub fn wait_for_progress(&self) {
        let before = self.devices[0].status()["cursor"].clone();
        wait_for("new likes at a device", || (self.devices[0].status()["cursor"] != before).then_some(()));
    }
}

fn id(event: &Value) -> &str {
    event["id"].as_str().expect("each event has an id")
}

/// Waits until all have this many likes and nothing to push, and are equal down to the digests. Returns false if that takes too
/// long.
fn level(nodes: &[&Node], count: u64) -> bool {
    let began = Instant::now();
    loop {
        let all: Vec<_> = nodes.iter().map(|node| node.status()).collect();
        let key = |status: &Value| {
            ["log", "head", "schema", "log_digest", "state_digest", "digest_seq"].map(|name| status[name].clone())
        };
        let is_level =
            |status: &Value| status["count"] == count && status["pending"] == 0 && key(status) == key(&all[0]);
        if all.iter().all(is_level) {
            return true;
        }
        if began.elapsed() > PATIENCE {
            for status in &all {
                let upstream = &status["upstream"];
                let [name, likes, pending, head] = ["device", "count", "pending", "head"].map(|name| &status[name]);
                eprintln!(
                    "{name}: {likes} likes, {pending} pending, up to {head}, {}, {}",
                    upstream["state"], upstream["error"]
                );
            }
            return false;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}
