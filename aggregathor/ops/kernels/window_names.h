// What windows are called, by ops and by arrays.
#ifndef AGGREGATHOR_OPS_KERNELS_WINDOW_NAMES_H_
#define AGGREGATHOR_OPS_KERNELS_WINDOW_NAMES_H_

#include <cstring>

#include "aggregathor/ops/kernels/kernels.h"

namespace aggregathor {

// False if there is none of that name.
inline bool WindowNamed(const char* name, Window* window) {
  static constexpr struct {
    const char* name;
    Window window;
  } kWindows[] = {
      {"median", Window::kMedian},
      {"median-upper", Window::kMedianUpper},
      {"median-lower", Window::kMedianLower},
      {"trimmed-mean", Window::kTrimmedMean},
      {"meamed", Window::kMeamed},
      {"phocas", Window::kPhocas},
  };
  for (const auto& known : kWindows) {
    if (std::strcmp(name, known.name) != 0) continue;
    *window = known.window;
    return true;
  }
  return false;
}

}  // namespace aggregathor

#endif  // AGGREGATHOR_OPS_KERNELS_WINDOW_NAMES_H_
