/* Placements as the public header makes them, and the profiles of machines. */
#include "plan_random.h"

#include "../engine/tenon.h"

#include <unistd.h>

static const tn_allocator *const heap = &tn_default_allocator;
static const char *const tiny = "tests/data/arch/llama/model-f16.gguf";

TEST(placement_of_a_file)
{
    tn_placement *p;
    tn_error err = {0};
    tn_placement_options opt = {.struct_size = sizeof opt, .hardware = "rtx3060-ddr4"};
    REQUIRE(tn_placement_open(&p, tiny, &opt, &err) == TN_OK);
    tn_placement_info f = {.struct_size = sizeof f};
    CHECK(tn_placement_get_info(p, &f, &err) == TN_OK);
    CHECK(f.feasible && f.n_layers > 0 && f.n_devices == 1 && f.predicted.request_s > 0);
    CHECK_STR(f.hardware, "rtx3060-ddr4");
    for (int32_t l = 0; l <= f.n_layers; l++) {
        tn_placement_row row;
        CHECK(tn_placement_get_row(p, l, &row, &err) == TN_OK);
        CHECK(row.ffn_share >= 0 && row.ffn_share <= 1 && *row.ffn_reason);
    }
    tn_placement_row row;
    tn_placement_memory mem;
    CHECK(tn_placement_get_row(p, f.n_layers + 1, &row, &err) == TN_EARG);
    CHECK(tn_placement_get_row(p, -1, &row, &err) == TN_EARG);
    CHECK(tn_placement_get_memory(p, 1, &mem, &err) == TN_EARG);
    CHECK(tn_placement_get_memory(p, -1, &mem, &err) == TN_OK && mem.budget_bytes > 0);
    tn_placement_close(p);
}

TEST(options_are_taken_as_they_are_meant)
{
    static const struct {
        const char *request;
        int64_t n_prompt, n_generated;
    } requests[] = {
        {NULL, 2048, 512}, {"chat", 2048, 512}, {"long", 24576, 512}, {"batch", 8192, 32}};
    const char *const rule = "ffn=host";
    tn_placement *p;
    tn_error err = {0};
    tn_placement_options opt = {
        .struct_size = sizeof opt, .hardware = "rtx3060-ddr4", .n_ctx = 32768};
    for (size_t i = 0; i < sizeof requests / sizeof *requests; i++) {
        tn_placement_info f = {.struct_size = sizeof f};
        opt.request = requests[i].request;
        opt.n_devices = (int32_t)i;
        REQUIRE(tn_placement_open(&p, "llama-8b:q4_k_m", &opt, &err) == TN_OK);
        CHECK(tn_placement_get_info(p, &f, &err) == TN_OK);
        CHECK_INT(f.n_prompt, requests[i].n_prompt);
        CHECK_INT(f.n_generated, requests[i].n_generated);
        CHECK_INT(f.n_devices, i ? (int)i : 1);
        CHECK(!strcmp(f.hardware, "rtx3060-ddr4") == (i < 2));
        tn_placement_close(p);
    }
    opt.place = &rule;
    opt.n_place = 1;
    opt.plan_file = "tests/none.json";
    CHECK(tn_placement_open(&p, tiny, &opt, &err) == TN_EARG && strstr(err.msg, "contradict") &&
          strstr(err.msg, rule) && strstr(err.msg, "none.json"));
}

TEST(placement_of_this_machine_knows_its_memory)
{
    tn_placement *p;
    tn_placement_memory host;
    tn_error err = {0};
    REQUIRE(tn_placement_open(&p, tiny, NULL, &err) == TN_OK);
    tn_placement_info f = {.struct_size = sizeof f};
    CHECK(tn_placement_get_info(p, &f, &err) == TN_OK);
    CHECK(tn_placement_get_memory(p, -1, &host, &err) == TN_OK);
    const uint64_t all = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    CHECK_MSG(host.budget_bytes > 0 && host.budget_bytes <= all, "%llu of %llu bytes",
              (unsigned long long)host.budget_bytes, (unsigned long long)all);
    for (size_t i = 0; tn_hardware_name(i); i++)
        CHECK_MSG(strcmp(f.hardware, tn_hardware_name(i)) != 0, "this machine is no %s",
                  f.hardware);
    tn_placement_close(p);
}

TEST(placement_refuses_by_name)
{
    static const struct {
        const char *path, *hardware, *plan, *request;
        tn_status status;
        const char *word;
    } cases[] = {
        {"tests/data/nothing.gguf", NULL, NULL, NULL, TN_ENOENT, "nothing.gguf"},
        {"tests/harness.h", NULL, NULL, NULL, TN_EFORMAT, "harness.h"},
        {"tests/data/arch/llama/model-f16.gguf", "rtx9999", NULL, NULL, TN_ENOENT, "rtx3060-ddr4"},
        {"tests/data/arch/llama/model-f16.gguf", "tests/harness.h", NULL, NULL, TN_EFORMAT,
         "harness.h"},
        {"tests/data/arch/llama/model-f16.gguf", NULL, "tests/none.json", NULL, TN_ENOENT,
         "none.json"},
        {"tests/data/arch/llama/model-f16.gguf", NULL, "tests/harness.h", NULL, TN_EFORMAT,
         "harness.h"},
        {"tests/data/arch/llama/model-f16.gguf", NULL, NULL, "soon", TN_EARG, "--for"},
        {"tests/data/arch/llama/model-f16.gguf", NULL, NULL, "1+", TN_EARG, "--for"},
        {"tests/data/arch/llama/model-f16.gguf", NULL, NULL, "1+1@x", TN_EARG, "--for"},
        {"tests/data/arch/llama/model-f16.gguf", NULL, NULL, "0+0", TN_EARG, "--for"},
        {"llama-9000b:q4_k_m", NULL, NULL, NULL, TN_EARG, "llama-70b"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tn_placement *p;
        tn_error err = {0};
        tn_placement_options opt = {.struct_size = sizeof opt,
                                    .hardware = cases[i].hardware,
                                    .plan_file = cases[i].plan,
                                    .request = cases[i].request};
        const tn_status s = tn_placement_open(&p, cases[i].path, &opt, &err);
        CHECK_MSG(s == cases[i].status && !p && strstr(err.msg, cases[i].word), "case %zu: %d '%s'",
                  i, (int)s, err.msg);
        if (!s) tn_placement_close(p);
    }
}

/* Every way to place can be asked for, and is then planned as it was predicted beside the best. */
TEST(candidates_by_name)
{
    tn_placement *best, *p;
    tn_error err = {0};
    tn_placement_options opt = {.struct_size = sizeof opt,
                                .hardware = "rtx3060-ddr4",
                                .request = "512+128@4096",
                                .n_ctx = 8192,
                                .vram = {4ull << 30}};
    REQUIRE(tn_placement_open(&best, "llama-8b:q4_k_m", &opt, &err) == TN_OK);
    bool fits;
    tn_placement_prediction want;
    size_t n = 0;
    for (; (opt.candidate = tn_placement_candidate(best, n, &fits, &want)); n++) {
        tn_placement_info f = {.struct_size = sizeof f};
        const tn_status s = tn_placement_open(&p, "llama-8b:q4_k_m", &opt, &err);
        CHECK_MSG(s == (fits ? TN_OK : TN_ENOMEM), "%s: %d", opt.candidate, (int)s);
        if (s) continue;
        CHECK(tn_placement_get_info(p, &f, &err) == TN_OK && f.feasible);
        CHECK_STR(f.chosen, opt.candidate);
        CHECK_NEAR(f.predicted.request_s, want.request_s, 0);
        CHECK_NEAR(f.predicted.step_s, want.step_s, 0);
        tn_placement_close(p);
    }
    CHECK_INT(n, 5);
    tn_placement_close(best);
    opt.candidate = "best";
    CHECK(tn_placement_open(&p, tiny, &opt, &err) == TN_EARG && strstr(err.msg, "'best'"));
    opt.candidate = "layers";
    opt.plan_file = "tests/none.json";
    CHECK(tn_placement_open(&p, tiny, &opt, &err) == TN_EARG && strstr(err.msg, "'layers'"));
    opt.plan_file = NULL;
    opt.candidate = "ffn-host";
    opt.vram[0] = 4096;
    CHECK(tn_placement_open(&p, tiny, &opt, &err) == TN_ENOMEM && strstr(err.msg, "does not fit"));
}

/* A device with room for its buffers alone serves prompts, a smaller one nothing. */
TEST(plans_that_only_carry_weights_use_the_device)
{
    static const struct {
        int64_t more; /* than the buffers */
        int32_t n_batch;
        bool used;
    } cases[] = {{10, 64, true}, {-10, 64, false}, {10, 16, false}, {4 << 20, 16, true}};
    tn_placement *p;
    tn_error err = {0};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tn_placement_options opt = {.struct_size = sizeof opt,
                                    .hardware = "rtx3060-ddr4",
                                    .request = "500+1",
                                    .n_batch = cases[i].n_batch,
                                    .place = (const char *[]){".*=device"},
                                    .n_place = 1};
        tn_placement_memory m;
        tn_placement_info f = {.struct_size = sizeof f};
        REQUIRE(tn_placement_open(&p, "tiny-llama:f16", &opt, &err) == TN_OK);
        REQUIRE(tn_placement_get_memory(p, 0, &m, NULL) == TN_OK);
        REQUIRE(tn_placement_get_info(p, &f, NULL) == TN_OK);
        CHECK(f.devices_used);
        tn_placement_close(p);
        opt.n_place = 0;
        opt.vram[0] = (uint64_t)((int64_t)m.buffer_bytes + cases[i].more);
        REQUIRE(tn_placement_open(&p, "tiny-llama:f16", &opt, &err) == TN_OK);
        REQUIRE(tn_placement_get_memory(p, 0, &m, NULL) == TN_OK);
        REQUIRE(tn_placement_get_info(p, &f, NULL) == TN_OK);
        CHECK_MSG(f.devices_used == cases[i].used, "case %zu: %s, from %lld", i, f.chosen,
                  (long long)f.predicted.streamed_from);
        CHECK((m.weight_bytes > 0) == (cases[i].more > 1000));
        CHECK((f.predicted.streamed_from > 0) == (i == 0) || i == 3);
        tn_placement_close(p);
    }
}

TEST(shipped_profiles_are_readable_and_say_their_sources)
{
    static const char *const figures[] = {"host.memory_bytes",    "host.cores",
                                          "host.matvec_gb_s",     "host.kv_gb_s",
                                          "host.prefill_tflops",  "host.op_us",
                                          "devices.memory_bytes", "devices.matvec_gb_s",
                                          "devices.kv_gb_s",      "devices.prefill_tflops",
                                          "devices.pinned_gb_s",  "devices.pageable_gb_s",
                                          "devices.crossing_us",  "devices.op_us",
                                          "devices.pcie",         "contended"};
    int n = 0;
    for (; tn_hardware_name((size_t)n); n++) {
        tn_profile p, q;
        tn_error err = {0};
        char *text, *again;
        REQUIRE(tn_hardware_json(tn_hardware_name((size_t)n), &text, &err) == TN_OK);
        CHECK_MSG(tn_profile_parse(&p, text, strlen(text), "x", &err) == TN_OK, "%s", err.msg);
        REQUIRE(tn_profile_shipped(&q, tn_hardware_name((size_t)n)));
        REQUIRE(tn_profile_json(&q, &again, heap, &err) == TN_OK);
        CHECK_STR(text, again);
        tn_free(heap, again);
        REQUIRE(tn_profile_json(&p, &again, heap, &err) == TN_OK); /* as it was read */
        CHECK_STR(text, again);
        tn_free(heap, again);
        for (size_t j = 0; j < sizeof figures / sizeof *figures; j++) {
            int found = 0;
            for (int i = 0; i < p.n_sources; i++)
                found +=
                    strcmp(p.source[i].figure, figures[j]) == 0 && strlen(p.source[i].text) > 9;
            CHECK_MSG(found == 1, "%s: %d sources of %s", p.name, found, figures[j]);
        }
        CHECK(strstr(p.label, "assumed"));
        int cores = 0, of_nodes = 0;
        for (int i = 0; i < p.host.n_kinds; i++)
            cores += p.host.kind[i].cores;
        for (int i = 0; i < p.host.n_nodes; i++)
            of_nodes += p.host.node[i].cores;
        CHECK(cores == p.host.cores && of_nodes == p.host.cores && p.host.n_nodes >= 1);
        /* No copy is faster than its link: transfers, lanes, and 128 of 130 bits of payload. */
        for (int i = 0; i < p.n_devices; i++) {
            const tn_pci_link *k = &p.device[i].link;
            const double most = k->gt_s * 1e9 / 8 * k->width * 128 / 130;
            CHECK_MSG(p.device[i].pinned > 0.5 * most && p.device[i].pinned < most,
                      "%s: %.3g of %.3g bytes per second", p.name, p.device[i].pinned, most);
            CHECK(p.device[i].cross_s > 0 && p.device[i].cross_p95_s >= p.device[i].cross_s);
        }
        tn_hardware_string_free(text);
    }
    CHECK(n >= 5);
}

/* The published figures by hand: 360 GB/s of the card, two channels of 3,200 million transfers of 8
 * bytes, with the shares of them that the sources tell of. */
TEST(a_shipped_profile_by_hand)
{
    tn_profile p;
    REQUIRE(tn_profile_shipped(&p, "rtx3060-ddr4"));
    const tn_profile_device *d = &p.device[0];
    CHECK_INT(d->memory_bytes, 12ull << 30);
    CHECK_NEAR(d->rate.matvec[TN_TYPE_Q4_K], 0.85 * 360e9, 1);
    CHECK_NEAR(d->rate.kv[TN_KV_KIND_F16], 0.75 * 360e9, 1);
    CHECK_NEAR(p.host.rate.matvec[TN_TYPE_Q4_K], 0.8 * 2 * 3200e6 * 8, 1);
    CHECK(d->link.gt_s == 16 && d->link.width == 16 && d->pinned == 22e9 && p.host.cores == 6);
    int said = 0;
    for (int i = 0; i < p.n_sources; i++)
        said += strstr(p.source[i].text, "360 GB/s x 0.85") ||
                strstr(p.source[i].text, "51.2 GB/s x 0.80");
    CHECK_INT(said, 2);
}

/* A machine with cores of two kinds, two nodes and a slow slot, through JSON and back; and what no
 * machine has. */
TEST(profiles_know_cores_nodes_and_links)
{
    static const struct {
        const char *from, *to, *word;
    } bad[] = {{"\"kinds\": [", "\"kinds\": [7, ", "kinds[0]"},
               {"\"processors\": 12", "\"processors\": -1", "kinds[0].processors"},
               {"\"mhz\": 5000", "\"mhz\": \"fast\"", "kinds[0].mhz"},
               {"\"mhz\": 5000", "\"ghz\": 5", "ghz"},
               {"\"nodes\": [", "\"nodes\": [[], ", "nodes[0]"},
               {"\"memory_bytes\": 1073741824", "\"memory_bytes\": -1", "nodes[1].memory_bytes"},
               {"\"gt_s\": 2.5", "\"gt_s\": -2.5", "pcie.gt_s"},
               {"\"width\": 4", "\"width\": 400", "pcie.width"},
               {"\"width\": 4", "\"lanes\": 4", "lanes"}};
    tn_profile p, q;
    char *text;
    tn_error err = {0};
    REQUIRE(tn_profile_shipped(&p, "rtx3060-ddr4"));
    p.host.n_kinds = p.host.n_nodes = 2;
    p.host.kind[0].cores = 6, p.host.kind[0].processors = 12, p.host.kind[0].mhz = 5000;
    p.host.kind[1].cores = 8, p.host.kind[1].processors = 8, p.host.kind[1].mhz = 3900;
    p.host.node[0].cores = 14, p.host.node[0].memory_bytes = 1ull << 35;
    p.host.node[1].cores = 0, p.host.node[1].memory_bytes = 1ull << 30;
    p.device[0].link = (tn_pci_link){2.5, 16, 4, 16};
    REQUIRE(tn_profile_json(&p, &text, heap, NULL) == TN_OK);
    CHECK_MSG(tn_profile_parse(&q, text, strlen(text), "x", &err) == TN_OK, "%s", err.msg);
    CHECK(memcmp(&p.host.kind, &q.host.kind, sizeof p.host.kind) == 0);
    CHECK(memcmp(&p.host.node, &q.host.node, sizeof p.host.node) == 0);
    CHECK(q.host.n_kinds == 2 && q.host.n_nodes == 2);
    CHECK(memcmp(&p.device[0].link, &q.device[0].link, sizeof p.device[0].link) == 0);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char broken[16384];
        const char *at = strstr(text, bad[i].from);
        REQUIRE(at && strlen(text) + 64 < sizeof broken);
        snprintf(broken, sizeof broken, "%.*s%s%s", (int)(at - text), text, bad[i].to,
                 at + strlen(bad[i].from));
        CHECK_MSG(tn_profile_parse(&q, broken, strlen(broken), "x", &err) == TN_EFORMAT &&
                      strstr(err.msg, bad[i].word),
                  "%s: '%s'", bad[i].to, err.msg);
    }
    tn_free(heap, text);
}

/* Rates between those that were measured, and pairs that cannot be. */
TEST(rates_are_interpolated_and_pairs_are_possible)
{
    tn_profile p;
    tn_error err = {0};
    REQUIRE(tn_profile_shipped(&p, "rtx3060-ddr4"));
    const tn_side_rates r = {.flops = {1e9, 3e9}};
    CHECK_NEAR(tn_profile_flops(&r, 1), 1e9, 1);
    CHECK_NEAR(tn_profile_flops(&r, 1 << 20), 3e9, 1);
    const double middle = sqrt((double)TN_BATCH_SMALL * TN_BATCH_LARGE);
    CHECK_MSG(fabs(tn_profile_flops(&r, (int64_t)middle) - 2e9) < 3e7, "%g of a batch of %g",
              tn_profile_flops(&r, (int64_t)middle), middle);
    tn_profile_host h = {.threads = 8, .n_scaling = 3, .scaling = {{2, 0.5}, {4, 0.75}, {8, 1}}};
    static const double factor[] = {1, 0.25, 0.5, 0.625, 0.75, 0.8125, 0.875, 0.9375, 1, 1};
    for (int threads = 0; threads < 10; threads++)
        CHECK_NEAR(tn_profile_scale(&h, threads), factor[threads], 1e-6);
    CHECK_INT(tn_profile_check(&p, "x", &err), TN_OK);
    for (int i = 0; i < 2; i++) {
        tn_profile bad = p;
        /* Two at once are slower than either, but not than one after the other. */
        if (i)
            bad.contended.host_beside_device = bad.contended.device_beside_host = 0.4;
        else
            bad.contended.host_beside_copy = bad.contended.copy_beside_host = 0.4;
        CHECK(tn_profile_check(&bad, "x", &err) == TN_EFORMAT &&
              strstr(err.msg, i ? "host_beside_device + device" : "host_beside_copy + copy"));
    }
    p.device[0].cross_s = NAN;
    CHECK(tn_profile_check(&p, "x", &err) == TN_EFORMAT && strstr(err.msg, "crossing_us"));
}

TEST_MAIN
