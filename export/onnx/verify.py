"""Check an earlier export again: every file against its manifest, every graph against the rules."""

from export.fp8.quantization import FP8_OPS
from export.onnx.onnx_export import FORM_OPS, check_onnx
from export.onnx.store import EngineStore
from streaming.engines.engine_set import read_engine_set
from streaming.engines.manifest import ONNX_FILE, EngineManifest


def verify_set(store: EngineStore, name: str) -> list[EngineManifest]:
    """The manifests of all engines of a set. Raises EngineError that says what is wrong with one."""
    engines = read_engine_set(store.sets / name)
    manifests = [store.verified(engine) for engine in engines.engines()]
    for manifest in manifests:
        quantised = FP8_OPS if manifest.quantization else ()
        check_onnx(
            store.engine(manifest.name) / ONNX_FILE, operators=FORM_OPS[manifest.form].union(quantised)
        )
    return manifests
