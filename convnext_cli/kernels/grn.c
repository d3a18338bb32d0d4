/* The MLP of a V2 block, y = (a scale) second' + bias with a = GELU(x first' + first_bias), and its gradients, float32,
 * in blocks of rows as in mlp.c. `scale`, (images, hidden), depends on the sums of squares of a over the rows of each
 * image (GRN): the caller computes it from them between two passes.
 *
 * x has `positions` rows for each image. `scratch` has `size` x hidden floats for each thread, unless stated, where
 * `size` is the rows of a block. hidden is a multiple of LANES. Sums are 0 before.
 */
#include <omp.h>

#include "gelu.h"
#include "products.h"

/* Add a b, of the rows of a block, (count, hidden), to the sums of each image, (images, hidden). */
static void add_by_image(const float *a, const float *b, float *sums, long start, long count, long positions,
                         long hidden)
{
    for (long i = 0; i < count; i++) {
        float *own = sums + (start + i) / positions * hidden;
        for (long j = 0; j < hidden; j++)
            own[j] += a[i * hidden + j] * b[i * hidden + j];
    }
}

/* Compute h = x first, (rows, hidden), and for each thread its sums of squares of GELU(h + first_bias), (images,
 * hidden). first is (inputs, hidden). */
void grn_squares(multiply_function *multiply, const float *x, const float *first, const float *first_bias, float *h,
                 float *squares, float *scratch, long rows, long inputs, long hidden, long positions, long size,
                 long threads)
{
    long blocks = (rows + size - 1) / size, images = rows / positions;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long block = 0; block < blocks; block++) {
        long start = block * size, count = start + size < rows ? size : rows - start, thread = omp_get_thread_num();
        float *activated = scratch + thread * size * hidden;
        times(multiply, x + start * inputs, first, h + start * hidden, count, hidden, inputs, 0);
        gelu(h + start * hidden, first_bias, activated, count, hidden);
        add_by_image(activated, activated, squares + thread * images * hidden, start, count, positions, hidden);
    }
}

/* Compute y, (rows, outputs), from h. second is (hidden, outputs). */
void grn_output(multiply_function *multiply, const float *h, const float *first_bias, const float *scale,
                const float *second, const float *bias, float *y, float *scratch, long rows, long hidden, long outputs,
                long positions, long size, long threads)
{
    long blocks = (rows + size - 1) / size;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long block = 0; block < blocks; block++) {
        long start = block * size, count = start + size < rows ? size : rows - start;
        float *activated = scratch + omp_get_thread_num() * size * hidden, *result = y + start * outputs;
        gelu(h + start * hidden, first_bias, activated, count, hidden);
        for (long i = 0; i < count; i++) {
            const float *factors = scale + (start + i) / positions * hidden;
            for (long j = 0; j < hidden; j++)
                activated[i * hidden + j] *= factors[j];
            for (long j = 0; j < outputs; j++)
                result[i * outputs + j] = bias[j];
        }
        times(multiply, activated, second, result, count, outputs, hidden, 1);
    }
}

/* Compute the gradient of a scale, (rows, hidden), from that of y, `grad`, and for each thread its sums of the gradient
 * of scale, (images, hidden). second is (outputs, hidden). */
void grn_scale_backward(multiply_function *multiply, const float *grad, const float *h, const float *first_bias,
                        const float *second, float *grad_scaled, float *grad_scale, float *scratch, long rows,
                        long hidden, long outputs, long positions, long size, long threads)
{
    long blocks = (rows + size - 1) / size, images = rows / positions;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long block = 0; block < blocks; block++) {
        long start = block * size, count = start + size < rows ? size : rows - start, thread = omp_get_thread_num();
        float *activated = scratch + thread * size * hidden, *grad_part = grad_scaled + start * hidden;
        times(multiply, grad + start * outputs, second, grad_part, count, hidden, outputs, 0);
        gelu(h + start * hidden, first_bias, activated, count, hidden);
        add_by_image(grad_part, activated, grad_scale + thread * images * hidden, start, count, positions, hidden);
    }
}

/* Compute the gradient of x, and for each thread its sums of those of first, (inputs, hidden), first_bias, (hidden), and
 * second, (outputs, hidden). `grad_scaled`, the gradient of a scale, is overwritten. The gradient of a has the further
 * term a shift, with shift (images, hidden), because scale depends on a. first is (hidden, inputs). `scratch` has
 * `size` x (hidden + the larger of inputs and outputs) floats for each thread. */
void grn_backward(multiply_function *multiply, const float *grad, const float *x, const float *first,
                  const float *first_bias, const float *h, const float *scale, const float *shift, float *grad_scaled,
                  float *grad_x, float *grad_first, float *grad_bias, float *grad_second, float *scratch, long rows,
                  long inputs, long hidden, long outputs, long positions, long size, long threads)
{
    long blocks = (rows + size - 1) / size, widest = inputs > outputs ? inputs : outputs;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long block = 0; block < blocks; block++) {
        long start = block * size, count = start + size < rows ? size : rows - start, thread = omp_get_thread_num();
        float *scaled = scratch + thread * size * (hidden + widest), *transposed = scaled + size * hidden;
        float *grad_h = grad_scaled + start * hidden;
        for (long i = 0; i < count; i++) {
            long place = (start + i) / positions * hidden;
            gelu_backward(h + (start + i) * hidden, first_bias, scale + place, shift + place, scaled + i * hidden,
                          grad_h + i * hidden, grad_bias + thread * hidden, 1, hidden);
        }
        transpose(grad + start * outputs, transposed, count, outputs);
        times(multiply, transposed, scaled, grad_second + thread * outputs * hidden, outputs, hidden, count, 1);
        transpose(x + start * inputs, transposed, count, inputs);
        times(multiply, transposed, grad_h, grad_first + thread * inputs * hidden, inputs, hidden, count, 1);
        times(multiply, grad_h, first, grad_x + start * inputs, count, inputs, hidden, 0);
    }
}
