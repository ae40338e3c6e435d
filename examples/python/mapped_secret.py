#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""A library that keeps a secret looks at the mapped generation before and after each use.

It takes no privilege, no thread and no system call, and nobody waits for it. The secret is the state of a generator:
that of the module random, which would go on the same in every clone. Each line on standard input is answered by a
token, until it ends.

    mapped_secret.py [NODE]
"""

import random
import sys

import sysgenid


class Tokens:
    def __init__(self, probe):
        self._probe = probe
        self._seed(probe.generation())

    def _seed(self, generation):
        self._generator = random.Random(sysgenid.draw(32))
        self._generation = generation

    def next(self):
        while True:
            now = self._probe.generation()
            if now != self._generation:
                self._seed(now)
                print(f"generation {now}: rebuilt", flush=True)
            token = self._generator.getrandbits(64)
            # A token that was drawn while the machine was cloned is not given away: both clones have it.
            if self._probe.generation() == now:
                return f"{token:016x}"


def main():
    tokens = Tokens(sysgenid.Probe(*sys.argv[1:2]))
    print("ready", flush=True)
    for _ in sys.stdin:
        print(f"token {tokens.next()}", flush=True)


if __name__ == "__main__":
    main()
