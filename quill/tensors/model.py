"""One model: a Python function over named tensors, and what it says of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from quill.errors import InvalidArgument, InvalidUsage
from quill.lanes.parcel import Parcel
from quill.tensor import Tensor
from quill.tensor.spec import TensorSpec
from quill.tensor.values import tensor_of, tensors_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

Arrays: TypeAlias = "dict[str, NDArray[Any]]"
Function = Callable[..., Any]
"""Takes inputs and parameters by name, and returns outputs by name, or the one output. Blocking, or a coroutine."""

MAX_SHOWN = 20
"""Names that an error lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorModel:
    """A function that serves a name.

    Raises:
        InvalidUsage: A bound is out of range, a name is an input's and a parameter's, or the function cannot be called
            with inputs and parameters by name.
    """

    name: str
    function: Function
    inputs: Mapping[str, TensorSpec] | None = None
    """By name; None where it takes whatever comes."""
    outputs: Mapping[str, TensorSpec] | None = None
    """By name; None where it does not say."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    """The settings that a caller may give, and what counts where it gives none."""
    max_batch: int = 1
    """How many rows, along axis 0, one call of the function may have when calls are joined; 1 for no joining."""
    max_delay_ms: float = 0.0
    """How long a call may wait for others to join it."""
    timeout_s: float = 600.0
    """How long the function may take."""
    is_async: bool = field(init=False, repr=False, compare=False)
    """Whether the function is a coroutine function, which runs on the event loop."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "is_async", inspect.iscoroutinefunction(self.function))
        if not self.name:
            raise InvalidUsage("a model needs a name")
        if self.max_batch < 1:
            raise InvalidUsage(f"max_batch must be at least 1, got {self.max_batch}")
        if not 0 <= self.max_delay_ms < 60_000:  # noqa: PLR2004  # a minute, in milliseconds
            raise InvalidUsage(f"max_delay_ms must be from 0 to 60000, got {self.max_delay_ms}")
        if not self.timeout_s > 0:
            raise InvalidUsage(f"timeout_s must be above 0, got {self.timeout_s}")
        both = sorted(set(self.inputs or ()) & set(self.parameters))
        if both:
            raise InvalidUsage(f"{', '.join(both)}: a name is an input's or a parameter's, not both")
        if self.inputs is not None and (wrong := self._misfit((*self.inputs, *self.parameters))):
            raise InvalidUsage(f"model {self.name} is a function that cannot be called so: {wrong}")

    def arguments(self, request: Parcel) -> dict[str, Any]:
        """What the function is called with: numpy views of the inputs, and the parameters.

        Raises:
            InvalidArgument: An input or a parameter is missing, unknown, or not as the model wants it; or an output is
                wanted that it does not have.
        """
        self._check_inputs(request.tensors)
        self._check_wanted(request.outputs, self.outputs)
        for name in request.parameters:
            if name not in self.parameters:
                raise InvalidArgument(
                    f"model {self.name} has no parameter {name[:128]!r}; it has: {listed(self.parameters)}"
                )
        arrays = {name: tensor.to_numpy() for name, tensor in request.tensors.items()}
        return {**arrays, **self.parameters, **request.parameters}

    def results(self, returned: Any) -> dict[str, Tensor]:
        """The outputs of what the function returned.

        Raises:
            InvalidUsage: They are not what the model says of them.
            InvalidType: One is no array.
        """
        if isinstance(returned, Mapping):
            outputs = tensors_of(returned)
        elif self.outputs is not None and len(self.outputs) == 1:
            (name,) = self.outputs
            outputs = {name: tensor_of(name, returned)}
        else:
            raise InvalidUsage(
                f"model {self.name} must return a mapping of names to arrays, got {type(returned).__name__}"
            )
        if self.outputs is not None:
            for name, spec in self.outputs.items():
                if name not in outputs:
                    raise InvalidUsage(f"model {self.name} did not return its output {name!r}")
                if not spec.fits(outputs[name].meta):
                    raise InvalidUsage(f"model {self.name} returned {name!r} as {outputs[name].meta}, it says {spec}")
            outputs = {name: outputs[name] for name in self.outputs}
        return outputs

    def reply(self, request: Parcel, outputs: Mapping[str, Tensor], request_id: str) -> Parcel:
        """The reply with the outputs that the request wants.

        Raises:
            InvalidArgument: It wants one that is not there.
        """
        self._check_wanted(request.outputs, outputs)
        wanted = request.outputs or tuple(outputs)
        return Parcel(model=self.name, request_id=request_id, tensors={name: outputs[name] for name in wanted})

    def _check_inputs(self, tensors: Mapping[str, Tensor]) -> None:
        if self.inputs is None:
            taken = sorted(set(tensors) & set(self.parameters))
            if taken:
                raise InvalidArgument(f"model {self.name} has a parameter {taken[0]!r}: no tensor can have its name")
            if wrong := self._misfit((*tensors, *self.parameters)):
                raise InvalidArgument(f"model {self.name} cannot be called so: {wrong}")
            return
        for name, tensor in tensors.items():
            spec = self.inputs.get(name)
            if spec is None:
                raise InvalidArgument(f"model {self.name} has no input {name[:128]!r}; it has: {listed(self.inputs)}")
            if not spec.fits(tensor.meta):
                raise InvalidArgument(f"input {name!r} of model {self.name} must be {spec}, got {tensor.meta}")
        for name in self.inputs:
            if name not in tensors:
                raise InvalidArgument(f"model {self.name} needs the input {name!r}; given are: {listed(tensors)}")

    def _misfit(self, names: Iterable[str]) -> str:
        """Why the function cannot take arguments of these names; empty where it can."""
        try:
            own = inspect.signature(self.function).parameters
        except (TypeError, ValueError):
            return ""  # as of many functions in C: whatever comes is tried
        given = set(names)
        takes = {name: one for name, one in own.items() if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
        if all(one.kind is not one.VAR_KEYWORD for one in own.values()):
            for name in sorted(given - takes.keys()):
                return f"its function takes no {name[:128]!r}; it takes: {listed(takes)}"
        for name, one in own.items():
            is_optional = one.default is not one.empty or one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
            if not is_optional and (name not in given or name not in takes):
                return f"its function needs {name!r}" + ("" if name in takes else ", which cannot be given by name")
        return ""

    def _check_wanted(self, wanted: Sequence[str], there: Mapping[str, object] | None) -> None:
        for name in wanted:
            if there is not None and name not in there:
                raise InvalidArgument(f"model {self.name} has no output {name[:128]!r}; it has: {listed(there)}")


def listed(names: Mapping[str, object]) -> str:
    """Names for people, not all of them where they are many."""
    more = f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
    return (", ".join(name[:128] for name in sorted(names)[:MAX_SHOWN]) or "none") + more
