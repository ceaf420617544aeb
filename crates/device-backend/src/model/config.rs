// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Content of the config space: what the device tells a driver about itself.

use super::link::Timing;
use super::{Atomics, Capacity, MemorySize};
use cdm_protocol::{
    AGENTS_MAX, Agent, AgentKind, COMMAND_QUEUES_MAX, Config, FEATURE_EXCLUSIVE_ATOMICS,
    FEATURES_ALL, MAGIC, POOLS_MAX, Pool, PoolKind, VERSION_MAJOR, VERSION_MINOR,
};
use zerocopy::FromZeros;

/// Transfer rates that the CCIX base specification gives a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkSpeed {
    /// 16 GT/s, the rate of PCIe 4.0.
    Gt16,
    /// 25 GT/s, the extended speed mode.
    Gt25,
}

impl LinkSpeed {
    /// Megatransfers a second.
    pub fn megatransfers(self) -> u32 {
        match self {
            Self::Gt16 => 16_000,
            Self::Gt25 => 25_000,
        }
    }
}

/// Attributes of the coherent link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Rate of each lane.
    pub speed: LinkSpeed,
    /// Number of lanes.
    pub width_lanes: u16,
    /// What accesses cost; without it they take as long as this process takes.
    pub timing: Option<Timing>,
}

/// All that distinguishes one device from another.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Bytes of device memory.
    pub memory: MemorySize,
    /// Command queues, 1 to [`COMMAND_QUEUES_MAX`].
    pub command_queues: u16,
    /// Threads beside the queues' own that work on commands.
    pub engines: u16,
    /// Translations that it remembers.
    pub translations: Capacity,
    /// How its atomics reach memory of the system.
    pub atomics: Atomics,
    /// The link it pretends to sit on.
    pub link: Link,
}

impl Shape {
    /// The config space of a device of this shape.
    ///
    /// One pool of general memory spans it all. Agent 0 is its home, agent 1 the slave that
    /// holds it, and every command queue stands for a request agent of its own as far as
    /// the table has room.
    pub fn config(&self) -> Config {
        debug_assert!((1..=COMMAND_QUEUES_MAX).contains(&self.command_queues));
        let mut pools = [Pool::new_zeroed(); POOLS_MAX];
        pools[0].bytes = self.memory.bytes().into();
        pools[0].kind = PoolKind::GENERAL;

        let kinds = [AgentKind::HOME, AgentKind::SLAVE]
            .into_iter()
            .chain(std::iter::repeat_n(
                AgentKind::REQUEST,
                usize::from(self.command_queues),
            ))
            .take(AGENTS_MAX);
        let mut agents = [Agent::new_zeroed(); AGENTS_MAX];
        let mut num_agents = 0u16;
        for (agent, kind) in agents.iter_mut().zip(kinds) {
            agent.id = num_agents.into();
            agent.kind = kind;
            num_agents += 1;
        }

        Config {
            magic: MAGIC,
            version_major: VERSION_MAJOR.into(),
            version_minor: VERSION_MINOR.into(),
            config_bytes: (size_of::<Config>() as u32).into(),
            features: features(self.atomics).into(),
            memory_bytes: self.memory.bytes().into(),
            num_command_queues: self.command_queues.into(),
            num_pools: 1.into(),
            num_agents: num_agents.into(),
            link_width_lanes: self.link.width_lanes.into(),
            link_speed_mts: self.link.speed.megatransfers().into(),
            reserved: 0.into(),
            pools,
            agents,
        }
    }
}

/// What the device can do, and what it wants of its driver.
fn features(atomics: Atomics) -> u64 {
    match atomics {
        Atomics::Link => FEATURES_ALL & !FEATURE_EXCLUSIVE_ATOMICS,
        Atomics::Exclusive => FEATURES_ALL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(command_queues: u16) -> Config {
        Shape {
            memory: "1G".parse().unwrap(),
            command_queues,
            engines: 1,
            translations: Capacity::default(),
            atomics: Atomics::Link,
            link: Link {
                speed: LinkSpeed::Gt25,
                width_lanes: 8,
                timing: None,
            },
        }
        .config()
    }

    #[test]
    fn pools_cover_the_memory_exactly() {
        let config = config(2);
        let used = &config.pools[..usize::from(config.num_pools.get())];
        let mut next = 0;
        for pool in used {
            assert_eq!(pool.base.get(), next);
            next += pool.bytes.get();
        }
        assert_eq!(next, config.memory_bytes.get());
    }

    #[test]
    fn there_is_one_home_one_slave_and_a_request_agent_for_each_queue_with_room() {
        for (queues, requesters) in [(1, 1), (4, 4), (6, 6), (8, 6)] {
            let config = config(queues);
            let used = &config.agents[..usize::from(config.num_agents.get())];
            let count = |kind| used.iter().filter(|agent| agent.kind == kind).count();
            assert_eq!(count(AgentKind::HOME), 1);
            assert_eq!(count(AgentKind::SLAVE), 1);
            assert_eq!(count(AgentKind::REQUEST), requesters);
            assert!(
                used.windows(2)
                    .all(|pair| pair[0].id.get() < pair[1].id.get())
            );
        }
    }

    #[test]
    fn link_attributes_are_those_asked_for() {
        let config = config(1);
        assert_eq!(config.link_speed_mts.get(), 25_000);
        assert_eq!(config.link_width_lanes.get(), 8);
    }
}
