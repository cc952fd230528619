// The server protocol "grpc+lock": others may ask for status and receive tensors, and nothing else.
//
// A TensorFlow server registers five services with gRPC: for masters, workers, eager contexts, the
// coordination of tasks, and the profiler. Here every method but two is replaced, before gRPC
// starts, by one that says PERMISSION_DENIED. So there is no call to be checked for who makes it:
// what others must not do is not served. The process's own session reaches its master and its
// worker by pointers, as it does with "grpc", and is not slowed.
//
// TensorFlow exports little of gRPC. This file calls what gRPC's headers define, virtual functions
// of objects that TensorFlow made, and no other function of gRPC.

#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "grpcpp/impl/rpc_service_method.h"
#include "grpcpp/impl/service_type.h"
#include "grpcpp/server_builder.h"
#include "tensorflow/core/distributed_runtime/rpc/grpc_server_lib.h"
#include "tensorflow/core/distributed_runtime/rpc/grpc_worker_service_impl.h"
#include "tensorflow/core/distributed_runtime/server_lib.h"
#include "tensorflow/core/platform/env.h"
#include "tensorflow/core/platform/errors.h"
#include "tensorflow/core/platform/logging.h"
#include "tsl/profiler/protobuf/profiler_service.pb.h"

namespace aggregathor {
namespace {

using ::grpc::internal::MethodHandler;
using ::grpc::internal::RpcServiceMethod;
using ::tensorflow::GrpcWorkerMethod;

constexpr char kProtocol[] = "grpc+lock";
// What gRPC takes if nobody says more, as TensorFlow does. The allowed requests are some hundred
// bytes, and what is refused is received first.
constexpr int kMaxRequestBytes = 4 << 20;
constexpr std::array<GrpcWorkerMethod, 2> kAllowed = {GrpcWorkerMethod::kGetStatus,
                                                      GrpcWorkerMethod::kRecvTensor};
// The method whose handler sends the refusals: what it does with an error is to send it.
constexpr char kSender[] = "/tensorflow.ProfilerService/Terminate";
// What polls services that have nothing left to poll.
constexpr std::array<const char*, 3> kIdleThreads = {"TF_master_service", "TF_eager_service",
                                                     "TF_coordination_service"};

// gRPC has no function that changes these, and keeps them private. The arguments of an explicit
// instantiation may name what is private.
template <typename Key, typename Key::Member member>
struct Opened {
  friend typename Key::Member Open(Key) { return member; }
};
struct BuilderNames : ::grpc::ServerBuilder {  // which are protected; nothing is ever made of it
  using Addresses = std::vector<Port>;
  using ::grpc::ServerBuilder::services;
};
struct Ports {
  using Member = BuilderNames::Addresses(::grpc::ServerBuilder::*);
  friend Member Open(Ports);
};
using MethodList = std::vector<std::unique_ptr<RpcServiceMethod>>;  // of a service
struct Methods {
  using Member = MethodList(::grpc::Service::*);
  friend Member Open(Methods);
};
template struct Opened<Ports, &::grpc::ServerBuilder::ports_>;
template struct Opened<Methods, &::grpc::Service::methods_>;

// How often a method was refused, by all servers of this process.
struct Refused {
  explicit Refused(const char* name) : method(name) {}
  const std::string method;
  std::atomic<int64_t> count{0};
};

// What is refused. It only grows, and is never freed: servers live until the process ends.
class Table {
 public:
  static Table& Get() {
    static Table* table = new Table;
    return *table;
  }

  Refused* Add(const char* method) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (Refused& each : all_) {
      if (each.method == method) return &each;
    }
    return &all_.emplace_back(method);
  }

  template <typename Function>
  void ForEach(Function function) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const Refused& each : all_) function(each);
  }

 private:
  std::mutex mutex_;
  std::deque<Refused> all_;  // whose elements stay where they are
};

// Answers each call with PERMISSION_DENIED, whatever was sent.
class Refusal : public MethodHandler {
 public:
  // The handler of `sender` takes a TerminateRequest.
  Refusal(Refused* refused, std::shared_ptr<RpcServiceMethod> sender)
      : refused_(refused), sender_(std::move(sender)) {}

  void RunHandler(const HandlerParameter& call) final {
    if (refused_->count.fetch_add(1) == 0) {
      LOG(WARNING) << "AggregaThor's lock has refused " << refused_->method
                   << " to somebody. It says so once; refused_calls() counts.";
    }
    const ::grpc::Status denied(::grpc::StatusCode::PERMISSION_DENIED,
                                "AggregaThor's lock refuses " + refused_->method +
                                    ": others may ask this server for its status and receive "
                                    "tensors, and nothing else");
    sender_->handler()->RunHandler(
        HandlerParameter(call.call, call.server_context, nullptr, denied, nullptr, nullptr));
  }

  void* Deserialize(grpc_call* call, grpc_byte_buffer* sent, ::grpc::Status* status,
                    void** data) final {
    // As it frees what was sent. What it reads there does not matter.
    void* read = sender_->handler()->Deserialize(call, sent, status, data);
    if (read != nullptr) static_cast<tensorflow::TerminateRequest*>(read)->~TerminateRequest();
    return nullptr;
  }

 private:
  Refused* const refused_;
  const std::shared_ptr<RpcServiceMethod> sender_;
};

bool IsAllowed(const char* method) {
  for (GrpcWorkerMethod each : kAllowed) {
    if (std::strcmp(method, tensorflow::GrpcWorkerMethodName(each)) == 0) return true;
  }
  return false;
}

// Takes out the method that sends refusals; null where it is not what this file knows.
std::shared_ptr<RpcServiceMethod> TakeSender(const std::vector<MethodList*>& services) {
  for (MethodList* service : services) {
    for (auto& method : *service) {
      if (std::strcmp(method->name(), kSender) != 0 || method->handler() == nullptr) continue;
      auto same =
          std::make_unique<RpcServiceMethod>(method->name(), method->method_type(), nullptr);
      std::swap(method, same);
      return same;
    }
  }
  return nullptr;
}

// Replaces all methods that are not allowed. Where that cannot be, none is left.
absl::Status Lock(::grpc::ServerBuilder* builder) {
  std::vector<MethodList*> services;
  for (auto* named : (builder->*(&BuilderNames::services))()) {
    services.push_back(&(named->service->*Open(Methods())));
  }
  const std::shared_ptr<RpcServiceMethod> sender = TakeSender(services);
  if (sender == nullptr) {
    for (MethodList* service : services) service->clear();
    return absl::InternalError(std::string("this TensorFlow has no ") + kSender);
  }
  for (MethodList* service : services) {
    for (auto& method : *service) {
      if (IsAllowed(method->name())) continue;
      Refused* refused = Table::Get().Add(method->name());
      method = std::make_unique<RpcServiceMethod>(refused->method.c_str(), method->method_type(),
                                                  new Refusal(refused, sender));
    }
  }
  return absl::OkStatus();
}

// Starts no thread that would poll a service with nothing left to poll.
class LockedEnv : public tensorflow::EnvWrapper {
 public:
  LockedEnv() : EnvWrapper(tensorflow::Env::Default()) {}

  tensorflow::Thread* StartThread(const tensorflow::ThreadOptions& options, const std::string& name,
                                  absl::AnyInvocable<void()> function) override {
    for (const char* idle : kIdleThreads) {
      if (name == idle) function = [] {};
    }
    return target()->StartThread(options, name, std::move(function));
  }
};

class LockedServer : public tensorflow::GrpcServer {
 public:
  LockedServer(const tensorflow::ServerDef& definition, tensorflow::Env* env)
      : GrpcServer(definition, env) {}

  absl::Status InitLocked(tensorflow::DeviceMgr* devices) {
    tensorflow::GrpcServerOptions options;
    options.local_device_mgr = devices;
    for (int method = 0; method < tensorflow::kGrpcNumWorkerMethods; ++method) {
      // Of the worker's methods those that are replaced must not be polled.
      const char* name = tensorflow::GrpcWorkerMethodName(static_cast<GrpcWorkerMethod>(method));
      if (!IsAllowed(name)) options.worker_service_options.queue_depth[method] = 0;
    }
    // TensorFlow calls it last, when all services are known.
    absl::Status locked = absl::InternalError("this TensorFlow has asked for no services");
    options.service_func = [&locked](const tensorflow::WorkerEnv*, ::grpc::ServerBuilder* builder) {
      locked = Lock(builder);
    };
    TF_RETURN_IF_ERROR(Init(options));
    return locked;
  }

 private:
  void MaybeMutateBuilder(::grpc::ServerBuilder* builder, int requested_port) override {
    builder->SetMaxReceiveMessageSize(kMaxRequestBytes);
    // TensorFlow would listen on all addresses of the machine, not on what the cluster names.
    for (auto& port : builder->*Open(Ports())) {
      port.addr = host_name() + ":" + std::to_string(requested_port);
    }
  }
};

class LockedServerFactory : public tensorflow::ServerFactory {
 public:
  bool AcceptsOptions(const tensorflow::ServerDef& definition) override {
    return definition.protocol() == kProtocol;
  }

  absl::Status NewServer(const tensorflow::ServerDef& definition, const Options& options,
                         std::unique_ptr<tensorflow::ServerInterface>* server) override {
    const tensorflow::ConfigProto& config = definition.default_session_config();
    if (config.rpc_options().cache_rpc_response()) {
      return absl::InvalidArgumentError(
          "grpc+lock cannot have rpc_options.cache_rpc_response: it refuses MarkRecvFinished, "
          "without which nothing leaves that cache");
    }
    if (!config.experimental().coordination_config().service_type().empty()) {
      return absl::InvalidArgumentError(
          "grpc+lock cannot have experimental.coordination_config: it refuses what the tasks would "
          "tell each other");
    }
    static LockedEnv* env = new LockedEnv;
    auto made = std::make_unique<LockedServer>(definition, env);
    TF_RETURN_IF_ERROR(made->InitLocked(options.local_device_mgr));
    *server = std::move(made);
    return absl::OkStatus();
  }
};

const bool registered = [] {
  tensorflow::ServerFactory::Register("AGGREGATHOR_LOCKED_GRPC_SERVER", new LockedServerFactory);
  return true;
}();

}  // namespace
}  // namespace aggregathor

// Tells each method that is refused, and how often it was so far.
extern "C" __attribute__((visibility("default"))) void aggregathor_grpc_refused(
    void (*tell)(const char* method, int64_t count)) {
  aggregathor::Table::Get().ForEach([tell](const aggregathor::Refused& refused) {
    tell(refused.method.c_str(), refused.count.load());
  });
}
