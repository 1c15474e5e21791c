/* The thread pool: each item exactly once, whatever the threads, the grain and the load; and the
 * default number of threads from made-up machines. */
#include "harness.h"

#include "../kernels/pool.h"
#include "../kernels/topology.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_ITEMS = 4096 };

typedef struct job {
    int64_t n_items, grain;
    int n_threads;
    bool uneven;
    atomic_int seen[MAX_ITEMS];
    atomic_int bad_ranges, bad_workers;
    atomic_int busy[16]; /* calls running as worker i: never more than one */
    double sink[16];
} job;

static void count(void *arg, int64_t begin, int64_t end, int worker)
{
    job *j = arg;
    if (worker < 0 || worker >= j->n_threads) {
        j->bad_workers++;
        return;
    }
    if (atomic_fetch_add(&j->busy[worker], 1) != 0) j->bad_workers++;
    if (begin < 0 || begin >= end || end > j->n_items || begin % j->grain != 0 ||
        (end % j->grain != 0 && end != j->n_items))
        j->bad_ranges++;
    for (int64_t i = begin; i < end && i < MAX_ITEMS; i++) {
        j->seen[i]++;
        for (int k = 0; j->uneven && k < (i % 61 == 0 ? 3000 : 3); k++)
            j->sink[worker] = j->sink[worker] * 0.5 + k;
    }
    atomic_fetch_sub(&j->busy[worker], 1);
}

static void run_and_check(tn_pool *p, job *j)
{
    for (int64_t i = 0; i < MAX_ITEMS; i++) atomic_init(&j->seen[i], 0);
    tn_pool_run(p, count, j, j->n_items, j->grain);
    for (int64_t i = 0; i < MAX_ITEMS; i++)
        if (atomic_load(&j->seen[i]) != (i < j->n_items)) {
            FAIL("item %lld of %lld ran %d times (%d threads, grain %lld)", (long long)i,
                 (long long)j->n_items, atomic_load(&j->seen[i]), j->n_threads,
                 (long long)j->grain);
            break;
        }
    CHECK_INT(j->bad_ranges, 0);
    CHECK_INT(j->bad_workers, 0);
}

/* Threads 0 and 1 on one node, 2 on the next, ...; none of whose processors exist. */
static tn_pool_nodes some_nodes(int n_threads)
{
    tn_pool_nodes nodes = {1, {0, n_threads < 2 ? n_threads : 2}, {{{0}}}};
    for (int i = 2; i < n_threads; i++)
        nodes.first[++nodes.n] = i + 1;
    return nodes;
}

static void sweep(int n_threads, bool apart, int repeats)
{
    const tn_pool_nodes nodes = some_nodes(n_threads);
    static const int64_t sizes[] = {0, 1, 2, 3, 7, 8, 9, 31, 64, 100, 1000, 1023, 4096};
    static const int64_t grains[] = {1, 2, 8, 32, 5000};
    tn_pool *p = NULL;
    job *j = calloc(1, sizeof *j);
    REQUIRE(j);
    REQUIRE(tn_pool_new(&p, n_threads, apart ? &nodes : NULL, &tn_default_allocator, NULL) ==
            TN_OK);
    CHECK_INT(tn_pool_threads(p), n_threads);
    j->n_threads = n_threads;
    for (int r = 0; r < repeats; r++)
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
            for (size_t g = 0; g < sizeof grains / sizeof *grains; g++) {
                j->n_items = sizes[s];
                j->grain = grains[g];
                j->uneven = (r + s + g) % 2;
                run_and_check(p, j);
            }
    tn_pool_free(p);
    free(j);
}

TEST(every_item_exactly_once)
{
    for (int n = 1; n <= 8; n++) {
        sweep(n, false, 2);
        sweep(n, true, 1);
    }
}

static void sum_range(void *arg, int64_t begin, int64_t end, int worker)
{
    (void)worker;
    for (int64_t i = begin; i < end; i++) ((int64_t *)arg)[i] += i;
}

/* Plain memory written in one loop is seen by the next, and by the caller; workers are overtaken by
 * loops so short that they miss them. */
TEST(many_short_loops)
{
    enum { N = 24, LOOPS = 20000 };
    for (int threads = 2; threads <= 4; threads += 2) {
        int64_t v[N] = {0};
        tn_pool *p = NULL;
        REQUIRE(tn_pool_new(&p, threads, NULL, &tn_default_allocator, NULL) == TN_OK);
        for (int r = 0; r < LOOPS; r++) tn_pool_run(p, sum_range, v, N, 1 + r % 3);
        for (int i = 0; i < N; i++) CHECK_INT(v[i], (int64_t)LOOPS * i);
        tn_pool_free(p);
    }
}

/* Pauses longer than the spinning, so that workers and caller sleep and are woken. */
static void nap(void *arg, int64_t begin, int64_t end, int worker)
{
    (void)worker;
    for (int64_t i = begin; i < end; i++) {
        if (i % 8 == 3) usleep(300);
        atomic_fetch_add((atomic_int *)arg, 1);
    }
}

TEST(sleeping_and_waking)
{
    tn_pool *p = NULL;
    atomic_int n = 0;
    REQUIRE(tn_pool_new(&p, 3, NULL, &tn_default_allocator, NULL) == TN_OK);
    for (int r = 0; r < 50; r++) {
        tn_pool_run(p, nap, &n, 16, 1);
        if (r % 5 == 0) usleep(2000);
    }
    CHECK_INT(atomic_load(&n), 50 * 16);
    tn_pool_free(p);
}

/* Every item waits until all have begun: passes only if all threads work at the same time. Who
 * waits in vain makes the count wrong. */
static void meet(void *arg, int64_t begin, int64_t end, int worker)
{
    (void)worker, (void)begin, (void)end;
    int i = 0;
    atomic_fetch_add((atomic_int *)arg, 1);
    while (i < 20000 && atomic_load((atomic_int *)arg) < 4) usleep(500), i++;
    if (i == 20000) atomic_fetch_add((atomic_int *)arg, 100);
}

TEST(all_threads_work)
{
    tn_pool *p = NULL;
    REQUIRE(tn_pool_new(&p, 4, NULL, &tn_default_allocator, NULL) == TN_OK);
    for (int r = 0; r < 20; r++) {
        atomic_int n = 0;
        tn_pool_run(p, meet, &n, 4, 1);
        CHECK_INT(atomic_load(&n), 4);
        usleep(r % 3 * 200);
    }
    tn_pool_free(p);
}

/* Four threads on two nodes, a unit each but for the third and the last: those of threads 0 and 2
 * are slow. Whoever is free helps its neighbour, and not the other node's slow thread. */
typedef struct helping {
    atomic_int by[64]; /* who did unit i, + 1 */
} helping;

static void help_or_sleep(void *arg, int64_t begin, int64_t end, int worker)
{
    helping *h = arg;
    for (int64_t i = begin; i < end; i++) {
        atomic_store(&h->by[i], worker + 1);
        if (i / 16 % 2 == 0) usleep(500);
    }
}

TEST(a_thread_helps_its_own_node_first)
{
    const tn_pool_nodes nodes = {2, {0, 2, 4}, {{{0}}}};
    tn_pool *p = NULL;
    helping h;
    int own = 0, other = 0;
    REQUIRE(tn_pool_new(&p, 4, &nodes, &tn_default_allocator, NULL) == TN_OK);
    for (int r = 0; r < 20; r++) {
        memset(&h, 0, sizeof h);
        tn_pool_run(p, help_or_sleep, &h, 64, 1);
        for (int i = 0; i < 64; i++) {
            const int by = atomic_load(&h.by[i]) - 1, owner = i / 16;
            own += by != owner && by / 2 == owner / 2;
            other += by / 2 != owner / 2;
        }
    }
    tn_pool_free(p);
    if (own <= other) FAIL("%d units were done by neighbours, %d by the other node", own, other);
}

/* Between loops the number in use changes; nobody beyond it works, nothing is left out. */
static void only_these(void *arg, int64_t begin, int64_t end, int worker)
{
    job *j = arg;
    if (worker >= j->n_threads) j->bad_workers++;
    for (int64_t i = begin; i < end; i++) j->seen[i]++;
    usleep(20);
}

TEST(some_threads_rest)
{
    tn_pool *p = NULL;
    job *j = calloc(1, sizeof *j);
    REQUIRE(j && tn_pool_new(&p, 5, NULL, &tn_default_allocator, NULL) == TN_OK);
    CHECK_INT(tn_pool_in_use(p), 5);
    int loops = 0;
    for (int r = 0; r < 60; r++) {
        j->n_threads = 1 + r * 7 % 5;
        tn_pool_use(p, j->n_threads);
        CHECK_INT(tn_pool_in_use(p), j->n_threads);
        for (int k = 0; k < r % 4; k++, loops++) tn_pool_run(p, only_these, j, 64, 1);
        if (r % 16 == 0) usleep(1000);
    }
    for (int i = 0; i < 64; i++) CHECK_INT(atomic_load(&j->seen[i]), loops);
    CHECK_INT(j->bad_workers, 0);
    tn_pool_use(p, 2);
    for (int k = 0; k < 8; k++) tn_pool_run(p, only_these, j, 64, 1);
    tn_pool_free(p); /* while three rest */
    free(j);
}

/* Whoever rested works again. */
TEST(all_threads_work_after_a_rest)
{
    tn_pool *p = NULL;
    REQUIRE(tn_pool_new(&p, 4, NULL, &tn_default_allocator, NULL) == TN_OK);
    for (int r = 0; r < 10; r++) {
        atomic_int n = 0, rounds = 0;
        tn_pool_use(p, 1 + r % 3);
        for (int i = 0; i < 8; i++) tn_pool_run(p, nap, &rounds, 16, 1);
        tn_pool_use(p, 4);
        tn_pool_run(p, meet, &n, 4, 1);
        CHECK_INT(atomic_load(&n), 4);
    }
    tn_pool_free(p);
}

static void where(void *arg, int64_t begin, int64_t end, int worker)
{
    for (int64_t i = begin; i < end; i++) {
        pthread_getaffinity_np(pthread_self(), sizeof(cpu_set_t), (cpu_set_t *)arg + worker);
        usleep(2000);
    }
}

TEST(workers_are_bound_to_their_node)
{
    cpu_set_t all, seen[2];
    tn_pool_nodes nodes = {2, {0, 1, 2}, {{{0}}}};
    tn_pool *p = NULL;
    int cpu = CPU_SETSIZE - 1;
    REQUIRE(pthread_getaffinity_np(pthread_self(), sizeof all, &all) == 0);
    while (!CPU_ISSET(cpu, &all)) cpu--;
    nodes.set[1].word[cpu / 64] = 1ULL << cpu % 64;
    REQUIRE(tn_pool_new(&p, 2, &nodes, &tn_default_allocator, NULL) == TN_OK);
    CPU_ZERO(&seen[1]);
    for (int r = 0; r < 100 && !CPU_COUNT(&seen[1]); r++) tn_pool_run(p, where, seen, 2, 1);
    tn_pool_free(p);
    CHECK(CPU_EQUAL(&seen[0], &all)); /* the caller stays where it was */
    CHECK_INT(CPU_COUNT(&seen[1]), 1);
    CHECK(CPU_ISSET(cpu, &seen[1]));
}

static void *own_pool(void *arg)
{
    int64_t v[64] = {0};
    tn_pool *p = NULL;
    if (tn_pool_new(&p, 2, NULL, &tn_default_allocator, NULL)) return arg;
    for (int r = 0; r < 500; r++) tn_pool_run(p, sum_range, v, 64, 4);
    tn_pool_free(p);
    for (int i = 0; i < 64; i++)
        if (v[i] != 500 * i) return arg;
    return NULL;
}

TEST(several_pools_at_once)
{
    pthread_t t[4];
    void *wrong = NULL;
    int one = 1;
    for (int i = 0; i < 4; i++) REQUIRE(pthread_create(&t[i], NULL, own_pool, &one) == 0);
    for (int i = 0; i < 4; i++) {
        pthread_join(t[i], &wrong);
        CHECK(wrong == NULL);
    }
}

/* Stops a pool while its workers are on their way from one loop to the next. */
TEST(stopping_at_any_moment)
{
    int64_t v[16] = {0};
    for (int r = 0; r < 12000; r++) {
        tn_pool *p = NULL;
        REQUIRE(tn_pool_new(&p, 2 + r % 2, NULL, &tn_default_allocator, NULL) == TN_OK);
        for (volatile int i = 0; i < r % 4 * 20000; i++) {
        }
        for (int i = 0; i < 1 + r % 3; i++) tn_pool_run(p, sum_range, v, 2, 1);
        for (volatile int i = 0; i < r % 128; i++) {
        }
        tn_pool_free(p);
    }
}

static void *no_memory(void *user, size_t bytes, size_t align)
{
    (void)user, (void)bytes, (void)align;
    return NULL;
}

TEST(bad_arguments_and_no_memory)
{
    tn_allocator none = tn_default_allocator;
    tn_pool *p = (tn_pool *)&none;
    tn_error err = {0};
    none.alloc = no_memory;
    CHECK_INT(tn_pool_new(&p, 0, NULL, &tn_default_allocator, &err), TN_EARG);
    CHECK(p == NULL && strstr(err.msg, "0 threads"));
    CHECK_INT(tn_pool_new(&p, 1 << 20, NULL, &tn_default_allocator, &err), TN_EARG);
    CHECK_INT(tn_pool_new(&p, 2, NULL, &none, &err), TN_ENOMEM);
    CHECK(p == NULL);
    tn_pool_free(NULL);
}

/* ---- topology -------------------------------------------------------------------------------- */

static char root[64];

/* Writes root/path, making its directories. */
static void put(const char *path, const char *text)
{
    char full[512];
    snprintf(full, sizeof full, "%s%s", root, path);
    for (char *s = full + strlen(root) + 1; (s = strchr(s, '/')); s++) {
        *s = 0;
        mkdir(full, 0700);
        *s = '/';
    }
    FILE *f = fopen(full, "w");
    REQUIRE(f);
    fputs(text, f);
    fclose(f);
}

static void make_root(void)
{
    snprintf(root, sizeof root, "%s/tn_pool_XXXXXX", P_tmpdir);
    if (!mkdtemp(root)) root[0] = 0;
}

static void remove_root(void)
{
    char cmd[128];
    snprintf(cmd, sizeof cmd, "rm -r '%s'", root);
    CHECK_INT(system(cmd), 0);
}

static void siblings(int cpu, const char *list)
{
    char path[128];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
    put(path, list);
}

static int cores(uint64_t mask)
{
    return tn_topology_threads(root, &mask, 1);
}

TEST(topology_smt_and_affinity)
{
    make_root();
    REQUIRE(root[0]);
    CHECK_INT(cores(0xf), 4); /* nothing known: every processor counts */
    siblings(0, "0,4\n"), siblings(4, "0,4\n");
    siblings(1, "1,5\n"), siblings(5, "1,5\n");
    siblings(2, "2-3\n"), siblings(3, "2-3\n");
    CHECK_INT(cores(0x3f), 3);
    CHECK_INT(cores(0x30), 2); /* the first sibling is not ours */
    CHECK_INT(cores(0x08), 1);
    CHECK_INT(cores(0), 1);
    put("/sys/devices/cpu_core/cpus", "0-1,4-5\n"); /* hybrid: 2 and 3 are efficiency cores */
    CHECK_INT(cores(0x3f), 2);
    CHECK_INT(cores(0xcc), 3); /* only efficiency cores allowed: use them */
    remove_root();
}

TEST(topology_cgroup_v2)
{
    make_root();
    REQUIRE(root[0]);
    put("/proc/self/cgroup", "0::/user.slice/app\n");
    put("/sys/fs/cgroup/user.slice/app/cpu.max", "max 100000\n");
    CHECK_INT(cores(0xff), 8);
    put("/sys/fs/cgroup/user.slice/cpu.max", "350000 100000\n");
    CHECK_INT(cores(0xff), 3);
    put("/sys/fs/cgroup/user.slice/app/cpu.max", "50000 100000\n");
    CHECK_INT(cores(0xff), 1);
    put("/sys/fs/cgroup/user.slice/app/cpu.max", "rubbish\n");
    CHECK_INT(cores(0xff), 3);
    put("/proc/self/cgroup", "0::/\n"); /* inside a container the group is the root */
    put("/sys/fs/cgroup/cpu.max", "200000 100000\n");
    CHECK_INT(cores(0xff), 2);
    remove_root();
}

TEST(topology_cgroup_v1)
{
    make_root();
    REQUIRE(root[0]);
    put("/proc/self/cgroup", "5:memory:/x\n4:cpu,cpuacct:/box\n0::/\n");
    put("/sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us", "-1\n");
    put("/sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us", "100000\n");
    CHECK_INT(cores(0xff), 8);
    put("/sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us", "400000\n");
    CHECK_INT(cores(0xff), 4);
    put("/proc/self/cgroup", "4:cpu:/box\n"); /* its directory is not visible: the mount's root */
    put("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "200000\n");
    put("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
    CHECK_INT(cores(0xff), 2);
    remove_root();
}

static void cpu_file(int cpu, const char *file, const char *text)
{
    char path[128];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/%s", cpu, file);
    put(path, text);
}

static void read_topology(tn_topology *t, uint64_t mask)
{
    const tn_cpu_set allowed = {{mask}};
    tn_topology_read(t, root, &allowed);
}

/* A hybrid desktop: two performance cores with two threads each, four efficiency cores, and two of
 * low power; and one whose affinity leaves out a thread and a core. */
TEST(topology_kinds_of_a_hybrid_processor)
{
    tn_topology t;
    make_root();
    REQUIRE(root[0]);
    siblings(0, "0-1\n"), siblings(1, "0-1\n"), siblings(2, "2-3\n"), siblings(3, "2-3\n");
    for (int i = 4; i < 10; i++) {
        char list[16];
        snprintf(list, sizeof list, "%d\n", i);
        siblings(i, list);
    }
    put("/sys/devices/cpu_core/cpus", "0-3\n");
    put("/sys/devices/cpu_atom/cpus", "4-7\n");
    put("/sys/devices/cpu_lowpower/cpus", "8-9\n");
    cpu_file(0, "cpufreq/cpuinfo_max_freq", "5400000\n");
    cpu_file(2, "cpufreq/cpuinfo_max_freq", "5600000\n");
    cpu_file(4, "cpufreq/cpuinfo_max_freq", "4300000\n");
    read_topology(&t, 0x3ff);
    CHECK_INT(t.n_kinds, 3);
    CHECK_INT(t.kind[0].cores, 2);
    CHECK_INT(t.kind[0].processors, 4);
    CHECK_INT(t.kind[0].mhz, 5600);
    CHECK_INT(t.kind[1].cores, 4);
    CHECK_INT(t.kind[1].processors, 4);
    CHECK_INT(t.kind[1].mhz, 4300);
    CHECK_INT(t.kind[2].cores, 2);
    CHECK_INT(t.kind[2].mhz, 0);
    CHECK(t.kind[0].set.word[0] == 0xf && t.kind[1].set.word[0] == 0xf0 &&
          t.kind[2].set.word[0] == 0x300);
    CHECK_INT(t.n_nodes, 1);
    CHECK_INT(t.node[0].cores, 8);
    CHECK_INT(t.node[0].processors, 10);
    CHECK_INT(cores(0x3ff), 2);
    read_topology(&t, 0xde);
    CHECK_INT(t.n_kinds, 2);
    CHECK_INT(t.kind[0].cores, 2);
    CHECK_INT(t.kind[0].processors, 3);
    CHECK_INT(t.kind[1].cores, 3);
    CHECK_INT(t.node[0].cores, 5);
    remove_root();
}

/* Without words for the kinds: capacities decide, else clocks; a core that boosts a little less is
 * no other kind. */
TEST(topology_kinds_by_speed)
{
    tn_topology t;
    make_root();
    REQUIRE(root[0]);
    static const char *const mhz[] = {"5000000", "4200000", "3900000", "2000000", "1000000",
                                      "500000"};
    for (int i = 0; i < 6; i++)
        cpu_file(i, "cpufreq/cpuinfo_max_freq", mhz[i]);
    read_topology(&t, 0x3f);
    CHECK_INT(t.n_kinds, 4);
    CHECK_INT(t.kind[0].cores, 2);
    CHECK_INT(t.kind[1].cores, 1);
    CHECK_INT(t.kind[2].cores, 1);
    CHECK_INT(t.kind[3].cores, 2); /* more kinds than there is room for */
    CHECK_INT(t.kind[3].mhz, 1000);
    for (int i = 0; i < 6; i++)
        cpu_file(i, "cpu_capacity", i < 2 ? "1024" : "430");
    read_topology(&t, 0x3f);
    CHECK_INT(t.n_kinds, 2);
    CHECK_INT(t.kind[0].cores, 2);
    CHECK_INT(t.kind[1].cores, 4);
    CHECK_INT(cores(0x3f), 2);
    read_topology(&t, 0);
    CHECK_INT(t.n_kinds, 0);
    remove_root();
}

TEST(topology_nodes)
{
    tn_topology t;
    make_root();
    REQUIRE(root[0]);
    siblings(0, "0,4\n"), siblings(4, "0,4\n");
    put("/sys/devices/system/node/online", "0-1,3\n");
    put("/sys/devices/system/node/node0/cpulist", "0-1,4-5\n");
    put("/sys/devices/system/node/node1/cpulist", "2-3,6-7\n");
    put("/sys/devices/system/node/node3/cpulist", "\n"); /* memory alone */
    put("/sys/devices/system/node/node0/meminfo",
        "Node 0 MemTotal:       65536 kB\nNode 0 MemFree:  1 kB\n");
    put("/sys/devices/system/node/node3/meminfo", "Node 3 MemTotal: 1024 kB\n");
    read_topology(&t, 0xff);
    CHECK_INT(t.n_nodes, 3);
    CHECK_INT(t.node[0].cores, 3);
    CHECK_INT(t.node[0].processors, 4);
    CHECK_INT(t.node[0].memory_bytes, 65536 * 1024);
    CHECK_INT(t.node[1].number, 1);
    CHECK_INT(t.node[1].cores, 4);
    CHECK_INT(t.node[1].memory_bytes, 0);
    CHECK(t.node[1].set.word[0] == 0xcc);
    CHECK_INT(t.node[2].number, 3);
    CHECK_INT(t.node[2].cores, 0);
    CHECK_INT(t.node[2].memory_bytes, 1024 * 1024);
    read_topology(&t, 0x0f); /* affinity: half of each node */
    CHECK_INT(t.node[0].processors, 2);
    CHECK_INT(t.node[1].processors, 2);
    put("/sys/devices/system/node/online", "rubbish\n");
    read_topology(&t, 0xff);
    CHECK_INT(t.n_nodes, 1);
    CHECK_INT(t.node[0].processors, 8);
    CHECK_INT(t.node[0].memory_bytes, 0);
    remove_root();
}

/* Threads by the cores of the nodes; a node of memory alone has none. */
TEST(threads_by_nodes)
{
    tn_pool_nodes n;
    tn_topology t = {.n_nodes = 3};
    t.node[0].cores = 4, t.node[0].set.word[0] = 0x0f;
    t.node[2].cores = 2, t.node[2].set.word[0] = 0x30;
    tn_pool_nodes_of(&n, &t, 6);
    CHECK_INT(n.n, 2);
    CHECK(n.first[0] == 0 && n.first[1] == 4 && n.first[2] == 6);
    CHECK(n.set[0].word[0] == 0x0f && n.set[1].word[0] == 0x30);
    tn_pool_nodes_of(&n, &t, 12); /* both hardware threads of each core */
    CHECK(n.n == 2 && n.first[1] == 8 && n.first[2] == 12);
    tn_pool_nodes_of(&n, &t, 2);
    CHECK(n.n == 1 && n.first[1] == 2);
    tn_pool_nodes_of(&n, &t, 1);
    CHECK(n.n == 1 && n.first[1] == 1 && n.set[0].word[0] == 0x0f);
    t.node[0].cores = t.node[2].cores = 0;
    tn_pool_nodes_of(&n, &t, 3);
    CHECK(n.n == 1 && n.first[1] == 3);
}

TEST(default_threads_of_this_machine)
{
    CHECK(tn_pool_default_threads() >= 1);
    CHECK(tn_pool_default_threads() <= sysconf(_SC_NPROCESSORS_CONF));
}

TEST_MAIN
