import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from convnext_cli.runs import RunFolder
from tests.reports.browser import CHROMIUM, Browser

for name in ("fastapi", "uvicorn", "multipart"):
    pytest.importorskip(name, reason="the extra serve is not installed")

SCRIPT = Path(__file__).parents[2] / "examples/serve.py"
PATIENCE = 180  # seconds, on a machine that does other things too


@pytest.fixture(scope="module")
def address(run: RunFolder) -> Iterator[str]:
    """The example, serving the small run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(SCRIPT), str(run.path), "--port", str(port)]
    process = subprocess.Popen(command)
    until = time.monotonic() + PATIENCE
    try:
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10).close()
                break
            except urllib.error.URLError:
                assert process.poll() is None
                assert time.monotonic() < until
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait(30)


def post(address: str, content: bytes, filename: str) -> tuple[int, str]:
    head = f'--x\r\nContent-Disposition: form-data; name="image"; filename="{filename}"\r\n\r\n'.encode()
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    request = urllib.request.Request(address, data=head + content + b"\r\n--x--\r\n", headers=kind)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:  # noqa: S310
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_an_image_is_uploaded_and_explained(address: str, digits: Path, tmp_path: Path) -> None:
    odd = tmp_path / "<b>name.png"
    odd.write_bytes(sorted((digits / "1").glob("*.png"))[0].read_bytes())
    with Browser() as browser:
        browser.ask("Page.navigate", url=address)
        wait_for(browser, "document.querySelector('input[type=file]') !== null")
        document = browser.ask("DOM.getDocument")["root"]["nodeId"]
        field = browser.ask("DOM.querySelector", nodeId=document, selector="input[type=file]")["nodeId"]
        browser.ask("DOM.setFileInputFiles", nodeId=field, files=[str(odd)])
        browser.evaluate("document.querySelector('button').click()")
        wait_for(browser, "document.querySelector('#heat')?.complete === true")
        assert browser.evaluate("document.querySelectorAll('#answer tr').length") == 3
        assert "%" in browser.evaluate("document.querySelector('#answer').innerText")
        assert browser.evaluate("document.querySelector('#heat').naturalWidth") == 32
        assert not browser.complaints


def wait_for(browser: Browser, condition: str) -> None:
    until = time.monotonic() + PATIENCE
    while browser.evaluate(condition) is not True:
        assert time.monotonic() < until, condition
        time.sleep(0.2)


def test_no_path_comes_from_outside(address: str, digits: Path, tmp_path: Path) -> None:
    target = tmp_path / "written.png"
    image = sorted((digits / "1").glob("*.png"))[0].read_bytes()
    for name in (str(target), f"../../../../..{target}", "..\\..\\x.png", "/etc/passwd", "%2e%2e/x"):
        status, page = post(address, image, name)
        assert status == 200, page
        assert "<table" in page
    assert not target.exists()
    for path in ("..%2f..%2fetc/passwd", "runs", "openapi.json", "static/../x"):
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(address + path, timeout=30)  # noqa: S310


def test_what_is_too_large_or_no_image_is_refused(address: str, tmp_path: Path) -> None:
    assert post(address, b"no image", "a.png")[0] == 400
    try:
        status, _ = post(address, b"\0" * 21_000_000, "a.png")
        assert status == 413
    except (urllib.error.URLError, ConnectionError, OSError):
        pass  # it hung up before all of it was sent
    bomb = tmp_path / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(bomb)
    status, page = post(address, bomb.read_bytes(), "bomb.png")
    assert status == 400
    assert "cannot be read as an image" in page
    assert urllib.request.urlopen(address, timeout=30).status == 200  # noqa: S310
