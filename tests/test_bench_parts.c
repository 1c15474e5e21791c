/* Parts of the benchmark: lists, adapters of other programs, verdicts of comparisons, disturbances.
 */
#include "harness.h"

#include "../bench/cells.h"
#include "../bench/compare.h"
#include "../bench/pagecache.h"
#include "../bench/peer.h"
#include "../bench/place.h"
#include "../bench/regret.h"
#include "../bench/watch.h"

#include <jansson.h>
#include <math.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- lists ----------------------------------------------------------------------------------- */

static void list(const char *text, const char *want)
{
    tn_bench_ints l = {0};
    char got[200] = "";
    if (!tn_bench_ints_read(&l, text, 0, 1e6)) {
        snprintf(got, sizeof got, "refused");
    } else {
        for (size_t i = 0; i < l.n; i++)
            snprintf(got + strlen(got), sizeof got - strlen(got), "%s%d", i ? " " : "", l.at[i]);
    }
    CHECK_MSG(strcmp(got, want) == 0, "'%s' is %s, want %s", text, got, want);
    free(l.at);
}

TEST(lists_and_ranges)
{
    list("512", "512");
    list("1,2,4", "1 2 4");
    list("1-4", "1 2 3 4");
    list("0-4096+1024", "0 1024 2048 3072 4096");
    list("1-64*4", "1 4 16 64");
    list("8,1-3,16-20+3", "8 1 2 3 16 19");
    list("5-5", "5");
    for (int i = 0; i < 14; i++) {
        static const char *const bad[] = {"",        "-1",       "1-",    "4-1",   "1,,2",
                                          "1-4+0",   "1-4*1",    "0-4*2", "x",     "1.5",
                                          "2000000", "1-999999", " 1",    "1-4+1x"};
        list(bad[i], "refused");
    }
}

TEST(cells_walk_upwards)
{
    int32_t prompt[] = {512, 0}, generate[] = {16}, depth[] = {4096, 0, 4096};
    char *pairs[] = {"8,4"};
    const tn_bench_settings set = {
        .prompt = {prompt, 2}, .generate = {generate, 1}, .depth = {depth, 3}, .pairs = {pairs, 1}};
    size_t n;
    static const int tokens[] = {512, 16, 12};
    tn_bench_cell *c = tn_bench_cells_make(&set, &n);
    CHECK_INT(n, 6);
    for (size_t i = 0; i < n && n == 6; i++) {
        CHECK_INT(c[i].depth, i < 3 ? 0 : 4096);
        CHECK_INT(tn_bench_cell_tokens(&c[i]), c[i].depth + tokens[i % 3]);
        CHECK_INT(c[i].pair, i % 3 == 2);
    }
    CHECK_INT(tn_bench_largest_cell(c, n, INT32_MAX), 4608);
    CHECK_INT(tn_bench_largest_cell(c, n, 4607), 4112);
    CHECK_INT(tn_bench_largest_cell(c, n, 11), 0);
    free(c);
}

/* Seconds that are left, apart from what passed since the test began. */
static double left(const tn_bench_estimate *e)
{
    double done, total;
    tn_bench_estimate_now(e, &done, &total);
    return total - done;
}

/* 3 runs and 2 of warm-up of each test, at the speeds that were measured last, and the walk between
 * depths; two contexts of batch sizes. The clock has run for less than a second of 10,000. */
TEST(remaining_time)
{
    int32_t prompt[] = {1000}, generate[] = {100}, depth[] = {0, 5000}, batch[] = {64, 512},
            one[] = {1};
    char *word[] = {"x"};
    const tn_bench_settings set = {.prompt = {prompt, 1},
                                   .generate = {generate, 1},
                                   .depth = {depth, 2},
                                   .batch = {batch, 2},
                                   .threads = {one, 1},
                                   .kv = {word, 1},
                                   .isa = {word, 1},
                                   .load = {word, 1},
                                   .runs = 3,
                                   .warmup = 2};
    size_t n;
    tn_bench_estimate e;
    tn_bench_cell *c = tn_bench_cells_make(&set, &n);
    REQUIRE(n == 4);
    tn_bench_estimate_init(&e, &set, c, n, 1);
    e.told = true;
    CHECK_NEAR(left(&e), 0, 0); /* nothing is known */
    tn_bench_row row = {.what = TN_BENCH_PROMPT};
    tn_bench_samples_add(&row.rate, 10);
    tn_bench_estimate_model(&e, 15e9); /* a token a second, a prompt's ten times as fast */
    /* 2 depths x 5 x (100 + 100), 500 of walking, and all that twice */
    CHECK_NEAR(left(&e), 2 * (2 * 5 * 200 + 500), 1);
    tn_bench_estimate_cell_begins(&e, &c[0]);
    CHECK_NEAR(left(&e), 2 * (2 * 5 * 200 + 500), 1);
    tn_bench_estimate_learn(&e, &row);
    tn_bench_estimate_cell_ends(&e);
    CHECK_NEAR(left(&e), 2 * (2 * 5 * 200 + 500) - 500, 1);
    row.what = TN_BENCH_GENERATE;
    row.rate.at[0] = 0.5;
    tn_bench_estimate_learn(&e, &row);
    CHECK_NEAR(left(&e), 2 * (2 * 5 * 300 + 500) - 500, 1);
    tn_bench_estimate_skip(&e, 1);
    CHECK_NEAR(left(&e), 2 * 5 * 300 + 500 - 500, 1);
    free(row.rate.at);
    free(c);
}

TEST(parts_of_a_split_model)
{
    static const struct {
        const char *path;
        unsigned i, n;
        const char *want;
    } known[] = {{"a/m.gguf", 0, 1, "a/m.gguf"},
                 {"a/m-00001-of-00012.gguf", 0, 12, "a/m-00001-of-00012.gguf"},
                 {"a/m-00001-of-00012.gguf", 11, 12, "a/m-00012-of-00012.gguf"},
                 {"m.gguf", 1, 2, "m.gguf"}};
    for (size_t k = 0; k < 4; k++) {
        char *got = tn_bench_part_path(known[k].path, known[k].i, known[k].n);
        CHECK_STR(got, known[k].want);
        free(got);
    }
}

/* ---- adapters -------------------------------------------------------------------------------- */

static const tn_bench_peer_test pp512 = {"m o'd.gguf", "f16", 512, 0, 0, 4, 256, false};
static const tn_bench_peer_test tg64 = {"m.gguf", "f32", 0, 64, 1024, 4, 512, false};
static const tn_bench_peer_test tg64_after = {"m.gguf", "f16", 0, 64, 1024, 4, 512, true};

static void command(const char *words, const tn_bench_peer_test *test, const char *want)
{
    char *got = tn_bench_peer_command(words, test);
    CHECK_STR(got, want);
    free(got);
}

TEST(commands_of_peers)
{
    command("llama-bench -fa 1", &pp512,
            "llama-bench -fa 1 -m 'm o'\\''d.gguf' -p 512 -n 0 -t 4 -b 256 -r 1 -o json -ub 256 "
            "-ctk f16 -ctv f16");
    command("LD_LIBRARY_PATH=/x /opt/ik/bin/ik-llama-bench", &tg64,
            "LD_LIBRARY_PATH=/x /opt/ik/bin/ik-llama-bench -m 'm.gguf' -p 0 -n 64 -t 4 -b 512 -r 1 "
            "-o json -d 1024 -ub 512 -ctk f32 -ctv f32");
    command("old/tenon-bench", &tg64,
            "old/tenon-bench -m 'm.gguf' -p 0 -n 64 -t 4 -b 512 -r 1 -o json -d 1024 --kv f32 "
            "--warmup 1 --no-hash");
    command("x -m {model} {prompt}/{generate}/{depth}/{threads}/{batch}/{kv}{", &tg64,
            "x -m 'm.gguf' 0/64/1024/4/512/'f32'{");
    command("llama-bench -rtr 1", &tg64_after,
            "llama-bench -rtr 1 -m 'm.gguf' -p 0 -n 0 -t 4 -b 512 -r 1 -o json -gp 1024,64 -ub 512 "
            "-ctk f16 -ctv f16");
    command(
        "/ik/llama-sweep-bench -rtr", &tg64,
        "/ik/llama-sweep-bench -rtr -m 'm.gguf' -c 1536 -b 512 -ub 512 -n 64 -t 4 -tb 4 -ctk f32 "
        "-ctv f32 --sweep-stride 2 --output-format jsonl --log-file /dev/null 2>&1");
    command("llama-sweep-bench", &pp512,
            "llama-sweep-bench -m 'm o'\\''d.gguf' -c 512 -b 512 -ub 512 -n 1 -t 4 -tb 4 -ctk f16 "
            "-ctv f16 --sweep-stride 1 --output-format jsonl --log-file /dev/null 2>&1");
    CHECK(tn_bench_peer_command("vllm bench", &tg64) == NULL);
}

TEST(what_peers_cannot)
{
    tn_bench_peer_test test = {"m", "f16", 512, 0, 1024, 1, 512, false};
    CHECK(!tn_bench_peer_cannot("llama-bench", &test));
    CHECK(!tn_bench_peer_cannot("llama-sweep-bench", &test));
    test.no_depth = true;
    CHECK(strstr(tn_bench_peer_cannot("llama-bench", &test), "no prompts at a depth"));
    test.n_prompt = 500;
    CHECK(strstr(tn_bench_peer_cannot("llama-sweep-bench", &test), "multiples"));
    CHECK(!tn_bench_peer_cannot("llama-bench", &tg64_after));
}

/* A program in a folder of its own that answers --help. */
static void check_depth(const char *help, bool want)
{
    char folder[] = "/tmp/tenon-test-XXXXXX", path[100], words[200];
    REQUIRE(mkdtemp(folder) != NULL);
    snprintf(path, sizeof path, "%s/llama-bench", folder);
    FILE *f = fopen(path, "w");
    REQUIRE(f != NULL);
    fprintf(f, "#!/bin/sh\n[ \"$*\" = --help ] && echo '%s' >&2\n", help);
    fclose(f);
    chmod(path, 0755);
    snprintf(words, sizeof words, "A=1 %s -fa 1", path);
    CHECK_INT(tn_bench_peer_has_depth(words), want);
    unlink(path);
    rmdir(folder);
}

TEST(peers_without_depth)
{
    check_depth("  -d, --n-depth <n>", true);
    check_depth("  -gp <pp,tg>", false);
    CHECK(tn_bench_peer_has_depth("echo {prompt} 5"));
    CHECK(tn_bench_peer_has_depth("tenon-bench"));
}

/* As llama.cpp's llama-bench writes it (shortened), prompt and generation in one run. */
static const char llama_json[] =
    "[\n  {\n    \"build_commit\": \"1234567\",\n    \"n_batch\": 2048,\n    \"n_threads\": 4,\n"
    "    \"n_prompt\": 512,\n    \"n_gen\": 0,\n    \"n_depth\": 0,\n    \"avg_ns\": 1,\n"
    "    \"avg_ts\": 1080.1,\n    \"stddev_ts\": 1.0,\n    \"samples_ts\": [ 1080.0, 1081.0 ]\n  "
    "},\n"
    "  {\n    \"n_prompt\": 0,\n    \"n_gen\": 64,\n    \"avg_ts\": 122.25,\n"
    "    \"samples_ts\": [ 122.25 ]\n  }\n]\n";

static double parse(const char *text, const tn_bench_peer_test *test)
{
    double rate = 0;
    tn_error err = {0};
    const tn_status s = tn_bench_peer_parse(text, strlen(text), test, &rate, &err);
    CHECK((s == TN_OK) == (err.msg[0] == 0));
    return s ? -1 : rate;
}

TEST(names_of_peers)
{
    static const char *const pairs[][2] = {
        {"llama-bench", "llama-bench"},
        {"/opt/a/llama-bench -fa 1", "llama-bench -fa 1"},
        {"  A=/x/y B=2 ../bin/llama-bench -m /z", "llama-bench -m /z"},
        {"echo /a/{prompt}", "echo /a/{prompt}"},
        {"", ""},
    };
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
        CHECK_STR(tn_bench_peer_name(pairs[i][0]), pairs[i][1]);
}

TEST(peers_of_one_name_are_numbered)
{
    char *peers[] = {"/a/llama-bench -fa 1", "/b/llama-bench -fa 1", "llama-bench -fa 0"};
    static const char *const want[] = {"llama-bench -fa 1 [1]", "llama-bench -fa 1 [2]",
                                       "llama-bench -fa 0"};
    for (size_t i = 0; i < 3; i++) {
        char *label = tn_bench_peer_label(peers, 3, i);
        CHECK_STR(label, want[i]);
        free(label);
    }
}

TEST(output_of_llama_bench)
{
    char noisy[2000];
    CHECK_NEAR(parse(llama_json, &pp512), 1080.5, 1e-9);
    CHECK_NEAR(parse(llama_json, &tg64), 122.25, 1e-9);
    snprintf(noisy, sizeof noisy, "warning: [x] asserts are on\n[not json\n%s\nbye\n", llama_json);
    CHECK_NEAR(parse(noisy, &tg64), 122.25, 1e-9);
    const tn_bench_peer_test other = {"m", "f16", 0, 65, 0, 4, 512, false};
    CHECK_NEAR(parse(llama_json, &other), -1, 0);
    /* ik_llama.cpp's -gp 1024,64. */
    CHECK_NEAR(parse("[{\"n_prompt\": 1024, \"n_gen\": 64, \"avg_ts\": 42.5}]", &tg64_after), 42.5,
               0);
    CHECK_NEAR(parse("[{\"n_prompt\": 0, \"n_gen\": 64, \"avg_ts\": 42.5}]", &tg64_after), -1, 0);
    /* Forks without samples, and JSON lines. */
    CHECK_NEAR(parse("[{\"n_prompt\": 512, \"n_gen\": 0, \"avg_ts\": 7.5}]", &pp512), 7.5, 0);
    CHECK_NEAR(parse("{\"n_prompt\": 1, \"n_gen\": 0, \"avg_ts\": 1.5}\n"
                     "{\"n_prompt\": 512, \"n_gen\": 0, \"avg_ts\": 2.5}\n",
                     &pp512),
               2.5, 0);
    CHECK_NEAR(parse("[{\"n_prompt\": 512, \"n_gen\": 0, \"avg_ts\": 0}]", &pp512), -1, 0);
}

TEST(output_of_sweep_bench)
{
    static const char lines[] =
        "llama_model_loader: 1\n"
        "{\"n_kv_max\": 1536, \"pp\": 512, \"tg\": 64, \"n_kv\": 0, \"speed_pp\": 9.5, "
        "\"speed_tg\": "
        "8.5}\n"
        "{\"n_kv_max\": 1536, \"pp\": 512, \"tg\": 64, \"n_kv\": 1024, \"speed_pp\": 7.5, "
        "\"speed_tg\": 6.5}\n";
    const tn_bench_peer_test deep = {"m", "f16", 512, 0, 1024, 4, 512, true};
    CHECK_NEAR(parse(lines, &tg64), 6.5, 0);
    CHECK_NEAR(parse(lines, &deep), 7.5, 0);
    CHECK_NEAR(parse(lines, &pp512), 9.5, 0);
    const tn_bench_peer_test deeper = {"m", "f16", 512, 0, 2048, 4, 512, true};
    CHECK_NEAR(parse(lines, &deeper), -1, 0);
}

TEST(output_of_tenon_bench)
{
    CHECK_NEAR(parse("{\"results\": [{\"test\": \"tg64\", \"parameters\": {\"n_prompt\": 0, "
                     "\"n_gen\": 64}, \"tokens_per_second\": 33.5}]}",
                     &tg64),
               33.5, 0);
    CHECK_NEAR(parse("{\"results\": [{\"parameters\": {\"n_prompt\": 0, \"n_gen\": 64}, "
                     "\"tokens_per_second\": null}]}",
                     &tg64),
               -1, 0);
}

TEST(output_that_ends_in_a_number)
{
    CHECK_NEAR(parse("loading\nspeed: 12.5\n\ndone\n", &tg64), 12.5, 0);
    CHECK_NEAR(parse("1\n2\n3.25", &tg64), 3.25, 0);
    CHECK_NEAR(parse("no number at all\n", &tg64), -1, 0);
    CHECK_NEAR(parse("", &tg64), -1, 0);
    CHECK_NEAR(parse("nan\n", &tg64), -1, 0);
    CHECK_NEAR(parse("-5\n", &tg64), -1, 0);
}

TEST(running_a_peer)
{
    char *text;
    size_t len;
    tn_error err = {0};
    REQUIRE(tn_bench_peer_run("echo out; echo err >&2; echo more", &text, &len, &err) == TN_OK);
    CHECK_STR(text, "out\nmore\n");
    CHECK_INT(len, 9);
    free(text);
    CHECK_INT(tn_bench_peer_run("echo reason >&2; exit 3", &text, &len, &err), TN_EIO);
    CHECK(!text && strstr(err.msg, "exit code 3") && strstr(err.msg, "reason"));
    CHECK_INT(tn_bench_peer_run("no-such-program-xyz -m a", &text, &len, &err), TN_ENOENT);
    CHECK(strstr(err.msg, "no-such-program-xyz") != NULL);
    CHECK_INT(tn_bench_peer_run("kill -9 $$", &text, &len, &err), TN_EIO);
    CHECK(strstr(err.msg, "signal 9") != NULL);
    /* More than a pipe holds on both. */
    REQUIRE(tn_bench_peer_run("i=0; while [ $i -lt 20000 ]; do echo 1234567; echo 1234567 >&2; "
                              "i=$((i + 1)); done",
                              &text, &len, &err) == TN_OK);
    CHECK_INT(len, 160000);
    free(text);
}

/* ---- comparisons ----------------------------------------------------------------------------- */

/* A report with one row of n samples spread by 0.1 % around `rate`. */
static json_t *report(const char *test, int threads, double rate, int n)
{
    json_t *samples = json_array();
    for (int i = 0; i < n; i++)
        json_array_append_new(samples, json_real(rate * (1 + 0.001 * (i - n / 2.0) / n)));
    return json_pack("{s:[{s:i,s:s,s:s,s:{s:i,s:i,s:s},s:o,s:n}]}", "results", "model", 0, "test",
                     test, "engine", "tenon", "parameters", "threads", threads, "batch", 512, "kv",
                     "f16", "samples", samples, "disturbed");
}

static void compared(double old, double new, int n, double threshold, const char *want)
{
    size_t slower;
    json_t *a = report("tg64", 2, old, n), *b = report("tg64", 2, new, n);
    json_t *out = tn_bench_compare_reports(a, b, threshold, &slower);
    const json_t *row = json_array_get(json_object_get(out, "rows"), 0);
    CHECK_STR(json_string_value(json_object_get(row, "verdict")), want);
    CHECK_NEAR(json_number_value(json_object_get(row, "ratio")), new / old, 1e-9);
    CHECK_INT(slower, strcmp(want, "slower") == 0);
    json_decref(out);
    json_decref(a);
    json_decref(b);
}

TEST(verdicts)
{
    compared(100, 90, 5, 5, "slower");
    compared(100, 97, 5, 5, "same");
    compared(100, 97, 5, 2, "slower");
    compared(100, 111, 5, 5, "faster");
    compared(100, 100, 5, 5, "same");
    compared(100, 100, 5, 0, "same");
    compared(100, 50, 3, 5, "unsure"); /* three and three can never be certain */
    compared(100, 50, 4, 5, "slower"); /* p = 2/70 */
}

/* Overlapping samples: the medians are apart, the test is not convinced. */
TEST(noise_is_no_regression)
{
    size_t slower;
    json_t *a = report("tg64", 2, 100, 5), *b = report("tg64", 2, 100, 5);
    const double noisy_a[] = {80, 90, 100, 110, 120}, noisy_b[] = {70, 85, 92, 105, 118};
    json_t *x = json_object_get(json_array_get(json_object_get(a, "results"), 0), "samples");
    json_t *y = json_object_get(json_array_get(json_object_get(b, "results"), 0), "samples");
    for (size_t i = 0; i < 5; i++) {
        json_array_set_new(x, i, json_real(noisy_a[i]));
        json_array_set_new(y, i, json_real(noisy_b[i]));
    }
    json_t *out = tn_bench_compare_reports(a, b, 5, &slower);
    const json_t *row = json_array_get(json_object_get(out, "rows"), 0);
    CHECK_STR(json_string_value(json_object_get(row, "verdict")), "unsure");
    CHECK_INT(slower, 0);
    json_decref(out);
    json_decref(a);
    json_decref(b);
}

TEST(what_is_compared_with_what)
{
    size_t slower;
    json_t *a = report("tg64", 2, 100, 5), *b = report("tg64", 4, 90, 5);
    /* Neither report sweeps threads: compared, and said. */
    json_t *out = tn_bench_compare_reports(a, b, 5, &slower);
    CHECK_INT(json_array_size(json_object_get(out, "rows")), 1);
    CHECK_INT(json_array_size(json_object_get(out, "notes")), 1);
    CHECK_INT(slower, 1);
    json_decref(out);
    /* The old one does: rows pair by it. */
    json_t *more = report("tg64", 4, 90, 5);
    json_array_extend(json_object_get(a, "results"), json_object_get(more, "results"));
    out = tn_bench_compare_reports(a, b, 5, &slower);
    CHECK_INT(json_array_size(json_object_get(out, "rows")), 1);
    CHECK_INT(json_array_size(json_object_get(out, "notes")), 1);
    CHECK_INT(slower, 0);
    json_decref(out);
    json_t *other = report("pp512", 2, 90, 5);
    out = tn_bench_compare_reports(b, other, 5, &slower);
    CHECK_INT(json_array_size(json_object_get(out, "rows")), 0);
    json_decref(out);
    /* What a device does that is none is not compared with what one does. */
    json_object_set_new(json_array_get(json_object_get(more, "results"), 0), "label",
                        json_string("emulated"));
    out = tn_bench_compare_reports(b, more, 5, &slower);
    CHECK_INT(json_array_size(json_object_get(out, "rows")), 0);
    json_decref(out);
    json_decref(other);
    json_decref(more);
    json_decref(a);
    json_decref(b);
}

/* ---- disturbances ---------------------------------------------------------------------------- */

static const tn_bench_moment calm = {.wall = 10,
                                     .own_cpu = 5,
                                     .waited = 1,
                                     .busy = 100,
                                     .steal = 3,
                                     .clock_mhz = 3000,
                                     .throttled = 7,
                                     .load = 2,
                                     .cpus = 2,
                                     .gpu = {1700, false, false}};

/* Ten seconds in which this process used both CPUs. */
static tn_bench_moment later(void)
{
    tn_bench_moment m = calm;
    m.wall += 10;
    m.own_cpu += 20;
    m.busy += 20;
    return m;
}

static void verdict(const tn_bench_moment *after, const char *want)
{
    char text[300];
    const tn_bench_watch w = tn_bench_watch_make(&calm, after);
    const bool marked = tn_bench_watch_verdict(&w, text, sizeof text);
    CHECK_INT(marked, want != NULL);
    CHECK_MSG(!want || strstr(text, want), "'%s', want '%s'", text, want);
}

TEST(disturbances_are_marked)
{
    tn_bench_moment m = later();
    verdict(&m, NULL);
    m.busy += 0.5; /* 2.5 % of two CPUs */
    verdict(&m, NULL);
    m = later();
    m.busy += 5;
    verdict(&m, "other programs used 25 %");
    m = later();
    m.steal += 1;
    verdict(&m, "hypervisor took 5 %");
    m = later();
    m.waited += 1;
    verdict(&m, "waited for a CPU 10 %");
    m = later();
    m.clock_mhz = 2500;
    verdict(&m, "3000 to 2500 MHz");
    m = later();
    m.throttled += 2;
    verdict(&m, "throttled for heat 2 times");
    m = later();
    m.gpu.clock_mhz = 1400;
    verdict(&m, "GPU's clock went from 1700 to 1400 MHz");
    m = later();
    m.gpu.slowed = true;
    verdict(&m, "GPU slowed down");
    m = later();
    m.gpu.power_cap = true; /* usual under load */
    verdict(&m, NULL);
}

TEST(what_is_unknown_marks_nothing)
{
    const tn_bench_moment blind = {.wall = 10,
                                   .own_cpu = 5,
                                   .waited = -1,
                                   .busy = -1,
                                   .steal = -1,
                                   .clock_mhz = -1,
                                   .throttled = -1,
                                   .load = -1,
                                   .cpus = 2,
                                   .gpu = {NAN, false, false}};
    tn_bench_moment after = blind;
    char text[300];
    after.wall += 1;
    const tn_bench_watch w = tn_bench_watch_make(&blind, &after);
    CHECK(!tn_bench_watch_verdict(&w, text, sizeof text));
    json_t *o = tn_bench_watch_json(&w);
    CHECK(json_is_null(json_object_get(o, "others_percent")));
    CHECK(json_is_null(json_object_get(o, "clock_before_mhz")));
    json_decref(o);
}

/* ---- placements ------------------------------------------------------------------------------ */

static tn_bench_row *placed(tn_bench_rows *rows, const char *placement, int32_t depth,
                            tn_bench_what what, double rate, double predicted)
{
    const bool prompt = what == TN_BENCH_PROMPT;
    const tn_bench_row like = {.what = what,
                               .n_prompt = prompt ? 100 : 0,
                               .n_gen = prompt ? 0 : 50,
                               .params = {.depth = depth,
                                          .batch = 512,
                                          .kv = "f16",
                                          .isa = "best",
                                          .load = "auto",
                                          .placement = placement,
                                          .vram = "8G"},
                               .label = "emulated"};
    tn_bench_row *row = tn_bench_rows_add(rows, &like);
    row->predicted = predicted;
    tn_bench_samples_add(&row->rate, rate);
    return row;
}

static double regret(const json_t *list, size_t i, const char *placement, const char *key)
{
    const json_t *all = json_object_get(json_array_get(list, i), "placements");
    const json_t *v = json_object_get(json_object_get(all, placement), key);
    return json_is_number(v) ? json_number_value(v) : NAN;
}

TEST(regret_is_beside_the_fastest)
{
    tn_bench_rows rows = {0};
    /* 100 prompt and 50 generated tokens: 1 + 10 s, 2 + 5 s; shorter rows of the same do not count
     */
    placed(&rows, "layers", 0, TN_BENCH_PROMPT, 100, 200);
    placed(&rows, "layers", 0, TN_BENCH_GENERATE, 5, 10);
    placed(&rows, "layers", 0, TN_BENCH_PROMPT, 1, 1)->n_prompt = 10;
    placed(&rows, "layers", 64, TN_BENCH_PROMPT, 100, 200); /* its generation failed */
    placed(&rows, "layers", 64, TN_BENCH_GENERATE, 5, 10)->error = strdup("no");
    placed(&rows, "auto", 0, TN_BENCH_PROMPT, 50, 50);
    placed(&rows, "auto", 0, TN_BENCH_GENERATE, 10, 10);
    placed(&rows, "auto", 0, TN_BENCH_GENERATE, 99, NAN); /* nobody predicted it */
    placed(&rows, "auto", 64, TN_BENCH_PROMPT, 50, 50);
    placed(&rows, "auto", 64, TN_BENCH_GENERATE, 10, 10);
    json_t *list = tn_bench_regret_json(&rows);
    CHECK_INT(json_array_size(list), 1);
    const json_t *o = json_array_get(list, 0);
    CHECK_STR(json_string_value(json_object_get(o, "request")), "100+50 @ d0");
    CHECK_STR(json_string_value(json_object_get(o, "fastest")), "auto");
    CHECK_STR(json_string_value(json_object_get(o, "label")), "emulated");
    CHECK_NEAR(regret(list, 0, "layers", "seconds"), 11, 1e-12);
    CHECK_NEAR(regret(list, 0, "layers", "predicted_seconds"), 5.5, 1e-12);
    CHECK_NEAR(regret(list, 0, "layers", "regret"), 11.0 / 7 - 1, 1e-12);
    CHECK_NEAR(regret(list, 0, "auto", "regret"), 0, 0);
    const json_t *fast = json_object_get(json_object_get(o, "placements"), "auto");
    const json_t *parts = json_object_get(fast, "rows");
    CHECK_INT(json_integer_value(json_array_get(parts, 0)), 5);
    CHECK_INT(json_integer_value(json_array_get(parts, 1)), 6);
    json_decref(list);
    rows.at[1].params.vram = "9G"; /* another budget is another comparison */
    list = tn_bench_regret_json(&rows);
    CHECK_INT(json_array_size(list), 0);
    json_decref(list);
    tn_bench_rows_free(&rows);
}

TEST_MAIN
