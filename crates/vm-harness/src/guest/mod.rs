// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What one does with a guest that runs in another terminal: a second shell, and files.

pub mod copy;
pub mod shell;
