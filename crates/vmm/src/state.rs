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

#[cfg(test)]
mod tests {
    use super::*;

    fn reread(index: u32, change: impl FnOnce(&mut Saved)) -> Result<VcpuState, String> {
        let mut state = VcpuState::reset(0x8_06f8, true);
        state.msrs.insert(0xc000_0082, u64::MAX);
        state.pdptes = Some([1, 2, 3, u64::MAX]);
        state.xsave[831] = 0xa5;
        let mut saved = save_vcpu(1, &state);
        change(&mut saved);
        let text = serde_json::to_vec(&saved).unwrap();
        let again: Saved = serde_json::from_slice(&text).unwrap();
        let read = load_vcpu(index, &again);
        if let Ok(read) = &read {
            assert_eq!(*read, state);
        }
        read.map_err(|e| e.to_string())
    }

    #[test]
    fn a_processor_there_and_back() {
        assert!(reread(1, |_| {}).is_ok());
        assert_eq!(reread(0, |_| {}).unwrap_err(), "this is the saved state of vcpu1, not of vcpu0");
        assert!(reread(1, |s| s.version = 7).unwrap_err().contains("version 7"));
    }

    #[test]
    fn fields_that_no_processor_has() {
        let set = |field: &str, value: serde_json::Value| {
            reread(1, |s| s.state[field] = value).unwrap_err();
        };
        set("warp", 1.into());
        set("gpr", vec![0; 15].into());
        set("rip", "0".into());
        set("rip", (-1).into());
        set("cpl", 256.into());
        set("mp_state", "Dreaming".into());
        set("xsave", "00".repeat(831).into());
        set("xsave", "00".repeat(833).into());
        set("xsave", "0g".repeat(832).into());
        set("xsave", "\u{665}0".repeat(832).into());
        set("msrs", serde_json::json!({"x": 1}));
        set("pdptes", vec![0; 3].into());
        let without = reread(1, |s| drop(s.state.as_object_mut().and_then(|o| o.remove("tr"))));
        assert_eq!(without.unwrap_err(), "the saved state of vcpu1 cannot be read");
    }
}
