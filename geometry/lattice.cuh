// The hash grid's lattice in CUDA, in the words of hash_grid_torch.py: levels, lines, keys, entries.

struct Level {
  float scale;            // lattice spacings across [0, 1]
  unsigned size, offset;  // entries; entries of all levels before
  bool hashed;
  unsigned multipliers[4];
};

// The two lattice lines around a coordinate.
struct Lines {
  int cell;            // number of the lower one
  unsigned low, high;  // keys
  float above;         // weight of the upper one
};

__device__ __forceinline__ Lines lines(float x, float scale, unsigned multiplier) {
  x = x < 0 ? 0 : x > 1 ? 1 : x;  // the nearest point of the box; a NaN stays one
  float position = __fadd_rn(__fmul_rn(x, scale), 0.5f);  // rounded twice, as the definition is
  float lower = floorf(position);
  Lines at;
  at.cell = (int)lower;
  at.low = (unsigned)at.cell * multiplier;
  at.high = at.low + multiplier;
  at.above = position - lower;
  return at;
}

__device__ __forceinline__ unsigned join(bool hashed, unsigned a, unsigned b) {
  return hashed ? a ^ b : a + b;
}

// Every key has an entry, so that no input reaches outside the table.
__device__ __forceinline__ unsigned wrap(bool hashed, unsigned size, unsigned key) {
  if (hashed) return key & (size - 1);
  return key < size ? key : key % size;
}

__device__ __forceinline__ float2 operator+(float2 a, float2 b) {
  return make_float2(a.x + b.x, a.y + b.y);
}

__device__ __forceinline__ float2 operator*(float a, float2 b) {
  return make_float2(a * b.x, a * b.y);
}

__device__ __forceinline__ bool is_zero(float2 a) { return a.x == 0 && a.y == 0; }

#ifndef ON_HOST  // a check of the arithmetic on a CPU brings its own
__device__ __forceinline__ void atomic_add(float2* entry, float2 value) {
#if __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v2.f32 [%0], {%1, %2};" ::"l"(entry), "f"(value.x), "f"(value.y)
               : "memory");
#else
  atomicAdd(&entry->x, value.x);
  atomicAdd(&entry->y, value.y);
#endif
}

// Two entries that lie side by side, the first at a multiple of 16 bytes.
__device__ __forceinline__ void atomic_add(float2* pair, float2 first, float2 second) {
#if __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(pair), "f"(first.x),
               "f"(first.y), "f"(second.x), "f"(second.y)
               : "memory");
#else
  atomic_add(pair, first);
  atomic_add(pair + 1, second);
#endif
}
#endif
