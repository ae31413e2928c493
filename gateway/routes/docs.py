"""Swagger UI for /openapi.json, from files of the installed package: it works without a network."""

from importlib import resources

from quart import Blueprint, Response, send_from_directory
from quart_schema import hide, tag

from gateway.http.openapi import answers

_PAGE = """<!doctype html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <title>Scope API</title>
  <link rel="icon" href="data:,">
  <link rel="stylesheet" href="docs/assets/swagger-ui.css">
</head>
<body>
  <div id="swagger-ui"></div>
  <script src="docs/assets/swagger-ui-bundle.js"></script>
  <script src="docs/start.js"></script>
</body>
</html>
"""
_START = 'SwaggerUIBundle({url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true});'


def docs_blueprint() -> Blueprint:
    bp = Blueprint("docs", __name__)
    assets = str(resources.files("flask_swagger_ui") / "dist")

    @bp.get("/docs")
    @tag(["general"])
    @answers(200, "text/html", description="Swagger UI")
    async def docs() -> Response:
        """This document as a page, to read and to try."""
        return Response(_PAGE, mimetype="text/html")

    @bp.get("/docs/start.js")
    @hide
    async def start() -> Response:
        return Response(_START, mimetype="text/javascript")

    @bp.get("/docs/assets/<name>")
    @hide
    async def docs_assets(name: str) -> Response:
        return await send_from_directory(assets, name)

    return bp
