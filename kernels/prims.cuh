// Thin names for the PTX instructions that the kernels use, and the two 16-bit types.
//
// No #include: NVRTC compiles this without CUDA headers. A "pair" is a 32-bit register with two
// values of the activations' type, the low half first.
//
// Macros: BF16 (0: activations, weights and outputs are fp16; 1: bf16, which needs sm_80).
#pragma once

#ifndef BF16
#define BF16 0
#endif
#if BF16 && __CUDA_ARCH__ < 800
#error "bfloat16 needs sm_80"
#endif

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

struct Words2 { u32 v[2]; };
struct Words4 { u32 v[4]; };
struct alignas(8) Float2 { float v[2]; };

#define DEVICE static __device__ __forceinline__

// ---- memory

// Weights are read once: they do not displace activations from L1.
DEVICE Words4 load_once16(const void *p) {
  Words4 r;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(r.v[0]), "=r"(r.v[1]), "=r"(r.v[2]), "=r"(r.v[3]) : "l"(p));
  return r;
}
DEVICE Words2 load_once8(const void *p) {
  Words2 r;
  asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];"
               : "=r"(r.v[0]), "=r"(r.v[1]) : "l"(p));
  return r;
}
DEVICE u32 load_once4(const void *p) {
  u32 r;
  asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(r) : "l"(p));
  return r;
}
DEVICE Words4 load16(const void *p) {
  Words4 r;
  asm volatile("ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(r.v[0]), "=r"(r.v[1]), "=r"(r.v[2]), "=r"(r.v[3]) : "l"(p));
  return r;
}
DEVICE void store16(void *p, Words4 r) {
  asm volatile("st.global.v4.u32 [%0], {%1,%2,%3,%4};"
               :: "l"(p), "r"(r.v[0]), "r"(r.v[1]), "r"(r.v[2]), "r"(r.v[3]) : "memory");
}
DEVICE u32 shared_address(const void *p) { return (u32)__cvta_generic_to_shared(p); }

// 16 bytes from global to shared memory, or 16 zeros. sm_75 copies at once, through registers.
DEVICE void copy16_async(u32 to, const void *from, bool is_inside) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :: "r"(to), "l"(from), "r"(is_inside ? 16 : 0) : "memory");
#else
  Words4 r = {{0, 0, 0, 0}};
  if (is_inside) r = load16(from);
  asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};"
               :: "r"(to), "r"(r.v[0]), "r"(r.v[1]), "r"(r.v[2]), "r"(r.v[3]) : "memory");
#endif
}
DEVICE void copies_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Waits until at most LEFT of this thread's committed groups are under way.
template <int LEFT> DEVICE void copies_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" :: "n"(LEFT) : "memory");
#endif
}

// ---- pairs

DEVICE u32 permute(u32 a, u32 b, u32 selector) {
  u32 r;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(selector));
  return r;
}
DEVICE u32 add_pair(u32 a, u32 b) {
  u32 r;
#if BF16  // add.bf16x2 is sm_90; a * 1 + b rounds once, and here it is exact
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(0x3f803f80u), "r"(b));
#else
  asm("add.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
#endif
  return r;
}
DEVICE u32 multiply_pair(u32 a, u32 b) {
  u32 r;
#if BF16  // mul.bf16x2 is sm_90; adding -0 changes nothing
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(0x80008000u));
#else
  asm("mul.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
#endif
  return r;
}
DEVICE u32 pair_of(float low, float high) {
  u32 r;
#if BF16
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
#elif __CUDA_ARCH__ >= 800
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
#else
  u16 a, b;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(a) : "f"(low));
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(b) : "f"(high));
  r = a | (u32)b << 16;
#endif
  return r;
}
DEVICE u16 half_of(float value) { return (u16)pair_of(value, 0.0f); }
DEVICE float fp16_to_float(u16 bits) {
  float r;
  asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(bits));
  return r;
}
DEVICE float bf16_to_float(u16 bits) { return __uint_as_float((u32)bits << 16); }

// ---- matrices
//
// With g = lane / 4 and t = lane % 4, a lane holds of A (16 x 16) the pairs
//   a[0]: A[g][2t, 2t+1]      a[1]: A[g+8][2t, 2t+1]
//   a[2]: A[g][2t+8, 2t+9]    a[3]: A[g+8][2t+8, 2t+9]
// of B (16 x 8) b[0]: B[2t, 2t+1][g], b[1]: B[2t+8, 2t+9][g], and of C (16 x 8)
//   c[0]: C[g][2t]    c[1]: C[g][2t+1]    c[2]: C[g+8][2t]    c[3]: C[g+8][2t+1].

// c += A B, in fp32.
DEVICE void multiply(float c[4], const u32 a[4], const u32 b[2]) {
#if BF16
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
               "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#elif __CUDA_ARCH__ >= 800
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
               "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else  // sm_75 has half the depth
  for (int i = 0; i < 2; ++i)
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[2 * i]), "r"(a[2 * i + 1]), "r"(b[i]));
#endif
}
// Four 8 x 8 matrices of 16-bit values; lanes 8i to 8i+7 give the addresses of the rows of the
// i-th, and a lane receives elements 2t and 2t+1 of row g of each.
DEVICE Words4 load_matrices(u32 address) {
  Words4 r;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r.v[0]), "=r"(r.v[1]), "=r"(r.v[2]), "=r"(r.v[3]) : "r"(address) : "memory");
  return r;
}
