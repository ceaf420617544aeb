// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Pages of an address space.

use crate::model::link::Side;
use cdm_protocol::{PAGE_BYTES_LARGE, PAGE_BYTES_SMALL, Status};

/// Name of an address space, as the driver gives it.
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
    /// Bytes of a page.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Small => PAGE_BYTES_SMALL,
            Self::Large => PAGE_BYTES_LARGE,
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
    /// A load and a store between which nobody else comes, over a link without atomics.
    Atomic,
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

/// A place on the other side of the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Offset into the device memory.
    Device(u64),
    /// Guest-physical address.
    Guest(u64),
}

impl Frame {
    /// Which side of the link it is on.
    pub const fn side(self) -> Side {
        match self {
            Self::Device(_) => Side::Own,
            Self::Guest(_) => Side::Link,
        }
    }

    /// The place so many bytes further.
    pub const fn plus(self, bytes: u64) -> Self {
        match self {
            Self::Device(address) => Self::Device(address.wrapping_add(bytes)),
            Self::Guest(address) => Self::Guest(address.wrapping_add(bytes)),
        }
    }
}

/// Where a page is, and what may be done to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Where its first byte is.
    pub frame: Frame,
    /// Whether stores are allowed.
    pub is_writable: bool,
    /// Whether no CPU accesses it.
    pub is_exclusive: bool,
}

impl Translation {
    /// Whether it allows an access.
    pub const fn allows(self, access: Access) -> bool {
        match access {
            Access::Read => true,
            Access::Write => self.is_writable,
            // What is on its own side of the link the device can do atomically anyway.
            Access::Atomic => {
                self.is_writable && (self.is_exclusive || matches!(self.frame, Frame::Device(_)))
            }
        }
    }

    /// The same of a place so many bytes further.
    pub const fn plus(self, bytes: u64) -> Self {
        Self {
            frame: self.frame.plus(bytes),
            ..self
        }
    }
}

/// What the driver says of one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A page of that size is there; the translation is of its first byte.
    Page(PageSize, Translation),
    /// The device does not get it.
    Refused(Status),
}

impl Answer {
    /// Whether it says that no CPU accesses the page.
    pub const fn is_exclusive(&self) -> bool {
        matches!(self, Self::Page(_, page) if page.is_exclusive)
    }
}
