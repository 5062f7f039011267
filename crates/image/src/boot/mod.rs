//! Placing a kernel in guest RAM and the state its boot processor starts in.
