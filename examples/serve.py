"""A run in the browser: upload an image, see the classes, their probabilities, and where the model looked.

    pip install 'convnext-cli[serve]'
    python examples/serve.py runs/2026-11-22_101500-convnextv2_tiny --port 8000

It listens on this machine alone; there is no login, so put one in front before it is opened to others. What is uploaded
has at most 20 MB, is kept in a temporary folder under a name of our own while it is looked at, and is gone afterwards.
"""

import argparse
import asyncio
import base64
import html
import tempfile
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse

from convnext_cli import predict
from convnext_cli.errors import ConvnextError
from convnext_cli.inference.prediction import Prediction

MAX_BYTES = 20_000_000
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


def make_app(run: Path) -> FastAPI:
    """The two pages: an empty form, and the form with an answer."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    one_at_a_time = asyncio.Lock()

    @app.get("/")
    async def show_form() -> HTMLResponse:
        return answer("")

    @app.post("/")
    async def classify(request: Request) -> HTMLResponse:
        # the size is counted while it arrives: what a header says need not be so
        size = 0
        body = bytearray()
        async for chunk in request.stream():
            size += len(chunk)
            if size > MAX_BYTES:
                return answer(f"<p class=bad>More than {MAX_BYTES / 1e6:.0f} MB.</p>", status=413)
            body += chunk
        request._body = bytes(body)
        async with request.form(max_files=1, max_fields=0) as form:
            upload = form.get("image")
            if upload is None or isinstance(upload, str):
                return answer("<p class=bad>No image was sent.</p>", status=400)
            data, suffix = await upload.read(), ".dcm" if (upload.filename or "").lower().endswith(".dcm") else ".image"
        async with one_at_a_time:
            return await asyncio.to_thread(explain, run, data, suffix)

    return app


def explain(run: Path, data: bytes, suffix: str) -> HTMLResponse:
    """Classifies an uploaded file and draws where the model looked."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "in" / f"image{suffix}"  # nothing of the name that came with it
        path.parent.mkdir()
        path.write_bytes(data)
        try:
            [told] = predict(path, run, explain=Path(folder) / "heat")
        except ConvnextError as error:
            return answer(f"<p class=bad>{html.escape(error.problem)}</p>", status=500)
        if told.error or told.explanation is None:
            return answer("<p class=bad>This cannot be read as an image.</p>", status=400)
        return answer(describe(told, told.explanation.read_bytes()))


def describe(told: Prediction, heat: bytes) -> str:
    """Classes with their probabilities, decisions, and the picture."""
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{100 * share:.1f}%</td></tr>"
        for name, share in zip(told.classes[:10], told.probabilities[:10], strict=True)
    )
    decided = "".join(f"<p>{html.escape(t)}: {'yes' if met else 'no'}</p>" for t, met in told.decisions.items())
    picture = base64.b64encode(heat).decode()
    alt = f"Where the model looked for {html.escape(told.classes[0])}"
    return (
        f'<table id="answer">{rows}</table>{decided}<img id="heat" alt="{alt}" src="data:image/png;base64,{picture}">'
    )


def answer(result: str, status: int = 200) -> HTMLResponse:
    """The page."""
    return HTMLResponse(PAGE.format(result=result), status_code=status, headers=SECURITY)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    uvicorn.run(make_app(options.run), host="127.0.0.1", port=options.port, log_level="warning")
