//! Threads that share the work of one operation: they spin for a moment, then sleep.
//!
//! The caller works too and never waits for a thread that has not begun: parts are taken from a
//! counter, and a thread that the system wakes too late finds nothing left. So an operation takes
//! no longer than it would alone by more than one part, whoever else uses the processor.
//! What a part computes does not depend on who computes it.
//!
//! How many threads take part may change between operations: a watch takes one away where the
//! caller waits too long for the others.
#![allow(unsafe_code, reason = "a borrowed closure crosses to other threads")]

mod watch;

use std::cell::UnsafeCell;
use std::fmt;
use std::hint::spin_loop;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use watch::Watch;

use crate::rows::Rows;

/// A number of threads, the caller among them.
pub struct Pool {
    shared: Arc<Shared>,
    /// Held while an operation runs; a caller that finds it taken works alone.
    busy: Mutex<Option<Watch>>,
    workers: Vec<JoinHandle<()>>,
    /// The process that has the threads: one that was forked from it has none of them.
    process: u32,
}

type Work = dyn Fn(usize) + Sync + 'static;

struct Shared {
    /// Generation, then [`OPEN`], then the number of threads inside the operation.
    state: AtomicU64,
    next: AtomicUsize,
    job: UnsafeCell<Option<(*const Work, usize)>>,
    /// Threads that may take part, the caller among them; the others sleep.
    limit: AtomicUsize,
    /// Of those that may take part.
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
            limit: AtomicUsize::new(threads.max(1)),
            sleeping: AtomicUsize::new(0),
            failed: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let worker = |number: usize| {
            let shared = Arc::clone(&shared);
            let builder = std::thread::Builder::new().name(format!("moshi-rs {number}"));
            builder.spawn(move || shared.serve(number)).ok()
        };
        let workers: Vec<_> = (1..threads.max(1)).map_while(worker).collect();
        shared.limit.store(workers.len() + 1, Ordering::SeqCst);
        Self { shared, busy: Mutex::new(None), workers, process: std::process::id() }
    }

    /// Threads, the caller among them, whether they take part or not.
    pub fn capacity(&self) -> usize {
        self.workers.len() + 1
    }

    /// Threads that take part, the caller among them.
    pub fn threads(&self) -> usize {
        self.shared.limit.load(Ordering::Relaxed)
    }

    /// Lets `threads` threads take part, at least the caller and at most all, whatever was watched
    /// before.
    pub fn set_threads(&self, threads: usize) {
        *self.lock() = None;
        self.limit(threads);
    }

    /// As [`Pool::set_threads`], as long as they help: one less whenever the caller waits for the
    /// others for longer than one of them saves, and one more again after some seconds. `saved` is
    /// the part of an operation's time that the last thread saves where nothing disturbs.
    pub fn set_watched_threads(&self, threads: usize, saved: f64) {
        let threads = threads.clamp(1, self.capacity());
        *self.lock() = (threads > 1).then(|| Watch::new(threads, saved));
        self.limit(threads);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Watch>> {
        // A panic in a part leaves the watch as it was.
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn limit(&self, threads: usize) {
        self.shared.limit.store(threads.clamp(1, self.capacity()), Ordering::SeqCst);
        self.wake(self.workers.len());
    }

    fn wake(&self, workers: usize) {
        self.workers[..workers].iter().map(JoinHandle::thread).for_each(Thread::unpark);
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
        let (true, Some(mut watch)) = (!self.workers.is_empty() && parts > 1, busy) else {
            return (0..parts).for_each(work);
        };
        let start = watch.is_some().then(Instant::now);
        let threads = self.threads();
        let waited = if threads > 1 {
            self.share(threads, parts, work)
        } else {
            (0..parts).for_each(work);
            Duration::ZERO
        };
        if let (Some(watch), Some(start)) = (&mut *watch, start) {
            let now = Instant::now();
            if let Some(threads) = watch.note(threads, now - start, waited, now) {
                self.limit(threads);
            }
        }
    }

    /// Calls `work` once with every item and its number, on any threads of the pool, whether they
    /// take part in other operations or not, and returns when all calls have ended. Operations
    /// within `work` run alone, those for a single item on the pool.
    ///
    /// # Panics
    /// If a call panics.
    pub fn each<T: Send>(&self, items: &mut [T], work: &(dyn Fn(usize, &mut T) + Sync)) {
        if let [item] = items {
            return work(0, item);
        }
        let rows = Rows::new(items, 1);
        let (parts, capacity) = (rows.count(), self.capacity());
        // SAFETY: every number is one part of the operation.
        let part = |number: usize| work(number, unsafe { &mut rows.row(number)[0] });
        let busy = self.busy.try_lock();
        if self.workers.is_empty() || matches!(busy, Err(TryLockError::WouldBlock)) {
            return (0..parts).for_each(part);
        }
        let limit = self.shared.limit.swap(capacity, Ordering::SeqCst);
        if limit < capacity {
            self.wake(capacity.min(parts.max(1)) - 1);
        }
        let limited = Limited { shared: &self.shared, limit };
        self.share(capacity, parts, &part);
        drop(limited);
    }

    /// Runs an operation on all threads that take part. Returns how long the caller waited for
    /// others after its own last part.
    fn share(&self, threads: usize, parts: usize, work: &(dyn Fn(usize) + Sync)) -> Duration {
        let shared = &*self.shared;
        #[allow(clippy::transmute_ptr_to_ptr, reason = "a cast cannot lengthen a lifetime")]
        // SAFETY: only the lifetime changes; this function does not return before every thread has
        // left the operation.
        let job =
            unsafe { std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const Work>(work) };
        // SAFETY: the lock is held and the last operation was closed and left: nobody reads.
        unsafe { *shared.job.get() = Some((job, parts)) };
        shared.next.store(0, Ordering::Relaxed);
        // The last operation may have ended in a panic of the caller's own.
        shared.failed.store(false, Ordering::Relaxed);
        let state = shared.state.load(Ordering::Relaxed);
        shared.state.store((state + GENERATION) | OPEN, Ordering::SeqCst);
        if shared.sleeping.load(Ordering::SeqCst) > 0 {
            self.wake(threads.min(parts) - 1);
        }
        let mut closing = Closing { shared, left: false };
        shared.take_parts(work, parts);
        let waited = closing.wait();
        let failed = shared.failed.swap(false, Ordering::Relaxed);
        assert!(!failed, "a thread of the pool panicked");
        waited
    }
}

/// Sets the number of threads back, also after a panic.
struct Limited<'a> {
    shared: &'a Shared,
    limit: usize,
}

impl Drop for Limited<'_> {
    fn drop(&mut self) {
        self.shared.limit.store(self.limit, Ordering::SeqCst);
    }
}

/// Closes an operation and waits for those inside, even when the caller's own part panics.
struct Closing<'a> {
    shared: &'a Shared,
    left: bool,
}

impl Closing<'_> {
    fn wait(&mut self) -> Duration {
        self.left = true;
        let inside = || self.shared.state.load(Ordering::Acquire) & INSIDE > 0;
        self.shared.state.fetch_and(!OPEN, Ordering::AcqRel);
        if !inside() {
            return Duration::ZERO;
        }
        let start = Instant::now();
        let mut turns = 0u32;
        while inside() {
            turns = turns.saturating_add(1);
            if turns < SPINS { spin_loop() } else { std::thread::yield_now() }
        }
        start.elapsed()
    }
}

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        if !self.left {
            self.wait();
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
    fn serve(&self, number: usize) {
        let mut seen = 0;
        while let Some(generation) = self.enter(number, seen) {
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

    /// Waits for an operation other than `seen` that thread `number` takes part in, and enters it;
    /// `None` at the end of the pool.
    fn enter(&self, number: usize, seen: u64) -> Option<u64> {
        let mut turns = 0;
        loop {
            if self.stop.load(Ordering::Acquire) {
                return None;
            }
            if number >= self.limit.load(Ordering::SeqCst) {
                // Whoever raises the limit wakes this thread.
                std::thread::park();
                turns = 0;
                continue;
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
        if std::process::id() != self.process {
            // After a fork there is nobody to wait for; letting the handles go joins nobody.
            return;
        }
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A thread that panicked has said so already.
            let _ = worker.join();
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool of {} threads, {} in use", self.capacity(), self.threads())
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

    /// Checks that every part of some operations is done once.
    fn work(pool: &Pool, rounds: usize) {
        for _ in 0..rounds {
            let done: Vec<AtomicUsize> = (0..17).map(|_| AtomicUsize::new(0)).collect();
            pool.run(done.len(), &|part| {
                done[part].fetch_add(1, Ordering::Relaxed);
            });
            assert!(done.iter().all(|count| count.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn every_part_is_done_once_also_after_the_threads_slept() {
        let pool = Pool::new(3);
        for _ in 0..4 {
            work(&pool, 50);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn every_item_is_changed_once_and_may_use_the_pool() {
        let pool = Pool::new(3);
        for (count, threads) in [(0, 3), (1, 3), (2, 1), (40, 3), (40, 1)] {
            pool.set_threads(threads);
            let mut items: Vec<usize> = vec![0; count];
            pool.each(&mut items, &|number, item| {
                pool.run(3, &|_| {});
                *item += 1 + number;
            });
            assert!(items.into_iter().eq(1..=count));
            assert_eq!(pool.threads(), threads);
        }
    }

    #[test]
    fn threads_leave_and_come_back() {
        let pool = Pool::new(3);
        for (wanted, threads) in [(1, 1), (3, 3), (2, 2), (9, 3), (0, 1), (2, 2)] {
            pool.set_threads(wanted);
            assert_eq!((pool.threads(), pool.capacity()), (threads, 3));
            work(&pool, 20);
            std::thread::sleep(Duration::from_millis(1));
            pool.set_watched_threads(wanted, 0.5);
            work(&pool, 20);
        }
    }

    #[test]
    fn a_thread_that_keeps_the_caller_waiting_is_left_out() {
        let pool = Pool::new(2);
        pool.set_watched_threads(2, 0.5);
        let caller = std::thread::current().id();
        let slow = |_: usize| {
            let own = std::thread::current().id() == caller;
            std::thread::sleep(Duration::from_micros(if own { 100 } else { 20_000 }));
        };
        // The other thread may come too late for a part of the first operations.
        for _ in 0..10_000 {
            pool.run(4, &slow);
            if pool.threads() == 1 {
                return work(&pool, 20);
            }
        }
        panic!("the slow thread still takes part");
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
        let all = catch_unwind(AssertUnwindSafe(|| pool.run(8, &|_| panic!("every part"))));
        assert!(all.is_err());
        assert!(run(8).is_ok(), "what failed before is forgotten");
    }
}
