// SPDX-License-Identifier: GPL-2.0-only

//! Is this function our device, and can this driver drive it? Pure logic.
//!
//! The virtio ID is borrowed, so the config space decides. A refusal says what was
//! found beside what was expected.

use core::fmt;

use crate::wire::{self, AgentKind, Config, PoolKind};

/// What the driver keeps of a config space that it accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Protocol version, major and minor.
    pub version: (u16, u16),
    /// `FEATURE_*` bits.
    pub features: u64,
    /// Bytes of device memory.
    pub memory_bytes: u64,
    /// Command queues that the device offers.
    pub num_command_queues: u16,
    /// Lanes of the link.
    pub link_width_lanes: u16,
    /// Transfer rate of a lane in megatransfers per second.
    pub link_speed_mts: u32,
    /// Home agents.
    pub num_home_agents: u16,
    /// Request agents.
    pub num_request_agents: u16,
    /// Slave agents.
    pub num_slave_agents: u16,
    /// Memory pools.
    pub num_pools: u16,
}

/// Why a device is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The config space is too short for the structure.
    ConfigSpace(u32),
    /// Another magic number.
    Magic([u8; 8]),
    /// Another major version.
    Version(u16, u16),
    /// The structure has another length than this version's.
    ConfigBytes(u32),
    /// A reserved field is not zero.
    Reserved(&'static str),
    /// The memory size is not one that a device may have.
    MemoryBytes(u64),
    /// No command queue, or too many.
    CommandQueues(u16),
    /// Pools that this driver cannot use.
    Pools(u16),
    /// The only pool is not all of the memory, or of an unknown kind.
    Pool(u64, u64, u16),
    /// More agents than there is room for.
    Agents(u16),
    /// An agent of an unknown kind.
    Agent(u16, u16),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ConfigSpace(bytes) => write!(
                f,
                "config space has {bytes} bytes, expected at least {}",
                size_of::<Config>()
            ),
            Self::Magic(found) => {
                let (found, magic) = (found.escape_ascii(), wire::MAGIC.escape_ascii());
                write!(f, "magic is \"{found}\", expected \"{magic}\"")
            }
            Self::Version(major, minor) => write!(
                f,
                "protocol version is {major}.{minor}, expected {}.x",
                wire::VERSION_MAJOR
            ),
            Self::ConfigBytes(bytes) => write!(
                f,
                "config structure has {bytes} bytes, expected {}",
                size_of::<Config>()
            ),
            Self::Reserved(field) => {
                write!(f, "reserved field {field} of the config space is not zero")
            }
            Self::MemoryBytes(bytes) => write!(
                f,
                "device memory has {bytes:#x} bytes, expected a power of two from {:#x} to {:#x}",
                wire::MEMORY_BYTES_MIN,
                wire::MEMORY_BYTES_MAX
            ),
            Self::CommandQueues(found) => write!(
                f,
                "device has {found} command queues, expected 1 to {}",
                wire::COMMAND_QUEUES_MAX
            ),
            Self::Pools(found) => {
                write!(
                    f,
                    "device has {found} memory pools; this driver handles exactly one"
                )
            }
            Self::Pool(base, bytes, kind) => write!(
                f,
                "memory pool of kind {kind} covers {bytes:#x} bytes from {base:#x}; this driver \
                 handles one pool of kind {} that covers the whole device memory",
                PoolKind::GENERAL.get()
            ),
            Self::Agents(found) => {
                write!(
                    f,
                    "device has {found} agents, expected at most {}",
                    wire::AGENTS_MAX
                )
            }
            Self::Agent(id, kind) => write!(f, "agent {id} is of unknown kind {kind}"),
        }
    }
}

/// Checks a config space.
pub fn identify(config: &Config) -> Result<Identity, Refusal> {
    if config.magic != wire::MAGIC {
        return Err(Refusal::Magic(config.magic));
    }
    let version = (config.version_major.get(), config.version_minor.get());
    if version.0 != wire::VERSION_MAJOR {
        return Err(Refusal::Version(version.0, version.1));
    }
    if config.config_bytes.get() as usize != size_of::<Config>() {
        return Err(Refusal::ConfigBytes(config.config_bytes.get()));
    }
    if config.reserved.get() != 0 {
        return Err(Refusal::Reserved("reserved"));
    }
    let memory_bytes = config.memory_bytes.get();
    if !memory_bytes.is_power_of_two()
        || !(wire::MEMORY_BYTES_MIN..=wire::MEMORY_BYTES_MAX).contains(&memory_bytes)
    {
        return Err(Refusal::MemoryBytes(memory_bytes));
    }
    let num_command_queues = config.num_command_queues.get();
    if num_command_queues == 0 || num_command_queues > wire::COMMAND_QUEUES_MAX {
        return Err(Refusal::CommandQueues(num_command_queues));
    }

    let num_pools = config.num_pools.get();
    if num_pools != 1 {
        return Err(Refusal::Pools(num_pools));
    }
    let pool = &config.pools[0];
    if pool.kind != PoolKind::GENERAL || pool.base.get() != 0 || pool.bytes.get() != memory_bytes {
        return Err(Refusal::Pool(
            pool.base.get(),
            pool.bytes.get(),
            pool.kind.get(),
        ));
    }
    if pool.reserved.iter().any(|field| field.get() != 0) {
        return Err(Refusal::Reserved("pools[0].reserved"));
    }

    let num_agents = config.num_agents.get();
    if num_agents as usize > config.agents.len() {
        return Err(Refusal::Agents(num_agents));
    }
    let agents = &config.agents[..num_agents as usize];
    for agent in agents {
        if agent.reserved.get() != 0 {
            return Err(Refusal::Reserved("agents[].reserved"));
        }
        if agent.kind.name().is_none() {
            return Err(Refusal::Agent(agent.id.get(), agent.kind.get()));
        }
    }
    let count = |kind| agents.iter().filter(|agent| agent.kind == kind).count() as u16;

    Ok(Identity {
        version,
        features: config.features.get(),
        memory_bytes,
        num_command_queues,
        link_width_lanes: config.link_width_lanes.get(),
        link_speed_mts: config.link_speed_mts.get(),
        num_home_agents: count(AgentKind::HOME),
        num_request_agents: count(AgentKind::REQUEST),
        num_slave_agents: count(AgentKind::SLAVE),
        num_pools,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    fn config() -> Config {
        let mut config = Config::new_zeroed();
        config.magic = wire::MAGIC;
        config.version_major.set(wire::VERSION_MAJOR);
        config.version_minor.set(3);
        config.config_bytes.set(size_of::<Config>() as u32);
        config.features.set(wire::FEATURES_ALL);
        config.memory_bytes.set(1 << 30);
        config.num_command_queues.set(8);
        config.num_pools.set(1);
        config.num_agents.set(3);
        config.link_width_lanes.set(16);
        config.link_speed_mts.set(25_000);
        config.pools[0].bytes.set(1 << 30);
        config.pools[0].kind = PoolKind::GENERAL;
        let kinds = [AgentKind::HOME, AgentKind::REQUEST, AgentKind::SLAVE];
        for (agent, kind) in config.agents.iter_mut().zip(kinds) {
            agent.kind = kind;
        }
        config
    }

    /// Refusal of a good config space after `spoil`, with its text.
    fn refused(spoil: impl FnOnce(&mut Config)) -> (Refusal, String) {
        let mut config = config();
        spoil(&mut config);
        let refusal = identify(&config).expect_err("the config space was spoilt");
        (refusal, refusal.to_string())
    }

    #[test]
    fn a_good_config_space_is_accepted_with_a_later_minor_version() {
        let identity = identify(&config()).expect("good config space");
        assert_eq!(identity.version, (wire::VERSION_MAJOR, 3));
        assert_eq!(identity.memory_bytes, 1 << 30);
        assert_eq!(identity.num_home_agents, 1);
        assert_eq!(identity.num_request_agents, 1);
        assert_eq!(identity.num_slave_agents, 1);
    }

    #[test]
    fn a_wrong_magic_is_refused_and_shown() {
        let (refusal, text) = refused(|config| config.magic = *b"notours\0");
        assert_eq!(refusal, Refusal::Magic(*b"notours\0"));
        assert!(
            text.contains("notours\\x00") && text.contains("cdm-dev\\x00"),
            "{text}"
        );
    }

    #[test]
    fn a_wrong_major_version_is_refused_and_shown() {
        let (refusal, text) = refused(|config| config.version_major.set(9));
        assert_eq!(refusal, Refusal::Version(9, 3));
        assert!(
            text.contains("9.3") && text.contains("expected 1.x"),
            "{text}"
        );
    }

    #[test]
    fn each_spoilt_field_is_refused_for_its_own_reason() {
        assert_eq!(
            refused(|c| c.config_bytes.set(200)).0,
            Refusal::ConfigBytes(200)
        );
        assert_eq!(
            refused(|c| c.reserved.set(1)).0,
            Refusal::Reserved("reserved")
        );
        assert_eq!(
            refused(|c| c.memory_bytes.set(3 << 28)).0,
            Refusal::MemoryBytes(3 << 28)
        );
        assert_eq!(
            refused(|c| c.memory_bytes.set(1 << 27)).0,
            Refusal::MemoryBytes(1 << 27)
        );
        assert_eq!(
            refused(|c| c.memory_bytes.set(1 << 37)).0,
            Refusal::MemoryBytes(1 << 37)
        );
        assert_eq!(
            refused(|c| c.num_command_queues.set(0)).0,
            Refusal::CommandQueues(0)
        );
        assert_eq!(
            refused(|c| c.num_command_queues.set(9)).0,
            Refusal::CommandQueues(9)
        );
        assert_eq!(refused(|c| c.num_pools.set(0)).0, Refusal::Pools(0));
        assert_eq!(refused(|c| c.num_pools.set(2)).0, Refusal::Pools(2));
        assert_eq!(
            refused(|c| c.pools[0].base.set(4096)).0,
            Refusal::Pool(4096, 1 << 30, 1)
        );
        assert_eq!(
            refused(|c| c.pools[0].kind.0.set(7)).0,
            Refusal::Pool(0, 1 << 30, 7)
        );
        assert_eq!(
            refused(|c| c.pools[0].reserved[2].set(1)).0,
            Refusal::Reserved("pools[0].reserved")
        );
        assert_eq!(refused(|c| c.num_agents.set(9)).0, Refusal::Agents(9));
        assert_eq!(
            refused(|c| c.agents[1].kind.0.set(4)).0,
            Refusal::Agent(0, 4)
        );
        assert_eq!(
            refused(|c| c.agents[2].reserved.set(1)).0,
            Refusal::Reserved("agents[].reserved")
        );
    }
}
