// Ops that record digests of a list of tensors, and compare later tensors with them.
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include "aggregathor/ops/export.h"
#include "aggregathor/ops/kernels/digest.h"
#include "aggregathor/ops/tf/op_util.h"

namespace aggregathor {
namespace {

// Called by a thread of TensorFlow with the places of the tensors whose digest changed.
using OnChange = void (*)(const int64_t* places, int64_t count);

// Digests of tensors, each by its place; of each place the last one.
class DigestStore {
 public:
  DigestStore(int64_t every, OnChange on_change)
      : key_(RandomDigestKey()), every_(every), on_change_(on_change) {}

  // Records tensors in every `every`-th call for the first of these places; else forgets them.
  void Record(tf::OpKernelContext* ctx, const std::vector<int64_t>& places) {
    const bool is_due = [&] {
      const std::lock_guard<std::mutex> lock(mutex_);
      return ++calls_[places[0]] % every_ == 0;
    }();
    std::vector<uint64_t> digests(places.size());
    if (is_due) {
      for (size_t i = 0; i < places.size(); ++i) digests[i] = Of(ctx, static_cast<int>(i));
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    for (size_t i = 0; i < places.size(); ++i) {
      if (is_due) {
        digests_[places[i]] = digests[i];
      } else {
        digests_.erase(places[i]);
      }
    }
  }

  // Compares the tensors with the digests of their places, where there are any, and reports.
  void Compare(tf::OpKernelContext* ctx, const std::vector<int64_t>& places) {
    const std::unordered_map<int64_t, uint64_t> recorded = [&] {
      const std::lock_guard<std::mutex> lock(mutex_);
      return digests_;
    }();
    std::vector<int64_t> changed;
    for (int i = 0; i < ctx->num_inputs(); ++i) {
      const auto before = recorded.find(places[i]);
      if (before != recorded.end() && before->second != Of(ctx, i)) changed.push_back(places[i]);
    }
    const std::lock_guard<std::mutex> lock(reporting_);
    if (!changed.empty() && on_change_ != nullptr) {
      on_change_(changed.data(), static_cast<int64_t>(changed.size()));
    }
  }

  void Forget() {
    const std::lock_guard<std::mutex> lock(mutex_);
    digests_.clear();
  }

  // Nothing is reported any more once this has returned.
  void Close() {
    const std::lock_guard<std::mutex> lock(reporting_);
    on_change_ = nullptr;
  }

 private:
  uint64_t Of(tf::OpKernelContext* ctx, int input) const {
    const absl::string_view bytes = ctx->input(input).tensor_data();
    return Digest(key_, bytes.data(), static_cast<int64_t>(bytes.size()), IntraOpPool(ctx));
  }

  const DigestKey key_;
  const int64_t every_;
  std::mutex reporting_;
  OnChange on_change_;  // under reporting_
  std::mutex mutex_;
  std::unordered_map<int64_t, int64_t> calls_;     // under mutex_
  std::unordered_map<int64_t, uint64_t> digests_;  // under mutex_
};

class DigestStores {
 public:
  static DigestStores& Get() {
    static DigestStores* table =
        new DigestStores;  // never freed: a step may run while the process ends
    return *table;
  }
  int64_t Add(std::shared_ptr<DigestStore> store) {
    const std::lock_guard<std::mutex> lock(mutex_);
    stores_[++last_] = std::move(store);
    return last_;
  }
  std::shared_ptr<DigestStore> Find(int64_t handle) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = stores_.find(handle);
    return found == stores_.end() ? nullptr : found->second;
  }
  void Remove(int64_t handle) {
    const std::lock_guard<std::mutex> lock(mutex_);
    stores_.erase(handle);
  }

 private:
  std::mutex mutex_;
  int64_t last_ = 0;
  std::unordered_map<int64_t, std::shared_ptr<DigestStore>> stores_;
};

REGISTER_OP("AggregathorRecordDigests")
    .Input("values: T")
    .Attr("T: list(type) >= 1")
    .Attr("places: list(int) >= 1")
    .Attr("handle: int")
    .SetIsStateful()
    .SetShapeFn([](tf::shape_inference::InferenceContext*) { return absl::OkStatus(); })
    .Doc(R"doc(
Records a keyed digest of each value.

values: any number, of types that are plain bytes.
places: a number for each of them, by which it is known.
handle: what aggregathor_digests_open returned in this process.
)doc");

REGISTER_OP("AggregathorCompareDigests")
    .Input("values: T")
    .Attr("T: list(type) >= 1")
    .Attr("places: list(int) >= 1")
    .Attr("handle: int")
    .SetIsStateful()
    .SetShapeFn([](tf::shape_inference::InferenceContext*) { return absl::OkStatus(); })
    .Doc(R"doc(
Calls the function of aggregathor_digests_open with the indices of the tensors whose digest changed.

values: any number, of types that are plain bytes.
places: for each of them, the place of the digest that it should have.
handle: what aggregathor_digests_open returned in this process.
)doc");

// Passes its inputs to `kUse`.
template <void (DigestStore::*kUse)(tf::OpKernelContext*, const std::vector<int64_t>&)>
class DigestStoreOp : public tf::OpKernel {
 public:
  explicit DigestStoreOp(tf::OpKernelConstruction* ctx) : OpKernel(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("handle", &handle_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("places", &places_));
    OP_REQUIRES(ctx, static_cast<int>(places_.size()) == ctx->num_inputs(),
                absl::InvalidArgumentError("places must be as many as values"));
    for (int i = 0; i < ctx->num_inputs(); ++i) {
      OP_REQUIRES(ctx, tf::DataTypeCanUseMemcpy(ctx->input_type(i)),
                  absl::InvalidArgumentError(absl::StrCat("there is no digest of ",
                                                          tf::DataTypeString(ctx->input_type(i)))));
    }
  }

  void Compute(tf::OpKernelContext* ctx) override {
    const std::shared_ptr<DigestStore> store = DigestStores::Get().Find(handle_);
    if (store != nullptr) (store.get()->*kUse)(ctx, places_);  // else the training has ended
  }

 private:
  int64_t handle_;
  std::vector<int64_t> places_;
};

REGISTER_KERNEL_BUILDER(Name("AggregathorRecordDigests").Device(tf::DEVICE_CPU),
                        DigestStoreOp<&DigestStore::Record>);
REGISTER_KERNEL_BUILDER(Name("AggregathorCompareDigests").Device(tf::DEVICE_CPU),
                        DigestStoreOp<&DigestStore::Compare>);

}  // namespace

// Opens a store that records in every `every`-th AggregathorRecordDigests; returns its handle.
extern "C" AGGREGATHOR_EXPORT int64_t aggregathor_digests_open(int64_t every, OnChange on_change) {
  return DigestStores::Get().Add(std::make_shared<DigestStore>(every, on_change));
}

// Forgets all digests: the variables are about to be written by somebody who may write them.
extern "C" AGGREGATHOR_EXPORT void aggregathor_digests_forget(int64_t handle) {
  const std::shared_ptr<DigestStore> store = DigestStores::Get().Find(handle);
  if (store != nullptr) store->Forget();
}

// Closes the store: ops that come later do nothing, and `on_change` is called no more.
extern "C" AGGREGATHOR_EXPORT void aggregathor_digests_close(int64_t handle) {
  const std::shared_ptr<DigestStore> store = DigestStores::Get().Find(handle);
  if (store == nullptr) return;
  DigestStores::Get().Remove(handle);
  store->Close();
}

// The digest of bytes with a given key, for tests.
extern "C" AGGREGATHOR_EXPORT uint64_t aggregathor_digest(const DigestKey* key, const void* bytes,
                                                          int64_t size) {
  const auto alone = [](void*, int64_t total, int64_t, Parallel::Body body, void* arg) {
    body(arg, 0, total);
  };
  return Digest(*key, bytes, size, {alone, nullptr});
}

}  // namespace aggregathor
