//! Asking a running program: the process that has the data directory, or one at an address.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use reqwest::header::HOST;
use reqwest::{Client, ClientBuilder, Method, RequestBuilder, Response, StatusCode};
use serde::de::DeserializeOwned;

use crate::app::App;
use crate::data_dir::Holder;
use crate::limits::app::ANSWER;
use crate::sync::{Trust, tls};
use crate::web::Setting;

/// A process that has a data directory, and listens.
pub(super) struct Process {
    pub(super) holder: Holder,
    /// Where it listens, for people.
    pub(super) address: String,
    at: At,
    /// The program's name.
    pub(super) name: &'static str,
}

impl Process {
    /// The process that `data`'s lock file names.
    ///
    /// # Errors
    ///
    /// When it doesn't listen.
    pub(super) fn new(app: &App, data: &Path, holder: Option<Holder>) -> anyhow::Result<Self> {
        let name = app.name();
        let asked = holder.and_then(|holder| {
            let address = holder.address.clone()?;
            let at = At::new(&address, &holder.base_path);
            Some(Self { address, at, holder, name })
        });
        asked.with_context(|| {
            format!(
                "{} is in use by another {name} command, or by one that is just starting; try again in a moment",
                data.display()
            )
        })
    }

    /// How it is reached.
    pub(super) fn at(&self) -> &At {
        &self.at
    }

    /// A request that only the owner of the data may make.
    pub(super) fn request(&self, method: Method, what: &str) -> anyhow::Result<RequestBuilder> {
        let url = format!("{}/control/v1/{what}", self.at.url);
        Ok(self.as_owner(self.at.working_client()?.request(method, url)))
    }

    /// Shows the process that its owner asks. It is asked under a loopback name, because it may listen on an address under
    /// which it doesn't answer.
    pub(super) fn as_owner(&self, request: RequestBuilder) -> RequestBuilder {
        request.header(HOST, "localhost").bearer_auth(&self.holder.key)
    }

    /// Has the process do `what`, where there is no more to say.
    pub(super) async fn tell(&self, what: &str) -> anyhow::Result<()> {
        self.done(self.request(Method::POST, what)?).await
    }

    /// Has the process do what `request` asks for, where there is no more to say.
    pub(super) async fn done(&self, request: RequestBuilder) -> anyhow::Result<()> {
        understood(self.send(request).await?, &self.address).await.map(drop)
    }

    /// How the process is set up.
    pub(super) async fn setting(&self) -> anyhow::Result<Setting> {
        self.answer(self.request(Method::GET, "setting")?.timeout(ANSWER)).await
    }

    /// The answer as JSON.
    pub(super) async fn answer<T: DeserializeOwned>(&self, request: RequestBuilder) -> anyhow::Result<T> {
        json(understood(self.send(request).await?, &self.address).await?).await
    }

    /// The answer about a store; `None` if there is no such store.
    pub(super) async fn answer_about_store(&self, request: RequestBuilder) -> anyhow::Result<Option<Response>> {
        let answer = self.send(request).await?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        understood(answer, &self.address).await.map(Some)
    }

    async fn send(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        request.send().await.map_err(|error| unanswered(error, &self.address, self.name))
    }
}

/// What one of our own answers says.
pub(super) async fn json<T: DeserializeOwned>(answer: Response) -> anyhow::Result<T> {
    answer.json().await.context("the answer is not understood")
}

/// How a program is reached.
pub(super) struct At {
    /// What its addresses begin with.
    pub(super) url: String,
    socket: Option<PathBuf>,
}

impl At {
    /// A program at an address as [`Holder`] or a person has it.
    pub(super) fn new(address: &str, base_path: &str) -> Self {
        match address.strip_prefix("unix:") {
            // The name is in no request: a socket file leads to one program.
            Some(path) => Self { url: format!("http://localhost{base_path}"), socket: Some(path.into()) },
            None => Self { url: address.trim_end_matches('/').to_owned(), socket: None },
        }
    }

    /// A client for quick answers. It uses no proxy, because the program is on this machine or was named.
    pub(super) fn client(&self) -> anyhow::Result<Client> {
        let trust = if self.url.starts_with("https:") { Trust::SystemAnd(Vec::new()) } else { Trust::Nobody };
        self.builder(trust)?.read_timeout(ANSWER).build().context("cannot make requests")
    }

    /// A client for work without a time limit. The process is on this machine: if it ends, so does the connection.
    fn working_client(&self) -> anyhow::Result<Client> {
        self.builder(Trust::Nobody)?.build().context("cannot make requests")
    }

    fn builder(&self, trust: Trust) -> anyhow::Result<ClientBuilder> {
        let client = Client::builder().no_proxy().tls_backend_preconfigured(tls(trust)?);
        #[cfg(unix)]
        if let Some(path) = &self.socket {
            return Ok(client.unix_socket(path.as_path()));
        }
        Ok(client)
    }
}

/// Why there is no answer from `url`.
pub(super) fn unanswered(error: reqwest::Error, url: &str, name: &str) -> anyhow::Error {
    let error = anyhow::Error::from(error.without_url());
    let is_refused = |cause: &io::Error| cause.kind() == io::ErrorKind::ConnectionRefused;
    if error.chain().any(|cause| cause.downcast_ref().is_some_and(is_refused)) {
        return anyhow!("cannot ask {url}: nobody listens there; is {name} running?");
    }
    error.context(format!("cannot ask {url}"))
}

/// The answer, unless it reports an error.
pub(super) async fn understood(answer: Response, url: &str) -> anyhow::Result<Response> {
    #[derive(serde::Deserialize)]
    struct Problem {
        detail: String,
        #[serde(default)]
        advice: String,
    }
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    match answer.json::<Problem>().await {
        Ok(Problem { detail, advice }) => bail!("{}", format!("{detail} {advice}").trim_end()),
        Err(_) => bail!("{url} answered {status}, which no program of this kind does; check the address"),
    }
}
