//! Two engines side by side.
