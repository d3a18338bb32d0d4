/* GELU, x Phi(x), and its derivative, Phi(x) + x phi(x), float32, from one exponential and one division.
 *
 * With z = |x| / sqrt(2): Phi(-|x|) = erfc(z) / 2, and erfc(z) exp(z z) is a polynomial of t = 1 / (1 + 0.33 z), which has
 * a relative error of 8e-8. The form is that of Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26; the
 * polynomial, of degree 8, is fitted by tools/fit_gelu.py. exp(-z z) is 2^n 2^r, 2^r by its Taylor series, |r| <= 1/2.
 */
#include <omp.h>

#include "lanes.h"

#define ROUNDING 12582912.0f /* 1.5 * 2^23: what is added to it is rounded to a whole number, in its lowest bits */
#define FAINT -80.0f         /* 2^-80 and less count as 0: products with them would be denormal, and slow */

typedef int ints __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

/* Phi(x), and exp(-x x / 2) to `density`. */
static inline vec integrate(vec x, vec *density)
{
    vec t = 1.0f / (1.0f + 0.33f * 0.70710678f * (vec)((ints)x & 0x7fffffff));
    vec power = x * x * -0.72134752f; /* of 2: log2(e) / 2 */
    vec shifted = power + ROUNDING, r = power - (shifted - ROUNDING);
    vec series = 0.00015403531f + r * 1.5252734e-05f;
    series = 0.0013333558f + r * series;
    series = 0.0096181291f + r * series;
    series = 0.055504109f + r * series;
    series = 0.24022651f + r * series;
    series = 0.69314718f + r * series;
    series = 1.0f + r * series;
    vec faded = (vec)(((ints)series + ((ints)shifted << 23)) & (power > FAINT));
    vec tail = 0.23134404f + t * -0.067964381f;
    tail = -0.17771934f + t * tail;
    tail = 0.20627067f + t * tail;
    tail = 0.022505392f + t * tail;
    tail = 0.10096189f + t * tail;
    tail = 0.091418624f + t * tail;
    tail = 0.093183055f + t * tail;
    tail = t * tail * faded;
    ints is_negative = x < 0.0f;
    *density = faded;
    return (vec)(((ints)tail & is_negative) | ((ints)(1.0f - tail) & ~is_negative));
}

/* h = GELU(h + bias) in place; h is (rows, columns), and columns a multiple of LANES. */
void gelu(float *h, const float *bias, long rows, long columns, int threads)
{
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long i = 0; i < rows; i++)
        for (long j = 0; j < columns; j += LANES) {
            vec *at = (vec *)(h + i * columns + j), density;
            vec x = *at + *(const vec *)(bias + j);
            *at = x * integrate(x, &density);
        }
}

/* Does the same to h, and multiplies the gradient of its result, `grad`, by GELU's derivative, in place. What becomes of
 * `grad` is added up by column to `sums`, (threads, columns). */
void gelu_backward(float *h, float *grad, const float *bias, float *sums, long rows, long columns, int threads)
{
#pragma omp parallel num_threads(threads)
    {
        float *mine = sums + omp_get_thread_num() * columns;
#pragma omp for schedule(static)
        for (long i = 0; i < rows; i++)
            for (long j = 0; j < columns; j += LANES) {
                vec *at = (vec *)(h + i * columns + j), *slope = (vec *)(grad + i * columns + j), density;
                vec x = *at + *(const vec *)(bias + j);
                vec share = integrate(x, &density);
                *at = x * share;
                *slope *= share + 0.39894228f * x * density; /* 1 / sqrt(2 pi) */
                *(vec *)(mine + j) += *slope;
            }
    }
}
