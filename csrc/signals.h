/* SPDX-License-Identifier: Apache-2.0 */
/* Signals of the whole process into a pipe: read by build_ffi.py like launcher.h. */
#ifndef CONTAINER_SIGNALS_H
#define CONTAINER_SIGNALS_H

/* From now on a signal is a byte in the pipe; fd is its end, the same one for all. A positive
 * errno, or 0. */
int catch_signal(int number, int fd);

/* As it was before, unless somebody else has changed it since. */
int release_signal(int number);
#endif
