//! Servers and gateways that are killed, paused, cut off and set back while people like. Every acknowledged like is there
//! once, everywhere, in one order.
//!
//! `LIKEWISE_SECONDS=3600 LIKEWISE_SEED=7 cargo test --release --test gateways at_random -- --nocapture` goes on for an hour.
//! The seed gives the order of what happens; the machine gives the moments.

use std::thread;
use std::time::{Duration, Instant};

use likewise::testing::Rng;

use crate::common::nats::Course;
use crate::common::wait_for;
use crate::fleet::Fleet;

const SERVERS: usize = 3;
const GATEWAYS: usize = 3;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// The server that leads the stream.
fn leader(fleet: &Fleet) -> usize {
    wait_for("the stream to have a leader", || fleet.nats.leader_of("likewise"))
}

#[test]
fn likes_survive_servers_and_gateways_that_die_stand_still_or_are_cut_off() {
    let mut fleet = Fleet::start(SERVERS, GATEWAYS, 4);
    fleet.wait_for_progress();
    // The server that leads is killed; then the next one is paused.
    let killed = leader(&fleet);
    fleet.nats.kill(killed);
    fleet.wait_for_progress();
    fleet.nats.start(killed);
    fleet.nats.wait_until_ready();
    let paused = leader(&fleet);
    fleet.nats.pause(paused);
    fleet.wait_for_progress();
    fleet.nats.resume(paused);
    fleet.nats.wait_until_ready();
    // A gateway is killed, another paused, and the third cut off from the servers.
    fleet.kill_or_start_gateway(0);
    fleet.wait_for_progress();
    fleet.kill_or_start_gateway(0);
    fleet.pause_or_resume_gateway(1);
    fleet.wait_for_progress();
    fleet.pause_or_resume_gateway(1);
    fleet.set_links_of_gateway(2, Course::Swallow);
    fleet.wait_for_progress();
    fleet.check();
}

#[test]
fn likes_survive_servers_whose_files_are_set_back() {
    let mut fleet = Fleet::start(SERVERS, GATEWAYS, 4);
    fleet.wait_for_progress();
    fleet.save_server(0);
    fleet.wait_for_progress();
    // One comes back with old files; then all are killed at once.
    fleet.set_server_back(0);
    fleet.nats.wait_until_ready();
    fleet.wait_for_progress();
    fleet.kill_all_servers();
    fleet.nats.wait_until_ready();
    fleet.wait_for_progress();
    fleet.check();
    // All come back with the files of one moment. No server has what came after it.
    fleet.save_all();
    fleet.wait_for_progress();
    fleet.set_all_back();
    fleet.check();
}

/// Things that happen, one after the other or together.
#[test]
fn likes_survive_what_happens_at_random() {
    let seed = variable("LIKEWISE_SEED").unwrap_or(1);
    let Some(seconds) = variable("LIKEWISE_SECONDS") else {
        eprintln!("LIKEWISE_SECONDS says how long this goes on; without it, there is nothing to do");
        return;
    };
    let mut rng = Rng::new(seed);
    let mut fleet = Fleet::start(SERVERS, GATEWAYS, 10);
    let began = Instant::now();
    let mut round = 0;
    while began.elapsed() < Duration::from_secs(seconds) {
        round += 1;
        for _ in 0..3 + rng.below(8) {
            let what = something(&mut fleet, &mut rng);
            println!("{:6.1} s  {what}", began.elapsed().as_secs_f64());
            let pause = [200, 1_000, 4_000, 12_000][rng.below(4)];
            thread::sleep(Duration::from_millis(rng.next() % pause));
        }
        let took = fleet.check();
        println!(
            "{:6.1} s  round {round} of seed {seed} is well, {took:.1?} after the last fault",
            began.elapsed().as_secs_f64()
        );
    }
}

/// Does one thing to one of them, and says what.
fn something(fleet: &mut Fleet, rng: &mut Rng) -> String {
    let (server, gateway) = (rng.below(SERVERS), rng.below(GATEWAYS));
    let course = *rng.pick(&[Course::Cut, Course::Swallow, Course::Pass]);
    match rng.below(100) {
        0..16 => {
            if fleet.nats.is_running(server) {
                fleet.nats.kill(server);
                format!("server {server} killed")
            } else {
                fleet.nats.start(server);
                format!("server {server} started")
            }
        }
        16..24 => {
            fleet.nats.pause(server);
            format!("server {server} paused")
        }
        24..34 => {
            fleet.nats.resume(server);
            format!("server {server} resumed")
        }
        34..44 => {
            fleet.nats.set_links_of(server, course);
            format!("server {server} and the others: {course:?}")
        }
        44..58 => format!("gateway {gateway} {}", fleet.kill_or_start_gateway(gateway)),
        58..68 => format!("gateway {gateway} {}", fleet.pause_or_resume_gateway(gateway)),
        68..74 => {
            fleet.set_links_of_gateway(gateway, course);
            format!("gateway {gateway} and the servers: {course:?}")
        }
        74..80 => {
            fleet.set_link(gateway, server, course);
            format!("gateway {gateway} and server {server}: {course:?}")
        }
        80..86 => {
            fleet.save_server(server);
            format!("server {server} saved")
        }
        86..90 => format!("server {server} set back: {}", fleet.set_server_back(server)),
        90..94 => {
            fleet.save_all();
            "all servers saved".to_owned()
        }
        94..97 => format!("all servers set back: {}", fleet.set_all_back()),
        _ => {
            fleet.kill_all_servers();
            "all servers killed and started".to_owned()
        }
    }
}
