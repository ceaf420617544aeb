// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What processes do to their address space, and others to it, while its pages
//! are in the device or on their way.

mod advice;
mod core_dump;
mod debugger;
mod ends;
mod fork;
mod mappings;
mod peers;
mod userfault;

use crate::scenario::Scenario;

/// The family.
pub const SCENARIOS: &[Scenario] = &[
    fork::TREE,
    mappings::PATCHWORK,
    mappings::LOCKED,
    advice::ADVICE,
    userfault::MISSING,
    userfault::WRITES,
    userfault::MOVES,
    peers::PEERS,
    debugger::DEBUGGER,
    ends::ENDS,
    core_dump::CORE_DUMP,
];
