//! The archive with the program, and the script that installs it, against a server on this machine.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;

use tempfile::TempDir;

use crate::{output_of, packaging, program, said};

/// Serves the files of a directory to whoever asks, as a host for downloads does.
fn serve(dir: &Path) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let dir = dir.to_owned();
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            drop(answer(client, &dir));
        }
    });
    url
}

fn answer(mut client: TcpStream, dir: &Path) -> std::io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    let name = first.split_whitespace().nth(1).and_then(|path| path.rsplit('/').next()).unwrap_or_default();
    let (status, body) = fs::read(dir.join(name)).map_or(("404 Not Found", Vec::new()), |body| ("200 OK", body));
    write!(client, "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len())?;
    client.write_all(&body)
}

/// An archive of the program under test. That one is large, and a script says the same.
fn archive() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a directory");
    let small = dir.path().join("likewise");
    fs::write(&small, format!("#!/bin/sh\nexec {} \"$@\"\n", program().display())).expect("a program");
    let mut command = Command::new("chmod");
    assert!(command.arg("755").arg(&small).status().expect("chmod").success());
    let mut command = Command::new("sh");
    command.arg(packaging("archive.sh")).arg(&small).arg(dir.path().join("out"));
    let output = output_of(&mut command, "it is part of every system");
    assert!(output.status.success(), "{}", said(&output));
    let path = String::from_utf8_lossy(&output.stdout).trim().into();
    (dir, path)
}

fn install(from: &str, to: &Path, more: &[&str]) -> Output {
    let mut command = Command::new("sh");
    command.arg(packaging("install.sh")).args(["--from", from, "--to"]).arg(to).args(more);
    output_of(&mut command, "it is part of every system")
}

#[test]
fn the_script_installs_what_has_the_right_checksum_and_nothing_else() {
    let (dir, archive) = archive();
    let version = env!("CARGO_PKG_VERSION");
    let name = archive.file_name().expect("a name").to_str().expect("a text");
    assert!(name.starts_with(&format!("likewise-{version}-linux-")) && name.ends_with(".tar.gz"), "{name}");
    let (url, to) = (serve(&dir.path().join("out")), dir.path().join("to"));

    let output = install(&url, &to, &[]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("is not on your PATH"), "{}", said(&output));
    let installed = Command::new(to.join("bin/likewise")).arg("--version").output().expect("it runs");
    assert_eq!(said(&installed).trim(), format!("likewise {version}"));
    for file in ["share/man/man1/likewise.1", "share/bash-completion/completions/likewise"] {
        assert!(to.join(file).exists(), "{file}");
    }
    // Again, over the first, and by its version.
    let output = install(&url, &to, &["--version", version]);
    assert!(output.status.success(), "{}", said(&output));

    let refused = |to: &Path, more: &[&str], words: &str| {
        let output = install(&url, to, more);
        assert!(output.status.code() == Some(1) && said(&output).contains(words), "{words}: {}", said(&output));
    };
    let other = dir.path().join("other");
    refused(&other, &["--version", "9.9.9"], "there is no likewise-9.9.9-linux-");
    refused(&other, &["--version", "../x"], "is no version");
    refused(&other, &["--colour"], "there is no option --colour");
    let mut bytes = fs::read(&archive).expect("the archive");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&archive, bytes).expect("damaged");
    refused(&other, &[], "the checksum of");
    fs::remove_file(archive.with_extension("gz.sha256")).expect("no checksum");
    refused(&other, &[], "there is no checksum");
    assert!(!other.exists(), "nothing is installed");

    let output = install("http://likes.example.org", &other, &[]);
    assert!(!output.status.success() && said(&output).contains("is not https"), "{}", said(&output));
}
