// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What all processes of a scenario count together.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use anyhow::{Context, Result};
use cdm_guest_tools::memory::Mapping;
use cdm_guest_tools::uapi::{CDM_CAN_MOVE_FILES, CDM_CAN_MOVE_LARGE, CDM_CAN_RELIEVE};

/// Makes the counts: a name in the program, one in the output, and what the driver must be able to
/// do (`CDM_CAN_*`) for there to be any.
macro_rules! counts {
    ($($(#[$doc:meta])* $variant:ident = $name:literal $(, if $needs:ident)?;)+) => {
        /// Something that is counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Count {
            $($(#[$doc])* $variant,)+
        }

        impl Count {
            /// Every one of them, in the order of the output.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// Its name in the output.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// Capabilities of the driver without which it cannot happen.
            fn needs(self) -> u32 {
                match self {
                    $(Self::$variant => 0 $(| $needs)?,)+
                }
            }
        }
    };
}

counts! {
    /// Rounds of all threads, by which everything else is measured.
    Operations = "operations";
    /// Calls that move memory of one's own into a device.
    ToDevice = "migrate_to_device";
    /// Calls that bring it back.
    ToSystem = "migrate_to_system";
    /// Calls of a thread that moves what others work on.
    Foreign = "migrate_foreign";
    /// Of all these, calls that fault in what is not present.
    Populate = "migrate_populate";
    /// Calls that evict others from a full device.
    MakeRoom = "migrate_make_room";
    /// Calls that take 2 MiB folios apart.
    Small = "migrate_small";
    /// Pages that went into a device.
    PagesToDevice = "pages_to_device";
    /// Of these, pages that came from another device.
    PagesBetween = "pages_between_devices";
    /// Pages of files that went into a device.
    FilePagesToDevice = "file_pages_to_device", if CDM_CAN_MOVE_FILES;
    /// Pages that came back.
    PagesToSystem = "pages_to_system";
    /// Pages that moved as whole 2 MiB folios, either way.
    PagesLarge = "pages_large", if CDM_CAN_MOVE_LARGE;
    /// Pages that found a device full.
    PagesNoRoom = "pages_without_room";
    /// Pages that left a device for others.
    PagesMadeRoom = "pages_evicted_for_room";
    /// Calls that bring back what lies in some frames, or has been there longest.
    Evict = "evictions";
    /// Pages that left by them.
    PagesEvicted = "pages_evicted";
    /// Pages that stayed because somebody held them.
    PagesHeld = "pages_held";
    /// Pages whose places were asked for.
    PagesLocated = "pages_located";
    /// Pages stored with new contents by the CPU.
    Rewrite = "pages_rewritten";
    /// Fills and copies of the device.
    DeviceStore = "device_stores";
    /// Checksums of the device.
    DeviceRead = "device_checksums";
    /// Comparisons by the device.
    DeviceCompare = "device_comparisons";
    /// Numbers that the device changed atomically, and back.
    DeviceAtomic = "device_atomics";
    /// Children that checked their copy and wrote to it.
    Fork = "forks";
    /// Parts of a mapping that were unmapped.
    UnmapPart = "munmap_part";
    /// Mappings that moved.
    Remap = "mremap";
    /// Mappings cut by their protection.
    Protect = "mprotect_part";
    /// Parts whose contents were dropped.
    Drop = "dontneed";
    /// Long-term pins.
    Pin = "long_term_pins";
    /// Files cut and grown again.
    Truncate = "truncates";
    /// Holes punched into files.
    Punch = "punches";
    /// Pieces of files read and written by system calls.
    ReadWrite = "read_write";
    /// Pages of files lent to a pipe.
    Splice = "splices";
    /// Private mappings of files, and copies on write in them.
    PrivateMapping = "private_mappings";
    /// Ranges locked and unlocked.
    Lock = "mlocks";
    /// Requests for huge pages.
    Collapse = "collapses";
    /// Calls of the shrinkers and of compaction.
    Shrink = "shrinks";
    /// Ranges that the kernel may free when it likes.
    LazyFree = "madvise_free";
    /// Advice that leaves contents alone.
    Advice = "madvise_harmless";
    /// Pages that userfaultfd was asked for and filled.
    UserfaultFilled = "userfault_pages_filled";
    /// Pages whose first store userfaultfd told of.
    UserfaultWrites = "userfault_writes_told";
    /// Pages that userfaultfd moved to another address.
    UserfaultMoved = "userfault_pages_moved";
    /// Pages read and written in other processes by system calls.
    PeerPages = "peer_pages";
    /// Words that a debugger read and changed.
    Poked = "debugger_words";
    /// Processes that ended by themselves while their pages were moved.
    Exit = "exits";
    /// Processes that became another program meanwhile.
    Exec = "execs";
    /// Processes that were killed meanwhile.
    Kill = "kills";
    /// Core dumps.
    CoreDump = "core_dumps";
    /// Pages compared with what core dumps have of them.
    CorePages = "core_dump_pages";
    /// Reads and writes of io_uring with a buffer that it has pinned.
    PinnedIo = "pinned_buffer_transfers";
    /// DMA buffers made of files.
    DmaBuffer = "dma_buffers";
    /// Pages read and written by direct I/O.
    DirectPages = "direct_io_pages";
    /// Files written to their disk.
    Sync = "fsyncs";
    /// Pieces of files sent to other files.
    Sendfile = "sendfiles";
    /// Files that were unmapped and mapped anew.
    MapAgain = "mapped_again";
    /// Pages that the kernel would not move to a device.
    Refused = "pages_refused";
    /// Commands of a device that may fail which ended well.
    CommandsDone = "commands_done";
    /// Commands and requests of such a device that ended with an error.
    CommandsFailed = "commands_failed";
    /// Pages that such a device lost.
    PagesLost = "pages_lost";
    /// Pages that are never to be used again.
    PagesFailed = "pages_failed";
    /// Times that somebody found no device where there had been one.
    Absence = "absences";
    /// RESETs that were asked for.
    Reset = "resets";
    /// Devices that lost their driver and got it back.
    Rebind = "rebinds";
    /// Times that the module was unloaded and loaded.
    Reload = "module_loads";
    /// Pages that left devices because a group was to shrink.
    PagesRelieved = "pages_relieved", if CDM_CAN_RELIEVE;
    /// Pages that were swapped out.
    PagesSwapped = "pages_swapped_out";
    /// Requests for a group to shrink.
    Reclaim = "reclaims";
    /// Processes that the kernel killed for want of memory.
    OomKill = "oom_kills";
    /// Pages that KSM had merged when they were used.
    PagesMerged = "pages_merged";
    /// Faults by which the kernel finds out who uses which node.
    HintFaults = "numa_hint_faults";
    /// Pages that were sent to a node and are there.
    PagesBetweenNodes = "pages_between_nodes";
    /// Blocks of system memory that were offline for a while.
    BlockOffline = "memory_blocks_offline";
    /// Pages whose contents were compared.
    Verified = "verified_pages";
}

/// Words behind the counts.
const STOP: usize = Count::ALL.len();
const DEADLINE: usize = STOP + 1;
const WORDS: usize = DEADLINE + 1;

/// The counts, in memory that all processes share.
pub struct Counts {
    memory: Mapping,
    capabilities: u32,
}

impl Counts {
    /// All zero. `capabilities` says what the driver can do.
    pub fn new(capabilities: u32) -> Result<Self> {
        let memory = Mapping::shared(WORDS * size_of::<u64>()).context("cannot share counts")?;
        // Who touches a page first is charged for it, which must not be the scenario.
        memory.fill(0);
        Ok(Self {
            memory,
            capabilities,
        })
    }

    /// Whether there can be any of it.
    pub fn can_be(&self, count: Count) -> bool {
        count.needs() & !self.capabilities == 0
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        &self.memory.words()[index]
    }

    /// Adds to a count.
    pub fn add(&self, count: Count, number: u64) {
        self.word(count as usize).fetch_add(number, Relaxed);
    }

    /// Reads a count.
    pub fn get(&self, count: Count) -> u64 {
        self.word(count as usize).load(Relaxed)
    }

    /// Lets every process come to its end.
    pub fn stop(&self) {
        self.word(STOP).store(1, Relaxed);
    }

    /// Whether every process shall come to its end.
    pub fn is_stopped(&self) -> bool {
        self.word(STOP).load(Relaxed) != 0
    }

    /// Sets when the time is over, in milliseconds of a clock that all processes have; none yet.
    pub fn set_deadline(&self, milliseconds: Option<u64>) {
        let word = milliseconds.unwrap_or(u64::MAX);
        self.word(DEADLINE).store(word, Relaxed);
    }

    /// When the time is over.
    pub fn deadline(&self) -> u64 {
        self.word(DEADLINE).load(Relaxed)
    }

    /// Everything that was counted, with its name.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let all = Count::ALL.iter();
        all.map(|count| (count.name(), self.get(*count)))
            .filter(|(_, number)| *number > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_driver_cannot_do_is_not_wanted_of_it() {
        let can_be = |capabilities| {
            let counts = Counts::new(capabilities).unwrap();
            counts.can_be(Count::FilePagesToDevice)
        };
        assert!(can_be(CDM_CAN_MOVE_FILES));
        assert!(!can_be(CDM_CAN_MOVE_LARGE));
    }

    #[test]
    fn only_what_happened_is_told() {
        let counts = Counts::new(0).unwrap();
        counts.add(Count::Fork, 2);
        let told: Vec<_> = counts.all().collect();
        assert_eq!(told, [(Count::Fork.name(), 2)]);
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = Count::ALL.iter().map(|count| count.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Count::ALL.len());
    }
}
