"""Checks that Keras and TensorFlow are what the drop-in was tested with.

The drop-in replaces methods of Keras and TensorFlow, and reads attributes, that neither documents
and that any version may change. So before anything is replaced each of them is looked up, and its
parameters are compared. Nothing here starts TensorFlow's devices, which a script may still want to
set up.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from aggregathor.errors import UserError
from aggregathor.version import (
    KERAS,
    KERAS_REQUIREMENT,
    TENSORFLOW_SERIES,
    VersionError,
    __version__,
    is_tested_keras,
    require_tensorflow,
)

_MORE = "..."
_TESTED = (
    f"aggregathor {__version__} was tested with Keras {KERAS[0]} to {KERAS[1]} and TensorFlow "
    f"{TENSORFLOW_SERIES}"
)
_REMEDY = f"pip install '{KERAS_REQUIREMENT}' 'tensorflow~={TENSORFLOW_SERIES}.0'"


class PrivateName(NamedTuple):
    """A private name, and what is relied on of it.

    Attributes:
      module: where it is.
      path: its name there, such as "Operation._set_attr".
      parameters: those of a function, all of them and in this order; "" for none. With "..." at the
        end others may be there too, if they have defaults. None for what is not called.
      sets: an attribute that the function, a constructor, gives the object.
    """

    module: str
    path: str
    parameters: str | None = None
    sets: str | None = None

    def fault(self) -> str:
        """Returns what is wrong with it, such as "has no x.y"; "" if nothing is."""
        try:
            found: Any = importlib.import_module(self.module)
            for part in self.path.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError):
            return f"has no {self.module}.{self.path}"
        name = f"{self.module}.{self.path}"
        if self.parameters is not None:
            if not callable(found):
                return f"has a {name} that cannot be called"
            parameters = self.parameters.split()
            if not _takes(found, parameters):
                return f"has {name}{inspect.signature(found)}, not ({', '.join(parameters)})"
        if self.sets is not None and self.sets not in _names_in(found):
            return f"has no attribute {self.sets} set by {name}"
        return ""


_TRAINER = "keras.src.backend.tensorflow.trainer"
_EPOCHS = "keras.src.trainers.epoch_iterator"
_BASE_OPTIMIZER = "keras.src.optimizers.base_optimizer"
_LOSS_SCALE = "keras.src.optimizers.loss_scale_optimizer"

KERAS_NAMES = (
    PrivateName(
        _TRAINER,
        "TensorFlowTrainer.fit",
        "self x epochs verbose callbacks steps_per_epoch initial_epoch ...",
    ),
    PrivateName(_TRAINER, "TensorFlowTrainer.make_train_function", "self force"),
    PrivateName(_TRAINER, "TensorFlowTrainer.train_step", "self data"),
    PrivateName(_TRAINER, "TensorFlowTrainer._maybe_symbolic_build", "self iterator data_batch"),
    PrivateName(_TRAINER, "TensorFlowTrainer._symbolic_build", "self iterator data_batch"),
    PrivateName(_TRAINER, "TensorFlowTrainer._should_eval", "self epoch validation_freq"),
    PrivateName(_TRAINER, "TensorFlowTrainer._get_metrics_result_or_logs", "self logs"),
    PrivateName(_TRAINER, "TensorFlowTrainer.__init__", sets="_distribute_strategy"),
    PrivateName("keras.src.trainers.trainer", "Trainer.__init__", sets="_initial_epoch"),
    PrivateName(
        "keras.src.trainers.trainer",
        "Trainer._compute_loss",
        "self x y y_pred sample_weight training",
    ),
    PrivateName(_TRAINER, "TFEpochIterator.tf_sync", "self"),
    PrivateName(_TRAINER, "TFEpochIterator.__next__", "self"),
    PrivateName(_EPOCHS, "EpochIterator._enumerate_iterator", "self"),
    PrivateName(_EPOCHS, "EpochIterator.catch_stop_iteration", "self"),
    PrivateName(_EPOCHS, "EpochIterator._interrupted_warning", "self"),
    PrivateName(_EPOCHS, "EpochIterator.reset", "self"),
    PrivateName(_EPOCHS, "EpochIterator.__init__", sets="_num_batches"),
    PrivateName(_EPOCHS, "EpochIterator.__init__", sets="_current_iterator"),
    PrivateName(_EPOCHS, "EpochIterator.__init__", sets="_steps_seen"),
    PrivateName("keras.src.layers.layer", "Layer._flatten_layers", "self ..."),
    PrivateName(_BASE_OPTIMIZER, "BaseOptimizer.apply", "self grads trainable_variables"),
    PrivateName(_BASE_OPTIMIZER, "BaseOptimizer.__init__", sets="_trainable_variables"),
    PrivateName(_BASE_OPTIMIZER, "BaseOptimizer.__init__", sets="loss_scale_factor"),
    PrivateName(_BASE_OPTIMIZER, "BaseOptimizer.__init__", sets="_iterations"),
    PrivateName(
        _BASE_OPTIMIZER,
        "BaseOptimizer._update_model_variables_moving_average",
        "self trainable_variables",
    ),
    PrivateName(_BASE_OPTIMIZER, "BaseOptimizer.build", sets="_model_variables_moving_average"),
    PrivateName(_LOSS_SCALE, "LossScaleOptimizer.apply", "self grads trainable_variables"),
    PrivateName(_LOSS_SCALE, "LossScaleOptimizer.check_finite", "self grads"),
    PrivateName(_LOSS_SCALE, "LossScaleOptimizer._stateful_handle_non_finite_grads", "self"),
    PrivateName(_LOSS_SCALE, "LossScaleOptimizer.__init__", sets="dynamic_growth_steps"),
    PrivateName(_LOSS_SCALE, "LossScaleOptimizer.build", sets="step_counter"),
    PrivateName(_LOSS_SCALE, "LossScaleOptimizer.build", sets="dynamic_scale"),
    PrivateName("keras.src.utils.file_utils", "urlretrieve", "url filename ..."),
    PrivateName("keras.src.utils.file_utils", "extract_archive", "file_path path archive_format"),
    PrivateName("keras.src.random.seed_generator", "make_default_seed", ""),
    PrivateName("keras.src.random.seed_generator", "global_seed_generator", ""),
    PrivateName("keras.src.random.seed_generator", "GLOBAL_SEED_GENERATOR"),
    PrivateName("keras.src.backend.common.global_state", "get_global_attribute", "name ..."),
)

_CONTEXT = "tensorflow.python.eager.context"
_OPS = "tensorflow.python.framework.ops"
_SESSION = "tensorflow.python.client.session"
_FUNCTIONS = "tensorflow.python.eager.polymorphic_function"

_SUMMARIES = "tensorflow.python.summary.writer.writer"
_CHECKPOINTS = "tensorflow.python.checkpoint.checkpoint_management"

TENSORFLOW_NAMES = (
    PrivateName(_CONTEXT, "eager_mode", ""),
    PrivateName(_CONTEXT, "execution_mode", "mode"),
    PrivateName(_CONTEXT, "is_async", ""),
    PrivateName(_CONTEXT, "SYNC"),
    PrivateName(_CONTEXT, "Context.clear_kernel_cache", "self"),
    PrivateName(f"{_FUNCTIONS}.transform", "FUNC_GRAPH_TRANSFORMS"),
    PrivateName(
        "tensorflow.python.eager.wrap_function",
        "WrappedFunction.__init__",
        "self fn_graph variable_holder ...",
    ),
    PrivateName(
        f"{_FUNCTIONS}.polymorphic_function",
        "UnliftedInitializerVariable.__init__",
        "self add_initializers_to ...",
    ),
    PrivateName(f"{_FUNCTIONS}.polymorphic_function", "Function.__call__", "self ..."),
    PrivateName(f"{_FUNCTIONS}.polymorphic_function", "Function._clone", "self python_function"),
    PrivateName(f"{_FUNCTIONS}.polymorphic_function", "Function.python_function"),
    PrivateName(
        f"{_FUNCTIONS}.polymorphic_function",
        "Function._initialize_uninitialized_variables",
        "self initializers",
    ),
    PrivateName(f"{_FUNCTIONS}.polymorphic_function", "Function.__init__", sets="_jit_compile"),
    PrivateName(f"{_FUNCTIONS}.polymorphic_function", "Function.__init__", sets="_autograph"),
    PrivateName(
        "tensorflow.python.autograph.impl.api", "call_with_unspecified_conversion_status", "func"
    ),
    PrivateName(f"{_FUNCTIONS}.autograph_util", "py_func_from_autograph", "python_func ..."),
    PrivateName(
        "tensorflow.python.util.tf_decorator", "make_decorator", "target decorator_func ..."
    ),
    PrivateName("tensorflow.python.eager.lift_to_graph", "lift_to_graph", "tensors graph ..."),
    PrivateName("tensorflow.python.eager.lift_to_graph", "UnliftableError"),
    PrivateName("tensorflow.python.framework.func_graph", "FuncGraph.captures"),
    PrivateName(_OPS, "Graph.__init__", sets="_functions"),
    PrivateName(_OPS, "Operation._set_attr", "self attr_name attr_value"),
    PrivateName(_OPS, "Operation._update_input", "self index tensor"),
    PrivateName("tensorflow.python.ops.ref_variable", "RefVariable._ref", "self"),
    PrivateName("tensorflow.python.ops.handle_data_util", "get_handle_data", "source_t"),
    PrivateName("tensorflow.python.ops.script_ops", "_py_funcs.get", "token ..."),
    PrivateName(
        "tensorflow.python.ops.script_ops", "FuncRegistry.__call__", "self token device args"
    ),
    PrivateName(
        "tensorflow.python.checkpoint.functional_saver",
        "MultiDeviceSaver.save",
        "self file_prefix options",
    ),
    PrivateName(
        _CHECKPOINTS, "update_checkpoint_state_internal", "save_dir model_checkpoint_path ..."
    ),
    PrivateName(_CHECKPOINTS, "get_checkpoint_state", "checkpoint_dir latest_filename"),
    PrivateName(_CHECKPOINTS, "_delete_file_if_exists", "filespec"),
    PrivateName(
        "tensorflow.python.training.py_checkpoint_reader", "NewCheckpointReader", "filepattern"
    ),
    PrivateName("tensorflow.python.training.saver", "Saver.__init__", sets="_pad_step_number"),
    PrivateName(_SUMMARIES, "EventFileWriter", "logdir ..."),
    PrivateName(_SUMMARIES, "EventFileWriterV2", "session logdir ..."),
    PrivateName("tensorflow.python.profiler.profiler_v2", "stop", "save"),
    PrivateName("tensorflow.python.autograph.impl.api", "autograph_artifact", "entity ..."),
    PrivateName("tensorflow.python.autograph.impl.api", "tf_convert", "f ctx ..."),
    PrivateName("tensorflow.python.autograph.core.ag_ctx", "control_status_ctx", ""),
    PrivateName("tensorflow.python.data.util.random_seed", "get_seed", "seed"),
    PrivateName("tensorflow.python.framework.func_graph", "FuncGraph.__init__", sets="seed"),
    PrivateName(
        "tensorflow.python.framework.graph_util",
        "extract_sub_graph",
        "graph_def dest_nodes",
    ),
    PrivateName("tensorflow.python.util.deprecation", "silence", ""),
    PrivateName("tensorflow.python.framework.op_def_registry", "get", "name"),
    PrivateName("tensorflow.python.framework.kernels", "get_all_registered_kernels", ""),
    PrivateName("tensorflow.python.client.pywrap_tf_session", "TF_LoadLibrary"),
    PrivateName("tensorflow.core.framework.attr_value_pb2", "AttrValue"),
    PrivateName(_SESSION, "BaseSession.run", "self fetches ..."),
    PrivateName(_SESSION, "BaseSession.make_callable", "self fetches ..."),
    PrivateName(_SESSION, "BaseSession.partial_run_setup", "self fetches ..."),
    PrivateName(
        "tensorflow.python.training.sync_replicas_optimizer",
        "SyncReplicasOptimizer.__init__",
        sets="_opt",
    ),
)


def check() -> None:
    """Checks that Keras and TensorFlow have the private names that this package uses.

    Raises:
      VersionError: TensorFlow is of another series, or a private name is missing or has changed.
      UserError: Keras does not run on TensorFlow.
    """
    require_tensorflow(tf.__version__)
    if keras.backend.backend() != "tensorflow":
        raise UserError(
            f"Keras runs on {keras.backend.backend()} and must run on TensorFlow. Unset "
            "KERAS_BACKEND, or set it to tensorflow."
        )
    for package, version, names in (
        ("Keras", keras.__version__, KERAS_NAMES),
        ("TensorFlow", tf.__version__, TENSORFLOW_NAMES),
    ):
        faults = [fault for name in names if (fault := name.fault())]
        if faults:
            more = f" (and {len(faults) - 1} more of this kind)" if len(faults) > 1 else ""
            raise VersionError(
                f"{package} {version} {faults[0]}{more}, which aggregathor needs; {_TESTED}: "
                f"{_REMEDY}"
            )


def untested() -> str:
    """Returns a warning if this Keras was not tested, though it may pass ``check``; else ""."""
    if is_tested_keras(keras.__version__):
        return ""
    return f"Keras {keras.__version__} is untested; {_TESTED}: {_REMEDY}"


def _names_in(function: Any) -> tuple[str, ...]:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return code.co_names if code is not None else ()


def _takes(function: Any, parameters: list[str]) -> bool:
    """Whether a function has these parameters: see ``PrivateName``."""
    known = inspect.signature(function).parameters
    if parameters[-1:] != [_MORE]:
        return list(known) == parameters
    named = parameters[:-1]
    others = [each for name, each in known.items() if name not in named]
    return all(name in known for name in named) and all(
        each.default is not each.empty or each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        for each in others
    )
