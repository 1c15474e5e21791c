/* Internal: strict reading of JSON: every failure names the file and the key. Included by
 * engine/json_*.c only. */
#ifndef TN_JSON_READ_H
#define TN_JSON_READ_H

#include "../gguf/mem.h"

#include <jansson.h>

/* Calls after a failure do nothing and return zero, "" or NULL. */
typedef struct tn_json_reader {
    const char *where; /* the file's name */
    tn_error *err;
    tn_status status;
    char path[200]; /* of the object that is being read: "devices[0]." */
} tn_json_reader;

/* Parses a whole text; NULL after a failure. The result is freed with json_decref. */
json_t *tn_json_parse(tn_json_reader *r, const char *text, size_t len);
/* Appends to the path ("host." or "devices[3]."); returns the length to give to tn_json_leave. */
size_t tn_json_enter(tn_json_reader *r, const char *key, int index);
void tn_json_leave(tn_json_reader *r, size_t length);
void tn_json_fail(tn_json_reader *r, const char *key, const char *want);

/* A value that must be there and of the kind. */
const json_t *tn_json_object(tn_json_reader *r, const json_t *obj, const char *key);
const json_t *tn_json_array(tn_json_reader *r, const json_t *obj, const char *key);
double tn_json_number(tn_json_reader *r, const json_t *obj, const char *key);
int64_t tn_json_int(tn_json_reader *r, const json_t *obj, const char *key, int64_t lo, int64_t hi);
bool tn_json_bool(tn_json_reader *r, const json_t *obj, const char *key);
const char *tn_json_string(tn_json_reader *r, const json_t *obj, const char *key);
/* Refuses keys that are not in the list (NULL-terminated). */
void tn_json_only(tn_json_reader *r, const json_t *obj, const char *const *keys);

#endif
