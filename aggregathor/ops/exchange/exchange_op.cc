// The op through which the tensors of a graph reach a transport, and come back.
#include <pthread.h>

#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <thread>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

#include "aggregathor/ops/exchange/exchange.h"
#include "aggregathor/ops/tf/op_util.h"
#include "tensorflow/core/framework/cancellation.h"

namespace aggregathor {
namespace {

using tf::shape_inference::InferenceContext;
using tf::shape_inference::ShapeHandle;

REGISTER_OP("AggregathorExchange")
    .Input("values: T")
    .Output("results: U")
    .Attr("T: list({float, half, bfloat16, double}) >= 0")
    .Attr("U: list({float, half, bfloat16, double}) >= 0")
    .Attr("firsts: list(int) >= 0")
    .Attr("filled: int >= 0")
    .Attr("shapes: list(shape) >= 0")
    .Attr("handle: int")
    .SetIsStateful()
    .SetIsDistributedCommunication()
    .SetShapeFn([](InferenceContext* c) {
      std::vector<tf::PartialTensorShape> shapes;
      TF_RETURN_IF_ERROR(c->GetAttr("shapes", &shapes));
      if (static_cast<int>(shapes.size()) != c->num_outputs()) {
        return absl::InvalidArgumentError("shapes must be as many as results");
      }
      for (int i = 0; i < c->num_outputs(); ++i) {
        ShapeHandle shape;
        TF_RETURN_IF_ERROR(c->MakeShapeFromPartialTensorShape(shapes[i], &shape));
        c->set_output(i, shape);
      }
      return absl::OkStatus();
    })
    .Doc(R"doc(
Sends the values as one vector over a channel and cuts what it receives into the results.

The channel is of float32 or of float64: each value is cast to that, and each result from it.

values: nothing, or d numbers in all, less those that AggregathorFill has written.
results: nothing, or d numbers in all.
firsts: where in the vector each of the values begins.
filled: how many numbers of it AggregathorFill writes, in ops that this one is after.
shapes: of the results, known in full.
handle: what aggregathor_channel_open returned in this process.
)doc");

REGISTER_OP("AggregathorFill")
    .Input("value: T")
    .Attr("T: {float, half, bfloat16, double}")
    .Attr("first: int >= 0")
    .Attr("handle: int")
    .SetIsStateful()
    .SetIsDistributedCommunication()
    .SetShapeFn([](InferenceContext*) { return absl::OkStatus(); })
    .Doc(R"doc(
Lets a part of what the next AggregathorExchange sends leave before the rest is there.

value: some of the d numbers.
first: where in the vector they begin.
handle: what aggregathor_channel_open returned in this process.
)doc");

float Plain(Eigen::half value) { return static_cast<float>(value); }
float Plain(tf::bfloat16 value) { return static_cast<float>(value); }
float Plain(float value) { return value; }
double Plain(double value) { return value; }

template <typename To, typename From>
void Convert(const From* from, int64_t size, To* to) {
  if constexpr (std::is_same_v<From, To>) {
    std::memcpy(to, from, size * sizeof(To));
  } else {
    for (int64_t i = 0; i < size; ++i) to[i] = static_cast<To>(Plain(from[i]));
  }
}

// N is float or double.
template <typename N>
void ToNumbers(const tf::Tensor& tensor, N* to) {
  switch (tensor.dtype()) {
    case tf::DT_HALF:
      return Convert(tensor.flat<Eigen::half>().data(), tensor.NumElements(), to);
    case tf::DT_BFLOAT16:
      return Convert(tensor.flat<tf::bfloat16>().data(), tensor.NumElements(), to);
    case tf::DT_DOUBLE:
      return Convert(tensor.flat<double>().data(), tensor.NumElements(), to);
    default:
      return Convert(tensor.flat<float>().data(), tensor.NumElements(), to);
  }
}

template <typename N>
void FromNumbers(const N* from, tf::Tensor* tensor) {
  switch (tensor->dtype()) {
    case tf::DT_HALF:
      return Convert(from, tensor->NumElements(), tensor->flat<Eigen::half>().data());
    case tf::DT_BFLOAT16:
      return Convert(from, tensor->NumElements(), tensor->flat<tf::bfloat16>().data());
    case tf::DT_DOUBLE:
      return Convert(from, tensor->NumElements(), tensor->flat<double>().data());
    default:
      return Convert(from, tensor->NumElements(), tensor->flat<float>().data());
  }
}

// How a vector of numbers lies in one of floats: each is a float, or a double in place of two.
class Numbers {
 public:
  explicit Numbers(bool are_doubles) : are_doubles_(are_doubles) {}

  int64_t floats(int64_t numbers) const { return are_doubles_ ? 2 * numbers : numbers; }

  // Numbers [first, ...) of the vector `to`.
  void Write(const tf::Tensor& tensor, int64_t first, float* to) const {
    are_doubles_ ? ToNumbers(tensor, reinterpret_cast<double*>(to) + first)
                 : ToNumbers(tensor, to + first);
  }

  void Read(const float* from, int64_t first, tf::Tensor* tensor) const {
    are_doubles_ ? FromNumbers(reinterpret_cast<const double*>(from) + first, tensor)
                 : FromNumbers(from + first, tensor);
  }

 private:
  bool are_doubles_;
};

// A part of what leaves next.
struct Part {
  tf::Tensor value;
  int64_t first, step;
};

// One execution of an AggregathorExchange: it waits for its turn, is in its turn, and ends once.
// Its tensors belong to TensorFlow and are there until it has ended; it may end by cancellation at
// any time.
class Call {
 public:
  // firsts: where each input goes; it outlives the call.
  Call(tf::OpKernelContext* ctx, const std::vector<int64_t>* firsts, bool sends,
       tf::AsyncOpKernel::DoneCallback done)
      : ctx_(ctx), firsts_(firsts), sends_(sends), done_(std::move(done)) {}

  std::vector<tf::Tensor*> outputs;

  bool sends() const { return sends_; }
  bool has_outputs() const { return !outputs.empty(); }

  // Registers with whoever may cancel it; false if that has happened already.
  static bool Register(const std::shared_ptr<Call>& call) {
    tf::CancellationManager* manager = call->ctx_->cancellation_manager();
    if (manager == nullptr) return true;
    call->token_ = manager->get_cancellation_token();
    return manager->RegisterCallback(call->token_, [call] {
      call->End(absl::CancelledError("the exchange was cancelled"), true);
    });
  }

  // Copies the inputs; false if it has ended.
  bool TakeInputs(const Numbers& numbers, float* sent_d) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (has_ended_) return false;
    for (size_t i = 0; i < firsts_->size(); ++i) {
      numbers.Write(ctx_->input(static_cast<int>(i)), (*firsts_)[i], sent_d);
    }
    return true;
  }

  // Copies the outputs; false if it has ended.
  bool GiveOutputs(const Numbers& numbers, const float* received_d) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (has_ended_) return false;
    int64_t first = 0;
    for (tf::Tensor* output : outputs) {
      numbers.Read(received_d, first, output);
      first += output->NumElements();
    }
    return true;
  }

  // Tells TensorFlow, to which its tensors belong again.
  void End(const absl::Status& status, bool is_cancellation = false) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (has_ended_) return;
      has_ended_ = true;
    }
    ctx_->SetStatus(status);
    tf::CancellationManager* manager = ctx_->cancellation_manager();
    // Where it fails the callback runs, or has run: it finds the call ended.
    if (manager != nullptr && !is_cancellation) manager->TryDeregisterCallback(token_);
    // The callback, which holds the call, may outlive what `done` holds.
    tf::AsyncOpKernel::DoneCallback done = std::move(done_);
    done();
  }

 private:
  tf::OpKernelContext* const ctx_;
  const std::vector<int64_t>* const firsts_;
  const bool sends_;
  tf::AsyncOpKernel::DoneCallback done_;
  tf::CancellationToken token_ = tf::CancellationManager::kInvalidToken;
  std::mutex mutex_;
  bool has_ended_ = false;
};

// What makes rounds, and the thread on which it does, which takes calls in their order.
class Channel {
 public:
  // native.d is that of `d` such numbers.
  Channel(const LossympiNativeRound& native, AggregathorFunction function, int64_t d,
          Numbers numbers)
      : native_(native), function_(function), d_(d), numbers_(numbers) {}

  static void Start(const std::shared_ptr<Channel>& channel) {
    // Detached: the process may end while a round waits for others.
    std::thread([channel] { channel->Run(); }).detach();
  }

  int64_t d() const { return d_; }
  bool sends_parts() const { return native_.send_part != nullptr; }

  void Post(std::shared_ptr<Call> call) {
    if (!Add({call, {}})) call->End(Closed());
  }

  absl::Status Post(Part part) {
    return Add({nullptr, std::move(part)}) ? absl::OkStatus() : Closed();
  }

  bool Close(double wait_s) {
    std::deque<Item> waiting;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      is_closed_ = true;
      waiting.swap(waiting_);
      changed_.notify_all();
    }
    for (const Item& item : waiting) {
      if (item.call) item.call->End(Closed());
    }
    std::unique_lock<std::mutex> lock(mutex_);
    return changed_.wait_for(lock, std::chrono::duration<double>(wait_s),
                             [this] { return has_stopped_; });
  }

 private:
  struct Item {
    std::shared_ptr<Call> call;
    Part part;  // where there is no call
  };

  bool Add(Item item) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (is_closed_) return false;
    waiting_.push_back(std::move(item));
    changed_.notify_all();
    return true;
  }

  static absl::Status Closed() {
    return absl::CancelledError("this channel was closed: the training has ended");
  }

  void Run() {
    pthread_setname_np(pthread_self(), "agt-exchange");
    const IeeeMode mode;  // not that of TensorFlow's threads, which the one that starts this may be
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return is_closed_ || !waiting_.empty(); });
      if (is_closed_) break;  // `Close` has taken those that waited
      const Item item = std::move(waiting_.front());
      waiting_.pop_front();
      lock.unlock();
      item.call ? Serve(item.call.get()) : Serve(item.part);
      lock.lock();
    }
    has_stopped_ = true;
    changed_.notify_all();
  }

  // The next call that sends reports what fails here.
  void Serve(const Part& part) {
    if (!part_status_.ok()) return;
    float* const sent_d = Outgoing();
    numbers_.Write(part.value, part.first, sent_d);
    if (!sends_parts()) return;
    part_status_ = StatusOf([&](char* message) {
      return native_.send_part(native_.context, sent_d, part.step, numbers_.floats(part.first),
                               numbers_.floats(part.value.NumElements()), message);
    });
  }

  void Serve(Call* call) {
    float* const sent_d = call->sends() ? Outgoing() : nullptr;
    if (!call->TakeInputs(numbers_, sent_d)) return;
    const float* received_d = nullptr;
    absl::Status status;
    if (call->sends()) status = std::exchange(part_status_, {});
    if (status.ok()) status = Run(sent_d, call->has_outputs() ? &received_d : nullptr);
    if (call->has_outputs()) {
      while (status.ok() && call->GiveOutputs(numbers_, received_d) && !IsIntact()) {
        status = Run(nullptr, &received_d);
      }
    }
    call->End(status);
  }

  // Where what leaves next is written.
  float* Outgoing() {
    float* theirs = native_.outgoing ? native_.outgoing(native_.context) : nullptr;
    if (theirs != nullptr) return theirs;
    if (sent_d_ == nullptr) sent_d_.reset(new (std::align_val_t{64}) float[native_.d]);
    return sent_d_.get();
  }

  absl::Status Run(const float* sent_d, const float** received_d) {
    absl::Status status = StatusOf([&](char* message) {
      return native_.run ? native_.run(native_.context, sent_d, received_d, message)
                         : function_(sent_d, received_d, message);
    });
    if (status.ok() && received_d != nullptr && *received_d == nullptr) {
      return absl::InternalError("what makes the rounds of this exchange returned nothing");
    }
    return status;
  }

  // f(message) is a function of native_round.h.
  template <typename F>
  static absl::Status StatusOf(F f) {
    char message[LOSSYMPI_MESSAGE_BYTES] = "";
    const int code = f(message);
    message[LOSSYMPI_MESSAGE_BYTES - 1] = '\0';
    return code == 0 ? absl::OkStatus()
                     : absl::Status(static_cast<absl::StatusCode>(code), message);
  }

  bool IsIntact() const {
    return native_.is_intact == nullptr || native_.is_intact(native_.context) != 0;
  }

  struct Free {
    void operator()(float* memory) const { operator delete[](memory, std::align_val_t{64}); }
  };

  const LossympiNativeRound native_;
  const AggregathorFunction function_;
  const int64_t d_;
  const Numbers numbers_;
  std::unique_ptr<float[], Free> sent_d_;  // the thread's own, as is
  absl::Status part_status_;               // of the parts since the last call that sent
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Item> waiting_;
  bool is_closed_ = false;
  bool has_stopped_ = false;
};

// Which channel a handle names. It outlives the process's exit handlers, as graphs may.
class Table {
 public:
  static Table& Get() {
    static Table* table = new Table;
    return *table;
  }

  int64_t Add(std::shared_ptr<Channel> channel) {
    std::lock_guard<std::mutex> lock(mutex_);
    channels_[++last_] = std::move(channel);
    return last_;
  }

  absl::Status Find(int64_t handle, std::shared_ptr<Channel>* channel) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = channels_.find(handle);
    if (found == channels_.end()) {
      return absl::NotFoundError(
          absl::StrCat("this process has no open channel ", handle,
                       ": the training has ended, or another process made this graph"));
    }
    *channel = found->second;
    return absl::OkStatus();
  }

  std::shared_ptr<Channel> Remove(int64_t handle) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = channels_.find(handle);
    if (found == channels_.end()) return nullptr;
    std::shared_ptr<Channel> channel = std::move(found->second);
    channels_.erase(found);
    return channel;
  }

 private:
  std::mutex mutex_;
  std::unordered_map<int64_t, std::shared_ptr<Channel>> channels_;
  int64_t last_ = 0;
};

bool IsWithin(int64_t first, int64_t size, int64_t d) { return first <= d && size <= d - first; }

class ExchangeOp : public tf::AsyncOpKernel {
 public:
  explicit ExchangeOp(tf::OpKernelConstruction* ctx) : AsyncOpKernel(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("handle", &handle_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("firsts", &firsts_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("filled", &filled_));
    OP_REQUIRES(ctx, firsts_.size() == static_cast<size_t>(ctx->num_inputs()),
                absl::InvalidArgumentError("firsts must be as many as values"));
    std::vector<tf::PartialTensorShape> shapes;
    OP_REQUIRES_OK(ctx, ctx->GetAttr("shapes", &shapes));
    for (const tf::PartialTensorShape& shape : shapes) {
      tf::TensorShape known;
      OP_REQUIRES(ctx, shape.AsTensorShape(&known),
                  absl::InvalidArgumentError(absl::StrCat(
                      "the shapes of results must be known, got ", shape.DebugString())));
      results_size_ += known.num_elements();
      shapes_.push_back(std::move(known));
    }
  }

  void ComputeAsync(tf::OpKernelContext* ctx, DoneCallback done) override {
    std::shared_ptr<Channel> channel;
    OP_REQUIRES_OK_ASYNC(ctx, Table::Get().Find(handle_, &channel), done);
    int64_t values_size = filled_;
    bool fit = true;
    for (int i = 0; i < ctx->num_inputs(); ++i) {
      const int64_t size = ctx->input(i).NumElements();
      values_size += size;
      fit = fit && IsWithin(firsts_[i], size, channel->d());
    }
    const bool sends = filled_ > 0 || ctx->num_inputs() > 0;
    OP_REQUIRES_ASYNC(ctx,
                      fit && (!sends || values_size == channel->d()) &&
                          (shapes_.empty() || results_size_ == channel->d()),
                      absl::InvalidArgumentError(absl::StrCat(
                          "the channel takes and gives ", channel->d(), " numbers; values have ",
                          values_size, " and results ", results_size_)),
                      done);
    auto call = std::make_shared<Call>(ctx, &firsts_, sends, std::move(done));
    for (int i = 0; i < ctx->num_outputs(); ++i) {
      tf::Tensor* output = nullptr;
      const absl::Status status = ctx->allocate_output(i, shapes_[i], &output);
      if (!status.ok()) return call->End(status);
      call->outputs.push_back(output);
    }
    if (!Call::Register(call)) {
      return call->End(absl::CancelledError("the exchange was cancelled"), true);
    }
    channel->Post(std::move(call));
  }

 private:
  int64_t handle_;
  std::vector<int64_t> firsts_;
  int64_t filled_;
  std::vector<tf::TensorShape> shapes_;
  int64_t results_size_ = 0;
};

class FillOp : public tf::OpKernel {
 public:
  explicit FillOp(tf::OpKernelConstruction* ctx) : OpKernel(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("handle", &handle_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("first", &first_));
  }

  void Compute(tf::OpKernelContext* ctx) override {
    std::shared_ptr<Channel> channel;
    OP_REQUIRES_OK(ctx, Table::Get().Find(handle_, &channel));
    const tf::Tensor& value = ctx->input(0);
    OP_REQUIRES(ctx, IsWithin(first_, value.NumElements(), channel->d()),
                absl::InvalidArgumentError(
                    absl::StrCat("the channel takes ", channel->d(), " numbers; the value has ",
                                 value.NumElements(), " from ", first_, " on")));
    // The tensor is held, not copied: TensorFlow does not write what others hold.
    OP_REQUIRES_OK(ctx, channel->Post(Part{value, first_, ctx->step_id()}));
  }

 private:
  int64_t handle_, first_;
};

REGISTER_KERNEL_BUILDER(Name("AggregathorExchange").Device(tf::DEVICE_CPU), ExchangeOp);
REGISTER_KERNEL_BUILDER(Name("AggregathorFill").Device(tf::DEVICE_CPU), FillOp);

}  // namespace
}  // namespace aggregathor

int64_t aggregathor_channel_open(const LossympiNativeRound* native, AggregathorFunction function,
                                 int64_t d, int are_doubles) {
  const aggregathor::Numbers numbers(are_doubles != 0);
  LossympiNativeRound round{};
  round.d = numbers.floats(d);
  if (native != nullptr) round = *native;
  if (round.d != numbers.floats(d)) return 0;
  auto channel = std::make_shared<aggregathor::Channel>(round, function, d, numbers);
  const int64_t handle = aggregathor::Table::Get().Add(channel);
  aggregathor::Channel::Start(channel);
  return handle;
}

int aggregathor_channel_sends_parts(int64_t handle) {
  std::shared_ptr<aggregathor::Channel> channel;
  return aggregathor::Table::Get().Find(handle, &channel).ok() && channel->sends_parts();
}

int aggregathor_channel_close(int64_t handle, double wait_s) {
  const std::shared_ptr<aggregathor::Channel> channel = aggregathor::Table::Get().Remove(handle);
  return channel == nullptr || channel->Close(wait_s);
}
