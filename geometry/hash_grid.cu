// Hash grid features of points, and the gradients to the table and to the points;
// hash_grid_torch.py defines them.
//
// Before this file come lattice.cuh, DIMS, STENCIL, N_LEVELS, LEVELS and the most samples and levels
// of a block, BLOCK_SAMPLES and BLOCK_LEVELS, and RUN. A thread takes one sample in one level, on the
// way to the table RUN of them: a sample's point and, if STENCIL, its neighbours one step along
// +x -x +y -y +z -z.
//
// A neighbour differs from the point in one coordinate, so its corners lie on two lattice planes
// across that axis. Where a plane is one of the two that bound the point's own cell, as on coarse
// levels, its entries are in registers already, and on the way back their gradients are added up
// there: one access to memory serves up to seven points.
//
// Entries that are neighbours along x differ by 1 in their key. Every other such pair shares
// 16 bytes of memory and is read, or added to, at once.

constexpr int CORNERS = 1 << DIMS;  // bit d of a corner's number: it lies on the upper line of d
constexpr int X = 0;

struct Pair {
  float2 low, high;
};

// Weight of a corner from all axes but two (name one twice to leave out only that).
__device__ __forceinline__ float weight(const Lines* at, int corner, int axis, int also) {
  float product = 1;
#pragma unroll
  for (int d = 0; d < DIMS; d++)
    if (d != axis && d != also) product *= corner >> d & 1 ? at[d].above : 1 - at[d].above;
  return product;
}

// Key of a corner, joined from all axes but two.
template <bool HASHED>
__device__ __forceinline__ unsigned key(const Lines* at, int corner, int axis, int also) {
  unsigned joined = 0;
#pragma unroll
  for (int d = 0; d < DIMS; d++)
    if (d != axis && d != also)
      joined = join(HASHED, joined, corner >> d & 1 ? at[d].high : at[d].low);
  return joined;
}

template <bool HASHED>
struct Entries {
  float2* first;
  unsigned size;

  __device__ __forceinline__ float2* at(unsigned key) const {
    return first + wrap(HASHED, size, key);
  }

  // The entries on both lines of x, with the other axes' joined key.
  __device__ __forceinline__ Pair load(const Lines& x, unsigned rest) const {
    unsigned low = wrap(HASHED, size, join(HASHED, x.low, rest));
    unsigned high = wrap(HASHED, size, join(HASHED, x.high, rest));
    if ((low ^ high) != 1) return {first[low], first[high]};
    float4 both = *(const float4*)(first + (low & ~1u));
    float2 even = make_float2(both.x, both.y), odd = make_float2(both.z, both.w);
    return low & 1 ? Pair{odd, even} : Pair{even, odd};
  }

  __device__ __forceinline__ void add(const Lines& x, unsigned rest, Pair grad) const {
    unsigned low = wrap(HASHED, size, join(HASHED, x.low, rest));
    unsigned high = wrap(HASHED, size, join(HASHED, x.high, rest));
    if ((low ^ high) != 1) {
      atomic_add(first + low, grad.low);
      atomic_add(first + high, grad.high);
    } else {
      atomic_add(first + (low & ~1u), low & 1 ? grad.high : grad.low,
                 low & 1 ? grad.low : grad.high);
    }
  }
};

// The interpolated value on the plane across `axis` at the line with this key.
template <bool HASHED>
__device__ __forceinline__ float2 plane_value(Entries<HASHED> entries, const Lines* at, int axis,
                                              unsigned line) {
  float2 sum = make_float2(0, 0);
#pragma unroll
  for (int c = 0; c < CORNERS; c += 2) {
    unsigned rest = join(HASHED, line, key<HASHED>(at, c, axis, X));
    if (axis == X) {
      sum = sum + weight(at, c, X, X) * *entries.at(rest);
    } else if (!(c >> axis & 1)) {
      Pair pair = entries.load(at[X], rest);
      sum = sum + weight(at, c, axis, X) * ((1 - at[X].above) * pair.low + at[X].above * pair.high);
    }
  }
  return sum;
}

template <bool HASHED>
__device__ __forceinline__ void add_plane(Entries<HASHED> entries, const Lines* at, int axis,
                                          unsigned line, float2 grad) {
#pragma unroll
  for (int c = 0; c < CORNERS; c += 2) {
    unsigned rest = join(HASHED, line, key<HASHED>(at, c, axis, X));
    if (axis == X) {
      atomic_add(entries.at(rest), weight(at, c, X, X) * grad);
    } else if (!(c >> axis & 1)) {
      float2 own = weight(at, c, axis, X) * grad;
      entries.add(at[X], rest, {(1 - at[X].above) * own, at[X].above * own});
    }
  }
}

// Whether both of a neighbour's planes are others than those of the point's cell.
__device__ __forceinline__ bool apart(const Lines& near, const Lines& at) {
  return near.cell > at.cell + 1 || near.cell + 1 < at.cell;
}

// The value at a point that differs in x, with no plane in common.
template <bool HASHED>
__device__ __forceinline__ float2 moved_value(Entries<HASHED> entries, const Lines* at, Lines x) {
  float2 sum = make_float2(0, 0);
#pragma unroll
  for (int c = 0; c < CORNERS; c += 2) {
    Pair pair = entries.load(x, key<HASHED>(at, c, X, X));
    sum = sum + weight(at, c, X, X) * ((1 - x.above) * pair.low + x.above * pair.high);
  }
  return sum;
}

template <bool HASHED>
__device__ __forceinline__ void add_moved(Entries<HASHED> entries, const Lines* at, Lines x,
                                          float2 grad) {
#pragma unroll
  for (int c = 0; c < CORNERS; c += 2) {
    float2 own = weight(at, c, X, X) * grad;
    entries.add(x, key<HASHED>(at, c, X, X), {(1 - x.above) * own, x.above * own});
  }
}

template <bool HASHED>
__device__ void features(const float* x, Entries<HASHED> entries, const Level& level, float step,
                         float2* out, float2* out_near) {
  Lines at[DIMS];
#pragma unroll
  for (int d = 0; d < DIMS; d++) at[d] = lines(x[d], level.scale, level.multipliers[d]);

  float2 corners[CORNERS], sum = make_float2(0, 0);
#pragma unroll
  for (int c = 0; c < CORNERS; c += 2) {
    Pair pair = entries.load(at[X], key<HASHED>(at, c, X, X));
    corners[c] = pair.low;
    corners[c + 1] = pair.high;
    sum = sum + weight(at, c, X, X) * ((1 - at[X].above) * pair.low + at[X].above * pair.high);
  }
  *out = sum;

#if STENCIL
#pragma unroll
  for (int axis = 0; axis < 3; axis++) {
    float2 lower = make_float2(0, 0), upper = make_float2(0, 0);  // on the cell's own two planes
#pragma unroll
    for (int c = 0; c < CORNERS; c++) {
      float2 part = weight(at, c, axis, axis) * corners[c];
      if (c >> axis & 1) upper = upper + part;
      else lower = lower + part;
    }
#pragma unroll
    for (int side = 0; side < 2; side++) {
      float moved = x[axis] + (side ? -step : step);
      Lines near = lines(moved, level.scale, level.multipliers[axis]);
      float2 value;
      if (axis == X && apart(near, at[X])) {
        value = moved_value(entries, at, near);
      } else {
        int shift = near.cell - at[axis].cell;
        float2 low = shift == 0   ? lower
                     : shift == 1 ? upper
                                  : plane_value(entries, at, axis, near.low);
        float2 high = shift == 0    ? upper
                      : shift == -1 ? lower
                                    : plane_value(entries, at, axis, near.high);
        value = (1 - near.above) * low + near.above * high;
      }
      out_near[(2 * axis + side) * N_LEVELS] = value;
    }
  }
#endif
}

// Adds a sample's gradient to those of its cell's corners, and to the entries of all other corners
// that its neighbours have; whether the cell's got any.
template <bool HASHED>
__device__ __forceinline__ bool add_gradient(const float* x, Entries<HASHED> entries,
                                             const Level& level, float step, const Lines* at,
                                             const float2* grad, const float2* grad_near,
                                             float2* corners) {
  float2 own = *grad;
  bool any = !is_zero(own);
#pragma unroll
  for (int c = 0; c < CORNERS; c++) corners[c] = corners[c] + weight(at, c, DIMS, DIMS) * own;

#if STENCIL
#pragma unroll
  for (int axis = 0; axis < 3; axis++) {
    float2 lower = make_float2(0, 0), upper = make_float2(0, 0);  // to the cell's own two planes
#pragma unroll
    for (int side = 0; side < 2; side++) {
      own = grad_near[(2 * axis + side) * N_LEVELS];
      if (is_zero(own)) continue;
      float moved = x[axis] + (side ? -step : step);
      Lines near = lines(moved, level.scale, level.multipliers[axis]);
      if (axis == X && apart(near, at[X])) {
        add_moved(entries, at, near, own);
        continue;
      }
      int shift = near.cell - at[axis].cell;
      float2 low = (1 - near.above) * own, high = near.above * own;
      if (shift == 0) lower = lower + low;
      else if (shift == 1) upper = upper + low;
      else add_plane(entries, at, axis, near.low, low);
      if (shift == 0) upper = upper + high;
      else if (shift == -1) lower = lower + high;
      else add_plane(entries, at, axis, near.high, high);
    }
    any |= !is_zero(lower) || !is_zero(upper);
#pragma unroll
    for (int c = 0; c < CORNERS; c++)
      corners[c] = corners[c] + weight(at, c, axis, axis) * (c >> axis & 1 ? upper : lower);
  }
#endif
  return any;
}

// Adds to the entries of a cell's corners, and begins anew.
template <bool HASHED>
__device__ __forceinline__ void add_corners(Entries<HASHED> entries, const Lines* at,
                                            float2* corners) {
#pragma unroll
  for (int c = 0; c < CORNERS; c += 2) {
    entries.add(at[X], key<HASHED>(at, c, X, X), {corners[c], corners[c + 1]});
    corners[c] = corners[c + 1] = make_float2(0, 0);
  }
}

// Of n samples, one after the other. Mostly they follow each other on a ray, and on coarse levels
// many lie in one cell: its corners' entries are added to when the samples leave it.
template <bool HASHED>
__device__ void add_gradients(const float* x, int n, Entries<HASHED> entries, const Level& level,
                              float step, const float2* grad, const float2* grad_near) {
  Lines at[DIMS];
  float2 corners[CORNERS] = {};
  bool any = false;
#pragma unroll 1
  for (int i = 0; i < n; i++) {
    Lines next[DIMS];
    bool left = false;
#pragma unroll
    for (int d = 0; d < DIMS; d++) {
      next[d] = lines(x[d], level.scale, level.multipliers[d]);
      left |= i > 0 && next[d].cell != at[d].cell;
    }
    if (left && any) {
      add_corners(entries, at, corners);
      any = false;
    }
#pragma unroll
    for (int d = 0; d < DIMS; d++) at[d] = next[d];
    any |= add_gradient(x, entries, level, step, at, grad, grad_near, corners);
    x += DIMS, grad += N_LEVELS, grad_near += 6 * N_LEVELS;
  }
  if (any) add_corners(entries, at, corners);
}

__device__ __forceinline__ float dot(float2 a, float2 b) { return a.x * b.x + a.y * b.y; }

// Adds to `slope` how grad's product with the features grows with each coordinate of a point.
template <bool HASHED>
__device__ __forceinline__ void add_slope(const float* x, Entries<HASHED> entries,
                                          const Level& level, float2 grad, float* slope) {
  Lines at[DIMS];
#pragma unroll
  for (int d = 0; d < DIMS; d++) at[d] = lines(x[d], level.scale, level.multipliers[d]);

  float corners[CORNERS];  // products with grad
#pragma unroll
  for (int c = 0; c < CORNERS; c += 2) {
    Pair pair = entries.load(at[X], key<HASHED>(at, c, X, X));
    corners[c] = dot(pair.low, grad);
    corners[c + 1] = dot(pair.high, grad);
  }
#pragma unroll
  for (int d = 0; d < DIMS; d++) {
    float sum = 0;
#pragma unroll
    for (int c = 0; c < CORNERS; c++)
      if (!(c >> d & 1)) sum += weight(at, c, d, d) * (corners[c | 1 << d] - corners[c]);
    if (x[d] >= 0 && x[d] <= 1) slope[d] += level.scale * sum;  // beyond, nothing changes
  }
}

// Of a point and, if STENCIL, of its neighbours, which all move with it.
template <bool HASHED>
__device__ __forceinline__ void add_slopes(const float* x, Entries<HASHED> entries,
                                           const Level& level, float step, const float2* grad,
                                           const float2* grad_near, float* slope) {
  if (!is_zero(*grad)) add_slope(x, entries, level, *grad, slope);
#if STENCIL
#pragma unroll 1
  for (int k = 0; k < 6; k++) {
    float2 own = grad_near[k * N_LEVELS];
    if (is_zero(own)) continue;
    float near[DIMS];
#pragma unroll
    for (int d = 0; d < DIMS; d++) near[d] = d == k / 2 ? x[d] + (k & 1 ? -step : step) : x[d];
    add_slope(near, entries, level, own, slope);
  }
#endif
}

// x, grad_x [n DIMS]; out, grad [n N_LEVELS], out_near, grad_near [n 6 N_LEVELS] pairs of features.
// Blocks cover samples in x and levels in y.

extern "C" __global__ void __launch_bounds__(512)
    forward(const float* x, int n, float2* table, float step, float2* out, float2* out_near) {
  int sample = blockIdx.x * blockDim.x + threadIdx.x;
  int number = blockIdx.y * blockDim.y + threadIdx.y;
  if (sample >= n || number >= N_LEVELS) return;
  const Level& level = LEVELS[number];
  float2* first = table + level.offset;
  out += (size_t)sample * N_LEVELS + number;
  out_near += (size_t)sample * 6 * N_LEVELS + number;
  x += (size_t)sample * DIMS;
  if (level.hashed) features<true>(x, {first, level.size}, level, step, out, out_near);
  else features<false>(x, {first, level.size}, level, step, out, out_near);
}

// To the table alone; a thread takes RUN samples in one level.
extern "C" __global__ void __launch_bounds__(512)
    backward(const float* x, int n, float2* grad_table, float step, const float2* grad,
             const float2* grad_near) {
  int sample = RUN * (blockIdx.x * blockDim.x + threadIdx.x);
  int number = blockIdx.y * blockDim.y + threadIdx.y;
  if (sample >= n || number >= N_LEVELS) return;
  const Level& level = LEVELS[number];
  float2* first = grad_table + level.offset;
  grad += (size_t)sample * N_LEVELS + number;
  grad_near += (size_t)sample * 6 * N_LEVELS + number;
  x += (size_t)sample * DIMS;
  n = min(RUN, n - sample);
  if (level.hashed) add_gradients<true>(x, n, {first, level.size}, level, step, grad, grad_near);
  else add_gradients<false>(x, n, {first, level.size}, level, step, grad, grad_near);
}

extern "C" __global__ void __launch_bounds__(512)
    backward_to_points(const float* x, int n, float2* table, float step, const float2* grad,
                       const float2* grad_near, float* grad_x) {
  __shared__ float slopes[DIMS][BLOCK_LEVELS][BLOCK_SAMPLES];
  int sample = blockIdx.x * blockDim.x + threadIdx.x;
  int number = blockIdx.y * blockDim.y + threadIdx.y;
  float slope[DIMS] = {};
  if (sample < n && number < N_LEVELS) {
    const Level& level = LEVELS[number];
    float2* first = table + level.offset;
    grad += (size_t)sample * N_LEVELS + number;
    grad_near += (size_t)sample * 6 * N_LEVELS + number;
    x += (size_t)sample * DIMS;
    if (level.hashed)
      add_slopes<true>(x, {first, level.size}, level, step, grad, grad_near, slope);
    else add_slopes<false>(x, {first, level.size}, level, step, grad, grad_near, slope);
  }
#pragma unroll
  for (int d = 0; d < DIMS; d++) slopes[d][threadIdx.y][threadIdx.x] = slope[d];
  __syncthreads();
  if (sample >= n) return;
  for (int d = threadIdx.y; d < DIMS; d += blockDim.y) {
    float sum = 0;
    for (int i = 0; i < blockDim.y; i++) sum += slopes[d][i][threadIdx.x];
    // at most two blocks share a sample, so that the result doesn't depend on their order
    atomicAdd(grad_x + (size_t)sample * DIMS + d, sum);
  }
}
