/* The gradient of a 7x7 depthwise convolution's weights, float32, channels last.
 *
 * LANES channels of an image at a time: its rows are copied side by side with zeros around them, so that the loop that
 * does the work needs no test at the borders. That loop holds the seven sums of a row of the kernel and TILE gradients
 * in registers, and reads each input pixel once for up to seven products.
 *
 * Lanes are channels, so the order of additions does not depend on the processor; and what is computed for an image
 * does not depend on the number of threads.
 */
#include <omp.h>

#include "lanes.h"

#define SIDE 7
#define EDGE 3
#define TILE 8

long find_lanes(void) { return LANES; }

/* Copies LANES channels of an image, (height, width, channels), to `packed`, (height, wide). */
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

static long widen(long width) { return (width + TILE - 1) / TILE * TILE; }

/* Floats of scratch memory for each thread. */
long find_room(long height, long width) { return LANES * height * (2 * widen(width) + 2 * EDGE); }

/* From the input x and the gradient of the output, both (batch, height, width, channels), to sums, one for each image:
 * (batch, SIDE, SIDE, channels). There are LANES channels at least; the last block of them may overlap the one before,
 * and writes the same there. */
void sum_products(const float *x, const float *grad, float *sums, float *scratch, long batch, long height, long width,
                  long channels, int threads)
{
    long blocks = (channels + LANES - 1) / LANES, size = height * width * channels;
    long tiled = widen(width), wide = tiled + 2 * EDGE, room = find_room(height, width);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long unit = 0; unit < batch * blocks; unit++) {
        long image = unit / blocks, block = unit % blocks;
        long c = block == blocks - 1 ? channels - LANES : block * LANES;
        vec *packed = (vec *)(scratch + omp_get_thread_num() * room), *grads = packed + height * wide;
        pack(x + image * size + c, packed, height, width, channels, EDGE, wide);
        pack(grad + image * size + c, grads, height, width, channels, 0, tiled);
        for (int i = 0; i < SIDE; i++) {
            long from = i < EDGE ? EDGE - i : 0, until = i > EDGE ? height + EDGE - i : height;
            vec sum[SIDE] = {0};
            for (long h = from; h < until; h++)
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
            float *to = sums + (image * SIDE + i) * SIDE * channels + c;
            for (int j = 0; j < SIDE; j++)
                *(vec *)(to + j * channels) = sum[j];
        }
    }
}
