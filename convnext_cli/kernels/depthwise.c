/* Weight gradient of a 7x7 depthwise convolution, float32, channels last.
 *
 * LANES channels of an image are processed at a time. They are packed with zero padding, so that the inner loop needs no
 * border tests. It keeps the seven sums of a kernel row and TILE gradients in registers, and reads each input pixel once
 * for up to seven products.
 *
 * SIMD lanes are channels, so the order of additions does not depend on the CPU. The result for an image does not depend
 * on the number of threads.
 */
#include <omp.h>

#include "lanes.h"

#define SIDE 7
#define EDGE 3
#define TILE 8

long count_lanes(void) { return LANES; }

/* Copy LANES channels of an image, (height, width, channels), to `packed`, (height, wide), with zero padding. */
static void pack(const float *image, vec *packed, long height, long width, long channels, long left, long wide)
{
    for (long h = 0; h < height; h++, packed += wide) {
        for (long w = 0; w < left; w++)
            packed[w] = (vec){0};
        for (long w = 0; w < width; w++)
            packed[left + w] = *(const vec *)(image + (h * width + w) * channels);
        for (long w = left + width; w < wide; w++)
            packed[w] = (vec){0};
    }
}

/* The width rounded up to whole tiles. */
static long round_up(long width) { return (width + TILE - 1) / TILE * TILE; }

/* Floats of scratch memory for each thread. */
long count_scratch_floats(long height, long width) { return LANES * height * (2 * round_up(width) + 2 * EDGE); }

/* Compute the weight gradient of each image, `sums` (batch, SIDE, SIDE, channels), from the input x and the gradient of
 * the output, both (batch, height, width, channels). There must be at least LANES channels. The last block of channels
 * may overlap the one before, and writes the same values there. */
void sum_products(const float *x, const float *grad, float *sums, float *scratch, long batch, long height, long width,
                  long channels, long threads)
{
    long blocks = (channels + LANES - 1) / LANES, size = height * width * channels;
    long tiled = round_up(width), wide = tiled + 2 * EDGE, scratch_size = count_scratch_floats(height, width);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long unit = 0; unit < batch * blocks; unit++) {
        long image = unit / blocks, block = unit % blocks;
        long c = block == blocks - 1 ? channels - LANES : block * LANES;
        vec *packed = (vec *)(scratch + omp_get_thread_num() * scratch_size), *grads = packed + height * wide;
        pack(x + image * size + c, packed, height, width, channels, EDGE, wide);
        pack(grad + image * size + c, grads, height, width, channels, 0, tiled);
        for (int i = 0; i < SIDE; i++) {
            long first = i < EDGE ? EDGE - i : 0, end = i > EDGE ? height + EDGE - i : height;
            vec sum[SIDE] = {0};
            for (long h = first; h < end; h++)
                for (long w = 0; w < tiled; w += TILE) {
                    const vec *row = packed + (h + i - EDGE) * wide + w, *g = grads + h * tiled + w;
#pragma GCC unroll 16
                    for (int n = 0; n < TILE + SIDE - 1; n++) {
                        vec pixel = row[n];
#pragma GCC unroll 16
                        for (int j = 0; j < SIDE; j++)
                            if (0 <= n - j && n - j < TILE)
                                sum[j] += g[n - j] * pixel;
                    }
                }
            float *target = sums + (image * SIDE + i) * SIDE * channels + c;
            for (int j = 0; j < SIDE; j++)
                *(vec *)(target + j * channels) = sum[j];
        }
    }
}
