// Registers the geometric median: Weiszfeld's iteration over the distance and mean kernels.
#include <vector>

#include "aggregathor/ops/op_util.h"
#include "aggregathor/ops/weiszfeld_weights.h"

namespace aggregathor {
namespace {

using tf::shape_inference::InferenceContext;
using tf::shape_inference::ShapeHandle;

REGISTER_OP("AggregathorGeometricMedian")
    .Input("stack_nd: T")
    .Output("grad_d: T")
    .Output("weight_n: double")
    .Attr("T: {float, double}")
    .Attr("f: int >= 0")
    .Attr("nu: float")
    .Attr("tol: float")
    .Attr("max_iter: int >= 0")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle stack;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 2, &stack));
      c->set_output(0, c->Vector(c->Dim(stack, 1)));
      c->set_output(1, c->Vector(c->Dim(stack, 0)));
      return absl::OkStatus();
    })
    .Doc(R"doc(
weight_n: the weights of the last mean, 1 for the row nearest to the result.
)doc");

template <typename T>
class GeometricMedianOp : public tf::OpKernel {
 public:
  explicit GeometricMedianOp(tf::OpKernelConstruction* ctx) : OpKernel(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("f", &f_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("nu", &nu_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("tol", &tol_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("max_iter", &max_iter_));
  }

  void Compute(tf::OpKernelContext* ctx) override {
    const tf::Tensor& stack_nd = ctx->input(0);
    OP_REQUIRES_OK(ctx, CheckStack(stack_nd, f_));
    const Stack<T> stack = AsStack<T>(stack_nd);
    const Parallel pool = IntraOpPool(ctx);
    const Kernels<T>& kernels = KernelsFor<T>();

    tf::Tensor *grad_d, *weight_n;
    OP_REQUIRES_OK(ctx, ctx->allocate_output(0, tf::TensorShape({stack.d}), &grad_d));
    OP_REQUIRES_OK(ctx, ctx->allocate_output(1, tf::TensorShape({stack.n}), &weight_n));
    T* v_d = grad_d->flat<T>().data();
    double* weights = weight_n->flat<double>().data();
    Step step;

    kernels.window_mean(stack, Window::kMedian, f_, v_d, nullptr, pool);
    std::vector<double> sq_dist_n(stack.n);
    kernels.weiszfeld_step(stack, nullptr, v_d, sq_dist_n.data(), &step, pool);
    SetWeights(sq_dist_n.data(), stack.n, nu_, weights);
    for (int64_t iteration = 0; iteration < max_iter_; ++iteration) {
      kernels.weiszfeld_step(stack, weights, v_d, sq_dist_n.data(), &step, pool);
      SetWeights(sq_dist_n.data(), stack.n, nu_, weights);
      if (!(step.sq_length > static_cast<double>(tol_) * tol_ * step.sq_norm)) break;
    }
  }

 private:
  float nu_, tol_;
  int64_t f_, max_iter_;
};

#define AGGREGATHOR_REGISTER(T)                                                         \
  REGISTER_KERNEL_BUILDER(                                                              \
      Name("AggregathorGeometricMedian").Device(tf::DEVICE_CPU).TypeConstraint<T>("T"), \
      GeometricMedianOp<T>);
AGGREGATHOR_REGISTER(float)
AGGREGATHOR_REGISTER(double)
#undef AGGREGATHOR_REGISTER

}  // namespace
}  // namespace aggregathor
