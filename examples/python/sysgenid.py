# SPDX-License-Identifier: MIT OR Apache-2.0
"""The calls on /dev/sysgenid, with nothing but the standard library."""

import errno
import fcntl
import mmap
import os
import struct
import sys

PATH = "/dev/sysgenid"

# <linux/sysgenid.h> and <linux/vmgenid.h>. They are _IO(), so their argument goes by value: an int to fcntl.ioctl(),
# never bytes. Python takes an int of C for it, so a minimum or a time-out of 2**31 or more does not fit.
SYSGENID_SET_WATCHER_TRACKING = 0xE401
SYSGENID_WAIT_WATCHERS = 0xE402
SYSGENID_TRIGGER_GEN_UPDATE = 0xE403
VMGENID_GET_OUTDATED_WATCHERS = 0x2D01

GENERATION = struct.Struct("=I")

# What the page begins with: the generation, and flags.
WORD = struct.Struct("=II")
PAGE_LIVE = 1


def draw(size):
    """Random bytes from the kernel, for new secrets.

    Not os.urandom() or the module secrets: with newer C libraries these have a generator in this process, which is in
    the snapshot as well.
    """
    with open("/dev/urandom", "rb", buffering=0) as kernel:
        return kernel.read(size)


class Watcher:
    """An open node: told of each change, until it acknowledges."""

    def __init__(self, path=PATH, tracked=True, blocking=True):
        flags = os.O_RDWR | os.O_CLOEXEC | (0 if blocking else os.O_NONBLOCK)
        self._fd = os.open(path, flags)
        fcntl.ioctl(self._fd, SYSGENID_SET_WATCHER_TRACKING, int(tracked))

    def fileno(self):
        """For select, selectors and asyncio."""
        return self._fd

    def read(self):
        """The generation to rebuild for. Sleeps until there is one; without blocking, None if there is none."""
        try:
            return GENERATION.unpack(os.read(self._fd, GENERATION.size))[0]
        except BlockingIOError:
            return None

    def acknowledge(self, generation):
        """Says that everything was rebuilt. False if it has changed again, which the next read tells."""
        try:
            os.write(self._fd, GENERATION.pack(generation))
            return True
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return False

    def wait_for_others(self, milliseconds):
        """Whether all tracked watchers have acknowledged in time. InterruptedError: this one has to, first."""
        try:
            fcntl.ioctl(self._fd, SYSGENID_WAIT_WATCHERS, milliseconds)
            return True
        except OSError as error:
            if error.errno != errno.ETIME:
                raise
            return False

    def outdated_watchers(self):
        """How many tracked watchers have not acknowledged."""
        return fcntl.ioctl(self._fd, VMGENID_GET_OUTDATED_WATCHERS)

    def change(self, minimum):
        """Makes a change, to this generation at least. Needs CAP_CHECKPOINT_RESTORE: PermissionError without."""
        fcntl.ioctl(self._fd, SYSGENID_TRIGGER_GEN_UPDATE, minimum)


class Probe:
    """The mapped generation: a look costs no system call, and takes permission to read only."""

    def __init__(self, path=PATH):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            page = mmap.mmap(fd, WORD.size, mmap.MAP_SHARED, mmap.PROT_READ)
        finally:
            os.close(fd)
        # An item of this view is read at once, not byte by byte.
        self._words = memoryview(page).cast("Q")

    def generation(self):
        """The live generation. RuntimeError: nobody serves it any more, so that no other change would be seen."""
        generation, flags = WORD.unpack(self._words[0].to_bytes(WORD.size, sys.byteorder))
        if not flags & PAGE_LIVE:
            raise RuntimeError("the node has gone")
        return generation
