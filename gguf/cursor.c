#include "cursor.h"

void tn_cursor_init(tn_cursor *c, const void *data, size_t size)
{
    *c = (tn_cursor){.data = data, .size = size};
}

size_t tn_cursor_left(const tn_cursor *c)
{
    return c->failed ? 0 : c->size - c->pos;
}

const uint8_t *tn_cursor_take(tn_cursor *c, uint64_t n)
{
    if (c->failed) return NULL;
    if (n > c->size - c->pos) {
        c->failed = true;
        c->error_pos = c->pos;
        c->error_need = n;
        return NULL;
    }
    const uint8_t *p = c->data + c->pos;
    c->pos += (size_t)n;
    return p;
}

uint8_t tn_cursor_u8(tn_cursor *c)
{
    const uint8_t *p = tn_cursor_take(c, 1);
    return p ? *p : 0;
}

uint32_t tn_cursor_u32(tn_cursor *c)
{
    const uint8_t *p = tn_cursor_take(c, 4);
    return p ? tn_load_u32(p) : 0;
}

uint64_t tn_cursor_u64(tn_cursor *c)
{
    const uint8_t *p = tn_cursor_take(c, 8);
    return p ? tn_load_u64(p) : 0;
}

bool tn_cursor_skip_strings(tn_cursor *c, uint64_t n)
{
    for (uint64_t i = 0; i < n && !c->failed; i++) tn_cursor_take(c, tn_cursor_u64(c));
    return !c->failed;
}

uint16_t tn_load_u16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

uint32_t tn_load_u32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

uint64_t tn_load_u64(const uint8_t *p)
{
    return (uint64_t)tn_load_u32(p) | (uint64_t)tn_load_u32(p + 4) << 32;
}

bool tn_add_u64(uint64_t a, uint64_t b, uint64_t *out)
{
    uint64_t r;
    if (__builtin_add_overflow(a, b, &r)) return false;
    *out = r;
    return true;
}

bool tn_mul_u64(uint64_t a, uint64_t b, uint64_t *out)
{
    uint64_t r;
    if (__builtin_mul_overflow(a, b, &r)) return false;
    *out = r;
    return true;
}

bool tn_align_u64(uint64_t a, uint64_t align, uint64_t *out)
{
    uint64_t r;
    if (!tn_add_u64(a, align - 1, &r)) return false;
    *out = r & ~(align - 1);
    return true;
}
