//! What `doctor` finds at the NATS cluster of a gateway.

use std::time::Duration;

use anyhow::anyhow;
use reqwest::Client;
use serde_json::Value;

use super::{Finding, Patient};
use crate::limits::sync::http::ANSWER;
use crate::sync::{Cluster, Examined, Trust, tls};
use crate::web::ClusterSetting;

const STREAM: &str = "stream";
const DISK: &str = "nats disk";

impl Patient<'_> {
    /// The cluster that the command line names, or else the one of the process that serves the data.
    pub(super) async fn cluster(&self) -> Vec<Finding> {
        let of_process = self.process.as_ref().and_then(|(_, setting)| setting.cluster.as_ref());
        let mut servers = 0;
        let mut findings = match (&self.cluster, of_process) {
            (Some(options), _) => {
                let cluster = match Cluster::new(options, self.data) {
                    Ok(cluster) => cluster,
                    Err(error) => return vec![Finding::failed(STREAM, &error)],
                };
                match cluster.examine().await {
                    Ok(Examined::Nothing { replicas }) => {
                        servers = usize::try_from(replicas).unwrap_or_default();
                        let copies = if replicas == 1 { "in one copy, on this one server" } else { "on three servers" };
                        let found = format!("{} has none yet; the first gateway makes it {copies}", cluster.url());
                        vec![Finding::ok(STREAM, found)]
                    }
                    Ok(Examined::Stream(overview)) => {
                        let setting = ClusterSetting::of(&overview);
                        servers = setting.servers;
                        of(&setting)
                    }
                    Err(error) => vec![Finding::failed(STREAM, &error)],
                }
            }
            (None, Some(cluster)) => {
                servers = cluster.servers;
                of(cluster)
            }
            (None, None) => return Vec::new(),
        };
        if self.monitors.is_empty() {
            findings.push(Finding::unknown(
                DISK,
                "whether the servers sync each message to their disks (sync_interval: always) can't be seen from here; name \
                 where they tell about themselves with --nats-monitor",
            ));
        }
        for monitor in &self.monitors {
            findings.push(disk(monitor.trim_end_matches('/')).await);
        }
        if (1..servers).contains(&self.monitors.len()) {
            let found = format!(
                "the stream is on {servers} servers, and {} of them can be asked; name the others with --nats-monitor, too",
                self.monitors.len()
            );
            findings.push(Finding::unknown(DISK, found));
        }
        findings
    }
}

fn of(cluster: &ClusterSetting) -> Vec<Finding> {
    let ClusterSetting { trouble, server, copies, faults, flaws, .. } = cluster;
    if let Some(why) = trouble {
        return vec![Finding::problem(STREAM, why, "Mend the cause; it goes on by itself then")];
    }
    let mut findings = vec![Finding::ok(STREAM, format!("connected to {server}; {copies}"))];
    findings.extend(faults.iter().map(|fault| Finding::failed(STREAM, &anyhow!(fault.clone()))));
    findings.extend(flaws.iter().map(|flaw| Finding::unknown(STREAM, flaw)));
    findings
}

/// Whether a server syncs each message to its disk before it acknowledges it, and has room for more.
async fn disk(monitor: &str) -> Finding {
    let told = match told(monitor).await {
        Ok(told) => told,
        Err(why) => {
            return Finding::problem(
                DISK,
                format!("{monitor} doesn't tell how it is set up: {why}"),
                "Check the address; a server listens there with `http: HOST:8222` in its configuration",
            );
        }
    };
    let bytes = |value: &Value| value.as_u64().unwrap_or_default();
    let (used, most) = (bytes(&told["storage"]), bytes(&told["config"]["max_storage"]));
    if most > 0 && used >= most / 10 * 9 {
        return Finding::problem(
            DISK,
            format!("{monitor} stores {} of the {} MB that it may", used / 1_000_000, most / 1_000_000),
            "Raise `max_file_store` in the part `jetstream` of its configuration, or give its disk more room",
        );
    }
    if told["config"]["sync_always"] == true {
        return Finding::ok(DISK, format!("{monitor} syncs each message (sync_interval: always)"));
    }
    let interval = Duration::from_nanos(bytes(&told["config"]["sync_interval"]));
    Finding::problem(
        DISK,
        format!(
            "{monitor} acknowledges messages that are not on its disk for up to {} s; a power cut loses them",
            interval.as_secs()
        ),
        "Set `sync_interval: always` in the part `jetstream` of its configuration",
    )
}

/// What a server tells of JetStream, with its settings.
async fn told(monitor: &str) -> Result<Value, String> {
    if !monitor.contains("://") {
        return Err(format!("the address has no http:// before it; write it like http://{monitor}"));
    }
    let trust = if monitor.starts_with("https:") { Trust::SystemAnd(Vec::new()) } else { Trust::Nobody };
    let tls = tls(trust).map_err(|error| error.to_string())?;
    let client = Client::builder().no_proxy().timeout(ANSWER).tls_backend_preconfigured(tls).build();
    let client = client.map_err(|error| error.to_string())?;
    let answer = client.get(format!("{monitor}/jsz?config=true")).send().await;
    let answer = answer.map_err(|error| error.without_url().to_string())?;
    let told: Value = serde_json::from_slice(&answer.bytes().await.map_err(|error| error.to_string())?)
        .map_err(|_| "what answers is no NATS server".to_owned())?;
    if told["config"].is_object() { Ok(told) } else { Err("it doesn't have JetStream turned on".to_owned()) }
}
