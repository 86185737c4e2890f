import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from onnxplain.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Diagnostics(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DIAGNOSTICS_UNSPECIFIED: _ClassVar[Diagnostics]
    DIAGNOSTICS_OFF: _ClassVar[Diagnostics]
    DIAGNOSTICS_SUMMARY: _ClassVar[Diagnostics]
    DIAGNOSTICS_LAYERS: _ClassVar[Diagnostics]

class ExplainabilityView(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EXPLAINABILITY_VIEW_UNSPECIFIED: _ClassVar[ExplainabilityView]
    EXPLAINABILITY_VIEW_BASIC: _ClassVar[ExplainabilityView]
    EXPLAINABILITY_VIEW_FULL: _ClassVar[ExplainabilityView]

class Support(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SUPPORT_UNSPECIFIED: _ClassVar[Support]
    SUPPORT_EXACT: _ClassVar[Support]
    SUPPORT_FALLBACK: _ClassVar[Support]
    SUPPORT_BLOCKED: _ClassVar[Support]
DIAGNOSTICS_UNSPECIFIED: Diagnostics
DIAGNOSTICS_OFF: Diagnostics
DIAGNOSTICS_SUMMARY: Diagnostics
DIAGNOSTICS_LAYERS: Diagnostics
EXPLAINABILITY_VIEW_UNSPECIFIED: ExplainabilityView
EXPLAINABILITY_VIEW_BASIC: ExplainabilityView
EXPLAINABILITY_VIEW_FULL: ExplainabilityView
SUPPORT_UNSPECIFIED: Support
SUPPORT_EXACT: Support
SUPPORT_FALLBACK: Support
SUPPORT_BLOCKED: Support

class ModelRef(_message.Message):
    __slots__ = ("name", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class Target(_message.Message):
    __slots__ = ("output", "arg_max", "indices", "seed", "contrast", "expression")
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    ARG_MAX_FIELD_NUMBER: _ClassVar[int]
    INDICES_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    CONTRAST_FIELD_NUMBER: _ClassVar[int]
    EXPRESSION_FIELD_NUMBER: _ClassVar[int]
    output: str
    arg_max: ArgMax
    indices: Indices
    seed: _tensor_pb2.Tensor
    contrast: Contrast
    expression: str
    def __init__(self, output: _Optional[str] = ..., arg_max: _Optional[_Union[ArgMax, _Mapping]] = ..., indices: _Optional[_Union[Indices, _Mapping]] = ..., seed: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., contrast: _Optional[_Union[Contrast, _Mapping]] = ..., expression: _Optional[str] = ...) -> None: ...

class ArgMax(_message.Message):
    __slots__ = ("k",)
    K_FIELD_NUMBER: _ClassVar[int]
    k: int
    def __init__(self, k: _Optional[int] = ...) -> None: ...

class Indices(_message.Message):
    __slots__ = ("index",)
    INDEX_FIELD_NUMBER: _ClassVar[int]
    index: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, index: _Optional[_Iterable[int]] = ...) -> None: ...

class Contrast(_message.Message):
    __slots__ = ("positive", "negatives")
    POSITIVE_FIELD_NUMBER: _ClassVar[int]
    NEGATIVES_FIELD_NUMBER: _ClassVar[int]
    positive: int
    negatives: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, positive: _Optional[int] = ..., negatives: _Optional[_Iterable[int]] = ...) -> None: ...

class Recipe(_message.Message):
    __slots__ = ("name", "overrides")
    NAME_FIELD_NUMBER: _ClassVar[int]
    OVERRIDES_FIELD_NUMBER: _ClassVar[int]
    name: str
    overrides: _struct_pb2.Struct
    def __init__(self, name: _Optional[str] = ..., overrides: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class OutputFormat(_message.Message):
    __slots__ = ("datatype", "sum_axes", "validate_only")
    DATATYPE_FIELD_NUMBER: _ClassVar[int]
    SUM_AXES_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    datatype: str
    sum_axes: _containers.RepeatedScalarFieldContainer[int]
    validate_only: bool
    def __init__(self, datatype: _Optional[str] = ..., sum_axes: _Optional[_Iterable[int]] = ..., validate_only: bool = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("model", "request_id", "inputs", "targets", "recipe", "attribute_to", "outputs", "diagnostics", "output_format", "priority", "queue_timeout")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTE_TO_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    DIAGNOSTICS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FORMAT_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    QUEUE_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    model: ModelRef
    request_id: str
    inputs: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Tensor]
    targets: _containers.RepeatedCompositeFieldContainer[Target]
    recipe: Recipe
    attribute_to: _containers.RepeatedScalarFieldContainer[str]
    outputs: _containers.RepeatedScalarFieldContainer[str]
    diagnostics: Diagnostics
    output_format: OutputFormat
    priority: int
    queue_timeout: _duration_pb2.Duration
    def __init__(self, model: _Optional[_Union[ModelRef, _Mapping]] = ..., request_id: _Optional[str] = ..., inputs: _Optional[_Iterable[_Union[_tensor_pb2.Tensor, _Mapping]]] = ..., targets: _Optional[_Iterable[_Union[Target, _Mapping]]] = ..., recipe: _Optional[_Union[Recipe, _Mapping]] = ..., attribute_to: _Optional[_Iterable[str]] = ..., outputs: _Optional[_Iterable[str]] = ..., diagnostics: _Optional[_Union[Diagnostics, str]] = ..., output_format: _Optional[_Union[OutputFormat, _Mapping]] = ..., priority: _Optional[int] = ..., queue_timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class ResolvedTarget(_message.Message):
    __slots__ = ("name", "names", "score", "index")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    name: str
    names: _containers.RepeatedScalarFieldContainer[str]
    score: _containers.RepeatedScalarFieldContainer[float]
    index: _tensor_pb2.Tensor
    def __init__(self, name: _Optional[str] = ..., names: _Optional[_Iterable[str]] = ..., score: _Optional[_Iterable[float]] = ..., index: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class Attribution(_message.Message):
    __slots__ = ("relevance", "of", "stream_axis", "standard_error")
    RELEVANCE_FIELD_NUMBER: _ClassVar[int]
    OF_FIELD_NUMBER: _ClassVar[int]
    STREAM_AXIS_FIELD_NUMBER: _ClassVar[int]
    STANDARD_ERROR_FIELD_NUMBER: _ClassVar[int]
    relevance: _tensor_pb2.Tensor
    of: str
    stream_axis: int
    standard_error: _tensor_pb2.Tensor
    def __init__(self, relevance: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., of: _Optional[str] = ..., stream_axis: _Optional[int] = ..., standard_error: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class Conservation(_message.Message):
    __slots__ = ("seed_sum", "attributed_sum", "absorbed_sum", "relative_error")
    SEED_SUM_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTED_SUM_FIELD_NUMBER: _ClassVar[int]
    ABSORBED_SUM_FIELD_NUMBER: _ClassVar[int]
    RELATIVE_ERROR_FIELD_NUMBER: _ClassVar[int]
    seed_sum: float
    attributed_sum: float
    absorbed_sum: float
    relative_error: float
    def __init__(self, seed_sum: _Optional[float] = ..., attributed_sum: _Optional[float] = ..., absorbed_sum: _Optional[float] = ..., relative_error: _Optional[float] = ...) -> None: ...

class LayerReport(_message.Message):
    __slots__ = ("node", "op_type", "rule", "relevance_in", "relevance_out")
    NODE_FIELD_NUMBER: _ClassVar[int]
    OP_TYPE_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    RELEVANCE_IN_FIELD_NUMBER: _ClassVar[int]
    RELEVANCE_OUT_FIELD_NUMBER: _ClassVar[int]
    node: str
    op_type: str
    rule: str
    relevance_in: float
    relevance_out: float
    def __init__(self, node: _Optional[str] = ..., op_type: _Optional[str] = ..., rule: _Optional[str] = ..., relevance_in: _Optional[float] = ..., relevance_out: _Optional[float] = ...) -> None: ...

class Timing(_message.Message):
    __slots__ = ("queue", "compile", "compute", "batch_size", "graph_cache_hit")
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    COMPILE_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    GRAPH_CACHE_HIT_FIELD_NUMBER: _ClassVar[int]
    queue: _duration_pb2.Duration
    compile: _duration_pb2.Duration
    compute: _duration_pb2.Duration
    batch_size: int
    graph_cache_hit: bool
    def __init__(self, queue: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., compile: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., compute: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., batch_size: _Optional[int] = ..., graph_cache_hit: bool = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("model", "request_id", "recipe_digest", "graph_digest", "attributions", "outputs", "conservation", "layers", "timing", "warnings", "targets", "scores", "explained", "provenance_json", "method", "ledger", "recipe")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RECIPE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    GRAPH_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    CONSERVATION_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    EXPLAINED_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_JSON_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    LEDGER_FIELD_NUMBER: _ClassVar[int]
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    model: ModelRef
    request_id: str
    recipe_digest: str
    graph_digest: str
    attributions: _containers.RepeatedCompositeFieldContainer[Attribution]
    outputs: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Tensor]
    conservation: _containers.RepeatedCompositeFieldContainer[Conservation]
    layers: _containers.RepeatedCompositeFieldContainer[LayerReport]
    timing: Timing
    warnings: _containers.RepeatedScalarFieldContainer[str]
    targets: _containers.RepeatedCompositeFieldContainer[ResolvedTarget]
    scores: _tensor_pb2.Tensor
    explained: str
    provenance_json: str
    method: str
    ledger: _tensor_pb2.Tensor
    recipe: _struct_pb2.Struct
    def __init__(self, model: _Optional[_Union[ModelRef, _Mapping]] = ..., request_id: _Optional[str] = ..., recipe_digest: _Optional[str] = ..., graph_digest: _Optional[str] = ..., attributions: _Optional[_Iterable[_Union[Attribution, _Mapping]]] = ..., outputs: _Optional[_Iterable[_Union[_tensor_pb2.Tensor, _Mapping]]] = ..., conservation: _Optional[_Iterable[_Union[Conservation, _Mapping]]] = ..., layers: _Optional[_Iterable[_Union[LayerReport, _Mapping]]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ..., warnings: _Optional[_Iterable[str]] = ..., targets: _Optional[_Iterable[_Union[ResolvedTarget, _Mapping]]] = ..., scores: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., explained: _Optional[str] = ..., provenance_json: _Optional[str] = ..., method: _Optional[str] = ..., ledger: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., recipe: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class ExplainStreamRequest(_message.Message):
    __slots__ = ("request", "chunk")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    request: ExplainRequest
    chunk: _tensor_pb2.Chunk
    def __init__(self, request: _Optional[_Union[ExplainRequest, _Mapping]] = ..., chunk: _Optional[_Union[_tensor_pb2.Chunk, _Mapping]] = ...) -> None: ...

class ExplainStreamResponse(_message.Message):
    __slots__ = ("progress", "response", "chunk", "error", "request_id")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    progress: Progress
    response: ExplainResponse
    chunk: _tensor_pb2.Chunk
    error: StreamError
    request_id: str
    def __init__(self, progress: _Optional[_Union[Progress, _Mapping]] = ..., response: _Optional[_Union[ExplainResponse, _Mapping]] = ..., chunk: _Optional[_Union[_tensor_pb2.Chunk, _Mapping]] = ..., error: _Optional[_Union[StreamError, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("completed", "total", "stage", "update_time")
    COMPLETED_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    completed: int
    total: int
    stage: str
    update_time: _timestamp_pb2.Timestamp
    def __init__(self, completed: _Optional[int] = ..., total: _Optional[int] = ..., stage: _Optional[str] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class StreamError(_message.Message):
    __slots__ = ("code", "text", "field")
    CODE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    code: int
    text: str
    field: str
    def __init__(self, code: _Optional[int] = ..., text: _Optional[str] = ..., field: _Optional[str] = ...) -> None: ...

class GetExplainabilityRequest(_message.Message):
    __slots__ = ("model", "recipe", "view")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    model: ModelRef
    recipe: Recipe
    view: ExplainabilityView
    def __init__(self, model: _Optional[_Union[ModelRef, _Mapping]] = ..., recipe: _Optional[_Union[Recipe, _Mapping]] = ..., view: _Optional[_Union[ExplainabilityView, str]] = ...) -> None: ...

class TensorSpec(_message.Message):
    __slots__ = ("name", "datatype", "shape", "any_rank")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATATYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    ANY_RANK_FIELD_NUMBER: _ClassVar[int]
    name: str
    datatype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    any_rank: bool
    def __init__(self, name: _Optional[str] = ..., datatype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., any_rank: bool = ...) -> None: ...

class BlockedMethod(_message.Message):
    __slots__ = ("method", "reason")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    method: str
    reason: str
    def __init__(self, method: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class OpSupport(_message.Message):
    __slots__ = ("domain", "op_type", "since_version", "count", "rule", "support", "reason")
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    OP_TYPE_FIELD_NUMBER: _ClassVar[int]
    SINCE_VERSION_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    SUPPORT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    domain: str
    op_type: str
    since_version: int
    count: int
    rule: str
    support: Support
    reason: str
    def __init__(self, domain: _Optional[str] = ..., op_type: _Optional[str] = ..., since_version: _Optional[int] = ..., count: _Optional[int] = ..., rule: _Optional[str] = ..., support: _Optional[_Union[Support, str]] = ..., reason: _Optional[str] = ...) -> None: ...

class GetExplainabilityResponse(_message.Message):
    __slots__ = ("model", "supported", "ops", "attributable", "estimated_bytes_per_row", "max_batch_size", "inputs", "outputs", "labels", "kind", "input_settings", "explained", "methods", "blocked_methods", "default_recipe", "max_message_bytes", "description", "streams", "default_options")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SUPPORTED_FIELD_NUMBER: _ClassVar[int]
    OPS_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTABLE_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_BYTES_PER_ROW_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    INPUT_SETTINGS_FIELD_NUMBER: _ClassVar[int]
    EXPLAINED_FIELD_NUMBER: _ClassVar[int]
    METHODS_FIELD_NUMBER: _ClassVar[int]
    BLOCKED_METHODS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_RECIPE_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_OPTIONS_FIELD_NUMBER: _ClassVar[int]
    model: ModelRef
    supported: bool
    ops: _containers.RepeatedCompositeFieldContainer[OpSupport]
    attributable: _containers.RepeatedScalarFieldContainer[str]
    estimated_bytes_per_row: int
    max_batch_size: int
    inputs: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    outputs: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    labels: _containers.RepeatedScalarFieldContainer[str]
    kind: str
    input_settings: _struct_pb2.Struct
    explained: _containers.RepeatedScalarFieldContainer[str]
    methods: _containers.RepeatedScalarFieldContainer[str]
    blocked_methods: _containers.RepeatedCompositeFieldContainer[BlockedMethod]
    default_recipe: str
    max_message_bytes: int
    description: str
    streams: str
    default_options: _struct_pb2.Struct
    def __init__(self, model: _Optional[_Union[ModelRef, _Mapping]] = ..., supported: bool = ..., ops: _Optional[_Iterable[_Union[OpSupport, _Mapping]]] = ..., attributable: _Optional[_Iterable[str]] = ..., estimated_bytes_per_row: _Optional[int] = ..., max_batch_size: _Optional[int] = ..., inputs: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., outputs: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., labels: _Optional[_Iterable[str]] = ..., kind: _Optional[str] = ..., input_settings: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., explained: _Optional[_Iterable[str]] = ..., methods: _Optional[_Iterable[str]] = ..., blocked_methods: _Optional[_Iterable[_Union[BlockedMethod, _Mapping]]] = ..., default_recipe: _Optional[str] = ..., max_message_bytes: _Optional[int] = ..., description: _Optional[str] = ..., streams: _Optional[str] = ..., default_options: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class ListRecipesRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListRecipesResponse(_message.Message):
    __slots__ = ("recipes", "next_page_token")
    RECIPES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    recipes: _containers.RepeatedCompositeFieldContainer[RecipeInfo]
    next_page_token: str
    def __init__(self, recipes: _Optional[_Iterable[_Union[RecipeInfo, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class RecipeInfo(_message.Message):
    __slots__ = ("name", "title", "schema", "defaults", "cite", "kind")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_FIELD_NUMBER: _ClassVar[int]
    DEFAULTS_FIELD_NUMBER: _ClassVar[int]
    CITE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    name: str
    title: str
    schema: _struct_pb2.Struct
    defaults: _struct_pb2.Struct
    cite: str
    kind: str
    def __init__(self, name: _Optional[str] = ..., title: _Optional[str] = ..., schema: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., defaults: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., cite: _Optional[str] = ..., kind: _Optional[str] = ...) -> None: ...

class CompileGraphRequest(_message.Message):
    __slots__ = ("model", "recipe", "target", "attribute_to", "with_triton_config")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTE_TO_FIELD_NUMBER: _ClassVar[int]
    WITH_TRITON_CONFIG_FIELD_NUMBER: _ClassVar[int]
    model: ModelRef
    recipe: Recipe
    target: Target
    attribute_to: _containers.RepeatedScalarFieldContainer[str]
    with_triton_config: bool
    def __init__(self, model: _Optional[_Union[ModelRef, _Mapping]] = ..., recipe: _Optional[_Union[Recipe, _Mapping]] = ..., target: _Optional[_Union[Target, _Mapping]] = ..., attribute_to: _Optional[_Iterable[str]] = ..., with_triton_config: bool = ...) -> None: ...

class CompileGraphResponse(_message.Message):
    __slots__ = ("graph", "chunk")
    GRAPH_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    graph: CompiledGraph
    chunk: _tensor_pb2.Chunk
    def __init__(self, graph: _Optional[_Union[CompiledGraph, _Mapping]] = ..., chunk: _Optional[_Union[_tensor_pb2.Chunk, _Mapping]] = ...) -> None: ...

class CompiledGraph(_message.Message):
    __slots__ = ("graph_digest", "byte_size", "triton_config_pbtxt", "warnings")
    GRAPH_DIGEST_FIELD_NUMBER: _ClassVar[int]
    BYTE_SIZE_FIELD_NUMBER: _ClassVar[int]
    TRITON_CONFIG_PBTXT_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    graph_digest: str
    byte_size: int
    triton_config_pbtxt: str
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, graph_digest: _Optional[str] = ..., byte_size: _Optional[int] = ..., triton_config_pbtxt: _Optional[str] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...
