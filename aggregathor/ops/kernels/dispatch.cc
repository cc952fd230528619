// Picks the kernels of one instruction set when the library is loaded.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "aggregathor/ops/kernels/kernels.h"

// setup.py lists the instruction sets that it compiled, from the plainest to the best:
// FOR_EACH_ISA(X) is X(baseline) X(avx2) X(avx512), or less, such as X(avx512) alone.
#ifndef AGGREGATHOR_FOR_EACH_ISA
#error "compile this file with -DAGGREGATHOR_FOR_EACH_ISA(X)=..."
#endif

namespace aggregathor {

#define AGGREGATHOR_DECLARE(ISA) \
  namespace ISA {                \
  template <typename T>          \
  const Kernels<T>& Table();     \
  }
AGGREGATHOR_FOR_EACH_ISA(AGGREGATHOR_DECLARE)
#undef AGGREGATHOR_DECLARE

namespace {

struct InstructionSetTable {
  const char* name;
  bool (*supported)();
  const Kernels<float>& (*of_float)();
  const Kernels<double>& (*of_double)();
};

namespace supports {
[[maybe_unused]] bool baseline() { return true; }
#if defined(__x86_64__)
[[maybe_unused]] bool avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
[[maybe_unused]] bool avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif
}  // namespace supports

#define AGGREGATHOR_TABLE(ISA) \
  InstructionSetTable{#ISA, &supports::ISA, &ISA::Table<float>, &ISA::Table<double>},
const InstructionSetTable kTables[] = {AGGREGATHOR_FOR_EACH_ISA(AGGREGATHOR_TABLE)};

// The named one where AGGREGATHOR_KERNELS names one that this processor has (the Python loader
// has checked the name and says what is wrong with it), else the best; nullptr where this processor
// has none of them.
const InstructionSetTable* Choose() {
  const InstructionSetTable* chosen = nullptr;
  const char* wanted = std::getenv("AGGREGATHOR_KERNELS");
  for (const InstructionSetTable& table : kTables) {
    if (!table.supported()) continue;
    chosen = &table;
    if (wanted != nullptr && std::strcmp(wanted, table.name) == 0) break;
  }
  return chosen;
}

const InstructionSetTable* ChosenOrNull() {
  static const InstructionSetTable* table = Choose();
  return table;
}

const InstructionSetTable& Chosen() {
  const InstructionSetTable* table = ChosenOrNull();
  if (table == nullptr) {  // the Python loader does not let it come to this
    std::fputs("aggregathor: the kernels were built for other processors than this one\n", stderr);
    std::abort();
  }
  return *table;
}

}  // namespace

template <>
const Kernels<float>& KernelsFor<float>() {
  return Chosen().of_float();
}
template <>
const Kernels<double>& KernelsFor<double>() {
  return Chosen().of_double();
}

const char* InstructionSet() {
  const InstructionSetTable* table = ChosenOrNull();
  return table == nullptr ? "" : table->name;
}

}  // namespace aggregathor

// For `aggregathor doctor`, through ctypes.
extern "C" __attribute__((visibility("default"))) const char* aggregathor_instruction_set() {
  return aggregathor::InstructionSet();
}
