"""All OSC addresses for GET /api/v1/osc/paths, and as a page to read and to copy from."""

import html
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from gateway.osc.addresses import KEYS, Key
from gateway.pipelines.state import Pipelines
from gateway.stream.parameters.state import ParameterContext, ParameterState, parameters_of
from gateway.stream.stream import Stream
from streaming.specs import SPECS, PipelineSpec

Entry = dict[str, Any]

_RUNTIME: Final = "Runtime"
_COLUMNS: Final = ("Address", "Type", "Range", "Default", "Example", "Effect")
_EXAMPLES: Final = {"boolean": "T", "trigger": "", "integer": "1", "number": "0.5", "string": "text"}

STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem;
  color: #222; background: #fff }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 2rem }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem; border-bottom: 1px solid #ddd }
code, button { font: 13px/1.4 ui-monospace, monospace }
button { border: 1px solid #bbb; border-radius: 4px; background: #f5f5f5; padding: .1rem .4rem }
button.copied { background: #cfc }
@media (prefers-color-scheme: dark) {
  body { color: #ddd; background: #1b1b1b } th, td { border-color: #444 }
  button { color: #ddd; background: #2a2a2a; border-color: #555 } button.copied { background: #253 }
}
"""
SCRIPT: Final = """
document.addEventListener("click", async ({ target }) => {
  if (target.tagName !== "BUTTON") return;
  try {
    await navigator.clipboard.writeText(target.textContent);
  } catch {  // without HTTPS there is no clipboard: select it instead
    getSelection().selectAllChildren(target);
    return;
  }
  target.className = "copied";
  setTimeout(() => { target.className = ""; }, 800);
});
"""
_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>OSC addresses</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<h1>OSC addresses</h1>
<p>{where} <code>/scope/&lt;key&gt;</code> reaches all streams,
<code>/wanstream/&lt;stream&gt;/&lt;key&gt;</code> one of them.
Click an address to copy it. With python-osc:</p>
<pre>from pythonosc.udp_client import SimpleUDPClient
client = SimpleUDPClient("{host}", {port})
client.send_message("/scope/prompt", "a red boat")
client.send_message("/scope/noise_scale", 0.4)</pre>
{groups}
<script>{script}</script>
</body>
</html>
"""


def all_paths(pipelines: Pipelines, streams: Iterable[Stream]) -> dict[str, Any]:
    """Every address by group: of all streams, of each stream, and what each pipeline makes use of."""
    loaded = pipelines.loaded.spec if pipelines.loaded else None
    active = {_RUNTIME: [_entry(key, "/scope") for key in KEYS]}
    for stream in streams:
        now = stream.state.effective
        active[stream.id] = [_entry(key, f"/wanstream/{stream.id}", now) for key in KEYS]
    if loaded is not None:
        active[loaded.name] = _of_pipeline(loaded)
    return {
        "active": active,
        "available": {spec.name: _of_pipeline(spec) for spec in SPECS.values() if spec is not loaded},
        "active_pipeline_ids": [] if loaded is None else [loaded.id],
    }


def _of_pipeline(spec: PipelineSpec) -> list[Entry]:
    """The parameters that mean something to a pipeline, with its defaults."""
    context = ParameterContext(spec, {"vace_enabled": spec.supports_vace}, Path())
    defaults, used = ParameterState(context).effective, parameters_of(context)
    keys = [key for key in KEYS if key.field in used]
    return [{**_entry(key, "/scope", defaults), "pipeline_id": spec.id} for key in keys]


def _entry(key: Key, root: str, values: Mapping[str, Any] | None = None) -> Entry:
    """As Scope's clients know it: `min`, `max`, `enum` and `default` only where there are some."""
    entry = {
        "key": key.name,
        "type": key.type,
        "description": key.description,
        "min": key.minimum,
        "max": key.maximum,
        "enum": list(key.choices) or None,
        "default": (values or {}).get(key.field or ""),
        "osc_address": f"{root}/{key.name}",
    }
    return {name: value for name, value in entry.items() if value is not None}


def page(paths: Mapping[str, Any], address: tuple[str, int] | None) -> str:
    """A page without any other file. address: where OSC is heard; None: it is not."""
    host, port = address or ("127.0.0.1", 8000)
    shown = html.escape(host)
    where = f"Listening on UDP <code>{shown}:{port}</code>." if address else "OSC is off (WANSTREAM_OSC)."
    groups = "".join(
        f"<h2>{html.escape(name)}</h2>{_table(entries)}"
        for part in ("active", "available")
        for name, entries in paths[part].items()
        if entries
    )
    return _PAGE.format(style=STYLE, script=SCRIPT, where=where, host=shown, port=port, groups=groups)


def _table(entries: Iterable[Entry]) -> str:
    rows = "".join(_row(entry) for entry in entries)
    head = "".join(f"<th>{name}</th>" for name in _COLUMNS)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _row(entry: Entry) -> str:
    limits = [entry.get("min"), entry.get("max")]
    values = " to ".join(f"{limit:g}" for limit in limits if limit is not None)
    choices = " or ".join(entry.get("enum", ()))
    example = next(iter(entry.get("enum", ())), _EXAMPLES.get(entry["type"], "text 1.0"))
    cells = [entry["type"], choices or values, str(entry.get("default", "")), example, entry["description"]]
    rest = "".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells)
    return f"<tr><td><button>{html.escape(entry['osc_address'])}</button></td>{rest}</tr>"
