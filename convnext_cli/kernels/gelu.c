/* GELU, x Phi(x), and its derivative, Phi(x) + x phi(x), float32, with one exponential and one division.
 *
 * With z = |x| / sqrt(2): Phi(-|x|) = erfc(z) / 2, and erfc(z) exp(z z) is approximated by a polynomial of degree 8 in
 * t = 1 / (1 + 0.33 z), with a relative error of 8e-8. The form is that of Abramowitz and Stegun, Handbook of
 * Mathematical Functions, 7.1.26; tools/fit_gelu.py fits the polynomial. exp(-z z) is 2^n 2^r, with the Taylor series of
 * 2^r, |r| <= 1/2.
 */
#include "gelu.h"

#define ROUNDING 12582912.0f /* 1.5 * 2^23: adding it rounds to an integer, in the lowest bits */
#define SMALLEST_POWER -80.0f /* powers up to 2^-80 count as 0: denormal products are slow */

typedef int ints __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

/* Return Phi(x), and write exp(-x x / 2) to `density`. */
static inline vec normal_cdf(vec x, vec *density)
{
    vec t = 1.0f / (1.0f + 0.33f * 0.70710678f * (vec)((ints)x & 0x7fffffff));
    vec power = x * x * -0.72134752f; /* exponent of 2; the factor is log2(e) / 2 */
    vec shifted = power + ROUNDING, r = power - (shifted - ROUNDING);
    vec series = 0.00015403531f + r * 1.5252734e-05f;
    series = 0.0013333558f + r * series;
    series = 0.0096181291f + r * series;
    series = 0.055504109f + r * series;
    series = 0.24022651f + r * series;
    series = 0.69314718f + r * series;
    series = 1.0f + r * series;
    vec exponential = (vec)(((ints)series + ((ints)shifted << 23)) & (power > SMALLEST_POWER));
    vec tail = 0.23134404f + t * -0.067964381f;
    tail = -0.17771934f + t * tail;
    tail = 0.20627067f + t * tail;
    tail = 0.022505392f + t * tail;
    tail = 0.10096189f + t * tail;
    tail = 0.091418624f + t * tail;
    tail = 0.093183055f + t * tail;
    tail = t * tail * exponential;
    ints is_negative = x < 0.0f;
    *density = exponential;
    return (vec)(((ints)tail & is_negative) | ((ints)(1.0f - tail) & ~is_negative));
}

/* Write GELU(h + bias) to `result`, which may be h; both are (rows, columns), columns a multiple of LANES. */
void gelu(const float *h, const float *bias, float *result, long rows, long columns)
{
    for (long i = 0; i < rows; i++)
        for (long j = 0; j < columns; j += LANES) {
            vec density, x = *(const vec *)(h + i * columns + j) + *(const vec *)(bias + j);
            *(vec *)(result + i * columns + j) = x * normal_cdf(x, &density);
        }
}

/* Write a = GELU(h + bias) to `result`, which may be h, and replace the gradient of that, `grad`, by that of h + bias,
 * in place. Add the new `grad` by column to `sums`, (columns). If `scale` and `shift`, (columns), are not NULL, `result`
 * is a scale, `grad` is the gradient of that, and the gradient of a has the further term a shift. */
void gelu_backward(const float *h, const float *bias, const float *scale, const float *shift, float *result,
                   float *grad, float *sums, long rows, long columns)
{
    for (long i = 0; i < rows; i++)
        for (long j = 0; j < columns; j += LANES) {
            vec *slope = (vec *)(grad + i * columns + j), density;
            vec x = *(const vec *)(h + i * columns + j) + *(const vec *)(bias + j);
            vec cdf = normal_cdf(x, &density), a = x * cdf, grad_a = *slope;
            if (scale) {
                grad_a = grad_a * *(const vec *)(scale + j) + a * *(const vec *)(shift + j);
                a *= *(const vec *)(scale + j);
            }
            *(vec *)(result + i * columns + j) = a;
            *slope = grad_a * (cdf + 0.39894228f * x * density); /* 1 / sqrt(2 pi) */
            *(vec *)(sums + j) += *slope;
        }
}
