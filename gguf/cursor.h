/* Internal: a bounds-checked little-endian reader over bytes in memory. The first read that does
 * not fit makes it fail for good: that read and all later ones give zeros, and error_pos /
 * error_need keep where the first one started and how much it wanted. So a run of reads is checked
 * once, at its end. Owns nothing. */
#ifndef TN_CURSOR_H
#define TN_CURSOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct tn_cursor {
    const uint8_t *data;
    size_t size;
    size_t pos; /* <= size always */
    bool failed;
    size_t error_pos;    /* byte offset of the first read that failed */
    uint64_t error_need; /* bytes that read needed */
} tn_cursor;

/* data may be NULL only if size is 0. */
void tn_cursor_init(tn_cursor *c, const void *data, size_t size);
/* Bytes not yet read; 0 after a failure. */
size_t tn_cursor_left(const tn_cursor *c);
uint8_t tn_cursor_u8(tn_cursor *c);
uint32_t tn_cursor_u32(tn_cursor *c);
uint64_t tn_cursor_u64(tn_cursor *c);
/* The next n bytes, in place, and moves past them; NULL if there are fewer. */
const uint8_t *tn_cursor_take(tn_cursor *c, uint64_t n);
/* Moves past n strings (length prefix and bytes); false if they do not fit. */
bool tn_cursor_skip_strings(tn_cursor *c, uint64_t n);

/* Little-endian loads from unaligned memory. */
uint16_t tn_load_u16(const uint8_t *p);
uint32_t tn_load_u32(const uint8_t *p);
uint64_t tn_load_u64(const uint8_t *p);

/* Checked 64-bit arithmetic: false on overflow, *out untouched. */
bool tn_add_u64(uint64_t a, uint64_t b, uint64_t *out);
bool tn_mul_u64(uint64_t a, uint64_t b, uint64_t *out);
/* Smallest multiple of align (a power of two) that is >= a. */
bool tn_align_u64(uint64_t a, uint64_t align, uint64_t *out);

#endif
