"""What a function must be to serve a name, and what it may return."""

import re

import numpy as np
import pytest

from quill.errors import InvalidArgument, InvalidType, InvalidUsage, NotFound
from quill.lanes.parcel import Parcel
from quill.tensor import Tensor
from quill.tensors import TensorModels


def refused(said, kind=InvalidUsage, function=lambda x: x, name="m", **options):
    with pytest.raises(kind, match=said):
        TensorModels().model(name, **options)(function)


def test_a_decorated_function_stays_what_it_was():
    models = TensorModels()

    @models.model("double", inputs={"x": ("float32", [-1])}, outputs={"y": ("float32", [-1])})
    def double(x):
        return 2 * x

    assert double(4) == 8
    assert [model.name for model in models] == ["double"]
    assert len(models) == 1


def test_what_cannot_serve_is_refused_when_it_is_registered():
    refused("a model needs a name", name="")
    refused("max_batch must be at least 1, got 0", max_batch=0)
    refused("max_delay_ms must be from 0 to 60000, got -1", max_delay_ms=-1)
    refused("timeout_s must be above 0, got 0", timeout_s=0)
    refused("x: a name is an input's or a parameter's, not both", inputs={"x": ("int8", [])}, parameters={"x": "1"})
    refused("cannot be called so: its function takes no 'y'; it takes: x", inputs={"y": ("int8", [])})
    refused("dtype <class 'object'> is not supported", InvalidType, inputs={"x": (object, [1])})
    refused(r"'x' must be a pair of type and shape", InvalidType, inputs={"x": "float32"})
    refused("a dimension must be at least 0, or -1 for any size, got -2", inputs={"x": ("int8", [-2])})
    models = TensorModels()
    models.model("m")(dict)
    with pytest.raises(InvalidUsage, match="there is a model 'm' already"):
        models.model("m")(dict)


def test_models_are_found_by_name():
    models = TensorModels()
    with pytest.raises(NotFound, match="known are: none"):
        models.resolve("a")
    models.model("a")(dict)
    assert models.resolve("").name == models.resolve("a").name == "a"
    models.model("b")(dict)
    with pytest.raises(InvalidArgument, match="model is empty and there are 2: a, b; name one"):
        models.resolve("")
    with pytest.raises(NotFound, match="'c' is not known; known are: a, b"):
        models.resolve("c")


def model(**options):
    models = TensorModels()
    models.model("m", **options)(lambda **inputs: inputs)
    return models.resolve("m")


def test_an_output_may_come_alone_where_one_is_declared():
    one = model(outputs={"y": ("float32", [2])})
    assert one.results(np.zeros(2, np.float32))["y"].shape == [2]
    with pytest.raises(InvalidUsage, match=r"returned 'y' as tensor \[3\] float32, it says float32 \[2\]"):
        one.results(np.zeros(3, np.float32))
    with pytest.raises(InvalidUsage, match="did not return its output 'y'"):
        one.results({"z": np.zeros(2, np.float32)})
    with pytest.raises(InvalidUsage, match="must return a mapping of names to arrays, got ndarray"):
        model().results(np.zeros(2))


def test_what_is_declared_is_given_in_that_order_and_nothing_else():
    two = model(outputs={"a": ("int8", []), "b": ("int8", [])})
    assert list(two.results({"c": np.int8(3), "b": np.int8(2), "a": np.int8(1)})) == ["a", "b"]


def test_an_array_of_objects_is_no_output():
    with pytest.raises(InvalidType, match=r"tensor 'y': dtype .* is not supported"):
        model().results({"y": np.array([object()])})


def by_place(x, /, **others):
    return {"y": x}


@pytest.mark.parametrize(
    ("function", "names", "said"),
    [
        (lambda x, y=1: x, "x", None),
        (lambda x, y=1: x, "xy", None),
        (lambda x, *, y: x, "x", "its function needs 'y'"),
        (lambda *x: x, "x", "its function takes no 'x'; it takes: none"),
        (lambda **x: x, "xyz", None),
        (by_place, "x", "its function needs 'x', which cannot be given by name"),
        (dict, "xyz", None),  # it does not say
    ],
)
def test_inputs_are_what_the_function_takes_by_name(function, names, said):
    models = TensorModels()
    models.model("m")(function)
    parcel = Parcel(tensors={name: Tensor.from_numpy(np.zeros(2)) for name in names})
    if said is None:
        assert sorted(models.resolve("m").arguments(parcel)) == sorted(names)
        return
    with pytest.raises(InvalidArgument, match=re.escape(f"model m cannot be called so: {said}")):
        models.resolve("m").arguments(parcel)


def test_a_function_that_names_its_inputs_is_called_with_those_only():
    models = TensorModels()
    models.model("m", parameters={"by": "2"})(lambda x, by: x)
    one = models.resolve("m")
    tensor = Tensor.from_numpy(np.zeros(2))
    assert sorted(one.arguments(Parcel(tensors={"x": tensor}))) == ["by", "x"]
    with pytest.raises(InvalidArgument, match=r"its function takes no 'z{128}'; it takes: by, x"):
        one.arguments(Parcel(tensors={"x": tensor, 1000 * "z": tensor}))
    with pytest.raises(InvalidArgument, match="its function needs 'x'"):
        one.arguments(Parcel(tensors={}))
    with pytest.raises(InvalidArgument, match="has a parameter 'by': no tensor can have its name"):
        model(parameters={"by": "1"}).arguments(Parcel(tensors={"by": tensor}))
