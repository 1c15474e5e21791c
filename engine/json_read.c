#include "json_read.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

json_t *tn_json_parse(tn_json_reader *r, const char *text, size_t len)
{
    json_error_t e;
    json_t *j = json_loadb(text, len, JSON_REJECT_DUPLICATES, &e);
    if (!j)
        r->status = tn_fail(r->err, TN_EFORMAT, e.position, "%s: no JSON: %s (line %d, column %d)",
                            r->where, e.text, e.line, e.column);
    else if (!json_is_object(j))
        r->status = tn_fail(r->err, TN_EFORMAT, 0, "%s: the JSON is no object", r->where);
    if (!r->status) return j;
    json_decref(j);
    return NULL;
}

size_t tn_json_enter(tn_json_reader *r, const char *key, int index)
{
    const size_t n = strlen(r->path);
    if (index < 0)
        snprintf(r->path + n, sizeof r->path - n, "%s.", key);
    else
        snprintf(r->path + n, sizeof r->path - n, "%s[%d].", key, index);
    return n;
}

void tn_json_leave(tn_json_reader *r, size_t length)
{
    r->path[length] = 0;
}

void tn_json_fail(tn_json_reader *r, const char *key, const char *want)
{
    if (r->status) return;
    r->status = tn_fail(r->err, TN_EFORMAT, -1, "%s: key '%s%s' %s", r->where, r->path, key, want);
}

static const json_t *get(tn_json_reader *r, const json_t *obj, const char *key, json_type type,
                         const char *want)
{
    if (r->status) return NULL;
    const json_t *j = json_object_get(obj, key);
    if (j && json_typeof(j) == type) return j;
    tn_json_fail(r, key, j ? want : "is missing");
    return NULL;
}

const json_t *tn_json_object(tn_json_reader *r, const json_t *obj, const char *key)
{
    return get(r, obj, key, JSON_OBJECT, "must be an object");
}

const json_t *tn_json_array(tn_json_reader *r, const json_t *obj, const char *key)
{
    return get(r, obj, key, JSON_ARRAY, "must be an array");
}

const char *tn_json_string(tn_json_reader *r, const json_t *obj, const char *key)
{
    const json_t *j = get(r, obj, key, JSON_STRING, "must be a string");
    return j ? json_string_value(j) : "";
}

bool tn_json_bool(tn_json_reader *r, const json_t *obj, const char *key)
{
    if (r->status) return false;
    const json_t *j = json_object_get(obj, key);
    if (j && json_is_boolean(j)) return json_is_true(j);
    tn_json_fail(r, key, j ? "must be true or false" : "is missing");
    return false;
}

double tn_json_number(tn_json_reader *r, const json_t *obj, const char *key)
{
    if (r->status) return 0;
    const json_t *j = json_object_get(obj, key);
    if (j && json_is_number(j) && isfinite(json_number_value(j))) return json_number_value(j);
    tn_json_fail(r, key, j ? "must be a number" : "is missing");
    return 0;
}

int64_t tn_json_int(tn_json_reader *r, const json_t *obj, const char *key, int64_t lo, int64_t hi)
{
    char want[100];
    const json_t *j = get(r, obj, key, JSON_INTEGER, "must be a whole number");
    if (!j) return 0;
    const int64_t v = json_integer_value(j);
    if (v >= lo && v <= hi) return v;
    snprintf(want, sizeof want, "is %lld, expected %lld to %lld", (long long)v, (long long)lo,
             (long long)hi);
    tn_json_fail(r, key, want);
    return 0;
}

void tn_json_only(tn_json_reader *r, const json_t *obj, const char *const *keys)
{
    const char *key;
    json_t *value;
    if (r->status) return;
    json_object_foreach((json_t *)(uintptr_t)obj, key, value)
    {
        bool known = false;
        for (size_t i = 0; keys[i] && !known; i++)
            known = strcmp(keys[i], key) == 0;
        if (!known) tn_json_fail(r, key, "is unknown");
    }
}
