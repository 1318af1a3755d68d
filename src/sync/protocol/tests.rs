use super::*;
use crate::fuzz::{fuzz, outcome, text};

#[test]
fn trust_64_lists_of_a_hub_have_an_end() {
    let log = LogId::random();
    let page = |count: usize| {
        let event = r#"{"seq":1,"id":"","name":"","origin":"x","more":[[[]]]}"#;
        format!(r#"{{"log":"{log}","events":[{}],"next":1,"more":false}}"#, vec![event; count].join(","))
    };
    assert_eq!(serde_json::from_str::<WirePage>(&page(1_000)).unwrap().events.len(), 1_000);
    let error = serde_json::from_str::<WirePage>(&page(1_001)).unwrap_err();
    assert!(error.to_string().contains("longer than 1000"), "{error}");
    let answer = format!(r#"{{"log":null,"events":[{}]}}"#, vec![r#"{"seq":1}"#; 1_001].join(","));
    assert!(serde_json::from_str::<Pushed>(&answer).is_err());
}

#[test]
fn places_of_a_page_only_go_up() {
    let entry = |seq| Entry { seq: Seq(seq), event: event(""), origin: "phone".parse().unwrap() };
    let fault = |reached, seqs: &[u64], next| {
        let entries: Vec<_> = seqs.iter().map(|seq| entry(*seq)).collect();
        WirePage::new(LogId::random(), &entries, Seq(next), false).fault(Seq(reached))
    };
    assert_eq!(fault(3, &[4, 9], 9), None);
    assert_eq!(fault(3, &[], 3), None);
    for (reached, seqs, next) in
        [(3, &[3][..], 3), (3, &[4, 4], 4), (3, &[5, 4], 5), (3, &[4, 5], 4), (3, &[], 2), (3, &[4, 1 << 61], 1 << 61)]
    {
        assert!(fault(reached, seqs, next).is_some(), "{reached} {seqs:?} {next}");
    }
}

#[test]
fn words_of_a_hub_are_short_and_harmless() {
    assert_eq!(words(" Because. "), "Because.");
    assert_eq!(words("a\r\nb\u{202e}c\u{1b}[2J"), "a  b c [2J");
    assert_eq!(plain("a\tb\nc\r\u{202e}d\u{1b}[2J\u{9b}2J"), "a\tb\nc  d [2J 2J");
    assert_eq!(words(&"é".repeat(3_000_000)), "é".repeat(300) + "…");
}

fn event(args: &str) -> Envelope {
    let id = EventId::from_parts(1_700_000_000_000, [1; 10]);
    Envelope { id, name: "NoteAdded".parse().unwrap(), args: args.parse().unwrap() }
}

/// The bytes on the wire are a contract with every other version and every other client.
#[test]
fn wire_bytes_are_fixed() {
    let log: LogId = serde_json::from_str("\"7b1c2d3e-4f50-4a6b-8c9d-0e1f2a3b4c5d\"").unwrap();
    let push = Push {
        log: None,
        run: "r1".to_owned(),
        has: None,
        part: false,
        events: vec![WireEvent::from(&event("")), WireEvent::from(&event(r#"{"n":1.0,"s":"é\u000d"}"#))],
    };
    assert_eq!(
        serde_json::to_string(&push).unwrap(),
        r#"{"log":null,"run":"r1","events":[{"id":"018bcfe5-6800-7101-8101-010101010101","name":"NoteAdded"},{"id":"018bcfe5-6800-7101-8101-010101010101","name":"NoteAdded","args":"{\"n\":1.0,\"s\":\"é\\u000d\"}"}]}"#
    );
    let pushed = Pushed {
        log: Some(log),
        events: vec![
            PushedEvent::Stored { seq: Seq(7), no_effect: None },
            PushedEvent::Stored { seq: Seq(8), no_effect: Some("no such item".to_owned()) },
            PushedEvent::Refused { refused: refused::ID_TAKEN.to_owned(), why: "taken".to_owned() },
        ],
    };
    assert_eq!(
        serde_json::to_string(&pushed).unwrap(),
        r#"{"log":"7b1c2d3e-4f50-4a6b-8c9d-0e1f2a3b4c5d","events":[{"seq":7},{"seq":8,"no_effect":"no such item"},{"refused":"id-taken","why":"taken"}]}"#
    );
    let hello = Hello { log: Some(log), run: "r1".to_owned(), head: Seq(9) };
    assert_eq!(
        serde_json::to_string(&hello).unwrap(),
        r#"{"log":"7b1c2d3e-4f50-4a6b-8c9d-0e1f2a3b4c5d","run":"r1","head":9}"#
    );
    let entry = Entry { seq: Seq(9), event: event("[1]"), origin: "phone".parse().unwrap() };
    assert_eq!(
        serde_json::to_string(&WirePage::new(log, &[entry], Seq(9), false)).unwrap(),
        r#"{"log":"7b1c2d3e-4f50-4a6b-8c9d-0e1f2a3b4c5d","events":[{"seq":9,"id":"018bcfe5-6800-7101-8101-010101010101","name":"NoteAdded","args":"[1]","origin":"phone"}],"next":9,"more":false}"#
    );
}

#[test]
fn trust_38_fuzzed_messages_of_a_hub_keep_their_bounds() {
    let words = ["\"seq\":", "\"events\":", "\"next\":", "\"more\":true", "\"log\":null", "\"args\":", "\"origin\":"];
    fuzz("page", &words, |input| {
        let page = serde_json::from_slice::<WirePage>(input);
        let Ok(page) = page else { return outcome(&page) };
        let again: WirePage = serde_json::from_slice(&serde_json::to_vec(&page).unwrap()).unwrap();
        assert!(page.events.len() <= PAGE.events);
        if let Some(fault) = page.fault(Seq(3)) {
            return fault.to_owned();
        }
        assert!(page.next.0 < SEQS && page.next >= Seq(3));
        assert!(page.events.iter().all(|entry| (4..=page.next.0).contains(&entry.seq.0)));
        let (page, again) = (page.into_page(), again.into_page());
        if let Ok(page) = &page {
            assert_eq!(page.entries, again.unwrap().entries);
        }
        outcome(&page)
    });
    fuzz("hello", &words, |input| {
        let hello = serde_json::from_slice::<Hello>(input);
        let Ok(hello) = hello else { return outcome(&hello) };
        assert!(hello.fault().is_some() || hello.run.len() <= MAX_RUN && hello.head.0 < SEQS);
        assert_eq!(serde_json::from_slice::<Hello>(&serde_json::to_vec(&hello).unwrap()).unwrap(), hello);
        hello.fault().unwrap_or("right").to_owned()
    });
    fuzz("pushed", &["\"refused\":", "\"why\":", "\"no_effect\":", "\"seq\":"], |input| {
        let pushed = serde_json::from_slice::<Pushed>(input);
        if let Ok(pushed) = &pushed {
            assert!(pushed.events.len() <= PAGE.events);
            let again: Pushed = serde_json::from_slice(&serde_json::to_vec(pushed).unwrap()).unwrap();
            assert_eq!(again.events, pushed.events);
        }
        outcome(&pushed)
    });
    fuzz("words", &["\u{202e}", "\u{1b}[", "\u{200b}", "\u{e0041}"], |input| {
        let words = words_of(input);
        assert!(words.chars().count() <= MAX_WORDS + 1 && !words.chars().any(char::is_control));
        assert_eq!(super::words(&words).trim_end_matches('…'), words.trim().trim_end_matches('…'));
        String::new()
    });
}

fn words_of(input: &[u8]) -> String {
    words(&text(input))
}

#[test]
fn trust_38_fuzzed_pushes_are_events_or_refused() {
    let words = ["\"run\":", "\"events\":", "\"args\":", "\"log\":null", "\"name\":"];
    fuzz("push", &words, |input| {
        let push = serde_json::from_slice::<Push>(input);
        let Ok(push) = push else { return outcome(&push) };
        let mut outcomes = String::new();
        for event in push.events.into_iter().take(9) {
            let event = Envelope::try_from(event);
            if let Ok(event) = &event {
                let again: WireEvent =
                    serde_json::from_str(&serde_json::to_string(&WireEvent::from(event)).unwrap()).unwrap();
                assert_eq!(Envelope::try_from(again).as_ref(), Ok(event));
            }
            if let Err(why) = &event {
                assert!(why.to_string().chars().count() < 300, "{why}");
            }
            outcomes += &outcome(&event);
        }
        outcomes
    });
}

#[test]
fn payload_bytes_survive_the_wire() {
    for args in ["", r#"{"a":1.0,"a":2}"#, "123456789012345678901234567890", r#""\u2028🦀\ud83e""#] {
        let before = event(args);
        let text = serde_json::to_string(&WireEvent::from(&before)).unwrap();
        let after: Envelope = serde_json::from_str::<WireEvent>(&text).unwrap().try_into().unwrap();
        assert_eq!(after, before, "{text}");
    }
}
