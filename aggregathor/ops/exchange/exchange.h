// What stands behind an AggregathorExchange op: one function, and a number that names it. Plain C.
#ifndef AGGREGATHOR_OPS_EXCHANGE_EXCHANGE_H_
#define AGGREGATHOR_OPS_EXCHANGE_EXCHANGE_H_

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { AGGREGATHOR_MESSAGE_BYTES = 1024 };

// Takes [d] floats, gives [d] floats, or both. All are called by the channel's own thread, one call
// at a time, with `context`.
typedef struct AggregathorTransport {
  // `sent` is NULL where an op has no inputs, and else stays as it is until the next call with one.
  // `received` is NULL where it has no outputs; else what is stored there must point at [d] floats
  // that stay as they are until the next call. Returns 0, or an absl::StatusCode and writes the
  // reason, which ends with a 0.
  int (*exchange)(void* context, const float* sent, const float** received,
                  char message[AGGREGATHOR_MESSAGE_BYTES]);
  void* context;
  int64_t d;
  // Where the [d] floats of the next call are written, which `sent` is then; NULL, or the function
  // is, for anywhere.
  float* (*outgoing)(void* context);
  // Whether what was received last is still as it was: 0 if not, and then `exchange` is called
  // without `sent`, to give it anew. NULL: it always is.
  int (*is_intact)(void* context);
  // Is told that floats [first, first + count) of what will be `sent` in the next `exchange` are
  // written, by an op AggregathorFill in a step of TensorFlow's: they may leave at once. Where
  // another step has filled it, that one has ended without an exchange. Returns as `exchange`.
  // NULL: `sent` leaves as a whole.
  int (*fill)(void* context, const float* sent, int64_t step, int64_t first, int64_t count,
              char message[AGGREGATHOR_MESSAGE_BYTES]);
} AggregathorTransport;

#define AGGREGATHOR_EXPORT __attribute__((visibility("default")))

// Starts a channel and its thread; returns the handle that ops name it by, never one of before.
AGGREGATHOR_EXPORT int64_t aggregathor_channel_open(const AggregathorTransport* transport);

// Ends a channel: ops that wait for it, or come later, fail. Waits for the call that runs, for
// `wait_s` seconds at most. Returns whether the transport is called no more: its memory may go.
AGGREGATHOR_EXPORT int aggregathor_channel_close(int64_t handle, double wait_s);

#ifdef __cplusplus
}
#endif

#endif  // AGGREGATHOR_OPS_EXCHANGE_EXCHANGE_H_
