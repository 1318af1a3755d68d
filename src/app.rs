//! An app: a schema and what people see of it. From it comes the whole program: pages, live updates, sync and a command
//! line.
//!
//! An [`App`] is a description. Nothing runs until it is opened or served.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;

use axum::http::HeaderValue;
use serde::de::DeserializeOwned;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::cli::{self, Context};
use crate::engine::{Event, Fault, Query, Schema, StoreId, StoreLimits};
use crate::limits::app::{MAX_APP_NAME, MAX_NAME};
use crate::node::{Node, NodeError, Options, base};
use crate::serve::{self, Server};
use crate::web::Listener;
use crate::web::assets::{self, Asset};
use crate::web::face::{Embed, Face, Figure, Form, Fragment, Nouns};
use crate::web::{Flaw, IntoHtml, Page, Params, Refusal, Rehearsal, Render, Role, Visitor};

/// Names that the program uses itself: as a path, an event of the live stream, a form field or a parameter.
const RESERVED: [&str; 17] = [
    "live", "status", "ping", "s", "sync", "id", "static", "control", "adopt", "healthz", "metrics", "embed", "pair",
    "back", "history", "stores", "sync-now",
];

/// Events of the live stream that aren't fragments.
const EVENTS: [&str; 2] = ["done", "current"];

/// Commands that every program has.
const OWN_COMMANDS: [&str; 21] = [
    "serve",
    "hub",
    "status",
    "stores",
    "items",
    "health",
    "doctor",
    "verify",
    "export",
    "import",
    "backup",
    "token",
    "pair",
    "join",
    "adopt",
    "promote",
    "move",
    "set-aside",
    "help",
    "completions",
    "man",
];

/// Fields of `/status` and metrics of the program, beside which figures stand.
const TAKEN_FROM_FIGURES: [&str; 48] = [
    "store",
    "device",
    "version",
    "head",
    "cursor",
    "pending",
    "set_aside",
    "skipped",
    "unknown",
    "log",
    "schema",
    "upstream",
    "history",
    "log_digest",
    "state_digest",
    "digest_seq",
    "streams",
    "devices",
    "devices_connected",
    "devices_refused",
    "pulls",
    "build",
    "start_time",
    "commit_duration",
    "fsync_duration",
    "healthy",
    "stores",
    "stores_open",
    "stores_failing",
    "events_pending",
    "events_set_aside",
    "events_skipped",
    "events_unknown",
    "events_missing",
    "queue_length",
    "queue_longest",
    "queue_limit",
    "upstream_stores",
    "upstream_last_sync_timestamp",
    "gateway_ready",
    "gateway_stream_messages",
    "gateway_stream_bytes",
    "gateway_replicas",
    "gateway_replicas_current",
    "gateway_published",
    "gateway_raced",
    "gateway_unanswered",
    "gateway_losses",
];

/// A program of its own around a schema.
///
/// ```
/// # use likewise::{App, Html};
/// # use likewise::engine::{Event, Query, Schema};
/// # #[derive(serde::Serialize, serde::Deserialize)]
/// # struct Counted {}
/// # impl Event for Counted { const NAME: &'static str = "Counted"; }
/// # fn schema() -> Schema {
/// #     Schema::new("CREATE TABLE n (n INTEGER NOT NULL) STRICT; INSERT INTO n VALUES (0);")
/// #         .on(|_: Counted, db| db.execute("UPDATE n SET n = n + 1", ()))
/// # }
/// # fn count() -> Query<u64> { Query::first("SELECT n FROM n") }
/// let app = App::new("counter", schema)
///     .form::<Counted>("count")
///     .live("total", |_| Ok(count()), |total, _| Html::text(total))
///     .page(|page| page.live("total"));
/// # app.check().unwrap();
/// ```
#[must_use = "an app does nothing until it is opened or served"]
pub struct App {
    name: &'static str,
    about: &'static str,
    schema: Arc<dyn Fn() -> Schema + Send + Sync>,
    face: Arc<Face>,
    commands: Vec<AppCommand>,
}

/// A command that an app adds to its command line.
pub(crate) struct AppCommand {
    pub(crate) command: clap::Command,
    pub(crate) run: Arc<RunCommand>,
}

/// Runs an app's own command, with the matches of that command alone.
pub(crate) type RunCommand = dyn Fn(clap::ArgMatches, Context) -> Running + Send + Sync;

/// A command of an app while it runs.
pub(crate) type Running = Pin<Box<dyn Future<Output = Result<ExitCode, BoxError>> + Send>>;

/// Any error that an app's own command may end with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What is wrong with an app. Its author sees it at the first start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AppError {
    /// A name that can't be used.
    #[error("`{name}` can't be the name of {what}: {why}")]
    Name {
        /// What should have the name.
        what: &'static str,
        /// The name.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// Two things of one name.
    #[error("there are two {what} named `{name}`; rename one")]
    Doubled {
        /// What they are.
        what: &'static str,
        /// Their name.
        name: String,
    },
    /// The schema is wrong.
    #[error("the schema: {0}")]
    Schema(#[from] Fault),
    /// A form, a fragment or a figure that can't work, or that names what isn't there.
    #[error("the {what} `{name}`: {why}")]
    Part {
        /// What it is.
        what: &'static str,
        /// Its name.
        name: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The page names what isn't there.
    #[error("the page: {0}")]
    Page(String),
    /// The app's own routes collide with each other or with the program's.
    #[error("the app's own routes: {0}")]
    Routes(String),
}

impl From<Flaw> for AppError {
    fn from(flaw: Flaw) -> Self {
        match flaw {
            Flaw::Part { what, name, why } => Self::Part { what, name, why },
            Flaw::Page(why) => Self::Page(why),
        }
    }
}

impl App {
    /// An app called `name`, whose state is what `schema` says.
    ///
    /// The name becomes the name of the program, of its data directory and of its first store: lower-case letters, digits
    /// and `-`, beginning with a letter.
    pub fn new(name: &'static str, schema: impl Fn() -> Schema + Send + Sync + 'static) -> Self {
        Self { name, about: "", schema: Arc::new(schema), face: Arc::new(Face::new(name)), commands: Vec::new() }
    }

    /// Sets the version that the program shows. Without this it is likewise's own.
    pub fn version(mut self, version: &'static str) -> Self {
        self.face_mut().version = version;
        self
    }

    /// Sets what the program's help says about it: a line, and below it as much as you like.
    pub fn about(mut self, about: &'static str) -> Self {
        self.about = about;
        self
    }

    /// Sets the words for one event of the app and for several: "2 to-dos waiting". Without this they are events.
    pub fn nouns(mut self, one: &'static str, many: &'static str) -> Self {
        self.face_mut().nouns = Nouns { one, many };
        self
    }

    /// Sets the heading of the page at an address that doesn't exist. Without this it is "Nothing here".
    pub fn lost(mut self, heading: &'static str) -> Self {
        self.face_mut().lost = heading;
        self
    }

    /// Sets the colour behind the icon while an installed page starts, as CSS writes colours. Without this it is a light
    /// grey. Give the page the same background, so that nothing flashes.
    pub fn background(mut self, colour: &'static str) -> Self {
        self.face_mut().background = colour;
        self
    }

    /// Sets the name of the store whose routes have no prefix. Without this it is the app's own name.
    pub fn store(mut self, store: &'static str) -> Self {
        self.face_mut().store = store;
        self
    }

    /// Adds `POST /name`, which commits an `E` made from the form's fields.
    pub fn form<E: Event>(mut self, name: &'static str) -> Self {
        self.face_mut().forms.push(Form::new::<E>(name));
        self
    }

    /// Adds `POST /name` for an event that the form can't state completely. `make` gets the form's fields and the
    /// visitor who posts them, and returns the event, or a refusal. A test gets a visitor from [`Visitor::for_test`].
    pub fn form_with<F, E>(
        mut self,
        name: &'static str,
        make: impl Fn(F, &Visitor) -> Result<E, Refusal> + Send + Sync + 'static,
    ) -> Self
    where
        F: DeserializeOwned + 'static,
        E: Event,
    {
        self.face_mut().forms.push(Form::with(name, make));
        self
    }

    /// Sets the longest body of a form, in bytes. Without this, a form can carry any event that fits into an eventlog.
    pub fn longest_form(mut self, bytes: u64) -> Self {
        self.face_mut().form_bytes = bytes;
        self
    }

    /// Adds a fragment: a piece of HTML that follows a query. `query` makes the query from the page's parameters, and
    /// `render` makes the HTML from its answer.
    ///
    /// Each change is rendered once for all pages with the same query, so nothing in a fragment may depend on who
    /// looks. On the page it stands in an element of its own, `<likewise-live id="live-NAME">`, which is allowed wherever
    /// text is.
    pub fn live<T, H, M>(
        mut self,
        name: &'static str,
        query: impl Fn(&Params) -> Result<Query<T>, Refusal> + Send + Sync + 'static,
        render: impl Fn(T, Render) -> H + Send + Sync + 'static,
    ) -> Self
    where
        T: Clone + PartialEq + Send + Sync + 'static,
        H: IntoHtml<M>,
        M: 'static,
    {
        self.face_mut().fragments.push(Fragment::new(name, query, render));
        self
    }

    /// Sets the page, `GET /`.
    pub fn page<H, M>(mut self, page: impl Fn(Page) -> H + Send + Sync + 'static) -> Self
    where
        H: IntoHtml<M>,
        M: 'static,
    {
        self.face_mut().page = Some(Arc::new(move |asked| page(asked).into_html()));
        self
    }

    /// Adds a static file, such as a stylesheet, a script or a picture. `content_type` is its `Content-Type`, such as
    /// `text/css; charset=utf-8`. [`Page::asset`] gives its address.
    ///
    /// Error pages use the app's stylesheets, too, after the common `app.css`. A file named `favicon.svg` replaces the
    /// common icon, which error pages also show. It is the icon of an installed page, too, where the device takes SVG. Others
    /// take `icon-192.png`, `icon-512.png` and `icon-maskable.png` (512 pixels, with room for any shape around the picture).
    ///
    /// ```
    /// # use likewise::{App, Html};
    /// # use likewise::engine::Schema;
    /// # let schema = || Schema::new("CREATE TABLE n (n INTEGER) STRICT");
    /// let app = App::new("counter", schema)
    ///     .asset("counter.css", "text/css; charset=utf-8", "h1 { color: teal }")
    ///     .page(|page| Html::trusted(format!(r#"<link rel="stylesheet" href="{}">"#, page.asset("counter.css"))));
    /// # app.check().unwrap();
    /// ```
    pub fn asset(
        mut self,
        name: &'static str,
        content_type: &'static str,
        bytes: &'static (impl AsRef<[u8]> + ?Sized),
    ) -> Self {
        self.face_mut().assets.add(Asset::new(name, content_type, bytes.as_ref()));
        self
    }

    /// Adds a number, which `status`, `/status` and `/metrics` show under `name`.
    pub fn figure(mut self, name: &'static str, query: impl Fn() -> Query<u64> + Send + Sync + 'static) -> Self {
        self.face_mut().figures.push(Figure { name, query: Arc::new(query) });
        self
    }

    /// Lets other sites embed a button that commits an `E` made without fields, and shows what `count` counts. The owner of
    /// the program names the sites (`--embed`). Each item that they name is a store of its own.
    ///
    /// ```
    /// # use likewise::App;
    /// # use likewise::engine::{Event, Query, Schema};
    /// # #[derive(serde::Serialize, serde::Deserialize)]
    /// # struct Clapped {}
    /// # impl Event for Clapped { const NAME: &'static str = "Clapped"; }
    /// # fn schema() -> Schema {
    /// #     Schema::new("CREATE TABLE n (n INTEGER NOT NULL) STRICT; INSERT INTO n VALUES (0);")
    /// #         .on(|_: Clapped, db| db.execute("UPDATE n SET n = n + 1", ()))
    /// # }
    /// # fn count() -> Query<u64> { Query::first("SELECT n FROM n") }
    /// let app = App::new("claps", schema).embed::<Clapped>(count);
    /// # app.check().unwrap();
    /// ```
    pub fn embed<E: Event>(mut self, count: impl Fn() -> Query<u64> + Send + Sync + 'static) -> Self {
        let figure = Figure { name: "count", query: Arc::new(count) };
        self.face_mut().embed = Some(Embed { form: Form::new::<E>("embed"), figure });
        self
    }

    /// Adds routes of your own to every store, behind the same guard as the program's. A handler that asks for a
    /// [`Store`](crate::engine::Store) gets the one that the address names. One that makes addresses asks for a [`Render`]:
    /// they begin with [`Render::base`].
    ///
    /// [`likewise::axum`](crate::axum) is the axum to write them with. Extractors and answers are axum's own, such as
    /// `Query` and `Json`.
    ///
    /// ```
    /// # use likewise::{App, Html};
    /// # use likewise::engine::{Event, Query, Schema, Store};
    /// use likewise::axum::http::StatusCode;
    /// use likewise::axum::routing::get;
    /// use likewise::axum::{Json, Router};
    ///
    /// # let schema = || Schema::new("CREATE TABLE n (n INTEGER NOT NULL) STRICT; INSERT INTO n VALUES (0);");
    /// fn count() -> Query<u64> {
    ///     Query::first("SELECT n FROM n")
    /// }
    ///
    /// /// `GET /count.json`, and `GET /s/NAME/count.json` for the other stores.
    /// async fn count_json(store: Store) -> Result<Json<u64>, (StatusCode, String)> {
    ///     match store.read(count()).await {
    ///         Ok(count) => Ok(Json(count)),
    ///         Err(why) => Err((StatusCode::SERVICE_UNAVAILABLE, why.to_string())),
    ///     }
    /// }
    ///
    /// let app = App::new("counter", schema).routes(Router::new().route("/count.json", get(count_json)));
    /// # app.check().unwrap();
    /// ```
    pub fn routes(mut self, routes: axum::Router) -> Self {
        let face = self.face_mut();
        face.routes = std::mem::take(&mut face.routes).merge(routes);
        self
    }

    /// Adds a command. Its [`Context`] reads and commits, whether or not a process serves the data directory.
    ///
    /// [`likewise::clap`](crate::clap) is the clap to describe it with. `run` is given the command's own arguments. What it
    /// returns becomes the exit code; an error is printed after the program's name.
    ///
    /// ```
    /// # use likewise::engine::{Event, Query, Schema};
    /// use likewise::clap::{Arg, ArgMatches, Command};
    /// use likewise::{App, Context, NodeError};
    /// use std::process::ExitCode;
    ///
    /// # #[derive(serde::Serialize, serde::Deserialize)]
    /// # struct ItemAdded { name: String }
    /// # impl Event for ItemAdded { const NAME: &'static str = "ItemAdded"; }
    /// # fn schema() -> Schema {
    /// #     Schema::new("CREATE TABLE item (name TEXT NOT NULL) STRICT")
    /// #         .on(|ItemAdded { name }, db| db.execute("INSERT INTO item VALUES (?1)", [name]))
    /// # }
    /// # fn count() -> Query<u64> { Query::first("SELECT count(*) FROM item") }
    /// async fn add(matches: ArgMatches, context: Context) -> Result<ExitCode, NodeError> {
    ///     let name = matches.get_one::<String>("name").cloned().unwrap_or_default();
    ///     context.commit(ItemAdded { name }).await?;
    ///     println!("{} items", context.read(count()).await?);
    ///     Ok(ExitCode::SUCCESS)
    /// }
    ///
    /// let app = App::new("groceries", schema)
    ///     .command(Command::new("add").about("Write an item on the list").arg(Arg::new("name").required(true)), add);
    /// # app.check().unwrap();
    /// ```
    pub fn command<R, E>(
        mut self,
        command: clap::Command,
        run: impl Fn(clap::ArgMatches, Context) -> R + Send + Sync + 'static,
    ) -> Self
    where
        R: Future<Output = Result<ExitCode, E>> + Send + 'static,
        E: Into<BoxError>,
    {
        let run = move |matches: clap::ArgMatches, context: Context| -> Running {
            let running = run(matches, context);
            Box::pin(async move { running.await.map_err(Into::into) })
        };
        self.commands.push(AppCommand { command, run: Arc::new(run) });
        self
    }

    /// Runs the app as a whole program, with every command, and returns the exit code.
    pub fn main(self) -> ExitCode {
        cli::run(&self)
    }

    /// Opens the app without a server: its stores, locked against other processes, and in sync with a hub if the
    /// options name one. Call it in a Tokio runtime.
    ///
    /// # Errors
    ///
    /// When something is wrong with the app or the options, or another process has the data directory.
    pub fn open(&self, options: Options) -> Result<Node, NodeError> {
        self.check().map_err(anyhow::Error::from)?;
        let base = base(self, &options)?;
        Ok(Node::start(self, base, &options, StoreLimits::default(), CancellationToken::new())?)
    }

    /// Serves the app on `listener` until `shutdown` is done, then lets requests and stores finish.
    ///
    /// Each page and each store takes open files, so this raises the process's limit of open files as far as it may.
    ///
    /// How many connections may wait to be accepted is up to the listener. [`TcpListener::bind`] allows 128. If more pages
    /// may connect at once, make the listener with [`TcpSocket::listen`](tokio::net::TcpSocket::listen); the program itself
    /// asks for 4,096.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open); also when the app's first store can't be used.
    pub async fn serve(
        &self,
        options: Options,
        listener: TcpListener,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), NodeError> {
        self.check().map_err(anyhow::Error::from)?;
        let base = base(self, &options)?;
        let token = CancellationToken::new();
        let door = Listener::from(listener).into_door().map_err(anyhow::Error::from)?;
        let first = door.open().map_err(anyhow::Error::from)?;
        let server = Server::prepare(self, Role::App, options.clone(), base, first, token.child_token()).await?;
        let _ends_with_this = token.clone().drop_guard();
        let end = token.clone();
        tokio::spawn(async move {
            end.run_until_cancelled(shutdown).await;
            end.cancel();
        });
        Ok(serve::run(self, Role::App, options, server, door, token).await?)
    }

    /// Says what is wrong with the app, as far as that can be known before it runs. It writes nothing and needs no server, so
    /// it fits into a test; the program calls it at each start.
    ///
    /// It tries the app on a state in memory, empty at first and then with rows of made-up events. The page has no
    /// parameters there. So it doesn't find
    ///
    /// - statements and names that are only reached with other rows, parameters or branches,
    /// - what a query or a figure costs, or that it fails on some value,
    /// - routes of the app's own that collide with others: these are refused when the app is served,
    /// - Rust code in a materializer that would make devices differ; see [`converges`](crate::testing::converges).
    ///
    /// # Errors
    ///
    /// The first of these, with the name of the part:
    ///
    /// - a name that is malformed, doubled, or the program's own;
    /// - a schema that breaks a rule, and a materializer with a statement that can't be prepared;
    /// - a form whose event no materializer takes;
    /// - a fragment whose query can't be prepared, has another number of parameters than are bound, or is read by columns
    ///   that it doesn't have;
    /// - a figure or an embedded count that has no number in an empty store;
    /// - a form, fragment or asset that the page or a fragment names and that isn't there.
    pub fn check(&self) -> Result<(), AppError> {
        let is_word = |name: &str, most: usize| {
            let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'_';
            name.len() <= most
                && name.starts_with(|first: char| first.is_ascii_lowercase())
                && name.bytes().all(allowed)
        };
        let malformed = |what, name: &str, most: usize| AppError::Name {
            what,
            name: name.to_owned(),
            why: format!("use 1 to {most} characters, a to z, 0 to 9, - and _, beginning with a letter"),
        };
        if !is_word(self.name, MAX_APP_NAME) || self.name.contains('_') {
            return Err(malformed("an app", self.name, MAX_APP_NAME));
        }
        if let Err(why) = self.store_name().parse::<StoreId>() {
            let (what, name) = ("a store", self.store_name().to_owned());
            return Err(AppError::Name { what, name, why: why.to_string() });
        }
        let Face { forms, fragments, figures, .. } = &*self.face;
        let commands: Vec<&str> = self.commands.iter().map(|command| command.command.get_name()).collect();
        let kinds: [(_, _, Vec<&str>, &[&str]); 4] = [
            ("a form", "forms", forms.iter().map(|form| form.name).collect(), &[]),
            ("a fragment", "fragments", fragments.iter().map(|fragment| fragment.name).collect(), &EVENTS),
            ("a figure", "figures", figures.iter().map(|figure| figure.name).collect(), &TAKEN_FROM_FIGURES),
            ("a command", "commands", commands, &OWN_COMMANDS),
        ];
        for (what, plural, names, taken) in kinds {
            for (place, name) in names.iter().enumerate() {
                if !is_word(name, MAX_NAME) {
                    return Err(malformed(what, name, MAX_NAME));
                }
                if RESERVED.contains(name) || taken.contains(name) {
                    let why = "every program has something of that name; choose another".to_owned();
                    return Err(AppError::Name { what, name: (*name).to_owned(), why });
                }
                if names[..place].contains(name) {
                    return Err(AppError::Doubled { what: plural, name: (*name).to_owned() });
                }
            }
        }
        check_assets(self.face.assets.own())?;
        cli::check(self)?;
        let mut rehearsal = Rehearsal::new(&self.face);
        self.schema().rehearsed(|state| Ok(rehearsal.run(state)?))
    }

    /// The name of the program. Its data directory and environment variables are named after it.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// The version that the program shows.
    pub(crate) fn version_text(&self) -> &'static str {
        self.face.version
    }

    /// What the help says about the program.
    pub(crate) fn about_text(&self) -> &'static str {
        self.about
    }

    /// The prefix of the program's environment variables, such as `TODO` in `TODO_LISTEN`.
    pub(crate) fn prefix(&self) -> String {
        self.name.to_ascii_uppercase().replace('-', "_")
    }

    /// The store whose routes have no prefix.
    pub(crate) fn store_name(&self) -> &'static str {
        self.face.store
    }

    /// A new copy of the schema. A program makes one for its stores, and one for each look at their files.
    pub(crate) fn schema(&self) -> Schema {
        (self.schema)()
    }

    /// What people see of the app: its forms, fragments, figures, nouns and page.
    pub(crate) fn face(&self) -> &Arc<Face> {
        &self.face
    }

    fn face_mut(&mut self) -> &mut Face {
        Arc::make_mut(&mut self.face)
    }

    /// The commands that the app adds.
    pub(crate) fn commands(&self) -> &[AppCommand] {
        &self.commands
    }
}

/// Refuses files whose name makes no address of their own, and those without a content type.
fn check_assets(assets: &[Asset]) -> Result<(), AppError> {
    for (place, Asset { name, kind, .. }) in assets.iter().enumerate() {
        let refuse = |what, why: String| Err(AppError::Name { what, name: (*name).to_owned(), why });
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        if name.len() > MAX_NAME
            || !name.starts_with(|first: char| first.is_ascii_alphanumeric())
            || !name.bytes().all(allowed)
        {
            let why =
                format!("use 1 to {MAX_NAME} letters, digits, `.`, `-` and `_`, beginning with a letter or digit");
            return refuse("an asset", why);
        }
        if assets::is_common(name) {
            return refuse("an asset", "every program has a file of that name; choose another".to_owned());
        }
        if assets[..place].iter().any(|other| other.name == *name) {
            return Err(AppError::Doubled { what: "assets", name: (*name).to_owned() });
        }
        if !kind.contains('/') || HeaderValue::from_str(kind).is_err() {
            return refuse("an asset", format!("`{kind}` is no content type; use one such as `text/css`"));
        }
    }
    Ok(())
}

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App").field("name", &self.name).field("version", &self.face.version).finish_non_exhaustive()
    }
}
