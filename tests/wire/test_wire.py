"""Laws of the wire: what goes in comes out, and what does not fit is refused with the field at fault."""

from __future__ import annotations

import struct
import zlib

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxplain.errors import InputError, UnsupportedModel
from onnxplain.v1 import explainer_pb2, tensor_pb2
from onnxplain.wire import chunks, tensors
from onnxplain.wire.inference import messages as oip

SHAPES = hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)
NUMBERS = [name for name in tensors.DATATYPES if name != "BYTES"]
INPUT = {"name": "x", "datatype": "FP32", "shape": [2, 3]}
SIX = np.arange(6, dtype="<f4").tobytes()


def same(left: np.ndarray, right: np.ndarray) -> bool:
    """Equal bits, whatever they mean: NaN is NaN."""
    return (
        left.shape == right.shape
        and left.dtype == right.dtype
        and left.tolist().__repr__() == right.tolist().__repr__()
    )


@st.composite
def arrays(draw):
    """Any array that can be sent: every datatype and shape, any strides and byte order."""
    datatype, shape = draw(st.sampled_from(list(tensors.DATATYPES))), draw(SHAPES)
    count = int(np.prod(shape))
    if datatype == "BYTES":
        texts = draw(st.lists(st.text(max_size=8), min_size=count, max_size=count))
        array = np.empty(count, object)
        array[:] = texts
    elif datatype == "BOOL":
        array = np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)), bool)
    else:
        dtype = tensors.DATATYPES[datatype]
        size = count * dtype.itemsize
        array = np.frombuffer(draw(st.binary(min_size=size, max_size=size)), dtype)
        if draw(st.booleans()) and datatype != "BF16":
            array = array.astype(dtype.newbyteorder(">"))
    array = array.reshape(shape)
    return array.T if draw(st.booleans()) else array


def little(array: np.ndarray) -> np.ndarray:
    return array.astype(tensors.DATATYPES[tensors.datatype_of(array.dtype)], copy=False)


def refused(call, *args) -> InputError:
    with pytest.raises(InputError) as caught:
        call(*args)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    return caught.value


@settings(max_examples=300, deadline=None, derandomize=True)
@given(arrays())
def test_an_array_sent_by_either_protocol_is_the_same_array(array):
    ours = tensor_pb2.Tensor.FromString(tensors.v1_tensor("x", array).SerializeToString())
    assert same(tensors.v1_array(ours, "inputs[0]"), little(array))
    reply = oip.ModelInferResponse()
    tensors.infer_outputs(reply, {"x": array, "y": array})
    request = oip.ModelInferRequest(raw_input_contents=reply.raw_output_contents)
    for output in reply.outputs:
        request.inputs.add(name=output.name, datatype=output.datatype, shape=output.shape)
    found = tensors.infer_arrays(oip.ModelInferRequest.FromString(request.SerializeToString()))
    assert list(found) == ["x", "y"] and same(found["x"], little(array)) and same(found["y"], little(array))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(arrays())
def test_typed_contents_say_the_same_as_raw_bytes(array):
    datatype = tensors.datatype_of(array.dtype)
    request = oip.ModelInferRequest()
    tensor = request.inputs.add(name="x", datatype=datatype, shape=array.shape)
    if datatype not in tensors.CONTENTS:
        assert refused(tensors.infer_arrays, request).field == "inputs[0].contents"
        return
    values = [v.encode() if isinstance(v, str) else v for v in array.reshape(-1).tolist()]
    getattr(tensor.contents, tensors.CONTENTS[datatype]).extend(values)
    assert same(tensors.infer_arrays(request)["x"], little(array))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.sampled_from([*tensors.DATATYPES, "", "fp32", "FP8"]),
    st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3), max_size=20),
    st.binary(max_size=40),
)
def test_whatever_is_claimed_of_bytes_is_true_or_refused(datatype, shape, raw):
    try:
        array = tensors.to_array(datatype, shape, raw, "inputs[0]")
    except InputError as error:
        assert error.field.startswith("inputs[0].") and "\n" not in str(error)
    else:
        assert tensors.datatype_of(array.dtype) == datatype and list(array.shape) == shape
        assert tensors.to_raw(array) == raw


def test_raw_numbers_are_not_copied():
    raw = bytes(24)
    array = tensors.to_array("FP32", [2, 3], raw, "x")
    assert not array.flags.owndata and not array.flags.writeable
    assert array.ctypes.data == np.frombuffer(raw, np.uint8).ctypes.data


MALFORMED = {
    "unknown datatype": (dict(INPUT, datatype="FLOAT"), SIX, "inputs[0].datatype"),
    "no datatype": (dict(INPUT, datatype=""), SIX, "inputs[0].datatype"),
    "long datatype": (dict(INPUT, datatype="x" * 10000), SIX, "inputs[0].datatype"),
    "negative side": (dict(INPUT, shape=[-1, 3]), SIX, "inputs[0].shape"),
    "two negative sides": (dict(INPUT, shape=[-2, -3]), SIX, "inputs[0].shape"),
    "too many axes": (dict(INPUT, shape=[1] * 17), SIX, "inputs[0].shape"),
    "very many axes": (dict(INPUT, shape=[1] * 100000), SIX, "inputs[0].shape"),
    "too many elements": (dict(INPUT, shape=[2**31 + 1]), SIX, "inputs[0].shape"),
    "a product beyond 64 bits": (dict(INPUT, shape=[2**32, 2**32]), b"", "inputs[0].shape"),
    "a product that wraps to 6": (dict(INPUT, shape=[2**62, 4, 6]), SIX, "inputs[0].shape"),
    "empty, but too long": (dict(INPUT, shape=[2**62, 0]), b"", "inputs[0].shape"),
    "too few bytes": (INPUT, SIX[:-1], "raw_input_contents[0]"),
    "too many bytes": (INPUT, SIX + b"\0", "raw_input_contents[0]"),
    "bytes of a scalar": (dict(INPUT, shape=[]), SIX, "raw_input_contents[0]"),
    "bytes of nothing": (dict(INPUT, shape=[0, 3]), SIX, "raw_input_contents[0]"),
    "a BOOL of 2": (dict(INPUT, datatype="BOOL", shape=[1]), b"\2", "raw_input_contents[0]"),
    "a string too few": (dict(INPUT, datatype="BYTES", shape=[2]), struct.pack("<I", 0), "raw_input_contents[0]"),
    "a string too many": (dict(INPUT, datatype="BYTES", shape=[1]), bytes(8), "raw_input_contents[0]"),
    "a string cut short": (dict(INPUT, datatype="BYTES", shape=[1]), b"\4\0\0\0abc", "raw_input_contents[0]"),
    "a second length cut short": (
        dict(INPUT, datatype="BYTES", shape=[2]),
        b"\2\0\0\0ab\0\0\0",
        "raw_input_contents[0]",
    ),
    "a string of 4 GiB": (dict(INPUT, datatype="BYTES", shape=[1]), b"\xff\xff\xff\xff", "raw_input_contents[0]"),
    "a string that is not UTF-8": (
        dict(INPUT, datatype="BYTES", shape=[1]),
        b"\1\0\0\0\xff",
        "raw_input_contents[0]",
    ),
}


@pytest.mark.parametrize("tensor, raw, field", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_raw_inputs_are_refused_with_their_field(tensor, raw, field):
    request = oip.ModelInferRequest(inputs=[tensor], raw_input_contents=[raw])
    assert refused(tensors.infer_arrays, request).field == field
    ours = tensor_pb2.Tensor(**tensor, raw=raw)
    assert refused(tensors.v1_array, ours, "inputs[0]").field == field.replace("raw_input_contents[0]", "inputs[0].raw")


UNTYPED = {
    "too few elements": (dict(INPUT, contents={"fp32_contents": [1] * 5}), "inputs[0].contents.fp32_contents"),
    "too many elements": (dict(INPUT, contents={"fp32_contents": [1] * 7}), "inputs[0].contents.fp32_contents"),
    "no elements": (INPUT, "inputs[0].contents.fp32_contents"),
    "another field": (dict(INPUT, contents={"fp64_contents": [1] * 6}), "inputs[0].contents.fp64_contents"),
    "two fields": (
        dict(INPUT, contents={"fp32_contents": [1] * 6, "bool_contents": [True]}),
        "inputs[0].contents.bool_contents",
    ),
    "FP16": (dict(INPUT, datatype="FP16", contents={"fp32_contents": [1] * 6}), "inputs[0].contents"),
    "BF16": (dict(INPUT, datatype="BF16"), "inputs[0].contents"),
    "INT8 of 300": (
        dict(INPUT, datatype="INT8", shape=[1], contents={"int_contents": [300]}),
        "inputs[0].contents.int_contents",
    ),
    "UINT16 of 70000": (
        dict(INPUT, datatype="UINT16", shape=[1], contents={"uint_contents": [70000]}),
        "inputs[0].contents.uint_contents",
    ),
    "no UTF-8": (
        dict(INPUT, datatype="BYTES", shape=[1], contents={"bytes_contents": [b"\xff"]}),
        "inputs[0].contents.bytes_contents",
    ),
    "shared memory": (
        dict(INPUT, parameters={"shared_memory_region": {"string_param": "r"}}),
        "inputs[0].parameters[shared_memory_region]",
    ),
}


@pytest.mark.parametrize("tensor, field", UNTYPED.values(), ids=UNTYPED.keys())
def test_malformed_typed_inputs_are_refused_with_their_field(tensor, field):
    assert refused(tensors.infer_arrays, oip.ModelInferRequest(inputs=[tensor])).field == field


def test_raw_contents_are_one_for_each_input_and_the_only_ones():
    typed = dict(INPUT, contents={"fp32_contents": [1] * 6})
    for inputs, raw, field in (
        ([INPUT], [SIX, SIX], "raw_input_contents"),
        ([INPUT, dict(INPUT, name="y")], [SIX], "raw_input_contents"),
        ([], [SIX], "raw_input_contents"),
        ([INPUT, dict(typed, name="y")], [SIX, SIX], "inputs[1].contents"),
        ([INPUT, INPUT], [SIX, SIX], "inputs[1].name"),
    ):
        request = oip.ModelInferRequest(inputs=inputs, raw_input_contents=raw)
        assert refused(tensors.infer_arrays, request).field == field


def test_inputs_are_counted_before_anything_else():
    many = [dict(INPUT, name=str(n)) for n in range(tensors.INPUTS + 1)]
    assert refused(tensors.infer_arrays, oip.ModelInferRequest(inputs=many)).field == "inputs"
    assert refused(tensors.v1_arrays, [tensor_pb2.Tensor(**tensor) for tensor in many]).field == "inputs"


def test_a_name_given_twice_is_refused():
    x = tensor_pb2.Tensor(**INPUT, raw=SIX)
    assert list(tensors.v1_arrays([x])) == ["x"]
    assert refused(tensors.v1_arrays, [x, x]).field == "inputs[1].name"


def test_no_content_is_an_empty_tensor():
    empty = tensor_pb2.Tensor(name="x", datatype="FP32", shape=[0, 3])
    assert tensors.v1_array(empty, "inputs[0]").shape == (0, 3)
    assert refused(tensors.v1_array, tensor_pb2.Tensor(**INPUT), "inputs[0]").field == "inputs[0].raw"


def test_chunks_are_refused_outside_a_stream():
    announced = tensor_pb2.Tensor(**INPUT, chunked={"byte_size": 24})
    assert refused(tensors.v1_array, announced, "inputs[0]").field == "inputs[0].chunked"


def test_every_datatype_has_a_numpy_name_and_back():
    for datatype, dtype in tensors.DATATYPES.items():
        assert tensors.datatype_of(dtype) == tensors.datatype_of(dtype.name) == datatype
    assert tensors.datatype_of(np.array(["a", "bc"]).dtype) == "BYTES"
    for call, name in (
        (tensors.datatype_of, "complex64"),
        (tensors.datatype_of, ml_dtypes.float8_e4m3fn),
    ):
        with pytest.raises(UnsupportedModel):
            call(name)


def test_a_reply_can_be_in_half_precision():
    half = tensors.v1_tensor("r", np.array([1.0, 1e9], np.float32), "FP16")
    assert half.datatype == "FP16" and tensors.v1_array(half, "r").tolist() == [1, np.inf]
    for array, datatype in ((np.zeros(1), "FP8"), (np.zeros(1), "BYTES"), (np.array(["1"], object), "FP32")):
        error = refused(tensors.v1_tensor, "r", array, datatype)
        assert error.field == "output_format.datatype"


def large() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "a": rng.standard_normal((3, 700, 200), np.float32)[:, ::2],  # 840 000 bytes, not in order
        "b": rng.standard_normal((2, 300_000)),  # 4 800 000
        "c": np.array(["text"] * 400_000, object),  # 3 200 000
        "d": rng.standard_normal(1_000_000).astype(ml_dtypes.bfloat16),  # 2 000 000
    }


def sent(inline: int = 1_000_000) -> tuple[explainer_pb2.ExplainRequest, list[tensor_pb2.Chunk]]:
    outgoing = chunks.Outgoing(inline)
    inputs = [outgoing.tensor("same name", array) for array in large().values()]
    seed = outgoing.tensor("seed", np.ones(500_000, np.float32))
    request = explainer_pb2.ExplainRequest(inputs=inputs, targets=[{"seed": seed}, {"expression": "top2"}])
    return request, list(outgoing.chunks())


def test_a_message_in_chunks_is_the_same_message():
    request, rest = sent()
    whole, nothing = sent(inline=1 << 40)
    assert [t.WhichOneof("content") for t in request.inputs] == ["raw", "chunked", "chunked", "chunked"] and not nothing
    assert max(len(chunk.data) for chunk in rest) == chunks.PIECE
    incoming = chunks.Incoming(request, limit=1 << 30)
    for place, chunk in enumerate(rest):
        assert not incoming.complete, place
        incoming.add(chunk)
    assert incoming.complete
    incoming.fill()
    assert request == whole


def test_chunks_of_different_tensors_may_alternate():
    request, rest = sent()
    incoming = chunks.Incoming(request, limit=1 << 30)
    for chunk in sorted(rest, key=lambda chunk: (chunk.offset, chunk.key)):
        incoming.add(chunk)
    incoming.fill()
    assert request == sent(inline=1 << 40)[0]


def test_a_message_stays_below_its_size_however_many_tensors_it_has():
    outgoing = chunks.Outgoing(inline=10_000)
    response = explainer_pb2.ExplainResponse(
        outputs=[outgoing.tensor(str(n), np.zeros(500, np.float32)) for n in range(50)]
    )
    assert response.ByteSize() < 15_000 and len(list(outgoing.chunks())) == 45


def test_chunked_tensors_are_counted():
    many = [
        {"name": str(n), "datatype": "UINT8", "shape": [1], "chunked": {"byte_size": 1}}
        for n in range(tensors.INPUTS + 1)
    ]
    error = refused(chunks.Incoming, explainer_pb2.ExplainRequest(inputs=many), 1 << 30)
    assert error.field == f"inputs[{tensors.INPUTS}]"


def test_tensors_are_found_at_any_depth():
    tensor = tensor_pb2.Tensor(name="t")
    response = explainer_pb2.ExplainResponse(
        attributions=[{"of": "x"}, {"relevance": tensor}], targets=[{"index": tensor}], scores=tensor, outputs=[tensor]
    )
    found = [path for path, _ in chunks.tensors(response)]
    assert found == ["attributions[1].relevance", "outputs[0]", "targets[0].index", "scores"]


def one(**reference) -> chunks.Incoming:
    tensor = tensor_pb2.Tensor(name="x", datatype="UINT8", shape=[8], chunked={"byte_size": 8, **reference})
    return chunks.Incoming(explainer_pb2.ExplainRequest(inputs=[tensor]), limit=8)


def chunk(offset: int, data: bytes, key: str = "x") -> tensor_pb2.Chunk:
    return tensor_pb2.Chunk(key=key, offset=offset, data=data)


@pytest.mark.parametrize(
    "parts, field",
    [
        ([chunk(0, b"abcd", key="y")], "chunk.key"),
        ([chunk(4, b"abcd")], "chunk.offset"),
        ([chunk(0, b"abcd"), chunk(3, b"abcd")], "chunk.offset"),
        ([chunk(0, b"abcd"), chunk(0, b"abcd")], "chunk.offset"),
        ([chunk(0, b"abcd"), chunk(2**64 - 1, b"a")], "chunk.offset"),
        ([chunk(0, b"")], "chunk.data"),
        ([chunk(0, b"abcd"), chunk(4, b"abcde")], "chunk.data"),
        ([chunk(0, b"abcdefgh"), chunk(8, b"i")], "chunk.data"),
    ],
    ids=["unknown key", "gap", "overlap", "again", "far", "empty", "too many", "beyond the end"],
)
def test_chunks_that_do_not_fit_are_refused(parts, field):
    incoming = one()
    for part in parts[:-1]:
        incoming.add(part)
    assert refused(incoming.add, parts[-1]).field == field


def test_what_is_missing_or_changed_is_refused():
    incoming = one()
    incoming.add(chunk(0, b"abcd"))
    assert not incoming.complete
    assert refused(incoming.fill).field == "inputs[0].chunked"
    for crc, fits in ((zlib.crc32(b"abcdefgh"), True), (0, False)):
        incoming = one(crc32=crc)
        incoming.add(chunk(0, b"abcdefgh"))
        if fits:
            incoming.fill()
        else:
            assert refused(incoming.fill).field == "inputs[0].chunked.crc32"


@pytest.mark.parametrize(
    "inputs, field",
    [
        ([{"datatype": "UINT8", "shape": [8], "chunked": {"byte_size": 9}}], "inputs[0].chunked.byte_size"),
        ([{"datatype": "BYTES", "shape": [8], "chunked": {"byte_size": 31}}], "inputs[0].chunked.byte_size"),
        ([{"datatype": "UINT8", "shape": [64], "chunked": {"byte_size": 64}}], "inputs[0].chunked.byte_size"),
        ([{"datatype": "UINT8", "shape": [2**40], "chunked": {"byte_size": 2**40}}], "inputs[0].shape"),
        ([{"datatype": "BYTES", "shape": [1], "chunked": {"byte_size": 2**63}}], "inputs[0].chunked.byte_size"),
        ([{"datatype": "UINT8", "shape": [1], "chunked": {"byte_size": 1}}] * 2, "inputs[1].chunked.key"),
    ],
    ids=["size and shape", "too short for strings", "limit", "too large", "2^63", "one key twice"],
)
def test_an_announcement_that_cannot_be_true_is_refused(inputs, field):
    request = explainer_pb2.ExplainRequest(inputs=inputs)
    assert refused(chunks.Incoming, request, 32).field == field
