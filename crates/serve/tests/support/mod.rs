#![allow(dead_code)] // each test file uses its own part

pub mod base;
pub mod device;
pub mod machine;
pub mod rig;
