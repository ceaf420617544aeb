// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A device whose guest is this program: rings as a driver writes them, kicks as a worker of the
//! device gets them. What carries kicks and interrupts between two processes is left out, so that
//! what is measured is the device's own work.

#![allow(dead_code, reason = "each program uses a part of it")]

#[path = "../../tests/vhost_user/guest.rs"]
pub mod guest;
#[path = "../../tests/vhost_user/process.rs"]
pub mod process;
#[path = "../../tests/vhost_user/queue.rs"]
pub mod queue;
pub mod work;

use cdm_backend::fault::Faults;
use cdm_backend::model::{Atomics, Capacity, Device, Link, LinkSpeed, Request, Shape};
use cdm_backend::sandbox::Sandbox;
use cdm_backend::telemetry::Telemetry;
use cdm_backend::vhost::{Adapter, Bell, Parts};
use cdm_protocol::{Completion, ControlOpcode, QUEUE_FIRST_COMMAND, QUEUE_SIZE, Status};
use queue::{DriverQueue, readable, writable};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use vhost_user_backend::{VhostUserBackend, VringT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

/// Where guest memory holds what.
const RING: u64 = 0;
const EVENT_RING: u64 = 0x4000;
const REQUESTS: u64 = 0x1_0000;
const GUEST_BYTES: usize = 1 << 20;
/// Room for a request and its completion: that of the longest one, rounded up.
const SLOT: u64 = 16 << 10;

/// Most requests that are in the ring at a time.
pub const DEPTH_MAX: usize = 56;

type Vring = <Adapter as VhostUserBackend>::Vring;

/// A device that nobody has seen yet, with so many engines.
pub fn device(engines: u16) -> Device {
    let shape = Shape {
        memory: "256M".parse().expect("a size"),
        command_queues: 1,
        engines,
        translations: Capacity::default(),
        atomics: Atomics::Link,
        link: Link {
            speed: LinkSpeed::Gt16,
            width_lanes: 16,
            timing: None,
        },
    };
    Device::new(&shape).expect("memory")
}

/// Has the device believe that the guest sees its memory.
pub fn map(device: &Device) {
    control(device, &guest::control(ControlOpcode::MAP_MEMORY, 0, 0));
    let _ = device.finish_map(true);
}

/// Has the device carry a control request out.
pub fn control(device: &Device, bytes: &[u8]) {
    let _ = device.control(&Request::new(bytes, bytes.len() as u64));
}

/// A device and its guest.
pub struct Rig {
    /// The backend without its threads for queues.
    adapter: Adapter,
    vrings: [Vring; 2],
    memory: Arc<GuestMemoryMmap>,
    queue: DriverQueue,
    /// Where each request lies, and how long it is.
    prepared: Vec<(u64, usize)>,
}

impl Rig {
    /// A guest that sees the device memory.
    pub fn new(engines: u16) -> Self {
        let device = Arc::new(device(engines));
        let num_queues = QUEUE_FIRST_COMMAND + 1;
        let adapter = Adapter::new(&Parts {
            telemetry: Arc::new(Telemetry::new(num_queues, device.clone(), None)),
            faults: Arc::new(Faults::new(device.clone())),
            device: device.clone(),
            bell: Bell::default(),
            sandbox: Sandbox::none(),
        });
        let regions = [(GuestAddress(0), GUEST_BYTES)];
        let memory = GuestMemoryMmap::from_ranges(&regions).expect("memory");
        let shared = GuestMemoryAtomic::new(memory.clone());
        adapter.update_memory(shared.clone()).expect("taken");
        map(&device);
        let memory = Arc::new(memory);
        let queue = DriverQueue::new(memory.clone(), RING);
        let vrings = [EVENT_RING, RING].map(|base| ring(&shared, base));
        let call = owned(&queue.call);
        vrings[1].set_call(Some(call));
        Self {
            adapter,
            vrings,
            memory,
            queue,
            prepared: Vec::new(),
        }
    }

    /// Puts requests where [`Self::post`] finds them.
    pub fn prepare(&mut self, requests: &[Vec<u8>]) {
        assert!(requests.len() <= DEPTH_MAX);
        self.prepared.clear();
        for (index, request) in (0..).zip(requests) {
            let address = REQUESTS + index * SLOT;
            let written = self.memory.write_slice(request, GuestAddress(address));
            written.expect("inside");
            self.prepared.push((address, request.len()));
        }
    }

    /// Makes all that was prepared available.
    pub fn post(&mut self) {
        for &(address, bytes) in &self.prepared {
            let completion = writable(completion_of(address), size_of::<Completion>());
            let head = self.queue.chain(&[readable(address, bytes), completion]);
            self.queue.publish(head);
        }
    }

    /// Kicks the device, which comes back when the ring is empty.
    pub fn kick(&self) {
        let event = self.adapter.handle_event(1, EventSet::IN, &self.vrings, 0);
        event.expect("the backend takes every event");
    }

    /// Takes what was given back; all of it, and it went well.
    pub fn collect(&mut self) {
        for &(address, _) in &self.prepared {
            self.queue.poll_used().expect("it was given back");
            let place = GuestAddress(completion_of(address));
            let completion: [u8; 2] = self.memory.read_obj(place).expect("inside");
            assert_eq!(u16::from_le_bytes(completion), Status::OK.0.get());
        }
    }

    /// All of the above.
    pub fn round(&mut self) {
        self.post();
        self.kick();
        self.collect();
    }
}

fn completion_of(request: u64) -> u64 {
    request + SLOT - 64
}

fn owned(fd: &impl std::os::fd::AsRawFd) -> File {
    // SAFETY: the descriptor is open as long as its owner lives, who outlives this call.
    let lent: BorrowedFd<'_> = unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) };
    File::from(lent.as_fd().try_clone_to_owned().expect("a descriptor"))
}

fn ring(memory: &GuestMemoryAtomic<GuestMemoryMmap>, base: u64) -> Vring {
    let vring = Vring::new(memory.clone(), QUEUE_SIZE).expect("a ring");
    vring.set_queue_size(QUEUE_SIZE);
    vring
        .set_queue_info(base, base + 0x1000, base + 0x2000)
        .expect("inside");
    vring.set_queue_event_idx(true);
    vring.set_queue_ready(true);
    vring.set_enabled(true);
    vring
}
