"""``data/batch.py`` says what is in a batch, and no other file spells a key."""

import ast

import numpy as np
import pytest
import torch
from commands import REPOSITORY
from lerobot.utils.constants import OBS_IMAGES
from recordings import MIXED_EPISODES, make_dataset, make_labeling
from tiny import write_config

from lerobot_policy_pi05_rl.config.file import load_config
from lerobot_policy_pi05_rl.data.batch import KEYS, N_STEP, TASK, BatchKey, n_step_columns, n_step_key, own_columns
from lerobot_policy_pi05_rl.data.loaders import make_train_loader
from lerobot_policy_pi05_rl.training.start import prepare

SOURCES = REPOSITORY / "src" / "lerobot_policy_pi05_rl"
BATCHES = ("batch", "samples", "sample", "present", "later")  # what variables that hold one are called
# Words that other tables and files have, too: there they are not keys of a batch.
ELSEWHERE = {TASK, "return", "task_index", "intervention", "fold", "position", "reward", "discount", "info"}


def describe(key: str) -> BatchKey:
    """What lies under a key of a batch, the one of a camera or of a later frame included.

    Raises:
        KeyError: no batch has it.
    """
    prefix, _, name = key.partition(".")
    if prefix.startswith(N_STEP):
        general = f"{N_STEP}<n>.{name}"
        return KEYS[general] if general in KEYS else describe(name)
    return KEYS[f"{OBS_IMAGES}.<camera>" if key.startswith(f"{OBS_IMAGES}.") else key]


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> tuple[dict, dict]:
    """A batch with every key there is, collated and preprocessed: under a labeling, and with n-step returns."""
    root = tmp_path_factory.mktemp("batch")
    make_dataset(root / "data", MIXED_EPISODES)
    changes = {"dataset__labeling": "mine", "policy__critic_target": "td", "policy__n_step": 2}
    cfg = load_config(write_config(root / "c.json", root / "data", root / "run", **changes))
    make_labeling(cfg, "mine", lambda count: np.arange(count) < count // 4)
    cfg.validate()
    data, algorithm, _ = prepare(cfg, None)
    (samples,) = make_train_loader(data, batch_size=cfg.batch_size, batches=1)
    return samples, algorithm.preprocess(samples)


@pytest.mark.parametrize("preprocessed", [0, 1])
def test_every_key_is_described_with_its_shape_and_dtype(seen, preprocessed):
    letters: dict[str, int] = {}
    for key, value in seen[preprocessed].items():
        said = describe(key)
        if said.dtype == "none":
            assert not isinstance(value, torch.Tensor), key
        elif said.shape is None:
            assert isinstance(value, list) and all(isinstance(text, str) for text in value), key
        else:
            assert len(value.shape) == len(said.shape), key
            for letter, size in zip(said.shape, value.shape, strict=True):
                assert letters.setdefault(letter, size) == size if isinstance(letter, str) else letter == size, key
            dtypes = said.dtype.split(" → ")
            assert str(value.dtype) == f"torch.{dtypes[min(preprocessed, len(dtypes) - 1)]}", key
    assert letters["B"] == 4 and letters["H"] == 6 and letters["A"] == 3 and letters["S"] == 4
    with pytest.raises(KeyError):
        describe("value")


def test_every_description_is_of_a_key_that_there_is(seen):
    found = {id(describe(key)) for batch in seen for key in batch}
    assert [key for key, said in KEYS.items() if id(said) not in found] == []


def test_writers_and_readers_are_files():
    for key, said in KEYS.items():
        for text in (said.written, said.read):
            files = [word.strip("(:),") for word in text.split() if ".py" in word]
            assert (files or text == "nobody") and all((SOURCES / name).is_file() for name in files), key


def test_columns_of_later_frames_are_found_again(seen):
    samples, _ = seen
    assert set(n_step_columns(samples)) == {2}
    again = {n_step_key(n, key) for n, columns in n_step_columns(samples).items() for key in columns}
    assert again | own_columns(samples).keys() == samples.keys()
    assert not again & own_columns(samples).keys()


def spelled(tree: ast.AST) -> list[str]:
    """Keys of a batch that code spells."""
    exact = {key for key in KEYS if "<" not in key} - ELSEWHERE
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found += [node.value] if node.value in exact or node.value.startswith(N_STEP) else []
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id in BATCHES:
            found += [node.slice.value] if getattr(node.slice, "value", None) in ELSEWHERE else []
        if isinstance(node, ast.Dict):  # a batch has a list of texts: {**batch, "task": […]}
            lists = [key for key, value in zip(node.keys, node.values, strict=True) if isinstance(value, ast.List)]
            found += [key.value for key in lists if getattr(key, "value", None) == TASK]
    return found


def test_no_other_file_spells_a_key():
    others = [path for path in SOURCES.rglob("*.py") if path != SOURCES / "data" / "batch.py"]
    found = {str(path.relative_to(SOURCES)): spelled(ast.parse(path.read_text())) for path in others}
    assert {name: keys for name, keys in found.items() if keys} == {}


@pytest.mark.parametrize(
    "code",
    [
        'x["importance_weight"]',
        'batch["return"]',
        'key.startswith("n_step_")',
        'f"n_step_{n}.reward"',
        '{**b, "task": [t]}',
    ],
)
def test_the_check_sees_a_spelled_key(code):
    assert spelled(ast.parse(code))


def test_the_module_imports_nothing_of_the_package():
    tree = ast.parse((SOURCES / "data" / "batch.py").read_text())
    assert not any(isinstance(node, ast.ImportFrom) and node.level for node in ast.walk(tree))
