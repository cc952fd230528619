// The channel behind an AggregathorExchange op, and the handle that names it. Plain C.
#ifndef AGGREGATHOR_OPS_EXCHANGE_EXCHANGE_H_
#define AGGREGATHOR_OPS_EXCHANGE_EXCHANGE_H_

#include <stdint.h>

#include "aggregathor/ops/export.h"
#include "lossympi/native_round.h"

#ifdef __cplusplus
extern "C" {
#endif

// What runs a round where no native one does; see `run` in native_round.h.
typedef int (*AggregathorFunction)(const float* sent, const float** received,
                                   char message[LOSSYMPI_MESSAGE_BYTES]);

// Starts a channel of [d] numbers and its thread; returns the handle that ops name it by, never one
// of before. The numbers are float32, or float64 where `are_doubles`: each then lies in the place
// of two of the floats that `native` and `function` have. 0 where `native` is of another number of
// floats. `native` may be NULL, and is copied; `function` is called where it has no `run`.
AGGREGATHOR_EXPORT int64_t aggregathor_channel_open(const LossympiNativeRound* native,
                                                    AggregathorFunction function, int64_t d,
                                                    int are_doubles);

// Whether parts of what is sent may leave before the rest is there, by ops AggregathorFill.
AGGREGATHOR_EXPORT int aggregathor_channel_sends_parts(int64_t handle);

// Ends a channel: ops that wait for it, or come later, fail. Waits for the call that runs, for
// `wait_s` seconds at most. Returns whether nothing is called any more: its memory may go.
AGGREGATHOR_EXPORT int aggregathor_channel_close(int64_t handle, double wait_s);

#ifdef __cplusplus
}
#endif

#endif  // AGGREGATHOR_OPS_EXCHANGE_EXCHANGE_H_
