// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Reads and writes of the config space, which a guest makes at any offset and length.
#![no_main]

use cdm_backend::model::Atomics;
use fuzz_rig::Guest;
use libfuzzer_sys::fuzz_target;
use vhost_user_backend::VhostUserBackend;

fuzz_target!(|accesses: Vec<(u32, u32, Option<Vec<u8>>)>| {
    let guest = Guest::connect(&[], false, Atomics::Exclusive);
    let adapter = guest.adapter();
    let length = size_of::<cdm_protocol::Config>() as u32;
    let before = adapter.get_config(0, length);
    assert_eq!(before.len(), length as usize);
    for (offset, bytes, written) in accesses {
        if let Some(written) = written {
            adapter
                .set_config(offset, &written)
                .expect("a write does not end the connection");
        }
        let end = u64::from(offset) + u64::from(bytes);
        let found = adapter.get_config(offset, bytes);
        if end <= u64::from(length) {
            assert_eq!(found, before[offset as usize..end as usize]);
        } else {
            assert!(found.is_empty());
        }
    }
});
