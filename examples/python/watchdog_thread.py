#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""A thread that does nothing but wait for changes, beside one that serves.

Each line on standard input is answered by a token, until it ends.

    watchdog_thread.py [NODE]
"""

import os
import sys
import threading

import sysgenid


class Key:
    """A secret that two threads share."""

    def __init__(self):
        self._lock = threading.Lock()
        self.rebuild()

    def rebuild(self):
        with self._lock:
            self._bytes = sysgenid.draw(8)

    def token(self):
        with self._lock:
            return self._bytes.hex()


def watch(watcher, key):
    try:
        while True:
            generation = watcher.read()
            key.rebuild()
            print(f"generation {generation}: rebuilt", flush=True)
            watcher.acknowledge(generation)
    except BaseException:
        # Nobody would notice the next change: better to end than to serve old secrets.
        sys.excepthook(*sys.exc_info())
        os._exit(1)


def main():
    # Opened before the key is made, so no change can be missed.
    watcher = sysgenid.Watcher(*sys.argv[1:2])
    key = Key()
    threading.Thread(target=watch, args=(watcher, key), daemon=True).start()
    print("ready", flush=True)
    for _ in sys.stdin:
        print(f"token {key.token()}", flush=True)


if __name__ == "__main__":
    main()
