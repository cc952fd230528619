// Registers the coordinate-wise rules.
#include "aggregathor/ops/tf/op_util.h"

namespace aggregathor {
namespace {

using tf::shape_inference::InferenceContext;
using tf::shape_inference::ShapeHandle;

REGISTER_OP("AggregathorMean")
    .Input("stack_nd: T")
    .Output("grad_d: T")
    .Attr("T: {float, double}")
    .Attr("skip_missing: bool")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle stack;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 2, &stack));
      c->set_output(0, c->Vector(c->Dim(stack, 1)));
      return absl::OkStatus();
    });

REGISTER_OP("AggregathorWindowMean")
    .Input("stack_nd: T")
    .Output("grad_d: T")
    .Output("share_n: double")
    .Attr("T: {float, double}")
    .Attr("window: {'median', 'median-upper', 'median-lower', 'trimmed-mean', 'meamed', 'phocas'}")
    .Attr("f: int >= 0")
    .Attr("with_share: bool")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle stack;
      bool with_share;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 2, &stack));
      TF_RETURN_IF_ERROR(c->GetAttr("with_share", &with_share));
      c->set_output(0, c->Vector(c->Dim(stack, 1)));
      c->set_output(1, with_share ? c->Vector(c->Dim(stack, 0)) : c->Vector(0));
      return absl::OkStatus();
    })
    .Doc(R"doc(
grad_d: mean of the window of each coordinate's sorted present values.
share_n: of each row, the share of coordinates whose value lies in the window; empty unless with_share.
)doc");

template <typename T>
class MeanOp : public tf::OpKernel {
 public:
  explicit MeanOp(tf::OpKernelConstruction* ctx) : OpKernel(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("skip_missing", &skip_missing_));
  }

  void Compute(tf::OpKernelContext* ctx) override {
    const tf::Tensor& stack_nd = ctx->input(0);
    OP_REQUIRES_OK(ctx, CheckStack(stack_nd, 0));
    tf::Tensor* grad_d;
    OP_REQUIRES_OK(ctx, ctx->allocate_output(0, tf::TensorShape({stack_nd.dim_size(1)}), &grad_d));
    KernelsFor<T>().mean(AsStack<T>(stack_nd), skip_missing_, grad_d->flat<T>().data(),
                         IntraOpPool(ctx));
  }

 private:
  bool skip_missing_;
};

template <typename T>
class WindowMeanOp : public tf::OpKernel {
 public:
  explicit WindowMeanOp(tf::OpKernelConstruction* ctx) : OpKernel(ctx) {
    OP_REQUIRES_OK(ctx, GetWindow(ctx, &window_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("f", &f_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("with_share", &with_share_));
  }

  void Compute(tf::OpKernelContext* ctx) override {
    const tf::Tensor& stack_nd = ctx->input(0);
    OP_REQUIRES_OK(ctx, CheckStack(stack_nd, f_));
    const int64_t n = stack_nd.dim_size(0);
    const int64_t d = stack_nd.dim_size(1);
    tf::Tensor *grad_d, *share_n;
    tf::Tensor kept_n;
    OP_REQUIRES_OK(ctx, ctx->allocate_output(0, tf::TensorShape({d}), &grad_d));
    OP_REQUIRES_OK(ctx, ctx->allocate_output(1, tf::TensorShape({with_share_ ? n : 0}), &share_n));
    OP_REQUIRES_OK(ctx, ctx->allocate_temp(tf::DT_INT64, tf::TensorShape({n}), &kept_n));
    int64_t* kept = with_share_ ? reinterpret_cast<int64_t*>(kept_n.data()) : nullptr;
    KernelsFor<T>().window_mean(AsStack<T>(stack_nd), window_, f_, grad_d->flat<T>().data(), kept,
                                IntraOpPool(ctx));
    if (!with_share_) return;
    for (int64_t i = 0; i < n; ++i) {
      share_n->flat<double>()(i) = d == 0 ? 0.0 : static_cast<double>(kept[i]) / d;
    }
  }

 private:
  Window window_ = Window::kMedian;
  int64_t f_;
  bool with_share_;
};

#define AGGREGATHOR_REGISTER(T)                                                                  \
  REGISTER_KERNEL_BUILDER(Name("AggregathorMean").Device(tf::DEVICE_CPU).TypeConstraint<T>("T"), \
                          MeanOp<T>);                                                            \
  REGISTER_KERNEL_BUILDER(                                                                       \
      Name("AggregathorWindowMean").Device(tf::DEVICE_CPU).TypeConstraint<T>("T"),               \
      WindowMeanOp<T>);
AGGREGATHOR_REGISTER(float)
AGGREGATHOR_REGISTER(double)
#undef AGGREGATHOR_REGISTER

}  // namespace
}  // namespace aggregathor
