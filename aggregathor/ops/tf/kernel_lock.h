// The kernel lock: kernels that refuse to write variables which only the server writes. Plain C.
#ifndef AGGREGATHOR_OPS_TF_KERNEL_LOCK_H_
#define AGGREGATHOR_OPS_TF_KERNEL_LOCK_H_

#include <stdint.h>

#include "aggregathor/ops/exchange/exchange.h"

#ifdef __cplusplus
extern "C" {
#endif

// What is put in front of the process's kernels.
typedef struct AggregathorLock {
  // Ops whose kernels must not be given a locked variable's handle or reference.
  const char* const* ops;
  int64_t num_ops;
  // Ops that write into the memory of what they read.
  const char* const* in_place_ops;
  int64_t num_in_place_ops;
  // Ops that hand the memory of what they read to functions of Python.
  const char* const* python_ops;
  int64_t num_python_ops;
  // How many kernels these ops have on the CPU, as TensorFlow lists them.
  int64_t num_kernels;
  // Who may not write, as errors say it: "rank 2".
  const char* who;
  // Nodes that have this attribute with this value may write.
  const char* attribute;
  const char* token;
  int64_t token_bytes;
  // Where TensorFlow keeps what makes a kernel, in bytes behind its definition; 0 for what this
  // was compiled for.
  int64_t factory_offset;
} AggregathorLock;

// Guards the kernels that TensorFlow makes from now on; those that are guarded already stay so.
// Returns how many registrations are guarded, or -1, and then nothing has changed and `message`
// says why.
AGGREGATHOR_EXPORT int64_t aggregathor_lock_install(const AggregathorLock* lock,
                                                    char message[AGGREGATHOR_MESSAGE_BYTES]);

// Lets the calling thread write, or ends that; it may be called within itself. Returns 0 for a
// wrong token, which changes nothing.
AGGREGATHOR_EXPORT int aggregathor_lock_let_thread_write(const char* token, int64_t token_bytes,
                                                         int may);

// Forgets the locked variables: all may be written.
AGGREGATHOR_EXPORT void aggregathor_lock_clear(void);

// Writes a line "op count" for each op that was refused, up to `size` bytes with a 0 at the end.
// Returns how many bytes there are to write.
AGGREGATHOR_EXPORT int64_t aggregathor_lock_refused(char* lines, int64_t size);

#ifdef __cplusplus
}
#endif

#endif  // AGGREGATHOR_OPS_TF_KERNEL_LOCK_H_
