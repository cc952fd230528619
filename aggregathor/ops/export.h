// What other libraries and Python call by name: with C's linkage, and visible.
#ifndef AGGREGATHOR_OPS_EXPORT_H_
#define AGGREGATHOR_OPS_EXPORT_H_

#ifdef __cplusplus
#define AGGREGATHOR_EXPORT extern "C" __attribute__((visibility("default")))
#else
#define AGGREGATHOR_EXPORT __attribute__((visibility("default")))
#endif

#endif  // AGGREGATHOR_OPS_EXPORT_H_
