/* Rotary position embeddings: frequencies from the file's keys, and tables per position. */
#include "model.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { scaling_none, scaling_linear, scaling_yarn };

typedef struct rope_keys {
    int scaling;
    float base, factor, attn_factor, beta_fast, beta_slow, ext_factor;
    uint32_t n_ctx_orig;
} rope_keys;

static tn_status read_scaling(tn_load *l, rope_keys *k)
{
    const tn_model *m = l->m;
    char key[128];
    tn_str type = {NULL, 0};
    snprintf(key, sizeof key, "%s.rope.scaling.type", m->arch->name);
    tn_status s = tn_gguf_get_str(m->gguf, key, &type, l->err);
    if (s) return s;
    static const struct {
        const char *name;
        int scaling;
    } known[] = {{"none", scaling_none}, {"linear", scaling_linear}, {"yarn", scaling_yarn}};
    /* Without a type a factor means linear, as files made before the key existed have it. */
    k->scaling = scaling_linear;
    if (!type.data) return TN_OK;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strlen(known[i].name) == type.len && memcmp(known[i].name, type.data, type.len) == 0) {
            k->scaling = known[i].scaling;
            return TN_OK;
        }
    return tn_fail(l->err, TN_EUNSUPPORTED, tn_gguf_find(m->gguf, key)->offset,
                   "%s: key '%s': rope scaling '%.*s' is not supported", m->name, key,
                   (int)(type.len < 40 ? type.len : 40), type.data);
}

static bool usable(float x, float lo, float hi)
{
    return x >= lo && x <= hi;
}

/* A key that, where present, holds a value within [lo, hi], or `unset`, which changes nothing. */
static tn_status read_float(tn_load *l, const char *suffix, float lo, float hi, float unset,
                            float *out)
{
    const tn_model *m = l->m;
    float value = *out;
    tn_status s = tn_model_key_f32(m, suffix, &value, l->err);
    if (s || value == unset) return s;
    if (!usable(value, lo, hi))
        return tn_fail(l->err, TN_EFORMAT, tn_model_key_offset(m, suffix),
                       "%s: key '%s.%s' is %g, expected %g to %g", m->name, m->arch->name, suffix,
                       (double)value, (double)lo, (double)hi);
    *out = value;
    return TN_OK;
}

static tn_status read_keys(tn_load *l, rope_keys *k)
{
    const tn_model *m = l->m;
    const float none = INFINITY;
    *k = (rope_keys){.base = 10000.0f,
                     .factor = 1.0f,
                     .attn_factor = 1.0f,
                     .beta_fast = 32.0f,
                     .beta_slow = 1.0f,
                     .ext_factor = 1.0f,
                     .n_ctx_orig = (uint32_t)m->hp.n_ctx_train};
    tn_status s = read_scaling(l, k);
    if (!s) s = read_float(l, "rope.freq_base", 1.0f, 1e12f, none, &k->base);
    if (!s) s = read_float(l, "rope.scale_linear", 1e-3f, 1e6f, 0.0f, &k->factor);
    if (!s) s = read_float(l, "rope.scaling.factor", 1e-3f, 1e6f, 0.0f, &k->factor);
    if (!s) s = read_float(l, "rope.scaling.attn_factor", 1e-3f, 1e3f, none, &k->attn_factor);
    if (!s) s = read_float(l, "rope.scaling.yarn_beta_fast", 1e-3f, 1e6f, none, &k->beta_fast);
    if (!s) s = read_float(l, "rope.scaling.yarn_beta_slow", 1e-3f, 1e6f, none, &k->beta_slow);
    if (!s) s = read_float(l, "rope.scaling.yarn_ext_factor", 0.0f, 1.0f, -1.0f, &k->ext_factor);
    if (!s) s = tn_model_key_u32(m, "rope.scaling.original_context_length", &k->n_ctx_orig, l->err);
    if (s || k->n_ctx_orig) return s;
    return tn_fail(
        l->err, TN_EFORMAT, tn_model_key_offset(m, "rope.scaling.original_context_length"),
        "%s: key '%s.rope.scaling.original_context_length' is 0", m->name, m->arch->name);
}

/* Dimension index whose wavelength makes n_turns turns over the original context (YaRN, eq. 17-23
 * of Peng et al. 2023; ends rounded outwards as in the reference implementation). */
static double correction_dim(const rope_keys *k, int32_t n_rot, double n_turns)
{
    return n_rot * log(k->n_ctx_orig / (n_turns * 2.0 * M_PI)) / (2.0 * log((double)k->base));
}

static void fill_yarn(tn_rope *r, const rope_keys *k, int32_t n_rot)
{
    double low = fmax(0.0, floor(correction_dim(k, n_rot, k->beta_fast)));
    double high = fmin(n_rot - 1.0, ceil(correction_dim(k, n_rot, k->beta_slow)));
    for (int32_t i = 0; i < n_rot / 2; i++) {
        double ramp = (i - low) / fmax(0.001, high - low);
        double extrapolate = (1.0 - fmin(1.0, fmax(0.0, ramp))) * k->ext_factor;
        r->inv_freq[i] *= (float)((1.0 - extrapolate) / k->factor + extrapolate);
    }
    if (k->factor > 1.0f) r->magnitude *= (float)(1.0 + 0.1 * log((double)k->factor));
}

static tn_status fill(tn_load *l, tn_rope *r, float base, int32_t n_rot)
{
    r->inv_freq = tn_load_alloc(l, (size_t)(n_rot / 2 + 1) * sizeof(float));
    if (!r->inv_freq) return tn_fail_nomem(l->err, (size_t)n_rot * 2, "rope frequencies");
    for (int32_t i = 0; i < n_rot / 2; i++) r->inv_freq[i] = (float)pow(base, -2.0 * i / n_rot);
    r->magnitude = 1.0f;
    return TN_OK;
}

tn_status tn_rope_init(tn_load *l, const float *freq_factors)
{
    tn_model *m = l->m;
    const int32_t n_rot = m->hp.n_rot;
    rope_keys k;
    tn_status s = read_keys(l, &k);
    if (!s) s = fill(l, &m->rope[0], k.base, n_rot);
    if (s) return s;
    for (int32_t i = 0; freq_factors && i < n_rot / 2; i++) {
        if (!usable(freq_factors[i], 1e-6f, 1e9f))
            return tn_fail(l->err, TN_EFORMAT,
                           tn_gguf_find_tensor(m->gguf, "rope_freqs.weight")->header_offset,
                           "%s: tensor 'rope_freqs.weight' holds %g at %d", m->name,
                           (double)freq_factors[i], i);
        m->rope[0].inv_freq[i] /= freq_factors[i];
    }
    m->rope[0].magnitude = k.attn_factor; /* whatever the scaling, as where such files are made */
    if (k.scaling == scaling_linear)
        for (int32_t i = 0; i < n_rot / 2; i++) m->rope[0].inv_freq[i] /= k.factor;
    if (k.scaling == scaling_yarn) fill_yarn(&m->rope[0], &k, n_rot);
    if (!m->arch->swa_period) return TN_OK;

    /* Local layers never see far positions: their base is their own, and unscaled. */
    float base = m->arch->rope_base_swa;
    s = read_float(l, "rope.freq_base_swa", 1.0f, 1e12f, INFINITY, &base);
    return s ? s : fill(l, &m->rope[1], base, n_rot);
}

void tn_rope_table(const tn_rope *r, int32_t n_rot, int64_t pos0, int64_t n, float *cs)
{
    for (int64_t t = 0; t < n; t++)
        for (int32_t i = 0; i < n_rot / 2; i++) {
            float angle = (float)(pos0 + t) * r->inv_freq[i];
            *cs++ = cosf(angle) * r->magnitude;
            *cs++ = sinf(angle) * r->magnitude;
        }
}
