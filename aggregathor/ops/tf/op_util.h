// What the `*_op.cc` files share. They know TensorFlow and no maths.
#ifndef AGGREGATHOR_OPS_TF_OP_UTIL_H_
#define AGGREGATHOR_OPS_TF_OP_UTIL_H_

#include <string>

#include "aggregathor/ops/kernels/kernels.h"
#include "aggregathor/ops/kernels/window_names.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace aggregathor {

namespace tf = tensorflow;

// TensorFlow's intra-op pool, as the kernels take it.
inline Parallel IntraOpPool(tf::OpKernelContext* ctx) {
  return {[](void* pool, int64_t total, int64_t cycles_per_unit, Parallel::Body body, void* arg) {
            static_cast<tf::thread::ThreadPool*>(pool)->ParallelFor(
                total, tf::thread::ThreadPool::SchedulingParams::Adaptive(cycles_per_unit),
                [=](int64_t begin, int64_t end) { body(arg, begin, end); });
          },
          ctx->device()->tensorflow_cpu_worker_threads()->workers};
}

template <typename T>
Stack<T> AsStack(const tf::Tensor& stack_nd) {
  return {stack_nd.flat<T>().data(), stack_nd.dim_size(0), stack_nd.dim_size(1)};
}

inline absl::Status CheckStack(const tf::Tensor& stack_nd, int64_t f) {
  if (stack_nd.dims() != 2 || stack_nd.dim_size(0) < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "gradients must be stacked as [n, d] with n >= 1, got ", stack_nd.shape().DebugString()));
  }
  if (f < 0) return absl::InvalidArgumentError(absl::StrCat("f must not be negative, got ", f));
  return absl::OkStatus();
}

inline absl::Status CheckSquare(const tf::Tensor& sq_dist_nn) {
  if (sq_dist_nn.dims() == 2 && sq_dist_nn.dim_size(0) == sq_dist_nn.dim_size(1)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("squared distances must be [n, n], got ", sq_dist_nn.shape().DebugString()));
}

// Row numbers index memory: none may be outside [0, n).
inline absl::Status CheckRows(const tf::Tensor& rows, int64_t n, int64_t least) {
  const auto flat = rows.flat<int64_t>();
  for (int64_t i = 0; i < flat.size(); ++i) {
    if (flat(i) < least || flat(i) >= n) {
      return absl::InvalidArgumentError(
          absl::StrCat("row ", flat(i), " is not one of the ", n, " rows of the stack"));
    }
  }
  return absl::OkStatus();
}

// Bulyan's groups of rows, -1 ends a shorter one.
inline absl::Status CheckGroups(const tf::Tensor& groups, int64_t n) {
  TF_RETURN_IF_ERROR(CheckRows(groups, n, -1));
  if (groups.dims() == 2 && groups.dim_size(0) >= 1) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("groups must be [theta, m], got ", groups.shape().DebugString()));
}

// The attribute "window" of an op.
inline absl::Status GetWindow(tf::OpKernelConstruction* ctx, Window* window) {
  std::string name;
  TF_RETURN_IF_ERROR(ctx->GetAttr("window", &name));
  WindowNamed(name.c_str(), window);  // the op's attribute allows no others
  return absl::OkStatus();
}

}  // namespace aggregathor

#endif  // AGGREGATHOR_OPS_TF_OP_UTIL_H_
