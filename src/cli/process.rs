//! How commands get at a data directory: whoever has it does the work, since nobody else can open its databases.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use reqwest::header::HOST;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use tempfile::TempDir;

use crate::data_dir::{self, Claim, DataDir, Holder};
use crate::engine::{self, Files, StoreId};
use crate::sync::TokenFile;

/// How long a command waits for the process that it asks.
const ANSWER: Duration = Duration::from_secs(30);

/// How a command gets at a data directory.
pub(crate) enum Access {
    /// A process has it, which is asked to do the work: nobody else can open its databases.
    Asked(Process),
    /// The command has it.
    Here(Here),
}

impl Access {
    /// To a store in the data directory.
    ///
    /// # Errors
    ///
    /// When there is no data, or nobody can be asked.
    pub(crate) fn to_store(data: &Path, store: &StoreId) -> anyhow::Result<Self> {
        if !DataDir::is_used(data)? {
            bail!(no_store(data, store));
        }
        Self::get(data, Some(store))
    }

    /// To a data directory that there is.
    ///
    /// # Errors
    ///
    /// As [`to_store`](Self::to_store).
    pub(crate) fn to(data: &Path) -> anyhow::Result<Self> {
        if !DataDir::is_used(data)? {
            bail!(
                "there is no data in {}; run `likewise` and click, or name the directory with --data",
                data.display()
            );
        }
        Self::get(data, None)
    }

    fn get(data: &Path, store: Option<&StoreId>) -> anyhow::Result<Self> {
        Ok(match DataDir::claim(data)? {
            Claim::Taken(holder) => Self::Asked(Process::new(data, holder)?),
            Claim::Ours(dir) => Self::Here(Here { data: data.to_owned(), dir, _copy: None }),
            Claim::ReadOnly(reading) => {
                let copy = private_copy(data, store).with_context(|| {
                    format!("{} can only be read, and a copy to read from could not be made", data.display())
                })?;
                drop(reading);
                let dir = DataDir::take(&data_dir::locate(&copy.path().join("data"))?)?;
                Self::Here(Here { data: data.to_owned(), dir, _copy: Some(copy) })
            }
        })
    }
}

/// Copies what is in a data directory, or of one store in it, to where SQLite can write: it can't read a database whose
/// WAL it may not touch. What the copy says is true of the files; whether those are on a disk, nobody can tell.
fn private_copy(data: &Path, store: Option<&StoreId>) -> anyhow::Result<TempDir> {
    let copy = tempfile::Builder::new().prefix("likewise-").tempdir()?;
    // The directory itself may be open to others, where temporary files are.
    let to = copy.path().join("data");
    engine::create_private_dir(&to)?;
    for id in engine::stores_in(&DataDir::stores(data))? {
        if store.is_some_and(|store| *store != id) {
            continue;
        }
        let (from, to) = (DataDir::files(data, &id), DataDir::files(&to, &id));
        engine::create_private_dir(to.dir())?;
        for entry in fs::read_dir(from.dir()).with_context(|| format!("cannot read {}", from.dir().display()))? {
            let name = entry?.file_name();
            let path = from.dir().join(&name);
            if let Some(mut file) = engine::open_to_read(&path)? {
                let mut copied = engine::open_private_file(&to.dir().join(&name))?;
                io::copy(&mut file, &mut copied).with_context(|| format!("cannot copy {}", path.display()))?;
            }
        }
    }
    TokenFile::in_dir(data).copy_to(&to)?;
    Ok(copy)
}

/// A process that has a data directory, and listens.
pub(crate) struct Process {
    pub(crate) holder: Holder,
    pub(crate) address: String,
}

impl Process {
    /// Which process that is, as its lock says.
    ///
    /// # Errors
    ///
    /// When it doesn't listen.
    pub(crate) fn new(data: &Path, holder: Option<Holder>) -> anyhow::Result<Self> {
        let address = address(data, holder.as_ref())?;
        let holder = holder.context("BUG: an address of nobody")?;
        Ok(Self { holder, address })
    }

    /// A request for what only the owner of the data may ask.
    pub(crate) fn request(&self, method: Method, what: &str) -> anyhow::Result<RequestBuilder> {
        let url = format!("{}/control/v1/{what}", self.address);
        Ok(as_local(working_client()?.request(method, url)).bearer_auth(&self.holder.key))
    }

    /// The answer to what is asked about a store that has to be there.
    pub(crate) async fn answer_about(
        &self,
        data: &Path,
        store: &StoreId,
        request: RequestBuilder,
    ) -> anyhow::Result<Response> {
        let answer = request.send().await.map_err(|error| unanswered(error, &self.address))?;
        if answer.status() == StatusCode::NOT_FOUND {
            bail!(no_store(data, store));
        }
        understood(answer, &self.address).await
    }

    pub(crate) async fn answer(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        let answer = request.send().await.map_err(|error| unanswered(error, &self.address))?;
        understood(answer, &self.address).await
    }
}

/// A data directory that the command itself has, to read from it: the one that was named, or a copy.
pub(crate) struct Here {
    /// As it was named.
    data: PathBuf,
    pub(crate) dir: DataDir,
    /// Goes last.
    _copy: Option<TempDir>,
}

impl Here {
    /// The files of a store that there is.
    ///
    /// # Errors
    ///
    /// When there is none, or it can't be looked at.
    pub(crate) fn files(&self, store: &StoreId) -> anyhow::Result<Files> {
        let files = DataDir::files(self.dir.path(), store);
        if engine::is_blank(&files)? {
            bail!(no_store(&self.data, store));
        }
        Ok(files)
    }
}

pub(crate) fn no_store(data: &Path, store: &StoreId) -> String {
    format!("there is no store {store} in {}; name the directory with --data, the store with --store", data.display())
}

/// Asks the process that has the data directory to do something.
pub(crate) async fn control<T: serde::de::DeserializeOwned>(
    data: &Path,
    holder: Option<Holder>,
    what: &str,
) -> anyhow::Result<T> {
    let process = Process::new(data, holder)?;
    let answer = process.answer(process.request(Method::POST, what)?).await?;
    answer.json().await.context("the answer is not understood")
}

/// Where the process listens that has the data directory.
fn address(data: &Path, holder: Option<&Holder>) -> anyhow::Result<String> {
    match holder.and_then(|holder| holder.address.clone()) {
        Some(address) => Ok(address),
        None => bail!(
            "{} is in use by another likewise command, or by one that is just starting; try again in a moment",
            data.display()
        ),
    }
}

pub(crate) fn http_client(url: &str) -> anyhow::Result<reqwest::Client> {
    // The process that is asked is on this machine, or was named: no proxy stands between.
    let builder = || reqwest::Client::builder().no_proxy().read_timeout(ANSWER);
    let client = builder().build().or_else(|error| match url.starts_with("https:") {
        true => Err(error),
        // Without TLS, a machine that has no certificate authorities needs none.
        false => builder().tls_certs_only([]).build(),
    });
    client.context("cannot make requests")
}

/// A client for what takes as long as it takes. The process that is asked is on this machine: if it ends, so does the
/// connection.
fn working_client() -> anyhow::Result<reqwest::Client> {
    reqwest::Client::builder().no_proxy().tls_certs_only([]).build().context("cannot make requests")
}

/// A request to the process on this machine that has the data directory, under the name that only this machine may use:
/// that process may listen on an address that it isn't opened under.
pub(crate) fn as_local(request: RequestBuilder) -> RequestBuilder {
    request.header(HOST, "localhost")
}

/// Why there is no answer from `url`.
pub(crate) fn unanswered(error: reqwest::Error, url: &str) -> anyhow::Error {
    let error = anyhow::Error::from(error.without_url());
    let is_refused = |cause: &io::Error| cause.kind() == io::ErrorKind::ConnectionRefused;
    if error.chain().any(|cause| cause.downcast_ref().is_some_and(is_refused)) {
        return anyhow!("cannot ask {url}: nobody listens there; is likewise running?");
    }
    error.context(format!("cannot ask {url}"))
}

/// The answer, unless it says what went wrong.
pub(crate) async fn understood(answer: Response, url: &str) -> anyhow::Result<Response> {
    #[derive(serde::Deserialize)]
    struct Problem {
        detail: String,
        advice: String,
    }
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    match answer.json::<Problem>().await {
        Ok(Problem { detail, advice }) => bail!("{detail} {advice}"),
        Err(_) => bail!("{url} answered {status}, which a likewise would not; check the address"),
    }
}
