// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Starts programs and keeps what they print.
