"""A picture of chunk times: one bar per chunk, its steps above each other."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from benchmarks.chunk_times import STEPS

COLOURS = ("#9467bd", "#8c564b", "#e377c2", "#17becf", "#1f77b4", "#ff7f0e", "#2ca02c")
REST, REST_COLOUR = "transfer, gateway, gRPC, loop beside the steps", "#7f7f7f"
WIDTH, HEIGHT, MARGIN, LEGEND = 1000, 220, 60, 24
MOST_BARS = 100


def plot_chunks(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write a PNG with a panel per row that has chunks."""
    rows = [row for row in rows if row.get("each_chunk_ms")]
    picture = Image.new("RGB", (WIDTH, max(len(rows), 1) * HEIGHT + LEGEND), "white")
    draw = ImageDraw.Draw(picture)
    _legend(draw)
    for number, row in enumerate(rows):
        title = f"{row['pipeline']}, {row['mode']}, {row['placement']}, {row['size']}"
        _panel(draw, LEGEND + number * HEIGHT, title, row["each_chunk_ms"][:MOST_BARS])
    picture.save(path)


def _legend(draw: ImageDraw.ImageDraw) -> None:
    x = MARGIN
    for name, colour in (*zip(STEPS, COLOURS, strict=True), (REST, REST_COLOUR)):
        draw.rectangle((x, 8, x + 10, 18), fill=colour)
        draw.text((x + 14, 7), name, fill="black")
        x += 30 + round(draw.textlength(name))


def _panel(draw: ImageDraw.ImageDraw, top: int, title: str, chunks: Sequence[Mapping[str, float]]) -> None:
    floor, height = top + HEIGHT - 20, HEIGHT - 50
    longest = max(chunk["chunk"] for chunk in chunks)
    draw.text((MARGIN, top + 6), f"{title}: ms per chunk", fill="black")
    for share in (0.0, 0.5, 1.0):
        y = floor - round(share * height)
        draw.line((MARGIN, y, WIDTH - 10, y), fill="#dddddd")
        draw.text((10, y - 6), f"{share * longest:.0f}", fill="black")
    step = (WIDTH - 10 - MARGIN) / len(chunks)
    for i, chunk in enumerate(chunks):
        x, y = MARGIN + i * step, float(floor)
        parts = [(colour, chunk.get(name, 0.0)) for name, colour in zip(STEPS, COLOURS, strict=True)]
        rest = chunk["chunk"] - sum(value for _, value in parts)
        for colour, value in (*parts, (REST_COLOUR, max(rest, 0.0))):
            length = value / longest * height
            draw.rectangle((x, y - length, x + max(step - 1, 1), y), fill=colour)
            y -= length
