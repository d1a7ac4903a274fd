"""A wrong answer of a policy extraction of one's own is one line: whose it is, what came and what is expected."""

import numpy as np
import pytest
import torch
from own_extraction import opened, own, success_and_failure
from tiny import make_algorithm, make_batch, tiny_config, write_config

from lerobot_policy_pi05_rl import losses
from lerobot_policy_pi05_rl.advantage import TAG_POSITIVE, SampleLabels
from lerobot_policy_pi05_rl.cli import main as cli
from lerobot_policy_pi05_rl.data.batch import POSITION
from lerobot_policy_pi05_rl.errors import UserError
from lerobot_policy_pi05_rl.extraction_checks import asked_inference_tag, reads_values, sample_tags, sample_weights
from lerobot_policy_pi05_rl.noise import sample_noise

DEVICES = ("cpu", "cuda", "meta")
pytestmark = pytest.mark.usefixtures("registry_as_before")


@pytest.fixture
def recording(tmp_path):
    return success_and_failure(tmp_path / "data")


SHAPE = r"expected: None or an? .*of shape \({count},\)"


def tagged_and_weighed(**members):
    """(tags, weights) of six samples under ``mine``; its methods take the labels alone."""
    own(**{name: lambda self, labels, answer=answer: answer(labels) for name, answer in members.items()})
    algorithm = make_algorithm(policy_extraction="mine")
    batch = make_batch()
    sampled = sample_noise(3, batch[POSITION], algorithm.policy.config)
    return algorithm.losses.tag_and_weigh(torch.zeros(6), batch, sampled)[:2]


@pytest.mark.parametrize(
    ("answer", "came"),
    [
        (lambda tags: [1.0] * len(tags), r"list \[1\.0, 1\.0"),
        (lambda tags: torch.ones(len(tags)), r"a tensor of shape \(20,\) and torch\.float32 on cpu"),
        (lambda tags: np.ones(len(tags) - 1), r"a numpy array of shape \(19,\) and float64"),
        (lambda tags: np.ones((len(tags), 1)), r"a numpy array of shape \(20, 1\) and float64"),
        (lambda tags: np.full(len(tags), "2"), r"a numpy array of shape \(20,\) and <U1"),
        (lambda tags: np.where(tags == TAG_POSITIVE, 1.0, np.nan), "nan at index 5"),
        (lambda tags: np.where(tags == TAG_POSITIVE, np.inf, 1.0), "inf at index 0"),
        (lambda tags: tags.astype(int) - 1, "-1 at index 5"),
    ],
)
def test_wrong_repetitions_are_an_error_that_says_what_is_expected(tmp_path, recording, answer, came):
    own(repetitions=lambda self, tags, advantages: answer(tags))
    with pytest.raises(UserError, match=rf"^Mine\.repetitions returned {came}.*; {SHAPE.format(count=20)}"):
        opened(tmp_path, recording, dataset__labeling="first")


@pytest.mark.parametrize(
    ("answer", "came"),
    [
        (lambda labels: [1.0] * 6, r"list \[1\.0, 1\.0"),
        (lambda labels: np.ones(6), r"a numpy array of shape \(6,\) and float64"),
        (lambda labels: torch.ones(5), r"a tensor of shape \(5,\)"),
        (lambda labels: torch.ones(6, 1), r"a tensor of shape \(6, 1\)"),  # would broadcast
        (lambda labels: torch.tensor(1.0), r"a tensor of shape \(\)"),
        (lambda labels: torch.ones(6, device="meta"), r"a tensor of shape \(6,\) and torch\.float32 on meta"),
        (lambda labels: torch.ones(6, dtype=torch.complex64), r"a tensor of shape \(6,\) and torch\.complex64"),
        (lambda labels: labels.advantages / 0, "nan at index 0"),
        (lambda labels: 1 / torch.tensor([1.0, 2, 0, 1, 1, 1]), "inf at index 2"),
        (lambda labels: torch.tensor([0, 1, 2, 3, 4, -1]), "-1 at index 5"),
    ],
)
def test_wrong_weights_are_an_error_that_says_what_is_expected(answer, came):
    with pytest.raises(UserError, match=rf"^Mine\.weights returned {came}.*; {SHAPE.format(count=6)} on cpu"):
        tagged_and_weighed(weights=answer)


@pytest.mark.parametrize(
    ("answer", "came"),
    [
        (lambda labels: [1] * 6, r"list \[1, 1"),
        (lambda labels: labels.tags[:5], r"a tensor of shape \(5,\)"),
        (lambda labels: labels.tags.float(), r"a tensor of shape \(6,\) and torch\.float32"),
        (lambda labels: labels.tags == TAG_POSITIVE, r"a tensor of shape \(6,\) and torch\.bool"),
        (lambda labels: torch.tensor([0, 1, -1, 2, 0, 0]), "2 at index 3"),
    ],
)
def test_wrong_tags_are_an_error_that_says_what_is_expected(answer, came):
    with pytest.raises(UserError, match=rf"^Mine\.tags returned {came}.*; {SHAPE.format(count=6)} on cpu, each 1 "):
        tagged_and_weighed(tags=answer)


def test_whatever_counts_as_a_weight_is_one():
    for weights in (torch.ones(6, dtype=torch.bool), torch.arange(6), torch.zeros(6), torch.ones(6).double()):
        assert tagged_and_weighed(weights=lambda labels, weights=weights: weights)[1] is weights


def test_after_the_first_batch_nobody_waits_for_a_gpu_to_look_at_values():
    """Tensors on ``meta`` have no values, reading one raises; ``pi05-rl plan`` runs its step there."""
    own(tags=lambda self, labels: labels.tags, weights=lambda self, labels: labels.advantages)
    extraction = tiny_config(policy_extraction="mine").extraction
    empty = torch.empty(6, device="meta")
    labels = SampleLabels(empty, empty.long(), empty.bool(), empty.bool(), torch.zeros(6).long(), None, False)
    for first in (True, False):
        assert sample_tags(extraction, labels, first=first).is_meta
        assert sample_weights(extraction, labels, first=first).is_meta
    looked = {name: [reads_values(torch.device(name), first=first) for first in (True, False)] for name in DEVICES}
    assert looked == {"cpu": [True, True], "cuda": [True, False], "meta": [False, False]}


def test_the_first_batch_is_looked_at_and_no_other(monkeypatch):
    looks = []
    for name in ("sample_tags", "sample_weights"):
        monkeypatch.setattr(losses, name, lambda *_, first: looks.append(first))
    algorithm, batch = make_algorithm(), make_batch()
    sampled = sample_noise(3, batch[POSITION], algorithm.policy.config)
    for _ in range(3):
        algorithm.losses.tag_and_weigh(torch.zeros(6), batch, sampled)
    assert looks == [True, True, False, False, False, False]


def test_keeps_and_the_tag_asked_for_are_checked_too(tmp_path, recording):
    own(keeps=lambda self, outcome: None)
    with pytest.raises(UserError, match=r"^Mine\.keeps returned NoneType None; expected: True or False"):
        opened(tmp_path, recording)
    for tag in (2, True, "positive"):
        own(inference_tag=lambda self, tag=tag: tag)
        with pytest.raises(
            UserError, match=rf"^Mine\.inference_tag returned {type(tag).__name__} '?{tag}'?; expected"
        ):
            asked_inference_tag(tiny_config(policy_extraction="mine").extraction)


def test_a_wrong_answer_ends_a_run_with_one_line(tmp_path, recording, capsys, logging_as_before):
    own(weights=lambda self, labels: torch.ones(len(labels.tags) + 1))
    path = write_config(tmp_path / "c.json", recording, tmp_path / "run", policy__policy_extraction="mine")
    with pytest.raises(SystemExit) as stop:
        cli(["offline", str(path)])
    lines = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and "Mine.weights returned a tensor of shape" in lines[-1]
    assert not any("Traceback" in line for line in lines)
