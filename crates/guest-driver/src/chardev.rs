// SPDX-License-Identifier: GPL-2.0-only

//! `/dev/cdmN`, its ioctls and its sysfs attributes.
//!
//! Facility: `miscdevice`. C headers: `linux/miscdevice.h`, `uapi/cdm.h`.
//!
//! Contexts: process context throughout. Lock order: the gate of the device first, then
//! `Client::binding`; user memory is touched under no driver lock. Invariant: an open file keeps the
//! [`Device`] value alive, not the device: once that is unbound every ioctl is ENODEV.
//! Closing the file returns all it held: that reference, and an address space that was bound.
//!
//! An ioctl writes its structure back before it does anything, so that one that cannot
//! be written to is EFAULT while nothing has changed yet.

use kernel::ffi::c_long;
use kernel::prelude::*;
use kernel::str::CString;
use kernel::sync::{new_mutex, Arc, Mutex};
use kernel::transmute::{AsBytes, FromBytes};
use kernel::types::ForeignOwnable;
use kernel::uaccess::{UserPtr, UserSlice};

use crate::batch::PageRange;
use crate::device::Device;
use crate::misc::{Node, Operations, Shape};
use crate::mover::{self, Direction, Options};
use crate::plan::{Operands, Request};
use crate::run::Command;
use crate::sva::{Binding, Wish};
use crate::user_batch::UserBatch;
use crate::{process, residency, run, scan, sys, wire, CdmModule};

/// File operations of every node.
static OPERATIONS: Operations = Operations(sys::file_operations {
    owner: kernel::module::this_module::<CdmModule>().as_ptr(),
    open: Some(open),
    release: Some(release),
    unlocked_ioctl: Some(ioctl),
    #[cfg(CONFIG_COMPAT)]
    compat_ioctl: sys::compat_ptr_ioctl,
    // SAFETY: All zero bytes are no operations.
    ..unsafe { core::mem::zeroed() }
});

/// Makes `/dev/cdmN` for a device that is ready.
pub(crate) fn register(device: &Arc<Device>) -> Result<Pin<KBox<Node>>> {
    let name = CString::try_from_fmt(fmt!("cdm{}", device.number()))?;
    let shape = Shape {
        operations: &OPERATIONS,
        // Everybody may have pages in the device, charged to their own cgroup; the ioctls
        // check whose memory they touch, and RESET its caller.
        mode: 0o666,
        // SAFETY: Returns a table that lives as long as the module.
        groups: unsafe { sys::cdm_attribute_groups() },
    };
    Node::register(device, name, shape)
}

/// A figure for sysfs; `c/sysfs.c` formats it.
///
/// # Safety
///
/// `misc` is the one in a [`Node`], and registered, as it is while an attribute is read.
#[no_mangle]
unsafe extern "C" fn cdm_attribute(misc: *mut sys::miscdevice, id: u32) -> i64 {
    // SAFETY: By the function's contract.
    let device = unsafe { Node::device_of(misc) };
    let layout = device.region().layout();
    let figure = match id {
        sys::cdm_attribute_id_CDM_ATTRIBUTE_MEMORY_TYPE => layout.memory_type.uapi().into(),
        sys::cdm_attribute_id_CDM_ATTRIBUTE_BASE => layout.base,
        sys::cdm_attribute_id_CDM_ATTRIBUTE_BYTES_TOTAL => device.bytes_total(),
        sys::cdm_attribute_id_CDM_ATTRIBUTE_BYTES_FREE => device.bytes_free(),
        sys::cdm_attribute_id_CDM_ATTRIBUTE_BYTES_METADATA => layout.metadata_bytes,
        sys::cdm_attribute_id_CDM_ATTRIBUTE_NUMA_NODE => return layout.node.into(),
        sys::cdm_attribute_id_CDM_ATTRIBUTE_LINK_WIDTH_LANES => {
            device.identity().link_width_lanes.into()
        }
        sys::cdm_attribute_id_CDM_ATTRIBUTE_LINK_SPEED_MTS => {
            device.identity().link_speed_mts.into()
        }
        sys::cdm_attribute_id_CDM_ATTRIBUTE_MAX_ORDER => layout.memory_type.max_order().into(),
        sys::cdm_attribute_id_CDM_ATTRIBUTE_CPU_SCAN_MS => device.scan().wish().period_ms.into(),
        sys::cdm_attribute_id_CDM_ATTRIBUTE_PAGES_HOT_TO_DEVICE => device.counters().hot_moved(),
        sys::cdm_attribute_id_CDM_ATTRIBUTE_PAGES_HOT_TO_SYSTEM => device.scan().returned(),
        sys::cdm_attribute_id_CDM_ATTRIBUTE_BYTES_COPIED_BY_CPU => {
            device.counters().bytes_copied_by_cpu()
        }
        sys::cdm_attribute_id_CDM_ATTRIBUTE_BYTES_COPIED_BY_ENGINE => {
            device.counters().bytes_copied_by_engine()
        }
        sys::cdm_attribute_id_CDM_ATTRIBUTE_CPU_SCAN_FOLIOS => device.scan().wish().folios.into(),
        sys::cdm_attribute_id_CDM_ATTRIBUTE_CPU_PAGES_PER_SECOND => {
            device.scan().wish().pages_per_second.into()
        }
        _ => 0,
    };
    figure as i64
}

/// An administrator changes a setting; `c/sysfs.c` reads the number. Zero or a negative errno.
///
/// # Safety
///
/// As for [`cdm_attribute`].
#[no_mangle]
unsafe extern "C" fn cdm_attribute_set(misc: *mut sys::miscdevice, id: u32, value: u32) -> c_int {
    // SAFETY: By the function's contract.
    let device = unsafe { Node::device_of(misc) };
    kernel::error::from_result(|| {
        scan::change(device, |wish| match id {
            sys::cdm_attribute_id_CDM_ATTRIBUTE_CPU_SCAN_MS => wish.period_ms = value,
            sys::cdm_attribute_id_CDM_ATTRIBUTE_CPU_SCAN_FOLIOS => wish.folios = value,
            sys::cdm_attribute_id_CDM_ATTRIBUTE_CPU_PAGES_PER_SECOND => {
                wish.pages_per_second = value
            }
            _ => {}
        })?;
        Ok(0)
    })
}

/// An open file.
#[pin_data]
struct Client {
    device: Arc<Device>,
    /// The address space that was bound through it; the device forgets it when this goes.
    #[pin]
    binding: Mutex<Option<Arc<Binding>>>,
}

impl Client {
    /// The address space that is bound, if it is the current process's.
    ///
    /// ENXIO if none is bound, EPERM if it is another one.
    fn binding(&self) -> Result<Arc<Binding>> {
        let binding = self.binding.lock().clone().ok_or(ENXIO)?;
        if !binding.is_current() {
            return Err(EPERM);
        }
        Ok(binding)
    }
}

/// `misc_open()` found the node. It holds the lock that deregistering takes.
///
/// # Safety
///
/// The kernel calls it as `open` of a node of this driver.
unsafe extern "C" fn open(_inode: *mut sys::inode, file: *mut sys::file) -> c_int {
    kernel::error::from_result(|| {
        // SAFETY: `misc_open()` left the miscdevice in `private_data`, and keeps it registered.
        let device = unsafe { Node::device_of((*file).private_data.cast()) }.clone();
        let client = pin_init!(Client {
            device,
            binding <- new_mutex!(None, "cdm::Client::binding"),
        });
        let client = KBox::pin_init(client, GFP_KERNEL)?;
        // SAFETY: The file is being opened, so its private data is the driver's to set.
        unsafe { (*file).private_data = client.into_foreign() };
        Ok(0)
    })
}

/// The last reference to an open file is gone.
///
/// # Safety
///
/// The kernel calls it as `release` of a file that `open` opened.
unsafe extern "C" fn release(_inode: *mut sys::inode, file: *mut sys::file) -> c_int {
    // SAFETY: `open` put the client there, and no operation on the file follows.
    let client = unsafe { Pin::<KBox<Client>>::from_foreign((*file).private_data) };
    let binding = client.binding.lock().take();
    if let Some(binding) = binding {
        client.device.spaces().unbind(&binding);
    }
    0
}

/// A process asks for something.
///
/// # Safety
///
/// The kernel calls it as `unlocked_ioctl` of a file that `open` opened.
unsafe extern "C" fn ioctl(file: *mut sys::file, cmd: c_uint, arg: c_ulong) -> c_long {
    // SAFETY: `open` put the client there; it stays until `release`.
    let client = unsafe { Pin::<KBox<Client>>::borrow((*file).private_data) };
    match dispatch(client.get_ref(), cmd, arg) {
        Ok(()) => 0,
        Err(err) => err.to_errno() as c_long,
    }
}

fn dispatch(client: &Client, cmd: u32, arg: usize) -> Result {
    let device = &*client.device;
    let _inside = device.gate().enter()?;
    match cmd {
        sys::CDM_IOCTL_QUERY => exchange(arg, |query| self::query(device, query)),
        sys::CDM_IOCTL_MIGRATE => exchange(arg, |migrate| self::migrate(device, migrate)),
        sys::CDM_IOCTL_RESIDENCY => exchange(arg, |query| self::residency(device, query)),
        sys::CDM_IOCTL_COMMAND => exchange(arg, |request| self::command(client, request)),
        sys::CDM_IOCTL_RESET => reset(device),
        sys::CDM_IOCTL_EVICT => exchange(arg, |request| self::evict(device, request)),
        sys::CDM_IOCTL_BIND => exchange(arg, |request| self::bind(client, request)),
        sys::CDM_IOCTL_UNBIND => unbind(client),
        sys::CDM_IOCTL_BATCH => exchange(arg, |batch| self::batch(client, batch)),
        sys::CDM_IOCTL_HOT => exchange(arg, |request| self::hot(client, request)),
        sys::CDM_IOCTL_HOT_COUNTERS => exchange(arg, |counters| hot_counters(client, counters)),
        _ => Err(ENOTTY),
    }
}

/// Reads the structure at `arg`, lets `with` work on it, and writes it back.
fn exchange<T: FromBytes + AsBytes>(arg: usize, with: impl FnOnce(&mut T) -> Result) -> Result {
    let at = UserPtr::from_addr(arg);
    let (mut reader, mut probe) = UserSlice::new(at, size_of::<T>()).reader_writer();
    let mut value: T = reader.read()?;
    probe.write(&value)?;
    with(&mut value)?;
    UserSlice::new(at, size_of::<T>()).writer().write(&value)
}

fn query(device: &Device, query: &mut sys::cdm_query) -> Result {
    let (identity, layout) = (device.identity(), device.region().layout());
    *query = sys::cdm_query {
        uapi_version: sys::CDM_UAPI_VERSION,
        memory_type: layout.memory_type.uapi(),
        base: layout.base,
        bytes_total: device.bytes_total(),
        bytes_free: device.bytes_free(),
        bytes_metadata: layout.metadata_bytes,
        pages_to_device: device.counters().pages_to_device(),
        pages_to_system: device.pages_to_system(),
        device_features: identity.features,
        numa_node: layout.node,
        device: device.number(),
        protocol_major: identity.version.0,
        protocol_minor: identity.version.1,
        num_command_queues: device.num_command_queues(),
        link_width_lanes: identity.link_width_lanes,
        link_speed_mts: identity.link_speed_mts,
        num_home_agents: identity.num_home_agents,
        num_request_agents: identity.num_request_agents,
        num_slave_agents: identity.num_slave_agents,
        num_pools: identity.num_pools,
        capabilities: layout.memory_type.capabilities()
            | sys::CDM_CAN_BATCH
            | if device.engine().process_queue().is_some() {
                sys::CDM_CAN_BIND
            } else {
                0
            }
            | if device.engine().counts_accesses() {
                sys::CDM_CAN_MOVE_HOT
            } else {
                0
            }
            | if scan::is_possible(device) {
                sys::CDM_CAN_RETURN_HOT
            } else {
                0
            },
        pages_evicted: device.pages_evicted(),
        pages_poisoned: device.region().poisoned_pages().into(),
    };
    Ok(())
}

fn migrate(device: &Device, migrate: &mut sys::cdm_migrate) -> Result {
    let direction = match migrate.direction {
        sys::cdm_direction_CDM_TO_DEVICE => Direction::ToDevice,
        sys::cdm_direction_CDM_TO_SYSTEM => Direction::ToSystem,
        _ => return Err(EINVAL),
    };
    let has = |flag: u32| migrate.flags & flag != 0;
    let options = Options {
        populate: has(sys::CDM_MIGRATE_POPULATE),
        make_room: has(sys::CDM_MIGRATE_MAKE_ROOM),
        small: has(sys::CDM_MIGRATE_SMALL),
    };
    let known = sys::CDM_MIGRATE_POPULATE | sys::CDM_MIGRATE_MAKE_ROOM | sys::CDM_MIGRATE_SMALL;
    if migrate.flags & !known != 0
        || migrate.reserved != 0
        || (options.make_room && direction != Direction::ToDevice)
    {
        return Err(EINVAL);
    }
    let range = PageRange::new(migrate.address, migrate.length).ok_or(EINVAL)?;
    // What is in a device that does not answer can still leave it, if the CPU can reach it.
    if direction == Direction::ToDevice && device.transport().is_gone() {
        return Err(ENODEV);
    }
    let mm = process::address_space(migrate.pid)?;
    let done = mover::run(device, &mm, range, direction, options)?;
    let tally = done.tally;
    migrate.pages_asked = tally.asked();
    migrate.pages_moved = tally.moved();
    migrate.pages_there = tally.there();
    migrate.failed = tally.failed();
    migrate.pages_large = tally.large();
    migrate.pages_evicted = done.evicted;
    migrate.reserved_out = [0; 2];
    Ok(())
}

fn evict(device: &Device, evict: &mut sys::cdm_evict) -> Result {
    // SAFETY: Process context.
    if !unsafe { sys::cdm_may_manage() } {
        return Err(EPERM);
    }
    let is_oldest = evict.flags & sys::CDM_EVICT_OLDEST != 0;
    if evict.flags & !sys::CDM_EVICT_OLDEST != 0 || evict.reserved != 0 {
        return Err(EINVAL);
    }
    let region = device.region();
    let pages = match (evict.address, evict.length) {
        (0, 0) => 0..region.pages(),
        _ if is_oldest => return Err(EINVAL),
        (address, length) => {
            PageRange::new(address, length).ok_or(EINVAL)?;
            region.pages_of(address, length).ok_or(EINVAL)?
        }
    };
    let limit = match evict.pages_max {
        0 => u64::MAX,
        limit => limit,
    };
    let tally = if is_oldest {
        crate::evict::oldest(device, limit)?
    } else {
        crate::evict::pages(device, pages, limit)?
    };
    evict.pages_asked = tally.asked();
    evict.pages_moved = tally.moved();
    evict.failed = tally.failed();
    evict.pages_large = tally.large();
    evict.reserved_out = [0; 2];
    Ok(())
}

fn residency(device: &Device, residency: &mut sys::cdm_residency) -> Result {
    if residency.flags != 0 {
        return Err(EINVAL);
    }
    let range = PageRange::new(residency.address, residency.length).ok_or(EINVAL)?;
    let mm = process::address_space(residency.pid)?;
    let map = match residency.map {
        0 => None,
        at => {
            let at = usize::try_from(at).map_err(|_| EFAULT)?;
            let map = UserPtr::from_addr(at);
            // SAFETY: Process context; the function takes any user address.
            let missing =
                unsafe { sys::fault_in_safe_writeable(map.as_const_ptr().cast(), range.pages()) };
            if missing != 0 {
                return Err(EFAULT);
            }
            Some(UserSlice::new(map, range.pages()).writer())
        }
    };
    let found = residency::run(device, &mm, range, map)?;
    residency.pages = found.pages;
    residency.pages_large = found.large;
    residency.reserved_out = 0;
    Ok(())
}

fn command(client: &Client, command: &mut sys::cdm_command) -> Result {
    let has = |flag: u32| command.flags & flag != 0;
    let request = Request {
        opcode: command.opcode,
        flags: if has(sys::CDM_COMMAND_FLOAT) {
            wire::FLAG_FLOAT
        } else {
            0
        },
        width: command.width,
        repeat: command.repeat,
        arg0: command.arg0,
        arg1: command.arg1,
    };
    let unknown = command.flags & !(sys::CDM_COMMAND_FLOAT | sys::CDM_COMMAND_SVA);
    if unknown != 0 || command.reserved != 0 {
        return Err(EINVAL);
    }
    let [source, destination] = request
        .operands(command.source, command.destination, command.length)
        .ok_or(EINVAL)?;
    let binding = if has(sys::CDM_COMMAND_SVA) {
        Some(client.binding()?)
    } else {
        None
    };
    let asked = Command {
        request,
        named: Operands {
            source: source.as_slice(),
            destination: destination.as_slice(),
        },
    };
    let answer = run::run(&client.device, binding.as_deref(), &[asked], false)?.of_one()?;
    command.status = answer.status.get().into();
    command.result = answer.result;
    command.bytes_done = answer.bytes_done;
    Ok(())
}

fn batch(client: &Client, batch: &mut sys::cdm_batch) -> Result {
    let has = |flag: u32| batch.flags & flag != 0;
    let unknown = batch.flags & !(sys::CDM_BATCH_SVA | sys::CDM_BATCH_STOP);
    if unknown != 0 || batch.reserved != 0 {
        return Err(EINVAL);
    }
    let is_pinned = !has(sys::CDM_BATCH_SVA);
    let user = UserBatch::read(batch.commands, batch.num_commands, is_pinned)?;
    let binding = if is_pinned {
        None
    } else {
        Some(client.binding()?)
    };
    let stops = has(sys::CDM_BATCH_STOP);
    let outcome = run::run(&client.device, binding.as_deref(), &user.commands()?, stops)?;
    batch.num_ok = user.write(&outcome.fates)?;
    batch.error = outcome.error.map_or(0, |err| err.to_errno().unsigned_abs());
    Ok(())
}

fn bind(client: &Client, bind: &mut sys::cdm_bind) -> Result {
    if bind.flags != 0 || bind.reserved != 0 {
        return Err(EINVAL);
    }
    let current = kernel::current!();
    let mm = current.mm().ok_or(ESRCH)?;
    // Held to the end, so that a file never has two.
    let mut bound = client.binding.lock();
    if bound.is_some() {
        return Err(EBUSY);
    }
    let device = &*client.device;
    let binding = device.spaces().bind(device, mm)?;
    bind.pasid = binding.pasid();
    bind.reserved_out = 0;
    *bound = Some(binding);
    Ok(())
}

fn unbind(client: &Client) -> Result {
    let binding = client.binding()?;
    client.device.spaces().unbind(&binding);
    let mut bound = client.binding.lock();
    // Unless somebody was faster, and maybe bound it again.
    if bound
        .as_ref()
        .is_some_and(|known| Arc::ptr_eq(known, &binding))
    {
        *bound = None;
    }
    Ok(())
}

fn hot(client: &Client, hot: &mut sys::cdm_hot) -> Result {
    if hot.flags & !sys::CDM_HOT_MAKE_ROOM != 0 || hot.reserved != 0 {
        return Err(EINVAL);
    }
    let is_blank = hot.flags == 0 && hot.pages_per_second == 0 && hot.pages_burst == 0;
    let wish = match hot.threshold {
        0 if is_blank => None,
        threshold if threshold != 0 && hot.pages_burst != 0 => Some(Wish {
            threshold,
            make_room: hot.flags & sys::CDM_HOT_MAKE_ROOM != 0,
            pages_per_second: hot.pages_per_second,
            pages_burst: hot.pages_burst,
        }),
        _ => return Err(EINVAL),
    };
    let device = &*client.device;
    client.binding()?.wish(device, wish)
}

fn hot_counters(client: &Client, counters: &mut sys::cdm_hot_counters) -> Result {
    let binding = client.binding()?;
    let (wish, account) = binding.hot();
    *counters = sys::cdm_hot_counters {
        threshold: wish.map_or(0, |wish| wish.threshold),
        flags: match wish {
            Some(wish) if wish.make_room => sys::CDM_HOT_MAKE_ROOM,
            _ => 0,
        },
        pages_per_second: wish.map_or(0, |wish| wish.pages_per_second),
        pages_burst: wish.map_or(0, |wish| wish.pages_burst),
        reports: account.reports,
        accesses: account.accesses,
        pages_moved: account.tally.moved(),
        pages_there: account.tally.there(),
        failed: account.tally.failed(),
        pages_over_rate: account.over_rate,
        pages_recent: account.recent,
        pages_evicted: account.evicted,
        reports_lost: client.device.hot().lost(),
        reserved_out: [0; 2],
    };
    Ok(())
}

fn reset(device: &Device) -> Result {
    // SAFETY: Process context.
    if !unsafe { sys::cdm_may_manage() } {
        return Err(EPERM);
    }
    device.engine().recovery().reset_for_process()?;
    device.counters().reset();
    Ok(())
}
