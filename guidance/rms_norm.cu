// silu(x / |x| * gain + bias) and its gradient in x, |x| over a pixel's channels: one pass over
// memory each. frozen_wan_vae.py defines both. x [rows CHANNELS], gain and bias [CHANNELS] in
// float32. CHANNELS, WIDE, LANES, THREADS and KIND come before this file.
//
// LANES neighbouring threads share a pixel: each takes every LANES-th vector of WIDE channels.
// Between loads and stores numbers are float32.

constexpr int COLUMNS = CHANNELS / WIDE;                // vectors of a pixel
constexpr int EACH = (COLUMNS + LANES - 1) / LANES;     // vectors of a thread
constexpr int PIXELS = THREADS / LANES;                 // that a block takes at a time
constexpr bool EVEN = COLUMNS % LANES == 0;             // no thread has fewer than others
constexpr float SMALLEST = 1e-12f;                      // norm, as torch's normalize has it

#if KIND == 0  // float32
typedef float Number;
__device__ __forceinline__ float number(Number value) { return value; }
__device__ __forceinline__ Number rounded(float value) { return value; }
#else
typedef unsigned short Number;  // its bits
#if KIND == 1                   // float16
__device__ __forceinline__ float number(Number bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}
__device__ __forceinline__ Number rounded(float value) {
  Number bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}
#else  // bfloat16, whose instructions older GPUs lack
__device__ __forceinline__ float number(Number bits) {
  return __uint_as_float((unsigned)bits << 16);
}
__device__ __forceinline__ Number rounded(float value) {
  unsigned bits = __float_as_uint(value);
  if (value != value) return 0x7fff;
  return (Number)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);  // to the nearest, ties to even
}
#endif
#endif

struct alignas(sizeof(Number) * WIDE) Vector {
  Number of[WIDE];
};

// Sum over the threads of a pixel.
__device__ __forceinline__ float pixel_sum(float value) {
#pragma unroll
  for (int step = LANES / 2; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
  return value;
}

// A thread's share of a pixel.
struct Share {
  float of[EACH][WIDE];

  // zeros where there is nothing
  __device__ __forceinline__ void read(const Vector* from, int lane, bool there) {
#pragma unroll
    for (int k = 0; k < EACH; k++) {
      int column = lane + LANES * k;
      Vector vector = {};
      if (there && (EVEN || column < COLUMNS)) vector = from[column];
#pragma unroll
      for (int i = 0; i < WIDE; i++) of[k][i] = number(vector.of[i]);
    }
  }

  __device__ __forceinline__ void write(Vector* to, int lane) const {
#pragma unroll
    for (int k = 0; k < EACH; k++) {
      int column = lane + LANES * k;
      Vector vector;
#pragma unroll
      for (int i = 0; i < WIDE; i++) vector.of[i] = rounded(of[k][i]);
      if (EVEN || column < COLUMNS) to[column] = vector;
    }
  }

  __device__ __forceinline__ void read_numbers(const float* from, int lane) {
#pragma unroll
    for (int k = 0; k < EACH; k++)
#pragma unroll
      for (int i = 0; i < WIDE; i++) {
        int column = lane + LANES * k;
        of[k][i] = EVEN || column < COLUMNS ? from[column * WIDE + i] : 0.f;
      }
  }

  // |x| of the pixel
  __device__ __forceinline__ float length() const {
    float squares = 0;
#pragma unroll
    for (int k = 0; k < EACH; k++)
#pragma unroll
      for (int i = 0; i < WIDE; i++) squares += of[k][i] * of[k][i];
    return fmaxf(sqrtf(pixel_sum(squares)), SMALLEST);
  }
};

extern "C" __global__ void __launch_bounds__(THREADS)
    forward(const Vector* x, int rows, const float* gain, const float* bias, Vector* out) {
  int lane = threadIdx.x % LANES;
  Share value, gains, biases;
  gains.read_numbers(gain, lane);
  biases.read_numbers(bias, lane);
  // all threads of a block go round as often, since they sum together
  for (int first = blockIdx.x * PIXELS; first < rows; first += gridDim.x * PIXELS) {
    int row = first + threadIdx.x / LANES;
    size_t at = (size_t)row * COLUMNS;
    value.read(x + at, lane, row < rows);
    float scale = 1 / value.length();
#pragma unroll
    for (int k = 0; k < EACH; k++)
#pragma unroll
      for (int i = 0; i < WIDE; i++) {
        float z = value.of[k][i] * scale * gains.of[k][i] + biases.of[k][i];
        value.of[k][i] = z / (1 + __expf(-z));
      }
    if (row < rows) value.write(out + at, lane);
  }
}

// With u = x / |x| and g the gradient in u: (g - u sum(g u)) / |x|.
extern "C" __global__ void __launch_bounds__(THREADS)
    backward(const Vector* x, const Vector* grad, int rows, const float* gain, const float* bias,
             Vector* out) {
  int lane = threadIdx.x % LANES;
  Share unit, slope, gains, biases;
  gains.read_numbers(gain, lane);
  biases.read_numbers(bias, lane);
  for (int first = blockIdx.x * PIXELS; first < rows; first += gridDim.x * PIXELS) {
    int row = first + threadIdx.x / LANES;
    size_t at = (size_t)row * COLUMNS;
    unit.read(x + at, lane, row < rows);
    slope.read(grad + at, lane, row < rows);
    float length = unit.length(), scale = 1 / length, along = 0;
#pragma unroll
    for (int k = 0; k < EACH; k++)
#pragma unroll
      for (int i = 0; i < WIDE; i++) {
        unit.of[k][i] *= scale;
        float z = unit.of[k][i] * gains.of[k][i] + biases.of[k][i];
        float sigmoid = 1 / (1 + __expf(-z));
        slope.of[k][i] *= sigmoid * (1 + z * (1 - sigmoid)) * gains.of[k][i];
        along += slope.of[k][i] * unit.of[k][i];
      }
    along = pixel_sum(along);
    if (length <= SMALLEST) along = 0;  // the norm is a constant there
#pragma unroll
    for (int k = 0; k < EACH; k++)
#pragma unroll
      for (int i = 0; i < WIDE; i++)
        slope.of[k][i] = (slope.of[k][i] - unit.of[k][i] * along) * scale;
    if (row < rows) slope.write(out + at, lane);
  }
}
