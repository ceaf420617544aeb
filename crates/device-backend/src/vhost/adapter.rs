// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The backend as `vhost-user-backend` wants it.
//!
//! `VhostUserBackend` is implemented on the adapter itself, with a lock for each
//! matter: the crate's own `Mutex` and `RwLock` wrappers hold one during `handle_event`,
//! and a SHMEM_MAP from there would wait for a frontend that waits for us.

use super::command::{self, CommandRings};
use super::control;
use super::engines::Engines;
use super::events::{self, Events};
use super::guest_view::GuestView;
use super::mapper::Mapper;
use super::passage::{Held, Served};
use super::poll::Poll;
use super::ring::{Broken, Ring};
use super::turn::Turn;
use super::vring::Vring;
use crate::fault::Faults;
use crate::model::{Device, FileIdentity};
use crate::sandbox::{self, Sandbox};
use crate::telemetry::Telemetry;
use cdm_protocol::{QUEUE_CONTROL, QUEUE_EVENT, QUEUE_FIRST_COMMAND, QUEUE_SIZE};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, Weak};
use tracing::{debug, info, warn};
use vhost::vhost_user::Backend;
use vhost::vhost_user::message::{
    VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserVirtioFeatures,
};
use vhost_user_backend::VhostUserBackend;
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

/// What all workers of one connection share.
pub struct Shared {
    /// The device, which outlives the connection.
    pub device: Arc<Device>,
    /// One turn for each queue, by queue number: held from taking a chain to giving it back or
    /// handing it to an engine. That of the event queue is held for one event, so that none is
    /// written after the queue was stopped.
    pub turns: Vec<Turn>,
    /// Threads that work on commands beside the workers.
    pub engines: Engines,
    /// Events that wait to be told.
    pub events: Events,
    /// The way to the guest's address space.
    pub mapper: Mapper,
    /// What is to go wrong.
    pub faults: Arc<Faults>,
    /// What is seen from outside.
    pub telemetry: Arc<Telemetry>,
    /// One chain a queue that a fault gives back late; used by who has the queue's turn.
    pub held: Vec<Mutex<Option<Held>>>,
    guest: RwLock<Arc<GuestView>>,
    /// The event queue's ring, from the first kick of any queue on.
    event: OnceLock<Vring>,
}

impl Shared {
    /// Guest memory as it is now.
    pub fn guest(&self) -> Arc<GuestView> {
        self.guest
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn set_guest(&self, view: Arc<GuestView>) {
        *self.guest.write().unwrap_or_else(PoisonError::into_inner) = view;
    }

    /// Reports that something is wrong with a queue.
    pub fn queue_error(&self, queue: u16, event: &Vring, guest: &GuestView) {
        let counters = &self.telemetry.counters;
        counters.queue(queue).queue_errors.inc();
        let _turn = self.turns[usize::from(QUEUE_EVENT)].take();
        if !self.events.queue_error(queue, event, guest) {
            counters.events_lost.inc();
        }
        self.telemetry.happened("QUEUE_ERROR", queue);
    }

    /// Tells the driver of memory that has failed, as far as it has room for that now. Not in the
    /// event queue's turn.
    fn tell_memory_errors(&self) {
        if !self.device.has_memory_errors_to_tell() {
            return;
        }
        // No driver asks for such events without a kick.
        if let Some(event) = self.event.get() {
            let _turn = self.turns[usize::from(QUEUE_EVENT)].take();
            events::tell_memory_errors(&self.device, event, &self.guest());
        }
    }

    /// Forgets what belonged to rings that are no more.
    fn forget_requests(&self) {
        self.faults.forget_requests();
        for held in &self.held {
            *held.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    fn own_file(&self) -> FileIdentity {
        self.device.pool().identity()
    }
}

/// The way to the guest that is connected, for who lets memory fail.
#[derive(Clone, Debug, Default)]
pub struct Bell(Arc<Mutex<Weak<Shared>>>);

impl Bell {
    /// Has the guest told of memory that has failed.
    pub fn ring(&self) {
        let shared = self.guest().upgrade();
        if let Some(shared) = shared {
            shared.tell_memory_errors();
        }
    }

    fn guest(&self) -> MutexGuard<'_, Weak<Shared>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What outlives a connection.
#[derive(Clone)]
pub struct Parts {
    /// The device.
    pub device: Arc<Device>,
    /// How its guest hears of memory errors.
    pub bell: Bell,
    /// What is to go wrong.
    pub faults: Arc<Faults>,
    /// What is seen from outside.
    pub telemetry: Arc<Telemetry>,
    /// What its threads give up.
    pub sandbox: Sandbox,
}

/// One connection's backend.
pub struct Adapter {
    shared: Arc<Shared>,
    sandbox: Sandbox,
    /// Set between the start of a device by its driver and the memory table that follows.
    is_starting: AtomicBool,
    /// Of each queue's worker, how long it looks for more: used by that worker alone.
    polls: Vec<Mutex<Poll>>,
    /// Descriptors by which workers hear that they are to end; see [`Self::take_exit_fds`].
    exit_fds: Mutex<Vec<RawFd>>,
}

/// A guest without memory, in which no ring can be found.
fn no_memory(device: &Device) -> Arc<GuestView> {
    let empty = Arc::new(GuestMemoryMmap::new());
    Arc::new(GuestView::new(empty, device.pool().identity()))
}

/// Which queues a worker serves.
enum Role {
    Control,
    Command(u16),
}

impl Adapter {
    /// A backend for one guest.
    pub fn new(parts: &Parts) -> Self {
        let device = parts.device.clone();
        let num_queues = usize::from(QUEUE_FIRST_COMMAND) + device.queues().len();
        let no_memory = no_memory(&device);
        let engine_sandbox = parts.sandbox.clone();
        let narrow = move || engine_sandbox.enter(sandbox::Role::Command);
        let shared = Arc::new(Shared {
            engines: Engines::start(device.engines(), narrow),
            device,
            turns: (0..num_queues).map(|_| Turn::default()).collect(),
            events: Events::default(),
            mapper: Mapper::default(),
            faults: parts.faults.clone(),
            telemetry: parts.telemetry.clone(),
            held: (0..num_queues).map(|_| Mutex::default()).collect(),
            guest: RwLock::new(no_memory),
            event: OnceLock::new(),
        });
        *parts.bell.guest() = Arc::downgrade(&shared);
        Self {
            shared,
            sandbox: parts.sandbox.clone(),
            is_starting: AtomicBool::new(false),
            polls: (0..num_queues).map(|_| Mutex::default()).collect(),
            exit_fds: Mutex::default(),
        }
    }

    /// The device that is served.
    pub fn device(&self) -> &Arc<Device> {
        &self.shared.device
    }

    /// Brings every worker to rest after its guest has gone: what runs is cancelled, and what
    /// the rings still hold, or feed to themselves, is out of reach.
    pub fn hang_up(&self) {
        self.shared.set_guest(no_memory(&self.shared.device));
        for queue in self.shared.device.queues() {
            queue.cancel_all();
        }
        self.shared.forget_requests();
    }

    /// Ends the engines after the workers have ended, who hand commands to them.
    pub fn stop_engines(&self) {
        self.shared.engines.stop();
    }

    /// The descriptors behind the exit events handed out so far.
    ///
    /// vhost-user-backend 0.24 gives up ownership of them (`into_raw_fd`) and never closes
    /// them; once the workers have ended they are the caller's to close.
    pub fn take_exit_fds(&self) -> Vec<RawFd> {
        std::mem::take(&mut self.exit_fds.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn num_command_queues(&self) -> u16 {
        // Shape has a u16 for it.
        self.shared.device.queues().len() as u16
    }

    fn role(&self, thread: usize) -> Role {
        match u16::try_from(thread) {
            Ok(index) if index < self.num_command_queues() => Role::Command(index),
            _ => Role::Control,
        }
    }

    fn remember_event_ring(&self, vring: &Vring) {
        // The same ring for the whole of a connection, so the first one will do.
        self.shared.event.get_or_init(|| vring.clone());
    }

    /// Serves a queue until it is empty, and stays so for as long as it is worth to look; asks to
    /// be kicked only then. The driver hears of all that was done when the ring is empty. While a
    /// fault holds the queue up it waits here, without the queue's turn: whoever stops the ring, or
    /// resets the device, does not wait for it.
    fn drain(
        &self,
        queue: u16,
        vring: &Vring,
        event: &Vring,
        mut serve_one: impl FnMut() -> Result<Served, Broken>,
    ) {
        let turn = &self.shared.turns[usize::from(queue)];
        let poll = &self.polls[usize::from(queue)];
        // Nobody else takes it, so nobody waits for the looks.
        let mut poll = poll.lock().unwrap_or_else(PoisonError::into_inner);
        poll.woken();
        let mut drain = || -> Result<(), Broken> {
            loop {
                Ring::new(vring, &self.shared.guest()).disable_kicks()?;
                loop {
                    let own_turn = turn.take();
                    let served = serve_one();
                    drop(own_turn);
                    match served? {
                        Served::One => {}
                        Served::Nothing => break,
                        Served::Stalled => {
                            // What went before is done, and its driver waits to hear of it.
                            Ring::new(vring, &self.shared.guest()).notify();
                            self.shared.faults.wait();
                        }
                    }
                }
                let guest = self.shared.guest();
                let ring = Ring::new(vring, &guest);
                // One may have waited for a request. Who sees the completion has been told.
                self.shared.tell_memory_errors();
                ring.notify();
                if poll.look(|| ring.with_waiting(|waiting| waiting > 0)) {
                    continue;
                }
                if !ring.enable_kicks()? {
                    return Ok(());
                }
                poll.woken();
            }
        };
        let result = drain();
        if let Err(Broken) = result {
            let guest = self.shared.guest();
            Ring::new(vring, &guest).notify();
            if guest.is_gone() {
                // Its rings cannot be read since it went, and nobody is there to hear of it.
                return;
            }
            debug!(queue, "the driver's ring is inconsistent");
            // Whatever is in it: the driver may mend it, and its next kick must come through.
            let _ = Ring::new(vring, &guest).enable_kicks();
            self.shared.queue_error(queue, event, &guest);
            self.shared.tell_memory_errors();
        }
    }
}

impl VhostUserBackend for Adapter {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        self.shared.turns.len()
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE.into()
    }

    fn features(&self) -> u64 {
        // The first that a frontend asks, and the first that its thread comes to us with.
        self.sandbox.enter(sandbox::Role::Session);
        1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn acked_features(&self, _features: u64) {
        // Comes whenever the device starts: after a virtio reset, which took the guest's mapping
        // away, or after a pause of the machine, which did not. The memory table tells.
        self.is_starting.store(true, Ordering::Release);
        self.shared.mapper.end_stop();
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        // Neither STATUS (no handler in the crate, and QEMU aborts) nor CONFIGURE_MEM_SLOTS
        // (QEMU crashes on map, reset, map) nor INFLIGHT_SHMFD (the crate's handler is a stub).
        VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::BACKEND_SEND_FD
            | VhostUserProtocolFeatures::SHMEM
            | VhostUserProtocolFeatures::REPLY_ACK
    }

    fn set_event_idx(&self, _enabled: bool) {
        // The rings know it themselves.
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let bytes = self.shared.device.config_bytes();
        let begin = offset as usize;
        begin
            .checked_add(size as usize)
            .and_then(|end| bytes.get(begin..end))
            .map(<[u8]>::to_vec)
            .unwrap_or_default()
    }

    fn set_config(&self, offset: u32, bytes: &[u8]) -> io::Result<()> {
        // An error would end the connection, and the config space is the guest's to write to.
        debug!(
            offset,
            bytes = bytes.len(),
            "the driver wrote to the read-only config space"
        );
        Ok(())
    }

    fn update_memory(&self, memory: GuestMemoryAtomic<GuestMemoryMmap>) -> io::Result<()> {
        let table = memory.memory().into_inner();
        let view = Arc::new(GuestView::new(table, self.shared.own_file()));
        let is_visible = view.has_own_window();
        let is_starting = self.is_starting.swap(false, Ordering::AcqRel);
        debug!(is_starting, is_visible, "a new memory table");
        if is_starting && !is_visible {
            self.shared.device.unplug();
            self.shared.forget_requests();
        }
        self.shared.set_guest(view);
        Ok(())
    }

    fn set_backend_req_fd(&self, channel: Backend) {
        self.shared.mapper.set_channel(channel);
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        // A queue's kicks go to the first worker that lists it; the others get its ring to
        // look at. So the command workers come first and list the event queue, which they write
        // to, and the control worker comes last and lists all, which it cancels.
        let commands = (0..self.num_command_queues())
            .map(|index| 1 << QUEUE_EVENT | 1 << (QUEUE_FIRST_COMMAND + index));
        let all = (1 << self.num_queues()) - 1;
        commands.chain([all]).collect()
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        match new_event_consumer_and_notifier(EventFlag::CLOEXEC | EventFlag::NONBLOCK) {
            Ok((consumer, notifier)) => {
                self.exit_fds
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(consumer.as_raw_fd());
                Some((consumer, notifier))
            }
            Err(error) => {
                warn!(%error, "cannot make an eventfd; the worker will not end with its guest");
                None
            }
        }
    }

    fn stop_vring(&self, queue: u32) -> io::Result<()> {
        let Some(turn) = self.shared.turns.get(queue as usize) else {
            return Ok(());
        };
        if queue == u32::from(QUEUE_CONTROL) && self.shared.mapper.begin_stop() {
            warn!("the guest stopped the control queue while its memory was being mapped");
            return Ok(());
        }
        let command = (queue as usize).checked_sub(usize::from(QUEUE_FIRST_COMMAND));
        let command = command.and_then(|index| self.shared.device.queues().get(index));
        // Commands that run are waited for, not cancelled: this may be a pause. Only what would
        // wait for a guest that waits for us is told to end.
        if let Some(queue) = command {
            queue.set_stopping(true);
        }
        // The ring is marked as stopped already: after this turn no worker touches it, and after
        // the last of its commands no engine does.
        drop(turn.take());
        if let Some(queue) = command {
            queue.wait_until_idle();
            queue.set_stopping(false);
            queue.forget_line();
        }
        Ok(())
    }

    fn handle_event(
        &self,
        device_event: u16,
        _events: EventSet,
        vrings: &[Vring],
        thread: usize,
    ) -> io::Result<()> {
        let role = self.role(thread);
        self.sandbox.enter(match role {
            Role::Control => sandbox::Role::Control,
            Role::Command(_) => sandbox::Role::Command,
        });
        match &role {
            // The event queue's ring is where `queues_per_thread` puts it.
            Role::Control => self.remember_event_ring(&vrings[usize::from(QUEUE_EVENT)]),
            Role::Command(_) => self.remember_event_ring(&vrings[0]),
        }
        match (role, vrings) {
            (Role::Control, all) if device_event == QUEUE_CONTROL => {
                let control = &all[usize::from(QUEUE_CONTROL)];
                let event = &all[usize::from(QUEUE_EVENT)];
                self.drain(QUEUE_CONTROL, control, event, || {
                    control::serve_one(&self.shared, all)
                });
            }
            (Role::Command(index), [event, command]) if device_event == 1 => {
                let rings = CommandRings { command, event };
                self.drain(QUEUE_FIRST_COMMAND + index, command, event, || {
                    command::serve_one(&self.shared, index, rings)
                });
            }
            // New buffers for events: they are found when there is an event, and one may have
            // waited for them.
            (Role::Command(_), _) => self.shared.tell_memory_errors(),
            (Role::Control, _) => info!(device_event, "unexpected event on the control worker"),
        }
        Ok(())
    }

    fn get_shmem_config(&self) -> io::Result<VhostUserShMemConfig> {
        Ok(VhostUserShMemConfig::new(
            1,
            &[self.shared.device.pool().size().bytes()],
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Atomics, Capacity, Link, LinkSpeed, Shape};
    use vhost_user_backend::VringT;
    use vm_memory::GuestAddress;

    fn adapter(command_queues: u16) -> Adapter {
        let shape = Shape {
            memory: "256M".parse().unwrap(),
            command_queues,
            engines: 2,
            translations: Capacity::default(),
            atomics: Atomics::Link,
            link: Link {
                speed: LinkSpeed::Gt16,
                width_lanes: 16,
                timing: None,
            },
        };
        let num_queues = QUEUE_FIRST_COMMAND + command_queues;
        let device = Arc::new(Device::new(&shape).unwrap());
        Adapter::new(&Parts {
            telemetry: Arc::new(Telemetry::new(num_queues, device.clone(), None)),
            faults: Arc::new(Faults::new(device.clone())),
            device,
            bell: Bell::default(),
            sandbox: Sandbox::none(),
        })
    }

    #[test]
    fn config_space_beyond_its_end_is_answered_with_nothing() {
        let adapter = adapter(1);
        assert_eq!(adapter.get_config(0, 208).len(), 208);
        for (offset, size) in [(0, 209), (208, 1), (200, 16), (u32::MAX, u32::MAX)] {
            assert!(adapter.get_config(offset, size).is_empty());
        }
    }

    #[test]
    fn a_write_to_the_config_space_changes_nothing_and_does_not_end_the_connection() {
        let adapter = adapter(1);
        let before = adapter.get_config(0, 208);
        adapter.set_config(0, &[0; 8]).unwrap();
        assert_eq!(adapter.get_config(0, 208), before);
    }

    /// Memory of a guest that is there, with rings in it that nothing is in.
    fn come(adapter: &Adapter) -> [Vring; 2] {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
        let view = GuestView::new(Arc::new(memory.clone()), adapter.shared.own_file());
        adapter.shared.set_guest(Arc::new(view));
        [(); 2].map(|()| {
            let vring = Vring::new(GuestMemoryAtomic::new(memory.clone()), QUEUE_SIZE).unwrap();
            vring.set_queue_size(QUEUE_SIZE);
            vring.set_queue_info(0, 0x4000, 0x8000).unwrap();
            vring.set_queue_ready(true);
            vring.set_enabled(true);
            vring
        })
    }

    #[test]
    fn a_guest_that_goes_while_a_worker_is_at_its_ring_is_no_error_of_the_queue() {
        let adapter = adapter(1);
        let [command, event] = come(&adapter);
        let rings = CommandRings {
            command: &command,
            event: &event,
        };
        let mut looks = 0;
        adapter.drain(QUEUE_FIRST_COMMAND, &command, &event, || {
            looks += 1;
            if looks == 1 {
                return Ok(Served::One);
            }
            adapter.hang_up();
            command::serve_one(&adapter.shared, 0, rings)
        });
        assert_eq!(looks, 2);
        let counters = &adapter.shared.telemetry.counters;
        assert_eq!(counters.queue(QUEUE_FIRST_COMMAND).queue_errors.get(), 0);
        assert_eq!(counters.events_lost.get(), 0);
    }

    #[test]
    fn a_ring_that_makes_no_sense_is_an_error_of_the_queue_while_its_guest_is_there() {
        let adapter = adapter(1);
        let [command, event] = come(&adapter);
        adapter.drain(QUEUE_FIRST_COMMAND, &command, &event, || Err(Broken));
        let counters = &adapter.shared.telemetry.counters;
        assert_eq!(counters.queue(QUEUE_FIRST_COMMAND).queue_errors.get(), 1);
    }

    #[test]
    fn each_queue_is_kicked_at_the_worker_that_serves_it() {
        for command_queues in 1..=8 {
            let adapter = adapter(command_queues);
            let masks = adapter.queues_per_thread();
            let first = |queue: u16| masks.iter().position(|mask| mask >> queue & 1 == 1);
            let kicked = first(QUEUE_CONTROL).unwrap();
            assert!(matches!(adapter.role(kicked), Role::Control));
            for index in 0..command_queues {
                let kicked = first(QUEUE_FIRST_COMMAND + index).unwrap();
                assert!(matches!(adapter.role(kicked), Role::Command(found) if found == index));
            }
        }
    }

    #[test]
    fn features_that_break_qemu_are_not_offered() {
        let offered = adapter(1).protocol_features();
        for trap in [
            VhostUserProtocolFeatures::STATUS,
            VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS,
            VhostUserProtocolFeatures::INFLIGHT_SHMFD,
        ] {
            assert!(!offered.contains(trap), "{trap:?}");
        }
    }
}
