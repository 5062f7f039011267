//! Part of Ringer.
