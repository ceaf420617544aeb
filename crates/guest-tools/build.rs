// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Generates the bindings of the driver's interface from its C header, so that
//! no number of it is written down twice.

use std::path::PathBuf;
use std::process::Command;
use std::{env, fs};

/// The ioctl numbers are macros with a `sizeof` in them, which bindgen does not
/// evaluate; as enumerators the C compiler evaluates them.
const WRAPPER: &str = r#"
#include "HEADER"
enum cdm_ioctl {
    CDM_IOCTL_QUERY = CDM_IOC_QUERY,
    CDM_IOCTL_MIGRATE = CDM_IOC_MIGRATE,
    CDM_IOCTL_RESIDENCY = CDM_IOC_RESIDENCY,
    CDM_IOCTL_COMMAND = CDM_IOC_COMMAND,
    CDM_IOCTL_RESET = CDM_IOC_RESET,
    CDM_IOCTL_EVICT = CDM_IOC_EVICT,
    CDM_IOCTL_BIND = CDM_IOC_BIND,
    CDM_IOCTL_UNBIND = CDM_IOC_UNBIND,
    CDM_IOCTL_BATCH = CDM_IOC_BATCH,
    CDM_IOCTL_HOT = CDM_IOC_HOT,
    CDM_IOCTL_HOT_COUNTERS = CDM_IOC_HOT_COUNTERS,
};
"#;

fn main() {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let header = manifest.join("../guest-driver/uapi/cdm.h");
    println!("cargo::rerun-if-changed={}", header.display());
    println!("cargo::rerun-if-env-changed=BINDGEN");

    let wrapper = out.join("cdm_wrapper.h");
    let text = WRAPPER.replace("HEADER", &header.display().to_string());
    fs::write(&wrapper, text).expect("cannot write the wrapper header into OUT_DIR");

    let bindgen = env::var("BINDGEN").unwrap_or_else(|_| "bindgen".into());
    let status = Command::new(&bindgen)
        .arg(&wrapper)
        .args(["--allowlist-type", "cdm_.*", "--allowlist-var", "CDM_.*"])
        .args(["--default-enum-style", "consts", "--no-prepend-enum-name"])
        .args(["--with-derive-default", "--no-doc-comments", "--use-core"])
        .arg("--output")
        .arg(out.join("cdm.rs"))
        .status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("{bindgen} could not read {}: {status}", header.display()),
        Err(error) => panic!(
            "cannot run {bindgen}: {error}; build inside the toolbox (ci/just build), or put bindgen into PATH"
        ),
    }
}
