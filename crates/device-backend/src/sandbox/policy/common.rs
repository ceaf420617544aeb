// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What every thread needs: memory, locks, time, the log, an end.

use super::{Rule, When, always, masked, only};

/// Memory that can be run is never made.
const EXECUTABLE: u64 = libc::PROT_EXEC as u64;

/// The list.
pub const RULES: &[Rule] = &[
    always(libc::SYS_brk, "heap"),
    masked(
        libc::SYS_mmap,
        2,
        EXECUTABLE,
        0,
        "heap, stacks, guest memory",
    ),
    masked(
        libc::SYS_mprotect,
        2,
        EXECUTABLE,
        0,
        "heaps of threads grow, stacks have guards",
    ),
    always(libc::SYS_mremap, "large allocations grow"),
    always(libc::SYS_munmap, "heap, stacks, guest memory"),
    always(libc::SYS_madvise, "stacks of threads that end, free heap"),
    always(libc::SYS_futex, "locks, and waiting for threads"),
    always(libc::SYS_sched_yield, "spinning locks"),
    always(libc::SYS_clock_gettime, "time, where the vdso has no clock"),
    always(libc::SYS_clock_nanosleep, "sleeping"),
    always(libc::SYS_restart_syscall, "sleeping on after a signal"),
    always(libc::SYS_read, "eventfds and sockets"),
    always(libc::SYS_write, "eventfds, sockets, the log"),
    always(libc::SYS_writev, "panic messages"),
    always(libc::SYS_close, "descriptors"),
    only(
        libc::SYS_fcntl,
        1,
        libc::F_GETFD as u64,
        "a check of the standard library, in development builds",
    ),
    always(libc::SYS_getrandom, "seeds of hash tables"),
    always(
        libc::SYS_sched_getaffinity,
        "the C library's number of heaps",
    ),
    always(libc::SYS_rseq, "start of a thread"),
    always(libc::SYS_set_robust_list, "start of a thread"),
    always(libc::SYS_sigaltstack, "start and end of a thread"),
    always(libc::SYS_rt_sigprocmask, "start and end of a thread, abort"),
    always(libc::SYS_rt_sigreturn, "end of a signal handler"),
    only(
        libc::SYS_prctl,
        0,
        libc::PR_SET_NAME as u64,
        "names of threads",
    ),
    always(libc::SYS_gettid, "abort"),
    always(libc::SYS_getpid, "abort"),
    Rule {
        call: libc::SYS_tgkill,
        when: When::OwnProcess { argument: 0 },
        why: "abort",
    },
    only(libc::SYS_rt_sigaction, 0, libc::SIGABRT as u64, "abort"),
    always(libc::SYS_exit, "end of a thread"),
    always(libc::SYS_exit_group, "end of the process"),
];
