// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Pages of an address space.

/// Name of an address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pasid(pub u32);

/// Sizes of a translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageSize {
    /// 4 KiB
    Small,
    /// 2 MiB
    Large,
}

impl PageSize {
    /// Both, the larger one first.
    pub const ALL: [Self; 2] = [Self::Large, Self::Small];

    /// Bytes of a page.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Small => 4 << 10,
            Self::Large => 2 << 20,
        }
    }

    /// The page that an address lies in.
    pub const fn page_of(self, address: u64) -> VirtualRange {
        let first = address & !(self.bytes() - 1);
        VirtualRange {
            first,
            last: first + (self.bytes() - 1),
        }
    }
}

/// What is done to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Loads only.
    Read,
    /// Stores, and loads as well.
    Write,
}

/// Addresses of a process, never none. Both ends belong to it, so that it can reach up to the
/// last address there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtualRange {
    /// First address.
    pub first: u64,
    /// Last address.
    pub last: u64,
}

impl VirtualRange {
    /// All addresses.
    pub const ALL: Self = Self {
        first: 0,
        last: u64::MAX,
    };

    /// Whether an address belongs to both.
    pub const fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// Where a page is, and what may be done to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Where its first byte is, on the other side of the bus.
    pub address: u64,
    /// Whether stores are allowed.
    pub is_writable: bool,
}

impl Translation {
    /// Whether it allows an access.
    pub const fn allows(self, access: Access) -> bool {
        self.is_writable || matches!(access, Access::Read)
    }
}
