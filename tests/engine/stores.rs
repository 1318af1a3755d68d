//! Many stores in one directory: how many there may be, how many may be in use, and how much may wait for each.

use std::sync::Mutex;
use std::sync::mpsc;

use likewise::engine::{
    Error, Health, NoEffect, Query, Schema, Seq, Store, StoreLimits, Stores, committed_state, export,
};

use crate::support::*;

fn count() -> Query<i64> {
    Query::first("SELECT count FROM likes")
}

fn names(stores: &Stores) -> Vec<String> {
    stores.list().unwrap().iter().map(ToString::to_string).collect()
}

/// A schema whose likes say that they have started, and then wait for the gate to be dropped.
fn gated() -> (Schema, mpsc::Receiver<()>, mpsc::Sender<()>) {
    let (entered, is_busy) = mpsc::channel();
    let (gate, waits) = mpsc::channel();
    let waits = Mutex::new(waits);
    let schema = Schema::new(TABLES)
        .on(move |_: Liked, db| {
            // The rehearsal's events are of 1970. They pass through.
            if db.millis() > 0 {
                let _ = entered.send(());
                let _ = waits.lock().unwrap().recv();
            }
            db.execute("UPDATE likes SET count = count + 1", ())
        })
        .on(|event: Appended, db| db.execute("UPDATE note SET text = text || ?1", [event.text]));
    (schema, is_busy, gate)
}

async fn close(stores: &Stores) {
    let stores = stores.clone();
    tokio::task::spawn_blocking(move || stores.close()).await.unwrap();
}

/// How many events the store has on disk. A store without events must have no files.
fn events_on_disk(store: &Store) -> u64 {
    if !store.files().exist() {
        assert!(!store.files().dir().exists());
        return 0;
    }
    export(store.files(), &mut std::io::sink()).unwrap().events
}

#[tokio::test]
async fn the_store_beyond_the_limit_is_refused_its_first_event_and_gets_no_files() {
    let limits = StoreLimits { stores: 2, ..StoreLimits::default() };
    let mut shelf = Shelf::new(bank(), limits);
    for name in ["ann", "bob"] {
        shelf.store(name).commit_envelope(like(1)).await.unwrap();
    }
    for round in 1..=2 {
        let next = shelf.store("cyd");
        assert_eq!(next.commit_envelope(like(2)).await, Err(Error::TooManyStores(2)));
        assert_eq!(next.add(vec![(like(3), device("phone"))]).await, Err(Error::TooManyStores(2)));
        assert_eq!(next.healthy().await, Health::Absent);
        assert_eq!(next.read(count()).await, Ok(0), "it can be looked at like any other");
        assert_eq!(events_on_disk(&next), 0);
        assert_eq!(names(&shelf.stores), ["ann", "bob"]);
        shelf.store("ann").commit_envelope(like(10 + round)).await.unwrap();
        assert_eq!(shelf.store("ann").read(count()).await, Ok(1 + round as i64), "those that are there go on");
        // Reopened stores count as well.
        close(&shelf.stores).await;
        shelf.stores = Stores::open(&shelf.dir(), setup(bank()), limits).unwrap();
    }
}

#[tokio::test]
async fn the_state_waits_while_commits_follow_each_other_and_no_longer() {
    let (schema, is_busy, gate) = gated();
    let shelf = Shelf::new(schema, StoreLimits::default());
    let store = shelf.store("ann");
    let state = || committed_state(store.files()).unwrap().0.seq;
    let mut first = Box::pin(store.commit_envelope(like(1)));
    assert!(at_once(first.as_mut()).is_none());
    is_busy.recv().unwrap();
    let mut second = Box::pin(store.commit_envelope(like(2)));
    assert!(at_once(second.as_mut()).is_none());
    gate.send(()).unwrap();
    first.await.unwrap();
    is_busy.recv().unwrap();
    assert_eq!(state(), Seq::START, "the eventlog has it");
    drop(gate);
    second.await.unwrap();
    assert_eq!(state(), Seq(2));
    assert_eq!(store.healthy().await.standing().unwrap().cursor, Seq(2));
}

#[tokio::test]
async fn of_many_that_want_to_be_the_last_store_one_is() {
    let shelf = Shelf::new(bank(), StoreLimits { stores: 3, ..StoreLimits::default() });
    let stores: Vec<_> = (0..12).map(|n| shelf.store(&format!("store-{n}"))).collect();
    let mut commits: Vec<_> = stores.iter().map(|store| Box::pin(store.commit_envelope(like(1)))).collect();
    // All are on their way before this waits for the first.
    let answers: Vec<_> = commits.iter_mut().map(|commit| at_once(commit.as_mut())).collect();
    let mut stored = 0;
    for ((commit, answer), store) in commits.iter_mut().zip(answers).zip(&stores) {
        let receipt = match answer {
            Some(receipt) => receipt,
            None => commit.await,
        };
        match receipt {
            Ok(_) => stored += 1,
            Err(error) => {
                assert_eq!(error, Error::TooManyStores(3));
                assert_eq!(events_on_disk(store), 0);
            }
        }
    }
    assert_eq!(stored, 3);
    assert_eq!(names(&shelf.stores).len(), 3);
}

#[tokio::test]
async fn while_as_many_stores_are_in_use_as_may_be_the_next_is_told_so() {
    let shelf = Shelf::new(bank(), StoreLimits { open: 2, ..StoreLimits::default() });
    let next = || shelf.stores.get(&"cyd".parse().unwrap());
    next().unwrap().commit_envelope(like(0)).await.unwrap();
    let ann = shelf.store("ann");
    ann.commit_envelope(like(1)).await.unwrap();
    shelf.store("bob").commit_envelope(like(2)).await.unwrap();
    let mut watched = shelf.store("bob").watch(count());
    assert_eq!(watched.next().await, Ok(1));
    for round in 0..2 {
        assert_eq!(next().unwrap_err(), Error::TooManyOpen, "a handle and a watch are uses");
        assert_eq!(shelf.store("dan").read(count()).await, Ok(0), "to look at one without events takes no place");
        assert_eq!(shelf.store("dan").commit_envelope(like(3)).await, Err(Error::TooManyOpen));
        shelf.store("ann").commit_envelope(like(10 + round)).await.unwrap();
        shelf.store("bob").commit_envelope(like(20)).await.unwrap();
    }
    assert_eq!(at_once(watched.next()), Some(Ok(2)), "those in use go on");

    drop(watched);
    let cyd = next().unwrap();
    cyd.commit_envelope(like(4)).await.unwrap();
    assert_eq!(shelf.stores.get(&"bob".parse().unwrap()).unwrap_err(), Error::TooManyOpen);
    assert_eq!(ann.read(count()).await, Ok(3), "one in use made no room");
    drop(cyd);
    assert_eq!(shelf.store("bob").read(count()).await, Ok(2));
}

#[tokio::test]
async fn a_store_that_was_let_go_of_has_its_events_when_it_is_opened_again() {
    let shelf = Shelf::new(bank(), StoreLimits { open: 1, ..StoreLimits::default() });
    for round in 1..=20 {
        for name in ["ann", "bob"] {
            // With room for one store, each is closed to make room for the other.
            let store = shelf.store(name);
            store.commit_envelope(like(2 * round)).await.unwrap();
            assert_eq!(store.read(count()).await, Ok(2 * round as i64 - 1), "{name}");
            // The store has the event even if the caller doesn't wait for the answer.
            drop(at_once(store.commit_envelope(like(2 * round + 1))));
        }
    }
    for name in ["ann", "bob"] {
        assert_eq!(shelf.store(name).read(count()).await, Ok(40), "{name}");
    }
}

#[tokio::test]
async fn a_store_is_opened_again_only_when_it_has_finished_what_it_was_given() {
    let (schema, is_busy, gate) = gated();
    let shelf = Shelf::new(schema, StoreLimits { open: 2, ..StoreLimits::default() });
    shelf.store("bob").commit_envelope(append(0, "b")).await.unwrap();
    let zoe = shelf.store("zoe");
    zoe.commit_envelope(append(100, "z")).await.unwrap();
    let ann = shelf.store("ann");
    ann.commit_envelope(append(1, "a")).await.unwrap();
    assert_eq!(at_once(ann.commit_envelope(like(2))), None);
    is_busy.recv().unwrap();
    drop(ann);
    drop(shelf.store("bob"));
    let ann = shelf.store("ann");
    for n in 3..20 {
        // Gives its new thread time for what it might do too early.
        zoe.commit_envelope(append(n, "z")).await.unwrap();
    }
    assert_eq!(at_once(ann.healthy()), None);
    drop(gate);
    assert_eq!(ann.read(count()).await, Ok(1));
    ann.commit_envelope(like(20)).await.unwrap();
    assert_eq!(ann.read(count()).await, Ok(2));
    assert_eq!(events_on_disk(&ann), 3);
}

#[tokio::test]
async fn looking_at_a_store_that_does_not_exist_creates_nothing() {
    let shelf = Shelf::new(bank(), StoreLimits::default());
    let store = shelf.store("likes");
    let mut watch = store.watch(count());
    assert_eq!(watch.next().await, Ok(0));
    assert_eq!(store.read(Query::<String>::first("SELECT text FROM note")).await, Ok(String::new()));
    assert_eq!(store.healthy().await, Health::Absent);
    store.empty_state().unwrap();
    assert!(names(&shelf.stores).is_empty());
    assert!(!shelf.dir().exists(), "not even the directory of the stores");

    store.commit_envelope(like(1)).await.unwrap();
    assert_eq!(at_once(watch.next()), Some(Ok(1)), "a watcher from before the first event is told of it");
    assert_eq!(events_on_disk(&store), 1);
    assert_eq!(names(&shelf.stores), ["likes"]);
}

#[tokio::test]
async fn trust_64_stores_without_events_cost_no_place_and_are_live_when_they_get_one() {
    let shelf = Shelf::new(bank(), StoreLimits { open: 2, ..StoreLimits::default() });
    let names: Vec<_> = (0..1_000).map(|n| format!("store-{n}")).collect();
    let mut watches: Vec<_> = names.iter().map(|name| shelf.store(name).watch(count())).collect();
    for watch in &mut watches {
        assert_eq!(at_once(watch.next()), Some(Ok(0)), "it is answered without a thread");
    }
    for (name, watch) in names.iter().zip(&mut watches).take(2) {
        assert_eq!(shelf.store(name).healthy().await, Health::Absent);
        shelf.store(name).commit_envelope(like(1)).await.unwrap();
        assert_eq!(at_once(watch.next()), Some(Ok(1)), "a watcher from before the first event is told of it");
        assert!(matches!(shelf.store(name).healthy().await, Health::Open(_)));
    }
    assert_eq!(shelf.store(&names[2]).commit_envelope(like(1)).await, Err(Error::TooManyOpen));
    drop(watches);
    shelf.store(&names[2]).commit_envelope(like(1)).await.unwrap();
    assert_eq!(shelf.store(&names[2]).read(count()).await, Ok(1));
}

/// A watcher that starts while the first event is being stored sees that event. It isn't left with the empty store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trust_64_a_look_never_hides_the_first_event() {
    let shelf = Shelf::new(bank(), StoreLimits::default());
    for round in 0..200 {
        let (looking, making) = (shelf.store(&format!("store-{round}")), shelf.store(&format!("store-{round}")));
        let looking = tokio::spawn(async move {
            let mut watches: Vec<_> = (0..20).map(|_| looking.watch(count())).collect();
            for watch in &mut watches {
                while watch.next().await.unwrap() != 1 {}
            }
        });
        making.commit_envelope(like(1)).await.unwrap();
        tokio::time::timeout(std::time::Duration::from_secs(180), looking).await.expect("they see it").unwrap();
    }
}

#[tokio::test]
async fn closed_stores_have_what_they_took_and_say_that_they_are_closed() {
    let shelf = Shelf::new(bank(), StoreLimits::default());
    let store = shelf.store("likes");
    let absent = shelf.store("absent");
    let mut empty = absent.watch(count());
    assert_eq!(empty.next().await, Ok(0));
    let mut watch = store.watch(count());
    assert_eq!(watch.next().await, Ok(0));
    let mut commits: Vec<_> = (0..100).map(|n| Box::pin(store.commit_envelope(like(n)))).collect();
    let answers: Vec<_> = commits.iter_mut().map(|commit| at_once(commit.as_mut())).collect();
    close(&shelf.stores).await;
    for (commit, answer) in commits.iter_mut().zip(answers) {
        let answer = answer.or_else(|| at_once(commit.as_mut()));
        assert!(matches!(answer, Some(Ok(_))), "{answer:?}");
    }
    assert_eq!(events_on_disk(&store), 100);
    assert_eq!(at_once(watch.next()), Some(Ok(100)));
    assert_eq!(at_once(watch.next()), Some(Err(Error::Closed)));
    assert_eq!(at_once(store.read(Query::<String>::first("SELECT text FROM note"))), Some(Err(Error::Closed)));
    assert_eq!(at_once(store.commit_envelope(like(100))), Some(Err(Error::Closed)));
    assert_eq!(shelf.stores.get(store.id()).unwrap_err(), Error::Closed);
    assert_eq!(at_once(empty.next()), Some(Err(Error::Closed)));
    assert_eq!(at_once(absent.commit_envelope(like(100))), Some(Err(Error::Closed)));
    assert_eq!(events_on_disk(&absent), 0);
    assert_eq!(events_on_disk(&store), 100);
}

#[tokio::test]
async fn when_too_many_events_wait_the_next_is_refused_at_once_and_the_others_are_stored() {
    const QUEUE: u64 = 4;
    let (schema, is_busy, gate) = gated();
    let shelf = Shelf::new(schema, StoreLimits { queue: QUEUE as usize, ..StoreLimits::default() });
    let store = shelf.store("likes");
    let commit = |n| Box::pin(store.commit_envelope(like(n)));

    let mut first = commit(0);
    assert_eq!(at_once(first.as_mut()), None);
    is_busy.recv().unwrap();
    let mut waiting: Vec<_> = (1..=QUEUE).map(commit).collect();
    for commit in &mut waiting {
        assert_eq!(at_once(commit.as_mut()), None);
    }
    for n in 10..20 {
        assert_eq!(at_once(commit(n)), Some(Err(Error::Overloaded)));
    }
    let mut watch = store.watch(count());
    assert_eq!(at_once(watch.next()), None);

    drop(gate);
    assert!(first.await.unwrap().is_new);
    for commit in waiting {
        assert!(commit.await.unwrap().is_new);
    }
    let all = QUEUE as i64 + 1;
    assert_eq!(store.read(count()).await, Ok(all));
    assert_eq!(at_once(watch.next()), Some(Ok(all)), "also a watcher that came while the queue was full");
    let mut exported = Vec::new();
    export(store.files(), &mut exported).unwrap();
    let exported = String::from_utf8(exported).unwrap();
    assert_eq!(exported.lines().count() as i64, all);
    assert!((0..=QUEUE).all(|n| exported.contains(&like(n).id.to_string())));

    assert!(commit(10).await.unwrap().is_new, "what was refused can come again");
    assert_eq!(store.read(count()).await, Ok(all + 1));
}

/// Nobody asks for the old event. The store's thread finds it while it has nothing else to do.
#[tokio::test]
async fn trust_63_a_store_finds_old_damage_by_itself_and_is_only_read_from_then_on() {
    let shelf = Shelf::new(bank(), StoreLimits::default());
    let store = shelf.store("likes");
    let text = "the one that the disk changes";
    store.commit_envelope(append(1, text)).await.unwrap();
    for some in (2..3_000).map(like).collect::<Vec<_>>().chunks(1_000) {
        store.add(some.iter().map(|event| (event.clone(), device("phone"))).collect()).await.unwrap();
    }
    close(&shelf.stores).await;
    drop(store);
    let path = shelf.dir().join("likes/eventlog.db");
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(text.len()).position(|window| window == text.as_bytes()).unwrap();
    bytes[at] ^= 1;
    std::fs::write(&path, &bytes).unwrap();

    let stores = Stores::open(&shelf.dir(), setup(bank()), StoreLimits::default()).unwrap();
    let store = stores.get(&"likes".parse().unwrap()).unwrap();
    let mut health = store.health();
    let health = health.wait_for(|health| health.trouble().is_some()).await.unwrap().clone();
    let Health::ReadOnly(_, why) = health else { panic!("{health:?}") };
    assert!(why.contains("of the events 1 to 1024 some are not") && why.contains("docs/repair.md"), "{why}");
    // It stays that way, however often somebody tries.
    for n in 0..3 {
        assert!(matches!(store.commit_envelope(like(10_000 + n)).await, Err(Error::Unavailable(_))));
        assert_eq!(store.read(count()).await, Ok(2_998));
    }
    close(&stores).await;
}

#[tokio::test]
async fn a_directory_of_stores_is_one_processs_at_a_time_and_the_next_is_told_whose() {
    let open = |shelf: &Shelf| Stores::open(&shelf.dir(), setup(bank()), StoreLimits::default());
    let shelf = Shelf::new(bank(), StoreLimits::default());
    shelf.store("likes").commit_envelope(like(1)).await.unwrap();
    let fault = open(&shelf).err().expect("it is in use").to_string();
    assert!(fault.contains(&format!("in use by the process {}", std::process::id())), "{fault}");
    close(&shelf.stores).await;
    let stores = open(&shelf).unwrap();
    assert_eq!(stores.get(&"likes".parse().unwrap()).unwrap().read(count()).await, Ok(1));
    close(&stores).await;
    drop(open(&shelf).unwrap());
}

#[tokio::test]
async fn who_looked_before_there_was_a_directory_gets_a_sentence_and_no_count_of_the_past() {
    let shelf = Shelf::new(bank(), StoreLimits::default());
    let late = Stores::open(&shelf.dir(), setup(bank()), StoreLimits::default()).unwrap();
    let store = late.get(&"likes".parse().unwrap()).unwrap();
    assert!(!shelf.dir().exists());
    shelf.store("likes").commit_envelope(like(1)).await.unwrap();
    let is_told = |error: &Error| matches!(error, Error::Unavailable(why) if why.contains("in use by the process"));
    let read = store.read(count()).await;
    assert!(read.as_ref().is_err_and(is_told), "{read:?}");
    let commit = store.commit_envelope(like(2)).await;
    assert!(commit.as_ref().is_err_and(is_told), "{commit:?}");
    let get = late.get(&"other".parse().unwrap());
    assert!(get.as_ref().is_err_and(is_told), "{get:?}");
    assert_eq!(shelf.store("likes").read(count()).await, Ok(1));
}

#[tokio::test]
async fn events_without_effect_are_listed_with_the_reason() {
    let shelf = Shelf::new(bank(), StoreLimits::default());
    let store = shelf.store("likes");
    assert_eq!(store.skipped().await, Ok(Vec::new()));
    let events = [like(1), event(id(2), "Future", ""), event(id(3), "Withdrawn", r#"{"from":"ann","amount":1}"#)];
    let withdrawn = event(id(4), "Deposited", r#"{"to":7}"#);
    let all = events.into_iter().chain([withdrawn]).map(|event| (event, device("phone"))).collect();
    store.add(all).await.unwrap();
    let mut skipped = store.skipped().await.unwrap();
    skipped.sort_by_key(|skipped| skipped.name.clone());
    let [deposited, future] = &skipped[..] else { panic!("{skipped:?}") };
    assert_eq!((future.id, &*future.name, &future.why), (id(2), "Future", &NoEffect::UnknownName));
    assert_eq!((deposited.id, &*deposited.name), (id(4), "Deposited"));
    assert!(matches!(&deposited.why, NoEffect::Failed(why) if why.contains("its payload can't be read")));
}
