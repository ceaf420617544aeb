// SPDX-License-Identifier: GPL-2.0-only

//! A device from probe to remove.
//!
//! Facility: none of its own; this file orders what the others offer. Contexts: process
//! context under the device lock for probe, remove and shutdown. Lock order: as the driver's.
//! Invariant: a node is the last thing to come and the first to go.

use kernel::prelude::*;
use kernel::sync::atomic::Atomic;
use kernel::sync::Arc;
use kernel::workqueue::new_work;

use super::folder::DEBUGFS;
use super::setup::{map_memory, memory_type, node};
use super::{Device, MIB};
use crate::command::Control;
use crate::engine::Engine;
use crate::events::EventSink;
use crate::gate::Gate;
use crate::identity::{identify, Identity, Refusal};
use crate::misc::Node;
use crate::number::Number;
use crate::pagemap::{MemoryType, Region};
use crate::recovery::Recovery;
use crate::scan::Scan;
use crate::stats::{self, Files};
use crate::sva::{Hot, Spaces};
use crate::virtio::{self, Driver, Transport, VirtioDevice};
use crate::{chardev, dmirror, sys, wire, CdmModule};

/// Buffers on the event queue, and so page requests that are served at a time.
const EVENT_BUFFERS: usize = 64;
/// Longest time without progress that power-off waits for pages to leave.
const SHUTDOWN_MS: u32 = 10_000;

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
        let (layout, failed) =
            match map_memory(vdev, &control, &identity, memory_type, node, number) {
                Ok(mapped) => mapped,
                Err(err) => {
                    if err == ETIMEDOUT {
                        live.leak(dev);
                    }
                    return Err(err);
                }
            };
        let transport = live.transport.clone();
        let recovery = Recovery::new(dev.into(), number, transport.clone())?;
        let engine = Engine::new(number, transport, recovery, identity.features);
        let engine = Arc::new(engine, GFP_KERNEL)?;
        let region = Region::map(layout, engine.clone()).inspect_err(|err| {
            dev_err!(
                dev,
                "cannot hotplug {} MiB at {:#x}: error {}\n",
                layout.bytes / MIB,
                layout.base,
                err.to_errno()
            );
        })?;

        let pages_failed = failed.retire(&region);
        if pages_failed != 0 {
            dev_warn!(
                dev,
                "cdm{}: {} pages of the device memory have failed and are not used\n",
                number,
                pages_failed
            );
        }

        let (events, transport) = (live.events.clone(), live.transport.clone());
        let device = Arc::pin_init(
            try_pin_init!(Device {
                region,
                identity,
                dev: dev.into(),
                events,
                control: Control::new(transport),
                engine,
                spaces <- Spaces::new(),
                gate <- Gate::new(),
                has_complained: Atomic::new(false),
                memory_errors <- new_work!("cdm::Device::memory_errors"),
                hot <- Hot::new(),
                hot_work <- new_work!("cdm::Device::hot_work"),
                scan <- Scan::new(),
                scan_work <- new_work!("cdm::Device::scan_work"),
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
        let device = bound.device.clone();
        device.events().serve(Some(device.clone()));
        let node = chardev::register(&device).inspect_err(|_| device.events().serve(None))?;
        bound.node = Some(node);
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
        // What failed since the device was asked is dealt with now, and what fails from here on.
        bound.device.events().attach(bound.device.clone());
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
        let events = Arc::pin_init(EventSink::new(vdev.device().into(), number), GFP_KERNEL)?;
        // One for each CPU, and one for commands on addresses of processes. More would never be
        // used.
        let wanted = kernel::cpu::nr_cpu_ids() + 1;
        let commands = u32::from(identity.num_command_queues).min(wanted);
        let queues = usize::from(wire::QUEUE_FIRST_COMMAND) + commands as usize;
        let transport = Transport::start(vdev, &QUEUE_NAMES[..queues], events.clone())?;
        let this = Self {
            transport,
            events,
            is_kept: false,
        };
        for _ in 0..EVENT_BUFFERS {
            let buffer = virtio::Request::for_event()?;
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
