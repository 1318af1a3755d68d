//! The recorder's trace: each change of a file, directory or name, and each sync, in one order.

use std::path::Path;

/// The size of a record's head, which comes before its names and data: `struct head` in `shim.c`.
const HEAD: usize = 56;

/// The mark at the start of each record.
const MAGIC: u32 = 0x4b53_4944;

/// The kind of the record with which a test starts a trace.
const ROOT: u32 = 9;

/// One thing that a process did.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    /// Where its record ends in the trace. What was acknowledged when the trace had this length came after it.
    pub(crate) end: u64,
    pub(crate) what: What,
}

/// Inodes may be used again: what an [`Add`](What::Add) names is new, unless it has a name already.
#[derive(Debug, Clone)]
pub(crate) enum What {
    /// The directory that the trace is about. It comes first.
    Root {
        inode: u64,
    },
    Write {
        inode: u64,
        at: usize,
        data: Vec<u8>,
    },
    Size {
        inode: u64,
        size: usize,
    },
    Add {
        inode: u64,
        parent: u64,
        name: String,
        is_dir: bool,
    },
    Remove {
        parent: u64,
        name: String,
    },
    Rename {
        parent: u64,
        name: String,
        to: u64,
        as_name: String,
    },
    SyncBegin {
        number: u64,
    },
    /// A failed sync. If the disk `drops`, it forgets what the sync should have written.
    SyncEnd {
        inode: u64,
        number: u64,
        errno: i32,
        drops: bool,
    },
}

/// Reads a trace. A call that the recorder can't express makes the trace worthless, so it is an error.
pub(crate) fn read(path: &Path) -> Vec<Record> {
    let bytes = std::fs::read(path).expect("the trace");
    let mut records = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let head = &bytes[at..at + HEAD];
        let small = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes"));
        let large = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("eight bytes"));
        let size = |at: usize| usize::try_from(large(at)).expect("a size");
        assert_eq!(small(0), MAGIC, "the trace is damaged at {at}");
        let (kind, inode, a, b) = (small(4), large(8), large(16), large(24));
        let errno = i32::from_le_bytes(head[32..36].try_into().expect("four bytes"));
        let names = [small(40) as usize, small(44) as usize];
        let start = at + HEAD;
        let name = |from: usize, length: usize| String::from_utf8_lossy(&bytes[from..from + length]).into_owned();
        let (first, second) = (name(start, names[0]), name(start + names[0], names[1]));
        let data = start + names[0] + names[1];
        at = data + size(48);
        let what = match kind {
            1 => What::Write { inode, at: size(16), data: bytes[data..at].to_vec() },
            2 => What::Size { inode, size: size(16) },
            3 => What::Add { inode, parent: a, name: first, is_dir: b != 0 },
            4 => What::Remove { parent: a, name: first },
            5 => What::Rename { parent: a, name: first, to: b, as_name: second },
            6 => What::SyncBegin { number: a },
            7 => What::SyncEnd { inode, number: a, errno, drops: b != 0 },
            ROOT => What::Root { inode },
            8 => panic!("the program called {first} on {second:?}, which the recorder can't follow"),
            other => panic!("the trace has a record of kind {other}"),
        };
        records.push(Record { end: at as u64, what });
    }
    records
}

/// The first record of a trace about the directory with this inode.
pub(crate) fn beginning(inode: u64) -> Vec<u8> {
    let mut head = vec![0; HEAD];
    head[..4].copy_from_slice(&MAGIC.to_le_bytes());
    head[4..8].copy_from_slice(&ROOT.to_le_bytes());
    head[8..16].copy_from_slice(&inode.to_le_bytes());
    head
}
