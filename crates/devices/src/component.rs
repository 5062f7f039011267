//! [`Component`]: a part of the machine that starts, stands still, and whose state can be saved and loaded.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

/// A part of a machine around its processors: a chip, a timer, a port, the clock. Its state is all that the guest could see of it, in
/// named fields, and is the same whatever engine runs the processors.
///
/// Life: made (at power-up, standing) → [`start`](Component::start) → [`resume`](Component::resume) ⇄ [`pause`](Component::pause) → dropped.
/// The owner stops the processors before it pauses components, and starts them after it has resumed all.
pub trait Component {
    /// What its state is filed under: unique in the machine, the same in every machine of this kind.
    fn name(&self) -> String;

    /// Gets what it needs of the host to act by itself, such as a thread. Once, while it stands; it goes on standing.
    ///
    /// # Errors
    /// The host's.
    fn start(&self) -> std::io::Result<()> {
        Ok(())
    }

    /// Stands still: when it returns, nothing of it changes by itself, and it interrupts nobody. Input from the host may still come and
    /// waits in its state. If it stands already, nothing happens. Most components act only when they are spoken to, or by the machine's
    /// timers: they have nothing to do here.
    fn pause(&self) {}

    /// Goes on from where it stood. If it runs already, nothing happens.
    fn resume(&self) {}

    /// Back to power-up, but for what outlives a reset (the RTC's time, input that the guest has not read). While it stands.
    fn reset(&self);

    /// Its state. While it stands; changes nothing. Two components of equal state give equal answers.
    fn save(&self) -> Saved;

    /// Takes on a saved state, whatever its own was. While it stands, and after the components before it in the machine's order, the
    /// clock first. No line moves and no message is sent: those that were on their way are in the states of the chips that they went to.
    /// What has become due since fires after [`resume`](Component::resume). After it, [`save`](Component::save) gives what was loaded.
    ///
    /// # Errors
    /// [`StateError`] for a state of another component or version, with fields that are unknown, missing or of values that the component cannot
    /// have. It keeps its own then. The state may come from anybody: no value of it makes the component panic, now or later.
    fn restore(&self, saved: &Saved) -> Result<(), StateError>;
}

/// A component's state, with what it is the state of.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    /// [`Component::name`].
    pub component: String,
    /// Version of the fields.
    pub version: u32,
    /// The fields.
    pub state: Value,
}

/// A saved state that cannot be loaded.
#[derive(Debug, Error)]
pub enum StateError {
    /// Of a component that it was not meant for.
    #[error("this is the saved state of {found}, not of {wanted}")]
    Component {
        /// Whose it is.
        found: String,
        /// Whose was expected.
        wanted: String,
    },
    /// Fields of another time.
    #[error("the saved state of {component} has version {found}, and this Ringer reads version {known}")]
    Version {
        /// The component.
        component: String,
        /// What there is.
        found: u32,
        /// What can be read.
        known: u32,
    },
    /// Fields that are unknown, missing, or of another type.
    #[error("the saved state of {component} cannot be read")]
    Fields {
        /// The component.
        component: String,
        /// What is wrong with them.
        #[source]
        source: serde_json::Error,
    },
    /// Values that cannot be.
    #[error("the saved state of {component} is of no such component: {why}")]
    Values {
        /// The component.
        component: String,
        /// One clause.
        why: &'static str,
    },
    /// A component of the machine is not in the state.
    #[error("the saved state has nothing of {0}, which this machine has")]
    Missing(String),
    /// A component of the state is not in the machine, or comes twice.
    #[error("the saved state has {0} once more than this machine")]
    Surplus(String),
}

impl Saved {
    /// The state `state` of `component`.
    pub fn of(component: &(impl Component + ?Sized), version: u32, state: &impl Serialize) -> Saved {
        Saved::called(component.name(), version, state)
    }

    /// The state `state` of the component called `component`.
    pub fn called(component: String, version: u32, state: &impl Serialize) -> Saved {
        // Numbers, strings, booleans and lists of them always have a value.
        Saved { component, version, state: serde_json::to_value(state).unwrap_or(Value::Null) }
    }

    /// The fields, if they are of `component` and of version `known`.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn read<T: DeserializeOwned>(
        &self,
        component: &(impl Component + ?Sized),
        known: u32,
    ) -> Result<T, StateError> {
        self.fields(&component.name(), known)
    }

    /// The fields, if they are of the component called `wanted` and of version `known`.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn fields<T: DeserializeOwned>(&self, wanted: &str, known: u32) -> Result<T, StateError> {
        let component = wanted.to_owned();
        if self.component != component {
            return Err(StateError::Component { found: self.component.clone(), wanted: component });
        }
        if self.version != known {
            return Err(StateError::Version { component, found: self.version, known });
        }
        T::deserialize(&self.state).map_err(|source| StateError::Fields { component, source })
    }

    /// The error that its values cannot be.
    #[must_use]
    pub fn bad(&self, why: &'static str) -> StateError {
        StateError::Values { component: self.component.clone(), why }
    }

    /// An error unless `ok`.
    ///
    /// # Errors
    /// [`StateError::Values`].
    pub fn ensure(&self, ok: bool, why: &'static str) -> Result<(), StateError> {
        if ok { Ok(()) } else { Err(self.bad(why)) }
    }
}
