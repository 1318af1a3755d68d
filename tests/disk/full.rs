//! A full disk, on file systems that each fill up in their own way. The program never dies of it. Likes are refused in words
//! while pages stay. When there is room again, everything goes on and nothing acknowledged is missing.
//!
//! Mounting takes root. If a tool for a file system is missing, its test fails with a sentence that says which.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};

use crate::check::{Opened, exported, run, text, words};
use crate::client::new_id;
use crate::common::mounted::Mounted;
use crate::common::{printed, wait_for};

/// Files that use up the room, and give it back.
struct Ballast {
    dir: PathBuf,
    files: usize,
}

impl Ballast {
    fn on(mounted: &Mounted) -> Self {
        let dir = mounted.path().join("ballast");
        fs::create_dir(&dir).expect("a directory");
        Self { dir, files: 0 }
    }

    /// Writes this many bytes to a file there, or nothing.
    fn write(&self, name: &str, size: usize) -> std::io::Result<()> {
        let path = self.dir.join(name);
        let written = File::create(&path).and_then(|mut file| {
            file.write_all(&vec![1; size])?;
            file.sync_all()
        });
        written.inspect_err(|_| drop(fs::remove_file(&path)))
    }

    /// Leaves not a single byte: when a write is refused, it tries a smaller one.
    fn fill(&mut self) {
        let mut piece = 1 << 20;
        while piece > 0 {
            if self.write(&(self.files + 1).to_string(), piece).is_ok() {
                self.files += 1;
            } else {
                piece /= 4;
            }
        }
    }

    /// Leaves about this many bytes.
    fn fill_but(&mut self, bytes: usize) {
        while self.write("place", bytes).is_err() && self.files > 0 {
            self.remove_last();
        }
        self.fill();
        drop(fs::remove_file(self.dir.join("place")));
    }

    fn remove_last(&mut self) {
        drop(fs::remove_file(self.dir.join(self.files.to_string())));
        self.files -= 1;
    }

    fn remove(&mut self) {
        while self.files > 0 {
            self.remove_last();
        }
    }
}

/// Likes until one is refused. Returns the ids of the others, and the refusal.
fn fill_with_likes(server: &Opened, ballast: &mut Ballast) -> (Vec<String>, (u16, String)) {
    let mut stored = Vec::new();
    let refusal = wait_for("the disk to be full", || {
        let id = new_id();
        let answer = server.try_like(&id).unwrap_or_else(|| panic!("a like on a full disk killed it"));
        if answer.0 != 303 {
            return Some(answer);
        }
        stored.push(id);
        // Filling the disk with likes alone would take long.
        if stored.len().is_multiple_of(40) {
            ballast.fill();
        }
        None
    });
    (stored, refusal)
}

/// What a command may do on a full disk: fail in words, or succeed.
fn assert_survives(data: &Path, arguments: &[&str]) {
    let output = run(data, arguments);
    let said = text(&output);
    assert_eq!(output.status.signal(), None, "{arguments:?}: {said}");
    assert!(output.status.code().is_some_and(|code| code < 2) && !said.contains("panicked"), "{arguments:?}: {said}");
}

/// Whether the page is there, likes are refused in words, and the process is still running.
fn assert_serves_without_room(server: &mut Opened, data: &Path, stored: usize) {
    let (status, body) = server.try_like(&new_id()).unwrap_or_else(|| panic!("a like on a full disk killed it"));
    assert_eq!(status, 503, "{}", words(&body));
    assert_eq!(server.get("/healthz").0, 503);
    let count = server.count().unwrap_or_else(|why| panic!("no page on a full disk: {why}"));
    assert!(count >= stored, "{count} of {stored}");
    for command in ["export", "verify", "status"] {
        assert_survives(data, &[command]);
    }
    let examined = run(data, &["doctor"]);
    let said = text(&examined);
    assert_eq!(examined.status.code(), Some(1), "{said}");
    for words in ["PROBLEM  disk", "Make room", "can't store anything"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert!(server.is_running());
}

/// Runs every command, and a start, with this little room.
fn try_without_room(data: &Path, stored: &mut Vec<String>) {
    for command in ["export", "verify", "status"] {
        assert_survives(data, &[command]);
    }
    let server = match Opened::start(data, &[]) {
        Ok(server) => server,
        Err(said) => {
            let has_words = said.contains("The disk may be full") || said.contains("No space left on device");
            assert!(said.contains("exit status: 1") && has_words, "{said}");
            return;
        }
    };
    for _ in 0..5 {
        let id = new_id();
        let (status, body) = server.try_like(&id).unwrap_or_else(|| panic!("a like on a full disk killed it"));
        match status {
            303 => stored.push(id),
            _ => assert_eq!(status, 503, "{}", words(&body)),
        }
        // A server that starts without room may have nothing to show.
        let (status, body) = server.get("/");
        assert!(status == 200 || status == 503, "{status}: {}", words(&body));
    }
}

fn survive_a_full_disk(mounted: &Mounted) {
    let data = mounted.path().join("data");
    let mut ballast = Ballast::on(mounted);
    let mut server = Opened::start(&data, &[]).expect("it starts");
    let like = |server: &Opened, times: usize| -> Vec<String> {
        let ids: Vec<String> = (0..times).map(|_| new_id()).collect();
        ids.iter().for_each(|id| assert_eq!(server.like(id).0, 303));
        ids
    };
    let mut stored = like(&server, 20);
    ballast.fill_but(256 << 10);
    let (more, (status, body)) = fill_with_likes(&server, &mut ballast);
    stored.extend(more);
    assert_eq!(status, 503, "{}", words(&body));
    assert!(body.contains("The disk may be full"), "{}", words(&body));
    for _ in 0..3 {
        ballast.fill();
        assert_serves_without_room(&mut server, &data, stored.len());
    }
    ballast.remove();
    wait_for("likes to go on", || {
        let id = new_id();
        (server.like(&id).0 == 303).then(|| stored.push(id))
    });
    drop(server);

    for room in [0, 8, 12, 16, 24, 40, 64] {
        ballast.fill_but(room << 10);
        try_without_room(&data, &mut stored);
        ballast.remove();
    }

    let server = Opened::start(&data, &[]).expect("it starts");
    stored.extend(like(&server, 3));
    let ids = exported(&data).expect("an export");
    let distinct: HashSet<&String> = ids.iter().collect();
    assert_eq!(distinct.len(), ids.len());
    assert!(stored.iter().all(|id| distinct.contains(id)), "acknowledged and lost");
    assert_eq!(server.count(), Ok(ids.len()));
    assert!(printed(run(&data, &["verify"])).contains("all is well"));
    server.stop().expect("a clean end");
    assert!(printed(run(&data, &["verify"])).contains("all is well"));
}

#[test]
fn trust_61_a_full_ext4() {
    survive_a_full_disk(&Mounted::new(24, &["mkfs.ext4", "-q", "-F", "-b", "4096"], "e2fsprogs"));
}

#[test]
fn trust_61_a_full_ext4_with_small_blocks() {
    survive_a_full_disk(&Mounted::new(16, &["mkfs.ext4", "-q", "-F", "-b", "1024"], "e2fsprogs"));
}

#[test]
fn trust_61_a_full_tmpfs() {
    survive_a_full_disk(&Mounted::in_memory(6));
}

#[test]
fn trust_61_a_full_btrfs() {
    survive_a_full_disk(&Mounted::new(120, &["mkfs.btrfs", "-q"], "btrfs-progs"));
}

#[test]
fn trust_61_a_full_xfs() {
    survive_a_full_disk(&Mounted::new(300, &["mkfs.xfs", "-q"], "xfsprogs"));
}
