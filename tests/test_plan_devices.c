/* Plans for several devices: how well layers are shared out. */
#include "plan_random.h"

static const tn_allocator *const heap = &tn_default_allocator;

/* How far from the best plans may be where devices are small, proven; where they are not equal the
 * first has half the memory, of several the second twice as much, and the third is slow. Prices
 * alone share layers out badly there: 0.55 for the last. */
TEST(small_devices_are_filled)
{
    static const struct {
        const test_model *model;
        int n_devices, n_ctx;
        uint64_t mib; /* of each */
        double gap;
        bool equal;
    } small[] = {
        {&model_8b, 2, 4096, 1024, 0.02, false},   {&model_8b, 2, 4096, 2048, 0.02, false},
        {&model_8b, 2, 32768, 2048, 0.02, false},  {&model_8b, 4, 32768, 1024, 0.05, false},
        {&model_8b, 4, 131072, 1024, 0.02, true},  {&model_8b, 8, 32768, 1024, 0.02, false},
        {&model_8b, 8, 131072, 1024, 0.05, true},  {&model_8b, 8, 131072, 1024, 0.05, false},
        {&model_8b, 8, 131072, 2048, 0.08, true},  {&model_8b, 8, 131072, 2048, 0.08, false},
        {&model_70b, 4, 8192, 1024, 0.005, false}, {&model_70b, 2, 131072, 8192, 0.01, false},
        {&model_70b, 8, 131072, 4096, 0.02, false}};
    for (size_t i = 0; i < sizeof small / sizeof *small; i++) {
        const int n = small[i].n_devices;
        tn_shape s;
        tn_profile p;
        tn_planned out;
        tn_constraints c = {.n_ctx = small[i].n_ctx};
        REQUIRE(test_shape(&s, small[i].model, 0) == TN_OK);
        REQUIRE(tn_profile_shipped(&p, "2x-rtx3090-ddr4"));
        for (int d = 0; d < n; d++) {
            p.device[d] = p.device[0];
            c.vram[d] = small[i].mib << 20;
        }
        if (!small[i].equal) c.vram[0] /= 2;
        if (!small[i].equal && n > 2) c.vram[1] *= 2;
        for (uint32_t t = 0; t < TN_TYPE_COUNT && !small[i].equal && n > 2; t++)
            p.device[2].rate.matvec[t] *= 0.25;
        p.n_devices = n;
        REQUIRE(tn_plan_make(&out, &s, &p, &c, heap, NULL) == TN_OK);
        CHECK(out.optimum.feasible);
        CHECK_MSG(out.gap <= small[i].gap, "%d layers, %d x %d MiB, %d tokens: gap %g", s.n_layers,
                  n, (int)small[i].mib, small[i].n_ctx, out.gap);
        tn_planned_free(&out);
        tn_shape_free(&s);
    }
}

TEST_MAIN
