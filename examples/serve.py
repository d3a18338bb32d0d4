"""Serve a run of any task in the browser: upload an image, see the prediction and its Grad-CAM heat maps.

    pip install 'convnext-cli[serve]'
    python examples/serve.py runs/2026-11-22_101500-convnextv2_tiny --port 8000

It listens on this machine only and has no login: put a proxy with a login in front before you open it to others, and
give the host name that they use with --host-name. An upload has at most 20 MB. It is kept in a temporary folder with
a generated name until it is classified. At most `MAX_UPLOADS` uploads are kept at a time; a stalled one is dropped.
"""

import argparse
import asyncio
import base64
import contextlib
import html
import logging
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

try:
    import h11
    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.middleware.trustedhost import TrustedHostMiddleware
    from fastapi.responses import HTMLResponse
    from starlette.requests import ClientDisconnect
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ImportError as error:
    raise SystemExit(f"error: {error.name} is not installed. pip install 'convnext-cli[serve]'") from None

from convnext_cli import predict
from convnext_cli.errors import ConvnextError
from convnext_cli.inference.prediction import Prediction

MAX_BYTES = 20_000_000
MAX_UPLOADS = 4  # kept in memory at a time; further ones get an error page
MAX_CONNECTIONS = 100
STALL = 15.0  # seconds without a byte of a request, after which its connection is closed
REQUEST_TIMEOUT = 120.0  # seconds for the whole of a request
HOSTS = ("127.0.0.1", "localhost")
SECURITY = {
    "Content-Security-Policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>convnext</title>
<meta name="viewport" content="width=device-width">
<style>body{{font:1rem system-ui;max-width:40rem;margin:2rem auto;padding:0 1rem}} table{{border-spacing:1rem .2rem}}
td+td{{text-align:right}} img{{width:100%;max-width:24rem}} .bad{{color:#b00}}</style>
<h1>What is this?</h1>
<form action="/" method="post" enctype="multipart/form-data">
<input type="file" name="image" accept="image/*,.dcm" required aria-label="Image"> <button>Classify</button></form>
{result}</html>"""


class Connection(H11Protocol):  # type: ignore[misc]  # uvicorn need not be installed to check the rest
    """A connection that is closed if its request stalls, or if there are too many connections."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Start the timeout."""
        super().connection_made(transport)
        self.begun = self.heard = self.loop.time()
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
        self.watch()

    def data_received(self, data: bytes) -> None:
        """Record the time of the last data."""
        self.heard = self.loop.time()
        super().data_received(data)

    def watch(self) -> None:
        """Close the connection if its request has stalled; check again in a second."""
        if self.transport.is_closing():
            return
        now = self.loop.time()
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self.begun = self.heard = now  # the request is complete; the response may take longer
        elif now - self.heard > STALL or now - self.begun > REQUEST_TIMEOUT:
            self.transport.abort()
            return
        self.loop.call_later(1.0, self.watch)


def make_app(run: Path, hosts: Sequence[str] = HOSTS) -> FastAPI:
    """Return the application with its two pages: an empty form, and the form with a prediction."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    one_at_a_time = asyncio.Lock()
    places = asyncio.Semaphore(MAX_UPLOADS)

    @app.get("/")
    async def show_form() -> HTMLResponse:
        return make_page("")

    @app.post("/")
    async def classify(request: Request) -> HTMLResponse:
        try:
            if places.locked():
                await read_body(request, keep=False)  # browsers do not show a response before the upload ends
                return make_page("<p class=bad>Too many uploads at once; try again.</p>", status=503)
            async with places:
                return await classify_upload(request)
        except ClientDisconnect:
            return make_page("", status=400)  # the client has gone

    async def classify_upload(request: Request) -> HTMLResponse:
        body = await read_body(request, keep=True)
        if body is None:
            return make_page(f"<p class=bad>More than {MAX_BYTES / 1e6:.0f} MB.</p>", status=413)
        request._body = body
        async with request.form(max_files=1, max_fields=0) as form:
            upload = form.get("image")
            if upload is None or isinstance(upload, str):
                return make_page("<p class=bad>No image was sent.</p>", status=400)
            data, suffix = await upload.read(), ".dcm" if (upload.filename or "").lower().endswith(".dcm") else ".image"
        async with one_at_a_time:
            return await asyncio.to_thread(explain, run, data, suffix)

    return app


async def read_body(request: Request, *, keep: bool) -> bytes | None:
    """Read a request to its end; return its body, or None if it is too large or not kept.

    The size is counted on arrival: a header may be wrong.
    """
    size = 0
    body = bytearray()
    async for chunk in request.stream():
        size += len(chunk)
        if keep and size <= MAX_BYTES:
            body += chunk
        else:
            body.clear()
    return bytes(body) if keep and size <= MAX_BYTES else None


def explain(run: Path, data: bytes, suffix: str) -> HTMLResponse:
    """Return the page with the prediction and the heat map of an uploaded file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "in" / f"image{suffix}"  # nothing of the name that the client sent
        path.parent.mkdir()
        path.write_bytes(data)
        try:
            [prediction] = predict(path, run, explain=Path(folder) / "heat")
        except ConvnextError as error:
            return make_page(f"<p class=bad>{html.escape(error.problem)}</p>", status=500)
        except Exception:  # the run works (`check_run`): the image is at fault
            logging.exception("an image whose reader failed")
            return make_page("<p class=bad>This cannot be read as an image.</p>", status=400)
        if prediction.error or prediction.explanation is None:
            problem = prediction.error.problem if prediction.error else "it has no heat map"
            return make_page(f"<p class=bad>{html.escape(problem.replace(str(path), 'The file'))}</p>", status=400)
        return make_page(describe(prediction, prediction.explanation.read_bytes()))


def check_run(run: Path) -> None:
    """Check that the run can classify an image.

    Raises:
        ConvnextError: it cannot.
    """
    with tempfile.TemporaryDirectory() as folder:
        [prediction] = predict(Image.new("RGB", (64, 64), "grey"), run, explain=Path(folder) / "heat")
    if prediction.error:
        raise prediction.error


def describe(prediction: Prediction, heat: bytes) -> str:
    """Return HTML of the prediction, the probabilities, the decisions and the heat map."""
    assert prediction.task is not None
    parts = prediction.task.list_parts(prediction, 1, lambda name: name)
    text = html.escape("; ".join(" ".join(part.split()) for part in parts))
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{100 * probability:.1f}%</td></tr>"
        for name, probability in zip(prediction.classes[:10], prediction.probabilities[:10], strict=True)
    )
    decided = "".join(f"<p>{html.escape(t)}: {'yes' if met else 'no'}</p>" for t, met in prediction.decisions.items())
    image = base64.b64encode(heat).decode()
    return (
        f'<p id="prediction">{text}</p><table id="answer">{rows}</table>{decided}'
        f'<img id="heat" alt="Where the evidence lies: {text}" src="data:image/png;base64,{image}">'
    )


def make_page(result: str, status: int = 200) -> HTMLResponse:
    """Return the page with a result."""
    return HTMLResponse(PAGE.format(result=result), status_code=status, headers=SECURITY)


def main() -> None:
    """Serve a run until it is interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="the folder of a finished run")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    parser.add_argument("--host-name", action="append", default=[], help="a name that others ask for; may be repeated")
    options = parser.parse_args()
    if options.run is None:
        parser.exit(2, "error: no run folder. Make one with `convnext demo`, then: python examples/serve.py RUN\n")
    if not 0 <= options.port <= 65535:
        parser.error("--port is a number from 0 to 65535")
    try:
        check_run(options.run)
        listening = socket.create_server(("127.0.0.1", options.port))
    except ConvnextError as error:
        parser.exit(error.exit_code, f"error: {error}\n")
    except OSError as error:
        parser.exit(2, f"error: cannot listen on port {options.port} ({error}). Give another --port.\n")
    print(f"Serving {options.run} at http://127.0.0.1:{listening.getsockname()[1]}/", flush=True)
    app = make_app(options.run, (*HOSTS, *options.host_name))
    server = uvicorn.Server(uvicorn.Config(app, http=Connection, ws="none", log_level="warning"))
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C is how it ends
        server.run(sockets=[listening])


if __name__ == "__main__":
    main()
