/* An MLP, y = GELU(x first' + first_bias) second' + second_bias, and its gradients, float32, in blocks of rows whose
 * hidden activations fit the cache of a core.
 *
 * Each thread computes whole blocks, products included, so threads wait for each other once per MLP. With a parallel
 * region for each product of each block they did so hundreds of times, and lost half of the speed where other processes
 * used the same cores.
 *
 * The products are those of the library that PyTorch uses (MKL): `gemm` is its SGEMM, with Fortran's columns first, so
 * that a matrix here, rows first, is the transposed one there. In a parallel region it computes in one thread.
 */
#include <omp.h>

#include "gelu.h"

typedef void gemm_function(const char *, const char *, const int *, const int *, const int *, const float *,
                           const float *, const int *, const float *, const int *, const float *, float *, const int *);

/* c = a b' + beta c, of rows-first a (rows, inner), b (columns, inner), c (rows, columns). */
static void times_transposed(gemm_function *gemm, const float *a, const float *b, float *c, int rows, int columns,
                             int inner, float beta)
{
    const float one = 1.0f;
    gemm("T", "N", &columns, &rows, &inner, &one, b, &inner, a, &inner, &beta, c, &columns);
}

/* c = a b, of rows-first a (rows, inner), b (inner, columns), c (rows, columns). */
static void times(gemm_function *gemm, const float *a, const float *b, float *c, int rows, int columns, int inner)
{
    const float one = 1.0f, zero = 0.0f;
    gemm("N", "N", &columns, &rows, &inner, &one, b, &columns, a, &inner, &zero, c, &columns);
}

/* c += a' b, of rows-first a (inner, rows), b (inner, columns), c (rows, columns). */
static void add_products(gemm_function *gemm, const float *a, const float *b, float *c, int rows, int columns, int inner)
{
    const float one = 1.0f;
    gemm("N", "T", &columns, &rows, &inner, &one, b, &columns, a, &rows, &one, c, &columns);
}

/* Compute y (rows, outputs) from x (rows, inputs), first (hidden, inputs), second (outputs, hidden). `kept` gets the
 * activations before bias and GELU, (rows, hidden), unless it is NULL. `scratch` has `size` x hidden floats for each
 * thread, where `size` is the rows of a block. hidden is a multiple of LANES. */
void mlp(gemm_function *gemm, const float *x, const float *first, const float *first_bias, const float *second,
         const float *second_bias, float *y, float *kept, float *scratch, long rows, int inputs, int hidden,
         int outputs, long size, int threads)
{
    long blocks = (rows + size - 1) / size;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long block = 0; block < blocks; block++) {
        long start = block * size;
        int count = start + size < rows ? size : rows - start;
        float *activated = scratch + omp_get_thread_num() * size * hidden, *result = y + start * outputs;
        float *h = kept ? kept + start * hidden : activated;
        times_transposed(gemm, x + start * inputs, first, h, count, hidden, inputs, 0.0f);
        gelu(h, first_bias, activated, count, hidden);
        for (long i = 0; i < count; i++)
            for (int j = 0; j < outputs; j++)
                result[i * outputs + j] = second_bias[j];
        times_transposed(gemm, activated, second, result, count, outputs, hidden, 1.0f);
    }
}

/* Compute the gradients of x, (rows, inputs), and for each thread its sums of those of first, first_bias and second,
 * which are 0 before, from the gradient of y, `grad`. The activations are those in `kept`; if it is NULL, they are
 * computed again. `scratch` has 2 x `size` x hidden floats for each thread. */
void mlp_backward(gemm_function *gemm, const float *grad, const float *x, const float *first, const float *first_bias,
                  const float *second, const float *kept, float *grad_x, float *grad_first, float *grad_bias,
                  float *grad_second, float *scratch, long rows, int inputs, int hidden, int outputs, long size,
                  int threads)
{
    long blocks = (rows + size - 1) / size;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long block = 0; block < blocks; block++) {
        long start = block * size, thread = omp_get_thread_num();
        int count = start + size < rows ? size : rows - start;
        float *activated = scratch + thread * 2 * size * hidden, *grad_h = activated + size * hidden;
        const float *part = x + start * inputs, *grad_part = grad + start * outputs;
        const float *h = kept ? kept + start * hidden : activated;
        if (!kept)
            times_transposed(gemm, part, first, activated, count, hidden, inputs, 0.0f);
        times(gemm, grad_part, second, grad_h, count, hidden, outputs);
        gelu_backward(h, first_bias, activated, grad_h, grad_bias + thread * hidden, count, hidden);
        add_products(gemm, grad_part, activated, grad_second + thread * outputs * hidden, outputs, hidden, count);
        add_products(gemm, grad_h, part, grad_first + thread * hidden * inputs, hidden, inputs, count);
        times(gemm, grad_h, first, grad_x + start * inputs, count, inputs, hidden);
    }
}
