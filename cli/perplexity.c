/* tenon perplexity: how well a model predicts a text, and how far it is from its exact weights.
 *
 * As the field computes it: the text is cut into chunks of n_ctx tokens, each evaluated from an
 * empty context with its first token replaced by bos where the vocabulary wants one; tokens of the
 * second half are predicted, n_ctx/2 - 1 a chunk. The mean negative log-likelihood m over all
 * predictions gives exp(m), its standard error sqrt((mean of squares - m^2) / (n - 1)). */
#include "generate.h"
#include "prompt.h"
#include "session.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { default_chunk = 512, min_chunk = 8, slice = 32 };

/* Mean and its standard error of a stream of numbers. */
typedef struct average {
    double sum, squares;
    uint64_t n;
} average;

static void add(average *a, double x)
{
    a->sum += x;
    a->squares += x * x;
    a->n++;
}

static double mean(const average *a)
{
    return a->sum / (double)a->n;
}

static double deviation(const average *a)
{
    const double m = mean(a), variance = a->squares / (double)a->n - m * m;
    return a->n > 1 && variance > 0 ? sqrt(variance / (double)(a->n - 1)) : 0;
}

typedef struct measure {
    tn_session *s;
    tn_model *exact_model;
    tn_context *exact; /* NULL: no comparison */
    int32_t n_ctx, n_vocab, n_chunks;
    int32_t *ids;
    bool bos;
    average nll, exact_nll, difference, kl;
    const int32_t *chunk; /* tokens being evaluated */
    int32_t base;         /* position in the chunk of row 0 of the evaluation */
    float *rows;          /* (slice, n_vocab): the exact rows of the current slice */
} measure;

/* log of the sum of exp of a row. */
static double log_sum(const float *row, int32_t n)
{
    float top = row[0];
    for (int32_t i = 1; i < n; i++)
        top = row[i] > top ? row[i] : top;
    double sum = 0;
    for (int32_t i = 0; i < n; i++)
        sum += expf(row[i] - top);
    return top + log(sum);
}

/* Whether the row at this position of the chunk predicts a token that is scored. */
static bool scored(const measure *m, int32_t position)
{
    return position >= m->n_ctx / 2 && position < m->n_ctx - 1;
}

static void compare(measure *m, const float *row, const float *exact, int32_t token,
                    double log_total)
{
    const double exact_total = log_sum(exact, m->n_vocab);
    double kl = 0;
    for (int32_t i = 0; i < m->n_vocab; i++) {
        const double p = exact[i] - exact_total;
        kl += expf((float)p) * (p - (row[i] - log_total));
    }
    const double nll = log_total - row[token], exact_nll = exact_total - exact[token];
    add(&m->kl, kl);
    add(&m->exact_nll, exact_nll);
    add(&m->difference, nll - exact_nll);
}

static bool score_rows(void *user, int32_t first, int32_t n_rows, const float *rows)
{
    measure *m = user;
    for (int32_t i = 0; i < n_rows; i++) {
        const int32_t position = m->base + first + i;
        if (!scored(m, position)) continue;
        const float *row = rows + (size_t)i * (size_t)m->n_vocab;
        const int32_t token = m->chunk[position + 1];
        const double log_total = log_sum(row, m->n_vocab);
        add(&m->nll, log_total - row[token]);
        if (m->exact)
            compare(m, row, m->rows + (size_t)(first + i) * (size_t)m->n_vocab, token, log_total);
    }
    return true;
}

static bool keep_rows(void *user, int32_t first, int32_t n_rows, const float *rows)
{
    measure *m = user;
    const size_t row = (size_t)m->n_vocab;
    memcpy(m->rows + (size_t)first * row, rows, (size_t)n_rows * row * sizeof *rows);
    return true;
}

/* Both models in step, a slice at a time, so that few rows are in memory at once. */
static tn_status compare_chunk(measure *m, const int32_t *ids, tn_error *err)
{
    const int32_t half = m->n_ctx / 2;
    tn_status status = tn_context_eval(m->exact, ids, half, err);
    if (!status) status = tn_context_eval(m->s->ctx, ids, half, err);
    for (m->base = half; !status && m->base < m->n_ctx; m->base += slice) {
        const int32_t left = m->n_ctx - m->base, n = left < slice ? left : slice;
        status = tn_context_eval_all(m->exact, ids + m->base, n, 0, keep_rows, m, err);
        if (!status)
            status = tn_context_eval_all(m->s->ctx, ids + m->base, n, 0, score_rows, m, err);
    }
    return status ? status : tn_context_rewind(m->exact, 0, err);
}

static tn_status score_chunk(measure *m, int32_t number, tn_error *err)
{
    int32_t *ids = m->ids + (size_t)number * (size_t)m->n_ctx;
    m->chunk = ids;
    const int32_t first_id = ids[0];
    if (m->bos) ids[0] = tn_token_bos(m->s->model);
    m->base = 0;
    tn_status status =
        m->exact ? compare_chunk(m, ids, err)
                 : tn_context_eval_all(m->s->ctx, ids, m->n_ctx, m->n_ctx / 2, score_rows, m, err);
    ids[0] = first_id;
    return status ? status : tn_context_rewind(m->s->ctx, 0, err);
}

static int score_text(measure *m, bool quiet, json_t *running)
{
    tn_progress bar = {.label = "perplexity"};
    for (int32_t i = 0; i < m->n_chunks; i++) {
        tn_error err = {0};
        tn_progress_draw(&bar, (uint64_t)i, (uint64_t)m->n_chunks);
        const tn_status status = score_chunk(m, i, &err);
        if (tn_out_is_terminal() || status || i + 1 == m->n_chunks) tn_progress_hide(&bar);
        if (status) return tn_session_fail(status, &err);
        const double so_far = exp(mean(&m->nll));
        json_array_append_new(running, json_real(so_far));
        if (!quiet) tn_outf("chunk %d/%d: %.4f\n", i + 1, m->n_chunks, so_far);
        if (!tn_out_flush()) return TN_EXIT_IO;
    }
    if (isfinite(mean(&m->nll))) return TN_EXIT_OK;
    tn_say("the model's logits are not finite: no perplexity");
    return TN_EXIT_INTERNAL;
}

static void print_text(const measure *m)
{
    const double ppl = exp(mean(&m->nll));
    if (m->exact) {
        const double exact = exp(mean(&m->exact_nll));
        tn_outf("perplexity of the exact weights: %.4f +/- %.5f\n", exact,
                exact * deviation(&m->exact_nll));
        tn_outf("log of the ratio: %.6f +/- %.6f\n", mean(&m->difference),
                deviation(&m->difference));
        tn_outf("KL divergence to the exact weights: %.6f +/- %.6f\n", mean(&m->kl),
                deviation(&m->kl));
    }
    tn_outf("perplexity: %.4f +/- %.5f%s\n", ppl, ppl * deviation(&m->nll),
            tn_is_emulated(m->s->engine) ? " (emulated device)" : "");
}

/* Takes `running`. */
static void print_json(const measure *m, json_t *running)
{
    const double ppl = exp(mean(&m->nll)), exact = m->exact ? exp(mean(&m->exact_nll)) : 0;
    json_t *j = json_pack("{s:f, s:f, s:i, s:I, s:O, s:b}", "perplexity", ppl, "stderr",
                          ppl * deviation(&m->nll), "ctx", (int)m->n_ctx, "predictions",
                          (json_int_t)m->nll.n, "running", running, "emulated",
                          (int)tn_is_emulated(m->s->engine));
    if (m->exact)
        json_object_update_new(j, json_pack("{s:f, s:f, s:f, s:f, s:f, s:f}", "exact_perplexity",
                                            exact, "exact_stderr", exact * deviation(&m->exact_nll),
                                            "log_ratio", mean(&m->difference), "log_ratio_stderr",
                                            deviation(&m->difference), "kl", mean(&m->kl),
                                            "kl_stderr", deviation(&m->kl)));
    char *text = json_dumps(j, JSON_COMPACT);
    tn_outf("%s\n", text ? text : "");
    free(text);
    json_decref(j);
}

/* Tokenizes the text and counts its chunks. */
static int cut_text(measure *m, const tn_settings *set, const char *text, size_t len)
{
    size_t n, probe;
    int32_t first[8];
    const int code = tn_session_tokenize(m->s, text, len, TN_TOKENIZE_ADD_SPECIAL, &m->ids, &n);
    if (code) return code;
    m->bos = tn_tokenize(m->s->model, "a", 1, TN_TOKENIZE_ADD_SPECIAL, first, 8, &probe, NULL,
                         NULL) == TN_OK &&
             probe > 0 && first[0] == tn_token_bos(m->s->model);
    if (n / (size_t)m->n_ctx > INT32_MAX) n = (size_t)INT32_MAX * (size_t)m->n_ctx;
    m->n_chunks = (int32_t)(n / (size_t)m->n_ctx);
    if (m->n_chunks > 0) return TN_EXIT_OK;
    tn_say("'%s' has %zu tokens, less than one chunk of %d: give a longer text or a smaller --ctx",
           set->file, n, m->n_ctx);
    return TN_EXIT_USAGE;
}

static int open_exact(measure *m, const tn_settings *set)
{
    tn_error err = {0};
    const int code = tn_session_model(m->s, set, &m->exact_model, false, true);
    if (code) return code;
    const tn_context_options opt = {
        .struct_size = sizeof opt, .n_ctx = m->n_ctx, .kv = TN_KV_F32, .cancel = tn_signal_cancel};
    const tn_status status = tn_context_new(&m->exact, m->exact_model, &opt, &err);
    if (status) return tn_session_fail(status, &err);
    m->rows = tn_malloc((size_t)slice * (size_t)m->n_vocab * sizeof *m->rows);
    return TN_EXIT_OK;
}

static int measure_text(tn_session *s, const tn_settings *set, const char *text, size_t len)
{
    measure m = {.s = s, .n_vocab = s->info.n_vocab};
    m.n_ctx = set->ctx > 0 ? set->ctx : default_chunk;
    json_t *running = json_array();
    const tn_kv_type kv = tn_settings_kv(set, set->exact ? TN_KV_F32 : TN_KV_F16);
    int code = cut_text(&m, set, text, len);
    if (!code) code = tn_session_context(s, set, m.n_ctx, kv);
    if (!code && set->kl) code = open_exact(&m, set);
    if (!code) code = score_text(&m, set->json, running);
    if (!code && set->json) print_json(&m, running);
    if (!code && !set->json) print_text(&m);
    json_decref(running);
    tn_context_free(m.exact);
    tn_model_close(m.exact_model);
    free(m.rows);
    free(m.ids);
    return code;
}

int tn_cmd_perplexity(const tn_settings *set)
{
    if (!set->file) {
        tn_say("option --file is missing: name the text, as in --file text.txt");
        return TN_EXIT_USAGE;
    }
    if (set->ctx > 0 && set->ctx < min_chunk) {
        tn_say("option --ctx: a chunk has at least %d tokens", min_chunk);
        return TN_EXIT_USAGE;
    }
    tn_session s = {0};
    char *text = NULL;
    size_t len = 0;
    /* The field's tools drop one newline at the end of the text. */
    int code = tn_prompt_read(set, true, &text, &len);
    if (!code) code = tn_session_open(&s, set, false);
    if (!code) code = measure_text(&s, set, text, len);
    tn_session_close(&s);
    free(text);
    return code;
}
