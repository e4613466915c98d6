"""Paths that a user names, and atomic writes of files and folders, which replace only what the same command wrote."""

import os
import shutil
import socket
from pathlib import Path

import pytest
from child_process import NO_PROCESS

from longshot_jax.errors import UserError
from longshot_jax.files import check_writable, json_with, local_path, part_of, replacing_folder, write_text


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("gs://bucket/run", "is an address, .*mount the bucket"),
        ("s3://bucket/run", "is an address"),
        ("https://example.org/data.json", "is an address"),
        (Path("gs://bucket/run"), "is an address"),
        ("~no_such_user_here/run", "unknown home folder: give the whole path"),
        ("x" * 300, "File name too long"),
        ("x/" * 3000, "File name too long"),
        ("a\0b", "null byte"),
        ("a\ud800b", "surrogates not allowed"),
        ("", "is empty"),
    ],
)
def test_what_can_be_no_path_here_is_refused_by_name(named, words):
    with pytest.raises(UserError, match=rf"^--workdir .*{words}") as raised:
        local_path(named, "--workdir")
    said = str(raised.value)
    assert "\n" not in said and "\0" not in said and len(said) < 320


def test_paths_and_hub_names_pass(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("~/runs/x", "--workdir") == tmp_path / "runs" / "x"
    for name in ("openai/gsm8k:main:train[:90%]", "meta-llama/Llama-3.2-1B", "a:b", "runs/x", "chains"):
        assert local_path(name, "--data") == Path(name)


def test_a_user_without_a_home(monkeypatch):
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda _: (_ for _ in ()).throw(KeyError("no entry")))
    with pytest.raises(UserError, match="unknown home folder"):
        local_path("~/runs", "--workdir")


def test_a_killed_export_is_removed_by_the_next_and_a_living_one_is_not(tmp_path):
    folder, host = tmp_path / "export", socket.gethostname()
    dead = [f".export{of}.{NO_PROCESS}.{kind}" for of in (f".{host}", "") for kind in ("part", "replaced")]
    old = f".export.elsewhere.{os.getpid()}.part"
    living = [
        f".export.{host}.{os.getppid()}.part",
        ".export.elsewhere.1.part",
        ".export.part",
        f".other.{host}.999999.part",
    ]
    for name in [*dead, *living, old]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text("x")
    os.utime(tmp_path / old, (0, 0))
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / f".export.{host}.{NO_PROCESS + 1}.part").symlink_to(outside)
    with replacing_folder(folder, "choose another") as part:
        (part / "weights").write_text("new")
    assert (folder / "weights").read_text() == "new" and outside.is_dir()
    left = {path.name for path in tmp_path.iterdir() if not path.is_symlink()}
    assert left == {"export", "outside", *living}


def test_what_was_replaced_stays_until_there_is_another(tmp_path):
    replaced = tmp_path / f".export.{socket.gethostname()}.{NO_PROCESS}.replaced"
    replaced.mkdir()
    with pytest.raises(KeyError), replacing_folder(tmp_path / "export", "choose another"):
        raise KeyError
    assert replaced.is_dir() and not (tmp_path / "export").exists()


def test_a_linked_folder_is_not_replaced(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "tokenizer").symlink_to("mine")
    with pytest.raises(UserError, match="tokenizer is a symbolic link"), replacing_folder(tmp_path / "tokenizer", "x"):
        pass
    assert (tmp_path / "tokenizer").is_symlink() and (tmp_path / "mine").is_dir()


def test_a_part_is_never_written_through_a_link(tmp_path):
    mine = tmp_path / "mine"
    mine.write_text("mine")
    path = tmp_path / "results.json"
    part_of(path).symlink_to(mine)
    write_text(path, "new", advice="choose another")
    assert path.read_text() == "new" and not path.is_symlink() and mine.read_text() == "mine"
    part_of(path).symlink_to(mine)
    check_writable(path, str.isalpha)
    assert mine.read_text() == "mine" and sorted(os.listdir(tmp_path)) == ["mine", "results.json"]
    shutil.rmtree(tmp_path)
    with pytest.raises(UserError, match=r"results\.json cannot be written .*choose another"):
        write_text(path, "new", advice="choose another")
    with pytest.raises(UserError, match="File name too long"):
        write_text(Path("/tmp") / ("x" * 254), "new", advice="choose another")


@pytest.mark.parametrize(
    "content", ['{"model_type": "llama"}', "[1]", "{", "text", b"\xff\x00", '{"a": ' * 2000], ids=str
)
def test_an_output_never_replaces_another_file(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"^--output .*results\.json exists and is not a file that this command wrote"):
        check_writable(path, json_with("correct", "accuracy"))
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["results.json"]


def test_an_output_replaces_its_own_file_and_no_link_or_device(tmp_path):
    own = tmp_path / "results.json"
    for text in ("", '{"accuracy": 1.0}'):
        own.write_text(text)
        check_writable(own, json_with("correct", "accuracy"))
    (tmp_path / "link.json").symlink_to(own)
    (tmp_path / "dangling.json").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "link.json", tmp_path / "dangling.json", tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(UserError, match="is not a file that this command wrote"):
            check_writable(path, json_with("correct", "accuracy"))
    with pytest.raises(UserError, match="is a folder"):
        check_writable(tmp_path, json_with("correct"))
    check_writable(tmp_path / "new" / "results.json", json_with("correct"))
    assert (tmp_path / "new").is_dir()
