// DSF and DDSF on a CPU: value and log-slope, their gradients, and the inverse.
//
// A lane is one scalar map, at one sample b and one dimension d. Vectors hold as many neighbouring
// lanes as a register of the processor; with the conditioners' own memory order, (D, P, B), they
// are neighbours in memory too. A group is one such vector of lanes, and everything about it fits
// the processor's first caches, so that the pseudo-parameters are read once and their gradients
// written once.
//
// A dense layer has units v with tangents t = dv/dx. With E = exp(e), A = exp(W), s = sigmoid(v) and
// n = sigmoid(-v) it is
//     L = A (E s), R = A (E n), S = A (E s n t), h = log(L / R), dh/dx = S (L + R) / (L R),
// and the mix that leads to the next layer, with F = exp(e') and B = exp(U), is
//     Z = B F, m = B (F h) / Z, dm/dx = B (F dh/dx) / Z, v = a m + b, t = a dm/dx.
//
// Sums are taken in linear space. Where one of them comes near underflow the group is done again (so
// that a lane's last digits may depend on its neighbours) as in triton/ddsf.py: every sum leaves its
// largest exponential out and carries that exponent beside it. The gradients, products of terms with
// gradients by their sums, are the same for both. DSF is the case of one layer, whose only matrix is
// a row of ones. Vectors are those of GCC and Clang, for any processor.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <vector>

#if defined(__AVX512F__)
constexpr int BYTES = 64;
#elif defined(__AVX__)
constexpr int BYTES = 32;
#else
constexpr int BYTES = 16;
#endif

using std::int64_t;

// What the Python side hands over; its twins are in compiled.py.
struct Strided {
  void *data;
  int64_t batch, dim, row;
};

struct Call {
  int64_t batch, dim, units, layers, threads, evaluations;
  double shift, floor;
  double bound, slope;  // of the affine map's log-scale; 0 where there is no affine map
  Strided x, phi, y, log_slope, grad_y, grad_log_slope, grad_x, grad_phi;
  const void *biases, *matrices;
  void *grad_matrices;
};

// ------------------------------------------------------------------ arithmetic of one register

struct Single {
  using Number = float;
  using Bits = std::int32_t;
  using Unsigned = std::uint32_t;
  // The last terms of the series of exp, of artanh up to 1/3 and of artanh up to 0.172.
  static constexpr int EXP = 7, ARTANH = 6, ARTANH_SMALL = 4, MANTISSA = 23;
  static constexpr float ROUND = 12582912.0f;  // adding it leaves the integer in the last bits
  static constexpr float LN2_HIGH = 0.693359375f, LN2_LOW = -2.12194440e-4f;
  static constexpr float LOWEST = -86.0f;  // below it exp is zero
  static constexpr float TINY = 1e-36f;    // below it sums are, as a row's logits differ too much
  static constexpr float LEAST = 1e-16f, MOST = 1e12f;  // sums and slopes of linear space
  static constexpr Unsigned ONE = 0x3f800000, SQRT_HALF = 0x3f3504f3;
};

struct Double {
  using Number = double;
  using Bits = std::int64_t;
  using Unsigned = std::uint64_t;
  static constexpr int EXP = 13, ARTANH = 15, ARTANH_SMALL = 9, MANTISSA = 52;
  static constexpr double ROUND = 6755399441055744.0;
  static constexpr double LN2_HIGH = 6.93147180369123816490e-01, LN2_LOW = 1.90821492927058770e-10;
  static constexpr double LOWEST = -707.0, TINY = 1e-305, LEAST = 1e-150, MOST = 1e100;
  static constexpr Unsigned ONE = 0x3ff0000000000000, SQRT_HALF = 0x3fe6a09e667f3bcd;
};

template <class A>
struct Register {
  using T = typename A::Number;
  using Bits = typename A::Bits;
  typedef T V __attribute__((vector_size(BYTES)));
  using M = decltype(V{} < V{});
  // Bits are added and shifted as unsigned numbers, which have no overflow.
  typedef typename A::Unsigned U __attribute__((vector_size(BYTES)));
  static constexpr int WIDTH = BYTES / sizeof(T);

  static V splat(T value) { return value - V{}; }
  static V larger(V a, V b) { return a > b ? a : b; }
  static V smaller(V a, V b) { return a < b ? a : b; }
  static V square_root(V z) {
    for (int i = 0; i < WIDTH; ++i) z[i] = std::sqrt(z[i]);
    return z;
  }
  static V magnitude(V z) { return (V)((M)z & std::numeric_limits<Bits>::max()); }

  static M every_lane() { return ~M{}; }
  static bool any(M mask) {
    bool found = false;
    for (int i = 0; i < WIDTH; ++i) found |= mask[i] != 0;
    return found;
  }

  // exp(z) for z <= 0; zero where it is hardly above the smallest number.
  static V exponential(V z) {
    const V rounded = z * T(1.4426950408889634) + A::ROUND;
    const V n = rounded - A::ROUND;
    const V r = (z - n * A::LN2_HIGH) - n * A::LN2_LOW;
    T coefficients[A::EXP + 1] = {1};
    for (int k = 1; k <= A::EXP; ++k) coefficients[k] = coefficients[k - 1] / k;
    V series = splat(coefficients[A::EXP]);
    for (int k = A::EXP - 1; k >= 0; --k) series = series * r + coefficients[k];
    const V scale = (V)(((U)rounded << A::MANTISSA) + A::ONE);
    return z < A::LOWEST ? V{} : series * scale;
  }

  // The same of any z: the square of that of its half, for the whole range of numbers.
  static V any_exponential(V z) {
    const V e = exponential(T(-0.5) * magnitude(z)), root = z > 0 ? 1 / e : e;
    return root * root;
  }

  // artanh(s) / s, of s squared.
  template <int LAST>
  static V artanh(V square) {
    V series = splat(T(1) / (2 * LAST + 1));
    for (int k = LAST - 1; k >= 0; --k) series = series * square + T(1) / (2 * k + 1);
    return series;
  }

  // log(z) of what is positive and not too small to be normal.
  static V logarithm(V z) {
    const U exponent = (U)((M)((U)z - A::SQRT_HALF) >> A::MANTISSA);
    const V fraction = (V)((U)z - (exponent << A::MANTISSA));
    const V round = splat(A::ROUND);
    const V n = (V)((U)round + exponent) - round;
    const V s = (fraction - 1) / (fraction + 1);
    const V value = n * A::LN2_HIGH + (2 * s * artanh<A::ARTANH_SMALL>(s * s) + n * A::LN2_LOW);
    return z - z == 0 ? value : z;  // what is no number, or infinite, has no fraction
  }

  // s(z) and s(-z).
  static void sigmoids(V z, V &s, V &n) {
    const V e = exponential(-magnitude(z)), large = 1 / (1 + e), small = e * large;
    s = z >= 0 ? large : small, n = z >= 0 ? small : large;
  }

  // log(1 + exp(z)) and its derivative, as in triton/common.py.
  static V softplus(V z, V &derivative) {
    const V e = exponential(-magnitude(z));
    const V s = e / (2 + e);
    derivative = (z >= 0 ? splat(1) : e) / (1 + e);
    return larger(z, V{}) + 2 * s * artanh<A::ARTANH>(s * s);
  }
};

// --------------------------------------------------------------------------- one group of lanes

template <class A>
struct Group : Register<A> {
  using R = Register<A>;
  using typename R::M;
  using typename R::T;
  using typename R::V;
  using R::WIDTH;

  // A dense layer and the mix after it: what evaluating leaves for the gradients. K of each. The
  // derivatives by x, dm and dh, are logarithms if it was done in logarithms.
  struct Layer {
    V *a, *da, *b, *e, *weight, *m, *dm, *s, *n, *p, *q, *t, *t_by_a;
    V *left, *right, *density, *h, *dh, *s_h, *n_h;
    V *e_mix, *f, *u, *fh, *z, *density_mix;
    const T *w, *w_transposed, *mix, *mix_transposed;
    V *of_w, *of_mix;
    int rows;
  };

  const int K, L;
  std::vector<Layer> layers;
  const std::unique_ptr<V[]> room;
  V *g_h, *g_log_dh, *g_m, *g_log_dm, *scratch[6];

  // The matrices come exponentiated; their gradients, if they are wanted, lane by lane.
  Group(int K, int L, const T *matrices, const T *transposed, V *of_matrices)
      : K(K), L(L), layers(L), room(new V[std::size_t(26 * L + 10) * K]) {
    V *next = room.get();
    for (int l = 0; l < L; ++l) {
      Layer &c = layers[l];
      for (V **array : {&c.a, &c.da, &c.b, &c.e, &c.weight, &c.m, &c.dm, &c.s, &c.n,
                        &c.p, &c.q, &c.t, &c.t_by_a, &c.left, &c.right, &c.density,
                        &c.h, &c.dh, &c.s_h, &c.n_h, &c.e_mix, &c.f, &c.u, &c.fh, &c.z,
                        &c.density_mix})
        *array = next, next += K;
      c.rows = l == L - 1 ? 1 : K;
      const int64_t w = int64_t(l) * K * K, mix = (int64_t(L - 1 + l) * K + 1) * K;
      c.w = matrices + w, c.w_transposed = transposed + w;
      if (of_matrices) c.of_w = of_matrices + w;
      if (l == L - 1) continue;
      c.mix = matrices + mix, c.mix_transposed = transposed + mix;
      if (of_matrices) c.of_mix = of_matrices + mix;
    }
    for (V **array : {&g_h, &g_log_dh, &g_m, &g_log_dm, &scratch[0], &scratch[1], &scratch[2],
                      &scratch[3], &scratch[4], &scratch[5]})
      *array = next, next += K;
  }

  // Rows of a matrix that are worked on at once: their sums fill the registers.
  static constexpr int BLOCK = 4;

  // Three products of a matrix (rows, columns) at once: each of its entries is read once.
  template <int ROWS>
  static void some_products(const T *w, int columns, const V *const in[3], V *const out[3]) {
    V sum[3][ROWS] = {};
    for (int j = 0; j < columns; ++j)
      for (int i = 0; i < ROWS; ++i) {
        const V entry = R::splat(w[i * columns + j]);
        for (int k = 0; k < 3; ++k) sum[k][i] += entry * in[k][j];
      }
    for (int k = 0; k < 3; ++k)
      for (int i = 0; i < ROWS; ++i) out[k][i] = sum[k][i];
  }

  static void products(const T *w, int rows, int columns, const V *p, const V *q, const V *t,
                       V *of_p, V *of_q, V *of_t) {
    const V *const in[3] = {p, q, t};
    int i = 0;
    for (; i + BLOCK <= rows; i += BLOCK) {
      V *const out[3] = {of_p + i, of_q + i, of_t + i};
      some_products<BLOCK>(w + i * columns, columns, in, out);
    }
    for (; i < rows; ++i) {
      V *const out[3] = {of_p + i, of_q + i, of_t + i};
      some_products<1>(w + i * columns, columns, in, out);
    }
  }

  // Adds the gradient that products have by the matrix.
  template <int ROWS>
  static void add_some(V *sum, int columns, const V *const grads[3], const V *const in[3]) {
    V grad[3][ROWS];
    for (int k = 0; k < 3; ++k)
      for (int i = 0; i < ROWS; ++i) grad[k][i] = grads[k][i];
    for (int j = 0; j < columns; ++j)
      for (int i = 0; i < ROWS; ++i)
        sum[i * columns + j] +=
            grad[0][i] * in[0][j] + grad[1][i] * in[1][j] + grad[2][i] * in[2][j];
  }

  static void add_outer(V *sum, int rows, int columns, const V *g_p, const V *g_q, const V *g_t,
                        const V *p, const V *q, const V *t) {
    const V *const in[3] = {p, q, t};
    int i = 0;
    for (; i + BLOCK <= rows; i += BLOCK) {
      const V *const grads[3] = {g_p + i, g_q + i, g_t + i};
      add_some<BLOCK>(sum + i * columns, columns, grads, in);
    }
    for (; i < rows; ++i) {
      const V *const grads[3] = {g_p + i, g_q + i, g_t + i};
      add_some<1>(sum + i * columns, columns, grads, in);
    }
  }

  // Less only when a row's logits differ by more than the exponent range.
  static V at_least_tiny(V sum) { return sum < A::TINY ? R::splat(A::TINY) : sum; }

  // grad / sum, the gradient by the sum before at_least_tiny.
  static V over(V grad, V sum) { return sum <= A::TINY ? V{} : grad / sum; }

  // Logits less their maximum, and their exponentials.
  void soften(V *logits, V *weights) const {
    V top = logits[0];
    for (int h = 1; h < K; ++h) top = R::larger(logits[h], top);
    for (int h = 0; h < K; ++h) {
      logits[h] -= top;
      weights[h] = R::exponential(logits[h]);
    }
  }

  // Slopes, biases and logits of the pseudo-parameters that `row(i)` reads.
  template <class Row>
  void prepare(const Row &row, const T *biases, T shift, T floor) {
    for (int l = 0; l < L; ++l) {
      Layer &c = layers[l];
      for (int h = 0; h < K; ++h) {
        c.a[h] = R::softplus(row(3 * l * K + h) + shift, c.da[h]) + floor;
        c.b[h] = row((3 * l + 1) * K + h) + biases[h];
        c.e[h] = row((3 * l + 2) * K + h);
      }
      soften(c.e, c.weight);
      if (l == L - 1) continue;
      for (int h = 0; h < K; ++h) c.e_mix[h] = row((3 * L + l) * K + h);
      soften(c.e_mix, c.f);
    }
  }

  void evaluate(V x, V &y, V &log_slope) {
    for (int h = 0; h < K; ++h) layers[0].m[h] = x, layers[0].dm[h] = R::splat(1);
    M fits = R::every_lane();
    for (int l = 0; l < L; ++l) {
      fits &= dense_sigmoid(layers[l]);
      if (l < L - 1) fits &= softmax_mix(layers[l], layers[l + 1]);
    }
    y = layers[L - 1].h[0], log_slope = R::logarithm(layers[L - 1].dh[0]);
    if (R::any(~fits)) evaluate_in_logarithms(y, log_slope);
  }

  // The sums in linear space: which lanes they are right in, as no sum comes near underflow there.
  M dense_sigmoid(Layer &c) {
    for (int h = 0; h < K; ++h) {
      R::sigmoids(c.a[h] * c.m[h] + c.b[h], c.s[h], c.n[h]);
      c.p[h] = c.weight[h] * c.s[h];
      c.q[h] = c.weight[h] * c.n[h];
      c.t_by_a[h] = c.p[h] * c.n[h] * c.dm[h];
      c.t[h] = c.t_by_a[h] * c.a[h];
    }
    products(c.w, c.rows, K, c.p, c.q, c.t, c.left, c.right, c.density);
    M fits = R::every_lane();
    for (int i = 0; i < c.rows; ++i) {
      const V left = c.left[i], right = c.right[i], by_total = 1 / (left + right);
      c.s_h[i] = left * by_total, c.n_h[i] = right * by_total;
      c.h[i] = R::logarithm(left / right);
      c.dh[i] = c.density[i] / (left * c.n_h[i]);
      const V least = R::smaller(R::smaller(left, right), c.density[i]);
      fits &= (least > A::LEAST) & (c.dh[i] < A::MOST);
    }
    return fits;
  }

  M softmax_mix(Layer &c, Layer &next) {
    for (int h = 0; h < K; ++h) c.fh[h] = c.f[h] * c.h[h], c.u[h] = c.f[h] * c.dh[h];
    products(c.mix, K, K, c.f, c.fh, c.u, c.z, next.m, c.density_mix);
    M fits = R::every_lane();
    for (int i = 0; i < K; ++i) {
      const V by_z = 1 / c.z[i];
      next.m[i] *= by_z;
      next.dm[i] = c.density_mix[i] * by_z;
      fits &= (R::smaller(c.z[i], c.density_mix[i]) > A::LEAST) & (next.dm[i] < A::MOST);
    }
    return fits;
  }

  // All of it again, exact for any numbers: no sum has less than its largest term to itself.
  void evaluate_in_logarithms(V &y, V &log_slope) {
    for (int h = 0; h < K; ++h) layers[0].dm[h] = V{};
    for (int l = 0; l < L; ++l) {
      dense_sigmoid_in_logarithms(layers[l]);
      if (l < L - 1) softmax_mix_in_logarithms(layers[l], layers[l + 1]);
    }
    y = layers[L - 1].h[0], log_slope = layers[L - 1].dh[0];
  }

  void dense_sigmoid_in_logarithms(Layer &c) {
    const V lowest = R::splat(-std::numeric_limits<T>::infinity());
    V top_p = lowest, top_q = lowest, top_t = lowest, top_dm = lowest;
    for (int h = 0; h < K; ++h) {
      const V v = c.a[h] * c.m[h] + c.b[h];
      R::sigmoids(v, c.s[h], c.n[h]);
      c.p[h] = c.e[h] + R::smaller(v, V{});
      c.q[h] = c.e[h] - R::larger(v, V{});
      c.t[h] = c.e[h] - R::magnitude(v);
      top_p = R::larger(c.p[h], top_p);
      top_q = R::larger(c.q[h], top_q);
      top_t = R::larger(c.t[h], top_t);
    }
    // Far out t is huge: its maximum goes before the tangents, which are not, come in.
    for (int h = 0; h < K; ++h) {
      c.t[h] = (c.t[h] - top_t) + c.dm[h];
      top_dm = R::larger(c.t[h], top_dm);
    }
    for (int h = 0; h < K; ++h) {
      const V large = R::larger(c.s[h], c.n[h]);
      c.p[h] = R::exponential(c.p[h] - top_p) * large;
      c.q[h] = R::exponential(c.q[h] - top_q) * large;
      c.t_by_a[h] = R::exponential(c.t[h] - top_dm) * large * large;
      c.t[h] = c.t_by_a[h] * c.a[h];
    }
    products(c.w, c.rows, K, c.p, c.q, c.t, c.left, c.right, c.density);
    const V of_p = R::exponential(top_p), of_q = R::exponential(top_q);
    const V apart = top_p - top_q, tops = (top_t - (top_p + top_q)) + top_dm;
    for (int i = 0; i < c.rows; ++i) {
      const V left = at_least_tiny(c.left[i]), right = at_least_tiny(c.right[i]);
      const V density = at_least_tiny(c.density[i]);
      // s + n = 1: the two sides add up to the sum of the weights.
      const V total = of_p * left + of_q * right;
      c.left[i] = left, c.right[i] = right, c.density[i] = density;
      c.h[i] = apart + R::logarithm(left / right);
      c.dh[i] = tops + (R::logarithm(density / left) + R::logarithm(total / right));
      c.s_h[i] = of_p * left / total, c.n_h[i] = of_q * right / total;
    }
  }

  void softmax_mix_in_logarithms(Layer &c, Layer &next) {
    V top = c.e_mix[0] + c.dh[0];
    for (int h = 1; h < K; ++h) top = R::larger(c.e_mix[h] + c.dh[h], top);
    for (int h = 0; h < K; ++h) {
      c.fh[h] = c.f[h] * c.h[h];
      c.u[h] = R::exponential((c.e_mix[h] + c.dh[h]) - top);
    }
    products(c.mix, K, K, c.f, c.fh, c.u, c.z, next.m, c.density_mix);
    for (int i = 0; i < K; ++i) {
      c.z[i] = at_least_tiny(c.z[i]), c.density_mix[i] = at_least_tiny(c.density_mix[i]);
      next.m[i] /= c.z[i];
      next.dm[i] = top + R::logarithm(c.density_mix[i] / c.z[i]);
    }
  }

  // Gradients by x and, through `write(i, value)`, by the pseudo-parameters, of what `evaluate`
  // has left; and by the matrices, if they are wanted.
  template <class Write>
  V gradients(V g_y, V g_log_slope, const Write &write, bool of_matrices) {
    g_h[0] = g_y, g_log_dh[0] = g_log_slope;
    for (int l = L - 1; l >= 0; --l) {
      Layer &c = layers[l];
      if (l < L - 1) mix_gradients(c, layers[l + 1], (3 * L + l) * K, write);
      dense_gradients(c, 3 * l * K, write, of_matrices);
    }
    V g_x = {};
    for (int h = 0; h < K; ++h) g_x += g_m[h];
    return g_x;
  }

  template <class Write>
  void dense_gradients(Layer &c, int first, const Write &write, bool of_matrices) {
    V *left = scratch[0], *right = scratch[1], *density = scratch[2];
    for (int i = 0; i < c.rows; ++i) {
      left[i] = over(g_h[i] - g_log_dh[i] * c.n_h[i], c.left[i]);
      right[i] = over(-g_h[i] - g_log_dh[i] * c.s_h[i], c.right[i]);
      density[i] = over(g_log_dh[i], c.density[i]);
    }
    if (of_matrices) add_outer(c.of_w, c.rows, K, left, right, density, c.p, c.q, c.t);
    V *of_p = scratch[3], *of_q = scratch[4], *of_t = scratch[5];
    products(c.w_transposed, K, c.rows, left, right, density, of_p, of_q, of_t);
    for (int h = 0; h < K; ++h) {
      const V g_p = c.p[h] * of_p[h], g_q = c.q[h] * of_q[h], g_t = c.t[h] * of_t[h];
      const V g_v = g_p * c.n[h] - g_q * c.s[h] + g_t * (c.n[h] - c.s[h]);
      write(first + h, (g_v * c.m[h] + c.t_by_a[h] * of_t[h]) * c.da[h]);
      write(first + K + h, g_v);
      write(first + 2 * K + h, g_p + g_q + g_t);
      g_m[h] = c.a[h] * g_v, g_log_dm[h] = g_t;
    }
  }

  // From the gradients by m and log dm/dx, which the mix has made, to those by h and log dh/dx.
  template <class Write>
  void mix_gradients(Layer &c, Layer &next, int first, const Write &write) {
    V *of_z = scratch[0], *of_fh = scratch[1], *of_u = scratch[2];
    for (int i = 0; i < K; ++i) {
      of_z[i] = -over(g_m[i] * next.m[i] + g_log_dm[i], c.z[i]);
      of_fh[i] = over(g_m[i], c.z[i]);
      of_u[i] = over(g_log_dm[i], c.density_mix[i]);
    }
    add_outer(c.of_mix, K, K, of_z, of_fh, of_u, c.f, c.fh, c.u);
    V *g_f = scratch[3], *g_fh = scratch[4], *g_u = scratch[5];
    products(c.mix_transposed, K, K, of_z, of_fh, of_u, g_f, g_fh, g_u);
    for (int h = 0; h < K; ++h) {
      g_h[h] = c.f[h] * g_fh[h], g_log_dh[h] = c.u[h] * g_u[h];
      write(first + h, g_h[h] * c.h[h] + c.f[h] * g_f[h] + g_log_dh[h]);
    }
  }

  // The search of rootfinding.find_root; the error is 0 where it ended well, else the residual.
  V root(V y, V &error, int64_t evaluations) {
    constexpr T eps = std::numeric_limits<T>::epsilon();
    const T loose = 4 * std::sqrt(eps);
    V lo = y, hi = y;
    for (int l = L - 1; l >= 0; --l) {
      const Layer &c = layers[l];
      V below = (lo - c.b[0]) / c.a[0], above = (hi - c.b[0]) / c.a[0];
      for (int h = 1; h < K; ++h) {
        below = R::smaller((lo - c.b[h]) / c.a[h], below);
        above = R::larger((hi - c.b[h]) / c.a[h], above);
      }
      lo = below, hi = above;
    }
    lo -= 8 * eps * (R::magnitude(lo) + 1), hi += 8 * eps * (R::magnitude(hi) + 1);
    const V scale = R::larger(R::magnitude(y), R::splat(1));
    V x = lo + T(0.5) * (hi - lo), step = hi - lo, last_step = step;
    error = R::splat(std::numeric_limits<T>::infinity());
    M running = R::every_lane();
    for (int64_t i = 0; i < evaluations && R::any(running); ++i) {
      V value, log_slope;
      evaluate(x, value, log_slope);
      const V residual = value - y, misfit = R::magnitude(residual) / scale;
      const M above = residual >= 0;
      lo = above ? lo : x, hi = above ? x : hi;
      const V width = 2 * eps * R::larger(R::magnitude(lo), R::magnitude(hi));
      const M done = (misfit <= 32 * eps) | ((hi - lo <= width) & (misfit <= loose));
      error = running ? (done ? V{} : misfit * scale) : error;
      running = running & ~done & (misfit == misfit);
      const V newton = -residual * R::any_exponential(-log_slope);
      const M trusted = (x + newton > lo) & (x + newton < hi) &
                        (R::magnitude(newton) <= T(0.5) * R::magnitude(last_step));
      last_step = step;
      step = trusted ? newton : lo + T(0.5) * (hi - lo) - x;
      x = running ? x + step : x;
    }
    return x;
  }

  // The bounded log-scale of formulas/affine.py, and its derivative.
  static V log_scale(V raw, const Call &call, V &derivative) {
    const T bound = T(call.bound), slope = T(call.slope);
    const V most = R::splat(1e9);
    const V r = R::smaller(most, R::larger(-most, raw * (slope / bound)));  // NaN stays NaN
    const V by_root = 1 / R::square_root(1 + r * r);
    derivative = slope * by_root * by_root * by_root;
    return bound * r * by_root;
  }

  // An affine map around tau, as in formulas/sigmoidal.py.
  static void scale(V m, V raw, const Call &call, V &y, V &log_slope) {
    V unused;
    const V s = log_scale(raw, call, unused);
    y = R::any_exponential(s) * y + m, log_slope += s;
  }

  // The gradients by tau and the raw log-scale; the gradient by m is g_y.
  static V scale_gradient(V raw, const Call &call, V tau, V g_y, V g_log_slope, V &g_raw) {
    V derivative;
    const V g_tau = R::any_exponential(log_scale(raw, call, derivative)) * g_y;
    g_raw = (g_tau * tau + g_log_slope) * derivative;
    return g_tau;
  }
};

// ------------------------------------------------------------------------------- calls and lanes

// Neighbouring lanes that are fetched and written back together: a kilobyte of each row, as the
// rows of the pseudo-parameters may lie far from each other. (Vectors alias their numbers.)
template <class A>
struct Tile {
  using T = typename A::Number;
  static constexpr int WIDTH = Register<A>::WIDTH, LANES = 1024 / int(sizeof(T));

  // Neighbouring samples of one dimension.
  struct Run {
    int64_t b, d;
    int first, stop;
  } runs[LANES];
  int count, groups, last_run = -1;

  Tile(const Call &call, int64_t first) {
    const int64_t left = call.batch * call.dim - first;
    count = left < LANES ? int(left) : LANES, groups = (count + WIDTH - 1) / WIDTH;
    int64_t b = first % call.batch, d = first / call.batch;
    for (int i = 0; i < count; b = 0, ++d) {
      const int stop = call.batch - b < count - i ? i + int(call.batch - b) : count;
      runs[++last_run] = {b, d, i, stop};
      i = stop;
    }
  }

  // Calls `move(offset in memory, lane, how many)` for what is adjacent in memory.
  template <class Move>
  void each(const Strided &s, const Move &move) const {
    for (int r = 0; r <= last_run; ++r) {
      const Run &run = runs[r];
      const int64_t at = run.b * s.batch + run.d * s.dim;
      if (s.batch == 1 && run.stop - run.first >= WIDTH)
        move(at, run.first, run.stop - run.first);
      else
        for (int i = run.first; i < run.stop; ++i) move(at + (i - run.first) * s.batch, i, 1);
    }
  }

  // Lanes that do not exist repeat the last one.
  void load(const Strided &s, int rows, T *to) const {
    const T *from = static_cast<const T *>(s.data);
    for (int r = 0; r < rows; ++r, from += s.row, to += LANES) {
      each(s, [=](int64_t at, int lane, int n) {
        std::memcpy(to + lane, from + at, n * sizeof(T));
      });
      for (int i = count; i < groups * WIDTH; ++i) to[i] = to[count - 1];
    }
  }

  void store(const Strided &s, int rows, const T *from) const {
    T *to = static_cast<T *>(s.data);
    for (int r = 0; r < rows; ++r, from += LANES, to += s.row)
      each(s, [=](int64_t at, int lane, int n) {
        std::memcpy(to + at, from + lane, n * sizeof(T));
      });
  }
};

template <class A>
class Kernel {
  using G = Group<A>;
  using T = typename G::T;
  using V = typename G::V;
  static constexpr int LANES = Tile<A>::LANES, GROUPS = LANES / G::WIDTH;

  const Call &call;
  const int K, L, P, m;  // the last is where the two of the affine map begin in a tile
  const int64_t tiles;
  std::size_t size;
  std::vector<T> matrices, transposed, biases;

  // exp of the logits, row by row less their maximum; DSF has none.
  void exponentiate() {
    matrices.assign(size, 1), transposed.assign(size, 1);
    const T *logits = static_cast<const T *>(call.matrices);
    if (!logits) return;
    const int64_t rows = size / K;
    for (int64_t i = 0; i < rows; ++i) {
      const T *from = logits + i * K;
      T top = from[0];
      for (int j = 1; j < K; ++j) top = from[j] > top ? from[j] : top;
      for (int j = 0; j < K; ++j)
        matrices[i * K + j] = G::R::exponential(G::R::splat(from[j] - top))[0];
    }
    // One row, of the last layer, stands among the square ones.
    for (int64_t first = 0; first < rows;) {
      const int height = first == int64_t(L - 1) * K ? 1 : K;
      for (int i = 0; i < height; ++i)
        for (int j = 0; j < K; ++j)
          transposed[first * K + j * height + i] = matrices[(first + i) * K + j];
      first += height;
    }
  }

  // `work(group, tile, phi, grad_phi)` on all tiles, in as many parts as there are threads. The
  // last two are room for a tile's parameters, row by row, and for their gradients.
  template <class Work>
  void share(V *of_matrices, const Work &work) const {
    bool failed = false;
#pragma omp parallel for schedule(static) num_threads(call.threads) reduction(|| : failed)
    for (int64_t part = 0; part < call.threads; ++part) {
      try {
        do_part(part, of_matrices ? of_matrices + part * size : nullptr, work);
      } catch (const std::bad_alloc &) {  // none may leave a thread
        failed = true;
      }
    }
    if (failed) throw std::bad_alloc();
  }

  template <class Work>
  void do_part(int64_t part, V *sums, const Work &work) const {
    G group(K, L, matrices.data(), transposed.data(), sums);
    const std::unique_ptr<V[]> phi(new V[2 * P * GROUPS]);
    for (int64_t i = tiles * part / call.threads; i < tiles * (part + 1) / call.threads; ++i) {
      const Tile<A> tile(call, i * LANES);
      tile.load(call.phi, P, (T *)phi.get());
      work(group, tile, phi.get(), phi.get() + P * GROUPS);
    }
  }

  void prepare(G &group, const V *phi) const {
    const auto row = [&](int i) { return phi[i * GROUPS]; };
    group.prepare(row, biases.data(), T(call.shift), T(call.floor));
  }

 public:
  explicit Kernel(const Call &call)
      : call(call), K(int(call.units)), L(int(call.layers)),
        P((4 * L - 1) * K + (call.bound ? 2 : 0)), m((P - 2) * GROUPS),
        tiles((call.batch * call.dim + LANES - 1) / LANES),
        size(std::size_t(2 * (L - 1) * K + 1) * K), biases(K) {
    std::memcpy(biases.data(), call.biases, K * sizeof(T));
    exponentiate();
  }

  void forward() const {
    share(nullptr, [&](G &group, const Tile<A> &tile, const V *phi, V *) {
      V x[GROUPS], y[GROUPS], log_slope[GROUPS];
      tile.load(call.x, 1, (T *)x);
      for (int g = 0; g < tile.groups; ++g) {
        prepare(group, phi + g);
        group.evaluate(x[g], y[g], log_slope[g]);
        if (call.bound) G::scale(phi[m + g], phi[m + GROUPS + g], call, y[g], log_slope[g]);
      }
      tile.store(call.y, 1, (const T *)y);
      tile.store(call.log_slope, 1, (const T *)log_slope);
    });
  }

  void backward() const {
    const bool wanted = call.grad_matrices;
    std::vector<V> sums(wanted ? size * call.threads : 0);
    V *const to_sums = wanted ? sums.data() : nullptr;
    share(to_sums, [&](G &group, const Tile<A> &tile, const V *phi, V *to) {
      V x[GROUPS], y[GROUPS], log_slope[GROUPS], grad_x[GROUPS];
      tile.load(call.x, 1, (T *)x);
      tile.load(call.grad_y, 1, (T *)y);
      tile.load(call.grad_log_slope, 1, (T *)log_slope);
      // Lanes that only repeat another add nothing to the sums.
      for (int i = tile.count; i < tile.groups * G::WIDTH; ++i)
        ((T *)y)[i] = ((T *)log_slope)[i] = 0;
      for (int g = 0; g < tile.groups; ++g) {
        V value, slope;
        prepare(group, phi + g);
        group.evaluate(x[g], value, slope);
        const auto write = [&](int row, V gradient) { to[row * GROUPS + g] = gradient; };
        if (call.bound) {
          const V raw = phi[m + GROUPS + g];
          V &g_raw = to[m + GROUPS + g];
          to[m + g] = y[g];
          y[g] = G::scale_gradient(raw, call, value, y[g], log_slope[g], g_raw);
        }
        grad_x[g] = group.gradients(y[g], log_slope[g], write, wanted);
      }
      tile.store(call.grad_x, 1, (const T *)grad_x);
      tile.store(call.grad_phi, P, (const T *)to);
    });
    T *out = static_cast<T *>(call.grad_matrices);
    for (std::size_t i = 0; i < size && wanted; ++i) {
      T sum = 0;
      for (int64_t part = 0; part < call.threads; ++part)
        for (int j = 0; j < G::WIDTH; ++j) sum += sums[part * size + i][j];
      out[i] = sum * matrices[i];
    }
  }

  // The value is given as y, the root goes to x and its error to the log-slope.
  void inverse() const {
    share(nullptr, [&](G &group, const Tile<A> &tile, const V *phi, V *) {
      V y[GROUPS], x[GROUPS], error[GROUPS];
      tile.load(call.y, 1, (T *)y);
      for (int g = 0; g < tile.groups; ++g) {
        prepare(group, phi + g);
        x[g] = group.root(y[g], error[g], call.evaluations);
      }
      tile.store(call.x, 1, (const T *)x);
      tile.store(call.log_slope, 1, (const T *)error);
    });
  }
};

// Whether there was memory enough.
template <class A, class Work>
bool run(const Call &call, const Work &work) {
  try {
    work(Kernel<A>(call));
    return true;
  } catch (const std::bad_alloc &) {
    return false;
  }
}

const auto forward = [](const auto &kernel) { kernel.forward(); };
const auto backward = [](const auto &kernel) { kernel.backward(); };
const auto inverse = [](const auto &kernel) { kernel.inverse(); };

extern "C" {
bool forward_float32(const Call &call) { return run<Single>(call, forward); }
bool forward_float64(const Call &call) { return run<Double>(call, forward); }
bool backward_float32(const Call &call) { return run<Single>(call, backward); }
bool backward_float64(const Call &call) { return run<Double>(call, backward); }
bool inverse_float32(const Call &call) { return run<Single>(call, inverse); }
bool inverse_float64(const Call &call) { return run<Double>(call, inverse); }
}
