// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Addresses of processes, and what the device remembers of them.
//!
//! The device translates by itself as long as it can: the cache holds what the driver told
//! it before. Who works on translated memory holds a [`Lease`] meanwhile. An invalidation
//! forgets what it names, lets no answer in that is older than itself, and returns when the
//! last lease has ended. So there is no access after an acknowledged invalidation.

mod cache;
mod page;

#[cfg(test)]
mod tests;

pub use cache::{Capacity, Lease, Question, Stale, TranslationCache};
pub use page::{Access, PageSize, Pasid, Translation, VirtualRange};
