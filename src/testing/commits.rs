//! What machines commit in a story, and what comes of it.

use std::collections::BTreeSet;

use super::cluster::{Tally, is_kept};
use super::{Rng, Simulation};
use crate::engine::{Envelope, EventId, Outcome};

/// Makes one of the author's events.
pub(super) fn new_event(simulation: &Simulation, rng: &mut Rng) -> Envelope {
    let draft = (simulation.events)(rng);
    let event = draft.seal(|| rng.new_id());
    let event = event.unwrap_or_else(|why| panic!("the test made what can't be an event: {why}"));
    rng.remember(&event);
    event
}

pub(super) fn some_events(simulation: &Simulation, rng: &mut Rng) -> Vec<Envelope> {
    (0..rng.below(4)).map(|_| new_event(simulation, rng)).collect()
}

/// Chooses what a machine commits: mostly new events, sometimes a known event again, or another event under a known id.
/// Returns that id, too. Another machine may commit its event now, so its order is no longer checked.
pub(super) fn choose(
    simulation: &Simulation,
    rng: &mut Rng,
    acknowledged: &[Envelope],
) -> (Vec<Envelope>, Option<EventId>) {
    let mut events = some_events(simulation, rng);
    if !rng.chance(20) || acknowledged.is_empty() {
        return (events, None);
    }
    let mut known = rng.pick(acknowledged).clone();
    if rng.chance(30) {
        let other = new_event(simulation, rng);
        known = Envelope { id: known.id, ..other };
    }
    let id = known.id;
    events.push(known);
    (events, Some(id))
}

/// Notes the outcomes of events at the machine that committed them. Returns the ids that were committed there and nowhere
/// else before.
pub(super) fn note(
    events: Vec<Envelope>,
    outcomes: Vec<Outcome>,
    acknowledged: &mut Vec<Envelope>,
    tally: &mut Tally,
) -> Vec<EventId> {
    let known: BTreeSet<_> = acknowledged.iter().map(|event| event.id).collect();
    let mut committed = Vec::new();
    for (event, outcome) in events.into_iter().zip(outcomes) {
        let tried = tally.entry(event.name.as_str().to_owned()).or_default();
        match &outcome {
            Outcome::Stored(_) => tried.taken += 1,
            Outcome::Refused(why) => {
                tried.refused += 1;
                tried.why.clone_from(why);
            }
            _ => {}
        }
        if is_kept(&outcome) && !acknowledged.contains(&event) {
            if !known.contains(&event.id) {
                committed.push(event.id);
            }
            acknowledged.push(event);
        }
    }
    committed
}
