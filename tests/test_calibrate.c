/* Measuring this machine, and the file that keeps the result. No figure is checked for its size: a
 * busy machine is slow. */
#include "harness.h"

#include "../engine/calibrate_internal.h"
#include "../engine/file.h"
#include "../engine/hardware.h"

#include <sys/stat.h>
#include <unistd.h>

static const char *const tiny = "tests/data/arch/llama/model-f16.gguf";
static const tn_allocator *const heap = &tn_default_allocator;
static char dir[64], path[96];

static tn_engine *engine_with(const char *cache_dir)
{
    tn_engine *e = NULL;
    const tn_engine_options opt = {.struct_size = sizeof opt, .threads = 2, .cache_dir = cache_dir};
    if (tn_engine_new(&e, &opt, NULL)) FAIL("no engine");
    return e;
}

static bool fresh_dir(void)
{
    snprintf(dir, sizeof dir, "%s/tn-calibrate-XXXXXX", P_tmpdir);
    if (!mkdtemp(dir)) return false;
    snprintf(path, sizeof path, "%s/hardware.json", dir);
    return true;
}

static void remove_dir(void)
{
    remove(path);
    CHECK_MSG(rmdir(dir) == 0, "something is left in the cache directory");
}

static bool read_back(tn_profile *p, const tn_engine *e)
{
    char key[TN_PROFILE_TEXT];
    tn_calibration_key(tn_engine_isa(e), tn_flags(), key);
    return tn_calibration_read(p, path, key, heap);
}

/* Hardware and kernel build. */
static void check_key(const char *key, const tn_engine *e)
{
    tn_host_info h;
    char cores[32], commit[16];
    tn_host_info_get(&h);
    snprintf(cores, sizeof cores, ", %d cores", tn_pool_default_threads());
    snprintf(commit, sizeof commit, " %.12s", tn_commit());
    CHECK_MSG(strstr(key, h.cpu) == key && strstr(key, cores) && strstr(key, tn_engine_isa(e)) &&
                  strstr(key, tn_version()) && strstr(key, commit),
              "'%s'", key);
}

/* Two measurements never take the same time to the bit: each figure is one of its own. */
static void check_rates(const tn_side_rates *r)
{
    for (int i = 0; i < TN_KV_KINDS; i++)
        CHECK(r->kv[i] > 0 && r->kv[i] != r->kv[(i + 1) % TN_KV_KINDS]);
    CHECK(r->flops[0] > 0 && r->flops[1] > 0);
    const bool slow = 2.0 * 4096 * 4096 * TN_BATCH_LARGE / r->flops[0] > 4; /* measured once */
    CHECK(r->flops[0] != r->flops[1] || slow);
}

TEST(every_figure_is_measured_and_kept)
{
    REQUIRE(fresh_dir());
    tn_engine *e = engine_with(dir);
    tn_profile p, q;
    tn_error err = {0};
    char *text = NULL;
    REQUIRE(e && tn_engine_calibrate(e, false, &text, &err) == TN_OK);
    CHECK_MSG(tn_profile_parse(&p, text, strlen(text), "x", &err) == TN_OK, "%s", err.msg);
    CHECK_STR(p.label, "measured");
    CHECK_INT(p.host.threads, 2);
    CHECK_INT(p.n_devices, 0);
    check_key(p.key, e);
    CHECK(p.host.memory_bytes > p.host.reserved_bytes && p.n_sources >= 5);
    CHECK(p.host.n_kinds >= 1 && p.host.kind[0].cores >= 1 && p.host.n_nodes >= 1 &&
          p.host.kind[0].processors >= p.host.kind[0].cores);
    CHECK(p.host.n_scaling == 2 && p.host.scaling[0].threads == 1 &&
          p.host.scaling[1].threads == 2 && p.host.scaling[1].factor == 1);
    int different = 0; /* types are measured one by one */
    for (uint32_t i = 0; i < TN_TYPE_COUNT; i++) {
        if (!tn_type_get(i)->matmul) continue;
        CHECK(p.host.rate.matvec[i] > 0);
        different += p.host.rate.matvec[i] != p.host.rate.matvec[TN_TYPE_F32];
    }
    CHECK(different >= 5);
    check_rates(&p.host.rate);
    CHECK(p.host.scaling[0].factor != 1);
    CHECK(read_back(&q, e));
    CHECK(memcmp(&p.host.rate, &q.host.rate, sizeof p.host.rate) == 0);
    tn_string_free(e, text);
    tn_engine_free(e);
    remove_dir();
}

/* Puts a file into the made-up tree, folders included. */
static void put(const char *file, const char *text)
{
    char full[300];
    snprintf(full, sizeof full, "%s%s", dir, file);
    for (char *s = full + strlen(dir) + 1; *s; s++) {
        if (*s != '/') continue;
        *s = 0;
        mkdir(full, 0700);
        *s = '/';
    }
    REQUIRE(tn_file_replace(full, text, heap, NULL) == TN_OK);
}

static void remove_tree(void)
{
    char full[300];
    snprintf(full, sizeof full, "rm -r '%s'", dir);
    CHECK_INT(system(full), 0);
}

/* A container's cache of files is at its limit after a model has been read; it makes way. */
TEST(free_host_memory_is_read)
{
    REQUIRE(fresh_dir());
    CHECK_INT(tn_host_memory_read(dir), 0);
    put("/proc/meminfo", "MemTotal:  9000 kB\nMemFree:  10 kB\nMemAvailable:   5000 kB\n");
    CHECK_INT(tn_host_memory_read(dir), 5000 << 10);
    put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    put("/sys/fs/cgroup/memory/memory.usage_in_bytes", "3000000\n");
    CHECK_INT(tn_host_memory_read(dir), 5000 << 10);
    put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "4000000\n");
    CHECK_INT(tn_host_memory_read(dir), 1000000);
    put("/sys/fs/cgroup/memory/memory.stat",
        "inactive_file 9\ntotal_inactive_file 300000\ntotal_active_file 20000\n");
    CHECK_INT(tn_host_memory_read(dir), 1320000);
    put("/sys/fs/cgroup/memory.max", "max\n"); /* the other version, no limit */
    CHECK_INT(tn_host_memory_read(dir), 1320000);
    put("/sys/fs/cgroup/memory.max", "2000000\n");
    put("/sys/fs/cgroup/memory.current", "2000000\n");
    CHECK_INT(tn_host_memory_read(dir), 1); /* nothing, which is known */
    put("/sys/fs/cgroup/memory.stat", "anon 5\ninactive_file 700000\nactive_file 50000\n");
    CHECK_INT(tn_host_memory_read(dir), 750000);
    put("/sys/fs/cgroup/memory.stat", "inactive_file 2000001\n");
    CHECK_INT(tn_host_memory_read(dir), 2000000);
    remove_tree();
    CHECK(tn_host_memory_available() > 1 << 20);
}

/* A made-up /sys: a card of 16 lanes in a slot of 4 that idles. */
TEST(links_of_cards_are_read)
{
    static const char *const files[][2] = {{"current_link_speed", "2.5 GT/s PCIe\n"},
                                           {"max_link_speed", "16.0 GT/s PCIe\n"},
                                           {"current_link_width", "4\n"},
                                           {"max_link_width", "16\n"}};
    static const char address[] = "0000:65:00.0", folder[] = "/sys/bus/pci/devices/0000:65:00.0/";
    char file[100];
    tn_pci_link k;
    REQUIRE(fresh_dir());
    tn_pci_link_read(&k, dir, address);
    CHECK(k.gt_s == 0 && k.most_gt_s == 0 && k.width == 0 && k.most_width == 0);
    for (int i = 0; i < 4; i++) {
        snprintf(file, sizeof file, "%s%s", folder, files[i][0]);
        put(file, files[i][1]);
    }
    tn_pci_link_read(&k, dir, address);
    CHECK(k.gt_s == 2.5 && k.most_gt_s == 16 && k.width == 4 && k.most_width == 16);
    snprintf(file, sizeof file, "%s%s", folder, files[0][0]);
    put(file, "Unknown\n");
    tn_pci_link_read(&k, dir, address);
    CHECK(k.gt_s == 0 && k.width == 4);
    tn_pci_link_read(&k, dir, "");
    CHECK(k.gt_s == 0 && k.width == 0);
    remove_tree();
}

/* Writes a profile with a figure no machine has, under a key with something behind it. */
static void forge_more(const char *key, const char *more, int threads)
{
    tn_profile p;
    tn_profile_generic(&p);
    snprintf(p.key, sizeof p.key, "%s%s", key, more);
    snprintf(p.label, sizeof p.label, "measured");
    p.host.threads = threads;
    p.host.rate.kv[TN_KV_KIND_F32] = 123456e9;
    CHECK(tn_calibration_write(&p, path, heap, NULL) == TN_OK);
}

static void forge(const char *key)
{
    forge_more(key, "", 2);
}

static double kv_figure(tn_engine *e, bool again)
{
    tn_profile p = {.n_devices = 0};
    tn_error err = {0};
    char *text = NULL;
    CHECK_MSG(tn_engine_calibrate(e, again, &text, &err) == TN_OK, "%s", err.msg);
    if (text) CHECK(tn_profile_parse(&p, text, strlen(text), "x", NULL) == TN_OK);
    tn_string_free(e, text);
    return p.host.rate.kv[TN_KV_KIND_F32];
}

TEST(the_cache_serves_the_same_machine_and_build_only)
{
    REQUIRE(fresh_dir());
    char key[TN_PROFILE_TEXT], other[TN_PROFILE_TEXT];
    tn_engine *e = engine_with(dir);
    REQUIRE(e);
    tn_calibration_key(tn_engine_isa(e), tn_flags(), key);
    forge(key);
    CHECK_NEAR(kv_figure(e, false), 123456e9, 1e9);
    forge("another machine");
    CHECK(kv_figure(e, false) < 100000e9);
    tn_calibration_key(tn_engine_isa(e), "another compiler -O0", other);
    forge(other);
    CHECK(kv_figure(e, false) < 100000e9);
    forge_more(key, "", 1); /* rates of another number of threads */
    CHECK(kv_figure(e, false) < 100000e9);
    forge(key);
    CHECK(kv_figure(e, true) < 100000e9); /* asked for again */
    FILE *f = fopen(path, "w");
    REQUIRE(f);
    fputs("{ \"format\": broken", f);
    fclose(f);
    CHECK(kv_figure(e, false) < 100000e9);
    tn_profile p;
    CHECK(read_back(&p, e)); /* and the broken file is replaced */
    tn_engine_free(e);
    remove_dir();
}

static void keep_warning(void *user, tn_log_level level, const char *line)
{
    if (level == TN_LOG_WARN) snprintf(user, 400, "%s", line);
}

TEST(a_cache_that_cannot_be_written_is_named)
{
    REQUIRE(fresh_dir());
    REQUIRE(rmdir(dir) == 0);
    tn_engine *e = NULL;
    tn_error err = {0};
    char *text = NULL, warning[400] = "";
    const tn_engine_options opt = {.struct_size = sizeof opt,
                                   .threads = 1,
                                   .log = keep_warning,
                                   .log_user = warning,
                                   .cache_dir = dir};
    REQUIRE(tn_engine_new(&e, &opt, &err) == TN_OK);
    CHECK(tn_engine_calibrate(e, true, &text, &err) == TN_EIO);
    CHECK_MSG(!text && strstr(err.msg, path), "'%s'", err.msg);
    CHECK(tn_engine_calibrate(e, false, &text, NULL) == TN_OK);
    CHECK_MSG(text && strstr(warning, path), "warned: '%s'", warning);
    double rate;
    CHECK(tn_engine_device_read(e, &rate, NULL) == TN_EUNSUPPORTED);
    CHECK(tn_engine_device_multiply(e, &rate, NULL) == TN_EUNSUPPORTED);
    tn_string_free(e, text);
    tn_engine_free(e);
}

/* GB/s to which the emulated device can be slowed: a twentieth of what it reads here and now, with
 * one digit. */
static double slow_rate(void)
{
    tn_engine *e = NULL;
    tn_error err = {0};
    double rate = 0;
    const tn_engine_options opt = {
        .struct_size = sizeof opt, .threads = 1, .device = "emu", .throttle = 1e15};
    CHECK_INT(tn_engine_new(&e, &opt, &err), TN_EARG);
    const char *reads = strstr(err.msg, " reads ");
    CHECK_MSG(!e && reads && sscanf(reads, " reads %lf GB/s", &rate) == 1 && rate > 0, "'%s'",
              err.msg);
    char digit[32];
    snprintf(digit, sizeof digit, "%.0e", rate / 20);
    return strtod(digit, NULL);
}

/* The emulated device, throttled besides: every figure is there and says what it is, and nothing is
 * kept. */
TEST(an_emulated_device_is_measured_and_labelled)
{
    int n;
    if (tn_device_count(TN_DEVICE_EMULATED, &n, NULL) || n == 0) SKIP("no emulated device");
    const double rate = slow_rate();
    REQUIRE(fresh_dir());
    tn_engine *e = NULL;
    tn_error err = {0};
    const tn_engine_options opt = {.struct_size = sizeof opt,
                                   .threads = 2,
                                   .cache_dir = dir,
                                   .device = "emu",
                                   .throttle = rate * 1e9,
                                   .vram_limits = {256u << 20}};
    REQUIRE(tn_engine_new(&e, &opt, &err) == TN_OK);
    char *text = NULL;
    CHECK_MSG(tn_engine_calibrate(e, false, &text, &err) == TN_OK, "%s", err.msg);
    REQUIRE(text);
    tn_profile p;
    CHECK_MSG(tn_profile_parse(&p, text, strlen(text), "x", &err) == TN_OK, "%s", err.msg);
    CHECK_INT(p.n_devices, 1);
    CHECK(p.device[0].memory_bytes > p.device[0].reserved_bytes &&
          p.device[0].memory_bytes - p.device[0].reserved_bytes <= 256u << 20);
    CHECK_MSG(strstr(p.label, "emulated") && strstr(p.device[0].name, "emulated"), "'%s' '%s'",
              p.label, p.device[0].name);
    const tn_profile_device *d = &p.device[0];
    CHECK(d->cross_s > 0 && d->cross_p95_s > d->cross_s);
    CHECK(d->pinned > 0 && d->pageable > 0 && d->pinned != d->pageable);
    check_rates(&d->rate);
    int different = 0;
    for (uint32_t i = 0; i < TN_TYPE_COUNT; i++)
        different += d->rate.matvec[i] != d->rate.matvec[TN_TYPE_F32];
    CHECK(d->rate.op_s > 0 && different >= 10);
    int labelled = 0;
    char text_of[3][64];
    snprintf(text_of[0], sizeof *text_of, "emulated device, throttled to %g GB/s", rate);
    snprintf(text_of[1], sizeof *text_of, "throttled to %g GB/s", rate);
    snprintf(text_of[2], sizeof *text_of, ", throttled to %g GB/s, driver %d, emulated", rate,
             e->device->api->info(e->device)->driver_version);
    for (int i = 0; i < p.n_sources; i++)
        labelled += strstr(p.source[i].text, text_of[0]) != NULL;
    CHECK_INT(labelled, 2);
    CHECK_MSG(strstr(p.label, text_of[1]), "'%s'", p.label);
    CHECK_MSG(strstr(p.key, text_of[2]), "'%s'", p.key);
    uint64_t besides = 0;
    CHECK(e->device->api->throttled_bytes(e->device, &besides, &err) == TN_OK && besides > 0);
    tn_device_memory m;
    CHECK(e->device->api->memory(e->device, &m, NULL) == TN_OK && m.used_bytes == 0 &&
          m.pinned_bytes == 0);
    double read = NAN;
    CHECK_MSG(tn_engine_device_read(e, &read, &err) == TN_OK, "%s", err.msg);
    CHECK_MSG(read > 0 && read < 1e15, "%g bytes per second", read);
    CHECK(e->device->api->memory(e->device, &m, NULL) == TN_OK && m.used_bytes == 0 &&
          m.pinned_bytes == 0);
    e->device->api->fail_at(e->device, TN_FAULT_LAUNCH, 1);
    CHECK(tn_engine_device_read(e, &read, &err) == TN_EDEVICE);
    double flop = NAN;
    CHECK_MSG(tn_engine_device_multiply(e, &flop, &err) == TN_OK, "%s", err.msg);
    CHECK_MSG(flop > 0 && flop < 1e15, "%g flop per second", flop);
    e->device->api->fail_at(e->device, TN_FAULT_LAUNCH, 1);
    CHECK(tn_engine_device_multiply(e, &flop, &err) == TN_EDEVICE);
    e->device->api->fail_at(e->device, TN_FAULT_COPY, 1);
    CHECK(tn_engine_device_multiply(e, &flop, &err) == TN_EDEVICE);
    CHECK(e->device->api->memory(e->device, &m, NULL) == TN_OK && m.used_bytes == 0 &&
          m.pinned_bytes == 0);
    /* A launch that fails is said, and nothing is lost. */
    tn_profile q;
    e->device->api->fail_at(e->device, TN_FAULT_LAUNCH, 20);
    CHECK(tn_calibrate(&q, e, &err) == TN_EDEVICE);
    CHECK(e->device->api->memory(e->device, &m, NULL) == TN_OK && m.used_bytes == 0 &&
          m.pinned_bytes == 0);
    tn_string_free(e, text);
    tn_engine_free(e);
    CHECK_MSG(access(path, F_OK) != 0, "an emulated device's figures are kept");
    remove_dir();
}

/* Host work of which every second pass, that beside the device, takes 2, then 4 times as long. */
static double in_turn(void *arg)
{
    static const double times[] = {1e-3, 2e-3, 1e-3, 4e-3};
    int *n = arg;
    return times[(*n)++ % 4];
}

TEST(contended_pairs_by_hand)
{
    int n, passes = 0;
    if (tn_device_count(TN_DEVICE_EMULATED, &n, NULL) || n == 0) SKIP("no emulated device");
    tn_engine *e = NULL;
    tn_error err = {0};
    tn_profile p = {.n_devices = 0};
    const tn_engine_options opt = {.struct_size = sizeof opt, .threads = 1, .device = "emu"};
    REQUIRE(tn_engine_new(&e, &opt, &err) == TN_OK);
    CHECK_MSG(tn_calibrate_device(&p, e, in_turn, &passes, &err) == TN_OK, "%s", err.msg);
    const tn_profile_contended *c = &p.contended;
    CHECK_INT(passes, 4);
    CHECK(c->host_beside_copy == 0.5 && c->host_beside_device == 0.25);
    /* Beside each other is never slower than one after the other. */
    CHECK(c->copy_beside_host >= 0.5 && c->copy_beside_host <= 1);
    CHECK(c->device_beside_host >= 0.75 && c->device_beside_host <= 1);
    tn_engine_free(e);
}

/* Slow devices have a profile of their own, and nobody plans with it who did not ask for them. */
TEST(a_throttled_device_is_labelled_and_kept_apart)
{
    int n;
    if (tn_device_count(TN_DEVICE_EMULATED, &n, NULL) || n == 0) SKIP("no emulated device");
    tn_engine *e = NULL;
    tn_error err = {0};
    const double rate = slow_rate();
    char slow_label[64];
    snprintf(slow_label, sizeof slow_label, "emulated, throttled to %g GB/s", rate);
    const char *const labels[] = {slow_label, "emulated", "measured"};
    tn_engine_options opt = {.struct_size = sizeof opt, .threads = 1, .throttle = rate * 1e9};
    CHECK_INT(tn_engine_new(&e, &opt, &err), TN_EARG);
    CHECK_MSG(!e && strstr(err.msg, "without a device"), "'%s'", err.msg);
    for (int i = 0; i < 3; i++) {
        opt.device = i < 2 ? "emu" : NULL;
        opt.throttle = i == 0 ? rate * 1e9 : 0;
        REQUIRE(tn_engine_new(&e, &opt, &err) == TN_OK);
        CHECK_STR(tn_engine_label(e), labels[i]);
        char *text = NULL;
        CHECK_INT(tn_env_json(e, &text, &err), TN_OK);
        const char *slowed = strstr(text, "\"throttle_gb_per_second\":");
        double said = 0;
        if (slowed) sscanf(strchr(slowed, ':'), ":%lf,\"slower\":", &said);
        CHECK_MSG(i == 0 ? fabs(said / rate - 1) < 1e-9 : said == 0, "%s", text);
        tn_string_free(e, text);
        tn_engine_free(e);
    }
    char *plain = tn_calibration_path("d", false, heap),
         *slow = tn_calibration_path("d", true, heap);
    CHECK_STR(plain, "d/hardware.json");
    CHECK_STR(slow, "d/hardware-throttled.json");
    tn_free(heap, plain);
    tn_free(heap, slow);
}

TEST(placement_uses_what_was_measured)
{
    REQUIRE(fresh_dir());
    char key[TN_PROFILE_TEXT];
    tn_calibration_key(tn_isa_name(tn_isa_detect()), tn_flags(), key);
    for (int measured = 0; measured < 2; measured++) {
        tn_placement *p;
        tn_error err = {0};
        const tn_placement_options opt = {.struct_size = sizeof opt, .cache_dir = dir};
        if (measured) forge(key);
        REQUIRE(tn_placement_open(&p, tiny, &opt, &err) == TN_OK);
        tn_placement_info f = {.struct_size = sizeof f};
        CHECK(tn_placement_get_info(p, &f, &err) == TN_OK);
        CHECK_MSG((strstr(f.label, "measured") != NULL) == measured, "label '%s'", f.label);
        tn_placement_close(p);
    }
    tn_profile p; /* devices may follow, but nothing else */
    forge_more(key, ", a card", 2);
    CHECK(tn_calibration_read(&p, path, key, heap));
    forge_more(key, "1", 2);
    CHECK(!tn_calibration_read(&p, path, key, heap));
    remove_dir();
}

TEST_MAIN
