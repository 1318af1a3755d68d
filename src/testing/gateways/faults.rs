//! What breaks: processes, power, networks, the stream and the bucket; and what people do with files.

use std::fs;
use std::mem::take;

use super::{Access, Gate, Gateways, Machine, Roamer, Role, WORKS, open};
use crate::engine::{Envelope, Seq};
use crate::testing::cluster::{all_of, leave_after_power_cut};
use crate::testing::scratch::copy_dir;

impl Gateways<'_> {
    /// Kills the process of a machine, and usually restarts it.
    pub(super) fn crash(&mut self, at: usize) {
        let next = self.new_dir();
        let stays_down = self.rng.chance(30);
        let machine = &mut self.machines[at];
        let was_up = machine.replica.is_some();
        if was_up {
            copy_dir(&machine.dir, &next);
            machine.replica = None;
            fs::remove_dir_all(&machine.dir).expect(WORKS);
            machine.dir = next;
        }
        self.forget_memory(at);
        if !was_up || !stays_down {
            self.start(at);
        }
    }

    fn start(&mut self, at: usize) {
        self.machines[at].replica = Some(open(self.simulation, &self.machines[at].dir).expect(WORKS));
    }

    pub(super) fn start_if_down(&mut self, at: usize) {
        if self.machines[at].replica.is_none() {
            self.start(at);
        }
    }

    /// Takes away what a process had in memory. What a gateway shares with others is in its files.
    fn forget_memory(&mut self, at: usize) {
        match &mut self.machines[at].role {
            Role::Gate(gate) => {
                let Gate { access, life, .. } = take(&mut **gate);
                **gate = Gate { access, life: life + 1, ..Gate::default() };
            }
            Role::Roamer(roamer) => **roamer = Roamer { is_old: roamer.is_old, ..Roamer::default() },
        }
    }

    /// Cuts the power of a machine during a write.
    pub(super) fn cut_power(&mut self, at: usize) {
        if self.machines[at].replica.is_none() {
            return;
        }
        let (before, after, left) = (self.new_dir(), self.new_dir(), self.new_dir());
        copy_dir(&self.machines[at].dir, &before);
        match self.rng.below(3) {
            0 => {
                let events = [self.new_event(), self.new_event()];
                self.replica(at).commit(&events).expect(WORKS);
            }
            _ if self.is_gate(at) => drop(self.work(at, true)),
            _ => drop(self.roamer(at).pull.is_some() && self.pull_page(at, 3)),
        }
        let machine = &mut self.machines[at];
        copy_dir(&machine.dir, &after);
        machine.replica = None;
        leave_after_power_cut(&mut self.rng, &before, &after, None, &left);
        let machine = &mut self.machines[at];
        fs::remove_dir_all(&machine.dir).expect(WORKS);
        machine.dir = left;
        self.forget_memory(at);
        self.start(at);
    }

    /// Cuts a machine off, or lets it back.
    pub(super) fn cut_off(&mut self, at: usize) {
        self.machines[at].is_cut_off ^= true;
        self.reconnect(at);
    }

    pub(super) fn reconnect(&mut self, at: usize) {
        if let Some((_, gate)) = self.running(at) {
            gate.life += 1;
            gate.outstanding = None;
            if let Some(gateway) = &mut gate.gateway {
                gateway.reconnected();
            }
        }
    }

    pub(super) fn back_up(&mut self, at: usize) {
        if self.is_gate(at) && self.machines[at].replica.is_some() {
            let dir = self.new_dir();
            copy_dir(&self.machines[at].dir, &dir);
            let access = self.gate(at).access.clone();
            self.backups.push((dir, access));
        }
    }

    /// Replaces a machine with a backup, with a copy of another one, or with an empty one.
    pub(super) fn restore(&mut self, at: usize) {
        let dir = self.new_dir();
        let from = self.rng.below(self.machines.len());
        let mut access = Access::default();
        if self.rng.chance(50) && !self.backups.is_empty() && self.is_gate(at) {
            let (backup, of_backup) = self.rng.pick(&self.backups).clone();
            copy_dir(&backup, &dir);
            access = of_backup;
        } else if from != at && self.rng.chance(50) && self.is_gate(from) == self.is_gate(at) {
            copy_dir(&self.machines[from].dir, &dir);
            access = self.access_of(from);
        }
        let mut replica = open(self.simulation, &dir).expect(WORKS);
        replica.follow().expect(WORKS);
        self.forget_memory(at);
        let machine = &mut self.machines[at];
        machine.replica = None;
        fs::remove_dir_all(&machine.dir).expect(WORKS);
        // The new machine remembers nothing of the old one.
        (machine.dir, machine.replica) = (dir, Some(replica));
        machine.held.clear();
        machine.committed.clear();
        if let Role::Gate(gate) = &mut machine.role {
            gate.access = access;
        }
        self.forget_what_nobody_holds();
        self.forget_what_no_gate_knows();
    }

    /// Copies a machine's data directory. Both copies go on.
    pub(super) fn clone_machine(&mut self, at: usize) {
        if self.machines.len() >= 8 {
            return;
        }
        let dir = self.new_dir();
        copy_dir(&self.machines[at].dir, &dir);
        let held = self.machines[at].held.clone();
        let role = match self.is_gate(at) {
            true => Role::Gate(Box::new(Gate { access: self.access_of(at), ..Gate::default() })),
            false => Role::Roamer(Box::default()),
        };
        let replica = Some(open(self.simulation, &dir).expect(WORKS));
        self.push_machine(Machine { dir, replica, is_cut_off: false, held, committed: Vec::new(), role });
    }

    /// A new leader of the stream lacks the last messages.
    pub(super) fn forget_tail(&mut self) {
        let count = 1 + self.rng.next() % 3;
        self.has_lost |= self.stream.forget_last(count);
        self.forget_what_nobody_holds();
    }

    /// The stream's files are damaged: a message in the middle is gone.
    pub(super) fn damage(&mut self) {
        let count = self.stream.count();
        if count > 1 {
            let nth = self.rng.below(count - 1);
            let lost = self.stream.damage(nth);
            self.excused.extend(lost);
            self.has_lost = true;
            self.forget_what_nobody_holds();
        }
    }

    /// Somebody else publishes to the subject.
    pub(super) fn publish_junk(&mut self) {
        let last = self.stream.ends().last;
        let junk = *self.rng.pick(&["hello", "{}", r#"{"v":1,"events":[]}"#]);
        let _ = self.land(last, junk.as_bytes());
    }

    /// Forgets the acknowledged events that no machine and no message has any more: no one can bring them back.
    pub(super) fn forget_what_nobody_holds(&mut self) {
        let mut held: Vec<Envelope> = self.stream.events().collect();
        for machine in &self.machines {
            match &machine.replica {
                Some(replica) => held.extend(all_of(replica)),
                None => held.extend(machine.held.iter().cloned()),
            }
        }
        self.acknowledged.retain(|event| held.contains(event));
    }

    /// A machine accepts another log, as the person using it would have it do.
    pub(super) fn adopt(&mut self, at: usize) {
        let replica = self.replica(at);
        let before = crate::testing::cluster::ids_of(replica);
        replica.take_back(Seq::START, crate::engine::Whose::Upstream(None)).expect(WORKS);
        assert_eq!(crate::testing::cluster::ids_of(replica), before);
        self.forget_memory(at);
        self.look_at(at);
    }
}
