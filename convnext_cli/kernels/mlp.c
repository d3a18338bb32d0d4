/* An MLP, y = GELU(x first' + first_bias) second' + second_bias, and its gradients, float32, in blocks of rows whose
 * hidden activations fit the cache of a core.
 *
 * Each thread computes whole blocks, products included, so threads wait for each other once per MLP. With a parallel
 * region for each product of each block they did so hundreds of times, and lost half of the speed where other processes
 * used the same cores.
 */
#include <omp.h>
#include <stddef.h>

#include "gelu.h"
#include "products.h"

/* Compute y (rows, outputs) from x (rows, inputs), first (inputs, hidden), second (hidden, outputs). `kept` gets the
 * activations before bias and GELU, (rows, hidden), unless it is NULL. `scratch` has `size` x hidden floats for each
 * thread, where `size` is the rows of a block. hidden is a multiple of LANES. */
void mlp(multiply_function *multiply, const float *x, const float *first, const float *first_bias, const float *second,
         const float *second_bias, float *y, float *kept, float *scratch, long rows, long inputs, long hidden,
         long outputs, long size, long threads)
{
    long blocks = (rows + size - 1) / size;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long block = 0; block < blocks; block++) {
        long start = block * size, count = start + size < rows ? size : rows - start;
        float *activated = scratch + omp_get_thread_num() * size * hidden, *result = y + start * outputs;
        float *h = kept ? kept + start * hidden : activated;
        times(multiply, x + start * inputs, first, h, count, hidden, inputs, 0);
        gelu(h, first_bias, activated, count, hidden);
        for (long i = 0; i < count; i++)
            for (long j = 0; j < outputs; j++)
                result[i * outputs + j] = second_bias[j];
        times(multiply, activated, second, result, count, outputs, hidden, 1);
    }
}

/* Compute the gradients of x, (rows, inputs), and for each thread its sums of those of first, (inputs, hidden),
 * first_bias, (hidden), and second, (outputs, hidden), which are 0 before, from the gradient of y, `grad`. The
 * activations are those in `kept`; if it is NULL, they are computed again. `first` is (inputs, hidden) and
 * `first_transposed` (hidden, inputs); `second` is (outputs, hidden). `scratch` has 2 x `size` x hidden floats for each
 * thread, and `size` x the larger of inputs and outputs. */
void mlp_backward(multiply_function *multiply, const float *grad, const float *x, const float *first,
                  const float *first_transposed, const float *first_bias, const float *second, const float *kept,
                  float *grad_x, float *grad_first, float *grad_bias, float *grad_second, float *scratch, long rows,
                  long inputs, long hidden, long outputs, long size, long threads)
{
    long blocks = (rows + size - 1) / size, widest = inputs > outputs ? inputs : outputs;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long block = 0; block < blocks; block++) {
        long start = block * size, count = start + size < rows ? size : rows - start, thread = omp_get_thread_num();
        float *activated = scratch + thread * size * (2 * hidden + widest), *grad_h = activated + size * hidden;
        float *transposed = grad_h + size * hidden;
        const float *part = x + start * inputs, *grad_part = grad + start * outputs;
        const float *h = kept ? kept + start * hidden : activated;
        if (!kept)
            times(multiply, part, first, activated, count, hidden, inputs, 0);
        times(multiply, grad_part, second, grad_h, count, hidden, outputs, 0);
        gelu_backward(h, first_bias, NULL, NULL, activated, grad_h, grad_bias + thread * hidden, count, hidden);
        transpose(grad_part, transposed, count, outputs);
        times(multiply, transposed, activated, grad_second + thread * outputs * hidden, outputs, hidden, count, 1);
        transpose(part, transposed, count, inputs);
        times(multiply, transposed, grad_h, grad_first + thread * inputs * hidden, inputs, hidden, count, 1);
        times(multiply, grad_h, first_transposed, grad_x + start * inputs, count, inputs, hidden, 0);
    }
}
