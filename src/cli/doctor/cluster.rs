//! What `doctor` finds at the NATS cluster of a gateway.

use std::time::Duration;

use reqwest::Client;
use serde_json::Value;

use super::{Finding, Patient};
use crate::limits::sync::http::ANSWER;
use crate::sync::{Cluster, Trust, tls};
use crate::web::ClusterSetting;

const STREAM: &str = "stream";
const DISK: &str = "nats disk";

impl Patient<'_> {
    /// The cluster that the command line names, or else the one of the process that serves the data.
    pub(super) async fn cluster(&self) -> Vec<Finding> {
        let of_process = self.process.as_ref().and_then(|(_, setting)| setting.cluster.as_ref());
        let mut findings = match (&self.cluster, of_process) {
            (Some(options), _) => {
                let cluster = match Cluster::new(options, self.data) {
                    Ok(cluster) => cluster,
                    Err(error) => return vec![Finding::failed(STREAM, &error)],
                };
                match cluster.examine().await {
                    Ok(None) => {
                        let found = format!("{} has none yet; the first gateway makes it", cluster.url());
                        vec![Finding::ok(STREAM, found)]
                    }
                    Ok(Some(overview)) => of(&ClusterSetting::of(&overview)),
                    Err(error) => vec![Finding::failed(STREAM, &error)],
                }
            }
            (None, Some(cluster)) => of(cluster),
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
        findings
    }
}

fn of(cluster: &ClusterSetting) -> Vec<Finding> {
    let ClusterSetting { trouble, server, copies, flaws } = cluster;
    if let Some(why) = trouble {
        return vec![Finding::problem(STREAM, why, "Mend the cause; it goes on by itself then")];
    }
    let mut findings = vec![Finding::ok(STREAM, format!("connected to {server}; {copies}"))];
    // One server is enough to try it, and for those who can do without sync for a while.
    findings.extend(flaws.iter().map(|flaw| Finding::unknown(STREAM, flaw)));
    findings
}

/// Whether a server syncs each message to its disk before it acknowledges it.
async fn disk(monitor: &str) -> Finding {
    match settings(monitor).await {
        Ok(config) if config["sync_always"] == true => {
            Finding::ok(DISK, format!("{monitor} syncs each message (sync_interval: always)"))
        }
        Ok(config) => {
            let interval = config["sync_interval"].as_u64().map(Duration::from_nanos).unwrap_or_default();
            Finding::problem(
                DISK,
                format!(
                    "{monitor} acknowledges messages that are not on its disk for up to {} s; a power cut loses them",
                    interval.as_secs()
                ),
                "Set `sync_interval: always` in the part `jetstream` of its configuration",
            )
        }
        Err(why) => Finding::problem(
            DISK,
            format!("{monitor} doesn't tell how it is set up: {why}"),
            "Check the address; a server listens there with `http: HOST:8222` in its configuration",
        ),
    }
}

async fn settings(monitor: &str) -> Result<Value, String> {
    let trust = if monitor.starts_with("https:") { Trust::SystemAnd(Vec::new()) } else { Trust::Nobody };
    let tls = tls(trust).map_err(|error| error.to_string())?;
    let client = Client::builder().no_proxy().timeout(ANSWER).tls_backend_preconfigured(tls).build();
    let client = client.map_err(|error| error.to_string())?;
    let answer = client.get(format!("{monitor}/jsz?config=true")).send().await;
    let answer = answer.map_err(|error| error.without_url().to_string())?;
    let told: Value = serde_json::from_slice(&answer.bytes().await.map_err(|error| error.to_string())?)
        .map_err(|_| "what answers is no NATS server".to_owned())?;
    let config = told["config"].clone();
    if config.is_object() { Ok(config) } else { Err("it doesn't have JetStream turned on".to_owned()) }
}
