// Registers the rules for GPUs. Plain C++, compiled where the CUDA kernels are; the ops themselves
// are registered beside their CPU kernels. Selections from [n, n] distances stay on the host, see
// distance_op.cc.
#include <algorithm>
#include <vector>

#include "aggregathor/ops/cuda/cuda_kernels.h"
#include "aggregathor/ops/kernels/weiszfeld_weights.h"
#include "aggregathor/ops/tf/op_util.h"
#include "xla/stream_executor/stream.h"

namespace aggregathor {
namespace {

void* StreamOf(tf::OpKernelContext* ctx) {
  return ctx->op_device_context()->stream()->platform_specific_handle().stream;
}

// What a function of cuda_kernels.h returned, as the status of the op that called it.
absl::Status StatusOf(const tf::OpKernel& op, const tf::Tensor& stack_nd, int code) {
  if (code == 0) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(
      op.type_string(), " failed on the GPU, for gradients ", stack_nd.shape().DebugString(), ": ",
      aggregathor_cuda_error(code), ". Place it on the CPU with tf.device('/CPU:0')."));
}

// Memory of the device for as long as the op runs.
template <typename T>
absl::Status Allocate(tf::OpKernelContext* ctx, int64_t size, tf::Tensor* tensor, T** data) {
  const int64_t bytes = size * static_cast<int64_t>(sizeof(T));
  TF_RETURN_IF_ERROR(ctx->allocate_temp(tf::DT_INT8, tf::TensorShape({bytes}), tensor));
  *data = reinterpret_cast<T*>(tensor->data());
  return absl::OkStatus();
}

template <typename T>
class MeanGpuOp : public tf::OpKernel {
 public:
  explicit MeanGpuOp(tf::OpKernelConstruction* ctx) : OpKernel(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("skip_missing", &skip_missing_));
  }

  void Compute(tf::OpKernelContext* ctx) override {
    const tf::Tensor& stack_nd = ctx->input(0);
    OP_REQUIRES_OK(ctx, CheckStack(stack_nd, 0));
    const auto [stack, n, d, stride] = AsStack<T>(stack_nd);
    tf::Tensor* grad_d;
    OP_REQUIRES_OK(ctx, ctx->allocate_output(0, tf::TensorShape({d}), &grad_d));
    OP_REQUIRES_OK(ctx, StatusOf(*this, stack_nd,
                                 CudaKernels<T>::mean(stack, n, d, skip_missing_,
                                                      grad_d->flat<T>().data(), StreamOf(ctx))));
  }

 private:
  bool skip_missing_;
};

// The counts of kept values come to the host, if they are asked for, and leave it as shares.
template <typename T>
class WindowMeanGpuOp : public tf::OpKernel {
 public:
  explicit WindowMeanGpuOp(tf::OpKernelConstruction* ctx) : OpKernel(ctx) {
    OP_REQUIRES_OK(ctx, GetWindow(ctx, &window_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("f", &f_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("with_share", &with_share_));
  }

  void Compute(tf::OpKernelContext* ctx) override {
    const tf::Tensor& stack_nd = ctx->input(0);
    OP_REQUIRES_OK(ctx, CheckStack(stack_nd, f_));
    const auto [stack, n, d, stride] = AsStack<T>(stack_nd);
    tf::Tensor *grad_d, *share_n;
    tf::Tensor kept;
    int64_t* kept_n = nullptr;
    OP_REQUIRES_OK(ctx, ctx->allocate_output(0, tf::TensorShape({d}), &grad_d));
    OP_REQUIRES_OK(ctx, ctx->allocate_output(1, tf::TensorShape({with_share_ ? n : 0}), &share_n));
    if (with_share_) OP_REQUIRES_OK(ctx, Allocate(ctx, n, &kept, &kept_n));
    OP_REQUIRES_OK(ctx, StatusOf(*this, stack_nd,
                                 CudaKernels<T>::window_mean(stack, n, d, static_cast<int>(window_),
                                                             f_, grad_d->flat<T>().data(), kept_n,
                                                             StreamOf(ctx))));
    if (!with_share_) return;
    std::vector<int64_t> counts(n);
    OP_REQUIRES_OK(ctx, StatusOf(*this, stack_nd,
                                 aggregathor_cuda_to_host(counts.data(), kept_n,
                                                          n * sizeof(int64_t), StreamOf(ctx))));
    for (int64_t i = 0; i < n; ++i) {
      share_n->flat<double>()(i) = d == 0 ? 0.0 : static_cast<double>(counts[i]) / d;
    }
  }

 private:
  Window window_ = Window::kMedian;
  int64_t f_;
  bool with_share_;
};

template <typename T>
class SqDistancesGpuOp : public tf::OpKernel {
 public:
  explicit SqDistancesGpuOp(tf::OpKernelConstruction* ctx) : OpKernel(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("scaled", &scaled_));
  }

  void Compute(tf::OpKernelContext* ctx) override {
    const tf::Tensor& stack_nd = ctx->input(0);
    OP_REQUIRES_OK(ctx, CheckStack(stack_nd, 0));
    const auto [stack, n, d, stride] = AsStack<T>(stack_nd);
    tf::Tensor* sq_dist_nn;
    tf::Tensor memory;
    char* scratch;
    OP_REQUIRES_OK(ctx, ctx->allocate_output(0, tf::TensorShape({n, n}), &sq_dist_nn));
    OP_REQUIRES_OK(ctx,
                   Allocate(ctx, aggregathor_cuda_sq_distances_scratch(n, d), &memory, &scratch));
    OP_REQUIRES_OK(
        ctx, StatusOf(*this, stack_nd,
                      CudaKernels<T>::sq_distances(stack, n, d, sq_dist_nn->flat<double>().data(),
                                                   scratch, StreamOf(ctx))));
    if constexpr (sizeof(T) == sizeof(double)) {  // squares of floats always fit
      if (scaled_) OP_REQUIRES_OK(ctx, Rescale(ctx, stack_nd, sq_dist_nn));
    }
  }

 private:
  // Compares the pairs whose sums may have lost something once more. The distances are on their way
  // to the host anyway, which selects by them.
  absl::Status Rescale(tf::OpKernelContext* ctx, const tf::Tensor& stack_nd,
                       tf::Tensor* sq_dist_nn) const {
    const int64_t n = stack_nd.dim_size(0), d = stack_nd.dim_size(1);
    double* const on_device = sq_dist_nn->flat<double>().data();
    const int64_t bytes = n * n * static_cast<int64_t>(sizeof(double));
    std::vector<double> sq_dist(n * n);
    TF_RETURN_IF_ERROR(
        StatusOf(*this, stack_nd,
                 aggregathor_cuda_to_host(sq_dist.data(), on_device, bytes, StreamOf(ctx))));
    std::vector<int64_t> pairs;
    for (int64_t a = 0; a < n; ++a) {
      for (int64_t b = a + 1; b < n; ++b) {
        if (!IsSure(sq_dist[a * n + b])) pairs.push_back(a * n + b);
      }
    }
    if (pairs.empty()) return absl::OkStatus();
    const int64_t num_pairs = static_cast<int64_t>(pairs.size());
    tf::Tensor memory[2];
    int64_t* pairs_on_device;
    Wide* wide_on_device;
    TF_RETURN_IF_ERROR(Allocate(ctx, num_pairs, &memory[0], &pairs_on_device));
    TF_RETURN_IF_ERROR(Allocate(ctx, num_pairs, &memory[1], &wide_on_device));
    int code = aggregathor_cuda_to_device(pairs_on_device, pairs.data(),
                                          num_pairs * sizeof(int64_t), StreamOf(ctx));
    if (code == 0) {
      code =
          aggregathor_cuda_wide_sq_distances(stack_nd.flat<double>().data(), n, d, pairs_on_device,
                                             num_pairs, on_device, wide_on_device, StreamOf(ctx));
    }
    std::vector<Wide> wide(num_pairs), wide_nn(n * n);
    if (code == 0) {
      code = aggregathor_cuda_to_host(wide.data(), wide_on_device, num_pairs * sizeof(Wide),
                                      StreamOf(ctx));
    }
    TF_RETURN_IF_ERROR(StatusOf(*this, stack_nd, code));
    for (int64_t i = 0; i < n * n; ++i) wide_nn[i] = {sq_dist[i], 0};
    for (int64_t p = 0; p < num_pairs; ++p) {
      const int64_t a = pairs[p] / n, b = pairs[p] % n;
      wide_nn[a * n + b] = wide_nn[b * n + a] = wide[p];
    }
    ToOneUnit(wide_nn.data(), n, sq_dist.data());
    return StatusOf(*this, stack_nd,
                    aggregathor_cuda_to_device(on_device, sq_dist.data(), bytes, StreamOf(ctx)));
  }

  bool scaled_;
};

// The rows are on the host, where they are checked.
template <typename T>
class MeanOfRowsGpuOp : public tf::OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(tf::OpKernelContext* ctx) override {
    const tf::Tensor& stack_nd = ctx->input(0);
    OP_REQUIRES_OK(ctx, CheckStack(stack_nd, 0));
    const auto [stack, n, d, stride] = AsStack<T>(stack_nd);
    OP_REQUIRES_OK(ctx, CheckRows(ctx->input(1), n, 0));
    const auto rows = ctx->input(1).flat<int64_t>();
    // Not the tensor's own memory: it may be pinned, and gone before the copy is made.
    const std::vector<int64_t> rows_m(rows.data(), rows.data() + rows.size());
    const int64_t m = rows.size();
    tf::Tensor* grad_d;
    tf::Tensor memory;
    int64_t* on_device;
    OP_REQUIRES_OK(ctx, ctx->allocate_output(0, tf::TensorShape({d}), &grad_d));
    OP_REQUIRES_OK(ctx, Allocate(ctx, m, &memory, &on_device));
    OP_REQUIRES_OK(ctx, StatusOf(*this, stack_nd,
                                 aggregathor_cuda_to_device(on_device, rows_m.data(),
                                                            m * sizeof(int64_t), StreamOf(ctx))));
    OP_REQUIRES_OK(ctx,
                   StatusOf(*this, stack_nd,
                            CudaKernels<T>::mean_of_rows(stack, n, d, on_device, m,
                                                         grad_d->flat<T>().data(), StreamOf(ctx))));
  }
};

template <typename T>
class BulyanTailGpuOp : public tf::OpKernel {
 public:
  explicit BulyanTailGpuOp(tf::OpKernelConstruction* ctx) : OpKernel(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("f", &f_));
  }

  void Compute(tf::OpKernelContext* ctx) override {
    const tf::Tensor& stack_nd = ctx->input(0);
    const tf::Tensor& groups = ctx->input(1);
    OP_REQUIRES_OK(ctx, CheckStack(stack_nd, f_));
    const auto [stack, n, d, stride] = AsStack<T>(stack_nd);
    OP_REQUIRES_OK(ctx, CheckGroups(groups, n));
    const int64_t theta = groups.dim_size(0), m = groups.dim_size(1);
    std::vector<int32_t> steps(theta * (m + 2));
    steps.resize(
        aggregathor_cuda_bulyan_steps(groups.flat<int64_t>().data(), theta, m, steps.data()));
    tf::Tensor* grad_d;
    tf::Tensor memory;
    int32_t* on_device;
    OP_REQUIRES_OK(ctx, ctx->allocate_output(0, tf::TensorShape({d}), &grad_d));
    OP_REQUIRES_OK(ctx, Allocate(ctx, steps.size(), &memory, &on_device));
    OP_REQUIRES_OK(
        ctx, StatusOf(*this, stack_nd,
                      aggregathor_cuda_to_device(on_device, steps.data(),
                                                 steps.size() * sizeof(int32_t), StreamOf(ctx))));
    OP_REQUIRES_OK(
        ctx, StatusOf(*this, stack_nd,
                      CudaKernels<T>::bulyan_tail(stack, n, d, on_device, steps.size(), theta, f_,
                                                  grad_d->flat<T>().data(), StreamOf(ctx))));
  }

 private:
  int64_t f_;
};

// Weiszfeld's iteration as in geometric_median_op.cc. The device has the vectors; the host has the
// weights, and decides when to stop.
template <typename T>
class GeometricMedianGpuOp : public tf::OpKernel {
 public:
  explicit GeometricMedianGpuOp(tf::OpKernelConstruction* ctx) : OpKernel(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("f", &f_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("nu", &nu_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("tol", &tol_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("max_iter", &max_iter_));
  }

  void Compute(tf::OpKernelContext* ctx) override {
    const tf::Tensor& stack_nd = ctx->input(0);
    OP_REQUIRES_OK(ctx, CheckStack(stack_nd, f_));
    const auto [stack, n, d, stride] = AsStack<T>(stack_nd);
    tf::Tensor *grad_d, *weight_n;
    tf::Tensor memory[4];
    Vectors device;
    const int64_t scratch_bytes = std::max(aggregathor_cuda_sq_distances_to_scratch(n, d),
                                           aggregathor_cuda_sq_distances_to_scratch(1, d));
    OP_REQUIRES_OK(ctx, ctx->allocate_output(0, tf::TensorShape({d}), &grad_d));
    OP_REQUIRES_OK(ctx, ctx->allocate_output(1, tf::TensorShape({n}), &weight_n));
    OP_REQUIRES_OK(ctx, Allocate(ctx, d, &memory[0], &device.next_d));
    OP_REQUIRES_OK(ctx, Allocate(ctx, n, &memory[1], &device.weight_n));
    OP_REQUIRES_OK(ctx, Allocate(ctx, n + 2, &memory[2], &device.sq_dist_n));
    OP_REQUIRES_OK(ctx, Allocate(ctx, scratch_bytes, &memory[3], &device.scratch));
    device.v_d = grad_d->flat<T>().data();
    OP_REQUIRES_OK(ctx, StatusOf(*this, stack_nd,
                                 Iterate(stack, n, d, device, weight_n->flat<double>().data(),
                                         StreamOf(ctx))));
  }

 private:
  struct Vectors {
    T *v_d, *next_d;
    double* weight_n;
    double* sq_dist_n;  // of the rows to v; then of the last step, and of v to the origin
    char* scratch;
  };

  // Returns the first error code.
  int Iterate(const T* stack, int64_t n, int64_t d, Vectors device, double* weight_n,
              void* stream) const {
    using Cuda = CudaKernels<T>;
    std::vector<double> sq_dist_n(n + 2), weights(n);
    int code = Cuda::window_mean(stack, n, d, static_cast<int>(Window::kMedian), f_, device.v_d,
                                 nullptr, stream);
    int unit = 0;
    const auto measure = [&](int in) {
      unit = in;
      if (code == 0) {
        code = Cuda::sq_distances_to(stack, n, d, device.v_d, unit, device.sq_dist_n,
                                     device.scratch, stream);
      }
      if (code == 0) {
        code = Cuda::sq_distances_to(device.v_d, 1, d, nullptr, unit, device.sq_dist_n + n + 1,
                                     device.scratch, stream);
      }
      if (code == 0) {
        code = aggregathor_cuda_to_host(sq_dist_n.data(), device.sq_dist_n,
                                        (n + 2) * sizeof(double), stream);
      }
    };
    const double floor = nu_ * MeasureTypical<T>(measure, sq_dist_n.data(), n);
    for (int64_t iteration = 0; code == 0; ++iteration) {
      if (iteration > 0) measure(unit);
      if (code != 0) break;
      SetWeights(sq_dist_n.data(), n, floor, weights.data());
      const bool moving = sq_dist_n[n] > static_cast<double>(tol_) * tol_ * sq_dist_n[n + 1];
      if (iteration == max_iter_ || (iteration > 0 && !moving)) break;
      code =
          aggregathor_cuda_to_device(device.weight_n, weights.data(), n * sizeof(double), stream);
      if (code == 0) {
        code = Cuda::weighted_mean(stack, n, d, device.weight_n, device.next_d, stream);
      }
      if (code == 0) {
        code = Cuda::sq_distances_to(device.next_d, 1, d, device.v_d, unit, device.sq_dist_n + n,
                                     device.scratch, stream);
      }
      if (code == 0) {
        code = aggregathor_cuda_copy(device.v_d, device.next_d, d * sizeof(T), stream);
      }
    }
    std::copy(weights.begin(), weights.end(), weight_n);
    return code;
  }

  float nu_, tol_;
  int64_t f_, max_iter_;
};

#define AGGREGATHOR_REGISTER_OP(T, name, op, ...)                                               \
  REGISTER_KERNEL_BUILDER(Name(name).Device(tf::DEVICE_GPU).TypeConstraint<T>("T") __VA_ARGS__, \
                          op<T>);
#define AGGREGATHOR_REGISTER(T)                                                                \
  AGGREGATHOR_REGISTER_OP(T, "AggregathorMean", MeanGpuOp)                                     \
  AGGREGATHOR_REGISTER_OP(T, "AggregathorWindowMean", WindowMeanGpuOp, .HostMemory("share_n")) \
  AGGREGATHOR_REGISTER_OP(T, "AggregathorSqDistances", SqDistancesGpuOp)                       \
  AGGREGATHOR_REGISTER_OP(T, "AggregathorMeanOfRows", MeanOfRowsGpuOp, .HostMemory("rows"))    \
  AGGREGATHOR_REGISTER_OP(T, "AggregathorBulyanTail", BulyanTailGpuOp, .HostMemory("groups"))  \
  AGGREGATHOR_REGISTER_OP(T, "AggregathorGeometricMedian", GeometricMedianGpuOp,               \
                          .HostMemory("weight_n"))
AGGREGATHOR_REGISTER(float)
AGGREGATHOR_REGISTER(double)
#undef AGGREGATHOR_REGISTER
#undef AGGREGATHOR_REGISTER_OP

}  // namespace
}  // namespace aggregathor
