#include "json_text.h"

#include <string.h>

/* Text that grows while jansson writes it. jansson does not look at every result of the callback,
 * so a failure is kept. */
typedef struct text {
    const tn_allocator *a;
    char *data;
    size_t len, cap;
    bool failed;
} text;

static int append(const char *piece, size_t n, void *user)
{
    text *t = user;
    t->failed |= !tn_grow(t->a, (void **)&t->data, &t->cap, t->len, t->len + n + 1, 1);
    if (t->failed) return -1;
    memcpy(t->data + t->len, piece, n);
    t->len += n;
    t->data[t->len] = 0;
    return 0;
}

tn_status tn_json_text(json_t *doc, size_t flags, const tn_allocator *a, char **out, tn_error *err)
{
    text t = {a, NULL, 0, 0, false};
    const bool ok = doc && json_dump_callback(doc, append, &t, flags) == 0 && !t.failed;
    json_decref(doc);
    *out = ok ? t.data : NULL;
    if (ok) return TN_OK;
    tn_free(a, t.data);
    return tn_fail_nomem(err, t.len, "JSON text");
}
