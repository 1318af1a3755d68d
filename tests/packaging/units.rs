//! The units for systemd: their syntax, how exposed the service is, and that they name what there is.

use std::fs;
use std::process::Command;

use tempfile::TempDir;

use crate::{output_of, packaging, program, said};

const HOW: &str = "on Debian it is in `systemd`: apt-get install systemd";

/// The units with this program in the place where they expect it.
fn units() -> TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    for name in ["likewise.service", "likewise.socket", "likewise-backup.service", "likewise-backup.timer"] {
        let text = fs::read_to_string(packaging(name)).expect("a unit");
        let text = text.replace("/usr/bin/likewise", program().to_str().expect("a path"));
        fs::write(dir.path().join(name), text).expect("a copy");
    }
    dir
}

#[test]
fn units_are_understood_by_systemd() {
    let dir = units();
    let files: Vec<_> = fs::read_dir(dir.path()).expect("units").map(|entry| entry.expect("a unit").path()).collect();
    assert_eq!(files.len(), 4);
    let output = output_of(Command::new("systemd-analyze").args(["verify", "--man=no"]).args(&files), HOW);
    assert!(output.status.success() && said(&output).trim().is_empty(), "{}", said(&output));
}

#[test]
fn the_service_is_hardly_exposed() {
    let dir = units();
    let mut command = Command::new("systemd-analyze");
    command.args(["security", "--offline=true", "--threshold=15"]).arg(dir.path().join("likewise.service"));
    let output = output_of(&mut command, HOW);
    assert!(output.status.success(), "its exposure is above 1.5 of 10: {}", said(&output));
}

#[test]
fn the_user_and_the_variables_of_the_units_are_those_of_the_program() {
    let output = output_of(Command::new("systemd-sysusers").arg("--dry-run").arg(packaging("likewise.sysusers")), HOW);
    assert!(output.status.success(), "{}", said(&output));
    let help = said(&crate::common::likewise().args(["help", "serve"]).output().expect("help"));
    let defaults = fs::read_to_string(packaging("likewise.default")).expect("the file");
    for line in defaults.lines().filter_map(|line| line.strip_prefix("#LIKEWISE_")) {
        let (name, value) = line.split_once('=').expect("a variable");
        assert!(help.contains(&format!("LIKEWISE_{name}")), "{name}");
        // What stands there works when it is uncommented.
        let data = tempfile::tempdir().expect("a directory");
        let mut command = crate::common::likewise();
        command.env(format!("LIKEWISE_{name}"), value).env("LIKEWISE_DATA", data.path()).args(["serve", "--help"]);
        assert!(command.output().expect("it runs").status.success(), "{line}");
    }
}

#[test]
fn a_nightly_backup_keeps_the_last_copies() {
    let (dir, data) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let server = crate::common::Server::start(data.path());
    let like = ureq::post(format!("{}/likes", server.url)).send_form([("id", uuid::Uuid::now_v7().to_string())]);
    assert!(like.is_ok(), "{like:?}");
    let unit = fs::read_to_string(packaging("likewise-backup.service")).expect("the unit");
    let (_, script) = unit.split_once("ExecStart=/bin/sh -ec '\\\n").expect("the script");
    let (script, _) = script.split_once('\'').expect("its end");
    // As systemd reads it.
    let script = script.replace("\\\n", " ").replace("$$", "$").replace("%%", "%");
    let script = script.replace("/var/lib/likewise-backups", dir.path().to_str().expect("a path"));
    let script = script.replace("/usr/bin/likewise", program().to_str().expect("a path"));
    for day in 1..=20 {
        fs::create_dir(dir.path().join(format!("2026-01-{day:02}"))).expect("an old copy");
    }
    fs::create_dir(dir.path().join("new")).expect("what an interrupted backup left");
    for _ in 0..2 {
        let mut command = crate::common::likewise();
        let envs: Vec<_> =
            command.get_envs().map(|(name, value)| (name.to_owned(), value.map(ToOwned::to_owned))).collect();
        command = Command::new("/bin/sh");
        for (name, value) in envs {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.args(["-ec", &script]).env("LIKEWISE_DATA", data.path()).env("KEEP", "14");
        let output = command.output().expect("a shell");
        assert!(output.status.success(), "{}", said(&output));
    }
    let mut kept: Vec<_> =
        fs::read_dir(dir.path()).expect("copies").map(|entry| entry.expect("one").file_name()).collect();
    kept.sort();
    assert_eq!(kept.len(), 14, "{kept:?}");
    let newest = dir.path().join(kept.pop().expect("the newest"));
    assert!(newest.join("stores/likes/eventlog.db").exists(), "{newest:?}");
    assert!(!dir.path().join("2026-01-01").exists() && dir.path().join("2026-01-20").exists());
    drop(server);
}
