//! Somebody else who uses the same NATS servers.

use async_nats::Client;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::common::nats::Nats;

pub struct Stranger {
    runtime: Runtime,
    client: Client,
}

impl Stranger {
    pub fn new(nats: &Nats) -> Self {
        Self::at(&nats.url_of(0))
    }

    pub fn at(url: &str) -> Self {
        let runtime = Runtime::new().unwrap();
        let client = runtime.block_on(async_nats::connect(url)).unwrap();
        Self { runtime, client }
    }

    /// Asks JetStream something.
    pub fn asks(&self, what: &str, asked: &Value) -> Value {
        self.requests(&format!("$JS.API.{what}"), asked.to_string().into_bytes())
    }

    /// Publishes a message to a stream, and returns what that answers.
    pub fn publishes(&self, subject: &str, text: impl Into<Vec<u8>>) -> Value {
        self.requests(subject, text.into())
    }

    fn requests(&self, subject: &str, payload: Vec<u8>) -> Value {
        let answer = self.client.request(subject.to_owned(), payload.into());
        serde_json::from_slice(&self.runtime.block_on(answer).unwrap().payload).unwrap()
    }

    /// Makes a stream with these settings beside those that it needs.
    pub fn makes(&self, name: &str, settings: Value) {
        let mut config = json!({ "name": name, "storage": "file", "retention": "limits", "num_replicas": 1 });
        config.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
        let made = self.asks(&format!("STREAM.CREATE.{name}"), &config);
        assert!(made["error"].is_null(), "{made}");
    }

    /// Gives a stream these settings.
    pub fn updates(&self, name: &str, settings: &Value) {
        let updated = self.asks(&format!("STREAM.UPDATE.{name}"), settings);
        assert!(updated["error"].is_null(), "{updated}");
    }

    pub fn deletes(&self, name: &str) {
        let gone = self.asks(&format!("STREAM.DELETE.{name}"), &json!({}));
        assert_eq!(gone["success"], true, "{gone}");
    }

    pub fn info(&self, name: &str) -> Value {
        self.asks(&format!("STREAM.INFO.{name}"), &json!({}))
    }
}
