/* The golden models of tests/data/arch: tokens, and the logits of a reference implementation. */
#ifndef TN_TEST_GOLDEN_ARCH_H
#define TN_TEST_GOLDEN_ARCH_H

#include "golden.h"

typedef struct golden {
    char path[200];
    int32_t *tokens, n, n_vocab;
    float *logits; /* [n][n_vocab] */
    double tolerance;
} golden;

__attribute__((unused)) static void golden_free(golden *g)
{
    free(g->tokens);
    free(g->logits);
    memset(g, 0, sizeof *g);
}

__attribute__((unused)) static bool golden_load(golden *g, const char *name)
{
    char path[200];
    memset(g, 0, sizeof *g);
    snprintf(g->path, sizeof g->path, "tests/data/arch/%s/model-f16.gguf", name);
    snprintf(path, sizeof path, "tests/data/arch/%s/golden.json", name);
    json_t *j = json_load_file(path, 0, NULL);
    const json_t *s = json_array_get(json_object_get(j, "sequences"), 0);
    g->tokens = json_ids(json_object_get(s, "tokens"), &g->n);
    g->n_vocab = (int32_t)json_integer_value(json_array_get(json_object_get(s, "shape"), 1));
    g->tolerance =
        json_real_value(json_object_get(json_object_get(j, "tolerance"), "f32_activations"));
    json_decref(j);
    snprintf(path, sizeof path, "tests/data/arch/%s/logits.f32", name);
    if (g->n > 0 && g->n_vocab > 0 && g->tolerance > 0 && g->tolerance < 1e-3)
        g->logits = read_floats(path, (size_t)g->n * (size_t)g->n_vocab);
    if (g->logits) return true;
    FAIL("%s: the golden cannot be read", name);
    golden_free(g);
    return false;
}

#endif
