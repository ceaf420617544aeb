// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The memory itself: a sealed, sparse memfd, mapped once.

use super::MemorySize;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use vm_memory::mmap::MmapRegionError;
use vm_memory::{FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

/// Device memory, shared by the guest's CPUs (through QEMU's mapping of [`Pool::file`])
/// and the device (through the mapping in this process).
///
/// # Invariants
///
/// - The file is exactly as long as the mapping, and sealed against any change of
///   length: nobody who holds the descriptor can make an access here fault.
/// - A page takes host memory only once it was touched.
#[derive(Debug)]
pub struct Pool {
    size: MemorySize,
    mapping: MmapRegion<()>,
    file: FileOffset,
    identity: FileIdentity,
}

/// What makes two descriptors the same file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileIdentity {
    device: u64,
    inode: u64,
}

/// Why there is no device memory.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// The memfd could not be made.
    #[error("cannot create a memfd of {size}: {source}")]
    Create {
        /// Size asked for.
        size: MemorySize,
        /// What the kernel said.
        source: Errno,
    },
    /// The memfd could not be given its length.
    #[error("cannot set the memfd's length to {size}: {source}")]
    Length {
        /// Size asked for.
        size: MemorySize,
        /// What the kernel said.
        source: io::Error,
    },
    /// The memfd could not be sealed.
    #[error("cannot seal the memfd of {size}: {source}")]
    Seal {
        /// Size asked for.
        size: MemorySize,
        /// What the kernel said.
        source: Errno,
    },
    /// The memfd could not be mapped.
    #[error(
        "cannot map {size} of device memory: {source}; raise the address space limit (ulimit -v) or pass a smaller --memory-size"
    )]
    Map {
        /// Size asked for.
        size: MemorySize,
        /// What the kernel said.
        source: MmapRegionError,
    },
}

impl FileIdentity {
    /// Asks the kernel which file a descriptor is.
    pub fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }
}

impl Pool {
    /// Makes device memory, all zero and without a page of host memory.
    pub fn new(size: MemorySize) -> Result<Self, PoolError> {
        let fd = memfd_create(c"cdm", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)
            .map_err(|source| PoolError::Create { size, source })?;
        let file = File::from(fd);
        file.set_len(size.bytes())
            .map_err(|source| PoolError::Length { size, source })?;
        // INVARIANT: from here on the length is fixed. Writing stays allowed: it is the purpose.
        let seals = SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
        fcntl(file.as_fd(), FcntlArg::F_ADD_SEALS(seals))
            .map_err(|source| PoolError::Seal { size, source })?;
        let identity =
            FileIdentity::of(&file).map_err(|source| PoolError::Length { size, source })?;
        let file = FileOffset::new(file, 0);
        let map_error = |source| PoolError::Map { size, source };
        let length = usize::try_from(size.bytes())
            .map_err(|_| map_error(MmapRegionError::InvalidOffsetLength))?;
        // MmapRegion maps MAP_SHARED | MAP_NORESERVE.
        let mapping = MmapRegion::from_file(file.clone(), length).map_err(map_error)?;
        Ok(Self {
            size,
            mapping,
            file,
            identity,
        })
    }

    /// How much memory it is.
    pub fn size(&self) -> MemorySize {
        self.size
    }

    /// The file to map for anybody who shares the memory.
    pub fn file(&self) -> &File {
        self.file.file()
    }

    /// Identity of [`Self::file`], however it comes back to us.
    pub fn identity(&self) -> FileIdentity {
        self.identity
    }

    /// Whether `[address, address + bytes)` is inside the memory.
    pub fn contains(&self, address: u64, bytes: u64) -> bool {
        address
            .checked_add(bytes)
            .is_some_and(|end| end <= self.size.bytes())
    }

    /// The memory from `address` on, if all of it is inside.
    pub fn slice(&self, address: u64, bytes: u64) -> Option<VolatileSlice<'_>> {
        if !self.contains(address, bytes) {
            return None;
        }
        let offset = usize::try_from(address).ok()?;
        let count = usize::try_from(bytes).ok()?;
        self.mapping.get_slice(offset, count).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> Pool {
        Pool::new("64G".parse().unwrap()).unwrap()
    }

    #[test]
    fn untouched_memory_takes_no_host_memory_and_touched_memory_a_page_each() {
        let pool = pool();
        let blocks = || pool.file().metadata().unwrap().blocks();
        assert_eq!(blocks(), 0);
        for page in 0..4 {
            pool.slice(page << 30, 1).unwrap().copy_from(&[1u8]);
        }
        assert_eq!(blocks() * 512, 4 * 4096);
    }

    #[test]
    fn the_length_of_the_file_cannot_be_changed_by_who_shares_it() {
        let pool = pool();
        let shared = pool.file().try_clone().unwrap();
        assert!(shared.set_len(4096).is_err());
        assert!(shared.set_len(128 << 30).is_err());
        assert_eq!(
            fcntl(
                shared.as_fd(),
                FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE)
            ),
            Err(Errno::EPERM)
        );
    }

    #[test]
    fn a_copy_of_the_descriptor_is_recognised_and_another_memfd_is_not() {
        let pool = pool();
        let copy = pool.file().try_clone().unwrap();
        assert_eq!(FileIdentity::of(&copy).unwrap(), pool.identity());
        let other = Pool::new("256M".parse().unwrap()).unwrap();
        assert_ne!(other.identity(), pool.identity());
    }

    #[test]
    fn slices_end_at_the_end_of_memory() {
        let pool = pool();
        assert!(pool.slice((64 << 30) - 1, 1).is_some());
        assert!(pool.slice((64 << 30) - 1, 2).is_none());
        assert!(pool.slice(u64::MAX, 2).is_none());
    }
}
