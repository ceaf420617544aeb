// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A device, some guest memory, and requests in bytes.

use crate::model::{
    Asking, Atomics, Capacity, Command, ControlStep, Device, GuestMemory, Link, LinkSpeed, Means,
    PageAsker, Picoseconds, Request, Shape, Timing, Traffic,
};
use cdm_protocol::{
    CommandHeader, Completion, ControlOpcode, ControlRequest, Opcode, PageRequest, Range, Space,
    Status,
};
use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    VolatileSlice,
};
use zerocopy::{FromZeros, IntoBytes};

/// First address of guest memory: two regions that follow each other, then nothing.
pub const GUEST_BASE: u64 = 0x10000;
/// Where the second region begins.
pub const GUEST_BORDER: u64 = GUEST_BASE + 0x8000;
/// End of guest memory.
pub const GUEST_END: u64 = GUEST_BORDER + 0x8000;
/// Bytes of device memory.
pub const DEVICE_BYTES: u64 = 256 << 20;

/// Guest memory of the tests.
pub struct TestGuest(pub GuestMemoryMmap);

impl GuestMemory for TestGuest {
    fn stretch(&self, address: u64, bytes: u64) -> Option<VolatileSlice<'_>> {
        let region = self.0.find_region(GuestAddress(address))?;
        let offset = region.to_region_addr(GuestAddress(address))?;
        let left = region.len() - offset.raw_value();
        region.get_slice(offset, left.min(bytes) as usize).ok()
    }
}

/// A driver that has put no buffers on the event queue.
pub struct NoBuffers;

impl PageAsker for NoBuffers {
    fn ask(&self, _: PageRequest) -> Asking {
        Asking::NoBuffer
    }
}

/// A device whose memory is mapped, and a guest.
pub struct Fixture {
    pub device: Device,
    pub guest: TestGuest,
}

impl Fixture {
    /// A device that no driver has asked anything of.
    pub fn unmapped() -> Self {
        Self::unmapped_with(Capacity::default(), None, Atomics::Link)
    }

    /// The same that remembers so many translations, on a link that takes time, or none, and
    /// carries atomics, or none.
    fn unmapped_with(translations: Capacity, timing: Option<Timing>, atomics: Atomics) -> Self {
        let device = Device::new(&Shape {
            memory: "256M".parse().unwrap(),
            command_queues: 2,
            engines: 1,
            translations,
            atomics,
            link: Link {
                speed: LinkSpeed::Gt16,
                width_lanes: 16,
                timing,
            },
        });
        let regions = [
            (GuestAddress(GUEST_BASE), 0x8000),
            (GuestAddress(GUEST_BORDER), 0x8000),
        ];
        Self {
            device: device.unwrap(),
            guest: TestGuest(GuestMemoryMmap::from_ranges(&regions).unwrap()),
        }
    }

    /// A device that a driver has brought up.
    pub fn new() -> Self {
        Self::with(Capacity::default(), None, Atomics::Link)
    }

    /// The same on a link that takes time, or none.
    pub fn on(timing: Option<Timing>) -> Self {
        Self::with(Capacity::default(), timing, Atomics::Link)
    }

    /// The same that remembers so many translations, on a link that carries atomics, or none.
    pub fn with_translations(translations: Capacity, atomics: Atomics) -> Self {
        Self::with(translations, None, atomics)
    }

    fn with(translations: Capacity, timing: Option<Timing>, atomics: Atomics) -> Self {
        let fixture = Self::unmapped_with(translations, timing, atomics);
        let step = fixture.control(ControlOpcode::MAP_MEMORY, 0, 0);
        assert_eq!(step, ControlStep::MapMemory);
        assert_eq!(fixture.device.finish_map(true).status, Status::OK);
        fixture
    }

    /// Carries a command out that nobody cancels.
    pub fn run(&self, header: CommandHeader, src: &[Range], dst: &[Range]) -> Completion {
        self.run_bytes(&command(header, src, dst))
    }

    /// As [`Self::run`], from bytes.
    pub fn run_bytes(&self, bytes: &[u8]) -> Completion {
        self.run_until(bytes, &|| false)
    }

    /// As [`Self::run`], until `cancelled` says so.
    pub fn run_until(&self, bytes: &[u8], cancelled: &dyn Fn() -> bool) -> Completion {
        self.carry_out(&Request::new(bytes, bytes.len() as u64), cancelled)
    }

    /// As [`Self::run_until`], from a request.
    pub fn carry_out(&self, request: &Request<'_>, cancelled: &dyn Fn() -> bool) -> Completion {
        self.carry_out_with(request, &self.means(cancelled))
    }

    /// Means of a command that asks for no page.
    pub fn means<'a>(&'a self, cancelled: &'a dyn Fn() -> bool) -> Means<'a> {
        Means {
            guest: &self.guest,
            asker: &NoBuffers,
            cancelled,
        }
    }

    /// As [`Self::carry_out`], with other means.
    pub fn carry_out_with(&self, request: &Request<'_>, means: &Means<'_>) -> Completion {
        self.account_with(request, means).0
    }

    /// The same, and what it did to memory and how long that takes.
    pub fn account_with(
        &self,
        request: &Request<'_>,
        means: &Means<'_>,
    ) -> (Completion, Traffic, Option<Picoseconds>) {
        let command = Command::parse(request);
        match self.device.begin(command, means.guest) {
            Err(completion) => (completion, Traffic::default(), None),
            Ok(task) => {
                self.device.work(&task, means);
                self.device.settle(&task, &|| false);
                let (traffic, simulated) = self.device.account(&task);
                (self.device.finish(&task), traffic, simulated)
            }
        }
    }

    /// Sends a control request.
    pub fn control(&self, opcode: ControlOpcode, arg0: u64, arg1: u64) -> ControlStep {
        self.control_raw(&ControlRequest {
            opcode,
            flags: 0.into(),
            pasid: 0.into(),
            arg0: arg0.into(),
            arg1: arg1.into(),
        })
    }

    /// Sends any control request.
    pub fn control_raw(&self, request: &ControlRequest) -> ControlStep {
        let bytes = request.as_bytes();
        self.device
            .control(&Request::new(bytes, bytes.len() as u64))
    }

    /// Sends a control request that is answered at once.
    pub fn control_status(&self, opcode: ControlOpcode, arg0: u64, arg1: u64) -> Status {
        match self.control(opcode, arg0, arg1) {
            ControlStep::Complete(completion) => completion.status,
            step => panic!("expected an answer, found {step:?}"),
        }
    }

    /// Writes device memory past the model.
    pub fn poke(&self, address: u64, bytes: &[u8]) {
        let slice = self.device.pool().slice(address, bytes.len() as u64);
        slice.unwrap().copy_from(bytes);
    }

    /// Reads device memory past the model.
    pub fn peek(&self, address: u64, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        let slice = self.device.pool().slice(address, count as u64);
        slice.unwrap().copy_to(&mut bytes);
        bytes
    }

    /// Writes guest memory.
    pub fn poke_guest(&self, address: u64, bytes: &[u8]) {
        self.guest
            .0
            .write_slice(bytes, GuestAddress(address))
            .unwrap();
    }

    /// Reads guest memory.
    pub fn peek_guest(&self, address: u64, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        let address = GuestAddress(address);
        self.guest.0.read_slice(&mut bytes, address).unwrap();
        bytes
    }
}

/// A header with nothing but an operation.
pub fn header(opcode: Opcode) -> CommandHeader {
    CommandHeader {
        opcode,
        ..CommandHeader::new_zeroed()
    }
}

/// A command in bytes, its counts filled in.
pub fn command(mut header: CommandHeader, src: &[Range], dst: &[Range]) -> Vec<u8> {
    header.num_src = (src.len() as u16).into();
    header.num_dst = (dst.len() as u16).into();
    [header.as_bytes(), src.as_bytes(), dst.as_bytes()].concat()
}

/// A range of device memory.
pub fn device(address: u64, bytes: u64) -> Range {
    range(Space::DEVICE, address, bytes)
}

/// A range of guest memory.
pub fn guest(address: u64, bytes: u64) -> Range {
    range(Space::GUEST, address, bytes)
}

/// A range of a process.
pub fn process(pasid: u32, address: u64, bytes: u64) -> Range {
    Range {
        pasid: pasid.into(),
        ..range(Space::PROCESS, address, bytes)
    }
}

/// A range of any space.
pub fn range(space: Space, address: u64, bytes: u64) -> Range {
    Range {
        space,
        reserved: 0.into(),
        pasid: 0.into(),
        address: address.into(),
        bytes: bytes.into(),
    }
}
