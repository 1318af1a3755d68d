//! What people do with files: they clone devices, restore backups, and delete the hub's data.

use std::fs;
use std::path::PathBuf;

use super::checks::{all_of, ids_of, log_of};
use super::{Cluster, Node, WORKS, open};
use crate::engine::{Envelope, Seq, Whose};
use crate::testing::scratch::copy_dir;

impl Cluster<'_> {
    /// Copies a node's data directory. Both copies go on.
    pub(super) fn clone_node(&mut self, at: usize) {
        if self.nodes.len() >= 5 {
            return;
        }
        let dir = self.new_dir();
        let node = &self.nodes[at];
        copy_dir(&node.dir, &dir);
        let (held, below, is_lied_to) = (node.held.clone(), node.below.clone(), node.is_lied_to);
        let replica = open(self.simulation, &dir).expect(WORKS);
        self.nodes.push(Node { held, below, is_lied_to, ..Node::new(dir, replica) });
        self.look_at(self.nodes.len() - 1);
    }

    /// Replaces a node with a copy of another one, or with an empty one. Events that only this node held are gone.
    pub(super) fn restore_node(&mut self, at: usize) {
        let dir = self.new_dir();
        let from = self.rng.below(self.nodes.len());
        let (mut below, mut is_lied_to) = (None, false);
        if from != at && self.rng.chance(50) {
            copy_dir(&self.nodes[from].dir, &dir);
            below.clone_from(&self.nodes[from].below);
            is_lied_to = self.nodes[from].is_lied_to;
        }
        let mut replica = open(self.simulation, &dir).expect(WORKS);
        if let Whose::Own(_) = replica.standing().expect(WORKS).whose {
            replica.take_back(Seq::START, Whose::Upstream(None)).expect(WORKS);
        }
        let node = &mut self.nodes[at];
        node.replica = None;
        fs::remove_dir_all(&node.dir).expect(WORKS);
        // The new node remembers nothing of the old one.
        *node = Node { is_cut_off: node.is_cut_off, below, is_lied_to, ..Node::new(dir, replica) };
        self.forget_what_nobody_holds();
    }

    pub(super) fn back_up_authority(&mut self) {
        let dir = self.new_dir();
        copy_dir(&self.authority_dir, &dir);
        self.backups.push(dir);
    }

    /// Kills the authority and restarts it, on its own files or on others.
    pub(super) fn restart_authority(&mut self, from: Option<PathBuf>) {
        let next = self.new_dir();
        copy_dir(from.as_ref().unwrap_or(&self.authority_dir), &next);
        self.authority = None;
        fs::remove_dir_all(&self.authority_dir).expect(WORKS);
        self.authority_dir = next;
        self.authority = Some(open(self.simulation, &self.authority_dir).expect(WORKS));
        self.run += 1;
        self.look_at_authority();
    }

    pub(super) fn restore_authority(&mut self) {
        if self.backups.is_empty() {
            return;
        }
        self.authority_earlier = None;
        let backup = self.rng.pick(&self.backups).clone();
        self.restart_authority(Some(backup));
        self.forget_what_nobody_holds();
    }

    /// Deletes the authority's data and starts it again. It then has another log, which its clients have to adopt.
    pub(super) fn recreate_authority(&mut self) {
        self.authority_earlier = None;
        self.authority = None;
        fs::remove_dir_all(&self.authority_dir).expect(WORKS);
        self.authority_dir = self.new_dir();
        self.authority = Some(open(self.simulation, &self.authority_dir).expect(WORKS));
        self.run += 1;
        self.forget_what_nobody_holds();
    }

    /// Loses the hub for good. One of its devices that has all of the log is the hub from now on.
    pub(super) fn promote(&mut self, at: usize) {
        if self.nodes.len() < 3 || self.nodes[at].replica.is_none() {
            return;
        }
        self.drop_stream(at);
        if !self.replica(at).promote().expect(WORKS) {
            assert!(self.replica(at).base() > Seq::START, "only a log that isn't whole can't be an authority's");
            return;
        }
        let node = self.nodes.remove(at);
        self.authority = node.replica;
        fs::remove_dir_all(&self.authority_dir).expect(WORKS);
        self.authority_dir = node.dir;
        self.authority_earlier = None;
        self.run += 1;
        // The device's places are those on the wire. Older copies of the old hub count otherwise.
        self.stride = 1;
        self.backups.clear();
        self.forget_what_nobody_holds();
        self.look_at_authority();
    }

    /// Makes a node accept another log as its hub's, as the person using it would.
    pub(super) fn adopt(&mut self, at: usize) {
        // Without the history, a person has to accept that the other log lacks it.
        self.import_history(at);
        if self.nodes[at].replica.is_none() {
            self.crash(at);
        }
        let replica = self.replica(at);
        let before = ids_of(replica);
        replica.take_back(Seq::START, Whose::Upstream(None)).expect(WORKS);
        assert_eq!(ids_of(replica), before);
        self.look_at(at);
    }

    pub(super) fn forget_what_nobody_holds(&mut self) {
        let mut held: Vec<Envelope> = log_of(self.authority()).into_iter().map(|entry| entry.event).collect();
        for node in &self.nodes {
            match &node.replica {
                Some(replica) => held.extend(all_of(replica)),
                None => held.extend(node.held.iter().cloned()),
            }
        }
        self.acknowledged.retain(|event| held.contains(event));
    }
}
