// What includes TensorFlow's headers, as one file: they take 6 of the 7 seconds of each.
#include "aggregathor/ops/exchange/exchange_op.cc"
#include "aggregathor/ops/tf/coordinate_op.cc"
#include "aggregathor/ops/tf/digest_op.cc"
#include "aggregathor/ops/tf/distance_op.cc"
#include "aggregathor/ops/tf/geometric_median_op.cc"
#include "aggregathor/ops/tf/kernel_lock_op.cc"
