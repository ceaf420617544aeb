// SPDX-License-Identifier: Apache-2.0 OR MIT

//! QEMU and a guest driver in one: memory, rings, the mapping of the BAR.

use super::queue::{Buffer, DriverQueue, SIZE, readable, writable};
use cdm_protocol::{
    CommandHeader, Completion, Config, ControlOpcode, ControlRequest, Opcode, QUEUE_CONTROL,
    QUEUE_EVENT, QUEUE_FIRST_COMMAND, Range, Space, Status,
};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::thread;
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserMMap, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{
    Frontend, FrontendReqHandler, HandlerResult, VhostUserFrontend, VhostUserFrontendReqHandler,
};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap,
    MmapRegion, VolatileMemory,
};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// Guest memory as QEMU's q35 cuts it: below and above the 4 GiB hole.
pub const LOW_BYTES: u64 = 8 << 20;
pub const HIGH_BASE: u64 = 4 << 30;
pub const HIGH_BYTES: u64 = 8 << 20;
/// Where the guest has put the BAR.
pub const BAR_BASE: u64 = 64 << 30;
/// Memory that tests may use as they like.
pub const SCRATCH: u64 = 0x40_0000;

/// Frontend addresses are guest addresses moved by this much.
const USER_OFFSET: u64 = 1 << 40;
/// Buffers of requests and completions.
const REQUESTS: u64 = 0x20_0000;
const REQUESTS_END: u64 = SCRATCH;

/// What the frontend keeps about the mapping of the BAR.
#[derive(Default)]
struct Window {
    region: Option<Arc<GuestRegionMmap>>,
    maps: u32,
    refuse: bool,
}

/// Answers the backend's requests, as QEMU's main loop does.
struct Channel {
    frontend: Frontend,
    ram: Arc<GuestMemoryMmap>,
    window: Arc<Mutex<Window>>,
}

/// A guest that is connected to a backend.
pub struct Guest {
    pub frontend: Frontend,
    pub memory: Arc<GuestMemoryMmap>,
    pub queues: Vec<DriverQueue>,
    window: Arc<Mutex<Window>>,
    next_buffer: u64,
}

/// A request that waits for its completion.
#[derive(Debug)]
pub struct Pending {
    pub head: u16,
    completion: u64,
}

impl VhostUserFrontendReqHandler for Channel {
    fn shmem_map(&self, request: &VhostUserMMap, fd: &dyn AsRawFd) -> HandlerResult<u64> {
        let mut window = self.window.lock().unwrap();
        window.maps += 1;
        if window.refuse {
            return Err(io::Error::other("refused by the test"));
        }
        assert_eq!({ request.shmid }, cdm_protocol::SHMEM_REGION_ID);
        assert_eq!({ request.flags }, 1);
        // SAFETY: the handler lends an open descriptor for the call.
        let lent = unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) };
        let file = File::from(lent.try_clone_to_owned().unwrap());
        let offset = FileOffset::new(file, request.fd_offset);
        let mapping = MmapRegion::from_file(offset, { request.len } as usize).unwrap();
        let address = GuestAddress(BAR_BASE + { request.shm_offset });
        window.region = GuestRegionMmap::new(mapping, address).map(Arc::new);
        // QEMU sends the new table before it answers.
        set_mem_table(&self.frontend, &self.ram, window.region.as_deref());
        Ok(0)
    }
}

fn set_mem_table(frontend: &Frontend, ram: &GuestMemoryMmap, window: Option<&GuestRegionMmap>) {
    let regions: Vec<_> = ram
        .iter()
        .chain(window)
        .map(|region| {
            let info = VhostUserMemoryRegionInfo::from_guest_region(region).unwrap();
            VhostUserMemoryRegionInfo {
                userspace_addr: info.guest_phys_addr + USER_OFFSET,
                ..info
            }
        })
        .collect();
    frontend.set_mem_table(&regions).unwrap();
}

fn ram() -> GuestMemoryMmap {
    let region = |base, bytes: u64| {
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes).unwrap();
        let mapping = MmapRegion::from_file(FileOffset::new(file, 0), bytes as usize).unwrap();
        GuestRegionMmap::new(mapping, GuestAddress(base)).unwrap()
    };
    let regions = vec![region(0, LOW_BYTES), region(HIGH_BASE, HIGH_BYTES)];
    GuestMemoryMmap::from_regions(regions).unwrap()
}

impl Guest {
    /// Connects and starts the device, as far as a driver's virtio_device_ready().
    pub fn connect(path: &Path) -> Self {
        Self::from_stream(UnixStream::connect(path).unwrap())
    }

    /// As [`Self::connect`], on a socket that is connected already.
    pub fn from_stream(stream: UnixStream) -> Self {
        // The number of queues is learnt from the device; this is the frontend's upper limit.
        let mut frontend = Frontend::from_stream(stream, 16);
        frontend.set_owner().unwrap();
        let features = frontend.get_features().unwrap();
        assert_ne!(
            features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits(),
            0
        );
        frontend.set_features(features).unwrap();
        let protocol = frontend.get_protocol_features().unwrap();
        frontend.set_protocol_features(protocol).unwrap();
        assert!(protocol.contains(VhostUserProtocolFeatures::REPLY_ACK));
        frontend.set_hdr_flags(vhost::vhost_user::message::VhostUserHeaderFlag::NEED_REPLY);
        let num_queues = frontend.get_queue_num().unwrap();

        let memory = Arc::new(ram());
        let window = Arc::<Mutex<Window>>::default();
        let channel = Arc::new(Channel {
            frontend: frontend.clone(),
            ram: memory.clone(),
            window: window.clone(),
        });
        let mut server = FrontendReqHandler::new(channel).unwrap();
        server.set_reply_ack_flag(true);
        // SAFETY: the server owns the descriptor and lives to the end of the call below.
        let sender = unsafe { BorrowedFd::borrow_raw(server.get_tx_raw_fd()) };
        frontend.set_backend_request_fd(&sender).unwrap();
        thread::Builder::new()
            .name("channel".to_owned())
            .spawn(move || {
                // A request that the handler refuses does not end the channel.
                while matches!(
                    server.handle_request(),
                    Ok(_) | Err(vhost::vhost_user::Error::ReqHandlerError(_))
                ) {}
            })
            .unwrap();

        let mut guest = Self {
            frontend,
            memory,
            queues: Vec::new(),
            window,
            next_buffer: REQUESTS,
        };
        guest.start(num_queues as usize);
        guest
    }

    /// Brings up fresh rings, as after a virtio reset.
    pub fn start(&mut self, num_queues: usize) {
        self.frontend
            .set_features(self.frontend.get_features().unwrap())
            .unwrap();
        let window = self.window.lock().unwrap().region.clone();
        set_mem_table(&self.frontend, &self.memory, window.as_deref());
        self.queues = (0..num_queues as u64)
            .map(|index| DriverQueue::new(self.memory.clone(), 0x1_0000 * (index + 1)))
            .collect();
        for index in 0..num_queues {
            self.start_queue(index, 0);
        }
    }

    /// Stops all rings; returns where each stood.
    pub fn stop(&mut self) -> Vec<u16> {
        (0..self.queues.len())
            .map(|index| self.frontend.get_vring_base(index).unwrap() as u16)
            .collect()
    }

    /// A virtio reset: rings are stopped and QEMU drops the mapping.
    pub fn virtio_reset(&mut self) {
        let num_queues = self.queues.len();
        self.stop();
        self.window.lock().unwrap().region = None;
        self.start(num_queues);
    }

    /// A pause of the machine: rings stop and go on where they stood.
    pub fn pause_and_go_on(&mut self) {
        let bases = self.stop();
        self.go_on(&bases);
    }

    /// The second half of [`Self::pause_and_go_on`].
    pub fn go_on(&mut self, bases: &[u16]) {
        self.frontend
            .set_features(self.frontend.get_features().unwrap())
            .unwrap();
        let window = self.window.lock().unwrap().region.clone();
        set_mem_table(&self.frontend, &self.memory, window.as_deref());
        for (index, &base) in bases.iter().enumerate() {
            self.start_queue(index, base);
        }
    }

    /// Restarts a queue with its used ring laid over its available ring and one chain ahead of
    /// the other, so that each chain given back makes one more available.
    pub fn lay_rings_over_each_other(&mut self, index: usize) {
        self.frontend.get_vring_base(index).unwrap();
        let base = self.queues[index].descriptors();
        self.queues[index] = DriverQueue::new(self.memory.clone(), base);
        let queue = &mut self.queues[index];
        queue.set_avail_index(1);
        let used = queue.avail();
        self.start_queue_at(index, 0, used);
    }

    fn start_queue(&mut self, index: usize, base: u16) {
        let used = self.queues[index].used();
        self.start_queue_at(index, base, used);
    }

    fn start_queue_at(&mut self, index: usize, base: u16, used: u64) {
        let queue = &self.queues[index];
        let addresses = VringConfigData {
            queue_max_size: SIZE,
            queue_size: SIZE,
            flags: 0,
            desc_table_addr: USER_OFFSET + queue.descriptors(),
            used_ring_addr: USER_OFFSET + used,
            avail_ring_addr: USER_OFFSET + queue.avail(),
            log_addr: None,
        };
        self.frontend.set_vring_num(index, SIZE).unwrap();
        self.frontend.set_vring_base(index, base).unwrap();
        self.frontend.set_vring_addr(index, &addresses).unwrap();
        self.frontend.set_vring_call(index, &queue.call).unwrap();
        self.frontend.set_vring_kick(index, &queue.kick).unwrap();
        self.frontend.set_vring_enable(index, true).unwrap();
    }

    /// The config space.
    pub fn config(&mut self) -> Config {
        let bytes = self.config_bytes(0, size_of::<Config>() as u32).unwrap();
        Config::read_from_bytes(&bytes).unwrap()
    }

    /// Some of the config space.
    pub fn config_bytes(&mut self, offset: u32, bytes: u32) -> Result<Vec<u8>, vhost::Error> {
        let flags = VhostUserConfigFlags::empty();
        let buffer = vec![0; bytes as usize];
        let (_, payload) = self.frontend.get_config(offset, bytes, flags, &buffer)?;
        Ok(payload)
    }

    /// How often the backend asked for the mapping.
    pub fn maps(&self) -> u32 {
        self.window.lock().unwrap().maps
    }

    /// Lets the mapping fail from now on, or succeed.
    pub fn refuse_maps(&mut self, refuse: bool) {
        self.window.lock().unwrap().refuse = refuse;
    }

    /// Room for `bytes` in guest memory.
    pub fn allocate(&mut self, bytes: usize) -> u64 {
        let bytes = (bytes as u64).next_multiple_of(16);
        if self.next_buffer + bytes > REQUESTS_END {
            self.next_buffer = REQUESTS;
        }
        self.next_buffer += bytes;
        self.next_buffer - bytes
    }

    /// Puts bytes into guest memory.
    pub fn place(&mut self, bytes: &[u8]) -> u64 {
        let address = self.allocate(bytes.len().max(1));
        self.write(address, bytes);
        address
    }

    pub fn write(&self, address: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .unwrap();
    }

    pub fn read(&self, address: u64, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.memory
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    }

    /// Stores through the BAR, as the guest's CPU does.
    pub fn bar_write(&self, offset: u64, bytes: &[u8]) {
        let region = self.window.lock().unwrap().region.clone().unwrap();
        let slice = VolatileMemory::get_slice(&**region, offset as usize, bytes.len()).unwrap();
        slice.copy_from(bytes);
    }

    /// Loads through the BAR.
    pub fn bar_read(&self, offset: u64, count: usize) -> Vec<u8> {
        let region = self.window.lock().unwrap().region.clone().unwrap();
        let mut bytes = vec![0; count];
        let slice = VolatileMemory::get_slice(&**region, offset as usize, count).unwrap();
        slice.copy_to(&mut bytes);
        bytes
    }

    /// Submits a request in one readable and one writable descriptor.
    pub fn post(&mut self, queue: u16, request: &[u8]) -> Pending {
        let buffers = self.request_buffers(request);
        let completion = buffers[1].address;
        let head = self.queues[usize::from(queue)].submit(&buffers);
        Pending { head, completion }
    }

    /// As [`Self::post`], without telling the device.
    pub fn post_silently(&mut self, queue: u16, request: &[u8]) -> Pending {
        let buffers = self.request_buffers(request);
        let completion = buffers[1].address;
        let queue = &mut self.queues[usize::from(queue)];
        let head = queue.chain(&buffers);
        queue.publish(head);
        Pending { head, completion }
    }

    fn request_buffers(&mut self, request: &[u8]) -> [Buffer; 2] {
        let request_address = self.place(request);
        // Poisoned, so that a completion that was not written shows.
        let completion = self.place(&[0xee; size_of::<Completion>()]);
        [
            readable(request_address, request.len()),
            writable(completion, size_of::<Completion>()),
        ]
    }

    /// Waits for a request that is the queue's next to complete.
    pub fn wait(&mut self, queue: u16, pending: &Pending) -> Completion {
        let (head, bytes) = self.queues[usize::from(queue)].wait_used();
        assert_eq!(head, u32::from(pending.head), "completions out of order");
        assert_eq!(bytes as usize, size_of::<Completion>());
        self.completion(pending)
    }

    /// What was written as a completion.
    pub fn completion(&self, pending: &Pending) -> Completion {
        let bytes = self.read(pending.completion, size_of::<Completion>());
        Completion::read_from_bytes(&bytes).unwrap()
    }

    /// Sends a request and waits for its completion.
    pub fn request(&mut self, queue: u16, request: &[u8]) -> Completion {
        let pending = self.post(queue, request);
        self.wait(queue, &pending)
    }

    /// Sends a control request and waits.
    pub fn control(&mut self, opcode: ControlOpcode, arg0: u64, arg1: u64) -> Completion {
        self.request(QUEUE_CONTROL, &control(opcode, arg0, arg1))
    }

    /// Maps the memory, as a driver does first.
    pub fn map(&mut self) {
        let completion = self.control(ControlOpcode::MAP_MEMORY, 0, 0);
        assert_eq!(completion.status, Status::OK);
    }

    /// Sends a command to command queue number `index` and waits.
    pub fn command(
        &mut self,
        index: u16,
        header: CommandHeader,
        src: &[Range],
        dst: &[Range],
    ) -> Completion {
        self.request(QUEUE_FIRST_COMMAND + index, &command(header, src, dst))
    }

    /// Puts buffers for events on the event queue.
    pub fn post_event_buffer(&mut self, bytes: usize) -> u64 {
        let address = self.place(&vec![0xee; bytes]);
        self.queues[usize::from(QUEUE_EVENT)].submit(&[writable(address, bytes)]);
        address
    }
}

/// A control request in bytes.
pub fn control(opcode: ControlOpcode, arg0: u64, arg1: u64) -> Vec<u8> {
    control_of(opcode, 0, arg0, arg1)
}

/// A control request about an address space in bytes.
pub fn control_of(opcode: ControlOpcode, pasid: u32, arg0: u64, arg1: u64) -> Vec<u8> {
    let request = ControlRequest {
        opcode,
        flags: 0.into(),
        pasid: pasid.into(),
        arg0: arg0.into(),
        arg1: arg1.into(),
    };
    request.as_bytes().to_vec()
}

/// A command in bytes, its counts filled in.
pub fn command(mut header: CommandHeader, src: &[Range], dst: &[Range]) -> Vec<u8> {
    header.num_src = (src.len() as u16).into();
    header.num_dst = (dst.len() as u16).into();
    [header.as_bytes(), src.as_bytes(), dst.as_bytes()].concat()
}

/// A header with nothing but an operation.
pub fn header(opcode: Opcode) -> CommandHeader {
    CommandHeader {
        opcode,
        ..CommandHeader::new_zeroed()
    }
}

/// A NOP in bytes.
pub fn nop() -> Vec<u8> {
    command(header(Opcode::NOP), &[], &[])
}

/// Many additions to one word: a command that takes long but stays cancellable.
pub fn long_command(word: Range) -> Vec<u8> {
    let add = CommandHeader {
        width: 8.into(),
        repeat: cdm_protocol::REPEAT_MAX.into(),
        arg0: 1.into(),
        ..header(Opcode::FETCH_ADD)
    };
    command(add, &[], &[word])
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

fn range(space: Space, address: u64, bytes: u64) -> Range {
    Range {
        space,
        reserved: 0.into(),
        pasid: 0.into(),
        address: address.into(),
        bytes: bytes.into(),
    }
}

impl Guest {
    /// Uses a word of device memory through the BAR, as the guest's CPU does.
    pub fn bar_atomic<T>(&self, offset: u64, f: impl FnOnce(&AtomicU64) -> T) -> T {
        let region = self.window.lock().unwrap().region.clone().unwrap();
        let slice = VolatileMemory::get_slice(&**region, offset as usize, 8).unwrap();
        let guard = slice.ptr_guard_mut();
        assert!(guard.as_ptr().cast::<AtomicU64>().is_aligned());
        // SAFETY: aligned, eight bytes long, and alive as long as the guard.
        f(unsafe { AtomicU64::from_ptr(guard.as_ptr().cast()) })
    }
}

impl Guest {
    /// Closes the connection as a killed QEMU does, whoever else holds the frontend.
    pub fn hang_up(&self) {
        // SAFETY: shutdown only looks the descriptor up.
        let result = unsafe { libc::shutdown(self.frontend.as_raw_fd(), libc::SHUT_RDWR) };
        assert_eq!(result, 0);
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // The channel's thread holds the frontend too, so dropping ours closes nothing. Fails
        // if the backend has gone first.
        // SAFETY: shutdown only looks the descriptor up.
        unsafe { libc::shutdown(self.frontend.as_raw_fd(), libc::SHUT_RDWR) };
    }
}
