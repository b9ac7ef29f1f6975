import copy
import pickle

import ml_dtypes
import numpy as np
import pytest

from quill.dtype import DType
from quill.errors import InvalidType
from quill.proto import DataType

CONSTRUCTORS = {
    "float32": DType.float32,
    "float16": DType.float16,
    "bfloat16": DType.bfloat16,
    "float64": DType.float64,
    "int8": DType.int8,
    "int16": DType.int16,
    "int32": DType.int32,
    "int64": DType.int64,
    "uint8": DType.uint8,
    "uint16": DType.uint16,
    "uint32": DType.uint32,
    "uint64": DType.uint64,
    "bool": DType.bool_,
    "complex64": DType.complex64,
    "float8_e4m3fn": DType.float8_e4m3fn,
    "float8_e5m2": DType.float8_e5m2,
}

ML_DTYPES = {"bfloat16", "float8_e4m3fn", "float8_e5m2"}


def numpy_dtype(name):
    return np.dtype(getattr(ml_dtypes, name)) if name in ML_DTYPES else np.dtype(name)


every_dtype = pytest.mark.parametrize("name", CONSTRUCTORS)


def test_every_data_type_of_the_contract_has_a_dtype_with_its_number():
    in_contract = {
        value.name.removeprefix("DATA_TYPE_").lower(): value.number
        for value in DataType.DESCRIPTOR.values
        if value.number
    }
    assert {name: make().number for name, make in CONSTRUCTORS.items()} == in_contract


@every_dtype
def test_name_and_element_size_are_those_of_numpy(name):
    dtype = CONSTRUCTORS[name]()
    assert dtype.name == name == numpy_dtype(name).name
    assert dtype.element_size == numpy_dtype(name).itemsize


@every_dtype
def test_a_dtype_is_the_same_value_however_it_is_made(name):
    dtype = CONSTRUCTORS[name]()
    assert dtype == DType.from_number(dtype.number) == DType.from_numpy(numpy_dtype(name)) == CONSTRUCTORS[name]()
    pickled = pickle.loads(pickle.dumps(dtype))  # noqa: S301  # its own bytes
    assert len({dtype, DType.from_number(dtype.number), pickled, copy.deepcopy(dtype)}) == 1


@every_dtype
def test_numpy_dtype_comes_back_little_endian(name):
    assert CONSTRUCTORS[name]().to_numpy() == numpy_dtype(name).newbyteorder("<")


@every_dtype
def test_repr_names_the_constructor_family_and_str_the_type(name):
    assert repr(CONSTRUCTORS[name]()) == f"DType.{name}"
    assert str(CONSTRUCTORS[name]()) == name


def test_different_dtypes_differ():
    assert len({make() for make in CONSTRUCTORS.values()}) == 16
    assert DType.int16() != DType.uint16()
    assert DType.float32() != "float32"


def test_only_the_real_floating_types_are_floats():
    floats = {name for name, make in CONSTRUCTORS.items() if make().is_float()}
    assert floats == {"float16", "float32", "float64"} | ML_DTYPES


def test_only_the_integer_types_are_integers_and_bool_is_none():
    integers = {name for name, make in CONSTRUCTORS.items() if make().is_integer()}
    assert integers == {name for name in CONSTRUCTORS if numpy_dtype(name).kind in "iu"}
    assert not DType.bool_().is_integer()


def test_the_signed_types_are_those_that_hold_minus_one():
    signed = {name for name, make in CONSTRUCTORS.items() if make().is_signed()}
    assert signed == {name for name in CONSTRUCTORS if name != "bool" and not name.startswith("uint")}
    for name in signed:
        assert np.array([-1]).astype(numpy_dtype(name)).astype(np.complex128)[0] == -1


@pytest.mark.parametrize("given", [np.float32, "f4", ">f4", "<f4", np.dtype(">f4"), np.zeros(1, "f4").dtype])
def test_whatever_numpy_takes_for_float32_is_float32(given):
    assert DType.from_numpy(given) == DType.float32()


def test_pythons_own_types_are_what_numpy_makes_of_them():
    assert DType.from_numpy(float) == DType.float64()
    assert DType.from_numpy(bool) == DType.bool_()


@pytest.mark.parametrize("name", sorted(ML_DTYPES))
def test_the_names_and_scalar_types_of_ml_dtypes_are_known(name):
    assert DType.from_numpy(name) == DType.from_numpy(getattr(ml_dtypes, name)) == CONSTRUCTORS[name]()


@pytest.mark.parametrize(
    "given",
    [
        object,
        "U3",
        "S3",
        "V4",
        "datetime64[s]",
        "complex128",
        "longdouble",
        [("a", "f4")],
        ("f4", (2,)),
        ml_dtypes.float8_e4m3fnuz,
        ml_dtypes.int4,
        None,
        3,
        "no dtype",
        "f4,(",
        "3;",
        DType.float32(),
    ],
    ids=repr,
)
def test_what_cannot_be_sent_is_refused_and_told_what_can(given):
    with pytest.raises(InvalidType, match=r"is not supported; supported: float32, float16, bfloat16, .*float8_e5m2"):
        DType.from_numpy(given)


@pytest.mark.parametrize("number", [0, -1, 17, 2**31, "1", None])
def test_a_number_that_is_no_data_type_is_refused_and_told_what_is(number):
    with pytest.raises(InvalidType, match=r"supported: 1 float32, .*16 float8_e5m2") as caught:
        DType.from_number(number)
    assert repr(number) in str(caught.value)


def test_a_dtype_cannot_be_changed():
    with pytest.raises(AttributeError):
        DType.float32().name = "float64"
