// SPDX-License-Identifier: GPL-2.0

//! A device from probe to remove.
//!
//! Facility: none of its own; this file orders what the others offer. Contexts:
//! process context under the device lock for probe, remove and shutdown.
//!
//! Lock order of the whole driver, outermost first:
//!
//! 1. device lock (driver core), `misc_mtx` (while a node is opened or deregistered)
//! 2. [`Gate`] (SRCU read side; its writer waits for all of the following)
//! 3. `exec_update_lock` of another process, taken and left before 4
//! 4. mmap lock, for reading, for one batch
//! 5. folio locks of a batch, page table locks (kernel)
//! 6. `Mirror::follower`; the device may be waited for under it, memory may not
//! 7. `Queue::ring`, `Request::parked`, with interrupts off
//! 8. a CPU's stash of free pages, with interrupts off
//! 9. `Region::alloc` or `Region::ages`, never both, with interrupts off, innermost
//!
//! Invariant: the order of the end. No new work, then no work under way, then no page
//! in use, then no struct pages, then no mapping, which the virtio reset takes away. Each
//! step has a limit. Where one does not come about, those behind it do not either, and
//! what they would take apart stays for good.

use kernel::debugfs::Dir;
use kernel::prelude::*;
use kernel::sync::aref::ARef;
use kernel::sync::Arc;

use crate::command::{Control, CONTROL_MS};
use crate::dmirror;
use crate::engine::Engine;
use crate::evacuate;
use crate::events::EventSink;
use crate::gate::Gate;
use crate::identity::{identify, Identity, Refusal};
use crate::misc::Node;
use crate::number::Number;
use crate::pagemap::{metadata_bytes, Layout, MemoryType, Region};
use crate::stats::{self, Counters, Files};
use crate::virtio::{self, Driver, Transport, VirtioDevice};
use crate::wire::{self, ControlOpcode};
use crate::{chardev, sys, CdmModule};

/// Buffers on the event queue.
const EVENT_BUFFERS: usize = 16;
/// Longest time without progress that power-off waits for pages to leave.
const SHUTDOWN_MS: u32 = 10_000;
/// Shortest time that a device has for an answer when its driver goes, whatever the
/// parameter says: an emulated machine may stand still for a moment.
const ANSWER_MS_MIN: u32 = 1_000;
/// Guest memory that struct pages must leave to the rest of the guest.
const RESERVE_BYTES: u64 = 16 << 20;
const MIB: u64 = 1 << 20;

/// The queues by their index.
const QUEUE_NAMES: [&CStr; 10] = [
    c"control",
    c"event",
    c"command0",
    c"command1",
    c"command2",
    c"command3",
    c"command4",
    c"command5",
    c"command6",
    c"command7",
];
const _: () =
    assert!(QUEUE_NAMES.len() == (wire::QUEUE_FIRST_COMMAND + wire::COMMAND_QUEUES_MAX) as usize);

// The folder of all devices in debugfs; `Folder` puts it there.
kernel::sync::global_lock! {
    // SAFETY: `Folder::new` initialises it before the first device is probed.
    unsafe(uninit) static DEBUGFS: Mutex<Option<Dir>> = None;
}

/// Owner of the folder of all devices in debugfs; the module holds it from load to unload.
pub(crate) struct Folder {
    _figures: [Pin<KBox<stats::Figure>>; 2],
}

impl Folder {
    /// Makes the folder.
    ///
    /// # Safety
    ///
    /// Called once.
    pub(crate) unsafe fn new() -> Result<Self> {
        // SAFETY: Called once, by the function's contract, and before any other use.
        unsafe { DEBUGFS.init() };
        let dir = Dir::new(c"cdm");
        let figures = stats::module_files(&dir)?;
        *DEBUGFS.lock() = Some(dir);
        Ok(Self { _figures: figures })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        *DEBUGFS.lock() = None;
    }
}

/// A device that works.
#[pin_data]
pub(crate) struct Device {
    /// Dropped first, should it still be mapped: nothing may outlive the mapping.
    region: Pin<KBox<Region>>,
    identity: Identity,
    dev: ARef<kernel::device::Device>,
    events: Arc<EventSink>,
    engine: Arc<Engine>,
    control: Control,
    #[pin]
    gate: Gate,
}

impl Device {
    pub(crate) fn number(&self) -> u32 {
        self.engine.number()
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    pub(crate) fn dev(&self) -> &kernel::device::Device {
        &self.dev
    }

    pub(crate) fn region(&self) -> &Region {
        &self.region
    }

    pub(crate) fn counters(&self) -> &Counters {
        self.engine.counters()
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    pub(crate) fn events(&self) -> &EventSink {
        &self.events
    }

    pub(crate) fn transport(&self) -> &Transport {
        self.engine.transport()
    }

    pub(crate) fn control(&self) -> &Control {
        &self.control
    }

    pub(crate) fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Bytes that pages can migrate to.
    pub(crate) fn bytes_total(&self) -> u64 {
        u64::from(self.region.pages()) * crate::batch::PAGE_BYTES
    }

    /// Of these, bytes that hold no page.
    pub(crate) fn bytes_free(&self) -> u64 {
        u64::from(self.region.free_pages()) * crate::batch::PAGE_BYTES
    }

    /// Pages that moved from the device, for whatever reason.
    pub(crate) fn pages_to_system(&self) -> u64 {
        self.counters().pages_to_system() + self.region.relieved_pages()
    }

    /// Of these, pages that nobody asked for by address.
    pub(crate) fn pages_evicted(&self) -> u64 {
        self.counters().pages_evicted() + self.region.relieved_pages()
    }

    pub(crate) fn num_command_queues(&self) -> u16 {
        self.transport().num_queues() as u16 - wire::QUEUE_FIRST_COMMAND
    }
}

/// The end of a device.
impl Device {
    /// Ends all work and brings all pages back. False if pages are still in use, or may be
    /// soon, because somebody who is inside did not leave in time.
    fn retire(&self, patience_ms: u32) -> bool {
        self.gate.shut();
        let answer_ms = patience_ms.clamp(ANSWER_MS_MIN, CONTROL_MS);
        self.transport().limit_answers(answer_ms);
        // Whoever waits for a command shall not hold this up.
        self.demand(ControlOpcode::RESET);
        let is_alone = self.gate.wait(answer_ms.saturating_add(patience_ms));
        let is_empty = evacuate::run(self, patience_ms);
        is_alone && is_empty
    }

    /// Takes the memory, of which no page is in use, out of the kernel. Whether the device
    /// may be reset now.
    fn close(&self) -> bool {
        self.region.unmap();
        // Nobody relies on what it guards, as a reset follows; and it is the last question
        // before that reset, which has no limit.
        self.demand(ControlOpcode::SET_METADATA);
        !self.transport().is_gone()
    }

    /// Makes a request without arguments, which a device that lives answers. One that does
    /// not is taken for dead.
    fn demand(&self, opcode: ControlOpcode) {
        match self.control.call(opcode, 0, 0) {
            Ok(_) => {}
            // A refusal is an answer, too; and without memory, nothing was asked.
            Err(err) if err == EIO || err == ENOMEM => {}
            Err(_) => self.transport().declare_gone(),
        }
    }

    /// The driver leaves the device, in a limited time.
    fn part(self: &Arc<Self>) {
        // SAFETY: Returns a module parameter.
        let patience_ms = unsafe { sys::cdm_param_evacuate_ms() };
        let mut is_retired = self.retire(patience_ms);
        while !is_retired && self.is_to_be_waited_for() {
            is_retired = self.retire(patience_ms);
        }
        if !is_retired {
            self.strand();
        } else if self.close() {
            self.transport().stop();
            dev_info!(
                self.dev(),
                "cdm{}: removed, {} pages brought back to system memory\n",
                self.number(),
                self.counters().pages_evacuated()
            );
        } else {
            self.transport().leave_running();
            dev_err!(
                self.dev(),
                "cdm{}: device does not answer, so it cannot be reset: it is left running and \
                 unusable until the guest restarts; {} pages of system memory that it may yet \
                 write to are never used again\n",
                self.number(),
                self.counters().pages_forsaken()
            );
        }
    }

    /// Whether waiting is all that can be done: who has a page of private memory comes to the
    /// module for it, which is being unloaded, and the device could still give it back.
    fn is_to_be_waited_for(&self) -> bool {
        // SAFETY: Reads the state of this module.
        let is_live = unsafe { sys::cdm_module_is_live() };
        !is_live && !self.region.is_cpu_addressable() && !self.transport().is_gone()
    }

    /// Pages do not leave, and the driver must. What the CPU can reach stays where it is, for
    /// whoever has it. Private memory is of use to nobody without the device, so what is in
    /// it is lost: who touches it comes to the driver, and gets SIGBUS. An unload has to wait
    /// until nobody can.
    ///
    /// A reset would take the memory from under whoever has it, and the struct pages with
    /// it. What they are made of stays allocated until the guest restarts, and so long no
    /// driver can have the device again.
    fn strand(self: &Arc<Self>) {
        let is_private = !self.region.is_cpu_addressable();
        let pages = self.region.used_pages();
        if is_private {
            stats::lost(pages.into());
        }
        // INVARIANT: Neither region nor transport is dropped.
        core::mem::forget(self.clone());
        let is_module_kept = self.transport().leave_running();
        dev_err!(
            self.dev(),
            "cdm{}: {} pages {}; the device is left running and unusable until the guest \
             restarts; {} pages of system memory that it may yet write to are never used again\n",
            self.number(),
            pages,
            if is_private {
                "of private memory are lost, whoever touches one gets SIGBUS"
            } else {
                "did not leave in time, they stay where they are"
            },
            self.counters().pages_forsaken()
        );
        if is_module_kept {
            return;
        }
        if is_private {
            evacuate::wait_for_users(self);
        }
        self.region.abandon();
    }
}

/// What a bound device has; dropped in this order.
pub(crate) struct Bound {
    /// First, so that nobody opens what goes away.
    node: Option<Pin<KBox<Node>>>,
    dmirror: Option<Pin<KBox<Node>>>,
    /// Then the files that show the device.
    files: Option<Pin<KBox<Files>>>,
    device: Arc<Device>,
    /// Free again when the device is gone, even while an old node is still open.
    _number: Number,
}

impl Driver for Bound {
    fn probe(vdev: VirtioDevice) -> Result<Pin<KBox<Self>>> {
        let dev = vdev.device();
        let identity = match vdev.read_config() {
            Ok(config) => identify(&config),
            Err(bytes) => Err(Refusal::ConfigSpace(bytes)),
        };
        let identity = identity.map_err(|refusal| {
            dev_err!(
                dev,
                "not a device for this driver: {}\n",
                format_args!("{refusal}")
            );
            ENODEV
        })?;
        let reserved = Number::take()?;
        let number = reserved.get();
        let memory_type = memory_type(number)?;
        let node = node(vdev)?;

        let live = Live::start(vdev, &identity, number)?;
        let control = Control::new(live.transport.clone());
        let layout = match map_memory(vdev, &control, &identity, memory_type, node, number) {
            Ok(layout) => layout,
            Err(err) => {
                if err == ETIMEDOUT {
                    live.leak(dev);
                }
                return Err(err);
            }
        };
        let engine = Arc::new(Engine::new(number, live.transport.clone()), GFP_KERNEL)?;
        let region = Region::map(layout, engine.clone()).inspect_err(|err| {
            dev_err!(
                dev,
                "cannot hotplug {} MiB at {:#x}: error {}\n",
                layout.bytes / MIB,
                layout.base,
                err.to_errno()
            );
        })?;

        let (events, transport) = (live.events.clone(), live.transport.clone());
        let device = Arc::pin_init(
            try_pin_init!(Device {
                region,
                identity,
                dev: dev.into(),
                events,
                control: Control::new(transport),
                engine,
                gate <- Gate::new(),
            }? Error),
            GFP_KERNEL,
        )?;
        let files = match &*DEBUGFS.lock() {
            Some(parent) => Some(stats::files(parent, &device)?),
            None => None,
        };
        let mut bound = KBox::pin(
            Self {
                node: None,
                dmirror: None,
                files,
                device,
                _number: reserved,
            },
            GFP_KERNEL,
        )?;

        // SAFETY: Takes values only.
        unsafe {
            sys::cdm_trace_probe(
                bound.device.number(),
                memory_type.uapi(),
                layout.base,
                bound.device.bytes_total(),
                layout.metadata_bytes,
                layout.node,
            )
        };
        // Last, because from here on a process may use the device. If the second node cannot
        // be had, somebody may have moved pages through the first one already.
        bound.node = Some(chardev::register(&bound.device)?);
        match dmirror::register(&bound.device) {
            Ok(node) => bound.dmirror = node,
            Err(err) => {
                live.keep();
                Self::remove(bound);
                return Err(err);
            }
        }
        dev_info!(
            dev,
            "cdm{}: {} MiB of {} device memory at {:#x}, {} MiB of them for struct pages, node {}, \
             folios of {} KiB{}\n",
            bound.device.number(),
            layout.bytes / MIB,
            memory_type.name(),
            layout.base,
            layout.metadata_bytes / MIB,
            layout.node,
            4 << memory_type.max_order(),
            if MemoryType::Public.is_available() {
                ""
            } else {
                "; this kernel has no MEMORY_DEVICE_PUBLIC"
            }
        );
        live.keep();
        Ok(bound)
    }

    fn remove(mut this: Pin<KBox<Self>>) {
        this.node = None;
        this.dmirror = None;
        this.files = None;
        this.device.part();
    }

    fn shutdown(&self) {
        if self.device.retire(SHUTDOWN_MS) && self.device.close() {
            self.device.transport().shut_down();
            return;
        }
        // A reset would unmap memory that processes still use, or never end. Without one
        // they can go on until the power goes, or the machine's own reset takes everything.
        dev_warn!(
            self.device.dev(),
            "cdm{}: {} pages did not leave the device{}; it is left as it is\n",
            self.device.number(),
            self.device.region.used_pages(),
            if self.device.transport().is_gone() {
                ", which does not answer"
            } else {
                ""
            }
        );
    }
}

/// A transport that is stopped again if probe fails.
struct Live {
    transport: Arc<Transport>,
    events: Arc<EventSink>,
    is_kept: bool,
}

impl Live {
    fn start(vdev: VirtioDevice, identity: &Identity, number: u32) -> Result<Self> {
        let events = Arc::new(EventSink::new(vdev.device().into(), number), GFP_KERNEL)?;
        // More queues than CPUs would never be used.
        let commands = u32::from(identity.num_command_queues).min(kernel::cpu::nr_cpu_ids());
        let queues = usize::from(wire::QUEUE_FIRST_COMMAND) + commands as usize;
        let transport = Transport::start(vdev, &QUEUE_NAMES[..queues], events.clone())?;
        let this = Self {
            transport,
            events,
            is_kept: false,
        };
        for _ in 0..EVENT_BUFFERS {
            let buffer = virtio::Request::new(KVec::new())?;
            this.transport
                .queue(wire::QUEUE_EVENT.into())?
                .try_submit(&buffer)?;
        }
        Ok(this)
    }

    /// Probe succeeded: `remove` stops the transport.
    fn keep(mut self) {
        self.is_kept = true;
    }

    /// The device did not answer, and may still be mapping its memory. A reset now can
    /// take the whole machine down, so queues, buffers and code stay for good.
    fn leak(mut self, dev: &kernel::device::Device) {
        self.is_kept = true;
        dev_err!(
            dev,
            "device does not answer; it stays unusable until the guest restarts\n"
        );
        // SAFETY: The module's code runs, so it has a reference to add to.
        unsafe { sys::__module_get(kernel::module::this_module::<CdmModule>().as_ptr()) };
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if !self.is_kept {
            self.transport.stop();
        }
    }
}

/// The memory type to use for a device: what the parameter says, or the best there is.
pub(crate) fn memory_type(device: u32) -> Result<MemoryType> {
    // SAFETY: Returns a module parameter.
    let wanted = match unsafe { sys::cdm_param_memory_type(device) } {
        sys::cdm_memory_type_CDM_MEMORY_PRIVATE => MemoryType::Private,
        sys::cdm_memory_type_CDM_MEMORY_COHERENT => MemoryType::Coherent,
        sys::cdm_memory_type_CDM_MEMORY_PUBLIC => MemoryType::Public,
        sys::CDM_PARAM_NO_MEMORY_TYPE => {
            pr_err!(
                "memory_type names fewer devices than there are: nothing is said about cdm{}; name \
                 one type for all devices, or one for each\n",
                device
            );
            return Err(EINVAL);
        }
        _ if MemoryType::Public.is_available() => MemoryType::Public,
        _ => MemoryType::Coherent,
    };
    if !wanted.is_available() {
        pr_err!(
            "memory_type={}: this kernel has no {}; load with memory_type=coherent, or use a \
             kernel with {}\n",
            wanted.name(),
            wanted.kernel_name(),
            wanted.option()
        );
        return Err(EOPNOTSUPP);
    }
    Ok(wanted)
}

/// Refuses a parameter that asks for what the kernel lacks.
pub(crate) fn check_memory_types() -> Result {
    // SAFETY: Returns a module parameter.
    for device in 0..unsafe { sys::cdm_param_memory_types() } {
        memory_type(device)?;
    }
    Ok(())
}

/// The node of the memory: what the parameter says, else the bus's, else the nearest.
fn node(vdev: VirtioDevice) -> Result<i32> {
    // SAFETY: Returns a module parameter.
    let wanted = unsafe { sys::cdm_param_numa_node() };
    for node in [wanted, vdev.node()] {
        // SAFETY: Takes any number.
        if unsafe { sys::cdm_node_usable(node) } {
            return Ok(node);
        }
        if wanted >= 0 {
            dev_err!(
                vdev.device(),
                "numa_node={}: no such node is online; see /sys/devices/system/node/online\n",
                wanted
            );
            return Err(EINVAL);
        }
    }
    // SAFETY: Returns the node of this CPU, or the nearest one with memory.
    Ok(unsafe { sys::cdm_node_default() })
}

/// Has the device map its memory, and decides where the struct pages go.
fn map_memory(
    vdev: VirtioDevice,
    control: &Control,
    identity: &Identity,
    memory_type: MemoryType,
    node: i32,
    device: u32,
) -> Result<Layout> {
    let dev = vdev.device();
    let bytes = identity.memory_bytes;
    // Without altmap, guest memory must do; better to know that before anything is mapped.
    // SAFETY: Returns a module parameter.
    let is_altmap_wanted = unsafe { sys::cdm_param_altmap() };
    // Struct pages are for the CPU, and private memory is not.
    let is_altmap = is_altmap_wanted
        && memory_type.is_cpu_addressable()
        && identity.features & wire::FEATURE_METADATA_GUARD != 0;
    let metadata = metadata_bytes(bytes);
    if !is_altmap {
        // SAFETY: Reads counters.
        let pages = unsafe { sys::si_mem_available() };
        let available = u64::try_from(pages).unwrap_or(0) * crate::batch::PAGE_BYTES;
        if available < metadata + RESERVE_BYTES {
            dev_err!(
                dev,
                "struct pages of {} MiB of device memory need {} MiB of guest memory, and {} MiB \
                 more must stay free; {} MiB are available; give the guest more memory{}\n",
                bytes / MIB,
                metadata / MIB,
                RESERVE_BYTES / MIB,
                available / MIB,
                if is_altmap_wanted || !memory_type.is_cpu_addressable() {
                    ""
                } else {
                    ", or load with altmap=Y to keep them in the device"
                }
            );
            return Err(ENOMEM);
        }
    }

    let mapped = control
        .call(ControlOpcode::MAP_MEMORY, 0, 0)
        .inspect_err(|err| {
            dev_err!(
                dev,
                "device cannot map its memory: error {}\n",
                err.to_errno()
            );
        })?;
    let region = vdev.shm_region(wire::SHMEM_REGION_ID);
    let base = match region {
        Some((base, length))
            if mapped == bytes && length >= bytes && base % sys::CDM_PMD_BYTES == 0 =>
        {
            base
        }
        _ => {
            let (base, length) = region.unwrap_or_default();
            dev_err!(
                dev,
                "device announces {:#x} bytes of memory and mapped {:#x}, shared memory region \
                 {} has {:#x} at {:#x}\n",
                bytes,
                mapped,
                wire::SHMEM_REGION_ID,
                length,
                base
            );
            return Err(ENODEV);
        }
    };

    let metadata_bytes = if is_altmap { metadata } else { 0 };
    if is_altmap {
        control
            .call(ControlOpcode::SET_METADATA, 0, metadata_bytes)
            .inspect_err(|err| {
                dev_err!(
                    dev,
                    "device does not guard the struct pages: error {}\n",
                    err.to_errno()
                );
            })?;
    }
    Ok(Layout {
        device,
        memory_type,
        base,
        bytes,
        metadata_bytes,
        node,
    })
}
