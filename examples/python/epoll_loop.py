#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""A program with an event loop has the node beside its other descriptors, here standard input.

Each line of it is answered by a token, until it ends.

    epoll_loop.py [NODE]
"""

import os
import select
import sys

import sysgenid


class Server:
    def __init__(self, watcher):
        self._watcher = watcher
        self._key = sysgenid.draw(8)

    def deal_with_change(self):
        generation = self._watcher.read()
        if generation is None:
            return
        self._key = sysgenid.draw(8)
        print(f"generation {generation}: rebuilt", flush=True)
        # False: it has changed again, which the loop will be told.
        self._watcher.acknowledge(generation)

    def answer(self):
        # Events are not reported in the order in which they came about.
        self.deal_with_change()
        print(f"token {self._key.hex()}", flush=True)


def main():
    # Opened before the key is made, so no change can be missed.
    watcher = sysgenid.Watcher(*sys.argv[1:2], blocking=False)
    server = Server(watcher)
    requests = sys.stdin.fileno()
    with select.epoll() as epoll:
        epoll.register(watcher, select.EPOLLIN)
        epoll.register(requests, select.EPOLLIN)
        print("ready", flush=True)
        while True:
            for fd, _ in epoll.poll():
                if fd == watcher.fileno():
                    server.deal_with_change()
                elif os.read(requests, 256):
                    server.answer()
                else:
                    return


if __name__ == "__main__":
    main()
