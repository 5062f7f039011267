//! [`MachineState`]: a machine between two instructions of each processor, saved.

use ringer_arch::VcpuState;
use ringer_devices::{Saved, StateError};
use serde::{Deserialize, Serialize};

/// Version of the fields of [`VcpuState`].
const VERSION: u32 = 1;

/// All of a machine that stands but its RAM, whatever engine ran it. It may come from anybody: what cannot be is refused when it is loaded.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineState {
    /// Name of the processor model.
    pub cpu: String,
    /// Its features, as the model shows them.
    pub features: String,
    /// Each processor, by index.
    pub vcpus: Vec<Saved>,
    /// Each component of the machine around them.
    pub components: Vec<Saved>,
}

fn name(index: u32) -> String {
    format!("vcpu{index}")
}

pub(crate) fn save_vcpu(index: u32, state: &VcpuState) -> Saved {
    Saved::called(name(index), VERSION, state)
}

/// Its values are the engine's to check.
pub(crate) fn load_vcpu(index: u32, saved: &Saved) -> Result<VcpuState, StateError> {
    saved.fields(&name(index), VERSION)
}
