import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convnext_cli.runs.folder import RunFolder
from tests.images.dicom import save_dicom
from tests.reports.browser import CHROMIUM, Browser

for name in ("fastapi", "uvicorn", "multipart"):
    pytest.importorskip(name, reason="the extra serve is not installed")

import uvicorn  # noqa: E402

from examples import serve  # noqa: E402

SCRIPT = Path(__file__).parents[2] / "examples/serve.py"
TIMEOUT = 180  # seconds, on a machine that does other things too


@pytest.fixture(scope="module")
def address(run: RunFolder) -> Iterator[str]:
    """The example, serving the small run."""
    command = [sys.executable, str(SCRIPT), str(run.path), "--port", "0", "--host-name", "x-rays.example"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith(f"Serving {run.path} at http://127.0.0.1:"), line
        yield line.split()[-1]
    finally:
        process.terminate()
        process.communicate(timeout=30)


def post(address: str, content: bytes, filename: str, host: str = "localhost") -> tuple[int, str]:
    head = f'--x\r\nContent-Disposition: form-data; name="image"; filename="{filename}"\r\n\r\n'.encode()
    kind = {"Content-Type": "multipart/form-data; boundary=x", "Host": host}
    request = urllib.request.Request(address, data=head + content + b"\r\n--x--\r\n", headers=kind)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:  # noqa: S310
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.slow
def test_interrupted_server_ends_without_a_traceback(run: RunFolder) -> None:
    command = [sys.executable, str(SCRIPT), str(run.path), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address = process.stdout.readline().split()[-1]
    with urllib.request.urlopen(address, timeout=TIMEOUT) as answer:  # noqa: S310
        assert answer.status == 200
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 0


@pytest.mark.slow
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
        assert browser.evaluate("document.querySelector('#heat').naturalWidth") >= 2 * 8
        assert not browser.complaints


def wait_for(browser: Browser, condition: str) -> None:
    until = time.monotonic() + TIMEOUT
    while browser.evaluate(condition) is not True:
        assert time.monotonic() < until, condition
        time.sleep(0.2)


def test_uploaded_paths_are_ignored(address: str, digits: Path, tmp_path: Path) -> None:
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


def test_too_large_uploads_and_other_files_are_refused(address: str, tmp_path: Path) -> None:
    status, page = post(address, b"no image", "a.png")
    assert status == 400
    assert "The file cannot be read as an image (of no known format)" in page
    assert post(address, b"\0" * 21_000_000, "a.png")[0] == 413
    bomb = tmp_path / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(bomb)
    status, page = post(address, bomb.read_bytes(), "bomb.png")
    assert status == 400
    assert "The file has more than 178,956,970 pixels" in page
    assert urllib.request.urlopen(address, timeout=30).status == 200  # noqa: S310


def test_another_host_name_is_refused(address: str, digits: Path) -> None:
    image = sorted((digits / "1").glob("*.png"))[0].read_bytes()
    for host in ("other.example", "127.0.0.1.other.example", "localhost.", "x-rays.example.other", "[::1]"):
        assert post(address, image, "a.png", host)[0] == 400
    for host in ("localhost:1", "127.0.0.1", "x-rays.example"):
        assert post(address, image, "a.png", host)[0] == 200


@pytest.mark.parametrize("name", ["frames.dcm", "empty.dcm", "empty.png", "torn.png"])
def test_an_unreadable_image_is_a_client_error(address: str, digits: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "frames.dcm":
        save_dicom(path, np.zeros((2, 64, 48), np.uint8), NumberOfFrames=None)
    else:
        image = sorted((digits / "1").glob("*.png"))[0].read_bytes()
        path.write_bytes(image[: len(image) // 2] if name == "torn.png" else b"")
    assert post(address, path.read_bytes(), name)[0] in (200, 400)


class Server:
    """The example's own server in this process, with its limits made short."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(serve, "STALL", 0.3)
        monkeypatch.setattr(serve, "REQUEST_TIMEOUT", 2.0)
        monkeypatch.setattr(serve, "MAX_CONNECTIONS", 6)
        self.socket = socket.create_server(("127.0.0.1", 0))
        app = serve.make_app(Path("nowhere"))
        self.server = uvicorn.Server(uvicorn.Config(app, http=serve.Connection, ws="none", log_level="critical"))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]})

    def __enter__(self) -> Callable[[bytes], socket.socket]:
        self.thread.start()

        def send(data: bytes) -> socket.socket:
            connection = socket.create_connection(self.socket.getsockname(), timeout=TIMEOUT)
            connection.sendall(data)
            return connection

        return send

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join()
        self.socket.close()


HEAD = (
    b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: 90000\r\n"
)


def is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


@pytest.mark.parametrize("begun", [b"", b"POST", HEAD, HEAD + b"\r\n", HEAD + b"\r\n" + bytes(50_000)])
def test_a_stalled_request_times_out(begun: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with Server(monkeypatch) as send, send(begun) as connection:
        assert is_closed(connection)


def test_an_endless_request_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with Server(monkeypatch) as send, send(HEAD + b"\r\n") as connection:
        connection.settimeout(0.1)
        for _ in range(600):
            try:
                connection.sendall(b"x")
                closed = is_closed(connection)
            except TimeoutError:
                continue
            except OSError:
                closed = True
            assert closed
            return
        pytest.fail("it was never given up")


def test_uploads_and_connections_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "STALL", 60.0)
    with Server(monkeypatch) as send, contextlib.ExitStack() as stack:
        monkeypatch.setattr(serve, "STALL", 60.0)
        monkeypatch.setattr(serve, "REQUEST_TIMEOUT", 60.0)
        waiting = [stack.enter_context(send(HEAD + b"\r\n" + bytes(10_000))) for _ in range(4)]
        late = stack.enter_context(send(HEAD + b"\r\n" + bytes(90_000)))
        assert late.recv(100).startswith(b"HTTP/1.1 503")
        del waiting
        more = [stack.enter_context(send(b"")) for _ in range(4)]
        assert is_closed(more[-1])


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        ("", 2, "no run folder. Make one with `convnext demo`, then: python examples/serve.py RUN"),
        ("nowhere", 3, "nowhere does not exist"),
        ("RUN --port TAKEN", 2, "cannot listen on port"),
    ],
)
def test_a_run_that_cannot_be_served_is_an_error(
    run: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: str,
    code: int,
    problem: str,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words = words.replace("RUN", str(run.path)).replace("TAKEN", str(taken.getsockname()[1]))
        monkeypatch.setattr(sys, "argv", ["serve.py", *words.split()])
        with pytest.raises(SystemExit) as caught:
            serve.main()
    said = capsys.readouterr()
    assert (caught.value.code, said.out) == (code, "")
    assert problem in said.err
    assert said.err.count("\n") == 1
