// The scalar tier: plain loops for a CPU without vector extensions, and the oracle for the other
// tiers. It shares no code with them, and rounds as written: no contraction, no reordering.
//
// Its panels are [k][16] too, so that the compiler may use the baseline's four-lane registers: a
// tile of 2 rows by 16 outputs is 8 of their 16.
#include <cstddef>
#include <cstdint>

#include "base/bf16.h"
#include "kernels/overlay.h"
#include "kernels/scalar/gemm_whole.h"
#include "kernels/scalar/sparse.h"
#include "kernels/scalar/sparse_int8.h"

namespace slimformer::kernels {
namespace {

constexpr std::size_t kPanelWidth = 16;
constexpr std::size_t kTileRows = 2;
constexpr float kInfinity = __builtin_inff();

float Widen(float x) noexcept { return x; }
float Widen(std::int8_t x) noexcept { return static_cast<float>(x); }
float Widen(std::uint16_t x) noexcept { return FloatFromBf16(x); }
void Narrow(float x, float& to) noexcept { to = x; }
void Narrow(float x, std::uint16_t& to) noexcept { to = Bf16FromFloat(x); }

// exp(x) = 2^n exp(r), |r| <= ln(2) / 2, by its power series in float64 to r^13 / 13!, |x| < 700.
double ExpOf(double x) noexcept {
  const double scaled = x * 1.44269504088896341;
  const int n = static_cast<int>(scaled < 0.0 ? scaled - 0.5 : scaled + 0.5);
  const double r = x - n * 0.693147180559945309;
  double series = 1.0;
  for (int i = 13; i >= 1; --i) series = 1.0 + series * r / i;
  const auto power = static_cast<std::uint64_t>(1023 + n) << 52;
  return series * __builtin_bit_cast(double, power);
}

// Exact to a rounding of float32.
float Exp(float x) noexcept {
  if (x != x) return x;
  if (x > 89.0F) return kInfinity;
  if (x < -104.0F) return 0.0F;
  return static_cast<float>(ExpOf(static_cast<double>(x)));
}

// In float64, so that what 1 - exp(-2 |x|) cancels near 0 is not missed.
float Tanh(float x) noexcept {
  const double twice = -2.0 * (x < 0.0F ? -static_cast<double>(x) : static_cast<double>(x));
  if (x != x || twice < -40.0) return x != x ? x : (x < 0.0F ? -1.0F : 1.0F);
  const double below = ExpOf(twice);
  const double positive = (1.0 - below) / (1.0 + below);
  return static_cast<float>(x < 0.0F ? -positive : positive);
}

// The normal distribution's mass below x: up to 4 by its power series around 0, beyond by Laplace's
// continued fraction of the mass above, of which 40 terms are more than float64 can tell.
double NormalBelow(float x) noexcept {
  const double a = x < 0.0F ? -static_cast<double>(x) : static_cast<double>(x);
  if (x != x) return a;
  if (a > 36.0) return x < 0.0F ? 0.0 : 1.0;
  const double density = 0.398942280401432678 * ExpOf(-0.5 * a * a);
  double above = 0.0;
  if (a < 4.0) {
    double term = a;
    double sum = a;
    for (int i = 3; i < 121; i += 2) {
      term *= a * a / i;
      sum += term;
    }
    above = 0.5 - density * sum;
  } else {
    double tail = a;
    for (int i = 40; i >= 1; --i) tail = a + i / tail;
    above = density / tail;
  }
  return x < 0.0F ? above : 1.0 - above;
}

// log(x) for normal x > 0: 2^e m with m in [1, 2), log m by 2 atanh((m - 1) / (m + 1)).
double Log(double x) noexcept {
  const auto bits = __builtin_bit_cast(std::uint64_t, x);
  const double exponent = static_cast<double>(bits >> 52) - 1023.0;
  const double m =
      __builtin_bit_cast(double, (bits & 0xfffffffffffffU) | (std::uint64_t{1023} << 52));
  const double s = (m - 1.0) / (m + 1.0);
  double series = 0.0;
  for (int power = 31; power >= 1; power -= 2) series = series * s * s + 1.0 / power;
  return exponent * 0.693147180559945309 + 2.0 * s * series;
}

template <class Weight>
std::size_t PanelBytes(std::size_t k) noexcept {
  return (k * kPanelWidth * sizeof(Weight) + 63) / 64 * 64;
}

template <class Weight>
void PackPanel(const float* w, std::size_t stride, std::size_t outputs, std::size_t k,
               void* panel) noexcept {
  auto* to = static_cast<Weight*>(panel);
  for (std::size_t i = 0; i < PanelBytes<Weight>(k) / sizeof(Weight); ++i) to[i] = Weight{0};
  for (std::size_t i = 0; i < k; ++i) {
    for (std::size_t c = 0; c < outputs; ++c) Narrow(w[c * stride + i], to[i * kPanelWidth + c]);
  }
}

template <class Weight>
void UnpackRow(const void* panel, std::size_t output, std::size_t k, float* w) noexcept {
  const auto* from = static_cast<const Weight*>(panel);
  for (std::size_t i = 0; i < k; ++i) w[i] = Widen(from[i * kPanelWidth + output]);
}

std::size_t NoInputRowBytes(std::size_t) noexcept { return 0; }

template <class Weight, std::size_t kRows>
void MultiplyRows(const float* x, std::size_t x_stride, const Weight* panel, std::size_t k,
                  float* y, std::size_t y_stride, std::size_t outputs, bool accumulate) noexcept {
  float sums[kRows][kPanelWidth] = {};
  for (std::size_t i = 0; i < k; ++i) {
    for (std::size_t r = 0; r < kRows; ++r) {
      const float value = x[r * x_stride + i];
      for (std::size_t c = 0; c < kPanelWidth; ++c) {
        sums[r][c] += value * Widen(panel[i * kPanelWidth + c]);
      }
    }
  }
  for (std::size_t r = 0; r < kRows; ++r) {
    for (std::size_t c = 0; c < outputs; ++c) {
      float& to = y[r * y_stride + c];
      to = accumulate ? to + sums[r][c] : sums[r][c];
    }
  }
}

template <class Weight>
void Multiply(const void* x, std::size_t x_stride, std::size_t rows, const void* panel,
              std::size_t k, float* y, std::size_t y_stride, std::size_t outputs,
              bool accumulate) noexcept {
  const auto* from = static_cast<const float*>(x);
  const auto* weights = static_cast<const Weight*>(panel);
  std::size_t r = 0;
  for (; r + kTileRows <= rows; r += kTileRows) {
    MultiplyRows<Weight, kTileRows>(from + r * x_stride, x_stride, weights, k, y + r * y_stride,
                                    y_stride, outputs, accumulate);
  }
  if (r < rows) {
    MultiplyRows<Weight, 1>(from + r * x_stride, x_stride, weights, k, y + r * y_stride, y_stride,
                            outputs, accumulate);
  }
}

template <class Weight>
constexpr GemmKernel MakeGemm() noexcept {
  return {.panel_width = kPanelWidth,
          .tile_rows = kTileRows,
          .panel_bytes = &PanelBytes<Weight>,
          .pack_panel = &PackPanel<Weight>,
          .unpack_row = &UnpackRow<Weight>,
          .input_row_bytes = &NoInputRowBytes,
          .input_unit = 1,
          .prepare_input = nullptr,
          .multiply = &Multiply<Weight>};
}

// A bfloat16 panel: one group of [k][kPanelWidth] weights without a head.
struct Bf16Form {
  using Item = std::uint16_t;
  static constexpr Item kMagnitude = 0x7fff;
  static constexpr std::size_t kHeadBytes = 0;
  static std::size_t Groups(std::size_t) noexcept { return 1; }
  static std::size_t Items(std::size_t k, std::size_t) noexcept { return k * kPanelWidth; }
};

void MultiplySparse(const void* x, std::size_t x_stride, std::size_t rows, const void* compressed,
                    std::size_t k, float* y, std::size_t y_stride, std::size_t outputs,
                    bool accumulate) noexcept {
  for (std::size_t r = 0; r < rows; ++r) {
    const float* from = static_cast<const float*>(x) + r * x_stride;
    sparse::Reader<Bf16Form> reader(compressed, k);
    float sums[kPanelWidth] = {};
    for (std::size_t i = 0; i < k; ++i) {
      for (float& sum : sums) sum += from[i] * Widen(reader.NextItem());
    }
    for (std::size_t c = 0; c < outputs; ++c) {
      float& to = y[r * y_stride + c];
      to = accumulate ? to + sums[c] : sums[c];
    }
  }
}

template <class Value>
void Attend(const float* q, std::size_t q_stride, std::size_t rows, const KvPart& page,
            std::size_t head_dim, std::size_t value_dim, const std::int32_t* begin,
            const std::int32_t* end, float soft_cap, float* max, float* sum, float* out,
            std::size_t out_stride, float* scores) noexcept {
  constexpr std::size_t kPerStep = sizeof(Value) == sizeof(float) ? 1 : 2;
  const std::size_t padded_dim = (head_dim + kPerStep - 1) / kPerStep * kPerStep;
  const auto* k = static_cast<const Value*>(page.keys);
  const auto* v = static_cast<const Value*>(page.values);
  for (std::size_t r = 0; r < rows; ++r) {
    if (begin[r] >= end[r]) continue;
    const auto first = static_cast<std::size_t>(begin[r]);
    const auto last = static_cast<std::size_t>(end[r]);
    float highest = max[r];
    for (std::size_t p = first; p < last; ++p) {
      const Value* key = k + p / kKeyLanes * kKeyLanes * padded_dim + p % kKeyLanes * kPerStep;
      float score = 0.0F;
      for (std::size_t d = 0; d < head_dim; ++d) {
        const std::size_t at = d / kPerStep * kPerStep * kKeyLanes + d % kPerStep;
        score += q[r * q_stride + d] * Widen(key[at]);
      }
      if constexpr (sizeof(Value) == 1) score *= page.key_scales[p];
      if (soft_cap > 0.0F) score = soft_cap * Tanh(score / soft_cap);
      scores[p] = score;
      if (score > highest) highest = score;
    }
    float* to = out + r * out_stride;
    const float factor = Exp(max[r] - highest);
    for (std::size_t c = 0; c < value_dim; ++c) to[c] *= factor;
    sum[r] *= factor;
    max[r] = highest;
    for (std::size_t p = first; p < last; ++p) {
      const Value* value = v + p / kPerStep * kPerStep * value_dim + p % kPerStep;
      float weight = Exp(scores[p] - highest);
      sum[r] += weight;
      if constexpr (sizeof(Value) == 1) weight *= page.value_scales[p];
      for (std::size_t c = 0; c < value_dim; ++c) to[c] += weight * Widen(value[c * kPerStep]);
    }
  }
}

float ToInt8(const float* x, std::size_t n, std::int8_t* y) noexcept {
  const float scale = whole::Scale(x, n);
  const float inverse = 1.0F / scale;
  for (std::size_t i = 0; i < n; ++i) y[i] = whole::Round(x[i] * inverse);
  return scale;
}

void RmsNorm(const float* x, const float* weight, float eps, std::size_t divisor, std::size_t n,
             float* y) noexcept {
  float squares = 0.0F;
  for (std::size_t i = 0; i < n; ++i) squares += x[i] * x[i];
  const float factor = 1.0F / __builtin_sqrtf(squares / static_cast<float>(divisor) + eps);
  for (std::size_t i = 0; i < n; ++i) y[i] = x[i] * factor * weight[i];
}

void Rope(float* x, const float* cosine, const float* sine, std::size_t pairs) noexcept {
  for (std::size_t i = 0; i < pairs; ++i) {
    const float a = x[i];
    const float b = x[pairs + i];
    x[i] = a * cosine[i] - b * sine[i];
    x[pairs + i] = b * cosine[i] + a * sine[i];
  }
}

// Sums in float64: values that are all much the same leave little of themselves.
void LayerNorm(const float* x, const float* weight, const float* bias, float eps, std::size_t n,
               float* y) noexcept {
  double sum = 0.0;
  for (std::size_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]);
  const auto mean = static_cast<float>(sum / static_cast<double>(n));
  double squares = 0.0;
  for (std::size_t i = 0; i < n; ++i) {
    const auto apart = static_cast<double>(x[i] - mean);
    squares += apart * apart;
  }
  const auto variance = static_cast<float>(squares / static_cast<double>(n));
  const float factor = 1.0F / __builtin_sqrtf(variance + eps);
  for (std::size_t i = 0; i < n; ++i) y[i] = (x[i] - mean) * factor * weight[i] + bias[i];
}

float Silu(float x) noexcept { return x / (1.0F + Exp(-x)); }

// 1 + tanh(u) = 2 / (1 + exp(-2 u)).
float GeluTanh(float x) noexcept {
  const double wide = static_cast<double>(x);
  const double twice = 1.59576912160573071 * (wide + 0.044715 * wide * wide * wide);
  return x / (1.0F + Exp(static_cast<float>(-twice)));
}

float Gelu(float x) noexcept { return static_cast<float>(static_cast<double>(x) * NormalBelow(x)); }

float Relu(float x) noexcept { return x < 0.0F ? 0.0F : x; }

template <float (*kActivation)(float) noexcept>
void Activate(const float* x, const float* factors, std::size_t n, float* y) noexcept {
  for (std::size_t i = 0; i < n; ++i) {
    const float value = kActivation(x[i]);
    y[i] = factors == nullptr ? value : value * factors[i];
  }
}

void SoftCap(float cap, std::size_t n, float* y) noexcept {
  for (std::size_t i = 0; i < n; ++i) y[i] = cap * Tanh(y[i] / cap);
}

void Add(const float* x, std::size_t n, float* y) noexcept {
  for (std::size_t i = 0; i < n; ++i) y[i] += x[i];
}

void MultiplyElements(const float* x, std::size_t n, float* y) noexcept {
  for (std::size_t i = 0; i < n; ++i) y[i] *= x[i];
}

void Scale(float factor, const float* x, std::size_t n, float* y) noexcept {
  for (std::size_t i = 0; i < n; ++i) y[i] = factor * x[i];
}

float LogSumExp(const float* x, std::size_t n) noexcept {
  float max = -kInfinity;
  for (std::size_t i = 0; i < n; ++i) {
    if (x[i] != x[i]) return x[i];
    if (x[i] > max) max = x[i];
  }
  if (max == kInfinity || max == -kInfinity) return max;
  double total = 0.0;
  for (std::size_t i = 0; i < n; ++i) total += static_cast<double>(Exp(x[i] - max));
  return static_cast<float>(static_cast<double>(max) + Log(total));
}

void ToBf16(const float* x, std::size_t n, std::uint16_t* y) noexcept {
  for (std::size_t i = 0; i < n; ++i) y[i] = Bf16FromFloat(x[i]);
}

void FromBf16(const std::uint16_t* x, std::size_t n, float* y) noexcept {
  for (std::size_t i = 0; i < n; ++i) y[i] = FloatFromBf16(x[i]);
}

std::size_t ProbeFma(std::size_t iterations, float* sink) noexcept {
  constexpr std::size_t kChains = 32;  // eight registers of four lanes
  float sums[kChains];
  // They start apart, or the compiler would find that they are all the same.
  for (std::size_t c = 0; c < kChains; ++c) sums[c] = sink[0] + static_cast<float>(c);
  const float factor = sink[1];
  const float term = sink[2];
  for (std::size_t i = 0; i < iterations; ++i) {
    for (float& sum : sums) sum = sum * factor + term;
  }
  float total = 0.0F;
  for (const float sum : sums) total += sum;
  sink[0] = total;
  return iterations * kChains * 2;
}

void ProbeRead(const float* x, std::size_t n, float* sink) noexcept {
  constexpr std::size_t kSums = 16;  // four registers of four lanes
  float sums[kSums] = {};
  for (std::size_t i = 0; i < n; i += kSums) {
    for (std::size_t s = 0; s < kSums; ++s) sums[s] += x[i + s];
  }
  float total = 0.0F;
  for (const float sum : sums) total += sum;
  sink[0] = total;
}

}  // namespace

template <>
void Overlay<Tier::scalar>(KernelTable& table) noexcept {
  table.gemm_f32 = MakeGemm<float>();
  table.gemm_bf16 = MakeGemm<std::uint16_t>();
  table.gemm_int8 = whole::MakeGemm<whole::Int8Weights<true>>();
  table.gemm_int4 = whole::MakeGemm<whole::Int4Weights>();
  table.sparse_bf16 = sparse::MakeSparse<Bf16Form>(table.gemm_bf16, &MultiplySparse);
  table.sparse_int8 = sparse::MakeInt8();
  table.attend_f32 = &Attend<float>;
  table.attend_bf16 = &Attend<std::uint16_t>;
  table.attend_int8 = &Attend<std::int8_t>;
  table.rms_norm = &RmsNorm;
  table.layer_norm = &LayerNorm;
  table.rope = &Rope;
  table.silu = &Activate<Silu>;
  table.gelu_tanh = &Activate<GeluTanh>;
  table.gelu = &Activate<Gelu>;
  table.relu = &Activate<Relu>;
  table.add = &Add;
  table.multiply = &MultiplyElements;
  table.scale = &Scale;
  table.soft_cap = &SoftCap;
  table.log_sum_exp = &LogSumExp;
  table.to_bf16 = &ToBf16;
  table.to_int8 = &ToInt8;
  table.from_bf16 = &FromBf16;
  table.probe_fma = &ProbeFma;
  table.probe_read = &ProbeRead;
}

}  // namespace slimformer::kernels
