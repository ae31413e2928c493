"""The part of ONNX Runtime's C API that compiles a graph with a plug-in.

Its Python module makes its environment at import and cannot give it configuration entries, which name the
device to compile for; CreateEnvWithOptions can (since 1.24). OrtApi only ever grows at its end, so the
positions below hold for every later version.
"""

import ctypes
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_VERSION = 24
_FUNCTIONS = {
    "GetErrorMessage": 2,
    "CreateSessionOptions": 10,
    "GetCompileApi": 294,
    "CreateKeyValuePairs": 295,
    "AddKeyValuePair": 296,
    "RegisterExecutionProviderLibrary": 301,
    "GetEpDevices": 303,
    "SessionOptionsAppendExecutionProvider_V2": 304,
    "EpDevice_EpName": 312,
    "CreateEnvWithOptions": 406,
}
_COMPILE = {
    "CreateFromSessionOptions": 1,
    "SetInputModelPath": 2,
    "SetOutputModelPath": 4,
    "SetEpContextEmbedMode": 7,
    "CompileModel": 8,
    "SetFlags": 9,
}
_FAIL_IF_NOTHING_COMPILED = 1
_Pointer, _Text = ctypes.c_void_p, ctypes.c_char_p


class _EnvOptions(ctypes.Structure):
    _fields_ = (
        ("version", ctypes.c_uint32),
        ("severity", ctypes.c_int32),
        ("log_id", _Text),
        ("function", _Pointer),
        ("param", _Pointer),
        ("threading", _Pointer),
        ("config", _Pointer),
    )


class _ApiBase(ctypes.Structure):
    _fields_ = (
        ("GetApi", ctypes.CFUNCTYPE(_Pointer, ctypes.c_uint32)),
        ("GetVersionString", ctypes.CFUNCTYPE(_Text)),
    )


class OnnxRuntime:
    """An environment of ONNX Runtime with entries of ours."""

    def __init__(self, entries: Mapping[str, str], severity: int = 2) -> None:
        places = (Path(entry, "onnxruntime", "capi") for entry in sys.path)
        library = next(path for place in places for path in place.glob("libonnxruntime.so.1.*"))
        self._library = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        self._library.OrtGetApiBase.restype = ctypes.POINTER(_ApiBase)
        base = self._library.OrtGetApiBase().contents
        self._table = ctypes.cast(base.GetApi(_VERSION), ctypes.POINTER(_Pointer))
        assert self._table, f"{base.GetVersionString().decode()} has no API {_VERSION}"
        options = _EnvOptions(_VERSION, severity, b"wanstream", None, None, None, self._pairs(entries))
        self._env = _Pointer()
        self._do("CreateEnvWithOptions", ctypes.byref(options), ctypes.byref(self._env))

    def register(self, name: str, library: Path) -> None:
        """Add a plug-in. Raises RuntimeError."""
        self._do("RegisterExecutionProviderLibrary", self._env, name.encode(), str(library).encode())

    def devices(self, name: str) -> list[Any]:
        """That a plug-in offers."""
        array, count = ctypes.POINTER(_Pointer)(), ctypes.c_size_t()
        self._do("GetEpDevices", self._env, ctypes.byref(array), ctypes.byref(count))
        found = [_Pointer(array[i]) for i in range(count.value)]
        return [device for device in found if self._call("EpDevice_EpName", _Text, device).decode() == name]

    def compile(self, source: Path, target: Path, devices: Sequence[Any], options: Mapping[str, str]) -> None:
        """Write `target`, and what it points at beside it. Raises RuntimeError with ONNX Runtime's words."""
        session, model = _Pointer(), _Pointer()
        self._do("CreateSessionOptions", ctypes.byref(session))
        keys = (_Text * len(options))(*(key.encode() for key in options))
        values = (_Text * len(options))(*(value.encode() for value in options.values()))
        array = (_Pointer * len(devices))(*(device.value for device in devices))
        self._do(
            "SessionOptionsAppendExecutionProvider_V2",
            *(session, self._env, array, len(devices), keys, values, len(options)),
        )
        table = ctypes.cast(self._call("GetCompileApi", _Pointer), ctypes.POINTER(_Pointer))

        def do(name: str, *arguments: Any, types: Sequence[Any]) -> None:
            self._check(ctypes.CFUNCTYPE(_Pointer, *types)(table[_COMPILE[name]])(*arguments))

        do("CreateFromSessionOptions", self._env, session, ctypes.byref(model), types=[_Pointer] * 3)
        do("SetInputModelPath", model, str(source).encode(), types=[_Pointer, _Text])
        do("SetOutputModelPath", model, str(target).encode(), types=[_Pointer, _Text])
        do("SetEpContextEmbedMode", model, False, types=[_Pointer, ctypes.c_bool])
        do("SetFlags", model, _FAIL_IF_NOTHING_COMPILED, types=[_Pointer, ctypes.c_uint32])
        do("CompileModel", self._env, model, types=[_Pointer] * 2)

    def _pairs(self, values: Mapping[str, str]) -> Any:
        pairs = _Pointer()
        self._call("CreateKeyValuePairs", None, ctypes.byref(pairs))
        for key, value in values.items():
            self._call("AddKeyValuePair", None, pairs, key.encode(), value.encode())
        return pairs

    def _do(self, name: str, *arguments: Any) -> None:
        self._check(self._call(name, _Pointer, *arguments))

    def _call(self, name: str, result: Any, *arguments: Any) -> Any:
        types = [_type(argument) for argument in arguments]
        given = [
            ctypes.cast(a, _Pointer) if kind is _Pointer and a is not None else a
            for a, kind in zip(arguments, types, strict=True)
        ]
        return ctypes.CFUNCTYPE(result, *types)(self._table[_FUNCTIONS[name]])(*given)

    def _check(self, status: int | None) -> None:
        if status:
            message = ctypes.CFUNCTYPE(_Text, _Pointer)(self._table[_FUNCTIONS["GetErrorMessage"]])
            raise RuntimeError(message(status).decode(errors="replace"))


def _type(argument: object) -> Any:
    if isinstance(argument, bytes):
        return _Text
    return ctypes.c_size_t if isinstance(argument, int) else _Pointer
