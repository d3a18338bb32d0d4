#include "lanes.h"

void gelu(const float *h, const float *bias, float *result, long rows, long columns);
void gelu_backward(const float *h, const float *bias, const float *scale, const float *shift, float *result,
                   float *grad, float *sums, long rows, long columns);
