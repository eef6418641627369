"""A run pushed to a small server that answers as the Hub does, and pulled from it."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pgolf.artifact.container import join_sections
from pgolf.config import load_preset, to_toml
from pgolf.folder import RunFolder
from pgolf.hub import HubError, pull, push
from pgolf.run import main
from pgolf.summary import Audit
from tests.report.folders import audited

pytest.importorskip("huggingface_hub", reason="needs huggingface_hub")
REPO = "someone/model"


class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub calls to make a repository, to commit small files and to read them; files are kept by name."""

    files: dict[str, bytes] = {}
    private = None

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if self.headers.get("authorization") != "Bearer right":
            self.answer({"error": "Invalid username or password."}, 401)
        elif self.path == "/api/repos/create":
            wanted = json.loads(body)
            Hub.private = wanted.get("private") or wanted.get("visibility") == "private"  # before and since version 2
            self.answer({"url": f"http://{self.headers['Host']}/{REPO}", "id": REPO})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif self.path.split("?")[0] == f"/api/models/{REPO}/preupload/main":
            names = [file["path"] for file in json.loads(body)["files"]]
            self.answer({"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]})
        elif self.path.split("?")[0] == f"/api/models/{REPO}/commit/main":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    Hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer({"commitUrl": f"http://{self.headers['Host']}/{REPO}/commit/1", "commitOid": "1" * 40})
        else:
            self.answer({"error": f"no {self.path}"}, 404)

    def do_GET(self):
        name = self.path.removeprefix(f"/{REPO}/resolve/main/")
        if name in self.files:
            self.answer(self.files[name])
        else:
            self.answer({"error": "no entry"}, 404, {"X-Error-Code": "EntryNotFound"})

    do_HEAD = do_GET

    def answer(self, what, status=200, headers=None):
        body = what if isinstance(what, bytes) else json.dumps(what).encode()
        self.send_response(status)
        about = {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": "1" * 40, "Content-Length": str(len(body))}
        for name, value in {**about, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        """Quiet."""


@pytest.fixture(scope="module")
def address():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()


@pytest.fixture
def hub(address, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setenv("HF_TOKEN", "right")
    Hub.files, Hub.private = {}, None
    return Hub


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = RunFolder(audited(tmp_path_factory.mktemp("hub") / "run"))
    folder.config.write_text(to_toml(load_preset("quick")))
    folder.artifact.write_bytes(join_sections({"meta": b"{}", "codes": bytes(1000)}))
    folder.report.write_text("<html></html>")
    folder.update_summary(audit=Audit(True, [], 3, ["sliding"], 1.0))
    return folder


def test_there_and_back(hub, run, tmp_path, capsys):
    assert main(["push", str(run.path), REPO, "--private"]) == 0
    assert hub.private and hub.files.keys() == {
        "model.pgolf", "config.toml", "summary.json", "report.html", "SHA256SUMS", "README.md",
    }  # fmt: skip
    assert main(["pull", REPO, "--out", str(tmp_path / "got")]) == 0
    assert "pulled" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "got").iterdir()}
    assert names == {"model.pgolf", "config.toml", "summary.json"}
    assert all((tmp_path / "got" / name).read_bytes() == (run.path / name).read_bytes() for name in names)


def test_the_card_says_what_the_summary_says(hub, run):
    push(run, REPO)
    text, summary = hub.files["README.md"].decode(), run.read_summary()
    front = text.split("---")[1]
    assert "library_name: pgolf" in front and "- compression" in front
    assert f"**{summary.main_score.bpb:.4f} bits per byte**" in text and "the audit passed" in text
    assert text.count("| yes |") + text.count("| no, as published |") == len(summary.score)
    assert hashlib.sha256(run.artifact.read_bytes()).hexdigest() in text and f"pgolf pull {REPO} --out" in text


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda files: files.pop("model.pgolf"), "model.pgolf"),
        (lambda files: files.update({"model.pgolf": b"other"}), "model.pgolf is not what SHA256SUMS says"),
        (lambda files: files.update(SHA256SUMS=b"nothing"), "says nothing of model.pgolf, config.toml, summary.json"),
        (lambda files: files.pop("SHA256SUMS"), "EntryNotFound"),
    ],
)
def test_what_is_wrong_there_is_one_line_and_leaves_nothing(hub, run, tmp_path, change, said, capsys):
    push(run, REPO)
    change(hub.files)
    assert main(["pull", REPO, "--out", str(tmp_path / "got")]) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("pgolf: ") and said in line and list(tmp_path.iterdir()) == []


def test_a_damaged_artifact_is_refused_even_if_its_sum_is_right(hub, run, tmp_path):
    push(run, REPO)
    damaged = hub.files["model.pgolf"][:-1] + b"x"
    sums = hub.files["SHA256SUMS"].replace(
        *(hashlib.sha256(x).hexdigest().encode() for x in (hub.files["model.pgolf"], damaged))
    )
    hub.files |= {"model.pgolf": damaged, "SHA256SUMS": sums}
    with pytest.raises(Exception, match="checksum does not match"):
        pull(REPO, tmp_path / "got")
    assert not (tmp_path / "got").exists()


def test_who_is_not_logged_in_is_told(hub, run, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(HubError, match="401.*log in with: hf auth login") as error:
        push(run, REPO)
    assert "\n" not in str(error.value) and hub.files == {}


def test_a_run_that_is_not_scored_is_not_pushed(run, tmp_path):
    (tmp_path / "config.toml").write_text(run.config.read_text())
    with pytest.raises(HubError, match="is not scored yet; run: pgolf --resume"):
        push(RunFolder(tmp_path), REPO)


def test_a_folder_with_files_is_left_alone(hub, run, tmp_path):
    push(run, REPO)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(HubError, match="holds files already; give another --out"):
        pull(REPO, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
