//! Syncs that fail for one thread: the kernel refuses them, as it does when a disk couldn't write. What was written stays in
//! the page cache, so only the sync tells that it may not be on the disk.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::thread;

use likewise::testing::Syncs;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// Does something on a thread whose syncs fail. A filter can't be removed from its thread, so this uses a new thread.
pub(crate) fn while_syncs_fail<T: Send>(which: &Syncs, act: impl FnOnce() -> T + Send) -> T {
    let filter = filter(which);
    let run = || {
        seccompiler::apply_filter(&filter).unwrap_or_else(|why| {
            panic!("this test needs a Linux that lets a thread filter its own system calls (seccomp): {why}")
        });
        act()
    };
    match thread::scope(|scope| scope.spawn(run).join()) {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

fn filter(which: &Syncs) -> BpfProgram {
    let is = |op: &SeccompCmpOp, file: u64| {
        SeccompCondition::new(0, SeccompCmpArgLen::Dword, op.clone(), file)
            .expect("BUG: the first argument is a number")
    };
    let rule = |conditions: Vec<_>| SeccompRule::new(conditions).expect("BUG: there are conditions");
    // A sync is refused if all conditions of any one rule hold.
    let rules: Vec<SeccompRule> = match which {
        Syncs::All => Vec::new(),
        Syncs::Of(path) => descriptors(path).into_iter().map(|file| rule(vec![is(&SeccompCmpOp::Eq, file)])).collect(),
        Syncs::AllBut(path) => {
            vec![rule(descriptors(path).into_iter().map(|file| is(&SeccompCmpOp::Ne, file)).collect())]
        }
    };
    let calls = BTreeMap::from([(libc::SYS_fsync, rules.clone()), (libc::SYS_fdatasync, rules)]);
    let error = SeccompAction::Errno(libc::EIO.unsigned_abs());
    let machine = std::env::consts::ARCH.try_into().expect("a processor that seccompiler knows");
    let filter = SeccompFilter::new(calls, SeccompAction::Allow, error, machine).expect("BUG: a filter that is right");
    filter.try_into().expect("BUG: a filter that is short")
}

/// The descriptors under which this process has a file open.
fn descriptors(path: &Path) -> Vec<u64> {
    let open = fs::read_dir("/proc/self/fd").expect("the open files of this process");
    // Other threads close files in the meantime.
    let open = open.flatten().filter(|entry| fs::read_link(entry.path()).is_ok_and(|target| target == path));
    let numbers: Vec<u64> = open.map(|entry| entry.file_name().to_string_lossy().parse().expect("a number")).collect();
    assert!(!numbers.is_empty(), "{} is not open", path.display());
    numbers
}

#[test]
fn syncs_fail_for_one_thread_alone() {
    let scratch = tempfile::tempdir().expect("a directory");
    let (one, other) = (scratch.path().join("one"), scratch.path().join("other"));
    let files = [fs::File::create(&one).expect("a file"), fs::File::create(&other).expect("a file")];
    let fail = || files.each_ref().map(|file| file.sync_data().is_err() && file.sync_all().is_err());
    assert_eq!(while_syncs_fail(&Syncs::All, fail), [true, true]);
    assert_eq!(while_syncs_fail(&Syncs::Of(one.clone()), fail), [true, false]);
    assert_eq!(while_syncs_fail(&Syncs::AllBut(one), fail), [false, true]);
    assert_eq!(fail(), [false, false]);
}
