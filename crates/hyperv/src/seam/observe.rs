//! A way for a test double to learn what is read of its answers.
//!
//! A misspelt name reads as null, as it must on hosts that lack a property; so nothing but the one who knows which names
//! there are can notice it. In a program without such an observer this costs one load of a pointer.

use std::panic::Location;
use std::sync::OnceLock;

use super::MethodOutput;

/// What is called for every read, with the place in the source that reads.
#[derive(Clone, Copy, Debug)]
pub struct ReadObserver {
    /// A property of an instance: class, and name as asked for.
    pub property: fn(&str, &str, &'static Location<'static>),
    /// An output of a method.
    pub output: fn(&MethodOutput, &str, &'static Location<'static>),
}

static OBSERVER: OnceLock<ReadObserver> = OnceLock::new();

/// Sets the observer of this process; the first one stays.
pub fn observe_reads(observer: ReadObserver) {
    OBSERVER.get_or_init(|| observer);
}

#[track_caller]
pub(super) fn property_is_read(class: &str, name: &str) {
    if let Some(observer) = OBSERVER.get() {
        (observer.property)(class, name, Location::caller());
    }
}

#[track_caller]
pub(super) fn output_is_read(output: &MethodOutput, name: &str) {
    if let Some(observer) = OBSERVER.get() {
        (observer.output)(output, name, Location::caller());
    }
}
