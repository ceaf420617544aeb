// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `--print-capabilities`, by the conventions of QEMU's docs/interop/vhost-user.json.

use serde::Serialize;

/// What kind of backend this is, for management programs.
///
/// QEMU's `VHostUserBackendType` has no value for a device that only
/// `vhost-user-test-device` can carry. `generic` is none of them on purpose: a program that
/// looks for, say, an `rng` backend must not pick this one.
pub const BACKEND_TYPE: &str = "generic";

#[derive(Serialize)]
struct Capabilities {
    #[serde(rename = "type")]
    backend_type: &'static str,
    features: [&'static str; 0],
}

/// The capabilities as JSON.
pub fn to_json() -> serde_json::Result<String> {
    serde_json::to_string(&Capabilities {
        backend_type: BACKEND_TYPE,
        features: [],
    })
}
