//! Completions and the manual page, as a shell and a reader get them.

use std::fs;
use std::process::Command;

use crate::{output_of, packaging, program, said};

#[test]
fn bash_completes_commands_flags_and_values() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut command = Command::new("sh");
    let output =
        output_of(command.arg(packaging("documents.sh")).arg(program()).arg(dir.path()), "it is part of every system");
    assert!(output.status.success(), "{}", said(&output));
    let script = dir.path().join("likewise.bash");
    let output = output_of(Command::new("bash").arg("-n").arg(&script), "apt-get install bash");
    assert!(output.status.success(), "{}", said(&output));
    let complete = |words: &[&str]| {
        // What bash does when Tab is pressed after these words.
        let line = [&["likewise"], words].concat();
        let (last, before) = (line[line.len() - 1], line[line.len() - 2]);
        let script = format!(
            "source {}; COMP_WORDS=({}); COMP_CWORD={}; _likewise likewise '{last}' '{before}'; \
             printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            script.display(),
            line.join(" "),
            words.len(),
        );
        said(&output_of(Command::new("bash").args(["-c", &script]), "apt-get install bash"))
    };
    assert_eq!(complete(&["doc"]).trim(), "doctor");
    assert!(complete(&["token", "re"]).contains("revoke"));
    assert!(complete(&["serve", "--log"]).contains("--log-format"));
    assert_eq!(complete(&["serve", "--log-format", "j"]).trim(), "json");
    for name in ["_likewise", "likewise.fish", "likewise.1"] {
        let text = fs::read_to_string(dir.path().join(name)).expect("a file");
        assert!(text.contains("doctor"), "{name}");
    }
}
