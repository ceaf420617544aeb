// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What all processes of a run count together, and how much of each makes the
//! run worth its time.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use anyhow::{Context, Result};
use cdm_guest_tools::memory::Mapping;
use cdm_guest_tools::uapi::{CDM_CAN_MOVE_FILES, CDM_CAN_MOVE_LARGE};

/// Makes the counts: a name in the program, one in the output, how many there must be at least for
/// each thousand operations, and what the driver must be able to do (`CDM_CAN_*`) for there to be
/// any.
macro_rules! counts {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $least:literal $(, if $needs:ident)?;)+) => {
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

            /// Fewer than these in a thousand operations, and the run proves nothing of it.
            pub fn least_per_thousand(self) -> u64 {
                match self {
                    $(Self::$variant => $least,)+
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

// The numbers go by how often a step is taken and what one does at least, never by how fast anything
// is: a slow machine makes fewer operations, and of each kind as large a part.
counts! {
    /// Steps of all threads.
    Operations = "operations", 1000;
    /// Calls that move memory of one's own into a device.
    ToDevice = "migrate_to_device", 80;
    /// Calls that bring it back.
    ToSystem = "migrate_to_system", 40;
    /// Calls of a thread that moves what others work on.
    Foreign = "migrate_foreign", 10;
    /// Of all these, calls that fault in what is not present.
    Populate = "migrate_populate", 10;
    /// Calls that evict others from a full device.
    MakeRoom = "migrate_make_room", 10;
    /// Calls that take 2 MiB folios apart.
    Small = "migrate_small", 10;
    /// Pages that went into a device.
    PagesToDevice = "pages_to_device", 3000;
    /// Of these, pages of files.
    FilePagesToDevice = "file_pages_to_device", 200, if CDM_CAN_MOVE_FILES;
    /// Pages that came back.
    PagesToSystem = "pages_to_system", 1000;
    /// Pages that moved as whole 2 MiB folios, either way.
    PagesLarge = "pages_large", 1000, if CDM_CAN_MOVE_LARGE;
    /// Pages that found a device full.
    PagesNoRoom = "pages_without_room", 20;
    /// Pages that left a device for others.
    PagesMadeRoom = "pages_evicted_for_room", 20;
    /// Calls that bring back what lies in some frames, or has been there longest.
    Evict = "evictions", 10;
    /// Pages that left by them.
    PagesEvicted = "pages_evicted", 20;
    /// Pages that stayed because somebody held them.
    PagesHeld = "pages_held", 50;
    /// Pages whose places were asked for.
    PagesLocated = "pages_located", 100;
    /// Pages stored with new contents by the CPU.
    Rewrite = "pages_rewritten", 100;
    /// Fills and copies of the device.
    DeviceStore = "device_stores", 20;
    /// Checksums of the device.
    DeviceRead = "device_checksums", 20;
    /// Comparisons by the device.
    DeviceCompare = "device_comparisons", 5;
    /// Numbers that the device changed atomically, and back.
    DeviceAtomic = "device_atomics", 5;
    /// Children that checked their copy and wrote to it.
    Fork = "forks", 10;
    /// Parts of a mapping that were unmapped.
    UnmapPart = "munmap_part", 10;
    /// Mappings that moved.
    Remap = "mremap", 10;
    /// Mappings cut by their protection.
    Protect = "mprotect_part", 10;
    /// Parts whose contents were dropped.
    Drop = "dontneed", 10;
    /// Long-term pins.
    Pin = "long_term_pins", 3;
    /// Files cut and grown again.
    Truncate = "truncates", 5;
    /// Holes punched into files.
    Punch = "punches", 5;
    /// Pieces of files read and written by system calls.
    ReadWrite = "read_write", 10;
    /// Pages of files lent to a pipe.
    Splice = "splices", 10;
    /// Private mappings of files, and copies on write in them.
    PrivateMapping = "private_mappings", 5;
    /// Ranges locked and unlocked.
    Lock = "mlocks", 5;
    /// Requests for huge pages.
    Collapse = "collapses", 5;
    /// Calls of the shrinkers and of compaction.
    Shrink = "shrinks", 1;
    /// Pages whose contents were compared.
    Verified = "verified_pages", 10000;
}

/// Words behind the counts.
const STOP: usize = Count::ALL.len();
const FULL: usize = STOP + 1;
const DEADLINE: usize = FULL + 1;
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
        Ok(Self {
            memory,
            capabilities,
        })
    }

    /// Those of which there can be any.
    fn possible(&self) -> impl Iterator<Item = Count> {
        let capabilities = self.capabilities;
        let all = Count::ALL.iter().copied();
        all.filter(move |count| count.needs() & !capabilities == 0)
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

    /// Notes that one more device is full.
    pub fn add_full(&self) {
        self.word(FULL).fetch_add(1, Relaxed);
    }

    /// How many devices have been full.
    pub fn full(&self) -> u64 {
        self.word(FULL).load(Relaxed)
    }

    /// Sets the end of the run, in milliseconds of a clock that all processes have.
    pub fn set_deadline(&self, milliseconds: u64) {
        self.word(DEADLINE).store(milliseconds, Relaxed);
    }

    /// The end of the run, once it is known.
    pub fn deadline(&self) -> Option<u64> {
        match self.word(DEADLINE).load(Relaxed) {
            0 => None,
            milliseconds => Some(milliseconds),
        }
    }

    /// All that can be counted, with their names.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.possible().map(|count| (count.name(), self.get(count)))
    }

    /// What is there too rarely: name, number, least number.
    pub fn below_minimum(&self) -> Vec<(&'static str, u64, u64)> {
        let operations = self.get(Count::Operations);
        self.possible()
            .map(|count| {
                let least = operations * count.least_per_thousand() / 1000;
                (count.name(), self.get(count), least)
            })
            .filter(|(_, found, least)| found < least)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_happened_is_below_its_minimum() {
        let counts = Counts::new(u32::MAX).unwrap();
        assert!(counts.below_minimum().is_empty(), "nothing was done yet");
        for count in Count::ALL {
            counts.add(*count, count.least_per_thousand());
        }
        assert_eq!(counts.get(Count::Operations), 1000);
        assert!(counts.below_minimum().is_empty());
        counts.add(Count::Operations, 1000);
        let below = counts.below_minimum();
        assert!(below.iter().any(|(name, ..)| *name == "forks"), "{below:?}");
    }

    #[test]
    fn what_the_driver_cannot_do_is_not_wanted_of_it() {
        let wants_files = |capabilities| {
            let counts = Counts::new(capabilities).unwrap();
            counts.add(Count::Operations, 1000);
            let name = Count::FilePagesToDevice.name();
            let below = counts.below_minimum();
            (
                below.iter().any(|(found, ..)| *found == name),
                counts.all().any(|(found, _)| found == name),
            )
        };
        assert_eq!(wants_files(CDM_CAN_MOVE_FILES), (true, true));
        assert_eq!(wants_files(CDM_CAN_MOVE_LARGE), (false, false));
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = Count::ALL.iter().map(|count| count.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Count::ALL.len());
    }
}
