// The table of one frame's grid, and its gradient to the tables over space and over space and time;
// frame_table.py defines it. Before this file come lattice.cuh and the constants SPACE, TIME and
// FRAME, the levels of the three grids. A thread takes one entry of the frame's table.

struct Sources {
  unsigned space, low, high;  // entries: over space; over space and time, on both lines of tau
  float above;                // weight of the upper line
};

__device__ __forceinline__ Sources sources(unsigned entry, int number, float tau) {
  const Level &space = SPACE[number], &time = TIME[number], &frame = FRAME[number];
  Lines t = lines(tau, time.scale, time.multipliers[3]);
  unsigned of_space = entry, key = entry;  // in a hashed level an entry is its own key
  if (!space.hashed) {
    unsigned side = frame.multipliers[1];
    unsigned at[3] = {entry % side, entry / side % side, entry / (side * side)};
    of_space = key = 0;
    for (int d = 0; d < 3; d++) {
      of_space += at[d] * space.multipliers[d];
      key = join(time.hashed, key, at[d] * time.multipliers[d]);
    }
  }
  return {space.offset + wrap(space.hashed, space.size, of_space),
          time.offset + wrap(time.hashed, time.size, join(time.hashed, key, t.low)),
          time.offset + wrap(time.hashed, time.size, join(time.hashed, key, t.high)), t.above};
}

extern "C" __global__ void forward(const float* tau, const float2* space, const float2* time,
                                   float2* frame) {
  unsigned entry = blockIdx.x * blockDim.x + threadIdx.x;
  const Level& level = FRAME[blockIdx.y];
  if (entry >= level.size) return;
  Sources from = sources(entry, blockIdx.y, *tau);
  frame[level.offset + entry] =
      space[from.space] + ((1 - from.above) * time[from.low] + from.above * time[from.high]);
}

// Either gradient may be left out (null).
extern "C" __global__ void backward(const float* tau, const float2* grad_frame, float2* grad_space,
                                    float2* grad_time) {
  unsigned entry = blockIdx.x * blockDim.x + threadIdx.x;
  const Level& level = FRAME[blockIdx.y];
  if (entry >= level.size) return;
  float2 grad = grad_frame[level.offset + entry];
  if (is_zero(grad)) return;
  Sources to = sources(entry, blockIdx.y, *tau);
  if (grad_space) atomic_add(grad_space + to.space, grad);
  if (grad_time) {
    atomic_add(grad_time + to.low, (1 - to.above) * grad);
    atomic_add(grad_time + to.high, to.above * grad);
  }
}
