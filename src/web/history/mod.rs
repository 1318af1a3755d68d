//! Who brought a store's events, and when: the second view of a store. Strangers don't see it.

mod chart;
mod days;

use askama::Template;
use axum::extract::State;
use axum::response::Response;

use self::chart::{Chart, Unit};
use self::days::{Calendar, date_of};
use super::face::{Face, Nouns};
use super::problem::Problem;
use super::views::{View, links};
use super::{App, Html, IntoHtml as _, Opened};
use crate::clock;
use crate::engine::{Device, History};
use crate::limits::web::history::{DEVICES, RECENT};

/// The view.
#[derive(Template)]
#[template(path = "history.html")]
struct HistoryView<'a> {
    face: &'a Face,
    store: &'a str,
    home: String,
    links: Html,
    account: Account,
}

/// What the view says.
#[derive(Debug)]
struct Account {
    nouns: Nouns,
    /// All events, those that wait and those that are missing included.
    total: u64,
    /// Those that wait for a place in the log.
    pending: u64,
    /// Those of which nothing is known but their number: they are in the hub's snapshot.
    missing: u64,
    /// The devices that brought most, with how many they brought.
    devices: Vec<Brought>,
    /// How many the other devices brought, and how many devices these are.
    others: Option<(u64, usize)>,
    sums: Option<Sums>,
    chart: Option<Chart>,
    /// Events whose time can't be right.
    undated: u64,
}

#[derive(Debug)]
struct Brought {
    device: Device,
    count: u64,
    is_this_device: bool,
}

/// How many happened in which time.
#[derive(Debug)]
struct Sums {
    today: u64,
    recently: u64,
    ever: u64,
    since: String,
}

impl Account {
    /// Tells a history in words, as of `today`, on the device `here`.
    fn of(nouns: Nouns, history: History, today: i32, here: &Device) -> Self {
        let History { devices, days, undated, pending, missing, .. } = history;
        let in_log: u64 = devices.values().sum();
        let mut devices: Vec<_> = devices.into_iter().collect();
        devices.sort_by(|(a, some), (b, others)| others.cmp(some).then_with(|| a.as_str().cmp(b.as_str())));
        let rest = devices.split_off(devices.len().min(DEVICES));
        let others = (!rest.is_empty()).then(|| (rest.iter().map(|(_, count)| count).sum(), rest.len()));
        let is_here = |device: &Device| device == here;
        let devices = devices
            .into_iter()
            .map(|(device, count)| Brought { is_this_device: is_here(&device), device, count })
            .collect();
        // A clock may be a little fast. What is further ahead can't be right.
        let (mut past, mut future) = (days, 0);
        for (day, count) in past.split_off(&(today + 1)) {
            if day == today + 1 {
                *past.entry(today).or_insert(0) += count;
            } else {
                future += count;
            }
        }
        let sum = |from: i32| past.range(from..).map(|(_, count)| count).sum();
        let sums = past.first_key_value().map(|(first, _)| Sums {
            today: sum(today),
            recently: sum(today - RECENT + 1),
            ever: sum(i32::MIN),
            since: date_of(*first).strftime("%-d %B %Y").to_string(),
        });
        let (total, chart) = (in_log + pending + missing, Chart::of(&past, today));
        Self { nouns, total, pending, missing, devices, others, sums, chart, undated: undated + future }
    }
}

/// `GET /history`
pub(crate) async fn history(State(app): State<App>, Opened { asked, store, .. }: Opened) -> Result<Response, Problem> {
    // What is found in the files is answered from only after they are opened, and so known to be on disk.
    store.healthy().await;
    let name = store.id().clone();
    let counted = tokio::task::spawn_blocking(move || {
        let mut calendar = Calendar::here();
        let today = calendar.day(clock::unix_millis());
        store.history(|millis| calendar.day(millis)).map(|history| (history, today))
    });
    let (history, today) = counted.await.map_err(Problem::internal)??;
    // With a clock that was never set, the last event says what day it may be.
    let today = today.or_else(|| history.days.last_key_value().map(|(day, _)| *day)).unwrap_or_default();
    let account = Account::of(app.face.nouns, history, today, &app.device);
    let view = HistoryView {
        face: &app.face,
        store: if name.as_str() == app.face.store { "" } else { name.as_str() },
        home: asked.home(),
        links: links(&app.face, asked.base(), View::History),
        account,
    };
    Ok(view.into_html().map_err(Problem::internal)?.into_page())
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};

    use super::*;

    const NOUNS: Nouns = Nouns { one: "like", many: "likes" };

    fn device(name: &str) -> Device {
        name.parse().expect("a name")
    }

    #[test]
    fn the_devices_that_brought_most_come_first_and_the_rest_together() {
        let many: HashMap<_, _> = (0..DEVICES as u64 + 3).map(|n| (device(&format!("d{n:03}")), n)).collect();
        let history = History { devices: many, pending: 2, ..History::default() };
        let account = Account::of(NOUNS, history, 20_000, &device("d002"));
        assert_eq!(account.devices.len(), DEVICES);
        assert_eq!(account.devices[0].device, device("d052"));
        assert_eq!(account.others, Some((3, 3)));
        assert_eq!(account.total, (0..DEVICES as u64 + 3).sum::<u64>() + 2);
    }

    #[test]
    fn a_clock_ahead_by_a_day_counts_today_and_one_further_ahead_not_at_all() {
        let today = 20_000;
        let days = BTreeMap::from([(today - 30, 1), (today - 29, 2), (today, 4), (today + 1, 8), (today + 2, 16)]);
        let history = History { days, undated: 32, ..History::default() };
        let account = Account::of(NOUNS, history, today, &device("here"));
        let sums = account.sums.expect("sums");
        assert_eq!((sums.today, sums.recently, sums.ever), (12, 14, 15));
        assert_eq!(account.undated, 48);
        assert_eq!(account.chart.expect("a chart").bars.iter().map(|bar| bar.count).sum::<u64>(), 15);
    }
}
