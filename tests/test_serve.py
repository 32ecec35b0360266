"""odn serve: answers, refusals, limits, and a real process under signals, slow clients and many at once."""

import asyncio
import base64
import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import stripes
from odn.batching import Batcher, Overloaded
from odn.guard import Guard, Limits
from odn.predicting import predict_files

pytest.importorskip("fastapi", reason="needs the extra serve: pip install 'optimally-deep[serve]'")
httpx = pytest.importorskip("httpx")


@contextlib.contextmanager
def client_of(directory, *, hosts=(), **limits):
    from fastapi.testclient import TestClient

    from odn.serve import build_app

    app = build_app(directory, limits=Limits(**limits), hosts=hosts)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def client(deployed):
    with client_of(deployed, request_bytes=200_000, images=8, pixels=10_000) as client:
        yield client


def png(image=None, size=(8, 8), mode="L") -> bytes:
    buffer = io.BytesIO()
    (Image.new(mode, size) if image is None else Image.fromarray(image)).save(buffer, "PNG")
    return buffer.getvalue()


def refusal_of(answer, status, code):
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert (error["status"], error["code"]) == (status, code)
    assert error["message"]
    return error["message"]


IMAGES, LABELS = stripes(6, seed=4)


def test_forms_and_json_get_the_predictions_of_odn_predict(client, deployed, tmp_path):
    contents = [png(image) for image in IMAGES]
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    expected = [(p.label, pytest.approx(p.probability, abs=1e-5)) for _, p in predict_files(deployed, paths)]
    form = client.post("/predict", files=[("files", (f"{i}.png", c, "image/png")) for i, c in enumerate(contents)])
    texts = [base64.b64encode(content).decode() for content in contents]
    for answer in (form, client.post("/predict", json={"images": texts})):
        assert answer.status_code == 200, answer.text
        assert [(p["label"], p["probability"]) for p in answer.json()["predictions"]] == expected


def test_it_says_what_it_is(client):
    assert client.get("/healthz").json() == {"status": "ok"}
    facts = client.get("/metadata").json()
    assert (facts["labels"], facts["input_shape"], facts["runtime"]) == (["a", "b", "c"], [1, 8, 8], "onnx")
    assert facts["limits"]["images"] == 8
    schema = client.get("/openapi.json").json()
    assert set(schema["paths"]) == {"/predict", "/healthz", "/metadata"}
    body = schema["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert set(body) == {"multipart/form-data", "application/json"}


def test_the_page_may_load_nothing_from_elsewhere(client):
    page = client.get("/")
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", page.text)
    for answer in (page, client.get("/healthz"), client.get("/nothing")):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"text", 415, "unknown_format"),
        (b"", 415, "unknown_format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", 415, "unknown_format"),
        (png(size=(64, 64), mode="RGB")[:-40], 422, "damaged_image"),
        (png(size=(200, 200)), 413, "image_too_large"),
        (b"\x89PNG\r\n\x1a\n" + b"\xff" * 64, 415, "unknown_format"),
    ],
)
def test_images_that_are_none_are_refused(client, content, status, code):
    form = client.post("/predict", files={"files": ("x.png", content)})
    message = refusal_of(form, status, code)
    assert message.startswith("image 1 is not usable")
    refusal_of(client.post("/predict", json={"images": [base64.b64encode(content).decode()]}), status, code)


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 422, "damaged_json"),
        ({"content": b"[" * 100_000, "headers": {"content-type": "application/json"}}, 422, "damaged_json"),
        ({"json": {"images": "text"}}, 422, "no_image"),
        ({"json": {"path": "/etc/passwd"}}, 422, "no_image"),
        ({"json": {"images": [3]}}, 422, "no_image"),
        ({"json": {"images": []}}, 422, "no_image"),
        ({"json": {"images": ["%%%"]}}, 422, "damaged_base64"),
        ({"json": {"images": ["é"]}}, 422, "damaged_base64"),
        ({"json": {"images": ["aGk="] * 9}}, 413, "too_many_images"),
        ({"files": [("files", b"x")] * 9}, 413, "too_many_images"),
        ({"data": {"files": "text"}}, 415, "unknown_type"),
        ({"content": b"x", "headers": {"content-type": "text/plain"}}, 415, "unknown_type"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 422, "damaged_form"),
        ({"content": b"--b\r\nno", "headers": {"content-type": "multipart/form-data; boundary=b"}}, 422, "no_image"),
        ({"content": b"x" * 200_001, "headers": {"content-type": "application/json"}}, 413, "request_too_large"),
    ],
)
def test_requests_that_are_wrong_are_refused(client, request_, status, code):
    refusal_of(client.post("/predict", **request_), status, code)


def test_unknown_addresses_and_methods_get_the_same_kind_of_answer(client):
    refusal_of(client.get("/../../etc/passwd"), 404, "http")
    refusal_of(client.get("/predict"), 405, "http")
    refusal_of(client.get("/docs"), 404, "http")


def test_a_body_of_unknown_length_is_cut_off(client):
    def endless():
        for _ in range(300):
            yield b"x" * 1000

    headers = {"content-type": "application/json"}
    refusal_of(client.post("/predict", content=endless(), headers=headers), 413, "request_too_large")


def test_only_local_names_are_answered_to(deployed):
    with client_of(deployed, hosts=("localhost", "127.0.0.1", "::1")) as client:
        assert client.get("/healthz", headers={"host": "localhost:8000"}).status_code == 200
        assert client.get("/healthz", headers={"host": "[::1]:8000"}).status_code == 200
        refusal_of(client.get("/healthz", headers={"host": "evil.example"}), 421, "wrong_host")


def test_a_failure_inside_is_a_plain_500(deployed, monkeypatch, caplog):
    with client_of(deployed) as client:
        monkeypatch.setattr("odn.service.Service.metadata", lambda _: 1 / 0)
        message = refusal_of(client.get("/metadata"), 500, "internal")
    assert "division" not in message
    assert "ZeroDivisionError" in caplog.text


def test_torch_serves_where_there_is_no_onnx_file(network, tmp_path):
    from conftest import tiny_data
    from odn.exporting import export

    export(network, tmp_path / "a", tiny_data().spec)
    with client_of(tmp_path / "a") as client:
        assert client.get("/metadata").json()["runtime"] == "torch"
        answer = client.post("/predict", files={"files": png(IMAGES[1])})
        assert answer.json()["predictions"][0]["label"] == "b"


# micro-batching ----------------------------------------------------------------------------------------------------


def test_requests_that_wait_are_computed_together():
    sizes = []

    def session(images):
        sizes.append(len(images))
        return images.reshape(len(images), -1).astype(np.float32), images[:, 0, 0, 0]

    async def many():
        batcher = Batcher(session, max_batch=8, max_waiting=100)
        asks = [asyncio.create_task(batcher.run(np.full((n, 1, 1, 1), n, np.uint8))) for n in (3, 4, 2, 9, 1)]
        await asyncio.sleep(0)
        batcher.start()
        answers = await asyncio.gather(*asks)
        await batcher.stop()
        return answers

    answers = asyncio.run(many())
    assert sizes == [7, 2, 9, 1]
    assert [depths.tolist() for _, depths in answers] == [[n] * n for n in (3, 4, 2, 9, 1)]
    assert [logits[:, 0].tolist() for logits, _ in answers] == [[n] * n for n in (3, 4, 2, 9, 1)]


def test_a_full_queue_refuses_and_a_client_that_has_gone_is_not_computed():
    sizes = []

    async def crowd():
        batcher = Batcher(lambda x: sizes.append(len(x)) or (x[:, :, 0, 0], None), max_batch=2, max_waiting=4)
        image = np.zeros((2, 1, 1, 1), np.uint8)
        gone, stays = (asyncio.create_task(batcher.run(image)) for _ in range(2))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await batcher.run(image)
        gone.cancel()
        batcher.start()
        assert (await stays)[0].shape == (2, 1)
        await batcher.stop()
        assert batcher.waiting == 0

    asyncio.run(crowd())
    assert sizes == [2]


def test_an_error_of_the_network_reaches_every_request_and_work_goes_on():
    calls = []

    def session(images):
        calls.append(len(images))
        if len(calls) == 1:
            raise RuntimeError("broken")
        return images[:, :, 0, 0], None

    async def both():
        batcher = Batcher(session, max_batch=4, max_waiting=9)
        batcher.start()
        image = np.zeros((1, 1, 1, 1), np.uint8)
        with pytest.raises(RuntimeError, match="broken"):
            await batcher.run(image)
        assert len((await batcher.run(image))[0]) == 1
        await batcher.stop()

    asyncio.run(both())


def ask(guard, messages):
    """Send a request to a guard by hand; returns the status and the body."""
    sent = []

    async def receive():
        if not messages:
            await asyncio.Event().wait()
        return messages.pop(0)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "headers": [(b"host", b"localhost")]}
    asyncio.run(guard(scope, receive, send))
    return sent[0]["status"], json.loads(sent[1]["body"])["error"]["code"]


async def reads(scope, receive, send):
    while (await receive()).get("more_body"):
        pass


def test_a_body_that_does_not_arrive_in_time_is_refused():
    guard = Guard(reads, Limits(seconds=0.05))
    assert ask(guard, [{"type": "http.request", "body": b"x", "more_body": True}]) == (408, "too_slow")
    assert guard.active == 0


def test_an_answer_that_takes_too_long_is_given_up():
    async def hangs(scope, receive, send):
        await asyncio.Event().wait()

    guard = Guard(hangs, Limits(seconds=0.02))
    assert ask(guard, []) == (503, "timeout")
    assert guard.active == 0


def test_more_requests_than_allowed_are_refused():
    guard = Guard(reads, Limits(requests=1))
    guard.active = 1
    assert ask(guard, []) == (503, "overloaded")
    assert guard.active == 1


# a real process ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def running(directory, *flags):
    """Start odn serve on a free port; yields the process and its address."""
    command = [sys.executable, "-m", "odn", "serve", str(directory), "--port", "0", *map(str, flags)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            line = process.stderr.readline()
            yield process, re.search(r"at (http://\S+);", line).group(1)
        finally:
            if process.poll() is None:
                process.kill()


def head_of(length: int) -> bytes:
    lines = ("POST /predict HTTP/1.1", "Host: localhost", "Content-Type: application/json", f"Content-Length: {length}")
    return "\r\n".join((*lines, "", "")).encode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_after_the_answers_that_are_due(deployed, number):
    with running(deployed) as (process, address):
        host, port = address.removeprefix("http://").split(":")
        assert httpx.get(f"{address}/healthz").status_code == 200
        body = json.dumps({"images": [base64.b64encode(png(IMAGES[2])).decode()]}).encode()
        with socket.create_connection((host, int(port))) as half:
            half.sendall(head_of(len(body)) + body[:10])
            assert httpx.get(f"{address}/healthz").status_code == 200  # by now the half request has been read
            process.send_signal(number)
            with contextlib.suppress(httpx.ConnectError, httpx.ReadError):
                while httpx.get(f"{address}/healthz", timeout=5).status_code == 200:
                    pass
            half.sendall(body[10:])
            answer = half.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 200")
        assert b'"label":"c"' in answer
        assert process.wait(20) == 0
        assert process.stderr.read() == ""


def memory_bytes(pid: int) -> int:
    return int(re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text()).group(1)) * 1024


def test_two_hundred_requests_at_once_get_the_right_answers_and_leave_nothing_behind(deployed):
    with (
        running(deployed) as (process, address),
        httpx.Client(limits=httpx.Limits(max_connections=200), timeout=60) as client,
    ):

        def one(index: int) -> int:
            kind = index % 4
            content = png(IMAGES[index % 6]) if kind < 2 else b"no image" if kind == 2 else png(IMAGES[0])[:-30]
            answer = client.post(f"{address}/predict", files={"files": content})
            if kind < 2:
                assert answer.json()["predictions"][0]["label"] == "abc"[LABELS[index % 6]]
            return answer.status_code

        with ThreadPoolExecutor(200) as pool:
            statuses = list(pool.map(one, range(200)))
            before = memory_bytes(process.pid) if sys.platform == "linux" else 0
            again = list(pool.map(one, range(200)))
        assert statuses == again
        assert statuses == [(200, 200, 415, 422)[index % 4] for index in range(200)]
        if sys.platform == "linux":
            assert memory_bytes(process.pid) - before < 30e6
            assert len(list(Path(f"/proc/{process.pid}/fd").iterdir())) < 300


def test_clients_that_are_slow_or_go_away_do_no_harm(deployed):
    with running(deployed, "--timeout-seconds", 0.5) as (process, address):
        host, port = address.removeprefix("http://").split(":")

        def connection():
            return socket.create_connection((host, int(port)), timeout=20)

        with connection() as silent, connection() as headless, connection() as slow, connection() as gone:
            headless.sendall(b"GET /healthz HTTP/1.1\r\nHost")
            slow.sendall(head_of(100) + b"{")
            gone.sendall(head_of(100) + b"{")
            gone.close()
            assert slow.makefile("rb").readline().startswith(b"HTTP/1.1 408")
            assert silent.recv(100) == b""
            assert headless.recv(100) == b""
        assert httpx.get(f"{address}/healthz").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert "Traceback" not in process.stderr.read()


def test_serving_imports_no_torch(deployed):
    code = "import sys; from odn.serve import build_app; build_app(sys.argv[1]); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(deployed)], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_an_address_in_use_is_named(refused, deployed):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        err = refused("serve", deployed, "--port", port, code=1)
    assert f"cannot listen on 127.0.0.1:{port}" in err
    assert "choose another --host or --port" in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--port", 70000), 2, "--port is 70000; allowed: 0 to 65535"),
        (("--max-images", 0), 2, "the limit on images is 0; allowed: 1 or more"),
        (("--timeout-seconds", 0), 2, "the limit on seconds is 0.0; allowed: above 0"),
    ],
)
def test_wrong_requests_get_one_line(refused, deployed, arguments, code, message):
    assert message in refused("serve", deployed, *arguments, code=code)


def test_a_missing_fastapi_is_named(refused, deployed, monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    err = refused("serve", deployed, code=1)
    assert "odn serve needs fastapi; install it with: pip install 'optimally-deep[serve]'" in err


# the page ----------------------------------------------------------------------------------------------------------


def test_the_page_in_a_browser(deployed, tmp_path):
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    (tmp_path / "band.png").write_bytes(png(IMAGES[1]))
    (tmp_path / "text.png").write_text("text")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync"]
    with running(deployed) as (_, address), playwright.sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            str(tmp_path / "profile"), executable_path=chromium, headless=True, args=flags
        )
        page = context.new_page()
        told, asked = [], []
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.get_by_text("3 classes, images of 1x8x8, trained on stripes, run by onnx").wait_for()
        page.set_input_files("#files", [tmp_path / "band.png", tmp_path / "text.png"])
        page.get_by_text(re.compile(r"^b \(\d+\.\d %\)$")).wait_for()
        page.get_by_text("image 1 is not usable: no known image format").wait_for()
        # Dropping a file does what choosing one does.
        content = base64.b64encode(png(IMAGES[2])).decode()
        page.evaluate(
            """content => {
                const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
                const transfer = new DataTransfer();
                transfer.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
                document.getElementById("drop").dispatchEvent(
                    new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
            }""",
            content,
        )
        page.get_by_text(re.compile(r"^c \(\d+\.\d %\)$")).wait_for()
        assert page.evaluate(
            "[...document.images].every((image) => image.naturalWidth === 8 || image.naturalWidth === 0)"
        )
        page.screenshot(path=os.environ.get("ODN_SCREENSHOT", tmp_path / "page.png"))
        context.close()
    assert [text for text in told if "415" not in text] == []
    assert all(url.startswith((address, "blob:", "data:")) for url in asked), asked
