"""The page of `mvlm serve`, and the API that it calls."""

from __future__ import annotations

from collections.abc import Callable, Collection
from importlib.resources import files
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from mvlm.errors import UserError
from mvlm.serve.answers import Answers
from mvlm.serve.asked import AskedDrawings, AskedPatches, AskedSearch, AskedView, AskedWords
from mvlm.serve.gate import Gate
from mvlm.serve.guard import RequestGuard

PAGE = {
    "/": ("index.html", "text/html"),
    "/style.css": ("style.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/search.js": ("search.js", "text/javascript"),
    "/draw.js": ("draw.js", "text/javascript"),
}


def make_app(answers: Answers, gate: Gate, names: Collection[str]) -> ASGIApp:
    """The whole application.

    Args:
        names: host names by which it may be requested, besides IP addresses.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    about = answers.about()

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "step": answers.loaded.step}

    @app.get("/api/about")
    async def tell() -> dict[str, Any]:
        return about

    @app.post("/api/view")
    async def view(asked: AskedView) -> dict[str, Any]:
        return await gate.pass_through(lambda: answers.view(asked))

    @app.post("/api/search")
    async def search(asked: AskedSearch) -> dict[str, Any]:
        return await gate.pass_through(lambda: answers.search(asked))

    @app.post("/api/drawings")
    async def drawings(asked: AskedDrawings) -> dict[str, Any]:
        return await gate.pass_through(lambda: answers.drawings(asked))

    @app.post("/api/patches")
    async def patches(asked: AskedPatches) -> dict[str, Any]:
        return await gate.pass_through(lambda: answers.patches(asked))

    @app.post("/api/words")
    async def words(asked: AskedWords) -> dict[str, Any]:
        return await gate.pass_through(lambda: answers.words(asked))

    for path, (name, kind) in PAGE.items():
        app.add_api_route(path, _file(name, kind), methods=["GET", "HEAD"])

    @app.exception_handler(UserError)
    async def mistake(request: Request, error: UserError) -> Response:
        return JSONResponse({"error": str(error)}, 400)

    @app.exception_handler(RequestValidationError)
    async def misunderstood(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "the request"
        return JSONResponse({"error": f"This cannot be answered ({where}: {first['msg']}): change the request."}, 422)

    @app.exception_handler(HTTPException)
    async def unanswerable(request: Request, error: HTTPException) -> Response:
        sentence = f"This cannot be answered ({error.detail.rstrip('.')}): change the request."
        return JSONResponse({"error": sentence}, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": "Something went wrong: the terminal of `mvlm serve` says what."}, 500)

    return RequestGuard(app, gate, names)


def _file(name: str, kind: str) -> Callable[[], Any]:
    content = files("mvlm.serve").joinpath("page", name).read_bytes()

    async def get() -> Response:
        return Response(content, media_type=kind)

    return get
