/* SPDX-License-Identifier: Apache-2.0 */
#include "internal.h"

/* Large requests come in a memfd that nobody can change or cut under us. */
long map_request(struct request *request, int fd, size_t size)
{
    struct statx_record file;
    long seals = sys(__NR_fcntl, fd, F_GET_SEALS, 0);
    long memory;
    if (seals < 0 || (seals & SEALS_FIXED) != SEALS_FIXED || size > MAX_REQUEST)
        return -EINVAL;
    memory = sys(__NR_statx, fd, "", AT_EMPTY_PATH, STATX_BASIC, &file);
    if (memory < 0 || file.size < size)
        return -EINVAL;
    memory = sys(__NR_mmap, 0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    if (memory < 0 && memory > -4096)
        return memory;
    request->bytes = (uint8_t *)memory;
    request->start = (struct start *)memory;
    request->mapped = size;
    return 0;
}
