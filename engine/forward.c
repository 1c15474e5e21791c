/* The transformer, in the order of the papers. What differs between architectures is in the layers
 * (a norm or bias that is absent is NULL there) and in the table of arch.c. */
#include "exec.h"

tn_status tn_forward(tn_exec *x, const tn_model *m, const tn_batch *b)
{
    tn_status s = TN_OK;
    tn_exec_begin(x, b);
    tn_exec_embed(x);
    for (int32_t l = 0; l < m->hp.n_layers && !s; l++) {
        tn_exec_qkv(x, l);
        /* Nothing after the last layer looks at rows whose output nobody wants. */
        if (l == m->hp.n_layers - 1) tn_exec_keep_last(x, b->n_out);
        tn_exec_attend(x, l);
        tn_exec_attn_out(x, l);
        if (m->hp.n_expert) {
            tn_exec_route(x, l);
            tn_exec_experts_in(x, l);
            tn_exec_experts_out(x, l);
        } else {
            tn_exec_ffn_in(x, l);
            tn_exec_ffn_out(x, l);
        }
        s = tn_exec_layer_done(x, l);
    }
    return s;
}
