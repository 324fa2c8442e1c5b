//! Memory for what a step needs on the host and forgets: lists, copies, plans.
//!
//! All of it comes from one block that is kept between steps, so that a step asks the system for
//! nothing once one of its size has been seen.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

use bumpalo::Bump;

use crate::error::{Error, Result};

/// Lists that live until the memory is used again.
#[derive(Debug, Default)]
pub struct Scratch(Bump);

impl Scratch {
    /// Forgets all lists; their memory is used again.
    pub fn reset(&mut self) {
        self.0.reset();
    }

    /// The first `count` of `items`. Items are never dropped: they must own nothing.
    ///
    /// # Panics
    /// If there are fewer: a bug of the caller.
    #[allow(clippy::mut_from_ref, reason = "every list has memory of its own")]
    pub fn list<T>(&self, count: usize, items: impl IntoIterator<Item = T>) -> &mut [T] {
        const { assert!(!std::mem::needs_drop::<T>(), "items are never dropped") }
        let mut items = items.into_iter();
        self.0.alloc_slice_fill_with(count, |_| items.next().expect("as many items as counted"))
    }
}

/// Lists of a step whose streams are divided into groups: those of all, and those of every group.
#[derive(Debug, Default)]
pub(crate) struct GroupScratch {
    all: Scratch,
    groups: Vec<Scratch>,
}

impl GroupScratch {
    /// Forgets all lists; gives the memory of all and that of each of `count` groups.
    pub(crate) fn reset(&mut self, count: usize) -> (&Scratch, impl Iterator<Item = &mut Scratch>) {
        let Self { all, groups } = self;
        all.reset();
        if groups.len() < count {
            groups.resize_with(count, Scratch::default);
        }
        groups.iter_mut().for_each(Scratch::reset);
        (all, groups.iter_mut())
    }
}

/// Lengths of `groups` parts of `count` things, as equal as can be, the longer ones first: whoever
/// begins waits less.
pub(crate) fn lengths(count: usize, groups: usize) -> impl Iterator<Item = usize> {
    (0..groups).map(move |group| count / groups + usize::from(group < count % groups))
}

/// One of the errors of threads that work at the same time: the one that came first.
#[derive(Debug, Default)]
pub(crate) struct FirstError(Mutex<Option<Error>>);

impl FirstError {
    /// Keeps an error, if it is the first.
    pub(crate) fn note(&self, result: Result<()>) {
        if let Err(error) = result {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        }
    }

    /// What was noted since the last call.
    pub(crate) fn take(&self) -> Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take().map_or(Ok(()), Err)
    }
}

/// Values that serve one caller at a time and are kept for the next.
#[derive(Debug, Default)]
pub(crate) struct Spare<T>(Mutex<Vec<T>>);

impl<T: Default> Spare<T> {
    /// One that nobody uses, or a new one.
    pub(crate) fn take(&self) -> Taken<'_, T> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Taken { value: kept.unwrap_or_default(), home: self }
    }
}

/// A value that goes back when it is dropped.
pub(crate) struct Taken<'a, T: Default> {
    value: T,
    home: &'a Spare<T>,
}

impl<T: Default> Deref for Taken<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: Default> DerefMut for Taken<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

impl<T: Default> Drop for Taken<'_, T> {
    fn drop(&mut self) {
        let value = std::mem::take(&mut self.value);
        self.home.0.lock().unwrap_or_else(PoisonError::into_inner).push(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_hold_what_they_were_given_until_the_reset() {
        let mut scratch = Scratch::default();
        for round in 0..4u64 {
            scratch.reset();
            let many = scratch.list(1000, round..);
            let few = scratch.list(2, [Some(7), None]);
            assert_eq!((many[0], many[999], few[1]), (round, round + 999, None));
        }
    }

    #[test]
    fn groups_are_as_equal_as_can_be() {
        assert!(lengths(7, 3).eq([3, 2, 2]));
        assert!(lengths(2, 2).eq([1, 1]));
        assert!((1..50).all(|count| lengths(count, 4).sum::<usize>() == count));
    }

    #[test]
    fn the_first_error_is_told_once() {
        let error = FirstError::default();
        error.note(Ok(()));
        assert!(error.take().is_ok());
        for name in ["first", "second"] {
            error.note(Err(Error::input("field", name)));
        }
        assert!(error.take().unwrap_err().to_string().contains("first"));
        assert!(error.take().is_ok());
    }

    #[test]
    fn a_value_that_went_back_is_the_next_one() {
        let spare = Spare::<Vec<u8>>::default();
        spare.take().push(1);
        let mut first = spare.take();
        assert!(spare.take().is_empty(), "the first one is in use");
        first.push(2);
        drop(first);
        assert_eq!(*spare.take(), [1, 2]);
    }
}
