/* Internal: the model. Shapes and hyper-parameters are validated in model.c and nowhere else. */
#ifndef TN_MODEL_H
#define TN_MODEL_H

#include "tenon.h"
#include "../gguf/gguf.h"
#include "../gguf/mem.h"

typedef struct tn_vocab tn_vocab;

/* For the files of one noun each (tokenizer, sample, template) that need no more of a model. */
const tn_vocab *tn_model_vocab(const tn_model *m);         /* NULL for a synthetic model */
const tn_gguf *tn_model_gguf(const tn_model *m);           /* NULL for a synthetic model */
const tn_allocator *tn_model_allocator(const tn_model *m); /* never NULL */
const tn_allocator *tn_engine_allocator(const tn_engine *e); /* never NULL */

#endif
