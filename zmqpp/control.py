"""What travels the ring beside the tensors: one typed message per verb, msgpack, no pickle.

A request goes down the ring and is forwarded by each stage before it is acted on; a reply is forwarded
to the engine without being opened; a notice is read by everyone it passes, whatever its epoch. The hello, which begins
an epoch, is a notice. `Route` in the frame's head
says which, so that forwarding needs no Python (see transport.Relay).

    engine --hello--> 0 --> 1 --> .. --> N-1          each stage answers with `HelloReply`
    engine --rpc----> 0 --> 1 --> .. --> N-1          each stage answers with `RpcReply`
    engine --exec---> 0 --> 1 --> .. --> N-1          only the last stage answers, with `StepReply`
    engine --sample-> 0 --> 1 --> .. --> N-1          sent only when a step needs a grammar mask
    any stage --report--> engine                      what it counted, now and then
    engine --refused-> 0 --> 1 --> .. --> N-1         those it names leave
    any stage --lost----> engine                      the place before it is gone
    any stage --failed--> everyone downstream --> engine --(decided)--> everyone
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from zmqpp._shown import one_line
from zmqpp.errors import MalformedError

PROTOCOL_VERSION = 7
"""Changes whenever a message below changes meaning; compared in the hello."""

PIPELINE = -1
"""In place of a stage's index: no stage alone is at fault."""


_Epoch = Annotated[int, msgspec.Meta(ge=0, le=(1 << 32) - 1)]
"""As it fits into a message's head."""
_Step = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
"""The tag of its activations."""
_Token = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]


class Message(msgspec.Struct, tag_field="verb", forbid_unknown_fields=True):
    """Base of all control messages."""


class Hello(Message, tag="hello"):
    """The engine's word on everything the stages must agree on; sent before any stage loads."""

    session: str
    epoch: _Epoch
    """Frames of an older epoch are dropped by every stage."""
    protocol: int
    zmqpp_version: str
    vllm_version: str
    total_stages: int
    model: dict[str, Any]
    """The model's config.json, without what may differ between copies."""
    weights: dict[str, tuple[str, str]]
    """Weight file -> (digest of its header, digest of samples): same tensors, other values: another model."""
    settings: dict[str, Any]
    """EngineArgs field -> value resolved by stage 0."""
    runner: Literal["V1", "V2"] = "V1"
    """vLLM's model runner, the same on every stage."""
    objects: str = ""
    """Digest of vLLM's classes that travel; must be equal where the vLLM versions are not."""


class HelloReply(Message, tag="hello-reply"):
    """One stage's place: its half-open layer range and what it runs."""

    stage: int
    total_layers: int
    start_layer: int
    end_layer: int
    zmqpp_version: str
    vllm_version: str
    host: str
    pid: int
    bound: str
    connect: str
    ready: bool = False
    """It has been brought up in this session already, and goes on from an older epoch."""
    session: str = ""
    epoch: int = 0
    """Both of the hello that this answers."""
    ranks: Annotated[int, msgspec.Meta(ge=1, le=1 << 16)] = 1
    """Workers of the stage: its tensor-parallel size."""


class Rpc(Message, tag="rpc"):
    """Call `method` of every stage's worker; `payload` is the codec's (args, kwargs)."""

    call: int
    method: str
    payload: bytes
    only: list[int] | None = None
    """The stages that act and answer; None = all."""


class RpcReply(Message, tag="rpc-reply"):
    """`payload` is the codec's list of results, one of each worker that answers; None when `error` is set."""

    call: int
    stage: int
    payload: bytes | None = None
    error: str | None = None


class Sampled(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """What came of an earlier step."""

    step: _Step
    tokens: list[list[_Token]]
    """Those of each of its requests, in the order in which they were scheduled: none where it drew none, several where
    drafts were accepted."""
    drafts: list[list[_Token]] = []
    """What was drafted after them, for each of its requests; nothing at all without speculation."""


class Exec(Message, tag="exec"):
    """Run one step's forward pass; `payload` is the codec's SchedulerOutput."""

    step: _Step
    tokens: int
    """Scheduled tokens; without any there are no activations and no reply."""
    sample: bool
    """The last stage samples at once; otherwise it waits for this step's `Sample`."""
    payload: bytes
    sampled: list[Sampled] = []
    """Model Runner V2 only: what the last stage has sampled and drafted since the exec before, for those before it."""


class Sample(Message, tag="sample"):
    """Sample the step run before; `payload` is the codec's GrammarOutput."""

    step: _Step
    payload: bytes


class StepReply(Message, tag="step-reply"):
    """The last stage's ModelRunnerOutput for one step, and its DraftTokenIds for the next if it speculates."""

    step: _Step
    payload: bytes
    drafts: bytes | None = None


class Report(Message, tag="report"):
    """What a stage counted; `payload` is a `watch.report.StageReport`. Sent unasked, about once a second."""

    stage: int
    payload: bytes


class Lost(Message, tag="lost"):
    """Stage `stage` is gone, as the next one sees it; the engine decides whether the pipeline waits for another."""

    stage: int
    reason: str
    failed: bool = False
    """It ended for a reason of its own, and so may the next one: the engine does not wait for ever more of them."""
    session: str = ""
    epoch: int = 0
    """Both as the stage that says so knows them: what happened to another stage 0, or before, is settled."""


class Failed(Message, tag="failed"):
    """Stage `stage` (PIPELINE: all of them together) cannot go on.

    Whoever has not served yet stops and repeats why. In a pipeline that has, the engine waits for another stage.
    """

    stage: int
    reason: str
    traceback: str = ""
    session: str = ""
    """Empty: not known yet to the stage that failed."""
    decided: bool = False
    """The engine says so: it is over, whoever reads this stops."""

    def __str__(self) -> str:
        named = self.stage == PIPELINE or self.reason.startswith(f"stage {self.stage}")
        return self.reason if named else f"stage {self.stage} failed: {self.reason}"


class Refused(Message, tag="refused"):
    """These stages came back as something that the others cannot go on with: they leave, and others are awaited."""

    stages: list[int]
    reason: str


class Stop(Message, tag="stop"):
    """The engine ends in good order; every stage closes and exits with 0."""


AnyMessage = (
    Hello | HelloReply | Rpc | RpcReply | Exec | Sample | StepReply | Report | Lost | Failed | Refused | Stop
)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(AnyMessage)


def encode(message: AnyMessage) -> bytes:
    """One message as msgpack."""
    return _encoder.encode(message)


def decode(body: bytes) -> AnyMessage:
    """The message in `body`.

    Raises:
        MalformedError: not one of the messages above, or a field of another type.
    """
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedError(
            f"control message of {len(body)} bytes cannot be read: {one_line(error)}"
        ) from error
