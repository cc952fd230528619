// The kernels of one instruction set, by name.
#include "aggregathor/ops/kernels/isa.h"

namespace aggregathor::AGGREGATHOR_ISA {

template <typename T>
const Kernels<T>& Table() {
  static constexpr Kernels<T> kTable{&Mean<T>,       &WindowMean<T>, &SqDistances<T>,
                                     &MeanOfRows<T>, &BulyanTail<T>, &WeiszfeldStep<T>};
  return kTable;
}

template const Kernels<float>& Table<float>();
template const Kernels<double>& Table<double>();

}  // namespace aggregathor::AGGREGATHOR_ISA
