// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Lines of the control socket. Each gets an answer that a client can read, and a fault
//! that was taken can be taken again from its text.
#![no_main]

use cdm_backend::model::Atomics;
use cdm_backend::process::{Observer, answer};
use cdm_control_protocol::{Ask, Fault, LINE_BYTES_MAX, Response, VERSION};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let observer = Observer::new(fuzz_rig::parts(Atomics::Link).clone());
    for line in input.split(|&byte| byte == b'\n') {
        let response = answer(line, &observer);
        let text = serde_json::to_string(&response).expect("it can be written");
        assert!(text.len() < LINE_BYTES_MAX && !text.contains('\n'));
        let again: Response = serde_json::from_str(&text).expect("it can be read");
        assert_eq!(again, response);
        assert_eq!(again.version, VERSION);
        if let Ok(text) = std::str::from_utf8(line) {
            if let Ok(fault) = text.parse::<Fault>() {
                assert_eq!(fault.to_string().parse(), Ok(fault));
            }
            if let Ok(Ask::SetFault(fault)) = Ask::read(text.trim()) {
                assert_eq!(fault.check(), Ok(()));
            }
        }
    }
    observer.answer(Ask::ClearFaults);
});
