"""The configuration of ``quill serve``: a TOML file, the environment, flags; what comes later in this list wins.

    grpc = "0.0.0.0:50051"                  # QUILL_GRPC, --grpc
    [tls]
    cert = "server.pem"                     # QUILL_TLS_CERT, --tls-cert; relative to this file
    [limits]
    max_message_bytes = 1048576             # QUILL_LIMITS_MAX_MESSAGE_BYTES, --set limits.max_message_bytes=1048576

    [backend_options]                       # whatever the backend takes, by the names that it gives them
    router_url = "http://127.0.0.1:9091"    # QUILL_BACKEND_OPTIONS_ROUTER_URL, --set backend_options.router_url=...

Every key can be set in each of the three places, the map of identities in the file alone. There is no secret in it:
certificates, their keys and the hashes of credentials are files of their own.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from quill.errors import InvalidUsage
from quill.limits import Limits, Quota

_PREFIX = "QUILL_"
_CONFIG_VARIABLE = "QUILL_CONFIG"
BACKEND_OPTIONS = "backend_options"
"""The table whose keys are the backend's business."""
_BACKEND_OPTION = re.compile(rf"{BACKEND_OPTIONS}\.[a-z][a-z0-9_]*")
_KUBERNETES = re.compile(r"QUILL_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)")
"""What Kubernetes sets in every pod beside a Service whose name begins with "quill"."""


@dataclass(frozen=True, slots=True)
class Option:
    """One key."""

    key: str
    """Its name, in a table where it has a dot: ``tls.cert``."""
    kind: type
    """str, int, float, bool, Path, tuple for a list of texts (joined with commas outside of files), dict for a table
    of names, which only a file can hold, or object for what a backend makes of it (outside of files a TOML value, or
    else a text)."""
    default: Any

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return _PREFIX + self.key.replace(".", "_").upper()


def _options_of(table: str, bounds: type[Any]) -> Iterator[Option]:
    """The fields of Limits or Quota."""
    hints = get_type_hints(bounds)
    for field in dataclasses.fields(bounds):
        kind = float if hints[field.name] is float else int
        yield Option(f"{table}.{field.name}", kind, field.default)


OPTIONS: Mapping[str, Option] = {
    option.key: option
    for option in (
        Option("grpc", str, "127.0.0.1:50051"),
        Option("http", str, "127.0.0.1:8080"),
        Option("backend", str, "ngram"),
        Option("grace_s", float, 10.0),
        Option("http2", bool, False),
        Option("compression", bool, False),
        Option("reflection", bool, False),
        Option("cors", tuple, ()),
        Option("tensor_models", str, None),
        Option("large_tensors", bool, False),
        Option("tls.cert", Path, None),
        Option("tls.key", Path, None),
        Option("tls.client_ca", Path, None),
        Option("tls.identities", dict, None),
        Option("auth.keys_file", Path, None),
        Option("auth.api_key_header", str, "x-api-key"),
        *_options_of("limits", Limits),
        *_options_of("quota", Quota),
    )
}
"""By key."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A value and where it comes from."""

    value: Any
    source: str
    """``default``, ``quill.toml``, ``QUILL_GRPC`` or ``--grpc``."""


class Config:
    """The effective configuration.

    Args:
        file: The TOML file; None for that which QUILL_CONFIG names, or none.
        environment: The environment's variables.
        flags: Key and value by flag: ``{"--tls-cert": ("tls.cert", path)}``; None for a flag that was not given.
        assignments: What ``--set`` was given: ``limits.max_runs=5``.

    Raises:
        InvalidUsage: The file cannot be read, a key is not known, or a value is of another type.
    """

    def __init__(
        self,
        file: Path | None,
        environment: Mapping[str, str],
        flags: Mapping[str, tuple[str, Any]],
        assignments: Sequence[str] = (),
    ) -> None:
        self._settings = {key: Setting(option.default, "default") for key, option in OPTIONS.items()}
        if file is None and (named := environment.get(_CONFIG_VARIABLE)):
            file = Path(named)
        if file is not None:
            self._take_file(file)
        self._take_environment(environment)
        for assignment in assignments:
            self._take_assignment(assignment)
        for flag, (key, value) in flags.items():
            if value is not None:
                self._settings[key] = Setting(value, flag)

    def __getitem__(self, key: str) -> Any:
        """The value of a key."""
        return self._settings[key].value

    def table(self, name: str) -> dict[str, Any]:
        """The values of a table, by their names in it."""
        return {key.partition(".")[2]: setting.value for key, setting in self._settings.items() if _in(key, name)}

    def limits(self) -> Limits:
        """The bounds of the server.

        Raises:
            InvalidUsage: One of them is out of range.
        """
        return Limits(**self.table("limits"))

    def quota(self) -> Quota | None:
        """What each principal may use; None where nothing is bounded.

        Raises:
            InvalidUsage: One of the bounds is out of range.
        """
        quota = Quota(**self.table("quota"))
        return None if quota == Quota() else quota

    def show(self) -> str:
        """All of it as TOML that could be its file, with where each value comes from."""
        lines, table = [], ""
        for key, setting in self._settings.items():
            name, _, leaf = key.rpartition(".")
            if name != table:
                lines += ["", f"[{name}]"]
                table = name
            comment = "# " if setting.value is None else ""
            lines.append(f"{comment}{leaf} = {_toml(setting.value)}  # {setting.source}")
        return "\n".join(lines)

    def _take_file(self, path: Path) -> None:
        try:
            document = tomllib.loads(path.read_text("utf-8"))
        except OSError as error:
            raise InvalidUsage(f"cannot read the configuration {path}: {error.strerror}") from None
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise InvalidUsage(f"the configuration {path} is no TOML: {error}") from None
        for key, value in _flat(document):
            option = _known(key, f"{path}: ")
            checked = _typed(option, value, f"{path}: {key}")
            if isinstance(checked, Path):
                checked = path.parent / checked
            self._settings[key] = Setting(checked, str(path))

    def _take_environment(self, environment: Mapping[str, str]) -> None:
        options = {option.variable: option for option in OPTIONS.values() if option.kind is not dict}
        for variable, text in environment.items():
            if not variable.startswith(_PREFIX) or variable == _CONFIG_VARIABLE:
                continue
            option = options.get(variable) or _backend_option(_key_of(variable))
            if option is not None:
                self._settings[option.key] = Setting(_parsed(option, text, variable), variable)
            elif not _KUBERNETES.fullmatch(variable):
                raise InvalidUsage(f"the environment has {variable}, which is unknown{_nearest(variable, options)}")

    def _take_assignment(self, assignment: str) -> None:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise InvalidUsage(f"--set takes KEY=VALUE, as limits.max_runs=5, got {assignment!r}")
        option = _known(key, "--set: ")
        if option.kind is dict:
            raise InvalidUsage(f"--set: {key} is a table: write it into the file")
        self._settings[key] = Setting(_parsed(option, text, f"--set {key}"), f"--set {key}")


def _in(key: str, table: str) -> bool:
    return key.startswith(f"{table}.")


def _flat(document: Mapping[str, Any], table: str = "") -> Iterator[tuple[str, Any]]:
    """The keys of a document and its tables; a table that is itself a value stays one."""
    for name, value in document.items():
        key = table + name
        is_table = key == BACKEND_OPTIONS or (key not in OPTIONS and any(_in(known, key) for known in OPTIONS))
        if isinstance(value, dict) and is_table:
            yield from _flat(value, key + ".")
        else:
            yield key, value


def _known(key: str, where: str) -> Option:
    option = OPTIONS.get(key) or _backend_option(key)
    if option is None:
        raise InvalidUsage(f"{where}{key!r} is no key of the configuration{_nearest(key, OPTIONS)}")
    return option


def _backend_option(key: str) -> Option | None:
    """The option of a key of the backend's own; which of them it knows, it says itself."""
    return Option(key, object, None) if _BACKEND_OPTION.fullmatch(key) else None


def _key_of(variable: str) -> str:
    """The key of a variable that could be one of the backend's."""
    return variable.removeprefix(_PREFIX).lower().replace(f"{BACKEND_OPTIONS}_", f"{BACKEND_OPTIONS}.", 1)


def _nearest(name: str, known: Mapping[str, Option]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are: {', '.join(sorted(known))}"


def _typed(option: Option, value: Any, where: str) -> Any:
    """A value of a file, of the type that the option has."""
    match option.kind, value:
        case (kind, bool() | int() | float() | str()) if kind in (type(value), object):
            return value
        case (kind, int()) if kind is float and not isinstance(value, bool):
            return float(value)
        case (kind, str()) if kind is Path and value:
            return Path(value)
        case (kind, list()) if kind in (tuple, object) and all(isinstance(entry, str) for entry in value):
            return tuple(value)
        case (kind, dict()) if kind is dict and all(isinstance(entry, str) for entry in value.values()):
            return value
    raise InvalidUsage(f"{where} must be {_NAMES[option.kind]}, got {_toml(value)}")


def _parsed(option: Option, text: str, where: str) -> Any:
    """A value of the environment or the command line."""
    if option.kind in (int, float):
        try:
            return option.kind(text)
        except ValueError:
            raise InvalidUsage(f"{where} must be {_NAMES[option.kind]}, got {text!r}") from None
    if option.kind is bool:
        if text not in _BOOLEANS:
            raise InvalidUsage(f"{where} must be {_NAMES[bool]}, got {text!r}")
        return _BOOLEANS[text]
    if option.kind is tuple:
        return tuple(entry.strip() for entry in text.split(",") if entry.strip())
    return _typed(option, _plain(text) if option.kind is object else text, where)


def _plain(text: str) -> Any:
    """A value whose type nobody here knows: what TOML would read, or the text as it is."""
    try:
        document = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    value = document["value"] if len(document) == 1 else text
    return value if isinstance(value, bool | int | float | str | list) else text


_BOOLEANS = {"true": True, "false": False}
_NAMES = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a text",
    Path: "a path",
    tuple: "a list of texts",
    dict: "a table of texts",
    object: "a text, a number, true or false, or a list of texts",
}


def _toml(value: Any) -> str:
    match value:
        case None:
            return "(none)"
        case dict():
            return (
                "{"
                + ", ".join(f"{json.dumps(key, ensure_ascii=False)} = {_toml(entry)}" for key, entry in value.items())
                + "}"
            )
        case tuple() | list():
            return f"[{', '.join(map(_toml, value))}]"
        case str() | Path():
            return json.dumps(str(value), ensure_ascii=False)
        case float():
            return repr(value)
        case _:
            return str(value).lower()
