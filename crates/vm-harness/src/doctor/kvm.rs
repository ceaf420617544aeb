// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Whether KVM can be trusted to run a stock guest kernel.
//!
//! A /dev/kvm that opens is no proof: where the host offers only a paravirtual
//! KVM, it opens, makes a machine, and the guest spins for ever in its
//! decompressor. So the processor must show hardware virtualisation too.

use std::fs::{self, File};
use std::io::{self, ErrorKind};

/// What can be said of KVM on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kvm {
    /// Hardware virtualisation, and a device that this user can open.
    Usable,
    /// No /dev/kvm.
    Absent,
    /// The processor could, but this user may not open /dev/kvm.
    Forbidden,
    /// /dev/kvm is there, and the processor shows neither vmx nor svm.
    Untrusted,
}

impl Kvm {
    /// Looks at this machine.
    pub fn probe() -> Self {
        let opened = File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .map(drop);
        // Without the file there is no flag to trust.
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self::judge(&opened, &cpuinfo)
    }

    /// Judges what opening /dev/kvm gave and what /proc/cpuinfo says.
    pub fn judge(opened: &io::Result<()>, cpuinfo: &str) -> Self {
        let hardware = cpuinfo
            .lines()
            .filter_map(|line| line.strip_prefix("flags")?.split_once(':'))
            .flat_map(|(_, flags)| flags.split_whitespace())
            .any(|flag| flag == "vmx" || flag == "svm");
        match opened {
            Ok(()) if hardware => Self::Usable,
            Ok(()) => Self::Untrusted,
            Err(error) if error.kind() == ErrorKind::PermissionDenied && hardware => {
                Self::Forbidden
            }
            Err(error) if error.kind() == ErrorKind::PermissionDenied => Self::Untrusted,
            Err(_) => Self::Absent,
        }
    }

    /// The reason, in a few words.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Usable => "hardware virtualisation, /dev/kvm opens",
            Self::Absent => "no usable /dev/kvm",
            Self::Forbidden => "this user may not open /dev/kvm",
            Self::Untrusted => {
                "/dev/kvm is there, but the processor shows neither vmx nor svm: a guest would hang"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WITH: &str = "processor\t: 0\nflags\t\t: fpu vme vmx sse\n";
    const WITHOUT: &str = "processor\t: 0\nflags\t\t: fpu vme sse\nvmx flags\t: vnmi\n";

    fn refused(kind: ErrorKind) -> io::Result<()> {
        Err(kind.into())
    }

    #[test]
    fn kvm_is_usable_only_with_the_device_and_the_processor_flag() {
        assert_eq!(Kvm::judge(&Ok(()), WITH), Kvm::Usable);
        assert_eq!(
            Kvm::judge(&Ok(()), &WITH.replace("vmx", "svm")),
            Kvm::Usable
        );
    }

    #[test]
    fn a_device_that_opens_without_the_processor_flag_is_not_trusted() {
        assert_eq!(Kvm::judge(&Ok(()), WITHOUT), Kvm::Untrusted);
        assert_eq!(Kvm::judge(&Ok(()), ""), Kvm::Untrusted);
        assert_eq!(
            Kvm::judge(&refused(ErrorKind::PermissionDenied), WITHOUT),
            Kvm::Untrusted
        );
    }

    #[test]
    fn a_device_that_does_not_open_is_told_from_one_that_is_not_there() {
        assert_eq!(Kvm::judge(&refused(ErrorKind::NotFound), WITH), Kvm::Absent);
        assert_eq!(
            Kvm::judge(&refused(ErrorKind::PermissionDenied), WITH),
            Kvm::Forbidden
        );
    }
}
