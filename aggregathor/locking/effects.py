"""What TensorFlow's ops do with a variable's handle; what is not named here is taken to write."""

from __future__ import annotations

# They give the variable's value, or something of it, and no handle.
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
        "DisableCopyOnRead",  # of how it is read
    }
)

# What they give refers to the same variable. Pure: they only move, pack or choose.
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

# Calls whose operands are the function's; of the others the first chooses, or counts.
CALLS_WITH_ALL = frozenset({"PartitionedCall", "StatefulPartitionedCall", "XlaLaunch"})
CALLS_AFTER_FIRST = frozenset({"If", "StatelessIf", "Case", "StatelessCase", "RemoteCall"})
LOOPS = frozenset({"While", "StatelessWhile"})

# They run Python, which can write whatever it can reach.
PYTHON = frozenset({"PyFunc", "PyFuncStateless", "EagerPyFunc"})

# They make, or name, a variable.
SOURCES = frozenset({"VarHandleOp", "Variable", "VariableV2"})

# TensorFlow puts them into graphs when it runs them: they call, compile or move. What XLA has
# compiled writes variables by itself.
RUNTIME = frozenset(
    {
        *("_If", "_While", "For", "BatchFunction", "MapDefun", "XlaLaunchV2", "_XlaCompile"),
        *("_XlaRun", "_Send", "_Recv", "_HostSend", "_HostRecv", "_EagerConst", "EnsureShape"),
        *("_ListToArray", "_ArrayToList", "_DeviceArg", "_DeviceRetval"),
        *("Shape", "ShapeN", "Size", "Rank", "IsResourceHandleRefCounting"),
    }
)

# They write into the memory of what they are given, which may be a variable's.
IN_PLACE = frozenset({"InplaceUpdate", "InplaceAdd", "InplaceSub", "_ParallelConcatUpdate"})

# As far as kernels go: whatever these call or hand on is looked at where it arrives.
HARMLESS = frozenset().union(
    READS, PASSES, CALLS_WITH_ALL, CALLS_AFTER_FIRST, LOOPS, SOURCES, RUNTIME
)


def is_dataset(op: str) -> bool:
    """Whether an op makes a dataset: it holds handles for its functions, and writes nothing."""
    return op.rstrip("V234567").endswith("Dataset")
