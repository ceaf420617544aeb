// SPDX-License-Identifier: Apache-2.0 OR MIT

//! From policies to filters in the kernel.
//!
//! Filters add up: a system call passes if all of a thread's filters let it pass. All
//! threads have one for each call that is answered with an error, and one that lets pass
//! what any role needs; a thread with a role has one more.

use super::policy::{self, Role, Rule, When};
use super::violation;
use nix::errno::Errno;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, apply_filter, apply_filter_all_threads,
};
use std::collections::BTreeMap;

/// The filters of the roles, ready to be applied.
#[derive(Clone)]
pub struct Programs(Vec<(Role, BpfProgram)>);

/// Why there is no filter.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// A policy makes no sense.
    #[error("policy: {0}")]
    Policy(#[from] BackendError),
    /// The kernel refuses.
    #[error(transparent)]
    Kernel(#[from] seccompiler::Error),
    /// No handler for violations.
    #[error("sigaction: {0}")]
    Handler(#[from] Errno),
}

impl Programs {
    /// Confines every thread of the process to the calls of all roles together.
    pub fn install() -> Result<Self, SeccompError> {
        violation::report_from_now_on()?;
        let programs = Role::ALL
            .into_iter()
            .map(|role| Ok((role, allow_list(policy::of(role))?)))
            .collect::<Result<_, BackendError>>()?;
        let everything = Role::ALL.into_iter().flat_map(policy::of);
        let base = allow_list(everything)?;
        // Of several answers to a call the kernel takes the hardest: an error outweighs the leave
        // that the lists give for these calls.
        for refused in policy::REFUSED {
            apply_filter_all_threads(&program(
                [(refused.call, Vec::new())].into(),
                SeccompAction::Allow,
                SeccompAction::Errno(refused.errno as u32),
            )?)?;
        }
        apply_filter_all_threads(&base)?;
        Ok(Self(programs))
    }

    /// Confines the calling thread to the calls of one role.
    pub fn narrow(&self, role: Role) {
        violation::name_thread(role.name());
        let found = self.0.iter().find(|(of, _)| *of == role);
        let (_, program) = found.expect("every role has a program");
        if let Err(error) = apply_filter(program) {
            panic!("cannot confine the thread '{}': {error}", role.name());
        }
    }
}

fn allow_list<'a>(rules: impl IntoIterator<Item = &'a Rule>) -> Result<BpfProgram, BackendError> {
    let refused = policy::REFUSED.iter().map(|refused| (refused.call, None));
    let mut calls: BTreeMap<i64, Option<Vec<SeccompRule>>> = refused.collect();
    for rule in rules {
        let entry = calls.entry(rule.call).or_insert_with(|| Some(Vec::new()));
        match (condition(&rule.when)?, entry) {
            // Allowed without a condition, whatever other rules say.
            (None, entry) => *entry = None,
            (Some(condition), Some(alternatives)) => {
                alternatives.push(SeccompRule::new(vec![condition])?);
            }
            (Some(_), None) => {}
        }
    }
    let calls = calls
        .into_iter()
        .map(|(call, alternatives)| (call, alternatives.unwrap_or_default()));
    program(calls.collect(), SeccompAction::Trap, SeccompAction::Allow)
}

fn program(
    calls: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    action: SeccompAction,
) -> Result<BpfProgram, BackendError> {
    SeccompFilter::new(calls, otherwise, action, TargetArch::x86_64)?.try_into()
}

fn condition(when: &When) -> Result<Option<SeccompCondition>, BackendError> {
    let (argument, operator, value) = match *when {
        When::Always => return Ok(None),
        When::Is { argument, value } => (argument, SeccompCmpOp::Eq, value),
        When::Masked {
            argument,
            mask,
            value,
        } => (argument, SeccompCmpOp::MaskedEq(mask), value),
        When::OwnProcess { argument } => {
            (argument, SeccompCmpOp::Eq, u64::from(std::process::id()))
        }
    };
    // All arguments looked at are ints or flags below 2^32.
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value).map(Some)
}
