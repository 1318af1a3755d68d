//! The store that a request names: its name, the open store, and who may make a new one.

use axum::extract::{FromRef, FromRequestParts, RawPathParams};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse as _, Response};
use tokio::sync::watch;

use super::guard::Asker;
use super::{App, Problem, Services, Who};
use crate::engine::{Device, Error, Store, StoreId};
use crate::limits::web::shares::{TOKENS_STORES, VISITORS_LINKS};
use crate::sync::{LinkStatus, code};

/// The store that a request names, not opened yet.
pub(crate) struct AskedStore {
    id: StoreId,
    base: String,
}

impl AskedStore {
    /// The store's name.
    pub(crate) fn id(&self) -> &StoreId {
        &self.id
    }

    /// What the addresses of this store begin with.
    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    /// Where the page is.
    pub(crate) fn home(&self) -> String {
        format!("{}/", self.base)
    }
}

impl<S> FromRequestParts<S> for AskedStore
where
    S: Send + Sync,
    App: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let params = RawPathParams::from_request_parts(parts, state).await.map_err(|error| {
            Problem::bad_request("malformed-store", error.to_string(), "Check the address for typing errors.")
        })?;
        let name = params.iter().find(|(param, _)| *param == "store").map(|(_, name)| name);
        let face = App::from_ref(state).face.clone();
        let id: StoreId = name.unwrap_or(face.store).parse().map_err(|error: crate::engine::Malformed| {
            Problem::new(
                StatusCode::NOT_FOUND,
                "no-such-store",
                format!("{error}."),
                "Check the address for typing errors. Every name of that form is a store, even one that is still empty.",
            )
        })?;
        Ok(Self { base: face.base(&id), id })
    }
}

/// The store that a request names, open.
pub(crate) struct Opened {
    pub(crate) asked: AskedStore,
    pub(crate) store: Store,
    /// The state of its connection to the upstream.
    pub(crate) link: watch::Receiver<LinkStatus>,
    /// Who asks.
    pub(crate) who: Who,
}

impl<S> FromRequestParts<S> for Opened
where
    S: Send + Sync,
    App: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let asked = AskedStore::from_request_parts(parts, state).await?;
        let app = App::from_ref(state);
        let who = Asker::of(parts).who;
        let is_embedded = || app.embedding.as_ref().is_some_and(|embedding| embedding.has(&asked.id));
        if who == Who::Visitor && !parts.method.is_safe() && is_embedded() {
            return Err(Problem::forbidden(
                "embedded-only",
                format!("{} to this come from the sites that show it.", app.face.nouns.many_capitalized()),
                "Nothing was stored. Use the button there.",
            ));
        }
        let store = app.stores.get_leaving(&asked.id, who.spare(app.stores.limits()))?.on_behalf_of(who.named());
        if let Who::Token(device) = &who {
            app.hub.saw(device, &asked.id, None);
        }
        // The upstream may have a store that isn't here, so it is asked. The owner may have it asked about any name;
        // strangers could make up names for ever.
        let most = if who == Who::Visitor && store.is_absent() { VISITORS_LINKS } else { usize::MAX };
        let link = app.clients.attend(&store, most);
        Ok(Self { asked, store, link, who })
    }
}

impl Services {
    /// Those of the app whose own route gets this request.
    pub(super) fn of(parts: &Parts) -> Result<App, Problem> {
        let app = parts.extensions.get().cloned();
        app.ok_or_else(|| Problem::internal("a store was asked for outside of an app's routes"))
    }

    /// Opens `store` for events from `who`. A new store uses up a part of what they may make.
    pub(crate) fn begin(&self, store: &Store, who: &Who) -> Result<(), Problem> {
        match who {
            Who::Token(device) if store.is_absent() => self.make(store, device),
            _ => Ok(self.open(store, who)?),
        }
    }

    /// Makes a store for a device, unless the device has made its share.
    fn make(&self, store: &Store, device: &Device) -> Result<(), Problem> {
        let limits = self.stores.limits();
        let most = limits.stores / TOKENS_STORES;
        if self.hub.stores_made_by(device) >= most {
            return Err(Problem::new(
                StatusCode::INSUFFICIENT_STORAGE,
                code::TOO_MANY_STORES,
                format!("The device {} has made {most} stores here, which is the limit.", device.as_str()),
                "Nothing was stored. Use a store that exists.",
            ));
        }
        if store.begin(Who::Token(device.clone()).spare(limits))? {
            self.hub.made(device);
        }
        Ok(())
    }

    /// Opens a store. Unless `who` is the owner, a new store counts against the quota of a token, or the one that all visitors
    /// share.
    fn open(&self, store: &Store, who: &Who) -> Result<(), Error> {
        let is_counted = *who != Who::Owner && store.is_absent();
        if is_counted {
            self.shares.visitors_stores.take(who, 1.0).map_err(Error::TooManyNewStores)?;
        }
        let begun = store.begin(who.spare(self.stores.limits()));
        if is_counted && !matches!(begun, Ok(true)) {
            self.shares.visitors_stores.give_back(who, 1.0);
        }
        begun.map(drop)
    }
}

/// A handler of an app's own routes gets the store that the address names. A missing store is made by its first event,
/// and counts against what the sender of the request may make.
impl<S: Send + Sync> FromRequestParts<S> for Store {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Response> {
        let app = Services::of(parts).map_err(Problem::into_response)?;
        let opened = Opened::from_request_parts(parts, &app).await;
        let Opened { store, who, .. } = opened.map_err(Problem::into_response)?;
        Ok(store.opened_by(move |store| app.open(store, &who)))
    }
}
