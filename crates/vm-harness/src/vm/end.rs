// SPDX-License-Identifier: Apache-2.0 OR MIT

//! How a guest ends: whoever resets or turns off its machine stops it first, so that the memory of
//! one that crashed can be dumped before QEMU goes.
//!
//! A guest that turns itself off in good order costs one message more.

use std::thread;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use super::dump::Dump;
use super::qmp::Qmp;

/// How long one wait for the end is; the next one follows.
const WAIT: Duration = Duration::from_secs(3600);

/// Watches over a control channel of its own until the machine has ended.
pub fn watch(mut qmp: Qmp, dump: Dump) -> Result<()> {
    qmp.execute("set-action", json!({ "shutdown": "pause" }))?;
    thread::spawn(move || {
        // A QEMU that has gone needs nobody.
        let _ = wait(&mut qmp, &dump);
    });
    Ok(())
}

fn wait(qmp: &mut Qmp, dump: &Dump) -> Result<()> {
    let why = loop {
        if let Some(why) = qmp.wait_event("SHUTDOWN", WAIT)? {
            break why;
        }
    };
    if is_crash(&why) {
        dump.take(qmp);
    }
    qmp.execute("quit", Value::Null)?;
    Ok(())
}

/// Whether the guest's machine stopped for a reason that its kernel did not choose. A reboot that was
/// asked for is none: the machine goes on then.
fn is_crash(why: &Value) -> bool {
    matches!(
        why["reason"].as_str(),
        Some("guest-reset" | "guest-panic" | "subsystem-reset")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_that_is_turned_off_in_good_order_is_no_crash() {
        let why = |reason: &str| json!({ "guest": true, "reason": reason });
        for reason in ["guest-reset", "guest-panic"] {
            assert!(is_crash(&why(reason)), "{reason}");
        }
        for reason in ["guest-shutdown", "host-qmp-quit", "host-signal"] {
            assert!(!is_crash(&why(reason)), "{reason}");
        }
    }
}
