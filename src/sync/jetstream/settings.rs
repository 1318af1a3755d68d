//! The settings of the stream and of the bucket: those that they are made with, and those that an existing one may have.
//!
//! Settings are compared as JetStream writes them, so whoever set up the stream finds them by the same names in their own
//! tools. A newer server's settings that aren't known here don't matter unless somebody uses them, which they would notice.

use anyhow::bail;
use serde_json::{Value, json};

use crate::engine::StreamId;
use crate::limits::sync::gateway::MESSAGE_BYTES;
use crate::limits::sync::nats::{BUCKET_MESSAGE, HISTORY, OLDEST_SERVER, REPLICAS};

/// Where a stream's settings keep its id.
const ID: &str = "likewise-id";

/// The settings of a new stream of events.
pub(super) fn of_stream(name: &str, id: &str, replicas: u64) -> Value {
    let mut settings = durable(name, id, replicas);
    settings["subjects"] = json!([format!("{name}.*")]);
    settings["description"] = json!("Events of likewise: a subject for each store. Nothing may be deleted from it.");
    settings["max_msgs_per_subject"] = json!(-1);
    settings["max_msg_size"] = json!(-1);
    // Many messages are read from any replica. Where one has to be the newest, the leader is asked.
    settings["allow_direct"] = json!(true);
    settings
}

/// The settings of a new bucket. Its newest values are asked of its leader alone.
pub(super) fn of_bucket(name: &str, prefix: &str, replicas: u64) -> Value {
    let mut settings = durable(name, &random_id(), replicas);
    settings["subjects"] = json!([format!("$KV.{prefix}.>")]);
    settings["description"] = json!("What all gateways of likewise share: their run, and who may sync.");
    settings["max_msgs_per_subject"] = json!(HISTORY);
    settings["max_msg_size"] = json!(BUCKET_MESSAGE);
    settings["allow_direct"] = json!(false);
    settings
}

/// The settings that both have, so that nothing is forgotten, dropped or deleted.
fn durable(name: &str, id: &str, replicas: u64) -> Value {
    json!({
        "name": name,
        "storage": "file",
        "retention": "limits",
        "discard": "new",
        "num_replicas": replicas,
        "max_age": 0,
        "max_msgs": -1,
        "max_bytes": -1,
        "max_consumers": -1,
        "deny_delete": true,
        "deny_purge": true,
        "allow_rollup_hdrs": false,
        "allow_msg_ttl": false,
        "metadata": { ID: id },
    })
}

/// An id for a new stream.
pub(super) fn random_id() -> String {
    StreamId::random().to_string()
}

/// The id that a stream's settings keep.
pub(super) fn id(config: &Value) -> Option<&str> {
    config["metadata"][ID].as_str().filter(|id| !id.is_empty())
}

/// What a setting may be.
enum May {
    Be(Value),
    /// What a server leaves out counts as this.
    BeOrLack(Value),
    /// No limit: none of these numbers is above zero.
    BeUnlimited,
    BeUnlimitedOrAtLeast(u64),
    /// It isn't there, or says no.
    BeOff,
}

/// Fails if the settings of an existing stream of events can lose some. Says which, and what they are.
///
/// # Errors
///
/// When there is one.
pub(super) fn check_stream(name: &str, config: &Value) -> anyhow::Result<()> {
    use May::{Be, BeOff, BeOrLack, BeUnlimited, BeUnlimitedOrAtLeast};
    check(
        name,
        config,
        [
            ("subjects", Be(json!([format!("{name}.*")])), "the stores are its subjects, and nothing else is"),
            ("storage", Be(json!("file")), "memory forgets with a restart"),
            ("retention", Be(json!("limits")), "messages have to stay after they are read"),
            ("discard", Be(json!("new")), "a full stream has to refuse new messages rather than drop old ones"),
            ("discard_new_per_subject", BeOff, "no store may be limited by itself"),
            ("max_age", BeUnlimited, "events don't grow old"),
            ("max_msgs", BeUnlimited, "a store keeps every event"),
            ("max_bytes", BeUnlimited, "a store keeps every event"),
            ("max_msgs_per_subject", BeUnlimited, "a store keeps every event"),
            ("max_msg_size", BeUnlimitedOrAtLeast(MESSAGE_BYTES as u64), "a message may be that long"),
            ("deny_delete", Be(json!(true)), "nobody may delete an event"),
            ("deny_purge", Be(json!(true)), "nobody may delete events"),
            ("allow_rollup_hdrs", BeOff, "a message could take the place of all earlier ones"),
            ("allow_msg_ttl", BeOff, "a message could say that it ends by itself"),
            ("subject_delete_marker_ttl", BeOff, "messages would be deleted"),
            ("persist_mode", BeOrLack(json!("default")), "an acknowledged message has to be on disk"),
            ("allow_direct", Be(json!(true)), "gateways read many messages at once"),
            ("no_ack", BeOff, "a gateway has to know what is stored"),
            ("sealed", BeOff, "nothing could be added"),
            ("mirror", BeOff, "its messages would be another stream's"),
            ("sources", BeOff, "its messages would be other streams'"),
            ("subject_transform", BeOff, "subjects have to be the stores' names"),
            ("republish", BeOff, "events would go where nobody asked for them"),
            ("allow_msg_counter", BeOff, "it stores numbers, not events"),
        ],
    )
}

/// Fails if the settings of an existing bucket don't do. Says which, and what they are.
///
/// # Errors
///
/// When there is one.
pub(super) fn check_bucket(name: &str, prefix: &str, config: &Value) -> anyhow::Result<()> {
    use May::{Be, BeOff, BeOrLack, BeUnlimited};
    check(
        name,
        config,
        [
            ("subjects", Be(json!([format!("$KV.{prefix}.>")])), "tools look for them there"),
            ("storage", Be(json!("file")), "memory forgets with a restart"),
            ("discard", Be(json!("new")), "a revoked token must not come back because there was no room"),
            ("max_age", BeUnlimited, "what gateways share doesn't grow old"),
            ("max_bytes", BeUnlimited, "a revoked token must not come back because there was no room"),
            ("deny_delete", Be(json!(true)), "a deleted value would bring an earlier one back"),
            ("deny_purge", Be(json!(true)), "a deleted value would bring an earlier one back"),
            ("allow_rollup_hdrs", BeOff, "a deleted value would bring an earlier one back"),
            ("persist_mode", BeOrLack(json!("default")), "what is acknowledged has to be on disk"),
            ("allow_direct", BeOff, "a replica that is behind would know revoked tokens"),
            ("mirror", BeOff, "its values would be another bucket's"),
            ("sources", BeOff, "its values would be other buckets'"),
        ],
    )
}

fn check<const N: usize>(name: &str, config: &Value, settings: [(&str, May, &str); N]) -> anyhow::Result<()> {
    if id(config).is_none() {
        bail!(
            "the stream {name} is somebody else's: its metadata has no {ID}. Delete it if nobody needs it, or give this \
             installation another prefix (nats://HOST/PREFIX)"
        );
    }
    let mut wrong = Vec::new();
    for (setting, may, why) in settings {
        let found = &config[setting];
        let (is_right, wanted) = match may {
            May::Be(value) => (*found == value, value.to_string()),
            May::BeOrLack(value) => (found.is_null() || *found == value, value.to_string()),
            May::BeUnlimited => (found.as_i64().is_none_or(|limit| limit <= 0), "no limit".to_owned()),
            May::BeUnlimitedOrAtLeast(least) => {
                let is_enough = found.as_i64().is_none_or(|limit| limit <= 0 || limit.unsigned_abs() >= least);
                (is_enough, format!("no limit, or at least {least}"))
            }
            May::BeOff => (is_off(found), "off".to_owned()),
        };
        if !is_right {
            wrong.push(format!("{setting}: {found}, and that has to be {wanted}: {why}"));
        }
    }
    if !wrong.is_empty() {
        bail!("the stream {name} has {}. Change it, or use another prefix", wrong.join("; "));
    }
    Ok(())
}

fn is_off(found: &Value) -> bool {
    match found {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(true) => false,
    }
}

/// What is said of a stream that has fewer copies than it should.
pub(super) fn few_replicas(name: &str, replicas: u64) -> Option<String> {
    (replicas < REPLICAS).then(|| {
        format!(
            "the stream {name} is on {replicas} server{}: when it dies, nothing syncs, and what its disk loses is lost unless a \
             gateway or a device has it. Give it {REPLICAS} replicas on {REPLICAS} servers, with `nats stream edit {name} \
             --replicas {REPLICAS}`",
            if replicas == 1 { "" } else { "s" }
        )
    })
}

/// Fails if a server is older than the oldest one that can be trusted with events.
///
/// # Errors
///
/// When it is, or doesn't say how old it is.
pub(super) fn check_version(version: &str) -> anyhow::Result<()> {
    // A release has three numbers; what follows them is somebody's own build.
    let mut numbers = version.split(['.', '-', '+']).map(|number| number.parse::<u32>().ok());
    let mut next = || numbers.next().flatten();
    let (Some(major), Some(minor), Some(patch)) = (next(), next(), next()) else {
        bail!("what answers there says that it is version {version:?} of nats-server, which is no version");
    };
    let (a, b, c) = OLDEST_SERVER;
    if (major, minor, patch) < OLDEST_SERVER {
        bail!(
            "nats-server {version} is too old: before {a}.{b}.{c}, killed servers and changes of a cluster's members could lose \
             acknowledged messages. Update it"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_is_made_here_passes_and_a_weaker_setting_is_named() {
        let stream = of_stream("likewise", "0123", 3);
        check_stream("likewise", &stream).expect("ours");
        check_bucket("KV_likewise", "likewise", &of_bucket("KV_likewise", "likewise", 3)).expect("ours");
        assert_eq!(id(&stream), Some("0123"));
        for (setting, value) in [
            ("storage", json!("memory")),
            ("retention", json!("interest")),
            ("discard", json!("old")),
            ("max_age", json!(3_600_000_000_000_u64)),
            ("max_msgs", json!(10)),
            ("max_bytes", json!(1_000_000)),
            ("max_msgs_per_subject", json!(1)),
            ("max_msg_size", json!(1_000)),
            ("deny_delete", json!(false)),
            ("deny_purge", Value::Null),
            ("allow_rollup_hdrs", json!(true)),
            ("allow_msg_ttl", json!(true)),
            ("persist_mode", json!("async")),
            ("allow_direct", json!(false)),
            ("subjects", json!(["likewise.>"])),
            ("mirror", json!({ "name": "other" })),
            ("republish", json!({ "dest": "x" })),
        ] {
            let mut weaker = stream.clone();
            weaker[setting] = value.clone();
            let why = check_stream("likewise", &weaker).expect_err(setting).to_string();
            assert!(why.contains(&format!("likewise has {setting}: {value}")), "{why}");
        }
        let mut weaker = stream.clone();
        (weaker["discard"], weaker["max_msgs"]) = (json!("old"), json!(10));
        let why = check_stream("likewise", &weaker).expect_err("two").to_string();
        assert!(why.contains("discard: \"old\"") && why.contains("max_msgs: 10"), "{why}");
        // Whoever sees that mends nothing there.
        weaker["metadata"] = json!({});
        let mut other = stream;
        other["metadata"] = json!({});
        for other in [weaker, other] {
            let why = check_stream("likewise", &other).expect_err("no id").to_string();
            assert!(why.contains("somebody else's") && !why.contains("discard"), "{why}");
        }
    }

    #[test]
    fn servers_without_the_fixes_that_matter_are_refused() {
        for version in ["2.12.3", "2.12.10", "2.15.1", "3.0.0", "2.14.0-RC.1", "2.15.1+custom"] {
            check_version(version).expect(version);
        }
        for version in ["2.12.2", "2.11.9", "2.9.25", "1.4.1"] {
            let why = check_version(version).expect_err(version).to_string();
            assert!(why.contains("too old") && why.contains("2.12.3"), "{why}");
        }
        for version in ["", "two", "2.12", "-1.0.0"] {
            let why = check_version(version).expect_err(version).to_string();
            assert!(why.contains("no version"), "{why}");
        }
    }
}
