// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Addresses of processes, and what the device remembers of them.
//!
//! The device translates by itself as long as it can: the cache holds what the driver told
//! it before. Who works on translated memory holds a [`Lease`] meanwhile, and waits for nothing.
//! What the cache does not know, the driver is asked for; who asks holds no lease. An
//! invalidation forgets what it names and returns when the last lease of that has ended. So there
//! is no access after an acknowledged invalidation, and none waits for another one's question.
//!
//! ```text
//!            lease                    ask                   PAGE_RESPONSE
//!   command ------> known? -- no ---> request -- driver --> answer --> known
//!      ^              | yes               |                    |
//!      |              v                   '-- CANCEL, RESET, --+--> ended
//!      '--- drop -- access                    UNBIND, stop     (looks again)
//! ```

mod granules;
mod leases;
mod page;
mod pages;
mod requests;
mod spaces;
mod tally;

#[cfg(test)]
mod tests;

pub use granules::{Counted, Hot};
pub use page::{Access, Answer, Frame, PageSize, Pasid, Translation, VirtualRange};
pub use pages::Capacity;
pub use spaces::{AddressSpaces, Asked, Lease, Piece, Space};
pub use tally::Translated;
