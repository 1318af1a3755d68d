//! Opens an image with the real program, as after a power cut, and reports what is wrong with it.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::client::{agent, new_id};
use crate::common::PATIENCE;
use crate::image::Disk;
use crate::shim::{Recorder, program, scratch};
use crate::trace::{self, Record};
use likewise::testing::Rng;

/// How many images are made from each recording. More images need more recordings.
const OF_ONE: usize = 500;

/// What is wrong with an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Wrong {
    /// Something acknowledged is gone.
    Lost,
    /// An id is there twice.
    Doubled,
    /// The program doesn't start, or doesn't show the store.
    Refused,
    /// The count on the page isn't the number of events.
    Count,
    /// `verify` isn't content.
    Verify,
    /// No like is accepted.
    Stuck,
}

/// What was found wrong, each with what was seen.
pub(crate) type Findings = Vec<(Wrong, String)>;

/// What power cuts did to a scenario, over all its images.
#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) images: usize,
    /// Which images have something wrong.
    bad: Vec<(String, Findings)>,
    kept: Vec<PathBuf>,
}

impl Outcome {
    /// How many images have this kind of fault.
    pub(crate) fn count(&self, wrong: Wrong) -> usize {
        self.bad.iter().filter(|(_, findings)| findings.iter().any(|(found, _)| *found == wrong)).count()
    }

    /// Adds the results of other images.
    pub(crate) fn add(&mut self, other: Self) {
        self.images += other.images;
        self.bad.extend(other.bad);
        self.kept.extend(other.kept);
    }

    /// Fails the test unless every image was fine.
    pub(crate) fn assert_well(&self, name: &str) {
        let Self { images, bad, kept } = self;
        let mut kinds: BTreeMap<Wrong, (usize, String)> = BTreeMap::new();
        for (which, findings) in bad {
            let distinct: BTreeMap<Wrong, &String> =
                findings.iter().rev().map(|(wrong, seen)| (*wrong, seen)).collect();
            for (wrong, seen) in distinct {
                kinds.entry(wrong).or_insert_with(|| (0, format!("first {which}: {seen}"))).0 += 1;
            }
        }
        let kinds: String = kinds.iter().map(|(wrong, (n, seen))| format!("\n{wrong:?} {n} times, {seen}")).collect();
        assert!(
            bad.is_empty(),
            "{name}: {} of {images} images are not well{kinds}\nthe trace and some images are kept: {kept:?}",
            bad.len()
        );
        eprintln!("{name}: {images} images, all well");
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|number| number.parse().ok())
}

/// Where the power is cut.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Cuts {
    /// At this many moments, chosen by the seeds.
    Random(usize),
    /// After each record in turn, once for each, unless more images are asked for.
    EachOf(usize),
}

/// Records `scenario`, and checks images of it with `check`, which is told what had been acknowledged before the power cut.
/// LIKEWISE_IMAGES says how many. If LIKEWISE_TRACE names a trace that was kept, that trace is used, and LIKEWISE_SEED names
/// its first image.
pub(crate) fn power_cuts(
    name: &str,
    cuts: Cuts,
    scenario: impl Fn(&Recorder),
    check: impl Fn(&Path, &[String]) -> Findings + Sync,
) -> Outcome {
    let mut outcome = Outcome::default();
    let mut seed = number("LIKEWISE_SEED").unwrap_or(1);
    loop {
        let dir = scratch();
        let recording = Recording::of(dir.path(), &scenario);
        let steps = recording.records.len();
        let usual = match cuts {
            Cuts::Random(usual) => usual,
            Cuts::EachOf(stride) => steps.div_ceil(stride),
        };
        let wanted = number("LIKEWISE_IMAGES").map_or(usual, |number| usize::try_from(number).expect("a number"));
        let count = (wanted - outcome.images).min(OF_ONE.max(usual));
        let chosen = (seed..).take(count).map(|seed| {
            let mut random = Rng::new(seed);
            let cut = match cuts {
                Cuts::Random(_) => recording.choose_cut(&mut random),
                Cuts::EachOf(stride) => {
                    let (turn, at) = ((seed - 1) as usize / usual, (seed - 1) as usize % usual);
                    1 + (at * stride + turn) % steps
                }
            };
            (cut, seed, random)
        });
        recording.check(name, chosen.collect(), &check, &mut outcome);
        seed += count as u64;
        if outcome.images >= wanted {
            return outcome;
        }
    }
}

/// What a scenario did, and what was acknowledged meanwhile.
struct Recording {
    path: PathBuf,
    records: Vec<Record>,
    notes: Notes,
}

/// What is stored beside a trace.
#[derive(Serialize, Deserialize)]
struct Notes {
    /// The length of the trace when the power could first be cut.
    start: u64,
    /// What was acknowledged, and the length of the trace then.
    acknowledged: Vec<(String, u64)>,
}

impl Recording {
    fn of(dir: &Path, scenario: impl Fn(&Recorder)) -> Self {
        let (path, notes) = match std::env::var_os("LIKEWISE_TRACE") {
            Some(path) => {
                let path = PathBuf::from(path);
                let notes = fs::read(path.with_extension("notes")).expect("the notes beside the trace");
                (path, serde_json::from_slice(&notes).expect("the notes beside the trace"))
            }
            None => {
                let recorder = Recorder::new();
                scenario(&recorder);
                let path = dir.join("trace");
                fs::rename(recorder.trace(), &path).expect("the trace");
                (path, Notes { start: recorder.start(), acknowledged: recorder.acknowledged() })
            }
        };
        let records = trace::read(&path);
        assert!(records.len() > 1, "nothing was recorded");
        Self { path, records, notes }
    }

    /// After how many records the power is cut: anywhere, or just when something was acknowledged.
    fn choose_cut(&self, random: &mut Rng) -> usize {
        let Self { records, notes: Notes { start, acknowledged }, .. } = self;
        let first = records.partition_point(|record| record.end <= *start).max(1);
        if acknowledged.is_empty() || random.chance(40) {
            return first + random.below(records.len() + 1 - first);
        }
        let (_, position) = acknowledged[random.below(acknowledged.len())];
        records.partition_point(|record| record.end <= position)
    }

    /// Makes and checks the images of these cuts, several at a time: most of the work is waiting for programs to end.
    fn check(
        &self,
        name: &str,
        mut cuts: Vec<(usize, u64, Rng)>,
        check: &(impl Fn(&Path, &[String]) -> Findings + Sync),
        outcome: &mut Outcome,
    ) {
        cuts.sort_by_key(|(cut, ..)| *cut);
        let mut shares: [Vec<_>; 4] = Default::default();
        for (n, cut) in cuts.into_iter().enumerate() {
            shares[n % 4].push(cut);
        }
        let outcome = Mutex::new(outcome);
        std::thread::scope(|scope| {
            for share in shares {
                scope.spawn(|| {
                    let mut disk = Disk::before(&self.records);
                    let mut at = 0;
                    for (cut, seed, mut random) in share {
                        self.records[at..cut].iter().for_each(|record| disk.follow(record));
                        at = cut;
                        let dir = scratch();
                        let image = dir.path().join("image");
                        disk.image(&image, &mut random);
                        let untouched = dir.path().join("untouched");
                        copy(&image, &untouched);
                        let findings = check(&image, &self.due(cut));
                        outcome.lock().expect("no panic").note(name, self, seed, &untouched, findings);
                    }
                });
            }
        });
    }

    /// What was acknowledged before the power was cut.
    fn due(&self, cut: usize) -> Vec<String> {
        let end = self.records[cut - 1].end;
        self.notes.acknowledged.iter().filter(|(_, at)| *at <= end).map(|(what, _)| what.clone()).collect()
    }
}

impl Outcome {
    fn note(&mut self, name: &str, recording: &Recording, seed: u64, image: &Path, findings: Findings) {
        self.images += 1;
        if findings.is_empty() {
            return;
        }
        if self.bad.len() < 3 {
            self.keep(name, recording, seed, image);
        }
        self.bad.push((format!("{name} with seed {seed}"), findings));
    }

    /// Keeps what a person needs to see what went wrong.
    fn keep(&mut self, name: &str, recording: &Recording, seed: u64, image: &Path) {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("disk-failures");
        fs::create_dir_all(&dir).expect("a directory for what went wrong");
        let to = dir.join(format!("{name}-{seed}"));
        drop(fs::remove_dir_all(&to));
        copy(image, &to);
        self.kept.push(to);
        let to = dir.join(format!("{name}-{seed}.trace"));
        if recording.path != to {
            fs::copy(&recording.path, &to).expect("the trace kept");
            let notes = serde_json::to_vec(&recording.notes).expect("JSON");
            fs::write(to.with_extension("notes"), notes).expect("the notes kept");
        }
        self.kept.push(to);
    }
}

/// Copies a directory.
pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    fs::set_permissions(to, fs::metadata(from).expect("its metadata").permissions()).expect("its permissions");
    for entry in fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("a copy");
        }
    }
}

/// Runs a command of the program on the directory `data` until it ends.
pub(crate) fn run(data: &Path, arguments: &[&str]) -> Output {
    let mut command = program();
    command.args(arguments).env("LIKEWISE_DATA", data).stdin(Stdio::null());
    command.output().expect("the program starts")
}

/// Everything a command printed.
pub(crate) fn text(output: &Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    format!("{}: {}{}", output.status, out.trim_end(), err.trim_end())
}

/// A server on an image. Dropping this ends it.
pub(crate) struct Opened {
    child: Child,
    log: Option<JoinHandle<String>>,
    pub(crate) url: String,
}

impl Opened {
    /// Starts it, or says why it didn't start.
    pub(crate) fn start(data: &Path, flags: &[&str]) -> Result<Self, String> {
        let mut command: Command = program();
        command.args(["serve", "--listen", "127.0.0.1:0"]).args(flags).env("LIKEWISE_DATA", data);
        Self::spawn(command)
    }

    /// Runs `command`, which should serve.
    pub(crate) fn spawn(mut command: Command) -> Result<Self, String> {
        command.env("LIKEWISE_LOG", "warn").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("its output")).read_line(&mut line).expect("its ready line");
        match line.trim().strip_prefix("listening on ") {
            Some(url) => {
                // Otherwise a program with much output would wait for somebody to read it.
                let mut stderr = child.stderr.take().expect("its log");
                let log = std::thread::spawn(move || {
                    let mut log = String::new();
                    stderr.read_to_string(&mut log).map(|_| log).unwrap_or_default()
                });
                Ok(Self { url: url.to_owned(), child, log: Some(log) })
            }
            None => Err(text(&child.wait_with_output().expect("its end"))),
        }
    }

    pub(crate) fn get(&self, path: &str) -> (u16, String) {
        self.try_get(path).expect("an answer")
    }

    /// The answer, if there is one.
    pub(crate) fn try_get(&self, path: &str) -> Option<(u16, String)> {
        let mut answer = agent().get(format!("{}{path}", self.url)).call().ok()?;
        Some((answer.status().as_u16(), answer.body_mut().read_to_string().ok()?))
    }

    pub(crate) fn like(&self, id: &str) -> (u16, String) {
        self.try_like(id).expect("an answer")
    }

    /// Likes, and returns the answer, if there is one.
    pub(crate) fn try_like(&self, id: &str) -> Option<(u16, String)> {
        let mut answer = agent().post(format!("{}/likes", self.url)).send_form([("id", id)]).ok()?;
        Some((answer.status().as_u16(), answer.body_mut().read_to_string().ok()?))
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("its state").is_none()
    }

    /// Whether it lets a device with this token sync.
    pub(crate) fn knows(&self, token: &str) -> bool {
        let request = agent().post(format!("{}/sync/v1/likes/events", self.url));
        let answer = request.header("authorization", format!("Bearer {token}")).send("no push").expect("an answer");
        answer.status() != 401
    }

    /// How many likes the page shows, or what it shows instead.
    pub(crate) fn count(&self) -> Result<usize, String> {
        let (status, body) = self.get("/");
        let count = body.split_once(r#"data-count=""#).and_then(|(_, rest)| rest.split_once('"'));
        match count.and_then(|(count, _)| count.parse().ok()) {
            Some(count) if status == 200 => Ok(count),
            _ => Err(format!("the page is {status}: {}", words(&body))),
        }
    }

    /// Shuts it down.
    pub(crate) fn stop(mut self) -> Result<(), String> {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        let pid = rustix::process::Pid::from_raw(pid).expect("a process id");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it gets the signal");
        let status = self.child.wait().expect("its end");
        let log = self.log.take().expect("its log").join().expect("no panic");
        if status.success() { Ok(()) } else { Err(format!("it ended with {status}: {log}")) }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The text of a page without its tags.
pub(crate) fn words(page: &str) -> String {
    let mut out = String::new();
    let mut is_tag = false;
    for letter in page.split_once("<main").map_or(page, |(_, main)| main).chars() {
        match letter {
            '<' => is_tag = true,
            '>' => is_tag = false,
            _ if !is_tag => out.push(letter),
            _ => {}
        }
    }
    out.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The ids of the likes that a data directory exports, without those set aside. Nothing if there is no store.
pub(crate) fn exported(data: &Path) -> Result<Vec<String>, String> {
    let output = run(data, &["export"]);
    if !output.status.success() {
        let said = text(&output);
        return if is_absent(&said) { Ok(Vec::new()) } else { Err(said) };
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("a line of JSON"));
    Ok(lines
        .filter(|line| line["set_aside"].is_null() && line["name"] == "LikeAdded")
        .map(|line| line["id"].as_str().expect("an id").to_owned())
        .collect())
}

fn is_absent(said: &str) -> bool {
    said.contains("there is no store") || said.contains("there is no data")
}

/// What `verify` finds wrong with a data directory. There may be no store in it if nothing is due.
fn verified(data: &Path, may_be_absent: bool) -> Option<String> {
    let output = run(data, &["verify"]);
    let said = text(&output);
    if output.status.success() && said.contains("all is well") || may_be_absent && is_absent(&said) {
        return None;
    }
    Some(said)
}

/// Checks a data directory of likes, of which `due` were acknowledged: before the first start, while the program serves it, and
/// afterwards.
pub(crate) fn check_likes(data: &Path, due: &[String]) -> Findings {
    let mut findings = Findings::new();
    if let Some(said) = verified(data, due.is_empty()) {
        findings.push((Wrong::Verify, format!("before the first start: {said}")));
    }
    match Opened::start(data, &[]) {
        Err(why) => findings.push((Wrong::Refused, why)),
        Ok(server) => {
            match server.count() {
                Err(why) => findings.push((Wrong::Refused, why)),
                Ok(count) => check_events(data, due, count, &mut findings),
            }
            let (status, body) = server.like(&new_id());
            if status != 303 {
                findings.push((Wrong::Stuck, format!("a like got {status}: {}", words(&body))));
            }
            if let Err(why) = server.stop() {
                findings.push((Wrong::Refused, why));
            }
        }
    }
    if let Some(said) = verified(data, false) {
        findings.push((Wrong::Verify, format!("afterwards: {said}")));
    }
    findings
}

fn check_events(data: &Path, due: &[String], count: usize, findings: &mut Findings) {
    let ids = match exported(data) {
        Ok(ids) => ids,
        Err(why) => return findings.push((Wrong::Refused, why)),
    };
    let distinct: HashSet<&String> = ids.iter().collect();
    if distinct.len() != ids.len() {
        findings.push((Wrong::Doubled, format!("{} of {} are distinct", distinct.len(), ids.len())));
    }
    if count != ids.len() {
        findings.push((Wrong::Count, format!("the page shows {count}, and there are {}", ids.len())));
    }
    let lost: Vec<_> = due.iter().filter(|id| !distinct.contains(id)).collect();
    if !lost.is_empty() {
        findings.push((Wrong::Lost, format!("{} of {}: {:?}", lost.len(), due.len(), &lost[..lost.len().min(3)])));
    }
}

/// Lets a device and its hub sync until they are level. Reports it if they never are, or if they hold different events.
pub(crate) fn until_level(hub: &Path, device: &Path, token: &str) -> Findings {
    let level = || -> Result<(), String> {
        let held = Opened::start(hub, &[])?;
        let file = device.with_file_name("token");
        fs::write(&file, token).expect("a file for the token");
        let flags = ["--upstream", &held.url, "--token-file", file.to_str().expect("a path"), "--retry-halted", "1"];
        let followed = Opened::start(device, &flags)?;
        let standing = |opened: &Opened| -> Value {
            let (_, body) = opened.get("/status?digests");
            serde_json::from_str(&body).unwrap_or_default()
        };
        let start = Instant::now();
        loop {
            let (ours, theirs) = (standing(&followed), standing(&held));
            let same = |field: &str| ours[field] == theirs[field];
            if ours["pending"] == 0 && same("count") && same("log_digest") && same("state_digest") {
                break;
            }
            if start.elapsed() > PATIENCE {
                return Err(format!("the device and its hub don't come together: {ours}, {theirs}"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        followed.stop()?;
        held.stop()?;
        let (ours, theirs) = (exported(device)?, exported(hub)?);
        if ours != theirs {
            return Err(format!("the device has {} events and the hub {}", ours.len(), theirs.len()));
        }
        Ok(())
    };
    level().err().map(|why| vec![(Wrong::Count, why)]).unwrap_or_default()
}
