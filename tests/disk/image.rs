//! What a power cut may leave on a disk, made from a trace.
//!
//! The rules are those of POSIX, not those of one file system:
//!
//! - What was written before the start of a successful sync is on the disk. Each later sector of 512 bytes holds what it held
//!   then, or what any later write made of it, and never anything else.
//! - A file takes its sizes in order; some of the last may be missing. What was written after the point where a file was cut is
//!   there only if the cut is.
//! - A name is on the disk once its directory was synced. Any later change of a name may be missing. Each is there wholly or not
//!   at all.
//! - A failed sync has written nothing. On a disk that *drops*, the sectors that it should have written stay as they are until
//!   they are written again, though reads show the new contents and later syncs succeed.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::trace::{Record, What};
use likewise::testing::Rng;

/// The unit that a disk writes wholly or not at all.
const SECTOR: usize = 512;

/// The disk at some point of the trace: what is safe on it, and what isn't yet.
pub(crate) struct Disk {
    root: usize,
    files: HashMap<usize, File>,
    dirs: HashMap<usize, Dir>,
    /// The file or directory that an inode currently is.
    inodes: HashMap<u64, usize>,
    /// When each unfinished sync began.
    syncs: HashMap<u64, usize>,
    /// How many records it has seen.
    now: usize,
    made: usize,
}

#[derive(Default)]
struct File {
    /// What survives every power cut.
    safe: Vec<u8>,
    /// What the program reads.
    seen: Vec<u8>,
    later: Vec<Change>,
}

/// A change of a file that isn't safe yet.
struct Change {
    when: usize,
    /// The size that the file had afterwards.
    size: usize,
    /// What was written, in whole sectors, and where. Nothing if only the size changed.
    sectors: Option<(usize, Vec<u8>)>,
    /// Whether the disk dropped it.
    is_dropped: bool,
    /// Whether it cut the file.
    cuts: bool,
}

#[derive(Default)]
struct Dir {
    safe: BTreeMap<String, usize>,
    seen: BTreeMap<String, usize>,
    later: Vec<(usize, Naming)>,
}

#[derive(Clone)]
enum Naming {
    Add { name: String, object: usize },
    Remove { name: String, object: usize },
    Move { from: usize, name: String, as_name: String, object: usize },
}

impl Disk {
    /// An untouched disk, for a trace that begins like `records`.
    pub(crate) fn before(records: &[Record]) -> Self {
        let Some(Record { what: What::Root { inode }, .. }) = records.first() else {
            panic!("the trace doesn't say which directory it is about");
        };
        let mut disk = Self {
            root: 0,
            files: HashMap::new(),
            dirs: HashMap::new(),
            inodes: HashMap::new(),
            syncs: HashMap::new(),
            now: 0,
            made: 0,
        };
        disk.root = disk.make(*inode, true);
        disk
    }

    fn make(&mut self, inode: u64, is_dir: bool) -> usize {
        self.made += 1;
        self.inodes.insert(inode, self.made);
        if is_dir {
            self.dirs.insert(self.made, Dir::default());
        } else {
            self.files.insert(self.made, File::default());
        }
        self.made
    }

    /// Whether this inode belongs to something that has a name.
    fn named(&self, inode: u64) -> Option<usize> {
        let object = *self.inodes.get(&inode)?;
        self.dirs.values().any(|dir| dir.seen.values().any(|named| *named == object)).then_some(object)
    }

    fn dir(&mut self, inode: u64) -> (usize, &mut Dir) {
        let object = *self.inodes.get(&inode).expect("a directory that the trace knows");
        (object, self.dirs.get_mut(&object).expect("a directory"))
    }

    fn file(&mut self, inode: u64) -> &mut File {
        let object = self.inodes.get(&inode).expect("a file that the trace knows");
        self.files.get_mut(object).expect("a file")
    }

    /// Applies the next record.
    pub(crate) fn follow(&mut self, record: &Record) {
        let now = self.now;
        self.now += 1;
        match &record.what {
            What::Root { .. } => {}
            What::Write { inode, at, data } => self.file(*inode).write(now, *at, data),
            What::Size { inode, size } => self.file(*inode).resize(now, *size),
            What::Add { inode, parent, name, is_dir } => {
                let object = self.named(*inode).unwrap_or_else(|| self.make(*inode, *is_dir));
                let (_, dir) = self.dir(*parent);
                dir.seen.insert(name.clone(), object);
                dir.later.push((now, Naming::Add { name: name.clone(), object }));
            }
            What::Remove { parent, name } => {
                let (_, dir) = self.dir(*parent);
                let object = dir.seen.remove(name).expect("a name that the trace knows");
                dir.later.push((now, Naming::Remove { name: name.clone(), object }));
            }
            What::Rename { parent, name, to, as_name } => {
                let (from, dir) = self.dir(*parent);
                let object = dir.seen.remove(name).expect("a name that the trace knows");
                let (_, dir) = self.dir(*to);
                dir.seen.insert(as_name.clone(), object);
                dir.later.push((now, Naming::Move { from, name: name.clone(), as_name: as_name.clone(), object }));
            }
            What::SyncBegin { number } => drop(self.syncs.insert(*number, now)),
            What::SyncEnd { inode, number, errno, drops } => {
                let began = self.syncs.remove(number).expect("the beginning of a sync");
                let Some(object) = self.inodes.get(inode).copied() else { return };
                match (self.files.get_mut(&object), *errno, *drops) {
                    (Some(file), 0, _) => file.sync(began),
                    (Some(file), _, true) => file.forget(began),
                    (None, 0, _) => self.sync_dir(object, began),
                    _ => {}
                }
            }
        }
    }

    fn sync_dir(&mut self, object: usize, began: usize) {
        let dir = self.dirs.get_mut(&object).expect("a directory");
        let done = dir.later.iter().take_while(|(when, _)| *when < began).count();
        let namings: Vec<_> = dir.later.drain(..done).collect();
        let mut names: HashMap<usize, _> = self.dirs.iter_mut().map(|(object, dir)| (*object, &mut dir.safe)).collect();
        namings.iter().for_each(|(_, naming)| naming.apply(object, &mut names));
    }

    /// Writes what a power cut now would leave, as `random` decides, into the new directory `to`.
    pub(crate) fn image(&self, to: &Path, random: &mut Rng) {
        let luck = Luck::choose(random, self.now);
        let mut all: Vec<(usize, usize, &Naming)> = self
            .dirs
            .iter()
            .flat_map(|(object, dir)| dir.later.iter().map(move |(when, naming)| (*when, *object, naming)))
            .collect();
        all.sort_by_key(|(when, ..)| *when);
        let mut names: HashMap<usize, BTreeMap<String, usize>> =
            self.dirs.iter().map(|(object, dir)| (*object, dir.safe.clone())).collect();
        let mut borrowed: HashMap<usize, _> = names.iter_mut().map(|(object, names)| (*object, names)).collect();
        for (when, object, naming) in all {
            if luck.names.has(when, random) {
                naming.apply(object, &mut borrowed);
            }
        }
        self.put(self.root, to, &names, luck.data, random);
    }

    fn put(
        &self,
        object: usize,
        to: &Path,
        names: &HashMap<usize, BTreeMap<String, usize>>,
        luck: Option<Fate>,
        random: &mut Rng,
    ) {
        if let Some(file) = self.files.get(&object) {
            let luck = luck.unwrap_or_else(|| Fate::choose(random, self.now));
            fs::write(to, file.image(luck, random)).expect("a file of the image");
            fs::set_permissions(to, fs::Permissions::from_mode(0o600)).expect("its permissions");
            return;
        }
        fs::create_dir(to).expect("a directory of the image");
        fs::set_permissions(to, fs::Permissions::from_mode(0o700)).expect("its permissions");
        for (name, child) in &names[&object] {
            self.put(*child, &to.join(name), names, luck, random);
        }
    }
}

impl Naming {
    fn apply(&self, dir: usize, names: &mut HashMap<usize, &mut BTreeMap<String, usize>>) {
        let mut take = |dir: usize, name: &String, object: usize| {
            if let Some(names) = names.get_mut(&dir)
                && names.get(name) == Some(&object)
            {
                names.remove(name);
            }
        };
        let (name, object) = match self {
            Self::Remove { name, object } => return take(dir, name, *object),
            Self::Move { from, name, as_name, object } => {
                take(*from, name, *object);
                (as_name, object)
            }
            Self::Add { name, object } => (name, object),
        };
        names.get_mut(&dir).expect("a directory").insert(name.clone(), *object);
    }
}

impl File {
    fn write(&mut self, when: usize, at: usize, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        let end = at + data.len();
        if self.seen.len() < end {
            self.seen.resize(end, 0);
        }
        self.seen[at..end].copy_from_slice(data);
        let first = at - at % SECTOR;
        let mut sectors = self.seen[first..self.seen.len().min(end.next_multiple_of(SECTOR))].to_vec();
        sectors.resize(sectors.len().next_multiple_of(SECTOR), 0);
        let size = self.seen.len();
        self.later.push(Change { when, size, sectors: Some((first, sectors)), is_dropped: false, cuts: false });
    }

    fn resize(&mut self, when: usize, size: usize) {
        let cuts = size < self.seen.len();
        self.seen.resize(size, 0);
        self.later.push(Change { when, size, sectors: None, is_dropped: false, cuts });
    }

    /// What was written before the record `began` is safe.
    fn sync(&mut self, began: usize) {
        let done = self.later.iter().take_while(|change| change.when < began).count();
        for change in self.later.drain(..done) {
            change.apply(&mut self.safe, |_| true);
            self.safe.resize(change.size, 0);
        }
    }

    /// What was written before the record `began` will never be written.
    fn forget(&mut self, began: usize) {
        self.later.iter_mut().filter(|change| change.when < began).for_each(|change| change.is_dropped = true);
    }

    fn image(&self, luck: Fate, random: &mut Rng) -> Vec<u8> {
        let mut bytes = self.safe.clone();
        // How many of the sizes it takes.
        let sizes = match luck {
            Fate::Lost => 0,
            Fate::Kept => self.later.len(),
            Fate::Until(end) => self.later.iter().take_while(|change| change.when < end).count(),
            Fate::Some(_) | Fate::Torn(_) => random.below(self.later.len() + 1),
        };
        let size = sizes.checked_sub(1).map_or(self.safe.len(), |last| self.later[last].size);
        for (n, change) in self.later.iter().enumerate() {
            if change.cuts && n >= sizes {
                // Later writes went to places that the file doesn't have.
                break;
            }
            let is_whole = match luck {
                Fate::Lost => false,
                Fate::Kept => true,
                Fate::Until(end) => change.when < end,
                Fate::Some(percent) => random.chance(percent),
                Fate::Torn(_) => true,
            };
            if change.cuts || is_whole {
                change.apply(&mut bytes, |_| match luck {
                    Fate::Torn(percent) => random.chance(percent),
                    _ => true,
                });
            }
        }
        bytes.resize(size, 0);
        bytes
    }
}

impl Change {
    /// Writes those of its sectors that `may` be written.
    fn apply(&self, bytes: &mut Vec<u8>, mut may: impl FnMut(usize) -> bool) {
        if self.cuts {
            bytes.truncate(self.size);
        }
        let Some((first, sectors)) = self.sectors.as_ref().filter(|_| !self.is_dropped) else { return };
        for (n, sector) in sectors.chunks(SECTOR).enumerate() {
            let at = first + n * SECTOR;
            if !may(n) {
                continue;
            }
            if bytes.len() < at + SECTOR {
                bytes.resize(at + SECTOR, 0);
            }
            bytes[at..at + SECTOR].copy_from_slice(sector);
        }
    }
}

/// What happens to everything that isn't safe.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Lost,
    Kept,
    /// Everything before this record is there.
    Until(usize),
    /// Each change is there with this chance, in percent.
    Some(u64),
    /// Each sector is there with this chance, in percent.
    Torn(u64),
}

impl Fate {
    fn choose(random: &mut Rng, now: usize) -> Self {
        match random.below(8) {
            0 | 1 => Self::Lost,
            2 => Self::Kept,
            3 => Self::Until(now.saturating_sub(random.below(60))),
            4 => Self::Some(50),
            5 => Self::Some(90),
            6 => Self::Torn(50),
            _ => Self::Torn(95),
        }
    }

    fn has(self, when: usize, random: &mut Rng) -> bool {
        match self {
            Self::Lost => false,
            Self::Kept => true,
            Self::Until(end) => when < end,
            Self::Some(percent) | Self::Torn(percent) => random.chance(percent),
        }
    }
}

/// What happens to contents and to names.
struct Luck {
    /// The fate of all contents. `None` if each file has its own.
    data: Option<Fate>,
    names: Fate,
}

impl Luck {
    fn choose(random: &mut Rng, now: usize) -> Self {
        let data = random.chance(50).then(|| Fate::choose(random, now));
        Self { data, names: Fate::choose(random, now) }
    }
}
