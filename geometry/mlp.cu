// Two linear layers without bias and a ReLU between, in float32, and their gradients; mlp.py defines
// them. Before this file come INPUTS, HIDDEN and OUTPUTS; the first two are multiples of 8.
//
// A block of 8 x 8 threads takes 64 rows at a time and keeps the hidden layer to itself: memory sees
// the inputs and the outputs alone. The backward pass computes the hidden layer again.
// In names: x is a thread's number along columns, y along rows.

constexpr int SIDE = 8, ROWS = 64;
constexpr int R = ROWS / SIDE, H = HIDDEN / SIDE, I = INPUTS / SIDE;  // a thread's share
constexpr int PAD = 4;  // floats after a row of shared memory, so that rows lie in different banks

typedef float Inputs[INPUTS + PAD];
typedef float Hidden[HIDDEN + PAD];

// N floats at an address that is a multiple of N floats.
template <int N>
__device__ __forceinline__ void load(float* to, const float* from) {
  if constexpr (N % 4 == 0) {
#pragma unroll
    for (int i = 0; i < N; i += 4) {
      float4 four = *(const float4*)(from + i);
      to[i] = four.x, to[i + 1] = four.y, to[i + 2] = four.z, to[i + 3] = four.w;
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; i++) to[i] = from[i];
  }
}

// Rows of a matrix in memory to shared memory; those from `rows` on become 0.
template <int COUNT>
__device__ __forceinline__ void copy_rows(Inputs* to, const float* from, int rows) {
  for (int i = threadIdx.x; i < COUNT * INPUTS / 4; i += SIDE * SIDE) {
    int row = i / (INPUTS / 4), column = i % (INPUTS / 4) * 4;
    float4 four = make_float4(0, 0, 0, 0);
    if (row < rows) four = *(const float4*)(from + row * INPUTS + column);
    *(float4*)(to[row] + column) = four;
  }
}

// The hidden layer before its ReLU: rows y, y + 8, ..., columns x, x + 8, ...
__device__ __forceinline__ void hidden_layer(float sums[R][H], const Inputs* rows,
                                             const Inputs* weights, int x, int y) {
#pragma unroll
  for (int i = 0; i < R; i++)
#pragma unroll
    for (int j = 0; j < H; j++) sums[i][j] = 0;
#pragma unroll 2
  for (int k = 0; k < INPUTS; k += 4) {
    float own[H][4], row[4];
#pragma unroll
    for (int j = 0; j < H; j++) load<4>(own[j], weights[x + SIDE * j] + k);
#pragma unroll
    for (int i = 0; i < R; i++) {
      load<4>(row, rows[y + SIDE * i] + k);
#pragma unroll
      for (int j = 0; j < H; j++)
#pragma unroll
        for (int c = 0; c < 4; c++) sums[i][j] += row[c] * own[j][c];
    }
  }
}

// Sum over the threads of one y.
__device__ __forceinline__ float sum_over_x(float value) {
  for (int step = 1; step < SIDE; step *= 2) value += __shfl_xor_sync(~0u, value, step);
  return value;
}

// in [n INPUTS], first [HIDDEN INPUTS], second [OUTPUTS HIDDEN] -> out [n OUTPUTS].
extern "C" __global__ void __launch_bounds__(SIDE * SIDE)
    forward(const float* in, int n, const float* first, const float* second, float* out) {
  __shared__ __align__(16) Inputs rows[ROWS];
  __shared__ __align__(16) Inputs weights[HIDDEN];
  int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
  copy_rows<HIDDEN>(weights, first, HIDDEN);
  float head[OUTPUTS][H];
  for (int o = 0; o < OUTPUTS; o++)
    for (int j = 0; j < H; j++) head[o][j] = second[o * HIDDEN + x + SIDE * j];

  for (int start = blockIdx.x * ROWS; start < n; start += gridDim.x * ROWS) {
    __syncthreads();
    copy_rows<ROWS>(rows, in + (size_t)start * INPUTS, n - start);
    __syncthreads();
    float sums[R][H];
    hidden_layer(sums, rows, weights, x, y);
#pragma unroll
    for (int i = 0; i < R; i++)
#pragma unroll
      for (int o = 0; o < OUTPUTS; o++) {
        float value = 0;
#pragma unroll
        for (int j = 0; j < H; j++) value += fmaxf(sums[i][j], 0) * head[o][j];
        value = sum_over_x(value);
        int row = start + y + SIDE * i;
        if (x == 0 && row < n) out[(size_t)row * OUTPUTS + o] = value;
      }
  }
}

// grad [n OUTPUTS] -> grad_in [n INPUTS]; if TO_WEIGHTS, grad_first, grad_second are added to.
template <bool TO_WEIGHTS>
__device__ __forceinline__ void gradients(const float* in, int n, const float* first,
                                          const float* second, const float* grad, float* grad_in,
                                          float* grad_first, float* grad_second) {
  __shared__ __align__(16) Inputs rows[ROWS];
  __shared__ __align__(16) Inputs weights[HIDDEN];
  __shared__ __align__(16) Hidden grad_hidden[ROWS];
  int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
  copy_rows<HIDDEN>(weights, first, HIDDEN);
  float head[OUTPUTS][H], grad_head[OUTPUTS][H], grad_weights[H][I];
#pragma unroll
  for (int j = 0; j < H; j++) {
#pragma unroll
    for (int o = 0; o < OUTPUTS; o++) {
      head[o][j] = second[o * HIDDEN + x + SIDE * j];
      grad_head[o][j] = 0;
    }
#pragma unroll
    for (int k = 0; k < I; k++) grad_weights[j][k] = 0;
  }

  for (int start = blockIdx.x * ROWS; start < n; start += gridDim.x * ROWS) {
    __syncthreads();
    copy_rows<ROWS>(rows, in + (size_t)start * INPUTS, n - start);
    __syncthreads();
    float sums[R][H];
    hidden_layer(sums, rows, weights, x, y);
#pragma unroll
    for (int i = 0; i < R; i++) {
      int row = start + y + SIDE * i;
      float own[OUTPUTS];
#pragma unroll
      for (int o = 0; o < OUTPUTS; o++)
        own[o] = row < n ? grad[(size_t)row * OUTPUTS + o] : 0;
#pragma unroll
      for (int j = 0; j < H; j++) {
        float back = 0;
#pragma unroll
        for (int o = 0; o < OUTPUTS; o++) {
          if (TO_WEIGHTS) grad_head[o][j] += own[o] * fmaxf(sums[i][j], 0);
          back += own[o] * head[o][j];
        }
        grad_hidden[y + SIDE * i][x + SIDE * j] = sums[i][j] > 0 ? back : 0;
      }
    }
    __syncthreads();

    {  // grad_in = grad_hidden weights; rows y, y + 8, ..., columns x I .. x I + I - 1
      float sums[R][I];
#pragma unroll
      for (int i = 0; i < R; i++)
#pragma unroll
        for (int k = 0; k < I; k++) sums[i][k] = 0;
#pragma unroll 2
      for (int j = 0; j < HIDDEN; j += 4) {
        float own[4][I], row[4];
#pragma unroll
        for (int c = 0; c < 4; c++) load<I>(own[c], weights[j + c] + x * I);
#pragma unroll
        for (int i = 0; i < R; i++) {
          load<4>(row, grad_hidden[y + SIDE * i] + j);
#pragma unroll
          for (int c = 0; c < 4; c++)
#pragma unroll
            for (int k = 0; k < I; k++) sums[i][k] += row[c] * own[c][k];
        }
      }
#pragma unroll
      for (int i = 0; i < R; i++) {
        int row = start + y + SIDE * i;
        if (row < n)
#pragma unroll
          for (int k = 0; k < I; k++) grad_in[(size_t)row * INPUTS + x * I + k] = sums[i][k];
      }
    }

    if (!TO_WEIGHTS) continue;
    // grad_weights += grad_hidden^T rows; rows y H .. y H + H - 1, columns x I .. x I + I - 1
#pragma unroll 4
    for (int r = 0; r < ROWS; r++) {
      float left[H], right[I];
      load<H>(left, grad_hidden[r] + y * H);
      load<I>(right, rows[r] + x * I);
#pragma unroll
      for (int j = 0; j < H; j++)
#pragma unroll
        for (int k = 0; k < I; k++) grad_weights[j][k] += left[j] * right[k];
    }
  }

  if (!TO_WEIGHTS) return;
#pragma unroll
  for (int j = 0; j < H; j++) {
#pragma unroll
    for (int o = 0; o < OUTPUTS; o++)
      atomicAdd(grad_second + o * HIDDEN + x + SIDE * j, grad_head[o][j]);
#pragma unroll
    for (int k = 0; k < I; k++)
      atomicAdd(grad_first + (y * H + j) * INPUTS + x * I + k, grad_weights[j][k]);
  }
}

extern "C" __global__ void __launch_bounds__(SIDE * SIDE)
    backward(const float* in, int n, const float* first, const float* second, const float* grad,
             float* grad_in, float* grad_first, float* grad_second) {
  gradients<true>(in, n, first, second, grad, grad_in, grad_first, grad_second);
}

extern "C" __global__ void __launch_bounds__(SIDE * SIDE)
    backward_to_input(const float* in, int n, const float* first, const float* second,
                      const float* grad, float* grad_in) {
  gradients<false>(in, n, first, second, grad, grad_in, nullptr, nullptr);
}
