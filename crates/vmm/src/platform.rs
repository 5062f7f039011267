//! Builders of what is around the processors: devices, serial lines, firmware tables.

use crate::acpi::{self, AcpiConfig};
use crate::{VmSpec, VmmError};
use ringer_arch::cpu::CpuModel;
use ringer_devices::{MachineEvents, Platform, PlatformConfig, Saved, Serial, SerialConfig, StateError, map};
use ringer_engine::{CpuIo, Needs, StopToken, VmClock};
use ringer_memory::GuestMemory;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

/// The guest's TSC frequency, unless its engine needs another: a tick a nanosecond. The software engines make the TSC from the
/// machine's clock, so any would do.
const TSC_KHZ: u64 = 1_000_000;

/// The host's side of the serial lines COM1 to COM4: where what the guest says goes. A line without one is not
/// in the machine. Called on processors' threads: must not block for long.
#[derive(Default)]
pub struct SerialSides {
    /// By line.
    pub outputs: [Option<Box<dyn Write + Send>>; 4],
}

/// Bytes that go to a line at once, and how long after that the next may follow at the earliest: 256 KiB/s.
const BURST: usize = 256;
const BURST_TIME: Duration = Duration::from_millis(1);
/// How long to wait at most before looking again whether the guest has read a burst.
const LOOK_AGAIN: Duration = Duration::from_millis(16);

/// Sends input to one serial line of a machine.
#[derive(Clone)]
pub struct SerialInput(Arc<Serial>);

impl SerialInput {
    /// Sends `bytes`, waiting as long as the guest does not take them: until it opens the line, and while it holds RTS
    /// down. One thread at a time.
    ///
    /// A guest's driver reads as long as there is something, in its interrupt handler, and holds the line only after
    /// that, when it comes to look at what it has got (Linux drops what is beyond 64 KiB until then). So even a line
    /// that could be infinitely fast must have pauses.
    pub fn send(&self, bytes: &[u8]) {
        for burst in bytes.chunks(BURST) {
            let mut wait = BURST_TIME;
            while self.0.unread() > 0 {
                std::thread::sleep(wait);
                wait = (wait * 2).min(LOOK_AGAIN);
            }
            // The queue is empty, and longer than a burst: it takes all.
            let _all = self.0.receive(burst);
            if burst.len() == BURST {
                std::thread::sleep(BURST_TIME);
            }
        }
    }
}

/// The devices of a machine, and the tokens that they wake its processors by.
pub(crate) struct MachinePlatform {
    platform: Platform,
    stops: Vec<StopToken>,
    inputs: [Option<SerialInput>; 4],
    hypercalls: bool,
}

impl MachinePlatform {
    pub(crate) fn new(
        spec: &VmSpec,
        needs: &Needs,
        memory: &GuestMemory,
        events: Arc<dyn MachineEvents>,
        serial: SerialSides,
    ) -> Result<MachinePlatform, VmmError> {
        let stops: Vec<_> = (0..spec.cpus).map(|_| StopToken::new()).collect();
        let config = PlatformConfig {
            memory: memory.clone(),
            clock: VmClock::new(needs.tsc_khz.unwrap_or(TSC_KHZ)),
            stops: stops.clone(),
            events,
            hypercalls: !needs.no_hypercalls,
            serial: serial.outputs.map(|o| o.map(|output| SerialConfig { output, flow_control: true })),
        };
        let platform = Platform::new(config)?;
        let thread = |source| VmmError::Host { what: "a thread for the timers".to_owned(), source };
        platform.start().map_err(thread)?;
        let inputs = [0, 1, 2, 3].map(|i| platform.serial(i).map(|s| SerialInput(Arc::clone(s))));
        Ok(MachinePlatform { platform, stops, inputs, hypercalls: !needs.no_hypercalls })
    }

    /// The processors' views of the machine and their tokens, by index.
    pub(crate) fn processors(&self) -> Vec<(Arc<dyn CpuIo>, StopToken)> {
        let views = self.platform.vcpus().iter().cloned().map(|v| v as Arc<dyn CpuIo>);
        views.zip(self.stops.iter().cloned()).collect()
    }

    pub(crate) fn serial(&self, index: usize) -> Option<SerialInput> {
        self.inputs.get(index)?.clone()
    }

    /// Machine time in nanoseconds.
    pub(crate) fn machine_ns(&self) -> u64 {
        self.platform.clock().now_ns()
    }

    /// The guest's TSC frequency.
    pub(crate) fn tsc_khz(&self) -> u64 {
        self.platform.clock().tsc_khz()
    }

    /// Whether the guest was offered hypercalls.
    pub(crate) fn hypercalls(&self) -> bool {
        self.hypercalls
    }

    pub(crate) fn power_button(&self) {
        self.platform.power_button();
    }

    pub(crate) fn pause(&self) {
        self.platform.pause();
    }

    pub(crate) fn resume(&self) {
        self.platform.resume();
    }

    pub(crate) fn save(&self) -> Vec<Saved> {
        self.platform.save()
    }

    pub(crate) fn restore(&self, saved: &[Saved]) -> Result<(), StateError> {
        self.platform.restore(saved)
    }

    pub(crate) fn reset(&self) {
        self.platform.reset();
    }

    /// Writes the ACPI and MP tables into guest RAM.
    pub(crate) fn write_tables(
        &self,
        memory: &GuestMemory,
        cpu: &CpuModel,
        cpus: u32,
    ) -> Result<(), VmmError> {
        let mut hpet = [0; 4];
        self.platform.bus().mmio_read(map::HPET, &mut hpet);
        let there = map::SERIAL.iter().zip(&self.inputs).filter(|(_, input)| input.is_some());
        let config = AcpiConfig {
            vcpus: cpus,
            hpet: Some(u32::from_le_bytes(hpet)),
            serial: there.map(|((port, gsi), _)| acpi::SerialPort { port: *port, gsi: *gsi as u8 }).collect(),
            mouse: false,
            cpu_signature: cpu.signature(),
            cpu_features: cpu.leaf(1, 0)[3],
        };
        for blob in acpi::build(&config)?.iter().chain(&acpi::mp_table(&config)) {
            memory.write(blob.gpa, &blob.bytes)?;
        }
        Ok(())
    }
}
