/* How far the device splits the context of a decoded token. */
#include "exec_device.h"
#include "exec_sizes.h"

/* Attention of single tokens: a block walks at least so many positions, and where a context is long
 * there are so many blocks for each multiprocessor. By arithmetic, not yet measured: a block holds
 * two tiles of 8 KiB (16-bit values of 128 columns) and waits about twice 0.7 us for them, so it
 * reads some 11 GB/s; 80 % of an H200's 4.8 TB/s take about 330 blocks, 2.5 for each of its 132
 * multiprocessors. Doubling up to at least three gives 3 to 6. */
enum { split_positions = 128, blocks_each = 3, most_splits = 128 };

int32_t tn_dev_splits(int32_t processors, int32_t n_head_kv, int64_t n, int64_t pos)
{
    const int64_t tokens = n < TN_MATVEC_MAX ? n : TN_MATVEC_MAX;
    int32_t most = TN_MAX_SPLITS, splits = 1;
    while (most < most_splits && 2 * most * tokens <= TN_MATVEC_MAX * TN_MAX_SPLITS &&
           most * n_head_kv * tokens < (int64_t)blocks_each * processors)
        most *= 2;
    while (splits < most && (int64_t)splits * split_positions <= pos)
        splits *= 2;
    return splits;
}
