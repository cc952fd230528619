// The kernels of one instruction set, by name.
#include "aggregathor/ops/kernels/isa.h"

namespace aggregathor::AGGREGATHOR_ISA {

namespace {

// A kernel, in a mode of its own for what it does outside of For too.
template <auto kKernel>
struct InIeeeMode;
template <typename... Args, void (*kKernel)(Args...)>
struct InIeeeMode<kKernel> {
  static void Call(Args... args) {
    const IeeeMode mode;
    kKernel(args...);
  }
};

}  // namespace

template <typename T>
const Kernels<T>& Table() {
  static constexpr Kernels<T> kTable{
      &InIeeeMode<&Mean<T>>::Call,        &InIeeeMode<&WindowMean<T>>::Call,
      &InIeeeMode<&SqDistances<T>>::Call, &InIeeeMode<&MeanOfRows<T>>::Call,
      &InIeeeMode<&BulyanTail<T>>::Call,  &InIeeeMode<&WeiszfeldStep<T>>::Call,
      &InIeeeMode<&Project<T>>::Call,     &InIeeeMode<&WeightedSum<T>>::Call,
      &InIeeeMode<&Products<T>>::Call,    &InIeeeMode<&SqDistance<T>>::Call,
      &InIeeeMode<&MoveMean<T>>::Call,    &InIeeeMode<&Scale<T>>::Call,
  };
  return kTable;
}

template const Kernels<float>& Table<float>();
template const Kernels<double>& Table<double>();

}  // namespace aggregathor::AGGREGATHOR_ISA
