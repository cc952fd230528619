"""What TensorFlow's ops do with a variable's handle; an op that is not listed may write it."""

from __future__ import annotations

# They return the variable's value, or something derived from it, and no handle.
READS = frozenset(
    {
        "ReadVariableOp",
        "_ReadVariablesOp",
        "ReadVariableXlaSplitND",
        "ResourceGather",
        "ResourceGatherNd",
        "VariableShape",
        "VarIsInitializedOp",
        "IsVariableInitialized",
        "DisableCopyOnRead",  # changes only how it is read
    }
)

# Their outputs refer to the same variable. They only move, pack or select.
PASSES = frozenset(
    {
        *("Identity", "IdentityN", "RefIdentity", "Snapshot", "StopGradient", "PreventGradient"),
        *("Switch", "RefSwitch", "_SwitchN", "Merge", "RefMerge", "_XlaMerge", "RefSelect"),
        *("Enter", "RefEnter", "Exit", "RefExit", "NextIteration", "RefNextIteration"),
        *("Pack", "Unpack", "ConcatV2", "Reshape", "ExpandDims", "Squeeze", "Select", "SelectV2"),
        *("GatherV2", "Slice", "StridedSlice", "Split", "SplitV", "Tile", "Fill", "Where"),
        *("OptionalFromValue", "OptionalGetValue"),
        *("TensorListFromTensor", "TensorListGetItem", "TensorListPopBack", "TensorListPushBack"),
        *("TensorListSetItem", "TensorListStack", "TensorListConcatV2", "TensorListGather"),
        *("TensorListSplit", "TensorListScatterIntoExistingList", "TensorListScatterV2"),
        *("_Arg", "_Retval"),
    }
)

# Calls whose operands are all the function's; of the others the first operand selects a branch.
CALLS_WITH_ALL = frozenset({"PartitionedCall", "StatefulPartitionedCall", "XlaLaunch"})
CALLS_AFTER_FIRST = frozenset({"If", "StatelessIf", "Case", "StatelessCase", "RemoteCall"})
LOOPS = frozenset({"While", "StatelessWhile"})

# They run Python, which can write all that it can reach.
PYTHON = frozenset({"PyFunc", "PyFuncStateless", "EagerPyFunc"})

# They make a variable, or refer to one by name.
SOURCES = frozenset({"VarHandleOp", "Variable", "VariableV2"})

# TensorFlow inserts them into graphs when it runs them: they call, compile or move. What XLA has
# compiled writes variables by itself, which no kernel sees.
RUNTIME = frozenset(
    {
        *("_If", "_While", "For", "BatchFunction", "MapDefun", "XlaLaunchV2", "_XlaCompile"),
        *("_XlaRun", "_Send", "_Recv", "_HostSend", "_HostRecv", "_EagerConst", "EnsureShape"),
        *("_ListToArray", "_ArrayToList", "_DeviceArg", "_DeviceRetval"),
        *("Shape", "ShapeN", "Size", "Rank", "IsResourceHandleRefCounting"),
    }
)

# They write into the memory of their operands, which may be a variable's.
IN_PLACE = frozenset({"InplaceUpdate", "InplaceAdd", "InplaceSub", "_ParallelConcatUpdate"})

# For the kernel lock: what these call or pass on is checked where it arrives.
HARMLESS = frozenset().union(
    READS, PASSES, CALLS_WITH_ALL, CALLS_AFTER_FIRST, LOOPS, SOURCES, RUNTIME
)


def is_dataset(op: str) -> bool:
    """Whether an op makes a dataset: it keeps handles for its functions, and writes nothing."""
    return op.rstrip("V234567").endswith("Dataset")
