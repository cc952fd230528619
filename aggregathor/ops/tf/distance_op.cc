// Registers the distances, the selections that are made from them, and the means of the selected.
#include <algorithm>
#include <string>
#include <vector>

#include "aggregathor/ops/kernels/selection.h"
#include "aggregathor/ops/tf/op_util.h"

namespace aggregathor {
namespace {

using tf::shape_inference::InferenceContext;
using tf::shape_inference::ShapeHandle;

absl::Status VectorOfColumns(InferenceContext* c) {
  ShapeHandle stack;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 2, &stack));
  c->set_output(0, c->Vector(c->Dim(stack, 1)));
  return absl::OkStatus();
}

REGISTER_OP("AggregathorSqDistances")
    .Input("stack_nd: T")
    .Output("sq_dist_nn: double")
    .Attr("T: {float, double}")
    .Attr("scaled: bool")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle stack;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 2, &stack));
      c->set_output(0, c->Matrix(c->Dim(stack, 0), c->Dim(stack, 0)));
      return absl::OkStatus();
    });

REGISTER_OP("AggregathorKrumSelect")
    .Input("sq_dist_nn: double")
    .Output("rows: int64")
    .Attr("f: int >= 0")
    .Attr("m: int >= 1")
    .Attr("rule: {'krum', 'multi-krum'}")
    .SetShapeFn([](InferenceContext* c) {
      int64_t m;
      TF_RETURN_IF_ERROR(c->GetAttr("m", &m));
      c->set_output(0, c->Vector(m));
      return absl::OkStatus();
    })
    .Doc(R"doc(
rule: whom an error names; m = 1 is either.
)doc");

REGISTER_OP("AggregathorBulyanSelect")
    .Input("sq_dist_nn: double")
    .Output("groups: int64")
    .Attr("f: int >= 0")
    .Attr("selection: {'aggregathor', 'paper'}")
    .SetShapeFn([](InferenceContext* c) {
      c->set_output(0, c->Matrix(c->UnknownDim(), c->UnknownDim()));
      return absl::OkStatus();
    })
    .Doc(R"doc(
groups: [theta, m], row k lists the rows whose mean is candidate k, -1 where the list is shorter.
)doc");

REGISTER_OP("AggregathorBruteSelect")
    .Input("sq_dist_nn: double")
    .Output("rows: int64")
    .Attr("f: int >= 0")
    .SetShapeFn([](InferenceContext* c) {
      c->set_output(0, c->Vector(c->UnknownDim()));
      return absl::OkStatus();
    });

REGISTER_OP("AggregathorMeanOfRows")
    .Input("stack_nd: T")
    .Input("rows: int64")
    .Output("grad_d: T")
    .Attr("T: {float, double}")
    .SetShapeFn(VectorOfColumns);

REGISTER_OP("AggregathorBulyanTail")
    .Input("stack_nd: T")
    .Input("groups: int64")
    .Output("grad_d: T")
    .Attr("T: {float, double}")
    .Attr("f: int >= 0")
    .SetShapeFn(VectorOfColumns);

absl::Status TooFewComparable(const std::string& rule, int64_t n, int64_t f) {
  return absl::InvalidArgumentError(absl::StrCat(
      rule, ": more than f=", f, " of the n=", n,
      " gradients are lost, not finite or too far to compare, so too few are left to choose from. "
      "Declare a larger f or find out which workers send them."));
}

template <typename T>
class SqDistancesOp : public tf::OpKernel {
 public:
  explicit SqDistancesOp(tf::OpKernelConstruction* ctx) : OpKernel(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("scaled", &scaled_));
  }

  void Compute(tf::OpKernelContext* ctx) override {
    const tf::Tensor& stack_nd = ctx->input(0);
    OP_REQUIRES_OK(ctx, CheckStack(stack_nd, 0));
    const int64_t n = stack_nd.dim_size(0);
    tf::Tensor* sq_dist_nn;
    OP_REQUIRES_OK(ctx, ctx->allocate_output(0, tf::TensorShape({n, n}), &sq_dist_nn));
    KernelsFor<T>().sq_distances(AsStack<T>(stack_nd), scaled_, sq_dist_nn->flat<double>().data(),
                                 IntraOpPool(ctx));
  }

 private:
  bool scaled_;
};

class KrumSelectOp : public tf::OpKernel {
 public:
  explicit KrumSelectOp(tf::OpKernelConstruction* ctx) : OpKernel(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("f", &f_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("m", &m_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("rule", &rule_));
  }

  void Compute(tf::OpKernelContext* ctx) override {
    const tf::Tensor& sq_dist_nn = ctx->input(0);
    OP_REQUIRES_OK(ctx, CheckSquare(sq_dist_nn));
    const int64_t n = sq_dist_nn.dim_size(0);
    OP_REQUIRES(ctx, n >= f_ + 3 && m_ <= n,
                absl::InvalidArgumentError(absl::StrCat("krum scores need n >= f + 3 and m <= n, "
                                                        "got n=",
                                                        n, " f=", f_, " m=", m_)));
    const std::vector<int64_t> rows = KrumSelect(sq_dist_nn.flat<double>().data(), n, f_, m_);
    OP_REQUIRES(ctx, static_cast<int64_t>(rows.size()) == m_, TooFewComparable(rule_, n, f_));
    tf::Tensor* out;
    OP_REQUIRES_OK(ctx, ctx->allocate_output(0, tf::TensorShape({m_}), &out));
    std::copy(rows.begin(), rows.end(), out->flat<int64_t>().data());
  }

 private:
  int64_t f_, m_;
  std::string rule_;
};

class BulyanSelectOp : public tf::OpKernel {
 public:
  explicit BulyanSelectOp(tf::OpKernelConstruction* ctx) : OpKernel(ctx) {
    std::string variant;
    OP_REQUIRES_OK(ctx, ctx->GetAttr("f", &f_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("selection", &variant));
    paper_ = variant == "paper";
  }

  void Compute(tf::OpKernelContext* ctx) override {
    const tf::Tensor& sq_dist_nn = ctx->input(0);
    OP_REQUIRES_OK(ctx, CheckSquare(sq_dist_nn));
    const int64_t n = sq_dist_nn.dim_size(0);
    const int64_t theta = paper_ ? n - 2 * f_ : n - 2 * f_ - 2;
    const int64_t m = paper_ ? 1 : n - f_ - 2;
    OP_REQUIRES(ctx, theta >= 1,
                absl::InvalidArgumentError(absl::StrCat(
                    "bulyan needs at least one candidate, n=", n, " f=", f_, " give ", theta)));
    const double* data = sq_dist_nn.flat<double>().data();
    const auto groups = paper_ ? BulyanPaperSelect(data, n, f_) : BulyanSelect(data, n, f_);
    OP_REQUIRES(ctx, static_cast<int64_t>(groups.size()) == theta,
                TooFewComparable("bulyan", n, f_));
    tf::Tensor* out;
    OP_REQUIRES_OK(ctx, ctx->allocate_output(0, tf::TensorShape({theta, m}), &out));
    auto matrix = out->matrix<int64_t>();
    matrix.setConstant(-1);
    for (int64_t k = 0; k < theta; ++k) {
      for (size_t g = 0; g < groups[k].size(); ++g) matrix(k, g) = groups[k][g];
    }
  }

 private:
  int64_t f_;
  bool paper_;
};

class BruteSelectOp : public tf::OpKernel {
 public:
  explicit BruteSelectOp(tf::OpKernelConstruction* ctx) : OpKernel(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("f", &f_));
  }

  void Compute(tf::OpKernelContext* ctx) override {
    const tf::Tensor& sq_dist_nn = ctx->input(0);
    OP_REQUIRES_OK(ctx, CheckSquare(sq_dist_nn));
    const int64_t n = sq_dist_nn.dim_size(0);
    OP_REQUIRES(ctx, n > f_,
                absl::InvalidArgumentError(
                    absl::StrCat("brute needs more than f rows, got n=", n, " f=", f_)));
    const std::vector<int64_t> rows = MinDiameterSubset(sq_dist_nn.flat<double>().data(), n, f_);
    OP_REQUIRES(ctx, !rows.empty(), TooFewComparable("brute", n, f_));
    tf::Tensor* out;
    OP_REQUIRES_OK(ctx, ctx->allocate_output(0, tf::TensorShape({n - f_}), &out));
    std::copy(rows.begin(), rows.end(), out->flat<int64_t>().data());
  }

 private:
  int64_t f_;
};

template <typename T>
class MeanOfRowsOp : public tf::OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(tf::OpKernelContext* ctx) override {
    const tf::Tensor& stack_nd = ctx->input(0);
    const tf::Tensor& rows = ctx->input(1);
    OP_REQUIRES_OK(ctx, CheckStack(stack_nd, 0));
    OP_REQUIRES_OK(ctx, CheckRows(rows, stack_nd.dim_size(0), 0));
    tf::Tensor* grad_d;
    OP_REQUIRES_OK(ctx, ctx->allocate_output(0, tf::TensorShape({stack_nd.dim_size(1)}), &grad_d));
    KernelsFor<T>().mean_of_rows(AsStack<T>(stack_nd), rows.flat<int64_t>().data(),
                                 rows.NumElements(), grad_d->flat<T>().data(), IntraOpPool(ctx));
  }
};

template <typename T>
class BulyanTailOp : public tf::OpKernel {
 public:
  explicit BulyanTailOp(tf::OpKernelConstruction* ctx) : OpKernel(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("f", &f_));
  }

  void Compute(tf::OpKernelContext* ctx) override {
    const tf::Tensor& stack_nd = ctx->input(0);
    const tf::Tensor& groups = ctx->input(1);
    OP_REQUIRES_OK(ctx, CheckStack(stack_nd, f_));
    OP_REQUIRES_OK(ctx, CheckGroups(groups, stack_nd.dim_size(0)));
    tf::Tensor* grad_d;
    OP_REQUIRES_OK(ctx, ctx->allocate_output(0, tf::TensorShape({stack_nd.dim_size(1)}), &grad_d));
    KernelsFor<T>().bulyan_tail(AsStack<T>(stack_nd), groups.flat<int64_t>().data(),
                                groups.dim_size(0), groups.dim_size(1), f_,
                                grad_d->flat<T>().data(), IntraOpPool(ctx));
  }

 private:
  int64_t f_;
};

REGISTER_KERNEL_BUILDER(Name("AggregathorKrumSelect").Device(tf::DEVICE_CPU), KrumSelectOp);
REGISTER_KERNEL_BUILDER(Name("AggregathorBulyanSelect").Device(tf::DEVICE_CPU), BulyanSelectOp);
REGISTER_KERNEL_BUILDER(Name("AggregathorBruteSelect").Device(tf::DEVICE_CPU), BruteSelectOp);
// For a GPU they run on the host all the same, and TensorFlow copies the [n, n] distances to it.
#define AGGREGATHOR_REGISTER(op, kernel, result) \
  REGISTER_KERNEL_BUILDER(                       \
      Name(op).Device(tf::DEVICE_GPU).HostMemory("sq_dist_nn").HostMemory(result), kernel)
AGGREGATHOR_REGISTER("AggregathorKrumSelect", KrumSelectOp, "rows");
AGGREGATHOR_REGISTER("AggregathorBulyanSelect", BulyanSelectOp, "groups");
AGGREGATHOR_REGISTER("AggregathorBruteSelect", BruteSelectOp, "rows");
#undef AGGREGATHOR_REGISTER
#define AGGREGATHOR_REGISTER(T)                                                     \
  REGISTER_KERNEL_BUILDER(                                                          \
      Name("AggregathorSqDistances").Device(tf::DEVICE_CPU).TypeConstraint<T>("T"), \
      SqDistancesOp<T>);                                                            \
  REGISTER_KERNEL_BUILDER(                                                          \
      Name("AggregathorMeanOfRows").Device(tf::DEVICE_CPU).TypeConstraint<T>("T"),  \
      MeanOfRowsOp<T>);                                                             \
  REGISTER_KERNEL_BUILDER(                                                          \
      Name("AggregathorBulyanTail").Device(tf::DEVICE_CPU).TypeConstraint<T>("T"),  \
      BulyanTailOp<T>);
AGGREGATHOR_REGISTER(float)
AGGREGATHOR_REGISTER(double)
#undef AGGREGATHOR_REGISTER

}  // namespace
}  // namespace aggregathor
