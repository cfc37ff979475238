"""How most objects of one of vLLM's classes look, as a msgspec Struct; those that hold more take the general codec.

An array in front tells one from the other: the codec writes objects as extensions.

Thread: any.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from operator import itemgetter
from typing import Any, Generic, TypeVar

import msgspec

from zmqpp._shown import one_line
from zmqpp.errors import MalformedError
from zmqpp.vllm import codec

__all__ = ["PlainForm"]

_Plain = TypeVar("_Plain", bound=msgspec.Struct)
_ARRAY = 0x90
"""How msgpack begins a short array; its length is added."""


class PlainForm(Generic[_Plain]):
    """A form for objects that are like an empty one in all but a few fields.

    Args:
        form: `array_like`, of at most 15 fields.
        empty: an object of vLLM's class.
        here: names of the fields that `form` tells of.
        what: an object is, for error texts.
    """

    def __init__(self, form: type[_Plain], empty: Any, here: Collection[str], what: str) -> None:
        self.rest = {name: value for name, value in vars(empty).items() if name not in here}
        """The other fields, as every plain object has them."""
        self._rest_of, self._rest_values = itemgetter(*self.rest), tuple(self.rest.values())
        self._front, self._what = bytes([_ARRAY | len(form.__struct_fields__)]), what
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode: Callable[[bytes], _Plain] = msgspec.msgpack.Decoder(form).decode

    def has_plain_rest(self, value: Any) -> bool:
        """Whether the other fields of `value` are as in an empty one."""
        try:
            return bool(self._rest_of(vars(value)) == self._rest_values)
        except (KeyError, TypeError, ValueError, RuntimeError):
            return False  # something that cannot be compared, such as a tensor

    def encode(self, plain: _Plain, value: Any) -> bytes:
        """`plain`, which is the form of `value`, as a payload.

        Raises:
            UnsupportedError: it holds what does not travel.
        """
        try:
            return self._encode(plain)
        except (TypeError, OverflowError):
            return codec.encode(value)  # which has words for more

    def decode(self, payload: bytes) -> _Plain | None:
        """None: the payload is for the general codec.

        Raises:
            MalformedError: it is neither.
        """
        if payload[:1] != self._front:
            return None
        try:
            return self._decode(payload)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise MalformedError(
                f"{self._what} of {len(payload)} bytes cannot be read: {one_line(error)}"
            ) from error
