/* SPDX-License-Identifier: Apache-2.0 */
/* Runs harness.c on each record of a file: for machines without libFuzzer. A record is a 32-bit
 * length in the byte order of the machine, then that many bytes. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int replay(FILE *file)
{
    uint32_t size;
    unsigned long count = 0;
    while (fread(&size, sizeof size, 1, file) == 1) {
        uint8_t *data = malloc(size);
        if (data == NULL || fread(data, 1, size, file) != size)
            return 1;
        LLVMFuzzerTestOneInput(data, size);
        free(data);
        count++;
    }
    return printf("%lu\n", count) < 0;
}

int main(int argc, char **argv)
{
    FILE *file = argc == 2 ? fopen(argv[1], "rb") : NULL;
    if (file == NULL)
        return 2;
    return replay(file);
}
