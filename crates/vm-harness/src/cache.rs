// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Results kept under a hash of what went into them.
