"""Text tables: aligned, with the digits that matter."""

import jax.numpy as jnp
import numpy as np
import pytest

from longshot_jax.tables import by_name, figure, markdown_table, text_table


def test_single_values():
    rows = {"name": "value", "accuracy": 0.98764, "thoughts": jnp.float32(3.5), "updates": 1200, "checkpoint": "runs/x"}
    assert text_table(list(rows.items())).splitlines() == [
        "name         value",
        "----------  ------",
        "accuracy    0.9876",
        "thoughts       3.5",
        "updates       1200",
        "checkpoint  runs/x",
    ]


def test_columns_by_name():
    rows = {
        "coconut": {"1": 99.5, "4": 77.25},
        "ppo": {"1": 100.0, "4": np.float32(98.5), "seconds": 123456.7},
        "control": {},
    }
    assert text_table(by_name(rows)).splitlines() == [
        "            1      4  seconds",
        "-------  ----  -----  -------",
        "coconut  99.5  77.25",
        "ppo       100   98.5   123457",
        "control",
    ]
    assert text_table(by_name({})) == ""


def test_markdown_is_aligned_in_the_source_too():
    assert markdown_table([["variant", "accuracy"], ["whole", 0.98764], ["no memory", 0.5]]).splitlines() == [
        "| variant   | accuracy |",
        "| ---       | ---:     |",
        "| whole     | 0.9876   |",
        "| no memory | 0.5      |",
    ]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.123456, "0.1235"),
        (123456.7, "123457"),
        (-12345.6, "-12346"),
        (1234567, "1234567"),
        (float("nan"), "nan"),
        (jnp.float32(0.5), "0.5"),
        (np.ones((1, 1)), "1"),
        (None, "None"),
        ("text", "text"),
    ],
)
def test_figures(value, shown):
    assert figure(value) == shown
