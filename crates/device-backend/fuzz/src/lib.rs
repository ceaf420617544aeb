// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A device without a process around it, and a guest whose memory is whatever the fuzzer says.

pub mod pages;
pub mod script;

use cdm_backend::fault::Faults;
use cdm_backend::model::{Atomics, Capacity, Device, Link, LinkSpeed, Shape};
use cdm_backend::sandbox::Sandbox;
use cdm_backend::telemetry::Telemetry;
use cdm_backend::vhost::{Adapter, Bell, Parts};
use cdm_protocol::{QUEUE_EVENT, QUEUE_FIRST_COMMAND, QUEUE_SIZE};
use std::sync::{Arc, Condvar, Mutex, OnceLock, Weak};
use std::thread;
use std::time::Duration;
use vhost_user_backend::{VhostUserBackend, VringT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;

/// Bytes of guest memory, from address 0 on: the rings of three queues, and room.
pub const GUEST_BYTES: usize = 64 << 10;

/// The address space that is bound.
pub const PASID: u32 = 1;

/// The guest may make the device work for this long; then it goes. Rings that refill
/// themselves have no other end.
const GUEST_TIME: Duration = Duration::from_millis(20);

/// A page of the device memory that has failed.
const FAILED_PAGE: u64 = 3;
const COMMAND_QUEUES: u16 = 1;

/// A device that nobody has seen yet, and a page of whose memory has failed.
pub fn new_device(atomics: Atomics) -> Device {
    let shape = Shape {
        memory: "256M".parse().expect("a size"),
        command_queues: COMMAND_QUEUES,
        // An input is at its end when its kick is: what an engine could do is done in place.
        engines: 0,
        translations: Capacity::default(),
        atomics,
        link: Link {
            speed: LinkSpeed::Gt16,
            width_lanes: 16,
            timing: None,
        },
    };
    let device = Device::new(&shape).expect("memory");
    device.fail_pages(FAILED_PAGE..FAILED_PAGE + 1);
    device
}

/// What outlives a guest; a device for each way of its atomics.
pub fn parts(atomics: Atomics) -> &'static Parts {
    static LINK: OnceLock<Parts> = OnceLock::new();
    static EXCLUSIVE: OnceLock<Parts> = OnceLock::new();
    let parts = match atomics {
        Atomics::Link => &LINK,
        Atomics::Exclusive => &EXCLUSIVE,
    };
    parts.get_or_init(|| make(atomics))
}

/// Which device an input is for. Any byte may decide it, so that both see requests of any form.
pub fn atomics_for(input: &[u8]) -> Atomics {
    match input.iter().fold(0, |sum, byte| sum ^ byte) % 2 {
        0 => Atomics::Link,
        _ => Atomics::Exclusive,
    }
}

fn make(atomics: Atomics) -> Parts {
    let num_queues = QUEUE_FIRST_COMMAND + COMMAND_QUEUES;
    let device = Arc::new(new_device(atomics));
    Parts {
        telemetry: Arc::new(Telemetry::new(num_queues, device.clone(), None)),
        faults: Arc::new(Faults::new(device.clone())),
        device,
        bell: Bell::default(),
        sandbox: Sandbox::none(),
    }
}

type Vring = <Adapter as VhostUserBackend>::Vring;

/// A guest that is connected, with control, event and one command queue.
pub struct Guest {
    adapter: Arc<Adapter>,
    memory: GuestMemoryAtomic<GuestMemoryMmap>,
    vrings: Vec<Vring>,
}

/// Where the rings of a queue are: descriptors, available ring, used ring.
pub fn rings(queue: u16) -> [u64; 3] {
    let base = 0x3000 * u64::from(queue);
    [base, base + 0x1000, base + 0x2000]
}

impl Guest {
    /// Connects one with this memory (and zeroes behind it) that sees the device memory, or not, to
    /// the device with these atomics.
    pub fn connect(image: &[u8], is_mapped: bool, atomics: Atomics) -> Self {
        let parts = parts(atomics);
        let adapter = Arc::new(Adapter::new(parts));
        let regions = [(GuestAddress(0), GUEST_BYTES)];
        let memory = GuestMemoryMmap::from_ranges(&regions).expect("memory");
        let count = image.len().min(GUEST_BYTES);
        memory
            .write_slice(&image[..count], GuestAddress(0))
            .expect("it fits");
        let memory = GuestMemoryAtomic::new(memory);
        let num_queues = QUEUE_FIRST_COMMAND + 1;
        let vrings: Vec<_> = (0..num_queues).map(|queue| ring(&memory, queue)).collect();
        adapter.update_memory(memory.clone()).expect("taken");
        parts.device.unplug();
        if is_mapped {
            map(&parts.device);
        }
        Self {
            adapter,
            memory,
            vrings,
        }
    }

    /// The backend that serves it.
    pub fn adapter(&self) -> &Adapter {
        &self.adapter
    }

    /// Kicks a queue, and waits until the device rests.
    pub fn kick(&self, queue: u16) {
        let _patience = Patience::begin(&self.adapter);
        let all = &self.vrings[..];
        let command = [
            all[usize::from(QUEUE_EVENT)].clone(),
            all[usize::from(QUEUE_FIRST_COMMAND)].clone(),
        ];
        // The command worker is thread 0, the control worker thread 1.
        let (event, vrings, thread) = match queue {
            QUEUE_FIRST_COMMAND => (1, &command[..], 0),
            other => (other, all, 1),
        };
        self.adapter
            .handle_event(event, EventSet::IN, vrings, thread)
            .expect("the backend takes every event");
    }

    /// Bytes of guest memory.
    pub fn read(&self, address: u64, bytes: &mut [u8]) {
        use vm_memory::GuestAddressSpace;
        self.memory
            .memory()
            .read_slice(bytes, GuestAddress(address))
            .expect("inside");
    }
}

fn ring(memory: &GuestMemoryAtomic<GuestMemoryMmap>, queue: u16) -> Vring {
    let vring = Vring::new(memory.clone(), QUEUE_SIZE).expect("a ring");
    let [descriptors, avail, used] = rings(queue);
    vring.set_queue_size(QUEUE_SIZE);
    vring
        .set_queue_info(descriptors, avail, used)
        .expect("inside");
    vring.set_queue_event_idx(true);
    vring.set_queue_ready(true);
    vring.set_enabled(true);
    vring
}

/// Has the device believe that the guest sees its memory, as a frontend's answer does, and
/// binds an address space whose accesses are counted.
pub fn map(device: &Device) {
    use cdm_backend::model::Request;
    use cdm_protocol::{ControlOpcode, ControlRequest};
    use zerocopy::IntoBytes;
    let ask = |opcode, pasid: u32, arg0: u64| {
        let request = ControlRequest {
            opcode,
            flags: 0.into(),
            pasid: pasid.into(),
            arg0: arg0.into(),
            arg1: 0.into(),
        };
        let bytes = request.as_bytes();
        let _ = device.control(&Request::new(bytes, bytes.len() as u64));
    };
    ask(ControlOpcode::MAP_MEMORY, 0, 0);
    let _ = device.finish_map(true);
    ask(ControlOpcode::BIND, PASID, 0);
    // Each access is reported.
    ask(ControlOpcode::COUNT_ACCESSES, PASID, 1);
}

/// Hangs a guest up that takes too long.
struct Patience;

type Watched = (Mutex<(u64, Weak<Adapter>)>, Condvar);

fn watched() -> &'static Watched {
    static WATCHED: OnceLock<Watched> = OnceLock::new();
    WATCHED.get_or_init(|| {
        thread::spawn(watch);
        (Mutex::new((0, Weak::new())), Condvar::new())
    })
}

fn watch() {
    let (state, changed) = watched();
    let mut guard = state.lock().expect("not poisoned");
    loop {
        let Some(adapter) = guard.1.upgrade() else {
            guard = changed.wait(guard).expect("not poisoned");
            continue;
        };
        let turn = guard.0;
        let waited = changed
            .wait_timeout(guard, GUEST_TIME)
            .expect("not poisoned");
        guard = waited.0;
        if waited.1.timed_out() && guard.0 == turn {
            adapter.hang_up();
            guard.1 = Weak::new();
        }
    }
}

impl Patience {
    fn begin(adapter: &Arc<Adapter>) -> Self {
        let (state, changed) = watched();
        let mut state = state.lock().expect("not poisoned");
        *state = (state.0 + 1, Arc::downgrade(adapter));
        changed.notify_one();
        Self
    }
}

impl Drop for Patience {
    fn drop(&mut self) {
        let (state, _) = watched();
        let mut state = state.lock().expect("not poisoned");
        *state = (state.0 + 1, Weak::new());
    }
}
