// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The sandbox tried in processes of its own: what is given up is given up for good.

use super::*;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::stat::{Mode, stat};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork, pipe};
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

/// Exit code of a child whose assertion failed.
const ASSERTION: i32 = 99;

/// Runs `f` in a process with one thread; exit code and what it wrote to standard error.
fn in_child(f: impl FnOnce()) -> (i32, String) {
    let (read, write) = pipe().unwrap();
    // SAFETY: the child runs `f` and exits without returning. The C library makes its heap
    // usable after a fork, and no lock of ours is held: `f` uses nothing that other tests do.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            nix::unistd::dup2_stderr(&write).unwrap();
            let code = match catch_unwind(AssertUnwindSafe(f)) {
                Ok(()) => 0,
                Err(_) => ASSERTION,
            };
            // SAFETY: ends the process without running anything that belongs to the parent.
            unsafe { libc::_exit(code) }
        }
        ForkResult::Parent { child } => {
            drop(write);
            let mut text = String::new();
            File::from(read).read_to_string(&mut text).unwrap();
            match waitpid(child, None).unwrap() {
                WaitStatus::Exited(_, code) => (code, text),
                other => panic!("{other:?}: {text}"),
            }
        }
    }
}

/// A process inside the sandbox, in a thread of `role`.
fn in_role(role: Role, f: impl FnOnce()) -> (i32, String) {
    in_child(|| {
        let (sandbox, report) = Enclosure::enter(Level::Seccomp, &[]).close();
        assert!(report.refused().is_empty(), "{report:?}");
        sandbox.enter(role);
        f();
    })
}

/// What none of our threads has any business with.
fn forbidden() -> Vec<(&'static str, fn())> {
    vec![
        ("openat2", || {
            // SAFETY: no path and no arguments to read.
            unsafe { libc::syscall(libc::SYS_openat2, -1, 0, 0, 0) };
        }),
        ("execve", || {
            let _ = nix::unistd::execve(c"/bin/true", &[c"true"], &[c""]);
        }),
        ("socket", || {
            let family = AddressFamily::Inet;
            drop(socket(family, SockType::Stream, SockFlag::empty(), None));
        }),
        ("mmap", || {
            let protection = libc::PROT_READ | libc::PROT_EXEC;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            // SAFETY: a new mapping that nobody uses.
            unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) };
        }),
        ("fork", || {
            // SAFETY: a child, if there were one, would exit at once.
            if unsafe { libc::syscall(libc::SYS_fork) } == 0 {
                // SAFETY: ends the child.
                unsafe { libc::_exit(0) }
            }
        }),
    ]
}

#[test]
fn a_forbidden_call_in_any_role_ends_the_process_with_a_line_that_names_both() {
    for role in Role::ALL {
        for (call, make) in forbidden() {
            let (code, text) = in_role(role, make);
            let expected = format!(
                "the thread '{}' made the forbidden system call",
                role.name()
            );
            assert_eq!(code, 4, "{} {call}: {text}", role.name());
            assert!(
                text.contains(&expected) && text.contains(&format!("({call})")),
                "{text}"
            );
        }
    }
}

#[test]
fn no_role_opens_a_file_and_none_dies_of_trying() {
    for role in Role::ALL {
        let (code, text) = in_role(role, || {
            let error = File::open("/dev/null").unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EACCES));
        });
        assert_eq!(code, 0, "{}: {text}", role.name());
    }
}

#[test]
fn a_thread_without_a_role_is_held_by_what_all_roles_share() {
    let (code, text) = in_child(|| {
        let (_sandbox, _report) = Enclosure::enter(Level::Seccomp, &[]).close();
        let _ = nix::unistd::execve(c"/bin/true", &[c"true"], &[c""]);
    });
    assert_eq!(code, 4, "{text}");
}

#[test]
fn a_thread_that_carries_out_commands_cannot_even_talk_to_the_frontend() {
    let (code, text) = in_role(Role::Command, || {
        // SAFETY: no message, no descriptor.
        unsafe { libc::sendmsg(-1, std::ptr::null(), 0) };
    });
    assert_eq!(code, 4, "{text}");
    assert!(
        text.contains("'command'") && text.contains("(sendmsg)"),
        "{text}"
    );
}

#[test]
fn memory_locks_time_and_the_log_are_there_in_every_role() {
    for role in Role::ALL {
        let (code, text) = in_role(role, || {
            let large = vec![1u8; 64 << 20];
            assert_eq!(
                large.iter().map(|&byte| u64::from(byte)).sum::<u64>(),
                64 << 20
            );
            std::thread::sleep(Duration::from_millis(1));
            // The test harness would keep what eprintln says for itself.
            nix::unistd::write(std::io::stderr(), b"said\n").unwrap();
        });
        assert_eq!((code, text.as_str()), (0, "said\n"), "{}", role.name());
    }
}

#[test]
fn the_serving_thread_starts_threads_and_those_narrow_themselves() {
    let (code, text) = in_child(|| {
        let (sandbox, _report) = Enclosure::enter(Level::Seccomp, &[]).close();
        sandbox.enter(Role::Serve);
        let worker = sandbox.clone();
        std::thread::spawn(move || worker.enter(Role::Command))
            .join()
            .unwrap();
        let worker = sandbox.clone();
        let _ = std::thread::spawn(move || {
            worker.enter(Role::Command);
            // SAFETY: no message, no descriptor.
            unsafe { libc::sendmsg(-1, std::ptr::null(), 0) };
        })
        .join();
    });
    assert_eq!(code, 4, "{text}");
    assert!(text.contains("'command'"), "{text}");
}

/// Whether `part` is on by the report's word.
fn is_on(report: &Report, part: &str) -> bool {
    !report.refused().iter().any(|text| text.starts_with(part))
}

#[test]
fn what_the_report_calls_on_holds() {
    let (code, text) = in_child(|| {
        let folder = File::open("/etc").unwrap();
        let enclosure = Enclosure::enter(Level::Full, &[]);
        let report = &enclosure.report;
        if is_on(report, "limits") {
            assert_eq!(getrlimit(Resource::RLIMIT_CORE), Ok((0, 0)));
            assert!(getrlimit(Resource::RLIMIT_NOFILE).unwrap().1 <= 512);
            assert!(getrlimit(Resource::RLIMIT_DATA).unwrap().1 <= 1 << 30);
        }
        if is_on(report, "namespaces") {
            assert_eq!(stat("/etc").unwrap_err(), Errno::ENOENT);
            assert_eq!(stat("/proc/self").unwrap_err(), Errno::ENOENT);
        }
        if is_on(report, "capabilities") {
            for set in [
                caps::CapSet::Effective,
                caps::CapSet::Permitted,
                caps::CapSet::Inheritable,
            ] {
                assert!(caps::read(None, set).unwrap().is_empty());
            }
        }
        if is_on(report, "no_new_privs") {
            assert_eq!(nix::sys::prctl::get_no_new_privs(), Ok(true));
        }
        if is_on(report, "landlock") {
            let name = "passwd";
            let opened = openat(folder.as_fd(), name, OFlag::O_RDONLY, Mode::empty());
            assert_eq!(opened.unwrap_err(), Errno::EACCES);
        }
    });
    assert_eq!(code, 0, "{text}");
}

#[test]
fn files_go_from_the_folders_named_and_from_no_other() {
    let (ours, others) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for folder in [&ours, &others] {
        std::fs::write(folder.path().join("socket"), "").unwrap();
    }
    let (code, text) = in_child(|| {
        let ours = File::open(ours.path()).unwrap();
        let others = File::open(others.path()).unwrap();
        let enclosure = Enclosure::enter(Level::Full, &[ours.as_fd()]);
        let remove = |folder: &File| {
            nix::unistd::unlinkat(folder, "socket", nix::unistd::UnlinkatFlags::NoRemoveDir)
        };
        assert_eq!(remove(&ours), Ok(()));
        if is_on(&enclosure.report, "landlock") {
            assert_eq!(remove(&others), Err(Errno::EACCES));
        }
    });
    assert_eq!(code, 0, "{text}");
}
