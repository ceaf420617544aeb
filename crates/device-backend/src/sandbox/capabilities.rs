// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Capabilities: none, in any set.

use caps::errors::CapsError;
use caps::{CapSet, runtime};

/// Empties every set of the calling thread.
pub fn drop_all() -> Result<(), CapsError> {
    // The bounding set first, while we may change it. Who may not has no capability to lose by
    // it: with no new privileges, the set limits nothing that could still be gained.
    if caps::has_cap(None, CapSet::Effective, caps::Capability::CAP_SETPCAP)? {
        for capability in runtime::thread_all_supported() {
            caps::drop(None, CapSet::Bounding, capability)?;
        }
    }
    if runtime::ambient_set_supported().is_ok() {
        caps::clear(None, CapSet::Ambient)?;
    }
    for set in [CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        caps::clear(None, set)?;
    }
    Ok(())
}
