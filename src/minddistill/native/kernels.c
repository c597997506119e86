/* Fused float32 kernels for CPU, called by MindSpore's Custom operator.
 *
 * Each takes MindSpore's signature: the inputs' and outputs' data, ranks and shapes in one row, inputs first. Work is
 * split statically, so that a result depends on the number of threads only where a sum goes over rows.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#define KERNEL(name) \
  int name(int nparam, void **params, int *ndims, int64_t **shapes, const char **dtypes, void *stream, void *extra)
#define IN(i) ((const float *)params[i])
#define OUT(i) ((float *)params[i])

/* Whether n numbers are worth waking the other threads for, which takes as long as some ten thousand take one. */
#define WORTH(n) if ((n) > 32768)

static int64_t product(const int64_t *shape, int from, int to) {
  int64_t n = 1;
  for (int i = from; i < to; i++) n *= shape[i];
  return n;
}

#define SIZE(i) product(shapes[i], 0, ndims[i])
#define LAST(i) shapes[i][ndims[i] - 1]

/* exp(x) for x <= 0, relative error below 2e-7 (Cephes expf's polynomial); 0 below -87. */
static inline float exp_negative(float x) {
  float kept = x < -87.0f ? -87.0f : x;
  float power = rintf(kept * 1.44269504089f);
  float rest = (kept - power * 0.693359375f) + power * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * rest + 1.3981999507e-3f;
  p = p * rest + 8.3334519073e-3f;
  p = p * rest + 4.1665795894e-2f;
  p = p * rest + 1.6666665459e-1f;
  p = p * rest + 5.0000001201e-1f;
  p = p * rest * rest + rest + 1.0f;
  int32_t bits = ((int32_t)power + 127) << 23;
  float scale;
  memcpy(&scale, &bits, sizeof scale);
  return x < -87.0f ? 0.0f : p * scale;
}

/* The normal distribution function Phi(x), absolute error below 1e-7 (Abramowitz and Stegun 7.1.26), and exp(-x^2 / 2). */
static inline float normal_cdf(float x, float *density) {
  float t = 1.0f / (1.0f + 0.3275911f * 0.70710678119f * fabsf(x));
  float p = 1.061405429f;
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  float e = exp_negative(-0.5f * x * x);
  float tail = 0.5f * p * t * e;
  *density = e;
  return x < 0.0f ? tail : 1.0f - tail;
}

static int threads(void) {
#ifdef _OPENMP
  return omp_get_max_threads();
#else
  return 1;
#endif
}

static int thread(void) {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

/* Adds `parts` rows of partial sums, each `width` wide, in their order. */
static void add_parts(const float *partial, int parts, int64_t stride, int64_t width, float *out) {
  memcpy(out, partial, width * sizeof(float));
  for (int part = 1; part < parts; part++)
    for (int64_t i = 0; i < width; i++) out[i] += partial[part * stride + i];
}

static inline float mean_of(const float *x, int64_t width) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < width; i++) sum += x[i];
  return sum / width;
}

static inline float inverse_deviation(const float *x, float mean, float epsilon, int64_t width) {
  float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
  for (int64_t i = 0; i < width; i++) squares += (x[i] - mean) * (x[i] - mean);
  return 1.0f / sqrtf(squares / width + epsilon);
}

/* The layer norm of a row; x and y may be the same. */
static inline void normalise(const float *x, const float *gamma, const float *beta, float epsilon, int64_t width,
                             float *y) {
  float mean = mean_of(x, width), inverse = inverse_deviation(x, mean, epsilon, width);
#pragma omp simd
  for (int64_t i = 0; i < width; i++) y[i] = (x[i] - mean) * inverse * gamma[i] + beta[i];
}

/* Its gradient by x, written, and by gamma and beta, added. */
static inline void normalise_grad(const float *x, const float *gamma, float epsilon, const float *dy, int64_t width,
                                  float *dx, float *dgamma, float *dbeta) {
  float mean = mean_of(x, width), inverse = inverse_deviation(x, mean, epsilon, width), first = 0.0f, second = 0.0f;
#pragma omp simd reduction(+ : first, second)
  for (int64_t i = 0; i < width; i++) {
    float unit = (x[i] - mean) * inverse, scaled = dy[i] * gamma[i];
    first += scaled;
    second += scaled * unit;
    dgamma[i] += dy[i] * unit;
    dbeta[i] += dy[i];
  }
  first /= width;
  second /= width;
#pragma omp simd
  for (int64_t i = 0; i < width; i++)
    dx[i] = (dy[i] * gamma[i] - first - (x[i] - mean) * inverse * second) * inverse;
}

/* In: x (N, H), gamma, beta (H), epsilon (1). Out: y = gamma (x - mean) / sqrt(variance + epsilon) + beta. */
KERNEL(layer_norm) {
  int64_t width = LAST(0), rows = SIZE(0) / width;
#pragma omp parallel for schedule(static) WORTH(rows * width)
  for (int64_t row = 0; row < rows; row++)
    normalise(IN(0) + row * width, IN(1), IN(2), IN(3)[0], width, OUT(4) + row * width);
  return 0;
}

/* In: x (N, H), gamma (H), epsilon (1), dy (N, H). Out: dx, dgamma, dbeta. */
KERNEL(layer_norm_grad) {
  int64_t width = LAST(0), rows = SIZE(0) / width;
  int parts = threads();
  float *partial = calloc((size_t)parts * 2 * width, sizeof(float));
  if (partial == NULL) return 1;
#pragma omp parallel num_threads(parts) WORTH(rows * width)
  {
    float *dgamma = partial + (int64_t)thread() * 2 * width;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; row++)
      normalise_grad(IN(0) + row * width, IN(1), IN(2)[0], IN(3) + row * width, width, OUT(4) + row * width, dgamma,
                     dgamma + width);
  }
  for (int i = 0; i < 2; i++) add_parts(partial + i * width, parts, 2 * width, width, OUT(5 + i));
  free(partial);
  return 0;
}

/* A dropout mask (see the Dropout cell): words of a table, hashed with two keys for each leading index. */
struct mask {
  const uint32_t *table, *multiplier, *offset;
  int64_t stride;
  int32_t threshold;
  float scale;
};

/* The mask out of four inputs from `first` on: table, multiplier, offset and threshold. The least threshold keeps all. */
static struct mask read_mask(void **params, int *ndims, int64_t **shapes, int first) {
  struct mask mask;
  mask.table = params[first];
  mask.multiplier = params[first + 1];
  mask.offset = params[first + 2];
  mask.stride = LAST(first);
  mask.threshold = ((const int32_t *)params[first + 3])[0];
  mask.scale = (float)(1.0 / (1.0 - ((double)mask.threshold + 2147483648.0) / 4294967296.0));
  return mask;
}

/* Multiplies a row of x, the row-th of `height` under each key, by its mask. x and y may be the same. */
static inline void apply_mask(struct mask mask, int64_t row, int64_t height, int64_t width, const float *x, float *y) {
  if (mask.threshold == INT32_MIN) {
    if (x != y) memcpy(y, x, width * sizeof(float));
    return;
  }
  const uint32_t *words = mask.table + row % height * mask.stride;
  uint32_t times = mask.multiplier[row / height], plus = mask.offset[row / height];
#pragma omp simd
  for (int64_t i = 0; i < width; i++)
    y[i] = (int32_t)(words[i] * times + plus) >= mask.threshold ? x[i] * mask.scale : 0.0f;
}

/* In: x (..., S, H), mask. Out: x times its mask. */
KERNEL(dropout) {
  int64_t width = LAST(0), height = shapes[0][ndims[0] - 2], rows = SIZE(0) / width;
  struct mask mask = read_mask(params, ndims, shapes, 1);
#pragma omp parallel for schedule(static) WORTH(rows * width)
  for (int64_t row = 0; row < rows; row++)
    apply_mask(mask, row, height, width, IN(0) + row * width, OUT(5) + row * width);
  return 0;
}

/* y = softmax(x + bias) of a row. */
static inline void softmax(const float *x, const float *bias, int64_t width, float *y) {
  float largest = -INFINITY, sum = 0.0f;
#pragma omp simd reduction(max : largest)
  for (int64_t i = 0; i < width; i++) {
    y[i] = x[i] + bias[i];
    largest = y[i] > largest ? y[i] : largest;
  }
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < width; i++) {
    float e = exp_negative(y[i] - largest);
    y[i] = e;
    sum += e;
  }
  float inverse = 1.0f / sum;
  for (int64_t i = 0; i < width; i++) y[i] *= inverse;
}

/* In: x (B, A, S, T), bias (B, 1, 1, T), mask. Out: softmax(x + bias) times its mask. */
KERNEL(attention_weights) {
  int64_t width = LAST(0), height = shapes[0][2], rows = SIZE(0) / width, share = shapes[0][1] * height;
  struct mask mask = read_mask(params, ndims, shapes, 2);
#pragma omp parallel for schedule(static) WORTH(rows * width)
  for (int64_t row = 0; row < rows; row++) {
    float *y = OUT(6) + row * width;
    softmax(IN(0) + row * width, IN(1) + row / share * width, width, y);
    apply_mask(mask, row, height, width, y, y);
  }
  return 0;
}

/* In: x (B, A, S, T), bias (B, 1, 1, T), mask, dy. Out: dx = p (g - sum(p g)), g = dy times the mask. */
KERNEL(attention_weights_grad) {
  int64_t width = LAST(0), height = shapes[0][2], rows = SIZE(0) / width, share = shapes[0][1] * height;
  struct mask mask = read_mask(params, ndims, shapes, 2);
  int failed = 0;
#pragma omp parallel WORTH(rows * width)
  {
    float *g = malloc(width * sizeof(float));
    if (g == NULL) failed = 1;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
      if (g == NULL) continue;
      float *dx = OUT(7) + row * width, sum = 0.0f;
      apply_mask(mask, row, height, width, IN(6) + row * width, g);
      softmax(IN(0) + row * width, IN(1) + row / share * width, width, dx);
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < width; i++) sum += dx[i] * g[i];
      for (int64_t i = 0; i < width; i++) dx[i] *= g[i] - sum;
    }
    free(g);
  }
  return failed;
}

/* y (B, A, S, D) of x (B, S, A, D): scale (x + bias), heads before positions. */
static void split(const float *x, const float *bias, float scale, const int64_t *to, float *y) {
  int64_t heads = to[1], length = to[2], width = to[3];
#pragma omp parallel for collapse(2) schedule(static) WORTH(product(to, 0, 4))
  for (int64_t row = 0; row < to[0]; row++)
    for (int64_t head = 0; head < heads; head++)
      for (int64_t place = 0; place < length; place++) {
        const float *from = x + ((row * length + place) * heads + head) * width;
        float *out = y + ((row * heads + head) * length + place) * width;
        if (bias == NULL) {
          memcpy(out, from, width * sizeof(float));
          continue;
        }
        for (int64_t i = 0; i < width; i++) out[i] = (from[i] + bias[head * width + i]) * scale;
      }
}

/* In: x (B, S, A D), bias (A D), any (A, D), scale (1). Out: scale (x + bias), (B, A, S, D). */
KERNEL(split_heads) {
  split(IN(0), IN(1), IN(3)[0], shapes[4], OUT(4));
  return 0;
}

/* In: x (B, S, A D), any (A, D). Out: x, (B, A, S, D). */
KERNEL(merge_heads_grad) {
  split(IN(0), NULL, 1.0f, shapes[2], OUT(2));
  return 0;
}

/* In: x (B, A, S, D), scale (1). Out: scale x, (B, S, A D). */
KERNEL(merge_heads) {
  int64_t heads = shapes[0][1], length = shapes[0][2], width = shapes[0][3], rows = shapes[0][0] * length;
  float scale = IN(1)[0];
#pragma omp parallel for schedule(static) WORTH(SIZE(0))
  for (int64_t row = 0; row < rows; row++)
    for (int64_t head = 0; head < heads; head++) {
      const float *from = IN(0) + ((row / length * heads + head) * length + row % length) * width;
      float *out = OUT(2) + (row * heads + head) * width;
      for (int64_t i = 0; i < width; i++) out[i] = from[i] * scale;
    }
  return 0;
}

/* In: x (N, H), bias (H). Out: z Phi(z), z = x + bias. */
KERNEL(bias_gelu) {
  int64_t width = LAST(0), rows = SIZE(0) / width;
  const float *bias = IN(1);
#pragma omp parallel for schedule(static) WORTH(rows * width)
  for (int64_t row = 0; row < rows; row++) {
    const float *x = IN(0) + row * width;
    float *y = OUT(2) + row * width;
#pragma omp simd
    for (int64_t i = 0; i < width; i++) {
      float density, z = x[i] + bias[i];
      y[i] = z * normal_cdf(z, &density);
    }
  }
  return 0;
}

/* In: x (N, H), bias (H), dy. Out: dx = dy (Phi(z) + z phi(z)), dbias. */
KERNEL(bias_gelu_grad) {
  int64_t width = LAST(0), rows = SIZE(0) / width;
  const float *bias = IN(1);
  int parts = threads();
  float *partial = calloc((size_t)parts * width, sizeof(float));
  if (partial == NULL) return 1;
#pragma omp parallel num_threads(parts) WORTH(rows * width)
  {
    float *dbias = partial + thread() * width;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
      const float *x = IN(0) + row * width, *dy = IN(2) + row * width;
      float *dx = OUT(3) + row * width;
#pragma omp simd
      for (int64_t i = 0; i < width; i++) {
        float density, z = x[i] + bias[i], cdf = normal_cdf(z, &density);
        dx[i] = dy[i] * (cdf + z * density * 0.39894228040f);
        dbias[i] += dx[i];
      }
    }
  }
  add_parts(partial, parts, width, width, OUT(4));
  free(partial);
  return 0;
}

/* In: x, fed (B, S, H), bias, gamma, beta (H), epsilon (1), mask. Out: the layer norm of x + mask (fed + bias). */
KERNEL(add_norm) {
  int64_t width = LAST(0), height = shapes[0][1], rows = SIZE(0) / width;
  const float *bias = IN(2);
  struct mask mask = read_mask(params, ndims, shapes, 6);
#pragma omp parallel for schedule(static) WORTH(rows * width)
  for (int64_t row = 0; row < rows; row++) {
    const float *x = IN(0) + row * width, *fed = IN(1) + row * width;
    float *y = OUT(10) + row * width;
    for (int64_t i = 0; i < width; i++) y[i] = fed[i] + bias[i];
    apply_mask(mask, row, height, width, y, y);
    for (int64_t i = 0; i < width; i++) y[i] += x[i];
    normalise(y, IN(3), IN(4), IN(5)[0], width, y);
  }
  return 0;
}

/* In: x, fed (B, S, H), bias, gamma (H), epsilon (1), mask, dy. Out: dx, dfed, dbias, dgamma, dbeta. */
KERNEL(add_norm_grad) {
  int64_t width = LAST(0), height = shapes[0][1], rows = SIZE(0) / width;
  const float *bias = IN(2);
  struct mask mask = read_mask(params, ndims, shapes, 5);
  int parts = threads();
  float *partial = calloc((size_t)parts * 3 * width, sizeof(float));
  if (partial == NULL) return 1;
#pragma omp parallel num_threads(parts) WORTH(rows * width)
  {
    float *dbias = partial + (int64_t)thread() * 3 * width, *dgamma = dbias + width, *dbeta = dgamma + width;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
      const float *x = IN(0) + row * width, *fed = IN(1) + row * width;
      float *dx = OUT(10) + row * width, *dfed = OUT(11) + row * width;
      for (int64_t i = 0; i < width; i++) dfed[i] = fed[i] + bias[i];
      apply_mask(mask, row, height, width, dfed, dfed);
      for (int64_t i = 0; i < width; i++) dfed[i] += x[i];
      normalise_grad(dfed, IN(3), IN(4)[0], IN(9) + row * width, width, dx, dgamma, dbeta);
      apply_mask(mask, row, height, width, dx, dfed);
      for (int64_t i = 0; i < width; i++) dbias[i] += dfed[i];
    }
  }
  for (int i = 0; i < 3; i++) add_parts(partial + i * width, parts, 3 * width, width, OUT(12 + i));
  free(partial);
  return 0;
}

/* In: x (N, H). Out: the sum over rows (H). */
KERNEL(sum_rows) {
  int64_t width = LAST(0), rows = SIZE(0) / width;
  int parts = threads();
  float *partial = calloc((size_t)parts * width, sizeof(float));
  if (partial == NULL) return 1;
#pragma omp parallel num_threads(parts) WORTH(rows * width)
  {
    float *sum = partial + thread() * width;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
      const float *x = IN(0) + row * width;
      for (int64_t i = 0; i < width; i++) sum[i] += x[i];
    }
  }
  add_parts(partial, parts, width, width, OUT(1));
  free(partial);
  return 0;
}

/* The columns that count of x (B, A, S, W), row by row; x (B, S, W) counts all of its columns. */
static inline const float *columns_of(void **params, int *ndims, int64_t **shapes, int64_t row) {
  if (ndims[0] == 3) return NULL;
  return IN(3) + row / (shapes[0][1] * shapes[0][2]) * shapes[0][3];
}

/* Whether a row of x (B, A, S, W) or (B, S, W) counts. */
static inline float row_counts(void **params, int *ndims, int64_t **shapes, int64_t row) {
  int64_t length = shapes[0][ndims[0] - 2], heads = ndims[0] == 3 ? 1 : shapes[0][1];
  return IN(2)[row / (heads * length) * length + row % length];
}

/* In: x, y (B, A, S, W) or (B, S, W), rows (B, S) and columns (B, W) of 0 and 1. Out: the sum of (x - y)^2 where both
 * are 1. */
KERNEL(squared_distance) {
  int64_t width = LAST(0), rows = SIZE(0) / width;
  double total = 0.0;
#pragma omp parallel for schedule(static) reduction(+ : total) WORTH(rows * width)
  for (int64_t row = 0; row < rows; row++) {
    if (row_counts(params, ndims, shapes, row) == 0.0f) continue;
    const float *x = IN(0) + row * width, *y = IN(1) + row * width;
    const float *columns = columns_of(params, ndims, shapes, row);
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; i++) {
      float difference = (x[i] - y[i]) * (columns == NULL ? 1.0f : columns[i]);
      sum += difference * difference;
    }
    total += sum;
  }
  OUT(4)[0] = (float)total;
  return 0;
}

/* In: as above, and dz (1). Out: dx = 2 (x - y) dz where both are 1, else 0. */
KERNEL(squared_distance_grad) {
  int64_t width = LAST(0), rows = SIZE(0) / width;
#pragma omp parallel for schedule(static) WORTH(rows * width)
  for (int64_t row = 0; row < rows; row++) {
    const float *x = IN(0) + row * width, *y = IN(1) + row * width;
    const float *columns = columns_of(params, ndims, shapes, row);
    float *dx = OUT(5) + row * width;
    float factor = 2.0f * IN(4)[0] * row_counts(params, ndims, shapes, row);
    if (factor == 0.0f) {
      memset(dx, 0, width * sizeof(float));
      continue;
    }
#pragma omp simd
    for (int64_t i = 0; i < width; i++) dx[i] = factor * (x[i] - y[i]) * (columns == NULL ? 1.0f : columns[i]);
  }
  return 0;
}

/* In: x (N, W), scale, least, most (1 or N each). Out: the whole number nearest to x / scale, at least `least` and at
 * most `most`, times scale. */
KERNEL(fake_quant) {
  int64_t width = LAST(0), rows = SIZE(0) / width, by_row = SIZE(1) > 1;
#pragma omp parallel for schedule(static) WORTH(rows * width)
  for (int64_t row = 0; row < rows; row++) {
    const float *x = IN(0) + row * width;
    float *y = OUT(4) + row * width;
    float scale = IN(1)[row * by_row], least = IN(2)[row * by_row], most = IN(3)[row * by_row];
#pragma omp simd
    for (int64_t i = 0; i < width; i++) {
      float steps = rintf(x[i] / scale);
      steps = steps < least ? least : steps;
      y[i] = (steps > most ? most : steps) * scale;
    }
  }
  return 0;
}

/* In: as above, and dy. Out: dx = dy where x is not cut off, else 0. */
KERNEL(fake_quant_grad) {
  int64_t width = LAST(0), rows = SIZE(0) / width, by_row = SIZE(1) > 1;
#pragma omp parallel for schedule(static) WORTH(rows * width)
  for (int64_t row = 0; row < rows; row++) {
    const float *x = IN(0) + row * width, *dy = IN(4) + row * width;
    float *dx = OUT(5) + row * width;
    float scale = IN(1)[row * by_row], least = IN(2)[row * by_row], most = IN(3)[row * by_row];
#pragma omp simd
    for (int64_t i = 0; i < width; i++) {
      float steps = rintf(x[i] / scale);
      dx[i] = (steps >= least) & (steps <= most) ? dy[i] : 0.0f;
    }
  }
  return 0;
}

#define BLOCK 4096

static int64_t blocks_of(int64_t n) { return (n + BLOCK - 1) / BLOCK; }

/* In: any tensors. Out: the sum of the squares of each (one a tensor). */
KERNEL(square_sums) {
  int count = nparam - 1, parts = threads();
  double *partial = calloc((size_t)parts * count, sizeof(double));
  if (partial == NULL) return 1;
#pragma omp parallel num_threads(parts)
  for (int k = 0; k < count; k++) {
    const float *x = IN(k);
    int64_t n = SIZE(k), blocks = blocks_of(n);
    double mine = 0.0;
#pragma omp for schedule(static) nowait
    for (int64_t block = 0; block < blocks; block++) {
      int64_t end = (block + 1) * BLOCK < n ? (block + 1) * BLOCK : n;
      float part = 0.0f;
#pragma omp simd reduction(+ : part)
      for (int64_t i = block * BLOCK; i < end; i++) part += x[i] * x[i];
      mine += part;
    }
    partial[thread() * count + k] = mine;
  }
  for (int k = 0; k < count; k++) {
    double sum = 0.0;
    for (int part = 0; part < parts; part++) sum += partial[part * count + k];
    OUT(count)[k] = (float)sum;
  }
  free(partial);
  return 0;
}

/* Moments this small move nothing; as denormal numbers they would cost many times as much as others. */
static inline float flushed(float x) { return fabsf(x) < 1e-30f ? 0.0f : x; }

/* Adam with decoupled weight decay and without bias correction. In: n parameters, n first moments, n second moments, n
 * gradients, learning rate (1), factors of the gradients (n), and beta1, beta2, epsilon, decay of each (n, 4). Changes
 * parameters and moments in place. Out: (1). */
KERNEL(adam) {
  int count = (nparam - 4) / 4;
  float rate = IN(4 * count)[0];
#pragma omp parallel
  for (int k = 0; k < count; k++) {
    float *p = params[k], *m = params[count + k], *v = params[2 * count + k];
    const float *g = IN(3 * count + k), *numbers = IN(4 * count + 2) + 4 * k;
    float factor = IN(4 * count + 1)[k], beta1 = numbers[0], beta2 = numbers[1], epsilon = numbers[2];
    float decay = numbers[3];
    int64_t n = SIZE(k), blocks = blocks_of(n);
#pragma omp for schedule(static) nowait
    for (int64_t block = 0; block < blocks; block++) {
      int64_t end = (block + 1) * BLOCK < n ? (block + 1) * BLOCK : n;
#pragma omp simd
      for (int64_t i = block * BLOCK; i < end; i++) {
        float gradient = g[i] * factor;
        m[i] = flushed(beta1 * m[i] + (1.0f - beta1) * gradient);
        v[i] = flushed(beta2 * v[i] + (1.0f - beta2) * gradient * gradient);
        p[i] -= rate * (m[i] / (sqrtf(v[i]) + epsilon) + decay * p[i]);
      }
    }
  }
  OUT(nparam - 1)[0] = 0.0f;
  return 0;
}
