// Samples along rays, as ray_marching.py defines them. A thread takes a ray.

constexpr float TINY = 1e-19f;  // directions are at least this far from 0

// A ray's lattice point k lies at start + k step, and its interval's midpoint half a step further.
// With `before` null: how many samples each ray has, counts [rays]. Else: the samples themselves,
// ray r's from before[r] on.
extern "C" __global__ void march(const float* origins, const float* directions, int rays,
                                 const unsigned char* occupied, int nx, int ny, int nz,
                                 const float* aabb, const float* low, const float* high,
                                 float near, float far, float step, const float* jitter,
                                 const long long* before, long long* counts,
                                 long long* ray_indices, float* t_starts) {
  int ray = blockIdx.x * blockDim.x + threadIdx.x;
  if (ray >= rays) return;
  const float *origin = origins + 3 * ray, *direction = directions + 3 * ray;
  // products and sums are rounded one by one, as torch does, so that the lattice is the same
  float start = jitter ? __fadd_rn(near, __fmul_rn(jitter[ray], step)) : near;

  float enter = near, leave = far;
  bool any = true;  // cell is occupied
  for (int axis = 0; axis < 3; axis++) {
    float slope = fabsf(direction[axis]) < TINY ? TINY : direction[axis];
    float one = (low[axis] - origin[axis]) / slope, other = (high[axis] - origin[axis]) / slope;
    enter = fmaxf(enter, fminf(one, other)), leave = fminf(leave, fmaxf(one, other));
    any = any && low[axis] < high[axis];
  }
  float first = fmaxf(ceilf((enter - start) / step - 0.5f), 0.f);
  float candidates = ceilf((leave - start) / step - 0.5f) - first;
  int most = any && enter < leave && candidates > 0 ? (int)candidates : 0;

  // in units of cells the midpoints are at + j stride
  int sides[3] = {nx, ny, nz};
  float at[3], stride[3], middle = start + (first + 0.5f) * step;
  for (int axis = 0; axis < 3; axis++) {
    float cells_per_unit = sides[axis] / (aabb[3 + axis] - aabb[axis]);
    at[axis] = (origin[axis] + direction[axis] * middle - aabb[axis]) * cells_per_unit;
    stride[axis] = direction[axis] * (cells_per_unit * step);
  }
  long long found = before ? before[ray] : 0;
  for (int j = 0; j < most; j++) {
    int cell = 0;
    for (int axis = 0; axis < 3; axis++) {
      int index = (int)(at[axis] + stride[axis] * j);
      cell = cell * sides[axis] + min(max(index, 0), sides[axis] - 1);
    }
    if (!occupied[cell]) continue;
    if (before) {
      ray_indices[found] = ray;
      t_starts[found] = __fadd_rn(start, __fmul_rn(first + j, step));
    }
    found++;
  }
  if (!before) counts[ray] = found;
}
