//! The Debian package, made of the program under test.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::{output_of, packaging, program, said};

const DPKG: &str = "this test is for Debian and its relatives: apt-get install dpkg";

#[test]
fn a_package_has_what_its_files_promise() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new("sh");
    let documents = command.arg(packaging("documents.sh")).arg(program()).arg(root.join("target/documents"));
    assert!(output_of(documents, "it is part of every system").status.success());
    let out = tempfile::tempdir().expect("a directory");
    let mut command = Command::new("cargo");
    // What was built for the tests will do; building it again, or compressing it well, would take minutes.
    command.args(["deb", "--no-build", "--profile", "dev", "--fast", "--locked", "--output"]).arg(out.path());
    let output = output_of(command.current_dir(root), "it comes with Rust");
    let how = "if there is no such command: cargo install cargo-deb --locked";
    assert!(output.status.success(), "cargo deb failed ({how}): {}", said(&output));
    let deb = fs::read_dir(out.path()).expect("a package").next().expect("a package").expect("a package").path();

    let list = said(&output_of(Command::new("dpkg-deb").arg("--contents").arg(&deb), DPKG));
    for (rights, path) in [
        ("-rwxr-xr-x 0/0", "./usr/bin/likewise"),
        ("-rw-r--r-- 0/0", "./usr/share/man/man1/likewise.1.gz"),
        ("-rw-r--r-- 0/0", "./usr/share/bash-completion/completions/likewise"),
        ("-rw-r--r-- 0/0", "./usr/share/zsh/vendor-completions/_likewise"),
        ("-rw-r--r-- 0/0", "./etc/default/likewise"),
        ("-rw-r--r-- 0/0", "./usr/lib/sysusers.d/likewise.conf"),
        ("-rw-r--r-- 0/0", "./usr/lib/systemd/system/likewise.service"),
        ("-rw-r--r-- 0/0", "./usr/lib/systemd/system/likewise.socket"),
        ("-rw-r--r-- 0/0", "./usr/lib/systemd/system/likewise-backup.timer"),
        ("-rw-r--r-- 0/0", "./usr/share/doc/likewise/administration.md"),
    ] {
        let line = list.lines().find(|line| line.ends_with(&format!(" {path}")));
        assert!(line.is_some_and(|line| line.starts_with(rights)), "{path}: {line:?} in\n{list}");
    }
    let control = said(&output_of(Command::new("dpkg-deb").arg("--info").arg(&deb), DPKG));
    for words in [&format!("Version: {}", env!("CARGO_PKG_VERSION")), "Depends: ", "libc6", "postinst", "conffiles"] {
        assert!(control.contains(words), "{words}: {control}");
    }
    let scripts = out.path().join("control");
    output_of(Command::new("dpkg-deb").arg("--control").arg(&deb).arg(&scripts), DPKG);
    for script in ["postinst", "postrm"] {
        let output = output_of(Command::new("sh").arg("-n").arg(scripts.join(script)), "it is part of every system");
        let text = fs::read_to_string(scripts.join(script)).expect("a script");
        assert!(output.status.success() && !text.contains("#DEBHELPER#"), "{script}: {}{text}", said(&output));
    }
    let postinst = fs::read_to_string(scripts.join("postinst")).expect("a script");
    assert!(
        postinst.contains("systemd-sysusers") && postinst.contains("likewise.conf"),
        "it makes the user: {postinst}"
    );
    assert!(!postinst.contains("deb-systemd-invoke start"), "it doesn't start by itself: {postinst}");
}
