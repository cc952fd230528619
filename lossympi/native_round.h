// A round of a link as C calls it: what an op of a TensorFlow graph reaches without Python. Plain
// C.
#ifndef LOSSYMPI_NATIVE_ROUND_H_
#define LOSSYMPI_NATIVE_ROUND_H_

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { LOSSYMPI_MESSAGE_BYTES = 1024 };

// One end of a link. All functions are called by one thread, one call at a time, with `context`; a
// function may be NULL, where that has the meaning below.
typedef struct LossympiNativeRound {
  void* context;
  int64_t d;  // floats in a gradient and in the parameters

  // Makes a round: takes [d] floats, gives [d] floats, or both. `sent` is NULL where nothing is to
  // be sent, and else stays as it is until the next call with one. `received` is NULL where nothing
  // is to be received; else the address stored there is that of [d] floats which stay as they are
  // until the next call. Returns 0, or an absl::StatusCode and writes the reason, which ends with a
  // 0. NULL: this end has no rounds, only `outgoing`.
  int (*run)(void* context, const float* sent, const float** received,
             char message[LOSSYMPI_MESSAGE_BYTES]);

  // Floats [first, first + count) of what will be `sent` in the next `run` are written, in a step
  // of that number: they may leave at once. Where another step has written before, that one has
  // ended without a `run`. Returns as `run`. NULL: `sent` leaves as a whole.
  int (*send_part)(void* context, const float* sent, int64_t step, int64_t first, int64_t count,
                   char message[LOSSYMPI_MESSAGE_BYTES]);

  // Where the [d] floats may be written that leave next; they are not copied then. NULL, or the
  // function is: for anywhere.
  float* (*outgoing)(void* context);

  // Whether what was received last is still as it was: 0 if not, and then `run` without `sent`
  // receives it anew. NULL: it always is.
  int (*is_intact)(void* context);
} LossympiNativeRound;

#ifdef __cplusplus
}
#endif

#endif  // LOSSYMPI_NATIVE_ROUND_H_
