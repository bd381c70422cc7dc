// x_c of points at a few moments, and its gradients; deformation.py defines it (`moved_back`).
//
// Before this file comes NODES, those along a side of the moments' lattices. Points lie in runs, one
// of each moment: a run's first point and the next one's stand in `starts`. Blocks cover a run's
// points in x and the runs in y. whole [T 12]: rows of R - I, then the shift.

constexpr int CUBE = NODES * NODES * NODES;
constexpr int WHOLE = 12;
constexpr int THREADS = 256;  // of a block
constexpr float CENTRE = 0.5f;

// A point's cell, the weights of its upper sides, and whether it can leave its place on the border.
struct Cell {
  int first;
  float above[3];
  bool inside[3];
};

__device__ __forceinline__ Cell cell_of(const float* x) {
  Cell cell;
  int at[3];
#pragma unroll
  for (int d = 0; d < 3; d++) {
    float position = x[d] * (NODES - 1);
    cell.inside[d] = position > 0 && position < NODES - 1;
    position = fminf(fmaxf(position, 0), NODES - 1);
    at[d] = min((int)position, NODES - 2);
    cell.above[d] = position - at[d];
  }
  cell.first = (at[2] * NODES + at[1]) * NODES + at[0];
  return cell;
}

__device__ __forceinline__ int corner(const Cell& cell, int c) {
  return cell.first + (c & 1) + (c >> 1 & 1) * NODES + (c >> 2) * NODES * NODES;
}

// Weight of a corner from all axes but one (3: from all).
__device__ __forceinline__ float weight(const Cell& cell, int c, int axis) {
  float product = 1;
#pragma unroll
  for (int d = 0; d < 3; d++)
    if (d != axis) product *= c >> d & 1 ? cell.above[d] : 1 - cell.above[d];
  return product;
}

// away = x - centre - shift; y: where the whole's motion had it at tau = 0.
__device__ __forceinline__ void move_whole(const float* x, const float* whole, float* away,
                                           float* y) {
#pragma unroll
  for (int d = 0; d < 3; d++) away[d] = x[d] - CENTRE - whole[9 + d];
#pragma unroll
  for (int d = 0; d < 3; d++)
    y[d] = x[d] + (away[0] * whole[d] + away[1] * whole[3 + d] + away[2] * whole[6 + d] -
                   whole[9 + d]);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    forward(const float* x, const int* starts, const float* whole, const float* table, float* out) {
  int moment = blockIdx.y;
  int point = starts[moment] + blockIdx.x * THREADS + threadIdx.x;
  if (point >= starts[moment + 1]) return;
  x += (size_t)point * 3;
  table += (size_t)moment * 3 * CUBE;
  float away[3], y[3], moved[3] = {};
  move_whole(x, whole + moment * WHOLE, away, y);
  Cell cell = cell_of(y);
#pragma unroll
  for (int c = 0; c < 8; c++) {
    float own = weight(cell, c, 3);
    int node = corner(cell, c);
#pragma unroll
    for (int k = 0; k < 3; k++) moved[k] += own * table[k * CUBE + node];
  }
#pragma unroll
  for (int k = 0; k < 3; k++) out[(size_t)point * 3 + k] = y[k] + moved[k];
}

__device__ __forceinline__ float sum_of_warp(float value) {
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
  return value;
}

// grad [N 3] of x_c -> added to grad_whole [T 12] and grad_table [T 3 NODES NODES NODES].
extern "C" __global__ void __launch_bounds__(THREADS)
    backward(const float* x, const int* starts, const float* whole, const float* table,
             const float* grad, float* grad_whole, float* grad_table) {
  __shared__ float sums[WHOLE];
  int moment = blockIdx.y;
  int point = starts[moment] + blockIdx.x * THREADS + threadIdx.x;
  int first = starts[moment] + blockIdx.x * THREADS, end = starts[moment + 1];
  if (first >= end) return;  // the whole block
  if (threadIdx.x < WHOLE) sums[threadIdx.x] = 0;
  __syncthreads();
  whole += moment * WHOLE;
  table += (size_t)moment * 3 * CUBE;
  grad_table += (size_t)moment * 3 * CUBE;
  float of_whole[WHOLE] = {};
  if (point < end) {
    float away[3], y[3], own[3], of_y[3];
    move_whole(x + (size_t)point * 3, whole, away, y);
#pragma unroll
    for (int k = 0; k < 3; k++) of_y[k] = own[k] = grad[(size_t)point * 3 + k];
    if (own[0] != 0 || own[1] != 0 || own[2] != 0) {
      Cell cell = cell_of(y);
      float products[8];  // of grad with the corners' displacements
#pragma unroll
      for (int c = 0; c < 8; c++) {
        int node = corner(cell, c);
        float share = weight(cell, c, 3);
        products[c] = 0;
#pragma unroll
        for (int k = 0; k < 3; k++) {
          products[c] += own[k] * table[k * CUBE + node];
          atomicAdd(grad_table + k * CUBE + node, share * own[k]);
        }
      }
#pragma unroll
      for (int d = 0; d < 3; d++) {
        float slope = 0;
#pragma unroll
        for (int c = 0; c < 8; c++)
          if (!(c >> d & 1)) slope += weight(cell, c, d) * (products[c | 1 << d] - products[c]);
        if (cell.inside[d]) of_y[d] += (NODES - 1) * slope;
      }
#pragma unroll
      for (int i = 0; i < 3; i++) {
        of_whole[9 + i] = -of_y[i];
#pragma unroll
        for (int j = 0; j < 3; j++) {
          of_whole[3 * i + j] = away[i] * of_y[j];
          of_whole[9 + i] -= whole[3 * i + j] * of_y[j];
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < WHOLE; i++) {
    float sum = sum_of_warp(of_whole[i]);
    if (threadIdx.x % 32 == 0) atomicAdd(sums + i, sum);
  }
  __syncthreads();
  if (threadIdx.x < WHOLE) atomicAdd(grad_whole + moment * WHOLE + threadIdx.x, sums[threadIdx.x]);
}
