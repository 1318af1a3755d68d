//! Data directories that others interfere with: links, files and directories of other users, and root.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

use crate::client::new_id;
use crate::common::{Server, data_dir, errors, likewise, printed, run, run_with};
use crate::directory::refusal_of;

/// A user that no machine has, so nothing else belongs to them.
const SOMEBODY: u32 = 54_321;

/// The program, ready for its arguments, in a place that every user can reach.
struct ForEverybody(TempDir);

impl ForEverybody {
    fn new() -> Self {
        let is_root = fs::metadata("/proc/self").expect("this process").uid() == 0;
        assert!(is_root, "this test acts as two users, which takes root: run the tests as root, say in a container");
        let place = data_dir();
        fs::set_permissions(place.path(), Permissions::from_mode(0o755)).expect("open to all");
        fs::copy(env!("CARGO_BIN_EXE_likewise"), place.path().join("likewise")).expect("a copy of the program");
        Self(place)
    }

    /// The program, run by this user.
    fn run_by(&self, user: u32) -> Command {
        let with_its_variables = likewise();
        let mut command = Command::new(self.0.path().join("likewise"));
        for (name, value) in with_its_variables.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.stdin(Stdio::null()).uid(user).gid(user);
        command
    }

    /// The result of the program, run by this user on the data in `data`.
    fn output_by(&self, user: u32, data: &Path, arguments: &[&str]) -> Output {
        let mut command = with_data(self.run_by(user), data);
        match arguments {
            SERVE => refusal_of(command),
            arguments => command.args(arguments).output().expect("the program starts"),
        }
    }

    /// A new directory that belongs to this user.
    fn dir_of(&self, user: u32, name: &str) -> PathBuf {
        let dir = self.0.path().join(name);
        fs::create_dir(&dir).expect("a directory");
        chown(&dir, Some(user), Some(user)).expect("given away");
        dir
    }
}

fn assert_refused(output: &Output, needles: &[&str]) {
    let said = errors(output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for needle in needles {
        assert!(said.contains(needle), "{needle} is not in: {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

/// Everything below `dir`, without `dir` itself.
fn all_below(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if fs::symlink_metadata(&path).expect("it is there").is_dir() {
            all.extend(all_below(&path));
        }
        all.push(path);
    }
    all
}

/// Data with a like and a token, which no process uses.
fn some_data(data: &Path) {
    let server = Server::start(data);
    server.like_times(1);
    printed(run(data, &["token", "add", "phone"]));
    assert!(server.terminate().success());
}

fn with_data(mut command: Command, data: &Path) -> Command {
    command.env("LIKEWISE_DATA", data);
    command
}

/// Runs the commands that write to the data, and returns those that failed.
fn failures(data: &Path, arguments: &[&[&str]]) -> Vec<Output> {
    let line = format!("{{\"id\":\"{}\",\"name\":\"LikeAdded\"}}\n", new_id());
    let outputs = arguments.iter().map(|arguments| match *arguments {
        SERVE => refusal_of(with_data(likewise(), data)),
        arguments => run_with(data, arguments, &line),
    });
    outputs.filter(|output| !output.status.success()).collect()
}

const SERVE: &[&str] = &["serve", "--listen", "127.0.0.1:0"];
const IMPORT: &[&str] = &["import"];
const TOKEN: &[&str] = &["token", "add", "tablet"];

#[test]
fn trust_67_no_link_in_a_data_directory_is_followed() {
    let cases: [(&str, &[&[&str]]); 11] = [
        ("lock", &[SERVE, IMPORT, &["status"]]),
        ("tokens.json", &[SERVE, TOKEN, &["token", "list"]]),
        ("tokens.lock", &[TOKEN]),
        ("tokens.new", &[TOKEN]),
        ("stores/likes/eventlog.db", &[SERVE, IMPORT, &["verify"], &["export"]]),
        ("stores/likes/eventlog.db-wal", &[SERVE, IMPORT, &["verify"], &["export"]]),
        ("stores/likes/eventlog.db-journal", &[SERVE, IMPORT, &["export"]]),
        ("stores/likes/eventlog.db.new", &[SERVE, IMPORT]),
        ("stores/likes/state.db", &[SERVE, IMPORT, &["verify"]]),
        ("stores/likes/state.db-wal", &[SERVE, IMPORT, &["verify"]]),
        ("stores/likes/witness", &[SERVE, IMPORT]),
    ];
    let original = data_dir();
    some_data(original.path());
    for (name, commands) in cases {
        // A link to something that exists, and one to something that doesn't.
        for target in ["precious", "nothing"] {
            let place = data_dir();
            let data = place.path().join("data");
            let copied = Command::new("cp").arg("-r").arg(original.path()).arg(&data).status().expect("cp runs");
            assert!(copied.success());
            let precious = place.path().join("precious");
            fs::write(&precious, "precious").expect("a file");
            let target = place.path().join(target);
            drop(fs::remove_file(data.join(name)));
            symlink(&target, data.join(name)).expect("a link");

            let failed = failures(&data, commands);
            assert_eq!(failed.len(), commands.len(), "{name}: {failed:?}");
            let path = fs::canonicalize(&data).expect("the directory").join(name);
            for output in &failed {
                assert_refused(output, &["symbolic link", path.to_str().expect("text")]);
            }
            assert_eq!(fs::read_to_string(&precious).expect("a file"), "precious", "{name}");
            assert!(!place.path().join("nothing").exists(), "{name}");
        }
    }
}

#[test]
fn trust_67_no_link_to_a_directory_is_followed_in_a_data_directory() {
    for name in ["stores", "stores/likes"] {
        let place = data_dir();
        let data = place.path().join("data");
        let elsewhere = place.path().join("elsewhere");
        fs::create_dir(&elsewhere).expect("a directory");
        fs::create_dir_all(data.join(name).parent().expect("a directory")).expect("a directory");
        symlink(&elsewhere, data.join(name)).expect("a link");
        let commands = [SERVE, IMPORT, &["status"], &["export"], &["verify"]];
        let failed = failures(&data, &commands);
        assert_eq!(failed.len(), commands.len(), "{name}: {failed:?}");
        for output in &failed {
            assert_refused(output, &["symbolic link", name]);
        }
        assert_eq!(all_below(&elsewhere), [] as [PathBuf; 0], "{name}");
    }
    // The user may name the directory itself by any link.
    let place = data_dir();
    let link = place.path().join("link");
    symlink(place.path().join("data"), &link).expect("a link");
    assert_refused(&refusal_of(with_data(likewise(), &link)), &["link", "isn't there"]);
    fs::create_dir(place.path().join("data")).expect("a directory");
    some_data(&link);
    assert!(printed(run(&place.path().join("data"), &["verify"])).contains("all is well"));
}

#[test]
fn trust_67_a_file_with_two_names_and_a_pipe_are_refused() {
    let data = data_dir();
    some_data(data.path());
    let other = data.path().join("other");
    for (name, commands) in [
        ("lock", &[SERVE, IMPORT][..]),
        ("tokens.lock", &[TOKEN]),
        ("stores/likes/eventlog.db", &[SERVE, IMPORT]),
        ("stores/likes/state.db", &[SERVE, IMPORT]),
        ("stores/likes/witness", &[SERVE, IMPORT]),
    ] {
        let path = data.path().join(name);
        fs::hard_link(&path, &other).expect("another name");
        let before = fs::read(&other).expect("a file");
        let failed = failures(data.path(), commands);
        assert_eq!(failed.len(), commands.len(), "{name}: {failed:?}");
        for output in &failed {
            assert_refused(output, &["hard link", name]);
        }
        assert_eq!(fs::read(&other).expect("a file"), before, "{name}");
        fs::remove_file(&other).expect("deleted");
    }
    for name in ["lock", "tokens.json"] {
        let path = data.path().join(name);
        fs::remove_file(&path).expect("deleted");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
            .expect("a pipe");
        for output in failures(data.path(), &[SERVE]) {
            assert_refused(&output, &["is not a file", name]);
        }
        fs::remove_file(&path).expect("deleted");
    }
    assert!(printed(run(data.path(), &["verify"])).contains("all is well"));
}

#[test]
fn trust_67_directories_and_files_of_other_users_are_refused() {
    let program = ForEverybody::new();
    let run = |data: &Path, arguments: &[&str]| program.output_by(SOMEBODY, data, arguments);
    let roots = program.dir_of(0, "roots");
    let open = program.dir_of(SOMEBODY, "open");
    let groups = program.dir_of(SOMEBODY, "groups");
    let planted = program.dir_of(SOMEBODY, "planted");
    for (dir, mode) in [(&roots, 0o777), (&open, 0o777), (&groups, 0o775), (&planted, 0o775)] {
        fs::set_permissions(dir, Permissions::from_mode(mode)).expect("its rights");
    }
    for command in [SERVE, IMPORT, TOKEN] {
        assert_refused(&run(&roots, command), &["belongs to the user 0", "54321", "chown"]);
        assert_refused(&run(&open, command), &["every user may change", "chmod o-w"]);
    }
    for dir in [&roots, &open] {
        assert_eq!(all_below(dir), [] as [PathBuf; 0], "something was made");
    }

    for name in ["lock", "tokens.lock", "stores"] {
        let path = planted.join(name);
        match name {
            "stores" => fs::create_dir(&path).expect("a directory"),
            _ => fs::write(&path, "").expect("a file"),
        }
        fs::set_permissions(&path, Permissions::from_mode(0o777)).expect("open to all");
        let command = if name == "tokens.lock" { TOKEN } else { SERVE };
        assert_refused(&run(&planted, command), &["belongs to the user 0", name]);
        match name {
            "stores" => fs::remove_dir(&path).expect("deleted"),
            _ => fs::remove_file(&path).expect("deleted"),
        }
    }

    // Many users have their own group, and a umask that lets it write.
    printed(run(&groups, TOKEN));
}

#[test]
fn trust_67_what_root_makes_in_another_users_data_is_that_users() {
    let program = ForEverybody::new();
    let data = program.dir_of(SOMEBODY, "data");
    let by_root = |arguments: &[&str], input: &str| printed(run_with(&data, arguments, input));
    let line = || format!("{{\"id\":\"{}\",\"name\":\"LikeAdded\"}}\n", new_id());
    let assert_theirs = |after: &str| {
        for path in all_below(&data) {
            let owner = fs::symlink_metadata(&path).expect("it is there").uid();
            assert_eq!(owner, SOMEBODY, "{} after {after}", path.display());
        }
    };

    // Once made from nothing, and once changed while nothing runs.
    by_root(&["import"], &line());
    assert_theirs("an import");
    by_root(&["token", "add", "phone"], "");
    for command in [&["status"][..], &["export"], &["verify"], &["token", "list"], &["set-aside", "list"]] {
        by_root(command, "");
    }
    by_root(&["backup", data.join("copy").to_str().expect("text")], "");
    assert_theirs("commands at rest");
    let server = Server::start(&data);
    let served_by = fs::metadata(format!("/proc/{}/task/{}", server.pid(), server.pid())).expect("the process").uid();
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("its status");
    assert!(status.contains("Uid:\t54321\t54321\t54321\t54321"), "run by {served_by}: {status}");
    assert!(status.contains("Groups:\t \n") || status.contains("Groups:\t\n"), "{status}");
    server.like_times(1);
    assert!(server.terminate().success());
    assert_theirs("a server that root started");

    // Once beside the user's running server.
    let mut command = program.run_by(SOMEBODY);
    command.arg("serve").args(["--listen", "127.0.0.1:0"]);
    let server = Server::spawn(command, &data);
    by_root(&["import"], &line());
    by_root(&["token", "add", "tablet"], "");
    by_root(&["token", "revoke", "phone"], "");
    by_root(&["pair", "desk"], "");
    for command in [&["status"][..], &["export"], &["verify"], &["token", "list"]] {
        by_root(command, "");
    }
    assert_eq!(server.count(), 3);
    assert_theirs("commands beside the server");

    // A directory of theirs that root joins to a hub is still theirs, with its token.
    let joined = program.dir_of(SOMEBODY, "joined");
    let link = by_root(&["pair", "laptop"], "");
    let output = run_with(&joined, &["join", link.trim()], "");
    assert!(output.status.success(), "{output:?}");
    for path in all_below(&joined) {
        assert_eq!(fs::symlink_metadata(&path).expect("it is there").uid(), SOMEBODY, "{}", path.display());
    }
    assert!(joined.join("upstream.token").exists());

    // A copy belongs to the user, too, so it can replace the data.
    let copies = program.dir_of(0, "copies");
    let copy = copies.join("of/today");
    by_root(&["backup", copy.to_str().expect("text")], "");
    for path in all_below(&copies) {
        assert_eq!(fs::metadata(&path).expect("it is there").uid(), SOMEBODY, "{}", path.display());
    }
    fs::set_permissions(&copies, Permissions::from_mode(0o700)).expect("root's alone");
    let output = run(&data, &["backup", copies.join("tomorrow").to_str().expect("text")]);
    assert_refused(&output, &["can't enter", "copies"]);
    assert!(!copies.join("tomorrow").exists());
}

#[test]
fn trust_67_root_makes_new_data_for_the_user_in_whose_directory_it_is() {
    let program = ForEverybody::new();
    let home = program.dir_of(SOMEBODY, "home");
    printed(run(&home.join("some/data"), TOKEN));
    for path in all_below(&home) {
        assert_eq!(fs::metadata(&path).expect("it is there").uid(), SOMEBODY, "{}", path.display());
    }
}

#[test]
fn trust_67_root_is_not_led_astray_by_the_owner_of_the_data() {
    let program = ForEverybody::new();
    let data = program.dir_of(SOMEBODY, "data");
    let precious = program.dir_of(0, "roots").join("precious");
    fs::write(&precious, "precious").expect("a file");
    for name in ["lock", "tokens.lock", "tokens.new"] {
        symlink(&precious, data.join(name)).expect("a link");
        for output in failures(&data, &[if name == "lock" { IMPORT } else { TOKEN }]) {
            assert_refused(&output, &["symbolic link", name]);
        }
        fs::remove_file(data.join(name)).expect("deleted");
    }
    // Through a directory, which only the user's rights can stop.
    fs::create_dir(data.join("copies")).expect("a directory");
    symlink(precious.parent().expect("a directory"), data.join("copies/of")).expect("a link");
    let output = run_with(&data, &["import"], &format!("{{\"id\":\"{}\",\"name\":\"LikeAdded\"}}\n", new_id()));
    printed(output);
    let output = run(&data, &["backup", data.join("copies/of/today").to_str().expect("text")]);
    assert_eq!(output.status.code(), Some(1), "{}", errors(&output));
    assert_eq!(fs::read_to_string(&precious).expect("a file"), "precious");
    assert_eq!(all_below(precious.parent().expect("a directory")), [precious]);
}

#[test]
fn trust_72_a_directory_that_can_only_be_read_is_told_from_one_in_use() {
    let program = ForEverybody::new();
    let data = program.dir_of(SOMEBODY, "data");
    let by_user = |arguments: &[&str]| program.output_by(SOMEBODY, &data, arguments);
    printed(by_user(IMPORT));
    fs::set_permissions(&data, Permissions::from_mode(0o500)).expect("its rights");
    for command in [SERVE, IMPORT] {
        assert_refused(&by_user(command), &["can only be read", "--data"]);
    }
    fs::set_permissions(&data, Permissions::from_mode(0o700)).expect("its rights");
    let mut command = program.run_by(SOMEBODY);
    command.args(SERVE);
    let server = Server::spawn(command, &data);
    fs::set_permissions(&data, Permissions::from_mode(0o500)).expect("its rights");
    assert_refused(&by_user(SERVE), &["in use", &server.url]);
    fs::set_permissions(&data, Permissions::from_mode(0o700)).expect("its rights");
}

#[test]
fn doctor_finds_files_of_another_user_and_changes_nothing() {
    let (place, data) = (ForEverybody::new(), data_dir());
    some_data(data.path());
    assert!(run(data.path(), &["doctor"]).status.success());
    let files = ["tokens.json", "stores/likes/eventlog.db"].map(|name| data.path().join(name));
    for file in &files {
        chown(file, Some(SOMEBODY), Some(SOMEBODY)).expect("given away");
    }
    let output = run(data.path(), &["doctor"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    let line = said.lines().find(|line| line.starts_with("PROBLEM  files")).unwrap_or_else(|| panic!("{said}"));
    for words in ["eventlog.db belongs to another user", "and so do 1 more", "chown -hR"] {
        assert!(line.contains(words), "{words}: {line}");
    }
    for file in &files {
        assert_eq!(fs::metadata(file).expect("the file").uid(), SOMEBODY);
    }
    // The whole directory is somebody else's.
    let theirs = place.dir_of(SOMEBODY, "theirs");
    fs::create_dir(theirs.join("stores")).expect("a directory");
    let output = place.output_by(SOMEBODY + 1, &theirs, &["doctor"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &errors(&output);
    assert!(output.status.code() == Some(1) && said.contains(&SOMEBODY.to_string()), "{said}");
}
