//! What goes wrong with calls of the simulated kernel: they fail, hang, or work and say that they failed.
//! Used by the same tests. A call that hangs does so on its thread, until a test lets all of them go on.

use std::collections::VecDeque;
use std::sync::{MutexGuard, PoisonError};

use tokio::sync::watch;

use super::{SimKernel, State};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It has no effect and says so.
    Fails,
    /// It has its effect and says that it failed.
    Lies,
    /// It hangs, and has its effect when it goes on.
    Hangs,
    /// It hangs, and then fails.
    HangsAndFails,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// After so many calls without one.
    After(u32),
    /// With the next call of this name, or that begins with it.
    At(&'static str),
}

/// Faults to come, one after the other, and the calls that hang.
#[derive(Debug, Default)]
pub struct Faults {
    coming: VecDeque<(When, Fault)>,
    hanging: watch::Sender<u32>,
    /// Their rounds.
    rounds: Vec<u64>,
    /// Another one when all that hang go on.
    round: u64,
    /// The calls that had one.
    struck: Vec<(String, Fault)>,
}

impl Faults {
    fn next(&mut self, call: &str) -> Option<Fault> {
        match &mut self.coming.front_mut()?.0 {
            When::After(0) => {}
            When::After(calls) => {
                *calls -= 1;
                return None;
            }
            When::At(name) if call.starts_with(*name) => {}
            When::At(_) => return None,
        }
        self.coming.pop_front().map(|(_, fault)| fault)
    }
}

impl SimKernel {
    /// What goes wrong from now on.
    pub fn go_wrong(&self, faults: impl IntoIterator<Item = (When, Fault)>) {
        let mut state = self.state();
        state.faults.coming = faults.into_iter().collect();
        state.faults.struck.clear();
    }

    /// The calls that went wrong since, and how.
    pub fn struck(&self) -> Vec<(String, Fault)> {
        self.state().faults.struck.clone()
    }

    /// How many calls hang.
    pub fn hanging(&self) -> watch::Receiver<u32> {
        self.state().faults.hanging.subscribe()
    }

    /// Lets all calls that hang go on, and waits until they have. Others may hang by then.
    pub fn release(&self) {
        let mut state = self.state();
        state.faults.round += 1;
        let now = state.faults.round;
        self.moved.notify_all();
        let hang = |state: &mut State| state.faults.rounds.iter().any(|round| *round < now);
        let ended = self.moved.wait_while(state, hang);
        drop(ended.unwrap_or_else(PoisonError::into_inner));
    }

    /// The fault of the call that begins now, when it has hung for as long as it is to.
    pub(super) fn suffer<'a>(
        &'a self,
        name: &str,
        mut state: MutexGuard<'a, State>,
    ) -> (MutexGuard<'a, State>, Option<Fault>) {
        let fault = state.faults.next(name);
        let struck = fault.map(|fault| (name.to_owned(), fault));
        state.faults.struck.extend(struck);
        if let Some(Fault::Hangs | Fault::HangsAndFails) = fault {
            let round = state.faults.round;
            state.faults.hanging.send_modify(|hanging| *hanging += 1);
            state.faults.rounds.push(round);
            let waits = |state: &mut State| state.faults.round == round;
            let waited = self.moved.wait_while(state, waits);
            state = waited.unwrap_or_else(PoisonError::into_inner);
            state.faults.hanging.send_modify(|hanging| *hanging -= 1);
            let rounds = &mut state.faults.rounds;
            if let Some(mine) = rounds.iter().position(|other| *other == round) {
                rounds.swap_remove(mine);
            }
            self.moved.notify_all();
        }
        (state, fault)
    }
}
