// The ops that note what a list of tensors is, and see whether it still is so.
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include "aggregathor/ops/kernels/digest.h"
#include "aggregathor/ops/tf/op_util.h"

#define AGGREGATHOR_EXPORT extern "C" __attribute__((visibility("default")))

namespace aggregathor {
namespace {

// Is told which of the tensors, by their places, are not what was noted; by a thread of TensorFlow.
using OnChange = void (*)(const int64_t* places, int64_t count);

// What is noted of tensors, each of which has its place. What is noted of one is of the last time.
class Notes {
 public:
  Notes(int64_t every, OnChange on_change)
      : key_(RandomDigestKey()), every_(every), on_change_(on_change) {}

  // Notes tensors, in every `every`-th call for the first of these places; else forgets them.
  void Note(tf::OpKernelContext* ctx, const std::vector<int64_t>& places) {
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

  // Compares the tensors with what is noted of their places, if anything is, and tells.
  void Compare(tf::OpKernelContext* ctx, const std::vector<int64_t>& places) {
    const std::unordered_map<int64_t, uint64_t> noted = [&] {
      const std::lock_guard<std::mutex> lock(mutex_);
      return digests_;
    }();
    std::vector<int64_t> changed;
    for (int i = 0; i < ctx->num_inputs(); ++i) {
      const auto before = noted.find(places[i]);
      if (before != noted.end() && before->second != Of(ctx, i)) changed.push_back(places[i]);
    }
    const std::lock_guard<std::mutex> lock(telling_);
    if (!changed.empty() && on_change_ != nullptr) {
      on_change_(changed.data(), static_cast<int64_t>(changed.size()));
    }
  }

  void Forget() {
    const std::lock_guard<std::mutex> lock(mutex_);
    digests_.clear();
  }

  // Nobody is told any more, once this has returned.
  void Close() {
    const std::lock_guard<std::mutex> lock(telling_);
    on_change_ = nullptr;
  }

 private:
  uint64_t Of(tf::OpKernelContext* ctx, int input) const {
    const tf::StringPiece bytes = ctx->input(input).tensor_data();
    return Digest(key_, bytes.data(), static_cast<int64_t>(bytes.size()), IntraOpPool(ctx));
  }

  const DigestKey key_;
  const int64_t every_;
  std::mutex telling_;
  OnChange on_change_;  // under telling_
  std::mutex mutex_;
  std::unordered_map<int64_t, int64_t> calls_;     // under mutex_
  std::unordered_map<int64_t, uint64_t> digests_;  // under mutex_
};

class Table {
 public:
  static Table& Get() {
    static Table* table = new Table;  // never freed: a step may run while the process ends
    return *table;
  }
  int64_t Add(std::shared_ptr<Notes> notes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    notes_[++last_] = std::move(notes);
    return last_;
  }
  std::shared_ptr<Notes> Find(int64_t handle) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = notes_.find(handle);
    return found == notes_.end() ? nullptr : found->second;
  }
  void Remove(int64_t handle) {
    const std::lock_guard<std::mutex> lock(mutex_);
    notes_.erase(handle);
  }

 private:
  std::mutex mutex_;
  int64_t last_ = 0;
  std::unordered_map<int64_t, std::shared_ptr<Notes>> notes_;
};

REGISTER_OP("AggregathorNote")
    .Input("values: T")
    .Attr("T: list(type) >= 1")
    .Attr("places: list(int) >= 1")
    .Attr("handle: int")
    .SetIsStateful()
    .SetShapeFn([](tf::shape_inference::InferenceContext*) { return absl::OkStatus(); })
    .Doc(R"doc(
Notes a keyed digest of each value.

values: any number, of types that are plain bytes.
places: what each of them is known by.
handle: what aggregathor_notes_open returned in this process.
)doc");

REGISTER_OP("AggregathorCompare")
    .Input("values: T")
    .Attr("T: list(type) >= 1")
    .Attr("places: list(int) >= 1")
    .Attr("handle: int")
    .SetIsStateful()
    .SetShapeFn([](tf::shape_inference::InferenceContext*) { return absl::OkStatus(); })
    .Doc(R"doc(
Tells, by the function that aggregathor_notes_open was given, which values are not what was noted.

values: any number, of types that are plain bytes.
places: for each of them, the place of the value that it should be.
handle: what aggregathor_notes_open returned in this process.
)doc");

// Does with its inputs what `kUse` does.
template <void (Notes::*kUse)(tf::OpKernelContext*, const std::vector<int64_t>&)>
class NotesOp : public tf::OpKernel {
 public:
  explicit NotesOp(tf::OpKernelConstruction* ctx) : OpKernel(ctx) {
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
    const std::shared_ptr<Notes> notes = Table::Get().Find(handle_);
    if (notes != nullptr) (notes.get()->*kUse)(ctx, places_);  // else the training has ended
  }

 private:
  int64_t handle_;
  std::vector<int64_t> places_;
};

REGISTER_KERNEL_BUILDER(Name("AggregathorNote").Device(tf::DEVICE_CPU), NotesOp<&Notes::Note>);
REGISTER_KERNEL_BUILDER(Name("AggregathorCompare").Device(tf::DEVICE_CPU),
                        NotesOp<&Notes::Compare>);

}  // namespace

// Begins to note what tensors are, in every `every`-th AggregathorNote; returns what names the
// notes.
AGGREGATHOR_EXPORT int64_t aggregathor_notes_open(int64_t every, OnChange on_change) {
  return Table::Get().Add(std::make_shared<Notes>(every, on_change));
}

// Forgets what was noted, as somebody who may has written.
AGGREGATHOR_EXPORT void aggregathor_notes_forget(int64_t handle) {
  const std::shared_ptr<Notes> notes = Table::Get().Find(handle);
  if (notes != nullptr) notes->Forget();
}

// Ends the notes: ops that come later do nothing, and `on_change` is called no more.
AGGREGATHOR_EXPORT void aggregathor_notes_close(int64_t handle) {
  const std::shared_ptr<Notes> notes = Table::Get().Find(handle);
  if (notes == nullptr) return;
  Table::Get().Remove(handle);
  notes->Close();
}

// The digest of bytes by a key of one's own, for tests.
AGGREGATHOR_EXPORT uint64_t aggregathor_digest(const DigestKey* key, const void* bytes,
                                               int64_t size) {
  const auto alone = [](void*, int64_t total, int64_t, Parallel::Body body, void* arg) {
    body(arg, 0, total);
  };
  return Digest(*key, bytes, size, {alone, nullptr});
}

}  // namespace aggregathor
