// An op of somebody else's that writes a variable, in a library that is loaded later.
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/resource_mgr.h"
#include "tensorflow/core/framework/resource_var.h"
#include "tensorflow/core/framework/shape_inference.h"

REGISTER_OP("Latecomer").Input("handle: resource").SetIsStateful().SetShapeFn([](auto*) {
  return absl::OkStatus();
});

class LatecomerOp : public tensorflow::OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(tensorflow::OpKernelContext* ctx) override {
    tensorflow::core::RefCountPtr<tensorflow::Var> variable;
    OP_REQUIRES_OK(ctx,
                   tensorflow::LookupResource(ctx, tensorflow::HandleFromInput(ctx, 0), &variable));
    variable->tensor()->flat<float>().setConstant(7.0f);
  }
};

REGISTER_KERNEL_BUILDER(Name("Latecomer").Device(tensorflow::DEVICE_CPU), LatecomerOp);
