/* Products of matrices, float32, rows first, in the thread that calls them.
 *
 * They are PyTorch's own for small matrices, `at::native::cpublas::brgemm`: oneDNN compiles one for each shape, with the
 * widest instructions of the processor. MKL has them on Intel's processors only, and takes twice as long on an AMD EPYC
 * with AVX-512. The arguments are rows, columns, inner; the row strides of a, b, c; whether it adds to c; a, b, c; and
 * whether b has a layout that float32 does not have.
 */
#include "lanes.h"

typedef void multiply_function(long, long, long, long, long, long, _Bool, const float *, const float *, float *, _Bool);

#define CACHED (1 << 17) /* values of b, 512 KiB, that stay in a core's cache */
#define STRIP 128        /* columns of a larger b that are multiplied at a time */

/* c = a b, or c += a b, of rows-first a (rows, inner), b (inner, columns), c (rows, columns). */
static inline void times(multiply_function *multiply, const float *a, const float *b, float *c, long rows, long columns,
                  long inner, _Bool adds)
{
    long width = inner * columns > CACHED ? STRIP : columns;
    for (long j = 0; j < columns; j += width)
        multiply(rows, j + width < columns ? width : columns - j, inner, inner, columns, columns, adds, a, b + j, c + j, 0);
}

/* Write x (rows, columns) to y (columns, rows), in tiles of rows that stay in the cache. */
static inline void transpose(const float *x, float *y, long rows, long columns)
{
    for (long start = 0; start < rows; start += LANES) {
        long end = start + LANES < rows ? start + LANES : rows;
        for (long j = 0; j < columns; j++)
            for (long i = start; i < end; i++)
                y[j * rows + i] = x[i * columns + j];
    }
}
