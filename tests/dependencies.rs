//! The program's dependencies are what `deny.toml` allows: their licenses, their sources, and crates that may occur once or not
//! at all.
//!
//! This doesn't use cargo-deny, whose build takes longer than all of these tests, and needs no network.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

fn file(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// The items of the list `name` in a section of `deny.toml`, one string each. Understands only the TOML that this file uses:
/// a list of strings or of tables, with an item per line or all on one line.
fn list(section: &str, name: &str) -> Vec<String> {
    let text = file("deny.toml");
    let (_, text) = text.split_once(&format!("[{section}]\n")).unwrap_or_else(|| panic!("no [{section}]"));
    let text = text.split("\n[").next().unwrap();
    let (_, text) = text.split_once(&format!("{name} = [")).unwrap_or_else(|| panic!("no {name} in [{section}]"));
    let one_line = text.split('\n').next().unwrap().trim().trim_end_matches(']');
    let items: Vec<_> = if one_line.is_empty() {
        text.lines()
            .skip(1)
            .take_while(|line| *line != "]")
            .map(str::trim)
            .filter(|line| !line.starts_with('#'))
            .collect()
    } else {
        one_line.split(',').collect()
    };
    assert!(!items.is_empty(), "{name} in [{section}] is empty");
    items.iter().map(|item| item.trim().trim_end_matches(',').to_owned()).collect()
}

/// The text between the quotes after `name`.
fn quoted<'a>(item: &'a str, name: &str) -> &'a str {
    let (_, rest) = item.split_once(name).unwrap_or_else(|| panic!("no {name} in {item}"));
    rest.split('"').nth(1).unwrap_or_else(|| panic!("nothing quoted behind {name} in {item}"))
}

/// The packages of Cargo.lock: name, version, source. Ours have no source.
fn locked() -> Vec<(String, String, Option<String>)> {
    let lock = file("Cargo.lock");
    let package = |text: &str| {
        let field =
            |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.replace('"', ""));
        let has_checksum = field("checksum = ").is_some();
        let (name, source) = (field("name = ").expect("a name"), field("source = "));
        assert!(source.is_none() || has_checksum, "{name} has no checksum in Cargo.lock");
        (name, field("version = ").expect("a version"), source)
    };
    lock.split("[[package]]\n").skip(1).map(package).collect()
}

#[test]
fn everything_comes_from_one_registry_or_is_ours() {
    let mut registries = BTreeSet::new();
    for (name, version, source) in locked() {
        match source {
            None => {
                let is_ours =
                    name == "likewise" || Path::new(env!("CARGO_MANIFEST_DIR")).join("vendor").join(&name).is_dir();
                assert!(is_ours, "{name} {version} is neither published nor ours");
            }
            Some(source) => {
                assert!(source.starts_with("registry+"), "{name} {version} is from {source}");
                registries.insert(source);
            }
        }
    }
    assert_eq!(registries.len(), 1, "{registries:?}");
}

#[test]
fn of_some_crates_there_is_none_and_of_some_there_is_one() {
    let mut versions = BTreeMap::<_, BTreeSet<_>>::new();
    for (name, version, _) in locked() {
        versions.entry(name).or_default().insert(version);
    }
    for item in list("bans", "deny") {
        let name = quoted(&item, "crate");
        let found = versions.get(name).cloned().unwrap_or_default();
        let most = usize::from(item.contains("deny-multiple-versions = true"));
        assert!(found.len() <= most, "deny.toml allows {most} of {name}, and there are {found:?}");
    }
}

#[test]
fn every_license_is_one_that_is_allowed() {
    let allowed: BTreeSet<_> = list("licenses", "allow").iter().map(|name| quoted(name, "").to_owned()).collect();
    let exceptions = list("licenses", "exceptions");
    let exceptions: BTreeSet<_> =
        exceptions.iter().map(|item| (quoted(item, "crate").to_owned(), quoted(item, "allow").to_owned())).collect();
    for (name, license) in licenses() {
        let mut may =
            |license: &str| allowed.contains(license) || exceptions.contains(&(name.clone(), license.to_owned()));
        let is_fine = evaluate(&license, &mut may);
        assert!(is_fine, "{name} is under {license:?}, which deny.toml doesn't allow");
    }
    let locked: BTreeSet<_> = locked().into_iter().map(|(name, ..)| name).collect();
    let unused: Vec<_> = exceptions.iter().filter(|(name, _)| !locked.contains(name)).collect();
    assert!(unused.is_empty(), "these exceptions of deny.toml are no longer needed: {unused:?}");
}

/// The license of each package that is built on this machine, as cargo knows it without asking the network.
fn licenses() -> Vec<(String, String)> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let rustc = Command::new("rustc").arg("-vV").output().expect("rustc runs");
    let about = String::from_utf8(rustc.stdout).unwrap();
    let host = about.lines().find_map(|line| line.strip_prefix("host: ")).expect("the host's name");
    let arguments = ["metadata", "--locked", "--offline", "--format-version", "1", "--filter-platform", host];
    let output =
        Command::new(cargo).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().expect("cargo runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "run `cargo fetch --locked` first, for cargo has not all packages: {errors}");
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let licenses: Vec<_> = packages.iter().map(|package| (text(&package["name"]), text(&package["license"]))).collect();
    assert!(licenses.len() > 100, "cargo names {} packages only", licenses.len());
    licenses
}

/// Whether an SPDX expression can be satisfied by licenses that `may` be used. `AND` binds closer than `OR`, which is also
/// written as a slash.
fn evaluate(expression: &str, may: &mut dyn FnMut(&str) -> bool) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<_> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    let holds = any_of(&mut rest, may);
    holds && rest.is_empty()
}

fn any_of(words: &mut &[&str], may: &mut dyn FnMut(&str) -> bool) -> bool {
    let mut holds = all_of(words, may);
    while let ["OR", rest @ ..] = *words {
        *words = rest;
        holds |= all_of(words, may);
    }
    holds
}

fn all_of(words: &mut &[&str], may: &mut dyn FnMut(&str) -> bool) -> bool {
    let mut holds = one_of(words, may);
    while let ["AND", rest @ ..] = *words {
        *words = rest;
        holds &= one_of(words, may);
    }
    holds
}

fn one_of(words: &mut &[&str], may: &mut dyn FnMut(&str) -> bool) -> bool {
    match *words {
        ["(", rest @ ..] => {
            *words = rest;
            let holds = any_of(words, may);
            *words = words.strip_prefix(&[")"]).unwrap_or(&[]);
            holds
        }
        [license, "WITH", exception, rest @ ..] => {
            *words = rest;
            may(&format!("{license} WITH {exception}"))
        }
        [license, rest @ ..] => {
            *words = rest;
            may(license)
        }
        [] => false,
    }
}

#[test]
fn license_expressions_are_read_as_they_are_meant() {
    let holds = |expression: &str| evaluate(expression, &mut |license| matches!(license, "MIT" | "ISC"));
    for right in ["MIT", "X OR MIT", "X/MIT", "MIT AND ISC", "(X OR MIT) AND ISC", "X AND Y OR MIT", "MIT OR X WITH y"]
    {
        assert!(holds(right), "{right}");
    }
    for wrong in ["", "X", "MIT AND X", "MIT AND (X OR Y)", "MIT WITH y", "MIT ISC", "X AND MIT OR Y"] {
        assert!(!holds(wrong), "{wrong}");
    }
}

#[test]
fn the_engine_and_the_decisions_of_sync_stand_alone() {
    let arguments = ["tree", "--locked", "--offline", "--no-default-features", "--edges", "normal", "--prefix", "none"];
    let tree = Command::new(env!("CARGO")).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    let tree = tree.expect("cargo starts");
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let tree = String::from_utf8(tree.stdout).expect("text");
    let names: BTreeSet<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(names.contains("rusqlite"), "{names:?}");
    for name in ["axum", "clap", "hyper", "mio", "reqwest", "ring", "rustls", "tracing-subscriber"] {
        assert!(!names.contains(name), "{name} is only for the floors above the engine: {names:?}");
    }
    assert!(names.len() <= MOST_ALONE, "{} packages: {names:?}", names.len());
}

/// How many packages the engine may consist of, counting itself and those that only build it. More would have to be worth it
/// to people who want only the engine.
const MOST_ALONE: usize = 54;

#[test]
fn the_package_has_what_it_is_built_of_and_nothing_that_only_a_checkout_can_run() {
    let list = Command::new(env!("CARGO"))
        .args(["package", "--list", "--allow-dirty", "--locked", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo starts");
    assert!(list.status.success(), "{}", String::from_utf8_lossy(&list.stderr));
    let list = String::from_utf8(list.stdout).expect("text");
    for name in
        ["LICENSE", "README.md", "docs/wire.md", "src/main.rs", "src/likes/likewise.css", "templates/error.html"]
    {
        assert!(list.lines().any(|line| line == name), "{name} is missing: {list}");
    }
    let stray =
        list.lines().find(|line| ["tests/", "benches/", "vendor/", ".ci/"].iter().any(|dir| line.starts_with(dir)));
    assert_eq!(stray, None);
}
