// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The driver's interface as its C header declares it
//! (`crates/guest-driver/uapi/cdm.h`, which also documents it).

#![allow(missing_docs, non_camel_case_types)]

include!(concat!(env!("OUT_DIR"), "/cdm.rs"));
