
#[cfg(CONFIG_SYSGENID_KUNIT_TEST)]
#[kernel::macros::kunit_tests(sysgenid_registry)]
mod tests {
    use super::*;

    const WATCHERS: usize = 8;

    /// What is known of a watcher without any count: plain facts.
    #[derive(Clone, Copy)]
    struct Facts {
        current: bool,
        tracked: bool,
        writable: bool,
    }

    /// Numbers that look random, and are the same in each run.
    struct Numbers(u64);

    impl Numbers {
        fn below(&mut self, limit: usize) -> usize {
            // The generator of Numerical Recipes; its upper bits are the good ones.
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) as usize % limit
        }
    }

    fn access(writable: bool) -> Access {
        if writable {
            Access::ReadWrite
        } else {
            Access::ReadOnly
        }
    }

    /// A registry with one tracked watcher, and one that is not.
    fn two_watchers() -> (Registry, Watcher, Watcher) {
        let mut registry = Registry::new();
        let mut tracked = registry.open(Access::ReadWrite);
        let untracked = registry.open(Access::ReadOnly);
        let _ = registry.set_tracking(&mut tracked, true);
        (registry, tracked, untracked)
    }

    #[test]
    fn the_accounts_are_exact_after_any_sequence_of_calls() {
        let mut numbers = Numbers(1);
        let mut registry = Registry::new();
        let mut facts = [Facts {
            current: true,
            tracked: false,
            writable: false,
        }; WATCHERS];
        let mut watchers: [Watcher; WATCHERS] =
            core::array::from_fn(|_| registry.open(Access::ReadOnly));

        for _ in 0..20_000 {
            let which = numbers.below(WATCHERS);
            let (watcher, fact) = (&mut watchers[which], &mut facts[which]);
            let before = registry.outdated;
            let mut wake = Wake::Nobody;
            let mut is_change = false;
            match numbers.below(8) {
                0 => {
                    wake = registry.close(watcher);
                    let writable = numbers.below(2) == 0;
                    *watcher = registry.open(access(writable));
                    *fact = Facts {
                        current: true,
                        tracked: false,
                        writable,
                    };
                }
                1 | 2 => {
                    let bytes = registry.generation().to_ne_bytes();
                    let result = registry.write(watcher, &bytes);
                    assert!(result.is_ok());
                    wake = result.unwrap_or(Wake::Nobody);
                    fact.current = true;
                }
                3 | 4 => {
                    let tracked = numbers.below(3) > 0;
                    let result = registry.set_tracking(watcher, tracked);
                    assert_eq!(result.is_ok(), fact.writable || !tracked);
                    if let Ok(woken) = result {
                        wake = woken;
                        fact.tracked = tracked;
                    }
                }
                5 => {
                    let minimum = [0, 7, u64::from(u32::MAX)][numbers.below(3)];
                    assert!(registry.trigger(true, minimum).is_ok());
                    is_change = true;
                }
                6 => {
                    let _ = registry.bump();
                    is_change = true;
                }
                _ => {
                    let bytes = registry.generation().next().to_ne_bytes();
                    assert_eq!(registry.write(watcher, &bytes), Err(Error::Invalid));
                }
            }
            if is_change {
                for fact in &mut facts {
                    fact.current = false;
                }
            }
            let outdated = facts
                .iter()
                .filter(|fact| fact.tracked && !fact.current)
                .count();
            assert_eq!(registry.outdated, outdated);
            for (watcher, fact) in watchers.iter().zip(&facts) {
                assert_eq!(registry.is_outdated(watcher), !fact.current);
            }
            // Those who wait are woken by the last one that they waited for, and by nobody else.
            let released = !is_change && before > 0 && outdated == 0;
            assert_eq!(wake == Wake::Waiters, released);
        }
    }

    #[test]
    fn a_read_returns_the_latest_generation_until_it_is_acknowledged() {
        let (mut registry, mut watcher, _) = two_watchers();
        assert_eq!(
            registry.read(&mut watcher, 4, Patience::None),
            Err(Error::WouldBlock)
        );
        assert_eq!(
            registry.read(&mut watcher, 4, Patience::Sleep),
            Ok(Read::Sleep)
        );
        let _ = registry.bump();
        let change = registry.bump();
        for _ in 0..2 {
            assert_eq!(
                registry.read(&mut watcher, 4, Patience::None),
                Ok(Read::Generation(change.generation))
            );
        }
        assert_eq!(
            registry.read(&mut watcher, 3, Patience::None),
            Err(Error::Invalid)
        );
        assert_eq!(registry.read(&mut watcher, 0, Patience::None), Ok(Read::Empty));
        let bytes = change.generation.to_ne_bytes();
        assert_eq!(registry.write(&mut watcher, &bytes), Ok(Wake::Waiters));
        assert_eq!(registry.write(&mut watcher, &bytes[..3]), Err(Error::Invalid));
        assert_eq!(
            registry.read(&mut watcher, 4, Patience::Signal),
            Err(Error::Restart)
        );
    }

    #[test]
    fn a_number_that_came_back_was_not_seen() {
        let (mut registry, mut watcher, _) = two_watchers();
        let change = registry.bump();
        let _ = registry.read(&mut watcher, 4, Patience::None);
        // All around the circle.
        assert!(registry.trigger(true, u64::from(u32::MAX)).is_ok());
        assert!(registry.trigger(true, 0).is_ok());
        assert_eq!(registry.generation(), change.generation);
        let bytes = change.generation.to_ne_bytes();
        assert_eq!(registry.write(&mut watcher, &bytes), Err(Error::Invalid));
        assert!(registry.is_outdated(&watcher));
        assert_eq!(registry.write(&mut watcher, &bytes), Ok(Wake::Waiters));
    }

    #[test]
    fn a_wait_is_for_tracked_watchers_and_not_for_who_is_outdated_himself() {
        let (mut registry, mut tracked, mut waiter) = two_watchers();
        assert_eq!(registry.wait(&waiter, Patience::Sleep), Ok(Wait::Settled));
        let change = registry.bump();
        assert_eq!(
            registry.wait(&waiter, Patience::Sleep),
            Err(Error::Interrupted)
        );
        let bytes = change.generation.to_ne_bytes();
        assert_eq!(registry.write(&mut waiter, &bytes), Ok(Wake::Nobody));
        assert_eq!(registry.wait(&waiter, Patience::Sleep), Ok(Wait::Sleep));
        assert_eq!(
            registry.wait(&waiter, Patience::TimeOut),
            Err(Error::TimedOut)
        );
        assert_eq!(registry.close(&mut tracked), Wake::Waiters);
        assert_eq!(registry.wait(&waiter, Patience::Sleep), Ok(Wait::Settled));
    }

    #[test]
    fn poll_reports_what_a_read_would_return() {
        let (mut registry, mut watcher, _) = two_watchers();
        assert_eq!(registry.poll(&watcher), abi::POLL_WRITABLE);
        let change = registry.bump();
        assert_eq!(
            registry.poll(&watcher),
            abi::POLL_WRITABLE | abi::POLL_READABLE
        );
        let _ = registry.write(&mut watcher, &change.generation.to_ne_bytes());
        assert_eq!(registry.poll(&watcher), abi::POLL_WRITABLE);
    }

    #[test]
    fn only_who_may_changes_the_generation() {
        let mut registry = Registry::new();
        assert_eq!(registry.trigger(false, 0), Err(Error::NotCapable));
        assert_eq!(
            registry.trigger(true, u64::from(u32::MAX) + 1),
            Err(Error::Invalid)
        );
        assert_eq!(registry.generation(), Generation::START);
        assert_eq!(registry.epoch(), Epoch::START);
    }

    #[test]
    fn a_watcher_knows_the_first_change_that_it_missed() {
        let (mut registry, watcher, _) = two_watchers();
        assert_eq!(watcher.first_missed(registry.epoch()), None);
        let _ = registry.bump();
        let first = registry.epoch();
        let _ = registry.bump();
        assert_eq!(watcher.first_missed(registry.epoch()), Some(first));
    }
}
