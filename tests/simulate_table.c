/* Prints the README's table of simulated speeds, as Markdown: decode tok/s with 0.25k, 2k, 8k and
 * 32k tokens live, of models in Q4_K_M with room for a context of 32,768 tokens. */
#include "../engine/simulate.h"
#include "../engine/synthetic.h"

#include <stdio.h>
#include <string.h>

enum { n_depths = 4, n_tokens = 32 };
static const int64_t depths[n_depths] = {256, 2048, 8192, 32768 - n_tokens};
static const tn_allocator *const heap = &tn_default_allocator;

static tn_status read_shape(tn_shape *s, const char *name)
{
    void *header;
    size_t size;
    tn_gguf *g = NULL;
    tn_error err = {0};
    const tn_gguf_options opt = {sizeof opt, true, NULL};
    tn_status status = tn_synthetic_header(&header, &size, name, "q4_k_m", heap, &err);
    if (!status) status = tn_gguf_parse(&g, header, size, name, &opt, &err);
    if (!status) status = tn_shape_read(s, g, name, 0, heap, &err);
    if (status) fprintf(stderr, "%s: %s\n", name, err.msg);
    tn_gguf_close(g);
    tn_free(heap, header);
    return status;
}

static void speeds(const tn_plan *plan, const tn_cost *k, double tok_s[n_depths])
{
    for (int i = 0; i < n_depths; i++) {
        tn_simulated sim;
        tok_s[i] = 0;
        if (plan->feasible &&
            tn_simulate_decode(&sim, plan, k, depths[i], n_tokens, 1, heap, NULL) == TN_OK)
            tok_s[i] = n_tokens / sim.decode_s;
    }
}

static void print_speeds(const double tok_s[n_depths])
{
    if (!(tok_s[0] > 0)) {
        printf(" does not fit |");
        return;
    }
    for (int i = 0; i < n_depths; i++)
        printf("%s%.*f", i ? " / " : " ", tok_s[i] < 10 ? 2 : tok_s[i] < 100 ? 1 : 0, tok_s[i]);
    printf(" |");
}

/* The candidate of some strategies whose request is quickest. */
static void best_of(const tn_shape *s, const tn_profile *p, const tn_constraints *c,
                    const tn_cost *k, tn_strategy from, tn_strategy to, double tok_s[n_depths])
{
    double least = 1e300;
    memset(tok_s, 0, n_depths * sizeof *tok_s);
    for (int i = (int)from; i <= (int)to; i++) {
        tn_plan plan;
        if (tn_plan_candidate(&plan, s, p, c, (tn_strategy)i, heap, NULL)) return;
        if (plan.feasible && plan.predicted.request_s < least) {
            least = plan.predicted.request_s;
            speeds(&plan, k, tok_s);
        }
        tn_plan_free(&plan, heap);
    }
}

static void row(const char *model, const tn_shape *s, const char *machine)
{
    tn_profile p;
    tn_planned out;
    tn_cost k;
    double layers[n_depths], hand[n_depths], ours[n_depths];
    const tn_constraints c = {.n_ctx = 32768};
    if (!tn_profile_shipped(&p, machine)) return;
    if (tn_plan_make(&out, s, &p, &c, heap, NULL)) return;
    tn_cost_init(&k, s, &p, &out.c, NULL);
    best_of(s, &p, &c, &k, TN_PLAN_LAYERS, TN_PLAN_LAYERS, layers);
    best_of(s, &p, &c, &k, TN_PLAN_FFN_HOST, TN_PLAN_FFN_BLOCKS, hand);
    speeds(&out.plan, &k, ours);
    if (ours[0] > 0) {
        printf("| %s | %s |", model, machine);
        print_speeds(layers);
        print_speeds(hand);
        print_speeds(ours);
        printf("\n");
    }
    tn_planned_free(&out);
}

int main(void)
{
    static const char *const models[][2] = {{"8B", "llama-8b"},
                                            {"70B", "llama-70b"},
                                            {"405B", "llama-405b"},
                                            {"30B-A3B", "qwen3-30b-a3b"}};
    printf("| model | machine | whole layers | tensors by hand | tenon |\n|---|---|---|---|---|\n");
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        tn_shape s;
        if (read_shape(&s, models[i][1])) return 1;
        for (size_t j = 0; tn_profile_shipped_name(j); j++)
            row(models[i][0], &s, tn_profile_shipped_name(j));
        tn_shape_free(&s);
    }
    return fflush(stdout) || ferror(stdout);
}
