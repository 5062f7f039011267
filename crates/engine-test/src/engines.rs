//! Engines by name, and broken ones, by which the test shows that it finds something.

use ringer_engine::Engine;

/// The engine called `name`.
///
/// # Errors
/// There is none.
pub fn engine(name: &str) -> anyhow::Result<Box<dyn Engine>> {
    Ok(ringer_vmm::choose(name)?.engine)
}
