// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Which system calls each thread may make, and why: one file a role, nothing but data.
//!
//! The lists were learnt by running the tests under them. What is missing from a list ends
//! the process (`violation.rs`): no thread makes such a call unless something has gone very
//! wrong. Only what a library tries on its own account, and can do without, is answered with
//! an error ([`REFUSED`]).

mod command;
mod common;
mod control;
mod main_thread;
mod relay;
mod serve;
mod session;

use libc::c_long;

/// What a thread is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Signals and the control socket.
    Main,
    /// Takes guests in, one after the other, and starts the threads that serve them.
    Serve,
    /// Obeys the messages of one frontend.
    Session,
    /// Serves the control queue.
    Control,
    /// Carries out commands, for a queue or as an engine.
    Command,
    /// Carries messages to and from the socket of `--fd`.
    Relay,
    /// Writes the trace.
    Trace,
}

/// One allowed system call.
pub struct Rule {
    /// Its number.
    pub call: c_long,
    /// With which arguments.
    pub when: When,
    /// What it is needed for.
    #[cfg_attr(not(test), expect(dead_code, reason = "for who reads the lists"))]
    pub why: &'static str,
}

/// A condition on one argument of a call.
pub enum When {
    /// None.
    Always,
    /// It has this value.
    Is {
        /// Number of the argument, from 0.
        argument: u8,
        /// What it must be.
        value: u64,
    },
    /// These bits of it have this value.
    Masked {
        /// Number of the argument, from 0.
        argument: u8,
        /// Which bits.
        mask: u64,
        /// What they must be.
        value: u64,
    },
    /// It is the number of this process.
    OwnProcess {
        /// Number of the argument, from 0.
        argument: u8,
    },
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Main,
        Self::Serve,
        Self::Session,
        Self::Control,
        Self::Command,
        Self::Relay,
        Self::Trace,
    ];

    /// What the log calls a thread of this role.
    pub fn name(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Serve => "serve",
            Self::Session => "session",
            Self::Control => "control",
            Self::Command => "command",
            Self::Relay => "relay",
            Self::Trace => "trace",
        }
    }
}

/// What a role may call.
pub fn of(role: Role) -> Vec<&'static Rule> {
    lists(role).into_iter().flatten().collect()
}

fn lists(role: Role) -> Vec<&'static [Rule]> {
    let own: &[&[Rule]] = match role {
        Role::Main => &[main_thread::RULES],
        // Its filter goes to the threads that it starts, which need to narrow it further.
        Role::Serve => &[
            serve::RULES,
            session::RULES,
            control::RULES,
            command::RULES,
            NARROWING,
        ],
        Role::Session => &[session::RULES],
        Role::Control => &[control::RULES],
        Role::Command => &[command::RULES],
        Role::Relay => &[relay::RULES],
        // It writes to a file that is open.
        Role::Trace => &[],
    };
    [&[common::RULES], own].concat()
}

/// What a thread that has no role yet may call besides, to take one.
pub const NARROWING: &[Rule] = &[
    only(
        libc::SYS_prctl,
        0,
        libc::PR_SET_NO_NEW_PRIVS as u64,
        "comes before a filter",
    ),
    only(
        libc::SYS_seccomp,
        0,
        libc::SECCOMP_SET_MODE_FILTER as u64,
        "the role's own filter",
    ),
];

/// A system call that is answered with an error, in any thread.
pub struct Refusal {
    /// Its number.
    pub call: c_long,
    /// The error.
    pub errno: i32,
    /// Who tries it, and why it must not.
    #[cfg_attr(not(test), expect(dead_code, reason = "for who reads the list"))]
    pub why: &'static str,
}

/// What libraries try, and can do without.
pub const REFUSED: &[Refusal] = &[
    Refusal {
        call: libc::SYS_clone3,
        errno: libc::ENOSYS,
        why: "hides its flags in memory, where no filter can read them; the C library takes clone",
    },
    Refusal {
        call: libc::SYS_openat,
        errno: libc::EACCES,
        why: "the C library counts processors to choose a number of heaps",
    },
];

const fn always(call: c_long, why: &'static str) -> Rule {
    let when = When::Always;
    Rule { call, when, why }
}

const fn only(call: c_long, argument: u8, value: u64, why: &'static str) -> Rule {
    let when = When::Is { argument, value };
    Rule { call, when, why }
}

const fn masked(call: c_long, argument: u8, mask: u64, value: u64, why: &'static str) -> Rule {
    let when = When::Masked {
        argument,
        mask,
        value,
    };
    Rule { call, when, why }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_list_allows_a_call_twice_and_each_rule_has_a_reason() {
        for list in Role::ALL.into_iter().flat_map(lists) {
            let mut seen = BTreeSet::new();
            for rule in list {
                assert!(!REFUSED.iter().any(|refused| refused.call == rule.call));
                assert!(!rule.why.is_empty(), "{}", rule.call);
                assert!(seen.insert(rule.call), "{}", rule.call);
            }
        }
    }

    #[test]
    fn what_is_refused_is_refused_for_a_reason() {
        for refused in REFUSED {
            assert!(refused.errno > 0 && !refused.why.is_empty());
        }
    }

    #[test]
    fn nobody_may_open_a_file_make_a_socket_or_start_a_program() {
        for role in Role::ALL {
            for rule in of(role) {
                let forbidden = [
                    libc::SYS_open,
                    libc::SYS_openat,
                    libc::SYS_openat2,
                    libc::SYS_socket,
                    libc::SYS_connect,
                    libc::SYS_execve,
                    libc::SYS_execveat,
                    libc::SYS_ptrace,
                    libc::SYS_process_vm_readv,
                    libc::SYS_process_vm_writev,
                    libc::SYS_io_uring_setup,
                    libc::SYS_bpf,
                ];
                assert!(
                    !forbidden.contains(&rule.call),
                    "{} {}",
                    role.name(),
                    rule.call
                );
            }
        }
    }
}
