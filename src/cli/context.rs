//! Commands of an app's own, and what they work with.

use std::fmt;
use std::process::ExitCode;

use anyhow::{Context as _, anyhow};
use clap::ArgMatches;
use reqwest::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::process::Process;
use super::target::{Target, Writer};
use crate::engine::{Answer, Envelope, Error, Event, EventId, Query, Question, Receipt, Store, StoreId};
use crate::node::NodeError;
use crate::sync::WireEvent;
use crate::web::Committed;

/// What an app's own command works with: the store that `--store` names, to commit to and to read.
///
/// If a process is serving the data directory, that process does the work; otherwise the command does it itself. Either
/// way, an event is on disk when [`commit`](Self::commit) returns.
pub struct Context {
    store: StoreId,
    access: Access,
}

enum Access {
    Asked(Process),
    Here(Store),
}

impl Context {
    /// The name of the store.
    pub fn store(&self) -> &StoreId {
        &self.store
    }

    /// Commits an event, and gives its id.
    ///
    /// # Errors
    ///
    /// When the event is malformed or the store can't be used: what happened, and what to do next. When the event is
    /// refused: the words of its materializer alone.
    pub async fn commit<E: Event>(&self, event: E) -> Result<EventId, NodeError> {
        let event = Envelope::new(EventId::now(), &event).map_err(anyhow::Error::from)?;
        let id = event.id;
        self.commit_envelope(event).await?;
        Ok(id)
    }

    /// As [`commit`](Self::commit), for an event that has an id already. Repeating it is always safe: one id counts
    /// once. Returns false if the event was stored before.
    ///
    /// # Errors
    ///
    /// As [`commit`](Self::commit).
    pub async fn commit_envelope(&self, event: Envelope) -> Result<bool, NodeError> {
        match &self.access {
            Access::Asked(process) => {
                let event = WireEvent::from(&event);
                let Committed { is_new } = self.ask(process, "commit", &event).await?;
                Ok(is_new)
            }
            Access::Here(store) => {
                let Receipt { is_new, .. } = store.commit_envelope(event).await.map_err(|error| match error {
                    Error::Refused(why) => anyhow!(why),
                    error => error.into(),
                })?;
                Ok(is_new)
            }
        }
    }

    /// The present answer to `query`.
    ///
    /// # Errors
    ///
    /// When the query fails, or the store can't be used.
    pub async fn read<T>(&self, query: Query<T>) -> Result<T, NodeError>
    where
        T: Clone + PartialEq + Send + Sync + 'static,
    {
        match &self.access {
            Access::Asked(process) => {
                let answer: Answer = self.ask(process, "query", &Question::of(&query)).await?;
                Ok(answer.read(&query).map_err(|why| anyhow!("the answer to a query can't be read: {why}"))?)
            }
            Access::Here(store) => Ok(store.read(query).await.map_err(anyhow::Error::from)?),
        }
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        process: &Process,
        route: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<T> {
        let request = process.request(Method::POST, &format!("{}/{route}", self.store))?;
        process.answer(request.json(body)).await
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("store", &self.store).finish_non_exhaustive()
    }
}

/// Runs the app's command `name`.
pub(super) async fn run(at: &Target<'_>, name: &str, matches: ArgMatches) -> anyhow::Result<ExitCode> {
    let own = at.app.commands().iter().find(|own| own.command.get_name() == name);
    let own = own.context("BUG: a command of nobody")?;
    let run = async |access| {
        let context = Context { store: at.store.clone(), access };
        (own.run)(matches, context).await.map_err(|error| anyhow!(error))
    };
    match at.writer()? {
        Writer::Asked(process) => run(Access::Asked(process)).await,
        Writer::Here(dir) => at.open(&dir, async |store| run(Access::Here(store.clone())).await).await,
    }
}
