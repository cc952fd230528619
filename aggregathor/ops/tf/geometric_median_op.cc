// Registers the geometric median.
#include "aggregathor/ops/kernels/geometric_median.h"
#include "aggregathor/ops/tf/op_util.h"

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
    tf::Tensor *grad_d, *weight_n;
    OP_REQUIRES_OK(ctx, ctx->allocate_output(0, tf::TensorShape({stack.d}), &grad_d));
    OP_REQUIRES_OK(ctx, ctx->allocate_output(1, tf::TensorShape({stack.n}), &weight_n));
    GeometricMedian(stack, f_, nu_, tol_, max_iter_, grad_d->flat<T>().data(),
                    weight_n->flat<double>().data(), IntraOpPool(ctx));
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
