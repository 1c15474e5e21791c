/* Names of keys and tensors: validity, display, and the hash index over them. */
#include "internal.h"

#include "cursor.h"

#include <stdio.h>
#include <string.h>
#include <sys/random.h>

/* Length of the UTF-8 sequence at s, or 0 if it is broken (Unicode 15, table 3-7). */
static size_t utf8_length(const uint8_t *s, size_t left)
{
    uint8_t b = s[0];
    if (b < 0x80) return 1;
    if (b < 0xC2 || b > 0xF4) return 0;
    size_t n = b < 0xE0 ? 2 : b < 0xF0 ? 3 : 4;
    if (left < n) return 0;
    uint8_t lo = b == 0xE0 ? 0xA0 : b == 0xF0 ? 0x90 : 0x80;
    uint8_t hi = b == 0xED ? 0x9F : b == 0xF4 ? 0x8F : 0xBF;
    if (s[1] < lo || s[1] > hi) return 0;
    for (size_t i = 2; i < n; i++)
        if ((s[i] & 0xC0) != 0x80) return 0;
    return n;
}

bool tn_gguf_name_valid(tn_str s)
{
    const uint8_t *p = (const uint8_t *)s.data;
    for (size_t i = 0; i < s.len;) {
        size_t n = utf8_length(p + i, s.len - i);
        if (n == 0 || p[i] == 0) return false;
        i += n;
    }
    return true;
}

tn_gguf_quoted tn_gguf_quote(tn_str s)
{
    enum { room = 100 };
    tn_gguf_quoted q;
    const uint8_t *p = (const uint8_t *)s.data;
    size_t out = 0, i = 0;
    while (i < s.len && out < room) {
        size_t n = utf8_length(p + i, s.len - i);
        bool control = p[i] < 0x20 || p[i] == 0x7F || (p[i] == 0xC2 && n == 2 && p[i + 1] < 0xA0);
        if (n == 0 || control) {
            out += (size_t)snprintf(q.text + out, 5, "\\x%02X", p[i]);
            i++;
        } else {
            memcpy(q.text + out, p + i, n);
            out += n;
            i += n;
        }
    }
    snprintf(q.text + out, sizeof q.text - out, "%s", i < s.len ? "..." : "");
    return q;
}

void tn_gguf_draw_hash_key(tn_gguf *g)
{
    if (getrandom(g->hash_key, sizeof g->hash_key, GRND_NONBLOCK) == (ssize_t)sizeof g->hash_key)
        return;
    /* Early boot: the address is at least not known to the author of the file. */
    g->hash_key[0] = (uint64_t)(uintptr_t)g;
    g->hash_key[1] = (uint64_t)(uintptr_t)&g;
}

static uint64_t rotl(uint64_t x, int b)
{
    return x << b | x >> (64 - b);
}

static void sip_round(uint64_t v[4])
{
    v[0] += v[1];
    v[2] += v[3];
    v[1] = rotl(v[1], 13) ^ v[0];
    v[3] = rotl(v[3], 16) ^ v[2];
    v[0] = rotl(v[0], 32) + v[3];
    v[2] += v[1];
    v[3] = rotl(v[3], 21) ^ v[0];
    v[1] = rotl(v[1], 17) ^ v[2];
    v[2] = rotl(v[2], 32);
}

/* SipHash-1-3 (Aumasson, Bernstein): without the key nobody finds collisions. */
static uint64_t sip_hash(const uint64_t key[2], tn_str s)
{
    uint64_t v[4] = {key[0] ^ 0x736f6d6570736575u, key[1] ^ 0x646f72616e646f6du,
                     key[0] ^ 0x6c7967656e657261u, key[1] ^ 0x7465646279746573u};
    const uint8_t *p = (const uint8_t *)s.data;
    size_t full = s.len & ~(size_t)7;
    for (size_t i = 0; i < full; i += 8) {
        uint64_t m = tn_load_u64(p + i);
        v[3] ^= m;
        sip_round(v);
        v[0] ^= m;
    }
    uint64_t last = (uint64_t)s.len << 56;
    for (size_t i = full; i < s.len; i++) last |= (uint64_t)p[i] << (8 * (i - full));
    v[3] ^= last;
    sip_round(v);
    v[0] ^= last;
    v[2] ^= 0xff;
    for (int i = 0; i < 3; i++) sip_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

static const tn_str *record_name(const tn_gguf_index *ix, size_t i)
{
    return (const tn_str *)((const char *)ix->base + i * ix->stride);
}

/* The slot that holds name, or the free slot where it belongs. */
static struct tn_gguf_slot *probe(const tn_gguf_index *ix, tn_str name, uint64_t hash)
{
    for (size_t i = (size_t)(hash >> 32) & ix->mask;; i = (i + 1) & ix->mask) {
        struct tn_gguf_slot *s = &ix->slots[i];
        if (s->at == 0) return s;
        if (s->hash != (uint32_t)hash) continue;
        const tn_str *other = record_name(ix, s->at - 1);
        if (other->len == name.len && memcmp(other->data, name.data, name.len) == 0) return s;
    }
}

tn_status tn_gguf_index_build(tn_gguf *g, tn_gguf_index *ix, const void *base, size_t count,
                              size_t stride, size_t *dup, tn_error *err)
{
    tn_free(g->alloc, ix->slots);
    *ix = (tn_gguf_index){.base = base, .stride = stride};
    if (count == 0) return TN_OK;
    size_t n_slots = 8;
    while (n_slots / 2 < count) n_slots *= 2;
    ix->slots = tn_alloc(g->alloc, n_slots, sizeof *ix->slots);
    if (!ix->slots) return tn_fail_nomem(err, n_slots * sizeof *ix->slots, "an index of names");
    ix->mask = n_slots - 1;
    for (size_t i = 0; i < count; i++) {
        tn_str name = *record_name(ix, i);
        uint64_t hash = sip_hash(g->hash_key, name);
        struct tn_gguf_slot *s = probe(ix, name, hash);
        if (s->at != 0) {
            *dup = i;
            return TN_EFORMAT;
        }
        *s = (struct tn_gguf_slot){(uint32_t)hash, (uint32_t)(i + 1)};
    }
    return TN_OK;
}

const void *tn_gguf_index_find(const tn_gguf *g, const tn_gguf_index *ix, tn_str name)
{
    if (!ix->slots) return NULL;
    const struct tn_gguf_slot *s = probe(ix, name, sip_hash(g->hash_key, name));
    return s->at ? record_name(ix, s->at - 1) : NULL;
}
