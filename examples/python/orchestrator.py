#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""A service that must not be seen before everybody is done.

At each change it pauses, acknowledges, waits for all others and resumes, until it is killed:

    orchestrator.py [NODE]

With a minimum, whoever has restored a container: it makes the change itself, to that generation at least (one more
than the snapshot was taken at), waits for all others, and ends. It needs CAP_CHECKPOINT_RESTORE:

    orchestrator.py NODE MINIMUM
"""

import select
import sys

import sysgenid

PATIENCE_MS = 30_000


def pause_for_changes(watcher):
    """Acknowledges what there is to acknowledge, having paused for it."""
    while (generation := watcher.read()) is not None:
        print(f"generation {generation}: paused", flush=True)
        watcher.acknowledge(generation)


def settle(watcher):
    """Whether all others have acknowledged in time."""
    while True:
        # Whoever waits for others must not be outdated.
        pause_for_changes(watcher)
        try:
            return watcher.wait_for_others(PATIENCE_MS)
        except InterruptedError:
            pass  # a signal, or another change


def follow(watcher):
    print("ready", flush=True)
    while True:
        select.select([watcher], [], [])
        while not settle(watcher):
            print(f"late: {watcher.outdated_watchers()}", flush=True)
        print("resumed", flush=True)


def change(watcher, minimum):
    watcher.change(minimum)
    if not settle(watcher):
        print(f"late: {watcher.outdated_watchers()}", flush=True)
        return 1
    print("settled", flush=True)
    return 0


def main(path=sysgenid.PATH, minimum=None):
    if minimum is None:
        follow(sysgenid.Watcher(path, blocking=False))
    else:
        # Nobody has to wait for whoever waits.
        return change(sysgenid.Watcher(path, tracked=False, blocking=False), int(minimum))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
