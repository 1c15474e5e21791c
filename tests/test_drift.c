/* When the parts of measured tokens are said to be slower or faster than predicted. */
#include "../engine/drift.h"
#include "harness.h"

#include <math.h>

TEST(a_window_is_judged_by_its_parts)
{
    static const struct {
        double host, total; /* measured; predicted are 2 and 5 */
        tn_drift_verdict want;
        double factor;
    } cases[] = {{2, 5, TN_DRIFT_NONE, 0},           {2.25, 5.4, TN_DRIFT_NONE, 0},
                 {2.6, 5.6, TN_DRIFT_HOST, 1.3},     {1.6, 4.6, TN_DRIFT_HOST, 0.8},
                 {2.1, 6.0, TN_DRIFT_DEVICE, 1.3},   {2.6, 8.0, TN_DRIFT_HOST, 1.3},
                 {2, 4.4, TN_DRIFT_DEVICE, 2.4 / 3}, {2, 5.4, TN_DRIFT_NONE, 0}};
    tn_drift d = {0};
    double factor;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (int t = 1; t <= TN_DRIFT_TOKENS; t++)
            CHECK_INT(tn_drift_add(&d, t, (tn_token_time){cases[i].host, cases[i].total}),
                      t == TN_DRIFT_TOKENS);
        CHECK_INT(tn_drift_judge(&d, (tn_token_time){2, 5}, &factor), cases[i].want);
        CHECK(cases[i].want == TN_DRIFT_NONE || fabs(factor - cases[i].factor) < 1e-9);
        CHECK_INT(d.tokens, 0);
    }
    for (int t = 0; t < TN_DRIFT_TOKENS; t++) /* a small part is never blamed */
        tn_drift_add(&d, t, (tn_token_time){2, 5});
    CHECK_INT(tn_drift_judge(&d, (tn_token_time){1, 4.5}, &factor), TN_DRIFT_NONE);
}

TEST_MAIN
