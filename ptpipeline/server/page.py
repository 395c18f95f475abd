"""The page: three files that hold nothing of anybody; what it shows it asks for itself, with the reader's token."""

from collections.abc import Callable, Coroutine
from importlib import resources
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

_FILES = {
    "/": ("page.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def make_router() -> APIRouter:
    """Return the routes of the page."""
    router = APIRouter()
    folder = resources.files("ptpipeline.server") / "page"
    for path, (name, media) in _FILES.items():
        answer = _answer((folder / name).read_bytes(), media)
        router.add_api_route(path, answer, include_in_schema=False)
    return router


def _answer(body: bytes, media: str) -> Callable[[], Coroutine[Any, Any, Response]]:
    headers = {"Content-Security-Policy": _POLICY, "X-Frame-Options": "DENY"}

    async def answer() -> Response:
        return Response(body, media_type=f"{media}; charset=utf-8", headers=headers)

    return answer
