//! Threads that own what may not leave its thread, and do what others ask of it.

use std::collections::VecDeque;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};

type Task<L> = Box<dyn FnOnce(&mut L) + Send>;

/// A pool of threads, each with a local value of its own that is made, used and dropped there. A thread is added when
/// all are busy, up to a limit; behind it, callers wait their turn.
pub(super) struct Workers<L> {
    shared: Arc<Shared<L>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    make: fn() -> L,
    limit: usize,
}

struct Shared<L> {
    state: Mutex<State<L>>,
    changed: Condvar,
}

struct State<L> {
    waiting: VecDeque<Task<L>>,
    idle: usize,
    closed: bool,
}

impl<L: 'static> Workers<L> {
    /// No thread yet. `make` runs in each new one.
    pub(super) fn new(limit: usize, make: fn() -> L) -> Self {
        let state = State { waiting: VecDeque::new(), idle: 0, closed: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        Self { shared, threads: Mutex::default(), make, limit }
    }

    /// Runs `task` in one of the threads and waits for its result. A panic in it is a panic here.
    pub(super) fn run<T: Send + 'static>(&self, task: impl FnOnce(&mut L) -> T + Send + 'static) -> T {
        let (send, receive) = mpsc::sync_channel(1);
        let task = move |local: &mut L| {
            let result = panic::catch_unwind(AssertUnwindSafe(|| task(local)));
            // The caller waits below.
            let _ = send.send(result);
        };
        let mut state = self.shared.lock();
        state.waiting.push_back(Box::new(task));
        let all_busy = state.waiting.len() > state.idle;
        drop(state);
        self.shared.changed.notify_one();
        if all_busy {
            self.add_thread();
        }
        match receive.recv() {
            Ok(Ok(result)) => result,
            Ok(Err(payload)) => panic::resume_unwind(payload),
            Err(mpsc::RecvError) => unreachable!("a worker runs every task it takes, and ends only with the pool"),
        }
    }

    fn add_thread(&self) {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        if threads.len() >= self.limit {
            return;
        }
        let (shared, make) = (self.shared.clone(), self.make);
        let started = thread::Builder::new().name("wmi".into()).spawn(move || shared.work(make()));
        match started {
            Ok(thread) => threads.push(thread),
            // Without a first thread nothing could ever answer.
            Err(error) if threads.is_empty() => panic!("start a thread for WMI calls: {error}"),
            Err(_) => {}
        }
    }
}

impl<L> Shared<L> {
    fn work(&self, mut local: L) {
        let mut state = self.lock();
        loop {
            if let Some(task) = state.waiting.pop_front() {
                drop(state);
                task(&mut local);
                state = self.lock();
            } else if state.closed {
                return;
            } else {
                state.idle += 1;
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            }
        }
    }

    /// Nothing panics while it holds the lock.
    fn lock(&self) -> MutexGuard<'_, State<L>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<L> Drop for Workers<L> {
    /// Waits until every thread has dropped its local value.
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_all();
        for thread in self.threads.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // A thread that panicked did so in `make`, and its caller has said so.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::rc::Rc;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn calls_run_beside_each_other_up_to_the_limit() {
        // `Rc` is what a COM interface is: it may not leave its thread.
        let workers: Workers<Rc<thread::ThreadId>> = Workers::new(3, || Rc::new(thread::current().id()));
        let together = Arc::new(Barrier::new(3));
        let seen: BTreeSet<String> = thread::scope(|scope| {
            let calls: Vec<_> = (0..3)
                .map(|_| {
                    let together = together.clone();
                    scope.spawn(|| {
                        workers.run(move |local| {
                            // Passed only when three of them are here at once.
                            together.wait();
                            assert_eq!(**local, thread::current().id());
                            format!("{local:?}")
                        })
                    })
                })
                .collect();
            calls.into_iter().map(|call| call.join().unwrap()).collect()
        });
        assert_eq!(seen.len(), 3);
        for round in 0..20 {
            assert!(seen.contains(&workers.run(|local| format!("{local:?}"))), "round {round}: a fourth thread");
        }
    }

    #[test]
    fn one_thread_serves_one_caller() {
        let workers: Workers<()> = Workers::new(8, || ());
        for _ in 0..100 {
            workers.run(|()| ());
        }
        // The thread may not be idle again yet when the next call comes: a few, not one each.
        assert!(workers.threads.lock().unwrap().len() < 8);
    }

    #[test]
    fn a_panic_is_the_callers_and_the_pool_lives_on() {
        let workers: Workers<u32> = Workers::new(1, || 7);
        let caught = panic::catch_unwind(AssertUnwindSafe(|| workers.run(|_| -> u32 { panic!("in the task") })));
        assert_eq!(*caught.unwrap_err().downcast::<&str>().unwrap(), "in the task");
        assert_eq!(workers.run(|local| *local), 7);
    }

    #[test]
    fn local_values_are_dropped_in_their_threads() {
        static DROPPED: AtomicUsize = AtomicUsize::new(0);
        struct Local(thread::ThreadId);
        impl Drop for Local {
            fn drop(&mut self) {
                assert_eq!(self.0, thread::current().id());
                DROPPED.fetch_add(1, Ordering::SeqCst);
            }
        }
        let workers: Workers<Local> = Workers::new(1, || Local(thread::current().id()));
        workers.run(|_| ());
        drop(workers);
        assert_eq!(DROPPED.load(Ordering::SeqCst), 1);
    }
}
