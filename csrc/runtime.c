/* SPDX-License-Identifier: Apache-2.0 */
/* The little that a freestanding program owes its compiler: an entry and four memory functions. */
#include "sys.h"

_Noreturn void program_main(const uintptr_t *stack);

#if defined(__x86_64__)
__asm__(".globl _start\n_start:\n xor %ebp, %ebp\n mov %rsp, %rdi\n and $-16, %rsp\n call "
        "program_main\n");
#else
__asm__(".globl _start\n_start:\n mov x29, #0\n mov x30, #0\n mov x0, sp\n b program_main\n");
#endif
__asm__(".section .note.GNU-stack,\"\",%progbits\n.text\n");

void *memcpy(void *to, const void *from, size_t size)
{
#if defined(__x86_64__)
    void *at = to;
    __asm__ volatile("rep movsb" : "+D"(at), "+S"(from), "+c"(size) : : "memory");
#else
    uint8_t *at = to;
    const uint8_t *source = from;
    while (size--)
        *at++ = *source++;
#endif
    return to;
}

void *memmove(void *to, const void *from, size_t size)
{
    uint8_t *at = to;
    const uint8_t *source = from;
    if (at <= source)
        return memcpy(to, from, size);
    while (size--)
        at[size] = source[size];
    return to;
}

void *memset(void *to, int byte, size_t size)
{
#if defined(__x86_64__)
    void *at = to;
    __asm__ volatile("rep stosb" : "+D"(at), "+c"(size) : "a"(byte) : "memory");
#else
    uint8_t *at = to;
    while (size--)
        *at++ = (uint8_t)byte;
#endif
    return to;
}

int memcmp(const void *a, const void *b, size_t size)
{
    const uint8_t *left = a, *right = b;
    for (size_t i = 0; i < size; i++)
        if (left[i] != right[i])
            return left[i] - right[i];
    return 0;
}
