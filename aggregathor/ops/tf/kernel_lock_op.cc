// Kernels that check what they are given before they let TensorFlow's own, the stock kernels, run;
// the factories that make them, put in place of TensorFlow's; and the op that locks a variable.
#include <atomic>
#include <deque>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "aggregathor/ops/tf/kernel_lock.h"
#include "aggregathor/ops/tf/op_util.h"
#include "tensorflow/core/framework/resource_mgr.h"
#include "tensorflow/core/framework/resource_var.h"
#include "tensorflow/core/framework/tensor_util.h"

namespace aggregathor {
namespace {

using tf::kernel_factory::OpKernelFactory;

REGISTER_OP("AggregathorLock")
    .Input("handle: resource")
    .Attr("called: string")
    .SetIsStateful()
    .SetShapeFn([](tf::shape_inference::InferenceContext*) { return absl::OkStatus(); })
    .Doc(R"doc(
Locks a variable: checked kernels refuse to write it.

handle: of the variable.
called: its name in errors.
)doc");

REGISTER_OP("AggregathorLockReference")
    .Input("reference: Ref(T)")
    .Attr("T: type")
    .Attr("called: string")
    .SetIsStateful()
    .SetAllowsUninitializedInput()
    .SetShapeFn([](tf::shape_inference::InferenceContext*) { return absl::OkStatus(); })
    .Doc(R"doc(
Locks a variable of v1 that is no resource, in the session that runs this.

reference: to the variable.
called: its name in errors.
)doc");

// The locked variables, by identity: whatever a variable is called, it is the same object.
// It outlives the process's exit handlers, as kernels may.
class Locked {
 public:
  static Locked& Get() {
    static Locked* locked = new Locked;
    return *locked;
  }

  // Nothing is kept alive: a variable that is gone is unlocked, as another may get its address.
  void Add(tf::Var* variable, const std::string& name) {
    tf::core::WeakPtr<tf::Var> weak(variable, [this, variable] { Forget(variable); });
    std::lock_guard<std::shared_mutex> lock(mutex_);
    variables_.insert_or_assign(variable, Variable{name, std::move(weak)});
    is_empty_ = false;
  }

  // A variable of v1 is known by its mutex, and unlocked with its owner.
  void Add(const void* mutex, const void* owner, const std::string& name) {
    std::lock_guard<std::shared_mutex> lock(mutex_);
    references_.insert_or_assign(mutex, Reference{name, owner});
    is_empty_ = false;
  }

  void ForgetReferencesOf(const void* owner) {
    std::lock_guard<std::shared_mutex> lock(mutex_);
    for (auto each = references_.begin(); each != references_.end();) {
      each = each->second.owner == owner ? references_.erase(each) : std::next(each);
    }
  }

  void Clear() {
    std::unordered_map<const void*, Variable> gone;  // its weak pointers end without the mutex
    std::lock_guard<std::shared_mutex> lock(mutex_);
    gone.swap(variables_);
    references_.clear();
    is_empty_ = true;
  }

  bool is_empty() const { return is_empty_; }

  // These return the name of a locked variable, "" for any other.
  std::string Find(const tf::Var* variable) {
    std::shared_lock<std::shared_mutex> lock(mutex_);
    const auto found = variables_.find(variable);
    return found == variables_.end() ? "" : found->second.name;
  }

  std::string FindReference(const void* mutex) {
    std::shared_lock<std::shared_mutex> lock(mutex_);
    const auto found = references_.find(mutex);
    return found == references_.end() ? "" : found->second.name;
  }

  std::string FindMemory(const tf::Tensor& memory) {
    std::vector<std::pair<std::string, tf::core::RefCountPtr<tf::Var>>> all;
    {
      std::shared_lock<std::shared_mutex> lock(mutex_);
      for (const auto& [_, each] : variables_) all.emplace_back(each.name, each.weak.GetNewRef());
    }
    // The last reference may end here, which takes the mutex.
    for (const auto& [name, variable] : all) {
      if (variable == nullptr) continue;
      tf::tf_shared_lock lock(*variable->mu());
      if (variable->tensor()->SharesBufferWith(memory)) return name;
    }
    return "";
  }

 private:
  struct Variable {
    std::string name;
    tf::core::WeakPtr<tf::Var> weak;
  };
  struct Reference {
    std::string name;
    const void* owner;
  };

  void Forget(const tf::Var* variable) {
    std::unordered_map<const void*, Variable>::node_type gone;
    std::lock_guard<std::shared_mutex> lock(mutex_);
    gone = variables_.extract(variable);
  }

  std::shared_mutex mutex_;
  std::unordered_map<const void*, Variable> variables_;
  std::unordered_map<const void*, Reference> references_;
  std::atomic<bool> is_empty_{true};
};

// Lives among a session's resources, and ends with its variables, whose addresses others may get.
class ReferencesOf : public tf::ResourceBase {
 public:
  ~ReferencesOf() override { Locked::Get().ForgetReferencesOf(this); }

  std::string DebugString() const override { return "the locked references of a session"; }

  static void Add(tf::OpKernelContext* ctx, const void* mutex, const std::string& name) {
    ReferencesOf* owner = nullptr;
    OP_REQUIRES_OK(ctx, ctx->resource_manager()->LookupOrCreate<ReferencesOf>(
                            kContainer, kName, &owner, [](ReferencesOf** made) {
                              *made = new ReferencesOf;
                              return absl::OkStatus();
                            }));
    const tf::core::ScopedUnref unref(owner);
    Locked::Get().Add(mutex, owner, name);
  }

  static bool IsThere(tf::OpKernelContext* ctx) {
    ReferencesOf* owner = nullptr;
    if (!ctx->resource_manager()->Lookup(kContainer, kName, &owner).ok()) return false;
    owner->Unref();
    return true;
  }

 private:
  static constexpr char kContainer[] = "aggregathor";
  static constexpr char kName[] = "locked references";
};

// The lock that was installed, and what it has refused.
class Rules {
 public:
  static Rules& Get() {
    static Rules* rules = new Rules;
    return *rules;
  }

  void Set(const AggregathorLock& lock) {
    std::lock_guard<std::mutex> guard(mutex_);
    who_ = lock.who;
    attribute_ = lock.attribute;
    token_.assign(lock.token, lock.token_bytes);
  }

  bool IsToken(const std::string& token) {
    std::lock_guard<std::mutex> guard(mutex_);
    return !token_.empty() && token == token_;
  }

  bool MayWrite(const tf::NodeDef& node) {
    std::lock_guard<std::mutex> guard(mutex_);
    const auto found = node.attr().find(attribute_);
    return found != node.attr().end() && !token_.empty() && found->second.s() == token_;
  }

  absl::Status Refuse(const tf::OpKernel& kernel, const std::string& variable) {
    std::lock_guard<std::mutex> guard(mutex_);
    ++refused_[kernel.type_string()];
    const bool has_name = !kernel.name().empty() && kernel.name() != kernel.type_string();
    return absl::PermissionDeniedError(absl::StrCat(
        who_, " would write ", variable, ", which only the server writes: ", kernel.type_string(),
        has_name ? absl::StrCat(" '", kernel.name(), "'") : "",
        ". Let the server do it, where agt.is_server(), or write to a variable of your own."));
  }

  std::string refused() {
    std::lock_guard<std::mutex> guard(mutex_);
    std::string lines;
    for (const auto& [op, count] : refused_) absl::StrAppend(&lines, op, " ", count, "\n");
    return lines;
  }

 private:
  std::mutex mutex_;
  std::string who_, attribute_, token_;
  std::map<std::string, int64_t> refused_;
};

thread_local int may_write = 0;  // how many times this thread was allowed to

// Returns null for a handle of anything else, or of a variable that does not exist yet.
tf::core::RefCountPtr<tf::Var> VariableOf(tf::OpKernelContext* ctx,
                                          const tf::ResourceHandle& handle) {
  static const uint64_t kind = tf::TypeIndex::Make<tf::Var>().hash_code();
  tf::core::RefCountPtr<tf::Var> variable;
  // Under another type nothing finds the variable, be it to write or to remove it.
  if (handle.hash_code() == kind && !tf::LookupResource(ctx, handle, &variable).ok()) {
    variable.reset();
  }
  return variable;
}

// Returns the name of the locked variable that an input refers to, "" for none.
std::string LockedBy(tf::OpKernelContext* ctx, int input) {
  Locked& locked = Locked::Get();
  if (ctx->input_is_ref(input)) {
    return locked.FindReference(ctx->input_ref_mutex(input));
  }
  if (ctx->input_dtype(input) != tf::DT_RESOURCE) return "";
  const auto handles = ctx->input(input).flat<tf::ResourceHandle>();
  for (int64_t i = 0; i < handles.size(); ++i) {
    const tf::core::RefCountPtr<tf::Var> variable = VariableOf(ctx, handles(i));
    if (variable == nullptr) continue;
    std::string name = locked.Find(variable.get());
    if (!name.empty()) return name;
  }
  return "";
}

// Returns the name of the locked variable that shares an input's memory, "" for none.
std::string LockedMemory(tf::OpKernelContext* ctx, int input) {
  if (ctx->input_is_ref(input)) return "";
  const tf::Tensor& memory = ctx->input(input);
  if (memory.RefCountIsOne()) return "";  // a variable would hold it as well
  std::string name = Locked::Get().FindMemory(memory);
  if (!name.empty()) return name;
  // The memory of a variable of v1 is not known: any that is shared may be it.
  return ReferencesOf::IsThere(ctx) ? "what may be a variable's memory" : "";
}

// Refuses inputs that the kernel could write a locked variable by.
class WriteCheck {
 public:
  explicit WriteCheck(bool is_in_place) : is_in_place_(is_in_place) {}

  absl::Status operator()(const tf::OpKernel& kernel, tf::OpKernelContext* ctx) const {
    if (Locked::Get().is_empty() || may_write > 0) return absl::OkStatus();
    for (int i = 0; i < ctx->num_inputs(); ++i) {
      if (!ctx->has_input(i)) continue;
      std::string name = LockedBy(ctx, i);
      if (name.empty() && is_in_place_) name = LockedMemory(ctx, i);
      if (!name.empty()) return Rules::Get().Refuse(kernel, name);
    }
    return absl::OkStatus();
  }

 private:
  const bool is_in_place_;
};

class CheckedKernel : public tf::OpKernel {
 public:
  CheckedKernel(tf::OpKernelConstruction* ctx, std::unique_ptr<tf::OpKernel> stock,
                WriteCheck check)
      : OpKernel(ctx, stock->is_deferred()), stock_(std::move(stock)), check_(check) {}

  void Compute(tf::OpKernelContext* ctx) override {
    OP_REQUIRES_OK(ctx, check_(*this, ctx));
    stock_->Compute(ctx);
  }

  bool IsExpensive() override { return stock_->IsExpensive(); }

  const tf::Tensor* const_tensor() const override { return stock_->const_tensor(); }

  std::string TraceString(const tf::OpKernelContext& ctx, bool verbose) const override {
    return stock_->TraceString(ctx, verbose);
  }

 private:
  const std::unique_ptr<tf::OpKernel> stock_;
  const WriteCheck check_;
};

class AsyncCheckedKernel : public tf::AsyncOpKernel {
 public:
  AsyncCheckedKernel(tf::OpKernelConstruction* ctx, std::unique_ptr<tf::OpKernel> stock,
                     WriteCheck check)
      : AsyncOpKernel(ctx, stock->is_deferred()), stock_(std::move(stock)), check_(check) {}

  void ComputeAsync(tf::OpKernelContext* ctx, DoneCallback done) override {
    OP_REQUIRES_OK_ASYNC(ctx, check_(*this, ctx), done);
    stock_->AsAsync()->ComputeAsync(ctx, std::move(done));
  }

  // Some asynchronous kernels run by another path eagerly.
  void Compute(tf::OpKernelContext* ctx) override {
    // Not OP_REQUIRES_OK: it ends the process if the kernel is asynchronous.
    const absl::Status status = check_(*this, ctx);
    if (!status.ok()) return ctx->SetStatus(status);
    stock_->Compute(ctx);
  }

  bool IsExpensive() override { return stock_->IsExpensive(); }

  std::string TraceString(const tf::OpKernelContext& ctx, bool verbose) const override {
    return stock_->TraceString(ctx, verbose);
  }

 private:
  const std::unique_ptr<tf::OpKernel> stock_;
  const WriteCheck check_;
};

// Gives a function of Python, which may write what it is given, copies of locked variables' memory.
class CopyingKernel : public tf::OpKernel {
 public:
  CopyingKernel(tf::OpKernelConstruction* ctx, std::unique_ptr<tf::OpKernel> stock)
      : OpKernel(ctx, stock->is_deferred()), stock_(std::move(stock)) {}

  void Compute(tf::OpKernelContext* ctx) override {
    const absl::Span<const tf::TensorValue> given = ctx->params()->inputs;
    std::vector<tf::TensorValue> inputs(given.begin(), given.end());
    std::deque<tf::Tensor> copies;
    for (int i = 0; i < ctx->num_inputs() && !Locked::Get().is_empty(); ++i) {
      if (!ctx->has_input(i) || LockedMemory(ctx, i).empty()) continue;
      copies.push_back(tf::tensor::DeepCopy(ctx->input(i)));
      inputs[i] = tf::TensorValue(&copies.back());
    }
    // Nothing else uses these parameters while a synchronous kernel computes.
    if (!copies.empty()) ctx->params()->inputs = inputs;
    stock_->Compute(ctx);
    ctx->params()->inputs = given;
  }

  bool IsExpensive() override { return stock_->IsExpensive(); }

  std::string TraceString(const tf::OpKernelContext& ctx, bool verbose) const override {
    return stock_->TraceString(ctx, verbose);
  }

 private:
  const std::unique_ptr<tf::OpKernel> stock_;
};

// How an op may write a variable.
enum class Kind { kByHandle, kInPlace, kPython };

// Makes the stock kernel, and a checked one around it if an input may be a variable.
class CheckedFactory : public OpKernelFactory {
 public:
  CheckedFactory(std::unique_ptr<OpKernelFactory> stock, Kind kind)
      : stock_(std::move(stock)), kind_(kind) {}

  tf::OpKernel* Create(tf::OpKernelConstruction* ctx) override {
    std::unique_ptr<tf::OpKernel> stock(stock_->Create(ctx));
    if (stock == nullptr || !ctx->status().ok() || !IsChecked(ctx)) return stock.release();
    if (kind_ == Kind::kPython) return new CopyingKernel(ctx, std::move(stock));
    const WriteCheck check(kind_ == Kind::kInPlace);
    if (stock->AsAsync() != nullptr) return new AsyncCheckedKernel(ctx, std::move(stock), check);
    return new CheckedKernel(ctx, std::move(stock), check);
  }

 private:
  bool IsChecked(tf::OpKernelConstruction* ctx) const {
    bool refers = kind_ != Kind::kByHandle;
    for (int i = 0; i < ctx->num_inputs(); ++i) {
      refers = refers || ctx->input_type(i) == tf::DT_RESOURCE || IsRefType(ctx->input_type(i));
    }
    return refers && !Rules::Get().MayWrite(ctx->def());
  }

  const std::unique_ptr<OpKernelFactory> stock_;
  const Kind kind_;
};

// The members of TensorFlow's own KernelRegistration, which is private to its op_kernel.cc.
struct Registration {
  const tf::KernelDef def;
  const std::string class_name;
  std::unique_ptr<OpKernelFactory> factory;
};
static_assert(sizeof(std::unique_ptr<OpKernelFactory>) == sizeof(OpKernelFactory*));
constexpr int64_t kFactoryOffset = sizeof(Registration) - sizeof(std::unique_ptr<OpKernelFactory>);

// A registration of our own: what TensorFlow must have stored for it is known.
class Probe : public OpKernelFactory {
 public:
  static constexpr char kOp[] = "AggregathorLock";
  static constexpr char kLabel[] = "probe";

  static const Probe* Get() {
    static const Probe* probe = [] {
      auto made = std::make_unique<Probe>();
      const Probe* result = made.get();
      // The registrar takes the definition.
      tf::KernelDef* def = new tf::KernelDef;
      def->set_op(kOp);
      def->set_device_type(tf::DEVICE_CPU);
      def->set_label(kLabel);
      tf::kernel_factory::OpKernelRegistrar(def, "Probe", std::move(made));
      return result;
    }();
    return probe;
  }

  tf::OpKernel* Create(tf::OpKernelConstruction* ctx) override {
    ctx->CtxFailure(absl::UnimplementedError("a probe makes no kernels"));
    return nullptr;
  }
};

using Ops = std::unordered_map<std::string, Kind>;

Ops OpsOf(const AggregathorLock& lock) {
  Ops ops;
  for (int64_t i = 0; i < lock.num_ops; ++i) ops[lock.ops[i]] = Kind::kByHandle;
  for (int64_t i = 0; i < lock.num_in_place_ops; ++i) ops[lock.in_place_ops[i]] = Kind::kInPlace;
  for (int64_t i = 0; i < lock.num_python_ops; ++i) ops[lock.python_ops[i]] = Kind::kPython;
  return ops;
}

// The kernels that all calls of `Install` have had checked.
class Registry {
 public:
  static Registry& Get() {
    static Registry* registry = new Registry;
    return *registry;
  }

  // Nothing is changed before all that can be verified has been.
  absl::Status Install(const AggregathorLock& lock, int64_t* num_checked) {
    std::lock_guard<std::mutex> guard(mutex_);
    const int64_t offset = lock.factory_offset == 0 ? kFactoryOffset : lock.factory_offset;
    const Probe* probe = Probe::Get();
    const tf::KernelDef* probe_def = nullptr;
    const Ops ops = OpsOf(lock);
    std::vector<const tf::KernelDef*> found;
    // TensorFlow shows each definition where it stands, and removes none.
    tf::GetFilteredRegisteredKernels([&](const tf::KernelDef& def) {
      if (def.op() == Probe::kOp && def.label() == Probe::kLabel) probe_def = &def;
      // What is registered for any device is for the CPU too.
      const bool is_cpu = def.device_type() == tf::DEVICE_CPU || def.device_type() == "DEFAULT";
      if (is_cpu && ops.count(def.op()) > 0) found.push_back(&def);
      return false;
    });
    if (probe_def == nullptr || *FactoryOf(probe_def, offset) != probe) {
      return absl::FailedPreconditionError(
          "TensorFlow does not keep its kernels where this was built to find them");
    }
    if (static_cast<int64_t>(found.size()) != lock.num_kernels) {
      return absl::FailedPreconditionError(absl::StrCat(
          "TensorFlow lists ", lock.num_kernels, " kernels of these ops and has ", found.size()));
    }
    for (const tf::KernelDef* def : found) {
      if (*FactoryOf(def, offset) == nullptr) {
        return absl::FailedPreconditionError(absl::StrCat("nothing makes kernels of ", def->op()));
      }
    }
    Rules::Get().Set(lock);
    for (const tf::KernelDef* def : found) {
      if (checked_.insert(def).second) Put(FactoryOf(def, offset), ops.at(def->op()));
    }
    *num_checked = checked_.size();
    return absl::OkStatus();
  }

 private:
  static OpKernelFactory** FactoryOf(const tf::KernelDef* def, int64_t offset) {
    const char* address = reinterpret_cast<const char*>(def) + offset;
    return reinterpret_cast<OpKernelFactory**>(const_cast<char*>(address));
  }

  // In one store, as other threads may be making kernels. The new factory owns the stock one.
  static void Put(OpKernelFactory** factory, Kind kind) {
    auto* ours = new CheckedFactory(std::unique_ptr<OpKernelFactory>(*factory), kind);
    __atomic_store_n(factory, static_cast<OpKernelFactory*>(ours), __ATOMIC_RELEASE);
  }

  std::mutex mutex_;
  std::unordered_set<const tf::KernelDef*> checked_;
};

class LockOp : public tf::OpKernel {
 public:
  explicit LockOp(tf::OpKernelConstruction* ctx) : OpKernel(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("called", &name_));
  }

  void Compute(tf::OpKernelContext* ctx) override {
    tf::core::RefCountPtr<tf::Var> variable;
    OP_REQUIRES_OK(ctx, tf::LookupResource(ctx, tf::HandleFromInput(ctx, 0), &variable));
    Locked::Get().Add(variable.get(), name_);
  }

 private:
  std::string name_;
};

class LockReferenceOp : public tf::OpKernel {
 public:
  explicit LockReferenceOp(tf::OpKernelConstruction* ctx) : OpKernel(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("called", &name_));
  }

  void Compute(tf::OpKernelContext* ctx) override {
    ReferencesOf::Add(ctx, ctx->input_ref_mutex(0), name_);
  }

 private:
  std::string name_;
};

// For any device: an op for the CPU alone would keep a graph's variable on the CPU.
REGISTER_KERNEL_BUILDER(Name("AggregathorLock").Device(tf::DEVICE_DEFAULT).HostMemory("handle"),
                        LockOp);
REGISTER_KERNEL_BUILDER(Name("AggregathorLockReference").Device(tf::DEVICE_DEFAULT),
                        LockReferenceOp);

}  // namespace
}  // namespace aggregathor

int64_t aggregathor_lock_install(const AggregathorLock* lock,
                                 char message[AGGREGATHOR_LOCK_MESSAGE_BYTES]) {
  int64_t num_checked = 0;
  const absl::Status status = aggregathor::Registry::Get().Install(*lock, &num_checked);
  if (status.ok()) return num_checked;
  const absl::string_view reason = status.message().substr(0, AGGREGATHOR_LOCK_MESSAGE_BYTES - 1);
  message[reason.copy(message, reason.size())] = '\0';
  return -1;
}

int aggregathor_lock_let_thread_write(const char* token, int64_t token_bytes, int may) {
  if (!aggregathor::Rules::Get().IsToken(std::string(token, token_bytes))) return 0;
  aggregathor::may_write += may ? 1 : -1;
  return 1;
}

void aggregathor_lock_clear() { aggregathor::Locked::Get().Clear(); }

int64_t aggregathor_lock_refused(char* lines, int64_t size) {
  const std::string refused = aggregathor::Rules::Get().refused();
  if (size > 0) lines[refused.copy(lines, size - 1)] = '\0';
  return refused.size() + 1;
}
