//! Small file systems for tests. Mounting takes root. If a tool for a file system is missing, the test fails with a sentence
//! that says which.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A small file system, unmounted at the end.
pub struct Mounted {
    dir: TempDir,
}

impl Mounted {
    /// Makes one with the program `mkfs` and these arguments, in a file of this many MiB.
    pub fn new(size: u64, mkfs: &[&str], package: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("disk");
        File::create(&file).and_then(|file| file.set_len(size << 20)).expect("a file for a disk");
        let mut command = Command::new(mkfs[0]);
        let output = command.args(&mkfs[1..]).arg(&file).stdin(Stdio::null()).output().unwrap_or_else(|why| {
            panic!("this test needs {} ({why}): install it, on Debian with `apt-get install {package}`", mkfs[0])
        });
        assert!(output.status.success(), "{mkfs:?}: {}", text(&output));
        let mounted = Self { dir };
        mounted.mount(&["-o", "loop", file.to_str().expect("a path")]);
        mounted
    }

    /// Makes one in memory.
    pub fn in_memory(size: u64) -> Self {
        let mounted = Self { dir: tempfile::tempdir().expect("a directory") };
        mounted.mount(&["-t", "tmpfs", "-o", &format!("size={size}m"), "none"]);
        mounted
    }

    fn mount(&self, arguments: &[&str]) {
        fs::create_dir(self.path()).expect("a directory to mount on");
        let output = Command::new("mount").args(arguments).arg(self.path()).output();
        let output = output.unwrap_or_else(|why| panic!("this test needs mount ({why}): on Debian it is in `mount`"));
        assert!(
            output.status.success(),
            "this test has to mount a small file system, which takes root (and loop devices): mount {arguments:?}: {}",
            text(&output)
        );
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("mounted")
    }

    /// Makes it read-only.
    pub fn make_read_only(&self) {
        let output = Command::new("mount").args(["-o", "remount,ro"]).arg(self.path()).output().expect("mount");
        assert!(output.status.success(), "{}", text(&output));
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmount = || Command::new("umount").arg(self.path()).status().is_ok_and(|status| status.success());
        // A program that was just killed may still be using it.
        let start = Instant::now();
        while !unmount() && start.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn text(output: &Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    format!("{}: {}{}", output.status, out.trim_end(), err.trim_end())
}
