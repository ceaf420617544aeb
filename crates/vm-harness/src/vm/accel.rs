// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Who runs the guest's instructions: the processor through KVM, or QEMU itself.
//!
//! A `/dev/kvm` that opens is no proof: where the host offers only a paravirtual
//! KVM, a stock guest kernel spins for ever in its decompressor. KVM is trusted
//! only when the processor shows its virtualisation extension too.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use anyhow::{Result, bail};
use clap::ValueEnum;

/// What the user wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AccelChoice {
    /// KVM where it can be trusted, else TCG
    Auto,
    /// Hardware virtualisation
    Kvm,
    /// QEMU's own translator
    Tcg,
}

/// What the machine gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    /// Hardware virtualisation.
    Kvm,
    /// QEMU's own translator.
    Tcg,
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

/// What this host shows of itself.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// The processor has vmx or svm.
    pub extension: bool,
    /// /dev/kvm opens and makes virtual machines, or why it does not.
    pub device: Result<(), String>,
}

impl Evidence {
    /// Looks at this host.
    pub fn gather() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self {
            extension: has_extension(&cpuinfo),
            device: try_device(Path::new("/dev/kvm")),
        }
    }
}

nix::ioctl_write_int_bad!(
    /// The one version that there has been for long.
    kvm_get_api_version,
    nix::request_code_none!(0xae, 0x00)
);
nix::ioctl_write_int_bad!(
    /// Makes a virtual machine, and gives its descriptor.
    kvm_create_vm,
    nix::request_code_none!(0xae, 0x01)
);

/// Does what QEMU begins with. Another hypervisor that has the processor, or a host that allows no
/// nested virtualisation, shows only there.
pub fn try_device(path: &Path) -> Result<(), String> {
    let kvm = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|error| error.to_string())?;
    // SAFETY: the descriptor is open, and the request takes no argument.
    match unsafe { kvm_get_api_version(kvm.as_raw_fd(), 0) } {
        Ok(12) => {}
        Ok(other) => {
            return Err(format!(
                "it opens, and has the version {other} instead of 12"
            ));
        }
        Err(error) => return Err(format!("it opens, and is no KVM: {}", error.desc())),
    }
    // SAFETY: the descriptor is open, and 0 is the usual type of machine.
    let machine = unsafe { kvm_create_vm(kvm.as_raw_fd(), 0) }.map_err(|error| {
        format!(
            "it opens, and makes no virtual machine: {} (another hypervisor may have the processor)",
            error.desc()
        )
    })?;
    // SAFETY: the kernel has just given this descriptor, and nobody else has it.
    drop(unsafe { OwnedFd::from_raw_fd(machine) });
    Ok(())
}

/// A decision, and what the user should know about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Who runs the guest.
    pub accel: Accel,
    /// To be said once on stderr.
    pub notice: Option<String>,
}

fn has_extension(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .any(|line| {
            line.split_ascii_whitespace()
                .any(|flag| flag == "vmx" || flag == "svm")
        })
}

/// Decides who runs the guest.
pub fn judge(choice: AccelChoice, evidence: &Evidence) -> Result<Verdict> {
    let why_not = match (&evidence.device, evidence.extension) {
        (Err(error), _) => Some(format!("/dev/kvm: {error}")),
        (Ok(()), false) => Some(
            "/dev/kvm opens, but the processor shows neither vmx nor svm, and then a guest \
             may hang at its start"
                .to_owned(),
        ),
        (Ok(()), true) => None,
    };
    let verdict = match (choice, why_not) {
        (AccelChoice::Tcg, _) => Verdict {
            accel: Accel::Tcg,
            notice: None,
        },
        (AccelChoice::Auto | AccelChoice::Kvm, None) => Verdict {
            accel: Accel::Kvm,
            notice: None,
        },
        (AccelChoice::Auto, Some(reason)) => Verdict {
            accel: Accel::Tcg,
            notice: Some(format!(
                "cdm: NO HARDWARE VIRTUALISATION: {reason}.\n\
                 cdm: QEMU translates the guest's instructions instead (TCG): a boot takes some \
                 seconds, programs run 10 to 50 times slower than here. Results are the same. \
                 --accel kvm tries KVM all the same, --accel tcg keeps this note away."
            )),
        },
        (AccelChoice::Kvm, Some(reason)) => {
            if let Err(error) = &evidence.device {
                bail!("cannot use KVM: /dev/kvm: {error}; use --accel tcg, or auto");
            }
            Verdict {
                accel: Accel::Kvm,
                notice: Some(format!("cdm: using KVM as you ask, although {reason}")),
            }
        }
    };
    Ok(verdict)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence(extension: bool, opens: bool) -> Evidence {
        Evidence {
            extension,
            device: if opens {
                Ok(())
            } else {
                Err("Permission denied (os error 13)".into())
            },
        }
    }

    fn accel(choice: AccelChoice, extension: bool, opens: bool) -> Accel {
        judge(choice, &evidence(extension, opens))
            .expect("a decision")
            .accel
    }

    #[test]
    fn kvm_is_trusted_only_with_the_device_and_the_extension() {
        assert_eq!(accel(AccelChoice::Auto, true, true), Accel::Kvm);
        assert_eq!(accel(AccelChoice::Auto, false, true), Accel::Tcg);
        assert_eq!(accel(AccelChoice::Auto, true, false), Accel::Tcg);
        assert_eq!(accel(AccelChoice::Auto, false, false), Accel::Tcg);
    }

    #[test]
    fn falling_back_to_tcg_says_why_and_what_to_expect() {
        let verdict = judge(AccelChoice::Auto, &evidence(false, true)).expect("a decision");
        let notice = verdict.notice.expect("loudly");
        assert!(
            notice.contains("vmx") && notice.contains("slower"),
            "{notice}"
        );
        let verdict = judge(AccelChoice::Auto, &evidence(true, false)).expect("a decision");
        assert!(
            verdict
                .notice
                .expect("loudly")
                .contains("Permission denied")
        );
    }

    #[test]
    fn the_flag_overrides_both_ways() {
        assert_eq!(accel(AccelChoice::Tcg, true, true), Accel::Tcg);
        assert_eq!(accel(AccelChoice::Kvm, false, true), Accel::Kvm);
        let verdict = judge(AccelChoice::Tcg, &evidence(false, false)).expect("a decision");
        assert_eq!(verdict.notice, None, "the user knows");
    }

    #[test]
    fn device_that_opens_and_is_no_kvm_is_found_out() {
        assert!(try_device(Path::new("/none")).is_err());
        let error = try_device(Path::new("/dev/null")).expect_err("no KVM");
        assert!(error.contains("it opens, and is no KVM"), "{error}");
    }

    #[test]
    fn kvm_that_does_not_open_cannot_be_forced() {
        let error = judge(AccelChoice::Kvm, &evidence(true, false)).expect_err("no /dev/kvm");
        assert!(error.to_string().contains("--accel tcg"), "{error}");
    }

    #[test]
    fn the_extension_is_a_word_of_the_flags() {
        assert!(has_extension("model name: x\nflags\t\t: fpu vmx sse\n"));
        assert!(has_extension("flags : svm\n"));
        assert!(!has_extension(
            "flags : fpu svm_lock avmx\nmodel name : vmx svm\n"
        ));
    }
}
