// What happens to the channels of float16 images' pixels between convolutions and attention; images
// are [n rows CHANNELS], channels innermost. CHANNELS, GROUPS, THREADS of a block and BLOCKS of a
// multiprocessor (where there are groups) come before this file.
//
// silu(group norm of x + offset) and its gradient in x; frozen_layers.py defines both. An offset is
// one number a channel of an image, [n CHANNELS], or null for none; from one image's to the next are
// `stride` numbers.
//
// A thread takes 8 neighbouring channels, 16 bytes, of every few rows. Sums over rows go in two
// steps: over a block's rows (`partial_*`), then over the blocks (`finish_*`). Numbers are float32.
// Rows are unrolled and images restricted so that a thread has asked for the next row before it is
// done with one: few threads fit beside each other, and would wait for memory.

constexpr int WIDE = 8, COLUMNS = CHANNELS / WIDE;
constexpr int ROWS = THREADS / COLUMNS;  // that a block takes at a time
constexpr int WARPS = 8;                 // of a block that finishes a group, or norms rows

typedef unsigned short Half;  // its bits

struct __align__(16) Eight {
  Half bits[WIDE];
};

#ifndef ON_HOST  // a check of the arithmetic on a CPU brings its own

__device__ __forceinline__ float number(Half bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

__device__ __forceinline__ Half bits_of(float value) {
  Half bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}

#endif

__device__ __forceinline__ void read(float* to, const Eight* from) {
  Eight eight = *from;
#pragma unroll
  for (int i = 0; i < WIDE; i++) to[i] = number(eight.bits[i]);
}

__device__ __forceinline__ void write(Eight* to, const float* from) {
  Eight eight;
#pragma unroll
  for (int i = 0; i < WIDE; i++) eight.bits[i] = bits_of(from[i]);
  *to = eight;
}

// Which rows and channels a thread takes: those of block (blockIdx.x, image blockIdx.y).
struct Share {
  int column, row, first, last;  // rows first + row, ... before last
  size_t image;                  // index of the image's first eight

  __device__ Share(int rows) {
    int span = (rows + gridDim.x - 1) / gridDim.x;
    column = threadIdx.x % COLUMNS, row = threadIdx.x / COLUMNS;
    first = min((int)blockIdx.x * span, rows), last = min(first + span, rows);
    image = (size_t)blockIdx.y * rows * COLUMNS;
  }
  __device__ size_t at(int row) const { return image + (size_t)row * COLUMNS + column; }
};

// Sum over LANES neighbouring threads of a warp.
template <int LANES>
__device__ __forceinline__ float sum_of(float value) {
  for (int step = LANES / 2; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
  return value;
}

#if GROUPS  // group norm; compiling all for each task would take as long again

constexpr int GROUP = CHANNELS / GROUPS;  // channels of a group

// All blocks run at once, few for the sake of registers: each has many rows' numbers under way, and
// begins and ends once. That took three quarters of the time that four times the blocks did (H200).
#define BESIDE __launch_bounds__(THREADS, BLOCKS)

// Sums two values a channel over the block's threads and a group's channels; out
// [2 n GROUPS blocks].
__device__ void reduce(const float* a, const float* b, float* out) {
  __align__(16) __shared__ float shared[2][THREADS * WIDE];
#pragma unroll
  for (int i = 0; i < WIDE; i++) {
    shared[0][threadIdx.x * WIDE + i] = a[i];
    shared[1][threadIdx.x * WIDE + i] = b[i];
  }
  __syncthreads();
  for (int c = threadIdx.x; c < CHANNELS; c += THREADS)
    for (int k = 0; k < 2; k++) {
      float sum = 0;
      for (int row = 0; row < ROWS; row++) sum += shared[k][row * CHANNELS + c];
      shared[k][c] = sum;  // which no other thread reads before all have theirs
    }
  __syncthreads();
  for (int i = threadIdx.x; i < 2 * GROUPS; i += THREADS) {
    int k = i / GROUPS, group = i % GROUPS;
    float sum = 0;
    for (int c = 0, at = group % GROUP; c < GROUP; c++, at = at + 1 < GROUP ? at + 1 : 0)
      sum += shared[k][group * GROUP + at];  // neighbours begin in different banks
    out[(((size_t)k * gridDim.y + blockIdx.y) * GROUPS + group) * gridDim.x + blockIdx.x] = sum;
  }
}

// Both sums over all blocks, of group blockIdx.x of image blockIdx.y; in the first thread.
__device__ float2 finish(const float* partial, int blocks) {
  __shared__ float2 sums[WARPS];
  int lane = threadIdx.x, warp = threadIdx.y;
  size_t first = ((size_t)blockIdx.y * GROUPS + blockIdx.x) * blocks;
  size_t plane = (size_t)gridDim.y * GROUPS * blocks;
  float2 sum = {0, 0};
#pragma unroll 4
  for (int b = warp * 32 + lane; b < blocks; b += 32 * WARPS)
    sum.x += partial[first + b], sum.y += partial[plane + first + b];
  sum = {sum_of<32>(sum.x), sum_of<32>(sum.y)};
  if (lane == 0) sums[warp] = sum;
  __syncthreads();
  if (lane == 0 && warp == 0)
    for (int i = 1; i < WARPS; i++) sum.x += sums[i].x, sum.y += sums[i].y;
  return sum;
}

// A value of the group's, as its sums of x + offset - pivot and of squares are small then.
__device__ __forceinline__ float pivot_of(const Half* x, int rows, int image, int group,
                                          const Half* offset, int stride) {
  int channel = group * GROUP;
  float value = number(x[(size_t)image * rows * CHANNELS + channel]);
  return offset ? value + number(offset[(size_t)image * stride + channel]) : value;
}

// out: sums over the block's rows of x + offset - pivot and of its square.
extern "C" __global__ void BESIDE partial_moments(const Eight* __restrict__ x, int rows,
                                                  const Half* offset, int stride, float* out) {
  Share share(rows);
  float shift[WIDE], value[WIDE], sum[WIDE] = {}, squares[WIDE] = {};
#pragma unroll
  for (int i = 0; i < WIDE; i++) {
    int channel = share.column * WIDE + i;
    shift[i] = -pivot_of((const Half*)x, rows, blockIdx.y, channel / GROUP, offset, stride);
    if (offset) shift[i] += number(offset[(size_t)blockIdx.y * stride + channel]);
  }
#pragma unroll 4
  for (int row = share.first + share.row; row < share.last; row += ROWS) {
    read(value, x + share.at(row));
#pragma unroll
    for (int i = 0; i < WIDE; i++) {
      float from_pivot = value[i] + shift[i];
      sum[i] += from_pivot, squares[i] += from_pivot * from_pivot;
    }
  }
  reduce(sum, squares, out);
}

// One block a group and image: mean and 1 / deviation of x + offset, moments [n GROUPS 2].
extern "C" __global__ void finish_moments(const Half* x, int rows, const float* partial, int blocks,
                                          float eps, const Half* offset, int stride,
                                          float* moments) {
  float2 sums = finish(partial, blocks);
  if (threadIdx.x || threadIdx.y) return;
  float count = (float)rows * GROUP, mean = sums.x / count;
  float variance = fmaxf(sums.y / count - mean * mean, 0.f);
  float* to = moments + 2 * ((size_t)blockIdx.y * GROUPS + blockIdx.x);
  to[0] = mean + pivot_of(x, rows, blockIdx.y, blockIdx.x, offset, stride);
  to[1] = rsqrtf(variance + eps);
}

// The norm is x * scale + shift, per channel; x's own mean is without the offset.
__device__ __forceinline__ void coefficients(const float* moments, const Eight* weight,
                                             const Eight* bias, const Half* offset, int stride,
                                             int column, float* mean, float* scale, float* shift) {
  read(scale, weight + column);
  read(shift, bias + column);
#pragma unroll
  for (int i = 0; i < WIDE; i++) {
    int channel = column * WIDE + i;
    const float* of = moments + 2 * ((size_t)blockIdx.y * GROUPS + channel / GROUP);
    mean[i] = of[0];
    if (offset) mean[i] -= number(offset[(size_t)blockIdx.y * stride + channel]);
    scale[i] *= of[1], shift[i] -= mean[i] * scale[i];
  }
}

extern "C" __global__ void BESIDE apply(const Eight* __restrict__ x, int rows, const float* moments,
                                        const Eight* weight, const Eight* bias, const Half* offset,
                                        int stride, int silu, Eight* __restrict__ out) {
  Share share(rows);
  float mean[WIDE], scale[WIDE], shift[WIDE], value[WIDE];
  coefficients(moments, weight, bias, offset, stride, share.column, mean, scale, shift);
#pragma unroll 4
  for (int row = share.first + share.row; row < share.last; row += ROWS) {
    read(value, x + share.at(row));
#pragma unroll
    for (int i = 0; i < WIDE; i++) {
      float z = value[i] * scale[i] + shift[i];
      value[i] = silu ? __fdividef(z, 1 + __expf(-z)) : z;
    }
    write(out + share.at(row), value);
  }
}

// grad -> the gradient of the norm's output, before the activation.
__device__ __forceinline__ void through_silu(float* grad, const float* x, const float* scale,
                                             const float* shift, int silu) {
  if (!silu) return;
#pragma unroll
  for (int i = 0; i < WIDE; i++) {
    float z = x[i] * scale[i] + shift[i], sigmoid = __fdividef(1, 1 + __expf(-z));
    grad[i] *= sigmoid * (1 + z * (1 - sigmoid));
  }
}

// out: sums over the block's rows of scale * gradient, and of that * (x - mean).
extern "C" __global__ void BESIDE partial_gradient(const Eight* __restrict__ x,
                                                   const Eight* __restrict__ grad, int rows,
                                                   const float* moments, const Eight* weight,
                                                   const Eight* bias, const Half* offset, int stride,
                                                   int silu, float* out) {
  Share share(rows);
  float mean[WIDE], scale[WIDE], shift[WIDE], value[WIDE], of_norm[WIDE];
  float sum[WIDE] = {}, products[WIDE] = {};
  coefficients(moments, weight, bias, offset, stride, share.column, mean, scale, shift);
#pragma unroll 4
  for (int row = share.first + share.row; row < share.last; row += ROWS) {
    read(value, x + share.at(row));
    read(of_norm, grad + share.at(row));
    through_silu(of_norm, value, scale, shift, silu);
#pragma unroll
    for (int i = 0; i < WIDE; i++)
      sum[i] += of_norm[i], products[i] += of_norm[i] * (value[i] - mean[i]);
  }
#pragma unroll
  for (int i = 0; i < WIDE; i++) sum[i] *= scale[i], products[i] *= scale[i];
  reduce(sum, products, out);
}

// One block a group and image. With r = 1 / deviation, w the weight, g the gradient of the norm's
// output and averages over the group: slopes [n GROUPS 2] are -r^3 avg(w g (x - mean)) and
// -r avg(w g).
extern "C" __global__ void finish_gradient(int rows, const float* partial, int blocks,
                                           const float* moments, float* slopes) {
  float2 sums = finish(partial, blocks);
  if (threadIdx.x || threadIdx.y) return;
  float count = (float)rows * GROUP;
  size_t at = 2 * ((size_t)blockIdx.y * GROUPS + blockIdx.x);
  float r = moments[at + 1];
  slopes[at] = -r * r * sums.y / count, slopes[at + 1] = -sums.x / count;
}

// `beside` is added, the gradient that x has from elsewhere; null for none. Of x's channels, `width`
// go to `out`, and those behind them to `rest`.
extern "C" __global__ void BESIDE apply_gradient(const Eight* __restrict__ x,
                                                 const Eight* __restrict__ grad, int rows,
                                                 const float* moments, const Eight* weight,
                                                 const Eight* bias, const Half* offset, int stride,
                                                 const float* slopes, int silu,
                                                 const Eight* __restrict__ beside,
                                                 Eight* __restrict__ out, int width,
                                                 Eight* __restrict__ rest) {
  Share share(rows);
  float mean[WIDE], scale[WIDE], shift[WIDE], value[WIDE], of_norm[WIDE];
  coefficients(moments, weight, bias, offset, stride, share.column, mean, scale, shift);
  float slope[WIDE], level[WIDE];
#pragma unroll
  for (int i = 0; i < WIDE; i++) {
    int group = (share.column * WIDE + i) / GROUP;
    const float* of = slopes + 2 * ((size_t)blockIdx.y * GROUPS + group);
    slope[i] = of[0], level[i] = of[1] - mean[i] * of[0];
  }
  int columns = width / WIDE, column = share.column;
  Eight* to = out;
  if (column >= columns) to = rest, column -= columns, columns = COLUMNS - columns;
  to += (size_t)blockIdx.y * rows * columns + column;
#pragma unroll 4
  for (int row = share.first + share.row; row < share.last; row += ROWS) {
    read(value, x + share.at(row));
    read(of_norm, grad + share.at(row));
    through_silu(of_norm, value, scale, shift, silu);
#pragma unroll
    for (int i = 0; i < WIDE; i++)
      of_norm[i] = of_norm[i] * scale[i] + value[i] * slope[i] + level[i];
    if (beside) {
      read(value, beside + share.at(row));
#pragma unroll
      for (int i = 0; i < WIDE; i++) of_norm[i] += value[i];
    }
    write(to + (size_t)row * columns, of_norm);
  }
}

#else  // what has no groups

// x + bias, in place
extern "C" __global__ void add_bias(Eight* x, int rows, const Eight* bias) {
  Share share(rows);
  float constant[WIDE], value[WIDE];
  read(constant, bias + share.column);
#pragma unroll 4
  for (int row = share.first + share.row; row < share.last; row += ROWS) {
    read(value, x + share.at(row));
#pragma unroll
    for (int i = 0; i < WIDE; i++) value[i] += constant[i];
    write(x + share.at(row), value);
  }
}

// x + y + bias
extern "C" __global__ void plus(const Eight* __restrict__ x, const Eight* __restrict__ y, int rows,
                                const Eight* bias, Eight* __restrict__ out) {
  Share share(rows);
  float constant[WIDE], value[WIDE], other[WIDE];
  read(constant, bias + share.column);
#pragma unroll 2
  for (int row = share.first + share.row; row < share.last; row += ROWS) {
    read(value, x + share.at(row));
    read(other, y + share.at(row));
#pragma unroll
    for (int i = 0; i < WIDE; i++) value[i] += other[i] + constant[i];
    write(out + share.at(row), value);
  }
}

// The normal distribution at z, and its density (Abramowitz and Stegun, Handbook of Mathematical
// Functions, 26.2.17: off by at most 7.5e-8).
__device__ __forceinline__ float2 normal(float z) {
  float density = 0.39894228f * __expf(-0.5f * z * z);
  float t = __fdividef(1, 1 + 0.23164190f * fabsf(z));
  float tail = -1.82125598f + t * 1.33027443f;
  tail = 0.31938153f + t * (-0.35656378f + t * (1.78147794f + t * tail));
  tail *= density * t;
  return {z < 0 ? tail : 1 - tail, density};
}

// values * gelu(gates) of rows [values gates], each CHANNELS wide; out [rows CHANNELS]
extern "C" __global__ void geglu(const Eight* __restrict__ x, int rows, Eight* __restrict__ out) {
  Share share(rows);
  float value[WIDE], gate[WIDE];
#pragma unroll 2
  for (int row = share.first + share.row; row < share.last; row += ROWS) {
    const Eight* values = x + (size_t)row * 2 * COLUMNS + share.column;
    read(value, values);
    read(gate, values + COLUMNS);
#pragma unroll
    for (int i = 0; i < WIDE; i++)
      value[i] *= gate[i] * normal(gate[i]).x;
    write(out + share.at(row), value);
  }
}

// The gradient of `geglu` in x, which is laid out as x.
extern "C" __global__ void geglu_gradient(const Eight* __restrict__ x,
                                          const Eight* __restrict__ grad, int rows,
                                          Eight* __restrict__ out) {
  Share share(rows);
  float value[WIDE], gate[WIDE], of_out[WIDE];
#pragma unroll 2
  for (int row = share.first + share.row; row < share.last; row += ROWS) {
    size_t at = (size_t)row * 2 * COLUMNS + share.column;
    read(value, x + at);
    read(gate, x + at + COLUMNS);
    read(of_out, grad + share.at(row));
#pragma unroll
    for (int i = 0; i < WIDE; i++) {
      float2 of = normal(gate[i]);
      float of_value = of_out[i] * gate[i] * of.x;
      gate[i] = of_out[i] * value[i] * (of.x + gate[i] * of.y);
      value[i] = of_value;
    }
    write(out + at, value);
    write(out + at + COLUMNS, gate);
  }
}

#if CHANNELS <= 4096  // which a warp can hold

// What a thread takes of a row whose channels LANES neighbouring threads share: some of its eights.
template <int LANES>
struct Row {
  static constexpr int EACH = (COLUMNS + LANES - 1) / LANES;  // eights of a thread
  int lane;
  size_t row;
  bool there;

  __device__ Row(int rows) {
    lane = threadIdx.x % LANES;
    row = (size_t)(blockIdx.x * blockDim.y + threadIdx.y) * (32 / LANES) + threadIdx.x / LANES;
    there = row < rows;
  }
  __device__ bool has(int k) const { return there && column(k) < COLUMNS; }
  __device__ int column(int k) const { return lane + LANES * k; }
  __device__ size_t at(int k) const { return row * COLUMNS + column(k); }
};

// Layer norm over a row's channels, blocks of 32 x any threads: of x, or of total = x + added where
// `added` isn't null; moments [rows 2] as group norm has them. A warp takes a row.
extern "C" __global__ void layer_norm(const Eight* __restrict__ x, const Eight* __restrict__ added,
                                      int rows, const Eight* __restrict__ weight,
                                      const Eight* __restrict__ bias, float eps,
                                      Eight* __restrict__ total, float* __restrict__ moments,
                                      Eight* __restrict__ out) {
  Row<32> row(rows);
  constexpr int EACH = Row<32>::EACH;
  float value[EACH][WIDE], other[WIDE], w[WIDE], sum = 0, squares = 0;
#pragma unroll
  for (int k = 0; k < EACH; k++)
    if (row.has(k)) read(value[k], x + row.at(k));
  if (added) {
#pragma unroll
    for (int k = 0; k < EACH; k++) {
      if (!row.has(k)) continue;
      read(other, added + row.at(k));
#pragma unroll
      for (int i = 0; i < WIDE; i++) value[k][i] += other[i];
      write(total + row.at(k), value[k]);
    }
  }
#pragma unroll
  for (int k = 0; k < EACH; k++) {
    if (!row.has(k)) continue;
#pragma unroll
    for (int i = 0; i < WIDE; i++) sum += value[k][i];
  }
  float mean = sum_of<32>(sum) / CHANNELS;
#pragma unroll
  for (int k = 0; k < EACH; k++) {
    if (!row.has(k)) continue;
#pragma unroll
    for (int i = 0; i < WIDE; i++) squares += (value[k][i] - mean) * (value[k][i] - mean);
  }
  float scale = rsqrtf(sum_of<32>(squares) / CHANNELS + eps);
  if (row.there && row.lane == 0) moments[2 * row.row] = mean, moments[2 * row.row + 1] = scale;
#pragma unroll
  for (int k = 0; k < EACH; k++) {
    if (!row.has(k)) continue;
    read(w, weight + row.column(k)), read(other, bias + row.column(k));
#pragma unroll
    for (int i = 0; i < WIDE; i++) value[k][i] = (value[k][i] - mean) * scale * w[i] + other[i];
    write(out + row.at(k), value[k]);
  }
}

// Its gradient in total, and with it in x and in what was added; of_total: another reader's. As few
// threads take a row as have 5 eights each, or 32: a thread asks for all it needs at once.
extern "C" __global__ void layer_norm_gradient(
    const Eight* __restrict__ total, const Eight* __restrict__ grad,
    const Eight* __restrict__ of_total, int rows, const Eight* __restrict__ weight,
    const float* __restrict__ moments, Eight* __restrict__ out) {
  constexpr int FEW = (COLUMNS + 4) / 5;
  constexpr int LANES = FEW > 16 ? 32 : FEW > 8 ? 16 : FEW > 4 ? 8 : FEW > 2 ? 4 : FEW;
  constexpr int EACH = Row<LANES>::EACH;
  Row<LANES> row(rows);
  Eight values[EACH], of_norms[EACH], others[EACH];
#pragma unroll
  for (int k = 0; k < EACH; k++) {
    if (!row.has(k)) continue;
    values[k] = total[row.at(k)], of_norms[k] = grad[row.at(k)], others[k] = of_total[row.at(k)];
  }
  float value[WIDE], of_norm[WIDE], other[WIDE], w[WIDE];
  float mean = 0, scale = 0, sum = 0, products = 0;
  if (row.there) mean = moments[2 * row.row], scale = moments[2 * row.row + 1];
#pragma unroll
  for (int k = 0; k < EACH; k++) {
    if (!row.has(k)) continue;
    read(value, values + k), read(of_norm, of_norms + k), read(w, weight + row.column(k));
#pragma unroll
    for (int i = 0; i < WIDE; i++) {
      float slope = of_norm[i] * w[i];
      sum += slope, products += slope * (value[i] - mean);
    }
  }
  sum = sum_of<LANES>(sum) / CHANNELS;
  products = sum_of<LANES>(products) * scale * scale / CHANNELS;
#pragma unroll
  for (int k = 0; k < EACH; k++) {
    if (!row.has(k)) continue;
    read(value, values + k), read(of_norm, of_norms + k), read(w, weight + row.column(k));
    read(other, others + k);
#pragma unroll
    for (int i = 0; i < WIDE; i++)
      other[i] += scale * (of_norm[i] * w[i] - sum - (value[i] - mean) * products);
    write(out + row.at(k), other);
  }
}

#endif
#endif
