//! Threads that share the work of one operation: they spin for a moment, then sleep.
//!
//! The caller works too and never waits for a thread that has not begun: parts are taken from a
//! counter, and a thread that the system wakes too late finds nothing left. So an operation takes
//! no longer than it would alone by more than one part, whoever else uses the processor.
//! What a part computes does not depend on who computes it.
#![allow(unsafe_code, reason = "a borrowed closure crosses to other threads")]

use std::cell::UnsafeCell;
use std::fmt;
use std::hint::spin_loop;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, TryLockError};
use std::thread::{JoinHandle, Thread};

/// A fixed number of threads, the caller among them.
pub struct Pool {
    shared: Arc<Shared>,
    /// Held while an operation runs; a caller that finds it taken works alone.
    busy: Mutex<()>,
    workers: Vec<JoinHandle<()>>,
}

type Work = dyn Fn(usize) + Sync + 'static;

struct Shared {
    /// Generation, then [`OPEN`], then the number of threads inside the operation.
    state: AtomicU64,
    next: AtomicUsize,
    job: UnsafeCell<Option<(*const Work, usize)>>,
    sleeping: AtomicUsize,
    failed: AtomicBool,
    stop: AtomicBool,
}

// SAFETY: `job` is written only while no thread is inside an operation and none can enter.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

const INSIDE: u64 = 0xFFFF_FFFF;
const OPEN: u64 = 1 << 32;
const GENERATION: u64 = 1 << 33;
/// Turns of waiting before a thread sleeps: a few tens of microseconds.
const SPINS: u32 = 4_000;

impl Pool {
    /// A pool of `threads` threads, at least the caller. Fewer where the system gives no more.
    pub fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            next: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            sleeping: AtomicUsize::new(0),
            failed: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let worker = |number: usize| {
            let shared = Arc::clone(&shared);
            let builder = std::thread::Builder::new().name(format!("moshi-rs {number}"));
            builder.spawn(move || shared.serve()).ok()
        };
        let workers = (1..threads.max(1)).map_while(worker).collect();
        Self { shared, busy: Mutex::new(()), workers }
    }

    /// Threads, the caller among them.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `work` once with every number below `parts`, on any threads, and returns when all
    /// calls have ended.
    ///
    /// # Panics
    /// If a call panics.
    pub fn run(&self, parts: usize, work: &(dyn Fn(usize) + Sync)) {
        let busy = match self.busy.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(guard)) => Some(guard.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        if self.workers.is_empty() || parts < 2 || busy.is_none() {
            (0..parts).for_each(work);
            return;
        }
        let shared = &*self.shared;
        #[allow(clippy::transmute_ptr_to_ptr, reason = "a cast cannot lengthen a lifetime")]
        // SAFETY: only the lifetime changes; this function does not return before every thread has
        // left the operation.
        let job =
            unsafe { std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const Work>(work) };
        // SAFETY: the lock is held and the last operation was closed and left: nobody reads.
        unsafe { *shared.job.get() = Some((job, parts)) };
        shared.next.store(0, Ordering::Relaxed);
        let state = shared.state.load(Ordering::Relaxed);
        shared.state.store((state + GENERATION) | OPEN, Ordering::SeqCst);
        if shared.sleeping.load(Ordering::SeqCst) > 0 {
            self.workers.iter().map(JoinHandle::thread).for_each(Thread::unpark);
        }
        let closing = Closing(shared);
        shared.take_parts(work, parts);
        drop(closing);
        let failed = shared.failed.swap(false, Ordering::Relaxed);
        assert!(!failed, "a thread of the pool panicked");
    }
}

/// Closes an operation and waits for those inside, even when the caller's own part panics.
struct Closing<'a>(&'a Shared);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut turns = 0u32;
        while self.0.state.load(Ordering::Acquire) & INSIDE > 0 {
            turns = turns.saturating_add(1);
            if turns < SPINS { spin_loop() } else { std::thread::yield_now() }
        }
    }
}

impl Shared {
    fn take_parts(&self, work: &(dyn Fn(usize) + Sync), parts: usize) {
        loop {
            let part = self.next.fetch_add(1, Ordering::Relaxed);
            if part >= parts {
                return;
            }
            work(part);
        }
    }

    /// A thread's life.
    fn serve(&self) {
        let mut seen = 0;
        while let Some(generation) = self.enter(seen) {
            seen = generation;
            // SAFETY: this thread is counted as inside: the caller waits, and nobody writes.
            let job = unsafe { *self.job.get() };
            if let Some((work, parts)) = job {
                // SAFETY: the closure lives until the caller has seen this thread leave.
                let work = unsafe { &*work };
                let run = std::panic::AssertUnwindSafe(|| self.take_parts(work, parts));
                if std::panic::catch_unwind(run).is_err() {
                    self.failed.store(true, Ordering::Relaxed);
                    self.next.store(parts, Ordering::Relaxed);
                }
            }
            self.state.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Waits for an operation other than `seen` and enters it; `None` at the end of the pool.
    fn enter(&self, seen: u64) -> Option<u64> {
        let mut turns = 0;
        loop {
            if self.stop.load(Ordering::Acquire) {
                return None;
            }
            let state = self.state.load(Ordering::SeqCst);
            let generation = state / GENERATION;
            if state & OPEN > 0 && generation != seen {
                let entered = self.state.compare_exchange_weak(
                    state,
                    state + 1,
                    Ordering::AcqRel,
                    Ordering::Relaxed,
                );
                if entered.is_ok() {
                    return Some(generation);
                }
                continue;
            }
            turns += 1;
            if turns < SPINS {
                spin_loop();
                continue;
            }
            self.sleeping.fetch_add(1, Ordering::SeqCst);
            let state = self.state.load(Ordering::SeqCst);
            let work = state & OPEN > 0 && state / GENERATION != seen;
            if !work && !self.stop.load(Ordering::SeqCst) {
                std::thread::park();
            }
            self.sleeping.fetch_sub(1, Ordering::SeqCst);
            turns = 0;
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A thread that panicked has said so already.
            let _ = worker.join();
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool of {} threads", self.threads())
    }
}

/// Processors that this process may use: its affinity and, on Linux, its group's quota.
pub fn available_threads() -> usize {
    // The standard library asks for both.
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::time::Duration;

    #[test]
    fn every_part_is_done_once_also_after_the_threads_slept() {
        let pool = Pool::new(3);
        for round in 0..200 {
            let done: Vec<AtomicUsize> = (0..17).map(|_| AtomicUsize::new(0)).collect();
            pool.run(done.len(), &|part| {
                done[part].fetch_add(1, Ordering::Relaxed);
            });
            assert!(done.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            if round % 50 == 49 {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    #[test]
    fn callers_at_the_same_time_all_get_their_work_done() {
        let pool = Pool::new(2);
        let total = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        pool.run(5, &|part| {
                            total.fetch_add(part, Ordering::Relaxed);
                        });
                    }
                });
            }
        });
        assert_eq!(total.into_inner(), 3 * 100 * 10);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        let pool = Pool::new(2);
        let run = |bad: usize| {
            catch_unwind(AssertUnwindSafe(|| pool.run(8, &|part| assert_ne!(part, bad))))
        };
        assert!(run(3).is_err());
        assert!(run(8).is_ok());
    }
}
