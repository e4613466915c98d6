"""Event files, read back with TensorBoard's own reader."""

import os
import struct
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from longshot_jax.errors import UserError
from longshot_jax.training.tensorboard import RunWriter, samples_table


def read(folder: Path) -> EventAccumulator:
    # Zero: keep every event.
    sizes = {"scalars": 0, "histograms": 0, "tensors": 0, "compressedHistograms": 0, "images": 0, "audio": 0}
    return EventAccumulator(str(folder), size_guidance=sizes).Reload()


def points(folder: Path, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read(folder).Scalars(name)]


def test_everything_written_is_read_back(tmp_path):
    array = jnp.concatenate([jnp.linspace(-2, 3, 101), jnp.array([jnp.nan, jnp.inf])])
    with RunWriter(tmp_path) as writer:
        for step in (1, 2):
            writer.scalars(step, {"loss/policy": jnp.float32(0.5 / step), "accuracy": np.float64(0.25), "n": 3})
        writer.histogram(2, "thoughts/rms", array)
        writer.histogram(2, "one", jnp.bfloat16(1.5))
        writer.histogram(2, "nothing", jnp.full((3,), jnp.nan))
        writer.text(2, "samples", samples_table([{"question": "a|b"}]))
    events = read(tmp_path)
    assert points(tmp_path, "loss/policy") == [(1, 0.5), (2, 0.25)]
    assert points(tmp_path, "accuracy") == [(1, 0.25), (2, 0.25)] and points(tmp_path, "n") == [(1, 3), (2, 3)]
    assert sorted(events.Tags()["histograms"]) == ["one", "thoughts/rms"]
    (histogram,) = events.Histograms("thoughts/rms")
    value = histogram.histogram_value
    assert (histogram.step, value.num, value.min, value.max) == (2, 101, -2.0, 3.0)
    assert value.sum == pytest.approx(50.5, abs=1e-4)
    (text,) = events.Tensors("samples/text_summary")
    assert text.step == 2 and "a&#124;b" in text.tensor_proto.string_val[0].decode()


def test_numbers_beyond_the_bins_of_a_histogram_are_in_the_outermost(tmp_path):
    with RunWriter(tmp_path) as writer:
        writer.histogram(1, "huge", np.float32([-3e38, 1e38, 2e38]))
        writer.histogram(2, "mixed", [1e300, 0.5])
    events = read(tmp_path)
    (huge,), (mixed,) = events.Histograms("huge"), events.Histograms("mixed")
    assert huge.histogram_value.num == sum(huge.histogram_value.bucket) == 3
    assert mixed.histogram_value.num == sum(mixed.histogram_value.bucket) == 2
    assert np.isfinite(huge.histogram_value.sum_squares)


def test_hyperparameters_stand_beside_the_results_in_the_same_run(tmp_path):
    config = {"seed": 1, "ppo": {"clip": 0.2, "gradient": "score", "fused": True}, "dims": (1, 2), "none": None}
    with RunWriter(tmp_path) as writer:
        writer.hyperparameters(config, ["final/accuracy"])
        # Before the end, the settings are there already, for the comparison with a run that did not get so far.
        assert "_hparams_/session_start_info" in read(tmp_path).summary_metadata
        assert "_hparams_/session_end_info" not in read(tmp_path).summary_metadata
        writer.results({"final/accuracy": np.float32(0.5)})
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []
    metadata = read(tmp_path).summary_metadata
    assert "_hparams_/session_end_info" in metadata
    start = plugin_data_pb2.HParamsPluginData.FromString(
        metadata["_hparams_/session_start_info"].plugin_data.content
    ).session_start_info.hparams
    assert start["seed"].number_value == 1 and start["ppo.clip"].number_value == 0.2
    assert start["ppo.gradient"].string_value == "score" and start["ppo.fused"].bool_value is True
    assert (start["dims"].string_value, start["none"].string_value) == ("(1, 2)", "None")
    experiment = plugin_data_pb2.HParamsPluginData.FromString(
        metadata["_hparams_/experiment"].plugin_data.content
    ).experiment
    assert [info.name.tag for info in experiment.metric_infos] == ["final/accuracy"]
    assert points(tmp_path, "final/accuracy") == [(0, 0.5)]


def test_a_resumed_run_shows_no_step_twice(tmp_path):
    with RunWriter(tmp_path) as killed:
        for step in range(1, 7):
            killed.scalars(step, {"loss": step})
            killed.histogram(step, "weights", np.arange(step))
            killed.text(step, "samples", f"first {step}")
    with RunWriter(tmp_path, resumed_from=3) as resumed:  # in the same second, too
        for step in range(4, 6):
            resumed.scalars(step, {"loss": 10 * step})
            resumed.histogram(step, "weights", np.arange(step))
            resumed.text(step, "samples", f"second {step}")
    assert len(list(tmp_path.glob("events.*"))) == 2
    assert points(tmp_path, "loss") == [(1, 1), (2, 2), (3, 3), (4, 40), (5, 50)]
    assert [event.step for event in read(tmp_path).Histograms("weights")] == [1, 2, 3, 4, 5]
    served = plugin_event_accumulator.EventAccumulator(str(tmp_path), {"tensors": 0}).Reload()
    texts = [event.tensor_proto.string_val[0].decode() for event in served.Tensors("samples/text_summary")]
    assert texts == ["first 1", "first 2", "first 3", "second 4", "second 5"]


def test_what_was_written_of_the_checkpoints_own_step_is_not_written_again(tmp_path):
    logged: list = []
    with RunWriter(tmp_path) as killed:
        killed.hyperparameters({"seed": 0}, ["final/accuracy"])
        for step in range(1, 5):
            killed.scalars(step, {"loss": step})
        killed.results({"final/accuracy": 1})
    file = next(tmp_path.glob("events.*"))
    file.write_bytes(file.read_bytes() + b"\7")  # of a record that a kill cut short
    with RunWriter(tmp_path, resumed_from=3) as hidden:  # killed before it came to step 4
        hidden.scalars(3, {"accuracy": 0.5})
    damaged = sorted(tmp_path.glob("events.*"), key=lambda file: file.stat().st_size)[0]
    damaged.write_bytes(damaged.read_bytes() + struct.pack("<Q", 3) + b"\xff" * 11)
    with RunWriter(tmp_path, resumed_from=4, log=lambda *step: logged.append(step)) as resumed:
        resumed.hyperparameters({"seed": 0}, ["final/accuracy"])
        resumed.scalars(4, {"loss": 40, "accuracy": 0.75})
    with RunWriter(tmp_path, resumed_from=4, log=lambda *step: logged.append(step)) as again:
        again.scalars(4, {"loss": 4000, "accuracy": 0.75})
        again.results({"final/accuracy": 2})
    assert points(tmp_path, "loss") == [(1, 1), (2, 2), (3, 3), (4, 40)], "step 4 of the first was hidden"
    assert points(tmp_path, "accuracy") == [(3, 0.5), (4, 0.75)] and points(tmp_path, "final/accuracy") == [(0, 1)]
    assert logged == [(4, {"loss": 40.0, "accuracy": 0.75})]


def test_a_run_killed_before_its_first_checkpoint_starts_its_curves_again(tmp_path):
    with RunWriter(tmp_path) as killed:
        for step in range(4):
            killed.scalars(step, {"loss": step})
    with RunWriter(tmp_path) as again:
        again.scalars(0, {"loss": 10})
    assert points(tmp_path, "loss") == [(0, 10)]


def test_what_is_written_can_be_read_before_the_end(tmp_path):
    with RunWriter(tmp_path) as writer:
        for step in (1, 2):  # nothing is kept back that a kill could lose
            writer.scalars(step, {"loss": float(step)})
            assert points(tmp_path, "loss")[-1] == (step, float(step))


def fill_disk(writer, left_over=b""):
    """From here on the writer's file is the device that answers every write as a full disk does."""
    writer._file.close()
    writer._file = open("/dev/full", "wb")
    writer._file.write(left_over)


def test_a_full_disk_is_one_sentence_and_hides_no_earlier_error(tmp_path):
    with RunWriter(tmp_path) as writer:
        fill_disk(writer)
        with pytest.raises(UserError, match=r"cannot be written to .* \(No space left on device\): free some"):
            writer.scalars(1, {"loss": 1.0})
        for step in range(20):  # more than a queue would hold
            writer.scalars(step, {"loss": 1.0})
    with pytest.raises(UserError, match="the first"), RunWriter(tmp_path) as writer:
        fill_disk(writer, b"left over")
        raise UserError("the first")
    with pytest.raises(UserError, match="No space left"), RunWriter(tmp_path) as writer:
        fill_disk(writer, b"left over")


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    with RunWriter(tmp_path / "events") as writer:
        writer.scalars(1, {"loss": 1.0})
        writer.histogram(1, "weights", np.arange(3))
        writer.text(1, "samples", "text")
        writer.hyperparameters({"seed": 1}, ["final"])
        writer.results({"final": 1.0})
    assert not (tmp_path / "events").exists()


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written to .*file"):
        RunWriter(tmp_path / "file" / "events")


def test_neither_tensorflow_nor_pytorch_is_imported(tmp_path):
    code = (
        "import sys; from longshot_jax.training.tensorboard import RunWriter; "
        "RunWriter(sys.argv[1]).hyperparameters({}, []); "
        "print([m for m in sys.modules if m.split('.')[0] in ('tensorflow', 'torch')])"
    )
    environment = dict(os.environ, JAX_PLATFORMS="cpu", PYTHONPATH=str(Path(__file__).parents[1]))
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_samples_table_keeps_every_text_in_its_cell():
    table = samples_table(
        [{"question": "a|b\nc", "answer": "<|end-latent|> 5*6", "thoughts": 4}, {"question": "\\|", "answer": None}]
    )
    assert table.splitlines() == [
        "| question | answer | thoughts |",
        "| --- | --- | --- |",
        "| a&#124;b<br>c | &lt;&#124;end-latent&#124;&gt; 5\\*6 | 4 |",
        "| \\\\&#124; | None |  |",
    ]
    assert samples_table([]) == "(no samples)"


# TensorBoard's own copy of html5lib warns about itself at import.
@pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated:DeprecationWarning")
def test_samples_table_is_one_table_to_tensorboards_own_markdown():
    from tensorboard import plugin_util

    page = plugin_util.markdown_to_safe_html(samples_table([{"q": "x|y\nz <b>*s*", "a": "1,000"}, {"q": "", "a": 2}]))
    assert page.count("<tr>") == 3 and page.count("<td>") == 4
    assert "<td>x|y<br>z &lt;b&gt;*s*</td>" in page.replace("&#124;", "|")
