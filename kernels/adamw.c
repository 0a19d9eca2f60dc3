/* AdamW over many tensors, each element read and written once: the formula at the head of
   optimizer.py. Compiled on first use by adamw_cpu.py, whose table has one row a tensor. */

#include <math.h>
#include <stdint.h>

struct tensor {
    float *restrict param;
    const float *restrict grad;
    float *restrict exp_avg;
    float *restrict exp_avg_sq;
    int64_t size;
    double step_size;
};

/* The given part, of so many, of every tensor. */
void adamw_update(const struct tensor *tensors, int64_t count, int64_t part, int64_t parts,
                  double beta1, double beta2, double eps, double decay) {
    const float new1 = (float)(1 - beta1), old2 = (float)beta2, new2 = (float)(1 - beta2);
    const float tiny = (float)eps, kept = (float)(1 - decay);
    for (int64_t t = 0; t < count; t++) {
        const struct tensor x = tensors[t];
        const float step_size = (float)x.step_size;
        const int64_t start = x.size * part / parts, stop = x.size * (part + 1) / parts;
        for (int64_t i = start; i < stop; i++) {
            const float g = x.grad[i];
            const float m = x.exp_avg[i] + new1 * (g - x.exp_avg[i]);
            const float v = old2 * x.exp_avg_sq[i] + new2 * g * g;
            x.exp_avg[i] = m;
            x.exp_avg_sq[i] = v;
            x.param[i] = kept * (x.param[i] - step_size * m / (sqrtf(v) + tiny));
        }
    }
}
