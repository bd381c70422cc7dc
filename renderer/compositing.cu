// Emission and absorption along rays, as compositing.py defines them. A warp takes a ray, its lanes
// 32 samples at a time. Colours have CHANNELS numbers; NORMALS says whether there are normals.

constexpr float OPAQUE = 100.f;  // more optical thickness changes nothing
constexpr float LEAST_NORM = 1e-12f;  // as torch's F.normalize has it
constexpr unsigned ALL = 0xffffffffu;
constexpr int LANES = 32;

// The first of the sorted rays of samples that isn't before `ray`.
__device__ int lower_bound(const long long* ray_indices, int samples, int ray) {
  int low = 0, high = samples;
  while (low < high) {
    int middle = low + (high - low) / 2;
    if (ray_indices[middle] < ray) low = middle + 1;
    else high = middle;
  }
  return low;
}

struct Ray {
  int index, first, last, lane;  // its samples are first, ..., last - 1
};

__device__ Ray ray_of(const long long* ray_indices, int samples) {
  int thread = blockIdx.x * blockDim.x + threadIdx.x;
  Ray ray = {thread / LANES, 0, 0, thread % LANES};
  int edge = ray.lane < 2 ? lower_bound(ray_indices, samples, ray.index + ray.lane) : 0;
  ray.first = __shfl_sync(ALL, edge, 0), ray.last = __shfl_sync(ALL, edge, 1);
  return ray;
}

__device__ float total(float value) {
  for (int step = LANES / 2; step; step /= 2) value += __shfl_xor_sync(ALL, value, step);
  return value;
}

// Sum over the lanes before one's own, and over all.
struct Sums {
  float before, all;
};

__device__ Sums sums_before(float value, int lane) {
  float sum = value;
  for (int step = 1; step < LANES; step *= 2) {
    float other = __shfl_up_sync(ALL, sum, step);
    if (lane >= step) sum += other;
  }
  float before = __shfl_up_sync(ALL, sum, 1);
  return {lane ? before : 0.f, __shfl_sync(ALL, sum, LANES - 1)};
}

__device__ Sums sums_after(float value, int lane) {
  float sum = value;
  for (int step = 1; step < LANES; step *= 2) {
    float other = __shfl_down_sync(ALL, sum, step);
    if (lane + step < LANES) sum += other;
  }
  float after = __shfl_down_sync(ALL, sum, 1);
  return {lane < LANES - 1 ? after : 0.f, __shfl_sync(ALL, sum, 0)};
}

// NaN stays NaN, which fminf would take for OPAQUE.
__device__ float bounded(float thickness) { return thickness > OPAQUE ? OPAQUE : thickness; }

// Per sample: 0 where it is transparent or hidden, 1 where it counts, 2 where it is lit, too. And how
// many count on each ray, [rays], and how many are lit, [rays].
extern "C" __global__ void look(const long long* ray_indices, int samples, int rays,
                                const float* density, const float* t_starts, const float* t_ends,
                                const float* min_alpha, float min_transmittance,
                                float min_lit_transmittance, unsigned char* seen,
                                long long* counts) {
  Ray ray = ray_of(ray_indices, samples);
  if (ray.index >= rays) return;
  double before = 0;
  int kept = 0, lit = 0;
  for (int at = ray.first; at < ray.last; at += LANES) {
    int i = at + ray.lane;
    bool there = i < ray.last;
    float thickness = there ? bounded(density[i] * (t_ends[i] - t_starts[i])) : 0.f;
    Sums sums = sums_before(thickness, ray.lane);
    float transmittance = expf(-(float)(before + sums.before));
    bool visible = -expm1f(-thickness) >= *min_alpha && transmittance >= min_transmittance;
    int level = !there || !visible ? 0 : transmittance >= min_lit_transmittance ? 2 : 1;
    if (there) seen[i] = level;
    kept += __popc(__ballot_sync(ALL, level > 0)), lit += __popc(__ballot_sync(ALL, level > 1));
    before += sums.all;
  }
  if (ray.lane == 0) counts[ray.index] = kept, counts[rays + ray.index] = lit;
}

// The places of what `look` has seen. ends [2 rays]: the running sum of its counts.
extern "C" __global__ void sieve(const long long* ray_indices, int samples, int rays,
                                 const unsigned char* seen, const long long* ends,
                                 long long* kept, long long* lit, long long* dark,
                                 long long* order, long long* ahead) {
  Ray ray = ray_of(ray_indices, samples);
  if (ray.index >= rays) return;
  unsigned others = (1u << ray.lane) - 1;  // the lanes before one's own
  // of the rays before this one
  long long all = ray.index ? ends[ray.index - 1] : 0;
  long long bright = ends[rays + ray.index - 1] - ends[rays - 1];
  long long all_bright = ends[2 * rays - 1] - ends[rays - 1];
  for (int at = ray.first; at < ray.last; at += LANES) {
    int i = at + ray.lane, level = i < ray.last ? seen[i] : 0;
    unsigned counted = __ballot_sync(ALL, level > 0), shining = __ballot_sync(ALL, level > 1);
    long long place = all + __popc(counted & others), among = bright + __popc(shining & others);
    if (level > 0) {
      kept[place] = i;
      (level > 1 ? lit[among] : dark[place - among]) = place;
      order[place] = level > 1 ? among : all_bright + place - among;
      ahead[place] = level > 1 ? among : among > 0 ? among - 1 : 0;
    }
    all += __popc(counted), bright += __popc(shining);
  }
}

extern "C" __global__ void forward(const long long* ray_indices, int samples, int rays,
                                   const float* density, const float* t_starts,
                                   const float* t_ends, const float* rgb, const float* normal,
                                   const float* background, float* transmittances, float* weights,
                                   float* comp_rgb, float* foreground, float* opacities,
                                   float* depths, float* variances, float* normal_sums,
                                   float* comp_normal) {
  Ray ray = ray_of(ray_indices, samples);
  if (ray.index >= rays) return;
  double before = 0;
  float opacity = 0, depth = 0, colour[CHANNELS] = {}, direction[3] = {};
  for (int at = ray.first; at < ray.last; at += LANES) {
    int i = at + ray.lane;
    bool there = i < ray.last;
    float thickness = there ? bounded(density[i] * (t_ends[i] - t_starts[i])) : 0.f;
    Sums sums = sums_before(thickness, ray.lane);
    float transmittance = expf(-(float)(before + sums.before));
    float weight = transmittance * -expm1f(-thickness);
    before += sums.all;
    if (!there) continue;
    transmittances[i] = transmittance, weights[i] = weight;
    opacity += weight, depth += weight * (0.5f * (t_starts[i] + t_ends[i]));
    for (int c = 0; c < CHANNELS; c++) colour[c] += weight * rgb[i * CHANNELS + c];
    if (NORMALS)
      for (int k = 0; k < 3; k++) direction[k] += weight * normal[3 * i + k];
  }
  __syncwarp();
  opacity = total(opacity), depth = total(depth);
  for (int c = 0; c < CHANNELS; c++) colour[c] = total(colour[c]);
  if (NORMALS)
    for (int k = 0; k < 3; k++) direction[k] = total(direction[k]);

  float variance = 0;
  if (opacity > 0.5f) {
    float mean = depth / opacity;
    for (int i = ray.first + ray.lane; i < ray.last; i += LANES) {
      float deviation = 0.5f * (t_starts[i] + t_ends[i]) - mean;
      variance += weights[i] * deviation * deviation;
    }
    __syncwarp();
    variance = total(variance) / opacity;
  }
  if (ray.lane) return;
  opacities[ray.index] = opacity, depths[ray.index] = depth, variances[ray.index] = variance;
  for (int c = 0; c < CHANNELS; c++) {
    int at = ray.index * CHANNELS + c;
    foreground[at] = colour[c];
    comp_rgb[at] = colour[c] + (1 - opacity) * background[at];
  }
  if (NORMALS) {
    float norm = norm3df(direction[0], direction[1], direction[2]);
    for (int k = 0; k < 3; k++) {
      float unit = direction[k] / (norm < LEAST_NORM ? LEAST_NORM : norm);
      normal_sums[3 * ray.index + k] = direction[k];
      comp_normal[3 * ray.index + k] = (unit + 1) / 2 * opacity;
    }
  }
}

// Gradients of density, rgb, normal and background; an output's gradient is null where it has none.
extern "C" __global__ void backward(
    const long long* ray_indices, int samples, int rays, const float* density,
    const float* t_starts, const float* t_ends, const float* rgb, const float* normal,
    const float* background, const float* transmittances, const float* weights,
    const float* opacities, const float* depths, const float* variances, const float* normal_sums,
    const float* of_weights, const float* of_comp_rgb, const float* of_foreground,
    const float* of_opacity, const float* of_depth, const float* of_variance,
    const float* of_comp_normal, float* of_density, float* of_rgb, float* of_normal,
    float* of_background) {
  Ray ray = ray_of(ray_indices, samples);
  if (ray.index >= rays) return;
  // dL/dweight = colour . rgb + turn . normal + alike + along t + spread (t - mean)^2
  float opacity = opacities[ray.index], mean = 0, spread = 0;
  float alike = of_opacity ? of_opacity[ray.index] : 0.f;
  float along = of_depth ? of_depth[ray.index] : 0.f;
  float colour[CHANNELS], turn[3] = {};
  for (int c = 0; c < CHANNELS; c++) {
    int at = ray.index * CHANNELS + c;
    float whole = of_comp_rgb ? of_comp_rgb[at] : 0.f;
    colour[c] = whole + (of_foreground ? of_foreground[at] : 0.f);
    alike -= whole * background[at];
    if (of_background && ray.lane == 0) of_background[at] = (1 - opacity) * whole;
  }
  if (NORMALS && of_comp_normal) {
    const float *sum = normal_sums + 3 * ray.index, *grad = of_comp_normal + 3 * ray.index;
    float norm = norm3df(sum[0], sum[1], sum[2]), along_unit = 0;
    float length = norm < LEAST_NORM ? LEAST_NORM : norm;
    for (int k = 0; k < 3; k++) {
      alike += grad[k] * (sum[k] / length + 1) / 2;
      along_unit += grad[k] * sum[k] / length;
    }
    if (norm < LEAST_NORM) along_unit = 0;
    for (int k = 0; k < 3; k++)
      turn[k] = opacity / 2 * (grad[k] - along_unit * sum[k] / length) / length;
  }
  if (of_variance && opacity > 0.5f) {
    mean = depths[ray.index] / opacity, spread = of_variance[ray.index] / opacity;
    alike -= spread * variances[ray.index];
  }

  double after = 0;  // sum of weight dL/dweight over the samples behind
  int chunks = (ray.last - ray.first + LANES - 1) / LANES;
  for (int chunk = chunks - 1; chunk >= 0; chunk--) {
    int i = ray.first + chunk * LANES + ray.lane;
    bool there = i < ray.last;
    float weight = 0, slope = 0;
    if (there) {
      float t = 0.5f * (t_starts[i] + t_ends[i]);
      weight = weights[i];
      slope = alike + along * t + spread * (t - mean) * (t - mean);
      if (of_weights) slope += of_weights[i];
      for (int c = 0; c < CHANNELS; c++) {
        slope += colour[c] * rgb[i * CHANNELS + c];
        if (of_rgb) of_rgb[i * CHANNELS + c] = weight * colour[c];
      }
      if (NORMALS)
        for (int k = 0; k < 3; k++) {
          slope += turn[k] * normal[3 * i + k];
          if (of_normal) of_normal[3 * i + k] = weight * turn[k];
        }
    }
    Sums sums = sums_after(weight * slope, ray.lane);
    if (there) {
      float length = t_ends[i] - t_starts[i], thickness = density[i] * length;
      float through = transmittances[i] * expf(-thickness);
      float of_thickness = slope * through - (float)(after + sums.before);
      of_density[i] = thickness > OPAQUE ? 0.f : of_thickness * length;
    }
    after += sums.all;
  }
}
