"""The tensor models of a server, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from quill.errors import InvalidArgument, InvalidUsage, NotFound
from quill.tensor.spec import Specs, specs_of
from quill.tensors.model import Function, TensorModel, listed

F = TypeVar("F", bound=Function)


class TensorModels:
    """Python functions under the names that callers use.

        models = TensorModels()


        @models.model(
            "scale", inputs={"x": ("float32", [-1])}, outputs={"y": ("float32", [-1])}, parameters={"by": "2"}
        )
        def scale(x, by):
            return {"y": x * np.float32(by)}

    A function gets its inputs as numpy arrays, by name, and returns a mapping of names to arrays; where one output is
    declared, it may return that alone. The arrays are views of what was received, some of them read-only: copy what is
    to be changed. A plain function runs in a thread, a coroutine function on the event loop. What it returns may be
    anything that speaks DLPack.
    """

    def __init__(self) -> None:
        self._models: dict[str, TensorModel] = {}

    def model(
        self,
        name: str,
        *,
        inputs: Specs | None = None,
        outputs: Specs | None = None,
        parameters: Mapping[str, str] | None = None,
        max_batch: int = 1,
        max_delay_ms: float = 0.0,
        timeout_s: float = 600.0,
    ) -> Callable[[F], F]:
        """A decorator that registers a function, and leaves it as it is.

        Args:
            name: What callers ask for.
            inputs: Type and shape by name, ``{"x": ("float32", [-1, 3])}``: -1 stands for any size. A call that does
                not fit is refused before the function runs. None: it takes whatever comes, ``**inputs``.
            outputs: Likewise. What the function returns must fit, else the call ends with INTERNAL.
            parameters: The settings that a call may give, texts, with what counts where it gives none. The function
                gets all of them, by name, as it gets its inputs.
            max_batch: Above 1, calls that come at the same time and differ in the size of axis 0 only are joined
                along it, up to so many rows, and their outputs split again. The function may then run twice for a call:
                when it fails for several at once, each runs alone, so that one cannot spoil the others.
            max_delay_ms: How long a call may wait to be joined.
            timeout_s: How long the function may take; its callers get DEADLINE_EXCEEDED then. A thread cannot be
                stopped: it goes on to its end.

        Raises:
            InvalidUsage: The name is taken, or a bound is out of range.
            InvalidType: A specification is none.
        """

        def register(function: F) -> F:
            self.add(
                TensorModel(
                    name=name,
                    function=function,
                    inputs=None if inputs is None else specs_of(inputs),
                    outputs=None if outputs is None else specs_of(outputs),
                    parameters=dict(parameters or {}),
                    max_batch=max_batch,
                    max_delay_ms=max_delay_ms,
                    timeout_s=timeout_s,
                )
            )
            return function

        return register

    def add(self, model: TensorModel) -> None:
        """Register a model.

        Raises:
            InvalidUsage: The name is taken.
        """
        if model.name in self._models:
            raise InvalidUsage(f"there is a model {model.name!r} already")
        self._models[model.name] = model

    def resolve(self, name: str) -> TensorModel:
        """The model of a name; the only one where the name is empty.

        Raises:
            NotFound: No model has the name. The message has those that there are.
            InvalidArgument: The name is empty and there are several models.
        """
        if not name and len(self._models) == 1:
            return next(iter(self))
        if not name and self._models:
            raise InvalidArgument(f"model is empty and there are {len(self._models)}: {listed(self._models)}; name one")
        if name not in self._models:
            raise NotFound(f"model {name[:128]!r} is not known; known are: {listed(self._models)}")
        return self._models[name]

    def __iter__(self) -> Iterator[TensorModel]:
        return iter(self._models.values())

    def __len__(self) -> int:
        return len(self._models)
