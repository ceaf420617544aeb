// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Landlock: no file but those that are open, no network but the sockets that are there, no
//! signal to anybody else.

use landlock::{
    ABI, Access, AccessFs, AccessNet, PathBeneath, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, RulesetStatus, Scope,
};
use std::os::fd::BorrowedFd;

/// The newest set of rights that we know; an older kernel takes those that it knows.
const NEWEST: ABI = ABI::V6;

/// Why landlock does not hold us.
#[derive(Debug, thiserror::Error)]
pub enum LandlockError {
    /// The kernel refuses the rules.
    #[error(transparent)]
    Rules(#[from] RulesetError),
    /// It was built or booted without it.
    #[error("not in this kernel")]
    Absent,
}

/// Locks the calling thread, and those it starts, out of everything but removing files from
/// `folders`: sockets of ours, which go with us.
pub fn lock(folders: &[BorrowedFd<'_>]) -> Result<(), LandlockError> {
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    for folder in folders {
        rules = rules.add_rule(PathBeneath::new(folder, AccessFs::RemoveFile))?;
    }
    match rules.restrict_self()?.ruleset {
        RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced => Ok(()),
        RulesetStatus::NotEnforced => Err(LandlockError::Absent),
    }
}
