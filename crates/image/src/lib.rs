//! What a guest starts from: kernels of several formats, their loaders, and guest images.
#![forbid(unsafe_code)]

pub mod boot;
pub mod debian;
mod error;
pub mod kernel;
#[cfg(any(test, feature = "samples"))]
pub mod samples;
mod source;

pub use error::ImageError;
