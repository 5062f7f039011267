//! Builders of what is around the processors: devices, serial lines, firmware tables.

use crate::acpi::{self, AcpiConfig};
use crate::{VmSpec, VmmError};
use ringer_arch::cpu::CpuModel;
use ringer_devices::{MachineEvents, Platform, PlatformConfig, Serial, SerialConfig, map};
use ringer_engine::{CpuIo, StopToken, VmClock};
use ringer_memory::GuestMemory;
use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// The guest's TSC frequency: a tick a nanosecond. The engines make the TSC from the machine's clock, so any would do.
const TSC_KHZ: u64 = 1_000_000;

/// The host's side of the serial lines COM1 to COM4: where what the guest says goes. A line without one is not
/// in the machine. Called on processors' threads: must not block for long.
#[derive(Default)]
pub struct SerialSides {
    /// By line.
    pub outputs: [Option<Box<dyn Write + Send>>; 4],
}

/// Sends input to one serial line of a machine.
#[derive(Clone)]
pub struct SerialInput {
    serial: Arc<Serial>,
    room: Arc<(Mutex<bool>, Condvar)>,
}

impl SerialInput {
    fn new(serial: &Arc<Serial>) -> SerialInput {
        let room = Arc::new((Mutex::new(false), Condvar::new()));
        let told = Arc::clone(&room);
        serial.on_room(Box::new(move || {
            *told.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
            told.1.notify_all();
        }));
        SerialInput { serial: Arc::clone(serial), room }
    }

    /// Sends `bytes`, waiting as long as the guest does not take them. The line loses nothing: input waits until the
    /// guest opens the line, and as long as it holds RTS down. One thread at a time.
    pub fn send(&self, mut bytes: &[u8]) {
        loop {
            let (room, came) = &*self.room;
            let mut room = room.lock().unwrap_or_else(PoisonError::into_inner);
            *room = false;
            drop(room);
            bytes = &bytes[self.serial.receive(bytes).min(bytes.len())..];
            if bytes.is_empty() {
                return;
            }
            let mut room = self.room.0.lock().unwrap_or_else(PoisonError::into_inner);
            while !*room {
                room = came.wait(room).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

/// The devices of a machine, and the tokens that they wake its processors by.
pub(crate) struct MachinePlatform {
    platform: Platform,
    stops: Vec<StopToken>,
    inputs: [Option<SerialInput>; 4],
}

impl MachinePlatform {
    pub(crate) fn new(
        spec: &VmSpec,
        memory: &GuestMemory,
        events: Arc<dyn MachineEvents>,
        serial: SerialSides,
    ) -> Result<MachinePlatform, VmmError> {
        let stops: Vec<_> = (0..spec.cpus).map(|_| StopToken::new()).collect();
        let config = PlatformConfig {
            memory: memory.clone(),
            clock: VmClock::new(TSC_KHZ),
            stops: stops.clone(),
            events,
            serial: serial.outputs.map(|o| o.map(|output| SerialConfig { output, flow_control: true })),
        };
        let mut platform = Platform::new(config)?;
        let thread = |source| VmmError::Host { what: "a thread for the timers".to_owned(), source };
        platform.start().map_err(thread)?;
        let inputs = [0, 1, 2, 3].map(|i| platform.serial(i).map(SerialInput::new));
        Ok(MachinePlatform { platform, stops, inputs })
    }

    /// The processors' views of the machine and their tokens, by index.
    pub(crate) fn processors(&self) -> Vec<(Arc<dyn CpuIo>, StopToken)> {
        let views = self.platform.vcpus().iter().cloned().map(|v| v as Arc<dyn CpuIo>);
        views.zip(self.stops.iter().cloned()).collect()
    }

    pub(crate) fn serial(&self, index: usize) -> Option<SerialInput> {
        self.inputs.get(index)?.clone()
    }

    pub(crate) fn pause(&self) {
        self.platform.pause();
    }

    pub(crate) fn resume(&self) {
        self.platform.resume();
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
