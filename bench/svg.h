/* A drawing of the report. */
#ifndef TN_BENCH_SVG_H
#define TN_BENCH_SVG_H

#include "report.h"

/* One panel for prompts and one for generation: speed over depth where there are several depths,
 * bars where there is one. TN_EXIT_OK, or TN_EXIT_IO after saying why. */
int tn_bench_svg_write(const char *path, const tn_bench_report *r);

#endif
