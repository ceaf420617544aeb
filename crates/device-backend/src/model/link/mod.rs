// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What accesses to memory would cost on hardware: `docs/reference/link-model.md`.
//!
//! [`Traffic`] is what a command did, by side of the link: it is counted always. [`clock::Clock`]
//! turns it into simulated time, in integers and from nothing but traffic and [`Timing`], so
//! a slow host changes no figure. [`Pace`] holds a command back until as much of the host's
//! time has passed. Only the last looks at the host's clock, and waits.

mod clock;
mod pace;
mod singles;
mod timing;
mod traffic;

#[cfg(test)]
mod tests;

pub use clock::{Picoseconds, Visit};
pub use pace::Pace;
pub use singles::Singles;
pub use timing::{Timing, TimingError};
pub use traffic::{Access, Accesses, Flow, Side, Traffic};
