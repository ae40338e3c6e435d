/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * libsysgenid: know that the machine was cloned or rolled back to a snapshot.
 *
 * A probe asks, at the cost of a load: compare before a secret is used. A watcher is told, and acknowledges: others
 * can wait until it has. Both are conveniences. A program that makes the system calls itself needs no library but
 * <linux/sysgenid.h>, which is another file than this one.
 *
 * Every function can be called in any thread. Those that can fail return why, and then leave what they were to fill
 * in alone unless they say otherwise. A null pointer is an error unless it is said to have a meaning. A path of NULL
 * stands for the node of this machine: the one that the environment variable SYSGENID_PATH names, or else
 * /dev/sysgenid, or else /dev/vmgenid.
 *
 *     cc program.c $(pkg-config --cflags --libs sysgenid)
 */

#ifndef SYSGENID_H
#define SYSGENID_H

/* Made of crates/sysgenid-c by cbindgen: change it there. */

#include <stdbool.h>
#include <stdint.h>

/**
 * How a call ended. sysgenid_error_message() says more.
 */
enum sysgenid_error {
    /**
     * As it should: 0.
     */
    SYSGENID_ERROR_NONE = 0,
    /**
     * Nothing serves a node on this machine: load the kernel module sysgenid, start the daemon sysgenidd, or go on
     * without.
     */
    SYSGENID_ERROR_NO_NODE = 1,
    /**
     * Nothing serves a node, and on this kernel nothing could: the daemon needs Linux 6.9.
     */
    SYSGENID_ERROR_KERNEL_TOO_OLD = 2,
    /**
     * There is a node, which this process may not open in this way. To be tracked takes permission to write.
     */
    SYSGENID_ERROR_NO_PERMISSION = 3,
    /**
     * There is something else at the path of the node.
     */
    SYSGENID_ERROR_NOT_A_NODE = 4,
    /**
     * Whoever served the node has gone. What changed since is not known, so everything must be rebuilt once a node
     * is there again: sysgenid_watcher_reconnect().
     */
    SYSGENID_ERROR_GONE = 5,
    /**
     * Changing the generation needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN in the user namespace that owns the
     * node.
     */
    SYSGENID_ERROR_NOT_CAPABLE = 6,
    /**
     * The time is over.
     */
    SYSGENID_ERROR_TIMED_OUT = 7,
    /**
     * The system refused something for a reason of its own: sysgenid_error_errno().
     */
    SYSGENID_ERROR_IO = 8,
    /**
     * An argument cannot be meant, as a null pointer where something has to be.
     */
    SYSGENID_ERROR_INVALID_ARGUMENT = 9,
    /**
     * A defect of this library.
     */
    SYSGENID_ERROR_INTERNAL = 10,
};

/**
 * The live generation of a machine, mapped into this process. It takes permission to read the node, which everybody
 * has by default on /dev/sysgenid. Nobody ever waits for it. Threads may share it, and a child has it after fork().
 */
struct sysgenid_probe;

/**
 * A watcher of the generation: it is told of each change, and acknowledges it. Threads may share it and make any
 * calls at once, but sysgenid_watcher_close(); none waits for another. An acknowledgement of one is one of all, so it
 * comes after all have rebuilt. After fork() the child has the same watcher, and an acknowledgement of either is one
 * of both, so a child that keeps secrets of its own opens its own. The descriptor is closed by exec.
 */
struct sysgenid_watcher;

/**
 * What a probe saw at some moment. It is made by this library only, may be copied, and is to be handed back to the
 * functions below: what is in it has no meaning, also not to memcmp().
 */
struct sysgenid_stamp {
    uint64_t opaque[4];
};

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * What the last call that failed in this thread says of it: what happened, to what, and what to do; an empty text if
 * none failed. It is valid until the next call fails in this thread, and is never NULL.
 */
const char *sysgenid_error_message(void);

/**
 * The number, as in errno.h, that goes with the last call that failed in this thread: the system's own for
 * SYSGENID_ERROR_IO, the one that fits best for the others; 0 if none failed. The variable errno itself may be
 * changed by every function, whether it fails or not.
 */
int sysgenid_error_errno(void);

/**
 * Opens the node at a path, or that of this machine if it is NULL, maps it and closes it again. If that fails,
 * *probe is NULL.
 *
 * Condition: path is NULL or a string, probe points to a pointer.
 */
enum sysgenid_error sysgenid_probe_open(const char *path,
                                        struct sysgenid_probe **probe);

/**
 * Opens the node at a path, or that of this machine if it is NULL, or a probe that looks for it if nothing serves it yet.
 * That it has come is a change. A node that is there and cannot be opened is still an error: it would be worse to
 * overlook it.
 *
 * Condition: As for sysgenid_probe_open().
 */
enum sysgenid_error sysgenid_probe_open_or_never(const char *path,
                                                 struct sysgenid_probe **probe);

/**
 * Ends a probe. NULL does nothing.
 *
 * Condition: probe is NULL or comes from one of the functions above, and is not used again.
 */
void sysgenid_probe_close(struct sysgenid_probe *probe);

/**
 * What there is to see now. Whatever the server of the node did before the change, such as to reseed the kernel's
 * generator, has happened for whoever has seen it here.
 *
 * Condition: probe is open, stamp points to a stamp, of any content.
 */
enum sysgenid_error sysgenid_probe_stamp(const struct sysgenid_probe *probe,
                                         struct sysgenid_stamp *stamp);

/**
 * Whether the machine was restored since a stamp was taken: three loads. Take a new stamp by
 * sysgenid_probe_stamp_for_rebuild() before acting on the answer. A value that must not leave a clone that it was
 * not made for is checked after use as well. If an argument is NULL it is true, which is never wrong.
 *
 * Condition: probe is open, since points to a stamp that was taken.
 */
bool sysgenid_probe_has_changed(const struct sysgenid_probe *probe,
                                const struct sysgenid_stamp *since);

/**
 * *now is the stamp under which to make new secrets, now that since is over. Keep it only together with the new
 * secret: if that cannot be made, stay with the old stamp, or the old secret passes for current. Usually this returns
 * at once; where the hypervisor's own word came first, by vmclock, it sleeps until the kernel has reseeded its
 * generator, for a second at most.
 *
 * Condition: probe is open, since points to a stamp that was taken, now points to a stamp, of any content.
 */
enum sysgenid_error sysgenid_probe_stamp_for_rebuild(const struct sysgenid_probe *probe,
                                                     const struct sysgenid_stamp *since,
                                                     struct sysgenid_stamp *now);

/**
 * The current generation, a load; 0 if probe is NULL.
 *
 * Condition: probe is open.
 */
uint32_t sysgenid_probe_generation(const struct sysgenid_probe *probe);

/**
 * Whether the page that the probe looks at will show the next change: false while nothing serves the node, and if probe
 * is NULL. The looks find the node by themselves when it is served again, which is a change.
 *
 * Condition: probe is open.
 */
bool sysgenid_probe_is_live(const struct sysgenid_probe *probe);

/**
 * Whether the probe can change at all: false if probe is NULL. It says nothing of whether there is a node now;
 * sysgenid_probe_is_live() does.
 *
 * Condition: probe is open.
 */
bool sysgenid_probe_can_change(const struct sysgenid_probe *probe);

/**
 * The generation at the moment of a stamp; 0 if it is NULL.
 *
 * Condition: stamp points to a stamp that was taken.
 */
uint32_t sysgenid_stamp_generation(const struct sysgenid_stamp *stamp);

/**
 * Opens the node at a path, or that of this machine if it is NULL. Others wait for a watcher that is tracked, until
 * it has acknowledged; that takes permission to write to the node. One that is not tracked only wants to know.
 * Changes before this call are over. If it fails, *watcher is NULL.
 *
 * Condition: path is NULL or a string, watcher points to a pointer.
 */
enum sysgenid_error sysgenid_watcher_open(const char *path,
                                          bool tracked,
                                          struct sysgenid_watcher **watcher);

/**
 * Ends a watcher: nobody waits for it any more. NULL does nothing.
 *
 * Condition: watcher is NULL or comes from sysgenid_watcher_open(), and no thread uses it now or again.
 */
void sysgenid_watcher_close(struct sysgenid_watcher *watcher);

/**
 * A descriptor for poll() and epoll, which is readable while there is a change that was not acknowledged. When it is,
 * call sysgenid_watcher_try_changed(). It belongs to the watcher: do not close or read it. -1 if watcher is NULL.
 *
 * Condition: watcher is open.
 */
int sysgenid_watcher_fd(const struct sysgenid_watcher *watcher);

/**
 * The current generation.
 *
 * Condition: watcher is open, generation points to a number.
 */
enum sysgenid_error sysgenid_watcher_generation(const struct sysgenid_watcher *watcher, uint32_t *generation);

/**
 * Sleeps until there is a change that was not acknowledged; at once while there is one. *generation is the latest:
 * rebuild for it, then call sysgenid_watcher_acknowledge(). After so many milliseconds it is
 * SYSGENID_ERROR_TIMED_OUT; a negative time-out is for ever. A signal does not end it: to be interruptible, wait for
 * a while at a time, or poll the descriptor together with another one.
 *
 * Condition: watcher is open, generation points to a number.
 */
enum sysgenid_error sysgenid_watcher_wait(const struct sysgenid_watcher *watcher,
                                          int timeout_ms,
                                          uint32_t *generation);

/**
 * The same without sleeping: *generation is 0 if there is no change, for the generation is never 0 after one. It is the
 * same at each call until it is acknowledged.
 *
 * Condition: watcher is open, generation points to a number.
 */
enum sysgenid_error sysgenid_watcher_try_changed(const struct sysgenid_watcher *watcher,
                                                 uint32_t *generation);

/**
 * Says that everything was rebuilt for this generation, which is what the watcher was told last. If the machine was
 * restored once more meanwhile, nothing is acknowledged, and *newer is the generation to rebuild for and to
 * acknowledge next; else it is 0.
 *
 * Condition: watcher is open, newer points to a number.
 */
enum sysgenid_error sysgenid_watcher_acknowledge(const struct sysgenid_watcher *watcher,
                                                 uint32_t generation,
                                                 uint32_t *newer);

/**
 * Opens the node again after SYSGENID_ERROR_GONE, at the same path, as soon as it is back, for so many milliseconds
 * at most; a negative time-out is for ever. Whatever happened meanwhile, nobody can know it: rebuild for
 * *generation, which may be 0, and acknowledge. The descriptor is another one, so register it anew; the old one is
 * closed, once no other thread sleeps on it. Each thread that was told SYSGENID_ERROR_GONE calls this and rebuilds
 * what it keeps: the first opens the node, and the others find it open and leave it and its descriptor as they are,
 * as does a call whose node has not gone. To register the descriptor is up to one of them. Other calls go on
 * meanwhile. A child after fork() opens a watcher of its own instead.
 *
 * Condition: watcher is open, generation points to a number.
 */
enum sysgenid_error sysgenid_watcher_reconnect(const struct sysgenid_watcher *watcher,
                                               int timeout_ms,
                                               uint32_t *generation);

/**
 * Changes the generation by one, or to minimum if that is more: a container whose snapshot was taken at generation g
 * is told apart after its restore by a minimum of g + 1. *generation is the new one, or a later one if somebody else
 * changed it since. It takes CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN.
 *
 * Condition: path is NULL, for the node of this machine, or a string; generation points to a number.
 */
enum sysgenid_error sysgenid_bump(const char *path,
                                  uint32_t minimum,
                                  uint32_t *generation);

/**
 * Waits until all tracked watchers have acknowledged, for so many milliseconds at most; a negative time-out is for
 * ever. When the time is over it is SYSGENID_ERROR_TIMED_OUT, and *outdated is how many have not; else it is 0.
 *
 * Condition: path is NULL, for the node of this machine, or a string; outdated points to a number.
 */
enum sysgenid_error sysgenid_settle(const char *path,
                                    int timeout_ms,
                                    uint32_t *outdated);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* SYSGENID_H */
