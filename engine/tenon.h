/* tenon: run GGUF language models with weights placed tensor by tensor.
 *
 *     tn_engine *engine; tn_model *model; tn_context *ctx; tn_error err;
 *     tn_engine_new(&engine, NULL, &err);
 *     tn_model_open(&model, engine, "model.gguf", NULL, &err);
 *     tn_context_new(&ctx, model, NULL, &err);
 *     tn_context_eval(ctx, tokens, n_tokens, &err);
 *     const float *logits = tn_context_logits(ctx);      // [n_vocab], of the last token
 *
 * Rules that hold for every call:
 *   - The library never prints, exits, aborts, or reads the environment, and touches only files
 * that it is given by name.
 *   - A failing call returns a negative tn_status, fills err (which may be NULL), leaves *out NULL
 *     and everything else as it was.
 *   - Options structs start with struct_size: zero the struct, set struct_size = sizeof, set what
 *     you want; zero means default everywhere. NULL options are all defaults. A newer library
 *     reads no further than struct_size.
 *   - free and close accept NULL.
 *   - Strings are UTF-8. Strings handed out belong to the object they came from.
 * Threads: an engine and a model may be used from any thread at once; evaluations on one engine
 * take turns. A context, sampler or detokenizer belongs to one caller at a time; a second
 * concurrent call gets TN_EBUSY. */
#ifndef TENON_H
#define TENON_H

#include "../gguf/status.h"

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TN_VERSION_MAJOR 0
#define TN_VERSION_MINOR 1
#define TN_VERSION_PATCH 0

/* "0.1.0"; and the commit this library was built from, "" if unknown. */
TN_API const char *tn_version(void);
TN_API const char *tn_commit(void);

/* ---- callbacks ------------------------------------------------------------------------------- */

typedef enum tn_log_level { TN_LOG_DEBUG, TN_LOG_INFO, TN_LOG_WARN } tn_log_level;
/* One line without newline. May come from the thread of any call on the engine. */
typedef void (*tn_log_fn)(void *user, tn_log_level level, const char *line);
/* done of total units (bytes when loading, tokens when evaluating). */
typedef void (*tn_progress_fn)(void *user, uint64_t done, uint64_t total);
/* True = stop: the call returns TN_ECANCELED within about a layer's time. Must be quick; may be
 * called from worker threads and must not call back into the library. */
typedef bool (*tn_cancel_fn)(void *user);

/* ---- engine: threads and devices ------------------------------------------------------------- */

typedef struct tn_engine tn_engine;

enum { TN_ENGINE_DEVICES = 8 };

typedef struct tn_engine_options {
    size_t struct_size;
    int threads;             /* compute threads, the calling one included; 0 = physical cores, of
                                which contexts decode on fewer where they find that faster */
    const char *isa;         /* highest level to use: "scalar", "avx2", ...; NULL = best of this
                                CPU */
    tn_allocator allocator;  /* all zero = malloc */
    tn_log_fn log;           /* NULL = silent */
    void *log_user;
    const char *cache_dir; /* where measurements may be cached, and how often the experts of a model
                              were chosen (experts-HASH.json, added to as models close; HASH is that
                              of the file's header: a fine-tune has counters of its own where any
                              key, such as its name, is another one); NULL = nowhere */
    const char *device;      /* "cuda", "cuda:1" (its number), "cuda:0,1" (several), "emu"
                                (emulated, for tests), "emu:2" (two of them); NULL = none. Several
                                devices serve a model together, each a run of its layers. */
    size_t vram_limits[TN_ENGINE_DEVICES]; /* bytes of each device's memory to use at most; 0 =
                                              all */
    double throttle; /* makes the devices slow, so that a fast card shows what placement does on a
                        slower one: what waits for device memory (mat-vecs, decode attention) is
                        followed by further reads, until it takes as long as where so many bytes are
                        read a second; 0 = no. Results are the same to the bit; prompts and copies
                        keep their speed. Profiles are measured and kept apart, and figures are
                        labelled: tn_engine_label */
} tn_engine_options;

/* TN_EARG (unknown isa or device name, negative threads, throttle without a device or faster than
 * it is), TN_EUNSUPPORTED (a level this CPU lacks, a device this build lacks), TN_EDEVICE,
 * TN_ENOMEM. */
TN_API tn_status tn_engine_new(tn_engine **out, const tn_engine_options *opt, tn_error *err);
/* Every model of the engine must have been closed. */
TN_API void tn_engine_free(tn_engine *engine);
TN_API int tn_engine_threads(const tn_engine *engine);
/* Names of the ISA levels in use and of the devices: "avx2", "cuda" or "none". Never NULL. */
TN_API const char *tn_engine_isa(const tn_engine *engine);
TN_API const char *tn_engine_devices(const tn_engine *engine);
/* What speeds of this engine are to be called: "measured", "emulated", "throttled to 400 GB/s",
 * "emulated, throttled to 0.4 GB/s". Never NULL. */
TN_API const char *tn_engine_label(const tn_engine *engine);
/* The i-th ISA level that this CPU has, lowest first; NULL: there are fewer. Static. */
TN_API const char *tn_isa_level(int i);
/* OpenBLAS, which serves prompts of unquantised models, reads its environment when the first model
 * opens. A program that may set its own does so before: OPENBLAS_NUM_THREADS to 1, as the engine's
 * threads call it one by one, and OPENBLAS_CORETYPE to this name (releases older than the CPU
 * choose a core of long ago and lose a factor of 5). NULL: leave it to OpenBLAS. Static. */
TN_API const char *tn_openblas_core(void);
/* Describes machine, build and engine as one JSON object. Caller frees with tn_string_free. */
TN_API tn_status tn_env_json(const tn_engine *engine, char **out, tn_error *err);
TN_API void tn_string_free(const tn_engine *engine, char *s);
/* What this machine can do, as a profile for placement (JSON, see tn_hardware_json): read from
 * cache_dir where it was measured before with the same hardware, build and throttle, unless
 * `again`; otherwise measured with the engine's threads, in a second or two, and kept there. Every
 * figure tells where it is from. TN_ENOMEM, TN_EIO (the cache cannot be written; the name is given;
 * without `again` that is a line in the log). Freed with tn_string_free. */
TN_API tn_status tn_engine_calibrate(tn_engine *engine, bool again, char **json, tn_error *err);

/* The most that the first device reads of its own memory (throttled: what is left of it), bytes per
 * second: the best of several passes of a kernel that only reads, over 512 MiB (4 MiB where the
 * device is emulated) or a quarter of what is free. TN_EUNSUPPORTED without a device, TN_ENOMEM,
 * TN_EDEVICE. Takes its turn with evaluations. */
TN_API tn_status tn_engine_device_read(tn_engine *engine, double *bytes_per_second, tn_error *err);
/* The most multiplications and additions a second that the first device's cuBLAS reaches: the best
 * of several passes over products of two F16 matrices of random values with 8192 rows and columns
 * (256 where the device is emulated; fewer where little memory is free), sums in F32, which is how
 * prompts are multiplied with quantised weights. Otherwise as tn_engine_device_read. */
TN_API tn_status tn_engine_device_multiply(tn_engine *engine, double *flop_per_second,
                                           tn_error *err);

/* ---- model ----------------------------------------------------------------------------------- */

typedef struct tn_model tn_model;

typedef enum tn_load_mode {
    TN_LOAD_AUTO = 0, /* MAP where less memory is free than 1.2 x what the host is to hold of the
                         model (1.0 x under a plan, which has counted what else there is to hold),
                         else READ */
    TN_LOAD_READ,     /* read into our own memory, rearranged for speed */
    TN_LOAD_MAP,      /* use the file's pages; changing the file then kills the process (SIGBUS) */
    TN_LOAD_IMAGE,    /* READ the first time and keep the rearranged weights, as large as the model,
                         in a file of the engine's cache_dir; from then on map that file, which
                         starts at once. It is made anew when the model's file or the build is
                         another one. Not with a device or without cache_dir (a line in the log):
                         then READ */
    TN_LOAD_LATER     /* as AUTO; but where the page cache has the whole file, and there is no
                         device, the first batch is computed from the mapped file, which gives the
                         first token sooner, and weights are carried to memory before the second.
                         Until then changing the file kills the process (SIGBUS) */
} tn_load_mode;

typedef struct tn_model_options {
    size_t struct_size;
    tn_load_mode load;
    bool vocab_only; /* metadata and tokenizer only: needs no tensor, cannot make a context */
    bool exact;      /* dequantise all weights to float32 and keep float32 activations: slow
                        reference */
    tn_progress_fn progress;
    tn_cancel_fn cancel;
    void *user; /* of both callbacks */
    const char *const *place; /* [n_place] with a device: REGEX=host|device|split:SHARE[,...] on
                                 tensor names, the first that matches anywhere decides; what none
                                 matches goes to the device. A split FFN, set of experts or head is
                                 computed by both sides at once, SHARE of it by the device. */
    size_t n_place;
    int32_t granule;   /* neurons or rows that a split is a multiple of; 0 = 256 */
    const struct tn_placement *plan; /* with a device: carries out this plan, made for the same
                                        file; instead of place and granule. Must outlive the model.
                                        NULL = none. Where the plan is elastic, weights that the
                                        host has, too, come and go on the device as contexts shrink
                                        and grow: between evaluations, at fixed lengths, each move a
                                        line in the log. */
} tn_model_options;

/* Opens a GGUF file, or all parts of a split one. TN_ENOENT, TN_EIO, TN_EFORMAT (broken file, with
 * byte offset and key or tensor), TN_EUNSUPPORTED (architecture, type, tokenizer), TN_ENOMEM,
 * TN_ECANCELED, TN_EDEVICE (also: too little memory on the device). The engine must outlive the
 * model. */
TN_API tn_status tn_model_open(tn_model **out, tn_engine *engine, const char *path,
                               const tn_model_options *opt, tn_error *err);
/* The same from `size` bytes in memory, which must outlive the model. name is for messages. */
TN_API tn_status tn_model_open_memory(tn_model **out, tn_engine *engine, const void *bytes,
                                      size_t size, const char *name, const tn_model_options *opt,
                                      tn_error *err);
/* Random weights in the shape of a real model, made in memory, for benchmarks: speed does not
 * depend on the values. shape: "llama-135m", "llama-1b", "llama-8b", "llama-70b", "qwen3-30b-a3b",
 * ... (TN_EARG lists them; "tiny-llama" and "tiny-moe" are for tests); type: "q4_k", "q4_0", ...,
 * or a mix "q4_k_m". Has no tokenizer. */
TN_API tn_status tn_model_open_synthetic(tn_model **out, tn_engine *engine, const char *shape,
                                         const char *type, const tn_model_options *opt,
                                         tn_error *err);
/* Every context of the model must have been freed. */
TN_API void tn_model_close(tn_model *model);

typedef struct tn_model_info {
    size_t struct_size;     /* set by the caller */
    const char *arch;       /* "llama" */
    const char *name;       /* general.name, or "" */
    const char *type;       /* what most weight bytes are in: "Q4_K"; "" with vocab_only */
    uint64_t n_params;      /* weights of all tensors, 0 with vocab_only */
    uint64_t weight_bytes;  /* of all tensors as stored in the file */
    uint64_t token_bytes;   /* weight bytes read to generate one token (active experts only) */
    int32_t n_layers, n_embd, n_head, n_head_kv, n_ff, n_expert, n_expert_used;
    int32_t n_vocab, n_ctx_train;
    const char *chat_template; /* name of the recognised family ("chatml"), NULL if none */
    bool has_chat_template;    /* the file carries one, recognised or not */
    uint64_t activation_bytes; /* float32 activations that the matrices of one token read and write,
                                  computed from their shapes: mostly in caches, so no part of what
                                  memory must deliver; 0 with vocab_only */
    uint64_t prompt_flop;      /* multiplications and additions with weights for a token of a prompt
                                  that is not its last: so without the head, and of the last layer
                                  only Q, K and V. Attention itself is not counted; 0 with
                                  vocab_only */
} tn_model_info;
TN_API tn_status tn_model_get_info(const tn_model *model, tn_model_info *info, tn_error *err);

/* ---- tokens ---------------------------------------------------------------------------------- */

enum { TN_TOKENIZE_ADD_SPECIAL = 1,  /* bos/eos as the file asks for */
       TN_TOKENIZE_PARSE_SPECIAL = 2 /* text that spells a control token becomes that token */ };

/* Text to token ids. *n receives the number of ids, which are written to ids (capacity cap) if they
 * all fit; otherwise TN_EFULL, *n is what is needed and ids is untouched (ids may be NULL with
 * cap 0). Bytes that are no UTF-8 become U+FFFD; *n_invalid (may be NULL) counts them.
 * TN_EUNSUPPORTED if the model has no tokenizer. Any thread. */
TN_API tn_status tn_tokenize(const tn_model *model, const char *text, size_t len, unsigned flags,
                             int32_t *ids, size_t cap, size_t *n, size_t *n_invalid, tn_error *err);

typedef enum tn_token_attr {
    TN_TOKEN_NORMAL = 0,
    TN_TOKEN_CONTROL = 1,      /* <|im_end|>: never shown */
    TN_TOKEN_USER_DEFINED = 2, /* always matched in text */
    TN_TOKEN_UNUSED = 4,
    TN_TOKEN_BYTE = 8,
    TN_TOKEN_UNKNOWN = 16
} tn_token_attr;
/* The bytes a token stands for (not always whole UTF-8 characters; "" for control tokens), its text
 * as the vocabulary spells it, and its attribute. Both pointers live as long as the model.
 * TN_EARG if id is outside the vocabulary. Any of the out pointers may be NULL. */
TN_API tn_status tn_token_get(const tn_model *model, int32_t id, const char **bytes,
                              size_t *n_bytes, const char **text, size_t *n_text,
                              tn_token_attr *attr, tn_error *err);
/* Special token ids, -1 where the vocabulary has none. */
TN_API int32_t tn_token_bos(const tn_model *model);
TN_API int32_t tn_token_eos(const tn_model *model);
/* True if the token ends a generation (eos, eot, eom and their like). */
TN_API bool tn_token_is_end(const tn_model *model, int32_t id);

/* Ids to text, whole UTF-8 characters only. */
typedef struct tn_detokenizer tn_detokenizer;
enum {
    TN_DETOKENIZE_SPECIAL = 1,   /* spell control tokens out instead of dropping them */
    TN_DETOKENIZE_KEEP_SPACE = 2 /* keep the space that the tokenizer puts before the first word */
};
TN_API tn_status tn_detokenizer_new(tn_detokenizer **out, const tn_model *model, unsigned flags,
                                    tn_error *err);
/* Adds a token. text and len: what can be shown now (maybe nothing), valid until the next call.
 * Bytes that can no longer become UTF-8 appear as U+FFFD. */
TN_API tn_status tn_detokenizer_push(tn_detokenizer *d, int32_t id, const char **text, size_t *len,
                                     tn_error *err);
/* Flushes an incomplete character as U+FFFD and starts anew. */
TN_API tn_status tn_detokenizer_finish(tn_detokenizer *d, const char **text, size_t *len,
                                       tn_error *err);
TN_API void tn_detokenizer_free(tn_detokenizer *d);

/* ---- chat formats ---------------------------------------------------------------------------- */

typedef struct tn_message {
    const char *role; /* "system", "user", "assistant" */
    const char *content;
} tn_message;

/* Names of the built-in chat formats, NULL-terminated: chatml, llama3, gemma, ... */
TN_API const char *const *tn_chat_formats(void);
/* A conversation as token ids in the model's chat format, or in the built-in `format` if not NULL.
 * Ends with the assistant's header if add_assistant. Only the format's own literals become control
 * tokens; message contents never do. Sizes as in tn_tokenize. TN_EUNSUPPORTED if format is NULL and
 * the file's template is none of the built-in families (the message lists the names). */
TN_API tn_status tn_chat_tokens(const tn_model *model, const char *format,
                                const tn_message *messages, size_t n_messages, bool add_assistant,
                                int32_t *ids, size_t cap, size_t *n, tn_error *err);
/* The same as text, for people. *n is the length without the terminating zero; cap counts it. */
TN_API tn_status tn_chat_text(const tn_model *model, const char *format, const tn_message *messages,
                              size_t n_messages, bool add_assistant, char *text, size_t cap,
                              size_t *n, tn_error *err);

/* ---- context: one sequence ------------------------------------------------------------------- */

typedef struct tn_context tn_context;

/* Q8_0: blocks of 32 values to 8 bits under a float16 scale, 53 % of F16's memory; only for models
 * whose head dims are multiples of 32. F32 is for accuracy, and asks for it elsewhere, too:
 * products on the host with quantised weights then take activations in two parts of 8 bits instead
 * of one, which leaves a hundredth of the distance to float32 activations and takes up to twice the
 * time. Products on a device round activations to 8 bits whatever the cache is. */
typedef enum tn_kv_type { TN_KV_F16 = 0, TN_KV_F32 = 1, TN_KV_Q8_0 = 2 } tn_kv_type;

typedef struct tn_context_options {
    size_t struct_size;
    int32_t n_ctx;     /* capacity in tokens; 0 = what the model was trained for, or what fits in
                          memory if that is less, but at least 4,096 */
    int32_t n_batch;   /* tokens evaluated at once in prefill; 0 = 512 */
    tn_kv_type kv;
    int32_t page_size; /* positions per KV page, a power of two; 0 = 256 */
    tn_progress_fn progress; /* tokens done of the current eval */
    tn_cancel_fn cancel;
    void *user; /* of both callbacks */
} tn_context_options;

/* KV memory is allocated as it grows, a page at a time. TN_EARG, TN_ENOMEM; TN_EUNSUPPORTED where
 * the model's heads, or its device, cannot have a cache of this type. */
TN_API tn_status tn_context_new(tn_context **out, tn_model *model, const tn_context_options *opt,
                                tn_error *err);
TN_API void tn_context_free(tn_context *ctx);

/* Feeds n >= 1 tokens at the positions after those already there, and computes the logits of the
 * last. n > 1 is evaluated in batches of n_batch; the result matches n single calls up to float
 * rounding, not bit for bit.
 * TN_EARG (n < 1, token outside the vocabulary), TN_EFULL (they do not fit; the message has the
 * counts), TN_ENOMEM, TN_ECANCELED: the context is as before the call. */
TN_API tn_status tn_context_eval(tn_context *ctx, const int32_t *tokens, int32_t n, tn_error *err);

/* Logits of rows [first, first + n_rows) of an evaluation: rows[n_rows][n_vocab], valid during the
 * call. Return false to stop (the evaluation ends with TN_ECANCELED and is undone). */
typedef bool (*tn_logits_fn)(void *user, int32_t first, int32_t n_rows, const float *rows);
/* Like tn_context_eval, but hands out the logits of every token from row `first_row` on, in slices:
 * they are never all in memory at once. */
TN_API tn_status tn_context_eval_all(tn_context *ctx, const int32_t *tokens, int32_t n,
                                     int32_t first_row, tn_logits_fn fn, void *user, tn_error *err);

/* Like tn_context_eval, but what it gives is *best, the likeliest token after these (the lowest id
 * of equals), for greedy decoding: where a device computes all logits they stay there.
 * tn_context_logits is NULL afterwards. TN_EINTERNAL if no logit is a number above -infinity: the
 * context is as before. */
TN_API tn_status tn_context_eval_best(tn_context *ctx, const int32_t *tokens, int32_t n,
                                      int32_t *best, tn_error *err);

/* [n_vocab] float32 of the last evaluated token, or NULL; valid until the next call on ctx. */
TN_API const float *tn_context_logits(const tn_context *ctx);
TN_API int32_t tn_context_length(const tn_context *ctx);   /* tokens held */
TN_API int32_t tn_context_capacity(const tn_context *ctx); /* n_ctx in force */
TN_API const int32_t *tn_context_tokens(const tn_context *ctx); /* [length], until the next call */
/* Forgets everything from position n on (0 <= n <= length); logits become NULL. Layers with a
 * sliding window keep the keys and values of little more than the window and a batch: after going
 * back by more than n_batch tokens the next evaluation may first repeat that of all tokens still
 * held. TN_EARG. */
TN_API tn_status tn_context_rewind(tn_context *ctx, int32_t n, tn_error *err);

/* ---- statistics ------------------------------------------------------------------------------ */

typedef struct tn_side_stats {
    double seconds;        /* spent computing on this side */
    uint64_t weight_bytes; /* weight bytes read */
    uint64_t kv_bytes;     /* KV bytes read */
} tn_side_stats;

typedef struct tn_stats {
    size_t struct_size; /* set by the caller */
    double prefill_s, decode_s; /* wall time of evaluations with n > 1 and n == 1 */
    uint64_t prefill_tokens, decode_tokens;
    tn_side_stats host, device;
    uint64_t hops;      /* activations moved between the sides */
    double join_wait_s; /* waiting for the other side */
    double load_s;      /* opening the model, and carrying weights to memory after it (LATER) */
    uint64_t kv_bytes_held; /* memory of this context's KV pages */
    uint64_t model_bytes_held; /* memory of the model's weights */
    /* Slabs of FFNs, or experts, that move as contexts grow and shrink; 0 where nothing does. Of
     * the model, since it was opened. replans: how often its plan was made again, because 64 tokens
     * took 15 % more or less time than predicted (never on the emulated device). */
    uint64_t units, units_on_device, units_dropped, units_promoted, replans;
    /* Of models with experts: how many were chosen (tokens x layers x used), and of these how many
     * were on the device. */
    uint64_t experts_chosen, experts_on_device;
    uint64_t streamed_bytes; /* of weights that the host has, carried to a device for a batch */
    uint64_t device_bytes_held; /* memory of the devices in use by the engine: weights, KV, buffers
                                   of all its models and contexts; 0 without a device */
} tn_stats;
/* Sums since the context was made or last reset. */
TN_API tn_status tn_context_stats(const tn_context *ctx, tn_stats *stats, tn_error *err);
TN_API void tn_context_stats_reset(tn_context *ctx);
/* How often each expert of a layer was chosen, over the same time: counts[n] for the first n
 * experts. TN_EARG: there is no such layer, or it has fewer experts. */
TN_API tn_status tn_context_experts(const tn_context *ctx, int32_t layer, uint64_t *counts,
                                    int32_t n, tn_error *err);

/* ---- sampling -------------------------------------------------------------------------------- */

typedef struct tn_logit_bias {
    int32_t token;
    float bias; /* added to the logit; -INFINITY bans the token */
} tn_logit_bias;

/* Unlike other options structs, zero is a value here: fill it with tn_sampler_defaults() first.
 * Order: bias, penalties, top-k, top-p, min-p, temperature, draw. */
typedef struct tn_sampler_options {
    size_t struct_size;
    float temperature; /* 0 = greedy */
    int32_t top_k;     /* 0 = off */
    float top_p;       /* 1 = off */
    float min_p;       /* 0 = off */
    float repeat_penalty;    /* 1 = off */
    float presence_penalty;  /* 0 = off */
    float frequency_penalty; /* 0 = off */
    int32_t penalty_last_n;  /* window of the three penalties; 0 = off, -1 = all */
    uint64_t seed;
    const tn_logit_bias *bias; /* [n_bias], copied */
    size_t n_bias;
} tn_sampler_options;
/* 0.8 / 40 / 0.95 / 0.05 and penalties off, overridden by the model's general.sampling.* keys
 * (model may be NULL). Sets struct_size and seed 0. */
TN_API tn_status tn_sampler_defaults(const tn_model *model, tn_sampler_options *opt, tn_error *err);

typedef struct tn_sampler tn_sampler;
/* TN_EARG names the option that is out of range. */
TN_API tn_status tn_sampler_new(tn_sampler **out, const tn_engine *engine,
                                const tn_sampler_options *opt, tn_error *err);
TN_API void tn_sampler_free(tn_sampler *s);
/* Notes a token of the sequence (prompt or generated) for the penalties. */
TN_API tn_status tn_sampler_accept(tn_sampler *s, int32_t token, tn_error *err);
/* Picks a token from logits[n_vocab], which are not changed. *logprob (may be NULL): natural log of
 * the token's probability under the plain softmax of the logits. Does not accept it. The draw uses
 * Philox4x32-10 keyed by the seed, counter = number of draws: the same stream on every machine.
 * TN_EINTERNAL if a logit is NaN or all are -infinity. */
TN_API tn_status tn_sampler_sample(tn_sampler *s, const float *logits, int32_t n_vocab,
                                   int32_t *token, float *logprob, tn_error *err);
TN_API void tn_sampler_reset(tn_sampler *s); /* forgets accepted tokens and restarts the stream */

/* ---- inspection ------------------------------------------------------------------------------ */

/* What a GGUF file says about itself, read from its header alone: needs no engine, no tensor data
 * and no supported architecture. Any number of threads may read one tn_inspect. */
typedef struct tn_inspect tn_inspect;

typedef struct tn_inspect_info {
    size_t struct_size; /* set by the caller */
    uint32_t version;   /* of the format: 2 or 3 */
    uint32_t n_parts;   /* files the model is split into */
    uint64_t alignment; /* of tensor data, bytes */
    uint64_t file_bytes; /* of all parts, as they are on disk */
    uint64_t n_keys, n_tensors;
    uint64_t n_params, tensor_bytes; /* elements and bytes of all tensors */
} tn_inspect_info;

typedef struct tn_inspect_key {
    const char *name; /* name_len bytes of UTF-8, not zero-terminated */
    size_t name_len;
    const char *kind;    /* "u32", "string", ... "array" */
    const char *element; /* kind of an array's elements; = kind for a single value */
    uint64_t n;          /* number of elements, 1 for a single value */
    uint64_t offset;     /* byte offset of the entry in its file */
} tn_inspect_key;

typedef struct tn_inspect_tensor {
    const char *name; /* name_len bytes of UTF-8, not zero-terminated */
    size_t name_len;
    const char *type; /* "Q4_K" */
    uint32_t n_dims;
    uint64_t shape[4]; /* [0] is the fastest dimension; unused ones are 1 */
    uint32_t part;     /* which file, 0-based */
    uint64_t offset;   /* of the data, in that file */
    uint64_t bytes;
} tn_inspect_tensor;

/* Opens a file, or all parts of a split one. allocator NULL = malloc. TN_ENOENT, TN_EIO,
 * TN_EFORMAT, TN_EUNSUPPORTED (unknown tensor type), TN_ENOMEM. */
TN_API tn_status tn_inspect_open(tn_inspect **out, const char *path, const tn_allocator *allocator,
                                 tn_error *err);
TN_API void tn_inspect_close(tn_inspect *in);
TN_API tn_status tn_inspect_get_info(const tn_inspect *in, tn_inspect_info *info, tn_error *err);
/* Entry i of the metadata, tensor i of the directory, in file order. TN_EARG if there is none. */
TN_API tn_status tn_inspect_get_key(const tn_inspect *in, uint64_t i, tn_inspect_key *key,
                                    tn_error *err);
TN_API tn_status tn_inspect_get_tensor(const tn_inspect *in, uint64_t i, tn_inspect_tensor *tensor,
                                       tn_error *err);
/* Value `element` of entry i as text: numbers in the shortest form that reads back the same,
 * strings as the bytes in the file. *n is the length without the terminating zero; cap counts it.
 * TN_EFULL if it does not fit: text then holds what fits, and *n is the whole length. */
TN_API tn_status tn_inspect_value(const tn_inspect *in, uint64_t i, uint64_t element, char *text,
                                  size_t cap, size_t *n, tn_error *err);
/* Everything as one JSON object: format, metadata (name -> {kind, value} or {kind, element, n,
 * values}) and tensors. Bytes that are no UTF-8 become U+FFFD; numbers JSON has not are strings.
 * *out is freed with tn_inspect_string_free. */
TN_API tn_status tn_inspect_json(const tn_inspect *in, char **out, tn_error *err);
TN_API void tn_inspect_string_free(const tn_inspect *in, char *s);

/* ---- placement: what runs where, and how fast it would be ------------------------------------ */

/* A plan for a model on a machine, made from the file's header alone: no engine, no device, no
 * tensor data. Immutable: any number of threads may read one. Times are predictions from the
 * machine's profile, for one sequence. */
typedef struct tn_placement tn_placement;

enum { TN_PLACEMENT_DEVICES = TN_ENGINE_DEVICES, TN_PLACEMENT_DEPTHS = 5 };

typedef struct tn_placement_options {
    size_t struct_size;
    const char *hardware;  /* name of a shipped profile, path of a JSON file, or JSON as
                              tn_engine_calibrate gives it; NULL = this machine */
    const char *plan_file; /* replay this plan instead of planning; NULL = plan. n_ctx, n_batch,
                              request and threads are not given or as in the file; kv and load
                              (mapped or not) are as in the file. With `fixed` one that is elastic
                              becomes one that is not: its units are where a full context leaves
                              them, in the budget it was made for, and a warning says so. A replayed
                              plan is never made again because rates have changed. */
    const char *const *place; /* [n_place] texts REGEX=host|device|split:X[,...], first match
                                 wins */
    size_t n_place;
    const char *request;   /* "chat" (2048+512, the default), "long" (24576+512), "batch" (8192+32),
                              or counts "PROMPT+GENERATED" or "PROMPT+GENERATED@DEPTH" */
    int64_t n_ctx;         /* 0 = what the model was trained for */
    int32_t n_batch;       /* 0 = 512 */
    int32_t threads;       /* 0 = as the profile says */
    tn_kv_type kv;
    uint64_t vram[TN_PLACEMENT_DEVICES]; /* bytes per device, 0 = what is free, UINT64_MAX = none */
    uint64_t ram;          /* bytes of host memory, 0 = what is free */
    bool fixed;            /* what is on a device stays there */
    tn_allocator allocator; /* all zero = malloc */
    const char *cache_dir;  /* where tn_engine_calibrate kept this machine's profile, and models how
                               often their experts were chosen; NULL = nowhere. What was never
                               measured is assumed, and the label says so. */
    int32_t granule;       /* neurons of the slabs an FFN is cut into; 0 = 256 */
    int32_t page_size;     /* positions per KV page; 0 = 256 */
    const char *candidate; /* take this way to place (a name that tn_placement_info.chosen may have)
                              instead of the best: "layers", "ffn-host", ...; NULL = the best */
    int32_t n_devices;     /* 0 = as many as the profile has; more: its last one several times;
                              fewer: without the last ones */
    tn_load_mode load;     /* how the model will be opened: weights of a mapped file are never
                              page-locked, so that they travel to devices more slowly, and not while
                              the host computes */
} tn_placement_options;

/* path: a GGUF file (part 1 of a split one), or SHAPE:TYPE as tn_model_open_synthetic knows them,
 * such as "llama-70b:q4_k_m". Needs no memory beyond the header. What tn_model_open refuses for
 * what a header says, a broken vocabulary apart, is refused here, too. TN_ENOENT, TN_EIO,
 * TN_EFORMAT (file, profile or plan; the key is named), TN_EUNSUPPORTED, TN_EARG (an option,
 * contradictions with both sides named, a plan for another model or machine), TN_ENOMEM (also: the
 * candidate that was asked for does not fit). That a model does not fit is otherwise no error: see
 * tn_placement_info. */
TN_API tn_status tn_placement_open(tn_placement **out, const char *path,
                                   const tn_placement_options *opt, tn_error *err);
TN_API void tn_placement_close(tn_placement *p);

typedef struct tn_placement_prediction {
    double request_s;     /* the whole request */
    double ttft_s;        /* until its first token */
    double prefill_tok_s; /* its prompt */
    double step_s;        /* a generated token, mean over the request */
    int64_t streamed_from; /* batches of so many tokens and more are computed with the host's FFN
                              weights carried to a device for the purpose; 0: none that n_batch
                              allows is */
    int32_t n_depths;
    int64_t depth[TN_PLACEMENT_DEPTHS]; /* live tokens: 0, 4,096, 16,384, n_ctx as far as they
                                           fit */
    double decode_tok_s[TN_PLACEMENT_DEPTHS];
} tn_placement_prediction;

typedef struct tn_placement_info {
    size_t struct_size; /* set by the caller */
    const char *arch, *hardware, *label; /* label: "measured", or where the profile's figures are
                                            from */
    const char *chosen; /* all-host, layers, ffn-host, ffn-blocks, water-fill, optimum or file; none
                           where nothing fits: the rest is of what would need the least */
    bool feasible;        /* everything fits */
    uint64_t short_bytes; /* by how much it does not */
    bool elastic;         /* device memory that live KV does not need holds weights */
    int32_t n_layers, n_devices;
    int64_t n_ctx, n_prompt, n_generated, depth; /* context and request in force */
    uint64_t weight_bytes;
    tn_placement_prediction predicted;
    double optimum_s; /* request time of the best plan; 0 for a replayed one */
    double gap;       /* proven relative distance of that from the lower bound */
    double hit_share; /* of all choices of experts, expected share on devices; 0 without experts */
    bool experts_counted; /* which experts are chosen most often is known, see cache_dir */
    bool devices_used; /* a device holds something, or weights are carried to one for batches:
                          without that none need be opened */
} tn_placement_info;
TN_API tn_status tn_placement_get_info(const tn_placement *p, tn_placement_info *info,
                                       tn_error *err);

typedef struct tn_placement_memory {
    const char *name;       /* of the device or host */
    uint64_t budget_bytes;  /* what may be used */
    uint64_t weight_bytes, kv_bytes, buffer_bytes; /* when the request ends */
    uint64_t kv_full_bytes; /* KV of a full context */
    uint64_t master_bytes;  /* host: copies of weights on the device, so that they can be dropped */
} tn_placement_memory;
/* device -1 is the host. TN_EARG if there is no such device. */
TN_API tn_status tn_placement_get_memory(const tn_placement *p, int32_t device,
                                         tn_placement_memory *mem, tn_error *err);

/* One layer; row n_layers is the output head (in the ffn fields). */
typedef struct tn_placement_row {
    int32_t device;    /* that serves it, -1 = none */
    bool attn;         /* attention and KV are on the device */
    double ffn_share;  /* of the FFN's bytes on the device, at the end of the request */
    int32_t units, of; /* slabs or experts on the device; of 0: the tensors are placed one by one */
    bool experts;
    int64_t window;    /* of attention, 0 = all */
    uint64_t attn_bytes, kv_bytes, ffn_bytes; /* kv: of a full context */
    char attn_reason[200], ffn_reason[200];
    double hit_share; /* of a token's choices of experts, expected share on the device; else 0 */
} tn_placement_row;
TN_API tn_status tn_placement_get_row(const tn_placement *p, int32_t layer, tn_placement_row *row,
                                      tn_error *err);

/* Candidate i: its name and prediction; NULL after the last. *fits says whether it is possible. */
TN_API const char *tn_placement_candidate(const tn_placement *p, size_t i, bool *fits,
                                          tn_placement_prediction *prediction);
/* Note i of a kind, NULL after the last; *request_s (may be NULL): predicted
 * with it, 0 = not told. */
typedef enum tn_placement_note_kind {
    TN_PLACEMENT_PRICE,  /* what more memory, another KV type or a longer context would change */
    TN_PLACEMENT_REMEDY, /* what would make it fit, cheapest first */
    TN_PLACEMENT_WARNING
} tn_placement_note_kind;
TN_API const char *tn_placement_note(const tn_placement *p, tn_placement_note_kind kind, size_t i,
                                     double *request_s);
/* Everything as JSON, which plan_file accepts. Freed with tn_placement_string_free. */
TN_API tn_status tn_placement_json(const tn_placement *p, char **out, tn_error *err);
TN_API void tn_placement_string_free(const tn_placement *p, char *s);

/* Name of shipped hardware profile i, NULL after the last. */
TN_API const char *tn_hardware_name(size_t i);
/* A profile as JSON with the source of each figure: name as in tn_placement_options, NULL = this
 * machine. Freed with tn_hardware_string_free. */
TN_API tn_status tn_hardware_json(const char *name, char **out, tn_error *err);
TN_API void tn_hardware_string_free(char *s);

#ifdef __cplusplus
}
#endif
#endif
