// The kernel lock: kernels that refuse to write variables which only the server writes. Plain C.
#ifndef AGGREGATHOR_OPS_TF_KERNEL_LOCK_H_
#define AGGREGATHOR_OPS_TF_KERNEL_LOCK_H_

#include <stdint.h>

#include "aggregathor/ops/export.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { AGGREGATHOR_LOCK_MESSAGE_BYTES = 1024 };

// What the process's kernels are to check.
typedef struct AggregathorLock {
  // Ops whose kernels must not be given a locked variable's handle or reference.
  const char* const* ops;
  int64_t num_ops;
  // Ops that write into the memory of their inputs.
  const char* const* in_place_ops;
  int64_t num_in_place_ops;
  // Ops that pass the memory of their inputs to functions of Python.
  const char* const* python_ops;
  int64_t num_python_ops;
  // How many kernels these ops have on the CPU, as TensorFlow lists them.
  int64_t num_kernels;
  // Who may not write, for errors: "rank 2".
  const char* who;
  // Nodes that have this attribute with this value may write.
  const char* attribute;
  const char* token;
  int64_t token_bytes;
  // Offset in bytes of a kernel's factory from its definition; 0 for the one that this was compiled
  // for.
  int64_t factory_offset;
} AggregathorLock;

// Has the kernels checked that TensorFlow makes from now on; those that are checked stay so.
// Returns how many registrations are checked; or -1, and then nothing has changed and `message`
// says why.
AGGREGATHOR_EXPORT int64_t aggregathor_lock_install(const AggregathorLock* lock,
                                                    char message[AGGREGATHOR_LOCK_MESSAGE_BYTES]);

// Allows the calling thread to write, or ends that; calls may be nested. Returns 0 for a wrong
// token, which changes nothing.
AGGREGATHOR_EXPORT int aggregathor_lock_let_thread_write(const char* token, int64_t token_bytes,
                                                         int may);

// Unlocks all variables.
AGGREGATHOR_EXPORT void aggregathor_lock_clear(void);

// Writes a line "op count" for each op that was refused, up to `size` bytes with a 0 at the end.
// Returns the number of bytes that all lines take.
AGGREGATHOR_EXPORT int64_t aggregathor_lock_refused(char* lines, int64_t size);

#ifdef __cplusplus
}
#endif

#endif  // AGGREGATHOR_OPS_TF_KERNEL_LOCK_H_
