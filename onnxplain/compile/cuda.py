"""Which forward nodes onnxruntime's CUDA provider leaves to the CPU."""

from __future__ import annotations

import onnx
import onnx_ir as ir

VERIFIED_OPSET = 21  # above it the CUDA kernels lag behind
NAMES = """
Abs Add And ArgMax ArgMin Attention AveragePool BatchNormalization Cast Ceil Clip Compress Concat ConcatFromSequence
ConstantOfShape Conv ConvTranspose Cos CumSum DepthToSpace DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp
Expand EyeLike Flatten Floor GRU Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool Greater
GreaterOrEqual GridSample HardSigmoid HardSwish Identity If InstanceNormalization IsInf IsNaN LRN LSTM
LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop MatMul MatMulInteger Max MaxPool Min Mod Mul Neg
NonZero Not OneHot Or PRelu Pad Pow QuantizeLinear RMSNormalization RNN RandomNormal RandomNormalLike RandomUniform
RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin
ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence RoiAlign RotaryEmbedding Round Scan
ScatterElements ScatterND Selu SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength
Shape Shrink Sigmoid Sign Sin Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tanh
ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Where Xor
"""
KERNELS = frozenset(NAMES.split())  # of ai.onnx for float32: docs/OperatorKernels.md of onnxruntime


def has_kernel(node: ir.Node, opset: int) -> bool:
    """Whether a node runs on CUDA: by a kernel, or as the function its definition gives, and with pads CUDA takes."""
    if node.domain not in ("", "ai.onnx"):
        return node.domain.startswith("com.microsoft")  # most have one, and only these are CUDA's own concern
    if node.op_type in ("Conv", "ConvTranspose", "AveragePool", "MaxPool") and _lopsided(node):
        return False
    if node.op_type in KERNELS or node.op_type == "Constant":
        return True
    try:
        schema = onnx.defs.get_schema(node.op_type, opset)
    except onnx.defs.SchemaError:
        return False
    return bool(schema.has_function or schema.has_context_dependent_function)  # type: ignore[attr-defined]


def _lopsided(node: ir.Node) -> bool:
    pads = node.attributes.get_ints("pads", ())
    half = len(pads) // 2
    return tuple(pads[:half]) != tuple(pads[half:])


def notes(graph: ir.Graph) -> list[str]:
    """What to know before running a graph on CUDA."""
    opset = graph.opset_imports.get("", 18)
    found = []
    if opset > VERIFIED_OPSET:
        found.append(f"opset {opset}: not verified on CUDA, whose kernels lag above opset {VERIFIED_OPSET}")
    without = [f"{node.name or node.outputs[0].name} ({node.op_type})" for node in graph if not has_kernel(node, opset)]
    if without:
        more = f" and {len(without) - 5} more" if len(without) > 5 else ""
        found.append(f"no CUDA kernel, these forward nodes run on the CPU: {', '.join(without[:5])}{more}")
    return found
